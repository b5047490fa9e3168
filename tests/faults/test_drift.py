"""What somebody else has changed: put right where it was the agent's, left alone where a person meant it."""

from __future__ import annotations

import pytest
from kit.edge import first_line, until
from kit.servers import echo, free_port

from agent.host.stats_socket import StatsSocket
from tests.faults.conftest import Scene


def counted(scene: Scene, kind: str) -> bool:
    return bool(scene.edge.status()["counters"].get(f"drift_corrections.{kind}"))


@pytest.fixture
def quick(scene: Scene) -> Scene:
    """A service that looks five times a second."""
    scene.edge.configure(f'[haproxy]\nbinary = "{scene.edge.binary}"\nmaxconn = 500\n[apply]\nresync = "200ms"')
    return scene


def test_a_server_that_was_put_to_another_address_at_the_socket(quick: Scene):
    edge, port = quick.edge, free_port()
    with echo("a") as a, echo("b") as b:
        edge.live(quick.with_pool(port, a))
        edge.serve()
        pid = edge.pid
        with quick.fault("a server put to another address at the socket") as after:
            StatsSocket(edge.folder / "run/haproxy.sock").ask(f"set server back/a addr 127.0.0.1 port {b.port}")
            until(lambda: counted(quick, "server"), "it is counted")
            assert {first_line(port) for _ in range(5)} == {"a PROXY 127.0.0.1"}
            assert edge.pid == pid
            after("as it was, without a reload; counted")


def test_a_server_that_was_deleted_at_the_socket(quick: Scene):
    edge, port = quick.edge, free_port()
    with echo("a") as a, echo("b") as b:
        edge.live(quick.with_pool(port, a, b))
        edge.serve()
        with quick.fault("a server deleted at the socket") as after:
            for command in ("set server back/b state maint", "del server back/b"):
                StatsSocket(edge.folder / "run/haproxy.sock").ask(command)
            until(lambda: counted(quick, "server"), "it is counted")
            until(lambda: first_line(port).startswith("b PROXY"), "it serves again")
            after("as it was, without a reload; counted")


def test_a_live_file_that_was_edited(quick: Scene):
    edge = quick.edge
    edge.live(quick.state())
    config = edge.folder / "state/haproxy.cfg"
    before = config.read_bytes()
    edge.serve()
    with quick.fault("the live haproxy.cfg edited") as after:
        config.write_bytes(b"# somebody was here\n" + before)
        until(lambda: counted(quick, "file"), "it is counted")
        assert config.read_bytes() == before
        after("as it was; counted")


def test_what_an_operator_does_by_hand_is_reported_and_outlives_a_reload(quick: Scene):
    edge, port = quick.edge, free_port()
    with echo("a") as a, echo("b") as b, echo("c") as c, echo("d") as d:
        state = quick.with_pool(port, a, b, c, d)
        state["backends"]["unchecked"] = {"servers": {"u": {"address": a.address}}, "health": {"type": "none"}}
        state["frontends"]["front"]["routes"] = [{"sni": ["u.example.org"], "backend": "unchecked"}]
        edge.live(state)
        edge.serve()
        ask = StatsSocket(edge.folder / "run/haproxy.sock").ask
        with quick.fault("maintenance, draining and weights set by hand, then a reload") as after:
            for command in (
                "set server back/a state maint",
                "set server back/b state drain",
                "set server back/c weight 77",
                "set server unchecked/u weight 55",
            ):
                assert ask(command).strip() == ""
            found = until(
                lambda: len(edge.status()["findings"]) == 4 and edge.status()["findings"], "they are reported"
            )
            assert [one["message"] for one in found] == [
                "is in maintenance, by hand",
                "is draining, by hand",
                "has weight 77 by hand, not 1",
                "has weight 55 by hand, not 1",
            ]
            pid = edge.pid
            edge.put({**state, "defaults": {"maxconn": 99}})
            until(lambda: edge.status()["live"]["generation"] == 2, "generation 2")
            assert edge.pid != pid
            servers = {server.name: server for server in edge.haproxy.observe().servers}
            assert servers["a"].maintenance
            assert servers["b"].draining
            assert (servers["c"].weight, servers["u"].weight, servers["d"].weight) == (77, 55, 1)
            after("what the operator wanted; a finding for each")
        assert "server" not in str(edge.status()["counters"])
