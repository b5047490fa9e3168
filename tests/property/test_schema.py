"""`agent schema` and `agent check` agree on every document, but for what a JSON Schema cannot say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.command import invoke
from kit.strategies import spoiled, states
from kit.wrong import WRONG, changed

from agent.desired.json_schema import DIFFERENCES, document
from agent.desired.state import parse
from agent.errors import InvalidError

ROOT = Path(__file__).parents[2]
SCHEMA = document()
PLAIN = settings(max_examples=max(300, settings.default.max_examples), deadline=None)

# What `check` says where only it knows, and the place of that among DIFFERENCES.
ONLY_CHECK = (
    (r"there is no (backend|group of nodes) ", 0),
    (r"is bound already", 1),
    (r"the group .* has a node of this name", 2),
    (r"can never match: earlier routes", 3),
    (r"a backend without a server", 4),
    (r"the echo behind a canary demands PROXY v2", 5),
    (r"at most [\d,]+ are taken|nested more than", 6),
    (r"expected an IP address|with a scope|multicast|in IPv6 clothes|bits behind its mask|expected a network", 7),
    (r"is no address of a server", 8),
    (r"must be from 1ms to 596h|expected a status from 100 to 599", 9),
    (r"expected a whole number .* got -?[\d.e+]+\.0$|got 1\.0$|duplicate key|YAML tags|merge keys", 10),
)


def in_ecma_script(validator: Any, pattern: str, text: object, _: Any) -> Any:
    """JSON Schema's patterns are of ECMAScript, where `$` is the end of the text; Python's is before a last newline."""
    if validator.is_type(text, "string") and not re.search(re.sub(r"\$$", r"\\Z", pattern), text):
        yield jsonschema.ValidationError(f"{text!r} does not match {pattern!r}")


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": in_ecma_script})(SCHEMA)


def agree(state: object) -> None:
    """What the schema refuses `check` refuses; what `check` refuses and the schema does not is a known difference."""
    try:
        data = json.dumps(state, allow_nan=False).encode()
    except ValueError:  # NaN is no JSON
        return
    by_schema = [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(state)]
    try:
        parse(data, file="d.json")
    except InvalidError as refused:
        if not by_schema:
            unexplained = [
                violation.message
                for violation in refused.violations
                if not any(re.search(pattern, violation.message) for pattern, _ in ONLY_CHECK)
            ]
            assert not unexplained
    else:
        assert not by_schema


def test_it_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_difference_is_listed_and_each_that_is_listed_is_known_to_this_test():
    assert {index for _, index in ONLY_CHECK} == set(range(len(DIFFERENCES)))


@PLAIN
@given(states())
def test_valid_states(state: dict[str, Any]):
    agree(state)


@PLAIN
@given(spoiled())
def test_spoiled_states(state: dict[str, Any]):
    agree(state)


@PLAIN
@given(st.data(), states())
def test_keys_left_out_or_put_elsewhere(data: st.DataObject, state: dict[str, Any]):
    """Keys of one mapping that do not go together: what `rules` says of them the schema says too."""
    kinds = [part for name in ("frontends", "backends") for part in state[name].values()]
    part = data.draw(st.sampled_from(kinds))
    other = data.draw(st.sampled_from(kinds))
    for key in data.draw(st.lists(st.sampled_from(sorted(part)), max_size=3)):
        part.pop(key, None)
    for key in data.draw(st.lists(st.sampled_from(sorted(other) or ["bind"]), max_size=2)):
        part[key] = other.get(key)
    for inner in [part.get("health"), part.get("rate_limit")]:
        if isinstance(inner, dict):
            for key in data.draw(
                st.lists(st.sampled_from(["type", "connections", "path", "tls", "verify"]), max_size=2)
            ):
                inner.pop(key, None)
            inner.update(data.draw(st.dictionaries(st.sampled_from(["verify", "tls", "send_proxy"]), st.booleans())))
    agree(state)


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, value, _ in WRONG])
def test_each_wrong_value(path: str, value: object):
    agree(changed(path, value))


def test_most_wrong_values_are_refused_by_the_schema_alone():
    """The differences are few: or an editor would be of no use."""
    refused = [not VALIDATOR.is_valid(changed(path, value)) for path, value, _ in WRONG]
    assert sum(refused) > 0.7 * len(WRONG)


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_examples_are_valid_and_name_the_schema(file: Path):
    VALIDATOR.validate(yaml.safe_load(file.read_text()))
    first = file.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    assert json.loads((file.parent / named[1]).read_text()) == SCHEMA, "make docs writes it anew"


def test_the_command_prints_it():
    done = invoke("schema")
    assert (done.exit_code, json.loads(done.stdout)) == (0, SCHEMA)
