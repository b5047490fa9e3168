"""The built-in template and what is written without Jinja2 are the same bytes: an operator's copy changes nothing."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st
from kit.strategies import states

from agent.desired.state import parse
from agent.errors import InvalidError
from agent.haproxy.config import CONFIG_TEMPLATE, Process, render
from agent.host import templates

BUILT_IN = templates.load(CONFIG_TEMPLATE, "")
PROCESSES = st.builds(
    Process,
    socket=st.just(PurePosixPath("/run/e/haproxy.sock")),
    server_state=st.just(PurePosixPath("/run/e/server-state")),
    maxconn=st.integers(1, 10_000),
    hard_stop_after=st.integers(1_000, 10_000_000),
    user=st.sampled_from(["", "haproxy"]),
    group=st.sampled_from(["", "haproxy"]),
    chroot=st.just(""),
    log=st.sampled_from(["", "/dev/log"]),
    ca_file=st.just("/etc/ssl/cert.pem"),
    peers=st.sampled_from([None, PurePosixPath("/run/e/peers")]),
)


@given(states(), PROCESSES)
def test_with_and_without_jinja2(document: dict[str, Any], process: Process):
    try:
        state = parse(json.dumps(document).encode(), file="d").state
    except InvalidError:
        assume(False)  # noqa: FBT003  # takes no keyword
    assert render(state, process, BUILT_IN) == render(state, process, evolve(BUILT_IN, built_in=False))
