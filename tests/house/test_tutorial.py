"""docs/tutorials/linux.md, executed: its commands as they stand, in a home folder of their own, on free ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit.servers import free_port

PAGE = Path(__file__).parents[2] / "docs/tutorials/linux.md"


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short: HAProxy's socket is in it. The first step, installing, is done: its programs are this environment's."""
    folder = tmp_path_factory.mktemp("h")
    (folder / "edge/venv/bin").mkdir(parents=True)
    (folder / "edge/venv/bin/agent").symlink_to(Path(sys.executable).with_name("agent"))
    return folder


def test_the_tutorial(home: Path, any_haproxy: Path):
    install, *steps = blocks()
    assert "pip install" in install
    script = "set -eu\n" + "\n".join(steps)
    for port in ("30125", "10025", "9127"):
        assert port in script
        script = script.replace(port, str(free_port()))
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    (home / "bin").mkdir()
    (home / "bin/haproxy").symlink_to(any_haproxy)
    process = subprocess.Popen(
        ["bash", "-c", script],
        env={**os.environ, "HOME": str(home), "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        for pid_file in home.glob("edge/run/haproxy.pid"):
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):  # also where bash has ended before what it had started
            os.killpg(process.pid, signal.SIGTERM)
    assert process.returncode == 0, said
    assert re.search(r"^smtp .* yes .*the address seen is the address used$", said, re.MULTILINE), said  # step 6
    assert "committed: generation 2 is live" in said  # step 7
    assert "The one frontend is serving." in said
    assert not (home / "edge").exists()
