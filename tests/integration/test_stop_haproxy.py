"""HAProxy is ended on purpose: ours alone, replaced processes too, and not beside an agent."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
from kit.edge import Edge, connect, first_line, until
from kit.servers import EchoServer, echo, free_port
from kit.ssh import state


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as server:
        yield server


def test_all_of_ours_and_nothing_else(edge: Edge, backend: EchoServer):
    port, other = free_port(), free_port()
    edge.live(state(backend.address, port))
    session = connect(port)  # keeps the process that is replaced
    first = session.recv(100)
    edge.live(state(backend.address, port, free_port(), serial=2))
    assert len(edge.processes()) == 2
    config = edge.folder / "foreign.cfg"
    config.write_text(
        f"defaults\n timeout client 5s\n timeout connect 5s\n timeout server 5s\nlisten x\n bind 127.0.0.1:{other}\n"
    )
    foreign = subprocess.Popen([edge.binary, "-db", "-f", config], stderr=subprocess.DEVNULL)
    try:
        done = edge.agent("stop-haproxy")
        assert (done.returncode, done.stdout.startswith("ended HAProxy, pid ")) == (0, True), done.stderr
        assert [process.pid for process in edge.processes()] == [foreign.pid]
        assert first.startswith(b"a ")
        assert session.recv(1) == b""
        assert foreign.poll() is None
    finally:
        session.close()
        foreign.kill()
        foreign.wait()
    last = json.loads(edge.agent("history", "--json").stdout)[-1]
    assert (last["event"], bool(last["actor"])) == ("haproxy_stopped", True)
    again = edge.agent("stop-haproxy")
    assert (again.returncode, again.stdout) == (0, "no HAProxy of ours runs\n")
    assert edge.agent("apply").returncode == 0  # what was live serves again
    assert first_line(port).startswith("a ")


def test_softly_sessions_go_on(one_edge: Edge, backend: EchoServer):
    port = free_port()
    one_edge.live(state(backend.address, port))
    with connect(port) as session:
        assert session.recv(100).startswith(b"a ")
        done = one_edge.agent("stop-haproxy", "--soft")
        assert (done.returncode, "sessions may go on for 900 s" in done.stdout) == (0, True)

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return True
            return False

        until(refused, "no new clients")
        session.sendall(b"still here")
        assert session.recv(100) == b"still here"
    until(lambda: not one_edge.processes(), "it ends with its last session")


def test_not_beside_an_agent_that_would_start_it_again(one_edge: Edge, backend: EchoServer):
    one_edge.live(state(backend.address, port := free_port()))
    one_edge.serve()
    done = one_edge.agent("stop-haproxy")
    assert (done.returncode, "would start HAProxy again" in done.stderr) == (4, True)
    assert first_line(port).startswith("a ")


def test_where_no_agent_has_ever_run(one_edge: Edge):
    done = one_edge.agent("stop-haproxy")
    assert (done.returncode, "no agent of these settings has ever run" in done.stderr) == (2, True)
