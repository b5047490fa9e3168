"""What is rendered and read back is the same configuration; what is spoiled is told, and never a crash."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from kit.strategies import states

from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.errors import InvalidError
from agent.haproxy.config import CONFIG_TEMPLATE, Process, render
from agent.host import templates
from agent.tools.importer import command as importing

PROCESS = Process(
    socket=PurePosixPath("/r/haproxy.sock"),
    server_state=PurePosixPath("/r/server-state"),
    maxconn=4000,
    hard_stop_after=900_000,
    ca_file="/etc/ssl/cert.pem",
)


def rendered(state: DesiredState) -> str:
    return render(state, PROCESS, templates.load(CONFIG_TEMPLATE, "")).stamped(digest="0" * 64, generation=1).decode()


def spoken(text: str) -> str:
    """Without what depends on a backend's `application`, which a haproxy.cfg does not say."""
    return text.replace("    pp2-never-send-local\n", "")


def reached(document: dict[str, Any]) -> dict[str, Any]:
    """Without the backends that no frontend leads to: they are not imported."""
    names = set()
    for frontend in document["frontends"].values():
        names |= {route["backend"] for route in frontend.get("routes", ())} | {frontend.get("backend")}
    return document | {"backends": {name: pool for name, pool in document["backends"].items() if name in names}}


def valid(document: dict[str, Any]) -> DesiredState:
    try:
        return parse(json.dumps(document).encode(), file="d").state
    except InvalidError:
        reject()


@given(states())
def test_what_is_rendered_and_imported_is_the_same(document: dict[str, Any]):
    state = valid(reached(document))
    text = rendered(state)
    assume(state.backends and state.frontends)
    found = importing.convert(text.encode(), "haproxy.cfg")
    again = importing.document(found, "haproxy.cfg")
    assert spoken(rendered(parse(again.encode(), file="again").state)) == spoken(text)
    # And nothing of it is left but what is the process's own.
    own = text[: text.index("\nfrontend ") if "\nfrontend " in text else text.index("\nbackend ")].count("\n") + 1
    assert [str(one) for one in found.left if int(one.place.rpartition(":")[2]) > own + 1] == []


@given(states(), st.data())
def test_a_spoiled_file_is_told_and_never_a_crash(document: dict[str, Any], data: st.DataObject):
    lines = rendered(valid(document)).splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.text(max_size=6))
        lines[at] = " ".join(words)
    try:
        found = importing.convert("\n".join(lines).encode(), "haproxy.cfg")
    except InvalidError:
        return
    assert importing.document(found, "haproxy.cfg").startswith("# Made of haproxy.cfg")


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="<>/&;![]abcpfsenhy \n\"'", max_size=200).map(str.encode)))
def test_junk_is_refused_with_its_place(data: bytes):
    with pytest.raises(InvalidError, match=r"^config\.xml"):
        importing.convert(data, "config.xml")
