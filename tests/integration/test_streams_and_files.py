"""What the world does to streams, files and paths: no traceback, the same exit code, and what is live stays live."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.edge import Edge, first_line, until
from kit.onefile import AGENT
from kit.servers import EchoServer, echo, free_port
from kit.ssh import state

COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("check",),
    "plan": ("plan",),
    "apply": ("apply",),
    "sync": ("sync",),
    "status": ("status",),
    "status json": ("status", "--json"),
    "history": ("history",),
    "rollback": ("rollback", "2"),
    "probe": ("probe",),
    "doctor": ("doctor",),
    "gate": ("gate",),
}
USUAL: dict[str, int] = {}  # exit codes, with all streams as they should be
OUTCOME_COUNTS = {"apply", "sync", "rollback"}


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as server:
        yield server


@pytest.fixture
def served(one_edge: Edge, backend: EchoServer) -> tuple[Edge, int]:
    """A service, two generations, and the port that must go on serving."""
    port = free_port()
    one_edge.live(state(backend.address, port))
    one_edge.live(state(backend.address, port, serial=2))
    one_edge.serve()
    return one_edge, port


def call(edge: Edge, words: tuple[str, ...], redirection: str) -> subprocess.CompletedProcess[bytes]:
    """The command by a shell, which closes or redirects a stream as a person's or cron's would."""
    line = f'"$@" {redirection}'
    return subprocess.run(
        ["/bin/sh", "-c", line, "sh", *AGENT, "--settings", edge.settings, *words],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        env={**os.environ, "SSH_ORIGINAL_COMMAND": "status"},
    )  # fmt: skip


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full"])
def test_every_command_with_each_of_its_streams_closed_or_full(served: tuple[Edge, int], redirection: str):
    edge, port = served
    wrong = {}
    for name, words in COMMANDS.items():
        usual = USUAL[name] = USUAL[name] if name in USUAL else call(edge, words, "").returncode
        done = call(edge, words, redirection)
        expected = 2 if redirection == ">/dev/full" and name not in OUTCOME_COUNTS else usual
        if done.returncode != expected or b"Traceback" in done.stderr:
            wrong[name] = (done.returncode, expected, done.stderr[-300:])
    assert not wrong
    assert first_line(port).startswith("a")


@pytest.mark.parametrize("reader", ["{ sleep 0.5; cat >/dev/null; }", "true"])
def test_a_reader_that_is_slow_or_leaves_changes_no_exit_code(served: tuple[Edge, int], reader: str):
    """Once with all well, and once degraded: the code must be the command's, not the pipe's and not always 0."""
    edge, port = served
    for document in (None, b"version: 1\nfrontends: {x: 1}\n"):
        if document is not None:
            edge.put(document)
            edge.wait("invalid")
        for name in ("apply", "sync", "status", "status json", "history", "check", "plan", "doctor"):
            usual = piped(edge, COMMANDS[name], "cat")
            done = piped(edge, COMMANDS[name], reader)
            assert (done.returncode, b"Traceback" in done.stderr) == (usual.returncode, False), name
    assert first_line(port).startswith("a")


def piped(edge: Edge, words: tuple[str, ...], reader: str) -> subprocess.CompletedProcess[bytes]:
    """The command in front of a reader; the exit code is the command's own (bash, PIPESTATUS)."""
    line = f'"$@" | {reader}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["/bin/bash", "-c", line, "bash", *AGENT, "--settings", edge.settings, *words],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


DAMAGE: dict[str, Callable[[Path], None]] = {
    "absent": lambda path: None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "no JSON": lambda path: path.write_bytes(b"\x00{{{") and None,
    "wrong types": lambda path: path.write_text(json.dumps({
        "schema": "x", "agent": 1, "frontends": {"a": 1}, "live": [], "held": 3, "digest": 5, "number": "x",
        "reason": 1, "since": "never", "serial": "x", "before": "x", "after": None, "stage": 1, "at": 0, "desired": "x",
    })) and None,
    "a loop": lambda path: path.symlink_to(path.name),
    "a FIFO": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
}  # fmt: skip
JSON_FILES = ["run/status.json", "run/progress.json", "state/hold.json", "state/journal.json", "state/handshakes.json"]
FILES = ["run/haproxy.pid", "run/server-state", "run/lock", "state/request.json", "state/haproxy.cfg"]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_file_of_ours_damaged_while_the_service_runs(served: tuple[Edge, int], damage: str):
    """Each command is tried; afterwards the next change goes live, once the path can be written again."""
    edge, port = served
    wrong = {}
    readable = damage in ("no JSON", "wrong types")
    for name in JSON_FILES if readable else (*JSON_FILES, *FILES):
        path = edge.folder / name
        remove(path)
        DAMAGE[damage](path)
        for words in (("status",), ("apply",)):
            done = edge.agent(*words, timeout=30)
            if "Traceback" in done.stderr or done.returncode not in (0, 2, 4, 6, 7):
                wrong[name, words] = (done.returncode, done.stderr[-300:])
        remove(path)
        if not first_line(port).startswith("a"):
            wrong[name, "clients"] = (0, "nobody is served")
    assert not wrong
    assert "Traceback" not in edge.log
    edge.put(_next(edge, "after"))
    until(lambda: (edge.status()["live"] or {}).get("name") == "after", f"it goes live: {edge.log[-800:]}")


