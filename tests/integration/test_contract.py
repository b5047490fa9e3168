"""The fake HAProxy of the unit tests and every real one, held to the same script."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from attrs import evolve
from kit.edge import Edge, connect, until
from kit.fakes import apply, servers_of
from kit.servers import EchoServer, echo, free_port

from agent.desired.identity import Key
from agent.errors import CommandError
from agent.haproxy.commands import Command, Verb
from agent.haproxy.commands import of_server as server
from agent.haproxy.observed import ServerStats

CHECK = ("check", "inter 1h")


def line(port: int, *, weight: int = 1, fixed: tuple[str, ...] = CHECK) -> str:
    return " ".join([f"127.0.0.1:{port}", f"weight {weight}", *fixed])


def script(port: int) -> list[Command]:
    """Every command, in the orders in which plans give them, and some that HAProxy must refuse."""
    return [
        server(Verb.ADD_SERVER, ("back", "b"), line(port)),
        server(Verb.ENABLE_HEALTH, ("back", "b")),
        server(Verb.SET_STATE, ("back", "b"), "ready"),
        server(Verb.ADD_SERVER, ("back", "b"), line(port)),  # refused: it is there
        server(Verb.ADD_SERVER, ("back", "c"), line(port, weight=7, fixed=(*CHECK, "backup"))),
        server(Verb.ENABLE_HEALTH, ("back", "c")),
        server(Verb.SET_STATE, ("back", "c"), "drain"),
        server(Verb.SET_HEALTH, ("back", "c"), "down"),
        server(Verb.SET_STATE, ("back", "c"), "ready"),
        server(Verb.ADD_SERVER, ("back", "d"), line(port, fixed=())),
        server(Verb.SET_STATE, ("back", "d"), "drain"),
        server(Verb.SET_HEALTH, ("back", "d"), "down"),
        server(Verb.SET_STATE, ("back", "d"), "ready"),
        server(Verb.SET_HEALTH, ("back", "d"), "up"),
        server(Verb.SET_WEIGHT, ("back", "b"), "9"),
        server(Verb.SET_WEIGHT, ("back", "b"), "0"),
        server(Verb.SET_HEALTH, ("back", "b"), "down"),
        server(Verb.SET_ADDRESS, ("back", "b"), f"127.0.0.1 port {port + 1}"),
        server(Verb.SET_ADDRESS, ("back", "b"), f"127.0.0.1 port {port + 1}"),
        server(Verb.SET_ADDRESS, ("back", "b"), "::1 port 1"),
        server(Verb.SET_STATE, ("back", "a"), "maint"),
        server(Verb.SET_STATE, ("back", "a"), "ready"),
        server(Verb.SET_STATE, ("back", "e"), "ready"),  # disabled in the file
        server(Verb.DELETE_SERVER, ("back", "a")),  # refused: in service
        server(Verb.SET_STATE, ("back", "c"), "maint"),
        server(Verb.DELETE_SERVER, ("back", "c")),
        server(Verb.DELETE_SERVER, ("back", "c")),  # refused: there is none
        server(Verb.SET_STATE, ("back", "nobody"), "maint"),  # refused
        server(Verb.SET_STATE, ("nowhere", "a"), "maint"),  # refused
    ]


def seen(servers: dict[Key, ServerStats]) -> dict[Key, tuple[object, ...]]:
    return {
        key: (one.up, one.down, one.maintenance, one.draining, one.address, one.weight, one.backup)
        for key, one in servers.items()
    }


def refused(what: Callable[[], object]) -> bool:
    try:
        what()
    except CommandError:
        return True
    return False


def test_the_fake_does_what_haproxy_does(edge: Edge):
    with echo("a") as a:
        pool = {"a": {"address": a.address}, "e": {"address": a.address, "disabled": True}}
        edge.live(
            {
                "version": 1,
                "frontends": {"front": {"bind": [f"127.0.0.1:{free_port()}"], "backend": "back"}},
                "backends": {"back": {"servers": pool, "proxy_protocol": "none", "health": {"interval": "1h"}}},
            }
        )
        fake = servers_of((edge.folder / "state/haproxy.cfg").read_text())
        haproxy = edge.haproxy
        for step, command in enumerate(script(free_port())):
            no = refused(lambda command=command: haproxy.socket.tell(command))
            assert no == refused(lambda command=command: apply(fake, command)), f"{step}: {command}"
            real = {one.key: one for one in haproxy.observe().servers}
            assert seen(real) == seen(fake), f"{step}: {command}"
            brief = {
                one.key: evolve(one, backup=real[one.key].backup) for one in haproxy.socket.observe_brief().servers
            }
            assert seen(brief) == seen(real), f"{step}: {command}"


def one_server(port: int, server: EchoServer) -> dict:
    return {
        "version": 1,
        "frontends": {"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}},
        "backends": {"back": {"servers": {server.name: {"address": server.address}}}},
    }


def test_a_server_with_a_session_is_not_deleted_and_that_is_no_failure(edge: Edge):
    with echo("a") as a:
        port = free_port()
        edge.live(one_server(port, a))
        haproxy = edge.haproxy
        with connect(port) as session:
            session.recv(100)
            haproxy.socket.tell(server(Verb.SET_STATE, ("back", "a"), "maint"))
            assert haproxy.delete_drained(server(Verb.DELETE_SERVER, ("back", "a"))) is False
            session.sendall(b"still here")
            assert session.recv(100) == b"still here"
        until(
            lambda: haproxy.delete_drained(server(Verb.DELETE_SERVER, ("back", "a"))),
            "it is deleted after its last session",
        )
        with pytest.raises(CommandError, match=r"No such server\."):
            haproxy.delete_drained(server(Verb.DELETE_SERVER, ("back", "a")))


def test_a_process_that_died_since_it_was_looked_at_is_replaced_by_a_cold_start(edge: Edge):
    """A dead -x socket is fatal to the start (facts.md, HAProxy 4)."""
    with echo("a") as a:
        port = free_port()
        edge.live(one_server(port, a))
        haproxy = edge.haproxy
        old = haproxy.running()
        assert old is not None
        os.kill(old.pid, signal.SIGKILL)
        until(lambda: haproxy.running() is None, "it is gone")
        haproxy.switch(edge.folder / "state/haproxy.cfg", old)
        haproxy.wait_until_serving(1, frozenset({"front"}), None)
