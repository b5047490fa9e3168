"""The fake HAProxy of the unit tests and every real one, held to the same script."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from attrs import evolve
from kit.edge import Edge, connect, until
from kit.fakes import fold, servers_of
from kit.servers import EchoServer, echo, free_port

from agent.errors import CommandError
from agent.model.observed import Key, ServerSeen
from agent.model.plan import AddServer, Command, Delete, EnableHealth, Move, SetHealth, SetState, SetWeight
from agent.model.render import ServerLine
from agent.model.schema import Endpoint

CHECK = ("check", "inter 1h")


def line(name: str, port: int, *, weight: int = 1, fixed: tuple[str, ...] = CHECK) -> ServerLine:
    return ServerLine(name=name, address=Endpoint(4, "127.0.0.1", port), weight=weight, fixed=fixed, disabled=False)


def script(port: int) -> list[Command]:
    """Every command, in the orders in which plans give them, and some that HAProxy must refuse."""
    return [
        AddServer("back", "b", line("b", port)),
        EnableHealth("back", "b"),
        SetState("back", "b", "ready"),
        AddServer("back", "b", line("b", port)),  # refused: it is there
        AddServer("back", "c", line("c", port, weight=7, fixed=(*CHECK, "backup"))),
        EnableHealth("back", "c"),
        SetState("back", "c", "drain"),
        SetHealth("back", "c", "down"),
        SetState("back", "c", "ready"),
        AddServer("back", "d", line("d", port, fixed=())),
        SetState("back", "d", "drain"),
        SetHealth("back", "d", "down"),
        SetState("back", "d", "ready"),
        SetHealth("back", "d", "up"),
        SetWeight("back", "b", 9),
        SetWeight("back", "b", 0),
        SetHealth("back", "b", "down"),
        Move("back", "b", line("b", port + 1)),
        Move("back", "b", line("b", port + 1)),
        Move("back", "b", ServerLine(name="b", address=Endpoint(6, "::1", 1), weight=1, fixed=(), disabled=False)),
        SetState("back", "a", "maint"),
        SetState("back", "a", "ready"),
        Delete("back", "a"),  # refused: in service
        SetState("back", "c", "maint"),
        Delete("back", "c"),
        Delete("back", "c"),  # refused: there is none
        SetState("back", "nobody", "maint"),  # refused
        SetState("nowhere", "a", "maint"),  # refused
    ]


def seen(servers: dict[Key, ServerSeen]) -> dict[Key, tuple[object, ...]]:
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
        pool = {"a": {"address": a.address}}
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
            assert no == refused(lambda command=command: fold(fake, command)), f"{step}: {command}"
            real = {one.key: one for one in haproxy.observe().servers}
            assert seen(real) == seen(fake), f"{step}: {command}"
            glance = {one.key: evolve(one, backup=real[one.key].backup) for one in haproxy.socket.glance().servers}
            assert seen(glance) == seen(real), f"{step}: {command}"


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
            haproxy.socket.tell(SetState("back", "a", "maint"))
            assert haproxy.forget(Delete("back", "a")) is False
            session.sendall(b"still here")
            assert session.recv(100) == b"still here"
        until(lambda: haproxy.forget(Delete("back", "a")), "it is deleted after its last session")
        with pytest.raises(CommandError, match=r"No such server\."):
            haproxy.forget(Delete("back", "a"))


def test_a_process_that_died_since_it_was_looked_at_is_replaced_by_a_cold_start(edge: Edge):
    """A dead -x socket is fatal to the start (FACTS, HAProxy 4)."""
    with echo("a") as a:
        port = free_port()
        edge.live(one_server(port, a))
        haproxy = edge.haproxy
        old = haproxy.running()
        assert old is not None
        os.kill(old.pid, signal.SIGKILL)
        until(lambda: haproxy.running() is None, "it is gone")
        haproxy.switch(edge.folder / "state/haproxy.cfg", old)
        haproxy.prove(1, frozenset({"front"}), None)
