"""What people and their tools do by accident, while clients connect."""

from __future__ import annotations

from typing import Any

import pytest
from kit.edge import first_line
from kit.servers import echo, free_port

from tests.faults.conftest import Scene


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("a document that is `version: 1` alone", {"version": 1, "serial": 8}, "`allow_empty: true`"),
        ("a serial lower than the live one", {"version": 1, "serial": 6, "allow_empty": True}, "lower than serial 7"),
    ],
)
def test_a_document_that_policy_rejects(scene: Scene, name: str, document: dict[str, Any], said: str):
    edge = scene.edge
    edge.live(scene.state(serial=7))
    edge.serve()
    with scene.fault(name) as after:
        edge.put(document)
        status = edge.wait("refused")
        assert said in status["message"] + status["remedy"]
        after("what was live; refused (exit 9)")


def test_a_frontend_with_another_name_and_dead_servers_on_the_same_address(scene: Scene):
    edge, port, dead = scene.edge, free_port(), free_port()
    with echo("a") as server:
        edge.live(scene.with_pool(port, server))
        renamed = scene.state(
            {"renamed": {"bind": [f"127.0.0.1:{port}"], "backend": "other"}},
            {"other": {"servers": {"a": {"address": f"127.0.0.1:{dead}"}}}},
        )
        with scene.fault("a serving frontend renamed, with dead servers") as after:
            done = edge.apply(renamed)
            assert (done.returncode, "no server of backend other answers" in done.stderr) == (4, True), done.stderr
            assert first_line(port).startswith("a")
            after("the old state")
