"""Servers by host name, with a real name server: it moves, falls silent, lies, and comes back."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from kit.edge import Edge, first_line, until
from kit.names import NameServer, name_server
from kit.servers import EchoServer, echo, free_port

A, B = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def servers() -> Iterator[tuple[EchoServer, EchoServer]]:
    port = free_port(A, B)
    with echo("a", host=A, port=port) as a, echo("b", host=B, port=port) as b:
        yield a, b


@pytest.fixture
def names(edge: Edge) -> Iterator[NameServer]:
    with name_server(edge.folder, mx_example_org=A) as (server, wrapper):
        edge.wrapper = wrapper
        yield server


def document(edge_port: int, port: int) -> dict[str, Any]:
    return {
        "version": 1,
        "frontends": {"f": {"bind": [f"127.0.0.1:{edge_port}"], "backend": "b"}},
        "backends": {"b": {"servers": {"mx": {"address": f"mx.example.org:{port}"}}, "health": {"interval": "200ms"}}},
    }


def test_a_name_moves_without_a_reload_and_no_resolver_stops_anything(
    edge: Edge, names: NameServer, servers: tuple[EchoServer, EchoServer]
):
    web, port = free_port(), free_port()
    edge.configure(
        f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1s"\n'
        f'[metrics]\nlisten = "127.0.0.1:{web}"'
    )

    def metric() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(line for line in lines if line.startswith("edgeagent_server_name_resolved{")).rpartition(" ")[2]

    edge.live(document(port, servers[0].port))
    edge.put(document(port, servers[0].port))
    edge.serve()
    assert first_line(port).startswith("a ")
    digest, pid = edge.status()["live"]["digest"], edge.pid
    assert f"{A}:{servers[0].port} (mx.example.org)" in edge.agent("status").stdout

    names.set("mx.example.org", B, A)  # round robin: the present one is among them
    count = len(names.asked)
    until(lambda: len(names.asked) > count + 4, "it was looked up again, twice")
    assert first_line(port).startswith("a ")

    names.set("mx.example.org", B)
    until(lambda: first_line(port).startswith("b "), "it has moved")
    until(lambda: edge.status()["live"]["generation"] == 2, "it is recorded")
    assert (edge.pid, edge.status()["live"]["digest"]) == (pid, digest)
    assert metric() == "1.0"

    names.set("mx.example.org", "0.0.0.0")  # as for a name that is blocked
    until(lambda: "does not resolve" in str(edge.status()["findings"]), "it is a finding")
    until(lambda: metric() == "0.0", "it is a metric")
    assert first_line(port).startswith("b ")

    # The name server is gone: HAProxy dies, the agent dies, and all of it comes back as it was.
    names.silent = True
    service = edge.services[0]
    os.kill(pid, signal.SIGKILL)
    until(lambda: edge.haproxy.running() is not None and edge.pid != pid, "HAProxy is started")
    until(lambda: first_line(port).startswith("b "), "it serves")
    service.kill()
    service.wait()
    psutil.Process(edge.pid).kill()
    edge.serve()
    until(lambda: first_line(port).startswith("b "), "it serves after a reboot")
    names.silent = False


def test_commands_look_names_up_within_bounds(edge: Edge, names: NameServer, servers: tuple[EchoServer, EchoServer]):
    port = free_port()
    file = edge.file(document(port, servers[0].port))
    plan = json.loads(edge.agent("plan", file, "--json").stdout)
    assert (plan["plan"], plan["findings"]) == ("reload", [])
    edge.live(document(port, servers[0].port))
    edge.put(document(port, servers[0].port))
    probed = json.loads(edge.agent("probe", "--json").stdout)
    assert [entry["address"] for entry in probed] == [f"{A}:{servers[0].port}"]
    names.silent = True
    edge.put({**document(port, servers[0].port), "serial": 2})
    done = edge.agent("apply", timeout=25)
    assert (done.returncode, "mx.example.org does not resolve: its last address" in done.stderr) == (0, True), done
    assert first_line(port).startswith("a ")
