"""What the host's own edges do when the other side is not what it should be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.desired.addresses import Endpoint
from agent.errors import NoAnswerError
from agent.host import listeners, processes, subprocesses, tcp_probe
from agent.host.service_manager import ServiceManager
from agent.host.stats_socket import StatsSocket

INFO = b"Version: 2.8.0\nPid: 7\nUptime_sec: 1\ndescription: edgeagent generation 3\n\n"
HEAD = b"# pxname,svname,scur,stot,status,weight,bck,check_status,addr,uweight,type,"
HEAD += b"dcon,dses,dreq,bin,bout,check_duration,\n"
ROWS = b"f,FRONTEND,1,2,OPEN,,,,,,0,1,,2,10,20,,\nb,a,0,0,UP,1,0,L4OK,192.0.2.1:25,1,2,,,,5,6,7,\n\n"


@pytest.fixture
def answering() -> Iterator[tuple[list[bytes], StatsSocket]]:
    """A socket that says what it is given, and hangs up."""
    answers: list[bytes] = []
    # Shorter than tmp_path: a socket's name has 104 letters at most.
    with tempfile.TemporaryDirectory(prefix="edge-") as name, socket.socket(socket.AF_UNIX) as server:
        folder = Path(name)
        server.bind(str(folder / "s"))
        server.listen()

        def serve() -> None:
            while True:
                client, _ = server.accept()
                with client:
                    if client.recv(1_000) == b"end\n":
                        return
                    client.sendall(answers[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield answers, StatsSocket(folder / "s")
        StatsSocket(folder / "s").ask("end")
        thread.join()


def test_an_answer_that_is_cut_short_anywhere_is_no_answer(answering: tuple[list[bytes], StatsSocket]):
    answers, stats = answering
    whole = INFO + HEAD + ROWS
    answers[:] = [whole]
    assert [server.name for server in stats.observe().servers] == ["a"]
    for length in range(len(whole)):
        answers[:] = [whole[:length]]
        with pytest.raises(NoAnswerError):
            stats.observe()
        with pytest.raises(NoAnswerError):
            stats.observe_brief()


def test_a_host_without_ipv6_reaches_no_ipv6_server_and_the_others(monkeypatch: pytest.MonkeyPatch):
    class Without(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *more: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *more)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(tcp_probe.socket, "socket", Without)
        doors = {("b", "six"): [Endpoint(6, "::1", 1)], ("b", "four"): [Endpoint(4, *server.getsockname())]}
        assert tcp_probe.reachable(doors, timeout=1) == {("b", "four")}


def test_hundreds_of_servers_are_asked_side_by_side_and_no_longer_than_the_bound():
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as server:
        good = {("b", str(n)): [Endpoint(4, *server.getsockname())] for n in range(500)}
        assert len(tcp_probe.reachable(good, timeout=5)) == 500


def test_somebody_who_reads_our_file_is_none_of_our_processes(tmp_path: Path):
    config = tmp_path / "haproxy.cfg"
    config.touch()
    words = [sys.executable, "-c", "import sys; sys.stdin.read()", "-f", str(config)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as reader:
        assert processes.started_on(config, programs=tmp_path / "bin") == ()
        found = processes.started_on(config, programs=Path(sys.executable).parent)
        assert [one.pid for one in found] == [reader.pid]
        assert reader.stdin is not None
        reader.stdin.close()


def test_a_program_is_run_even_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch):
    def full() -> None:
        raise FileNotFoundError(2, "no usable temporary directory")

    monkeypatch.setattr(subprocesses.tempfile, "TemporaryFile", full)
    assert subprocesses.run(["/bin/sh", "-c", "exit 3"]).code == 3


def test_without_psutil_and_ps_nothing_is_known_and_nothing_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "psutil", None)

    def nothing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocesses.subprocess, "run", nothing)
    monkeypatch.setattr(processes, "_PROC", Path("/nonexistent"))
    assert processes.alive(1)
    assert processes.started_on(Path("/x"), programs=Path("/y")) == ()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux")
def test_proc_says_what_psutil_says(monkeypatch: pytest.MonkeyPatch):
    """Debian's base has neither psutil nor ps(1)."""
    with subprocess.Popen([sys.executable, "-c", "input()", "a b) c", ""], stdin=subprocess.PIPE) as child:
        by_psutil = next(entry for entry in processes._command_lines() if entry[0] == child.pid)
        monkeypatch.setattr(processes, "psutil", None)
        alone = next(entry for entry in processes._command_lines() if entry[0] == child.pid)
        assert alone[2] == by_psutil[2]
        assert abs(alone[1] - by_psutil[1]) < 1.5  # seconds
        assert alone[2][1:] == ["-c", "input()", "a b) c", ""]
        assert processes.alive(child.pid)
        child.communicate(b"\n")
    assert not processes.alive(child.pid)


def test_this_hosts_own_listeners_are_found_with_their_program():
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        found = {str(listener.endpoint): listener for listener in listeners.listeners()}
        for server, host in ((four, "127.0.0.1"), (six, "[::1]")):
            one = found[f"{host}:{server.getsockname()[1]}"]
            assert one.pid is not None
            assert one.program.startswith("python")


def test_sessions_are_counted_by_the_psutil_of_any_age(monkeypatch: pytest.MonkeyPatch):
    """Before psutil 6 it was `connections`, then `net_connections` (its CHANGELOG); what is missing costs a detail."""

    class Old:
        def __init__(self, _pid: int) -> None: ...

        def connections(self, kind: str) -> list[str]:
            assert kind == "tcp"
            return ["to the client", "to the server"] * 3

    class New(Old):
        net_connections = Old.connections
        connections = None  # type: ignore[assignment]  # gone

    class Neither:
        def __init__(self, _pid: int) -> None: ...

    monkeypatch.setattr(processes.sys, "platform", "freebsd14")
    for kind, count in ((Old, 3), (New, 3), (Neither, None)):
        monkeypatch.setattr(processes.psutil, "Process", kind)
        assert processes.sessions(1) == count


def test_the_service_manager_is_told_and_nobody_inherits_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "notify"))
        door.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        manager = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ
        manager.notify("READY=1", "STATUS=x")
        assert door.recv(100) == b"READY=1\nSTATUS=x"
    manager.notify("STOPPING=1")  # it is gone: nothing is lost but the word
    ServiceManager().notify("READY=1")  # there is none


def test_abstract_sockets_of_a_service_manager(monkeypatch: pytest.MonkeyPatch):
    """Systemd uses one in containers (sd_notify(3))."""
    name = f"edgeagent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(f"\0{name}")
        door.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        ServiceManager().notify("READY=1")
        assert door.recv(100) == b"READY=1"
