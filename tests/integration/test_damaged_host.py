"""What goes wrong on a firewall: folders wiped, full or read-only, HAProxy hung, files that cannot be read.

Each of these once ended the agent, or left two HAProxys sharing the traffic.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from kit.edge import Edge, connect, first_line, tmpfs, until
from kit.servers import EchoServer, echo, free_port

from agent.host.store import Store


def state(port: int, server: EchoServer, **front: object) -> dict:
    return {
        "version": 1,
        "frontends": {"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back", **front}},
        "backends": {"back": {"servers": {server.name: {"address": server.address}}, "health": {"interval": "100ms"}}},
    }


def listeners(edge: Edge, port: int) -> list[int]:
    found = []
    for process in edge.processes():
        with contextlib.suppress(psutil.Error):
            if any(
                connection.laddr.port == port
                for connection in process.net_connections("tcp")
                if connection.status == "LISTEN"
            ):
                found.append(process.pid)
    return found


@pytest.mark.parametrize("how", ["its files", "itself"])
def test_a_wiped_run_folder_ends_nothing_and_leaves_one_haproxy(edge: Edge, how: str):
    with echo("a") as a, echo("b") as b:
        edge.put(state(port := free_port(), a))
        service = edge.run()
        edge.wait("committed")
        pid = edge.pid
        run = edge.folder / "run"
        if how == "itself":
            shutil.rmtree(run)
        else:
            for path in run.iterdir():
                path.unlink()
        until(lambda: (running := edge.haproxy.running()) and running.pid != pid, "a HAProxy that answers")
        until(lambda: listeners(edge, port) == [edge.pid], "one listener")
        edge.put(state(port, b))
        until(lambda: first_line(port).startswith("b "), "the new state")
        until(lambda: listeners(edge, port) == [edge.pid], "one listener")
        assert {first_line(port) for _ in range(20)} == {"b PROXY 127.0.0.1"}
        assert service.poll() is None
        assert "agent:   0" in edge.agent("status").stdout


def test_a_hung_haproxy_is_replaced_and_ended(edge: Edge):
    with echo("a") as a:
        edge.put(state(port := free_port(), a))
        edge.run()
        edge.wait("committed")
        pid = edge.pid
        os.kill(pid, signal.SIGSTOP)
        until(lambda: (running := edge.haproxy.running()) and running.pid != pid, "another HAProxy", timeout=60)
        until(lambda: listeners(edge, port) == [edge.pid], "one listener")
        assert {first_line(port) for _ in range(20)} == {"a PROXY 127.0.0.1"}


def test_a_full_run_folder_does_not_end_the_agent(root: None, edge: Edge):
    with echo("a") as a, tmpfs(edge.folder / "run", "size=256k"):
        edge.put(state(port := free_port(), a))
        service = edge.run()
        edge.wait("committed")
        with contextlib.suppress(OSError):
            (edge.folder / "run/fill").write_bytes(b"x" * 400_000)
        until(lambda: "No space left on device" in edge.log, "said in the log")
        os.kill(edge.pid, signal.SIGKILL)
        (edge.folder / "run/fill").unlink()
        until(lambda: _served(port), "HAProxy again")
        assert service.poll() is None
        assert edge.log.count("cannot write") < 10


def test_a_read_only_state_folder_changes_nothing_where_nothing_has_to_change(root: None, edge: Edge):
    with echo("a") as a, tmpfs(edge.folder / "state", "size=32m"):
        edge.live(state(port := free_port(), a))
        subprocess.run(["mount", "-o", "remount,ro", edge.folder / "state"], check=True)
        done = edge.agent("apply")
        assert (done.returncode, done.stdout.split(":")[0]) == (0, "unchanged"), done.stderr
        service = edge.run()
        edge.wait("unchanged")
        os.kill(edge.pid, signal.SIGKILL)
        until(lambda: _served(port), "HAProxy again")
        edge.put(state(port, a, maxconn=7))
        status = edge.wait("refused")
        assert "Read-only file system" in status["message"]
        assert service.poll() is None
        assert _served(port)


def _served(port: int) -> bool:
    try:
        return first_line(port).startswith("a PROXY")
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("what", ["folder", "fifo"])
def test_a_desired_state_that_cannot_be_read_leaves_what_is_live_alive(edge: Edge, what: str):
    with echo("a") as a:
        edge.put(state(port := free_port(), a))
        service = edge.run()
        edge.wait("committed")
        edge.desired.unlink()
        edge.desired.mkdir() if what == "folder" else os.mkfifo(edge.desired)
        assert "desired.yaml" in edge.wait("invalid")["message"]
        os.kill(edge.pid, signal.SIGKILL)
        until(lambda: _served(port), "HAProxy again")
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=10) == 0


def test_a_health_port_that_is_gone_from_the_file_is_gone_from_the_checks(edge: Edge):
    """The server-state file carries srv_check_port, and HAProxy restores it where the new file names none."""
    with echo("a") as a, echo("check") as check:
        document = state(port := free_port(), a)
        document["backends"]["back"]["servers"]["dead"] = {"address": f"127.0.0.1:{free_port()}"}
        document["backends"]["back"]["health"] = {"port": check.port, "interval": "100ms", "fall": 1}
        edge.live(document)
        until(
            lambda: {server.name: server.status for server in edge.haproxy.observe().servers}["dead"] == "UP",
            "its check",
        )
        del document["backends"]["back"]["health"]["port"]
        edge.live(document)
        until(
            lambda: {server.name: server.status for server in edge.haproxy.observe().servers}["dead"] == "DOWN",
            "it is dead",
        )
        assert {first_line(port) for _ in range(10)} == {"a PROXY 127.0.0.1"}


def test_networks_match_clients_of_their_own_family_only(edge: Edge):
    """HAProxy converts between the families: `::/0` takes every IPv4 client."""
    with echo("a") as a:
        port = free_port("127.0.0.1", "::1")
        both = [f"127.0.0.1:{port}", f"[::1]:{port}"]

        def let_in(**front: object) -> tuple[bool, bool]:
            edge.live(state(port, a, **{"bind": both, **front}))
            return bool(first_line(port)), bool(first_line(port, source="::1", host="::1"))

        assert let_in(deny=["::/0"]) == (True, False)
        assert let_in(deny=["0.0.0.0/0"]) == (False, True)
        assert let_in(allow=["::/0"]) == (False, True)
        assert let_in(allow=["0.0.0.0/0", "0.0.0.1"]) == (True, False)
        assert let_in(allow=["127.0.0.1", "::1"]) == (True, True)
        assert let_in(allow=["127.0.0.1", "::/0"], deny=["::1"]) == (True, False)
        edge.live(state(port, a, deny=["::/0"]))
        assert first_line(port)
        edge.live(state(port, a, accept_proxy=True, allow=["203.0.113.0/24"]))
        for client, inside in (("203.0.113.5", True), ("2002:cb00:7105::1", False)):
            with connect(port) as one:
                family = "TCP6" if ":" in client else "TCP4"
                target = "2001:db8::1" if ":" in client else "192.0.2.1"
                one.sendall(f"PROXY {family} {client} {target} 1 25\r\n".encode())
                answer = b""
                with contextlib.suppress(ConnectionResetError):
                    answer = one.recv(100)
                assert bool(answer) is inside, client


def test_a_linked_desired_state_stays_a_link_and_is_watched_at_its_target(edge: Edge, tmp_path: Path):
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1h"')
    with echo("a") as a, echo("b") as b:
        target = tmp_path / "real.yaml"
        target.write_bytes(edge.file(state(port := free_port(), a)).read_bytes())
        target.chmod(0o644)
        edge.desired.symlink_to(target)
        edge.run()
        edge.wait("committed")
        edge.live(state(port, b))
        assert edge.desired.is_symlink()
        assert target.stat().st_mode & 0o777 == 0o644
        assert b.address.encode() in target.read_bytes()
        edge.file(state(port, a)).replace(target)
        until(lambda: first_line(port).startswith("a PROXY"), "the target's new state")


def test_a_folder_that_was_gone_for_a_moment_is_watched_again(one_edge: Edge):
    """The watch ends with the folder; no resync comes to the rescue here."""
    one_edge.desired = one_edge.folder / "etc/desired.yaml"
    one_edge.desired.parent.mkdir()
    one_edge.configure(f'[haproxy]\nbinary = "{one_edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1h"')
    one_edge.put({"version": 1})
    one_edge.serve()
    one_edge.wait("committed")
    shutil.rmtree(one_edge.desired.parent)
    until(lambda: (one_edge.status().get("not_in_sync") or {}).get("state") == "missing", "it is gone")
    one_edge.desired.parent.mkdir()
    until(lambda: f"watching {one_edge.desired.parent} again" in one_edge.log, "it watches again")
    fresh = {"version": 1, "name": "fresh", "allow_empty": True}
    one_edge.put(fresh)
    until(lambda: one_edge.status()["live"]["name"] == "fresh", "a change is seen")


def test_sigterm_is_obeyed_while_another_holds_the_lock(one_edge: Edge):
    store = Store(one_edge.folder / "state", one_edge.folder / "run")
    store.prepare()
    with store.lock(waiting=lambda _: None):
        service = one_edge.run()
        until(lambda: "desired state" in one_edge.log, "started")
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=10) == 0


def test_a_demo_that_is_told_to_end_ends_everything(any_haproxy: Path, tmp_path: Path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)} if len(str(tmp_path)) < 40 else {**os.environ}
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "agent", "demo", "--stay"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert demo.stdout is not None
    with demo.stdout:
        folder = demo.stdout.readline().rpartition(" under ")[2].strip()
        assert Path(folder).is_dir()
        until(lambda: "Ctrl-C" in demo.stdout.readline(), "it stays", timeout=60)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=30) != 0
    assert not Path(folder).exists()
    assert not [one for one in psutil.process_iter() if any(folder in word for word in _words(one))]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.mark.parametrize(
    "document",
    [
        {
            "version": 1,
            "frontends": {
                "f": {
                    "bind": ["192.0.2.1:1"],
                    "backend": "b",
                    "routes": [
                        {"sni": [f"{part}{n}.example.org" for n in range(15_000)], "backend": "b"} for part in "xy"
                    ],
                }
            },
            "backends": {"b": {"servers": {"a": {"address": "192.0.2.2:1"}}}},
        },
        {
            "version": 1,
            "frontends": {f"f{n}": {"bind": [f"192.0.2.1:{n + 1}"], "backend": f"backnd-{n}"} for n in range(300)},
            "backends": {f"backend-{n}": {"servers": {"a": {"address": "192.0.2.2:1"}}} for n in range(5_000)},
        },
    ],
    ids=["thousands of names", "hundreds of misspelt names"],
)
def test_no_document_within_the_limit_costs_minutes(one_edge: Edge, document: dict):
    """The bound of a user's patience, not of a machine: each of these once took minutes, under the lock."""
    start = time.monotonic()
    one_edge.agent("check", one_edge.file(document))
    assert time.monotonic() - start < 20