def _next(edge: Edge, name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(edge.desired.read_bytes())
    return document | {"name": name, "serial": 3}


@pytest.mark.parametrize("damage", ["a loop", "a FIFO", "a folder", "absent"])
def test_the_desired_file_replaced_by_what_is_no_file(served: tuple[Edge, int], damage: str):
    edge, port = served
    document = _next(edge, "mended")
    edge.desired.unlink()
    DAMAGE[damage](edge.desired)
    edge.wait("invalid")
    os.kill(edge.pid, 9)
    until(lambda: edge.haproxy.running() is not None, "HAProxy is started again")
    until(lambda: first_line(port).startswith("a"), "clients are served")
    assert edge.services[0].poll() is None
    for words in (("status",), ("check",), ("plan",), ("apply",), ("sync",)):
        done = edge.agent(*words)
        assert "Traceback" not in done.stderr, done.stderr
    remove(edge.desired)
    edge.put(document)
    until(lambda: (edge.status()["live"] or {}).get("name") == "mended", "the mended file is live")


@pytest.mark.parametrize("damage", ["a loop", "a FIFO", "a folder"])
def test_a_service_starts_where_the_desired_file_is_no_file(one_edge: Edge, backend: EchoServer, damage: str):
    port = free_port()
    one_edge.live(state(backend.address, port))
    one_edge.haproxy.stop()
    one_edge.desired.unlink()
    DAMAGE[damage](one_edge.desired)
    one_edge.serve()
    until(lambda: one_edge.haproxy.running() is not None, "what was live is started")
    assert first_line(port).startswith("a")


def test_a_relative_link_as_the_binary_is_followed(one_edge: Edge, backend: EchoServer):
    folder = one_edge.folder / "bin"
    folder.mkdir()
    (folder / "real").symlink_to(os.path.relpath(one_edge.binary.resolve(), folder))
    (folder / "haproxy").symlink_to("real")
    one_edge.configure(f'[haproxy]\nbinary = "{folder}/haproxy"\nmaxconn = 500')
    port = free_port()
    one_edge.live(state(backend.address, port))
    named = one_edge.folder / "state/bin/edge-haproxy"
    assert named.is_file()
    assert not named.is_symlink()


def test_the_gate_does_not_wait_for_ever_for_a_plan(one_edge: Edge, monkeypatch: pytest.MonkeyPatch):
    """No time is named in a plan's call: GATE_SECONDS is what bounds it, shortened here in the process that reads.

    So that is a Python with the package, not the one file, whose modules nobody outside can reach.
    """
    code = "import agent.host.documents as i; i.GATE_SECONDS = 0.3; from agent.cli import main; main()"
    read, write = os.pipe()
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "--settings", one_edge.settings, "gate"],
        stdin=read, capture_output=True, timeout=30, check=False, env={**os.environ, "SSH_ORIGINAL_COMMAND": "plan -"},
    )  # fmt: skip
    os.close(write)
    os.close(read)
    assert (done.returncode, b"no whole document within 0.3 s" in done.stderr) == (9, True), done.stderr
    assert time.monotonic() - begin < 20


def test_help_and_version_on_a_full_disk_are_no_bug(one_edge: Edge):
    for words in (("--help",), ("--version",), ("check", "--help")):
        done = call(one_edge, words, ">/dev/full")
        assert (done.returncode, b"cannot write to standard output" in done.stderr) == (2, True), words


def test_the_status_of_an_older_agent_is_read_while_it_is_upgraded(served: tuple[Edge, int]):
    """An agent before 0.2 writes neither `in_sync` nor `events`."""
    edge, _ = served
    edge.services[0].send_signal(signal.SIGSTOP)  # nobody writes over it
    try:
        path = edge.folder / "run/status.json"
        document = json.loads(path.read_bytes())
        for key in ("in_sync", "not_in_sync", "events"):
            del document[key]
        path.write_text(json.dumps(document))
        done = edge.agent("status")
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "The one frontend is serving.")
        assert f"pid {edge.services[0].pid}" in done.stdout, "it is the agent's own, not one made by this command"
    finally:
        edge.services[0].send_signal(signal.SIGCONT)


def test_an_address_that_haproxy_prints_in_another_form_is_no_drift(edge: Edge):
    port = free_port()
    document = state("[::1:2]:25", port)
    assert edge.apply(document).returncode == 6  # it does not answer
    edge.put(document)
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "100ms"')
    edge.serve()
    begin = edge.status()["at"]
    until(lambda: edge.status()["at"] > begin, "some resyncs have passed")
    counters = edge.status()["counters"]
    assert {key: value for key, value in counters.items() if key.startswith("drift") and value} == {}
