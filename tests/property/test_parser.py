"""Whatever the bytes: a DesiredState, or violations with places, never another exception.

And what is accepted is accepted by HAProxy.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kit.strategies import spoiled, states

from agent.desired import document
from agent.desired.state import Parsed, parse
from agent.errors import InvalidError
from agent.haproxy.config import CONFIG_TEMPLATE, Process, render
from agent.host import templates
from agent.host.global_section import find_ca_file

PLACE = re.compile(r"d\.(yaml|json)(:\d+)?: \S")
PLAIN = settings(max_examples=max(300, settings.default.max_examples), deadline=None)
WITH_HAPROXY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


KEYS = st.text('ab"\\', max_size=3)
TREES = st.recursive(
    st.one_of(st.booleans(), st.integers(-9, 9), st.text('ab"\\{}[]:,\n é', max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=20,
)


def outcome(data: bytes, file: str = "d.yaml") -> Parsed | None:
    """The parsed state, or None after looking at each violation."""
    try:
        return parse(data, file=file)
    except InvalidError as refused:
        error = refused
    lines = len(re.findall(rb"\r\n|\r|\n", data)) + 1
    assert error.violations
    for violation in error.violations:
        text = violation.text(error.file)
        assert PLACE.match(text), text
        assert text.isprintable(), text
        assert violation.line is None or 1 <= violation.line <= lines, (violation, lines)
    return None


@PLAIN
@given(st.binary(max_size=200))
@example(b"\xfe\xff\x00v")
@example(b"%YAML 9.9\n--- x")
@example(b"? a\n: b")
@example(b"a: |\n\t- b")
@example(b"&a a: *a")
def test_any_bytes(data: bytes):
    outcome(data)
    outcome(data, "d.json")


@PLAIN
@given(st.text(alphabet="{}[]:,-#&*!|>%@`?'\"\\ \n\taZ0129.~<=é\u2028\x85", max_size=120))
def test_any_text_of_yaml_s_own_characters(text: str):
    outcome(text.encode())
    outcome(text.encode(), "d.json")


@PLAIN
@given(spoiled(), st.sampled_from(["json", "yaml"]))
def test_states_with_junk_in_them(state: dict[str, Any], kind: str):
    with contextlib.suppress(UnicodeEncodeError, yaml.YAMLError, ValueError):
        text = json.dumps(state, indent=1) if kind == "json" else yaml.safe_dump(state)
        outcome(text.encode(), f"d.{kind}")


@PLAIN
@given(states(), st.integers(0, 400))
def test_states_cut_short(state: dict[str, Any], cut: int):
    data = yaml.safe_dump(state).encode()
    outcome(data[:cut])
    outcome(json.dumps(state).encode()[:cut], "d.json")


@PLAIN
@given(states())
def test_json_and_yaml_say_the_same(state: dict[str, Any]):
    one, other = outcome(json.dumps(state).encode(), "d.json"), outcome(yaml.safe_dump(state).encode())
    assert (one and one.state) == (other and other.state)


@PLAIN
@given(st.text("0123456789eE.+-_xobn~:", max_size=6))
@example("0e0")
def test_text_that_looks_like_a_number_is_text_for_us_where_a_yaml_writer_leaves_it_bare(text: str):
    """A node named 12e4 is text to whatever wrote the file: YAML 1.1, which most tools write, knows no such number."""
    assert document.read(yaml.safe_dump({text: text}).encode(), file="d.yaml", max_bytes=99).value == {text: text}


@PLAIN
@given(TREES, st.sampled_from([None, 1]))
def test_lines_of_json_are_those_of_its_text(value: Any, indent: int | None):
    """Each scalar of a list or mapping stands in the line that is named for it."""
    value = {"top": value}
    text = json.dumps(value, indent=indent)
    found = document.read(text.encode(), file="d.json", max_bytes=10**6)
    lines = text.split("\n")

    def walk(at: Any, path: tuple[str | int, ...]) -> None:
        line = found.line(path)
        assert line is not None
        if isinstance(at, dict):
            for key, one in at.items():
                assert json.dumps(key) in lines[found.line((*path, key)) - 1]
                walk(one, (*path, key))
        elif isinstance(at, list):
            for index, one in enumerate(at):
                walk(one, (*path, index))
        else:
            assert json.dumps(at) in lines[line - 1]

    walk(value, ())


@pytest.fixture(scope="module")
def accepted() -> dict[str, int]:
    return {"accepted": 0, "all": 0}


@WITH_HAPROXY
@given(state=states())
def test_what_is_accepted_passes_haproxy_c(
    haproxy_binary: Path, tmp_path: Path, accepted: dict[str, int], state: dict[str, Any]
):
    accepted["all"] += 1
    parsed = outcome(json.dumps(state).encode(), "d.json")
    if parsed is None:
        return
    accepted["accepted"] += 1
    (tmp_path / "server-state").write_text("1\n")
    process = Process(
        socket=PurePosixPath(tmp_path / "s"),
        server_state=PurePosixPath(tmp_path / "server-state"),
        maxconn=4000,
        hard_stop_after=900_000,
        ca_file=find_ca_file(),
    )
    file = tmp_path / "haproxy.cfg"
    config = render(parsed.state, process, templates.load(CONFIG_TEMPLATE, ""))
    file.write_bytes(config.stamped(digest=parsed.digest, generation=1))
    done = subprocess.run([haproxy_binary, "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr, done.stderr


def test_most_of_what_haproxy_could_be_given_was_accepted(accepted: dict[str, int], any_haproxy: Path):
    """Or the test above would say little."""
    assert accepted["accepted"] > accepted["all"] / 3
