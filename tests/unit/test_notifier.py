"""Who is told of an outcome, and that nobody waits for it."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.command import invoke
from kit.edge import until

from agent.host import notifier
from agent.host import syslog as to_syslog
from agent.host.notifier import Notices, line


@pytest.fixture
def syslog(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    # Shorter than tmp_path: a socket's name has 104 letters at most.
    with (
        tempfile.TemporaryDirectory(prefix="edge-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
    ):
        folder = Path(name)
        server.bind(str(folder / "log"))
        server.settimeout(5)
        monkeypatch.setattr(to_syslog, "SYSLOG", (str(folder / "nobody"), str(folder / "log")))
        yield server
    for logger in map(logging.getLogger, ("agent.notice", "agent.gate")):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)


def test_a_notice_is_one_line_in_syslog(syslog: socket.socket):
    Notices("").tell({"outcome": "committed", "before": None, "generation": 42, "message": 'a "b"\nc'})
    said = syslog.recv(2_000).decode().rstrip("\0")
    assert said.startswith("<30>edgeagent[")  # daemon.info
    assert said.endswith('outcome=committed generation=42 message="a \\"b\\"\\nc"')


def test_the_operators_program_reads_json(syslog: socket.socket, tmp_path: Path):
    program = tmp_path / "notify"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/.got && mv {tmp_path}/.got {tmp_path}/got\n")
    program.chmod(0o755)
    Notices(str(program)).tell({"outcome": "rolled_back", "message": "x\ny"})
    until((tmp_path / "got").exists, "it was run")
    assert json.loads((tmp_path / "got").read_text()) == {"outcome": "rolled_back", "message": "x\ny"}


def test_a_slow_or_broken_program_is_in_nobodys_way(
    syslog: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(notifier, "COMMAND_SECONDS", 0.2)
    program = tmp_path / "notify"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    slow = Notices(str(program))
    start = time.monotonic()
    for _ in range(2_000):  # syslogd reads none of it
        slow.tell({"outcome": "committed"})
    assert time.monotonic() - start < 1
    until(lambda: "timed out" in caplog.text, "its time is bounded")
    assert "a notice was dropped" in caplog.text
    Notices(str(tmp_path / "nobody")).tell({"outcome": "committed"})
    until(lambda: "No such file" in caplog.text, "what does not run is said")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            "sh -c id",
            "<36>edgeagent gate[",
        ),
        ("history --json", "<38>edgeagent gate["),
    ],
)
def test_the_gate_writes_a_line_for_each_call(
    syslog: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, words: str
):
    settings = tmp_path / "agent.toml"
    settings.write_text(f'[paths]\nstate = "{tmp_path}/s"\nrun = "{tmp_path}/r"\ndesired = "{tmp_path}/d"\n')
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", call)
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 4711 192.0.2.1 22")
    done = invoke("--settings", str(settings), "gate")
    assert done.exit_code == (9 if call.startswith("sh") else 0)
    said = syslog.recv(2_000).decode()  # auth.warning, auth.info
    assert said.startswith(words)
    assert "192.0.2.7" in said
    assert call.split()[0] in said


def test_lines_are_words():
    assert line({"a": "b_c-1.2", "b": "", "c": None, "d": 0, "e": "x y"}) == 'a=b_c-1.2 d=0 e="x y"'


def test_what_the_program_says_is_bounded_and_what_it_leaves_behind_is_not_waited_for(
    syslog: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    program = tmp_path / "notify"
    program.write_text(f"""#!/bin/sh
head -c 50000000 /dev/zero | tr '\\0' x >&2
sh -c 'echo $$ > {tmp_path}/left; exec sleep 100' &
while [ ! -s {tmp_path}/left ]; do :; done
exit 3
""")
    program.chmod(0o755)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Notices(str(program)).tell({"outcome": "committed"})
    until(lambda: "exit 3" in caplog.text, "its end is told")
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert time.monotonic() - start < 9
    assert caplog.text.count("x") < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KB
