"""A small firewall, played: one core that others want too, and 128 MB of address space for each process.

What no limit of Linux can play is a slow processor. Two busy loops on the same core leave the agent a third of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit import edge as kit_edge
from kit.edge import Edge, edge_in_folder, first_line, until
from kit.onefile import AGENT
from kit.servers import echo, free_port

FRONTENDS = 5
MEMORY = 128 * 1_048_576  # bytes of address space, of the agent and of the HAProxy that it starts
LOAD = 2  # busy loops, at the agent's own priority


@pytest.fixture
def core() -> Iterator[int]:
    """A core with others on it that never rest."""
    chosen = min(os.sched_getaffinity(0))
    busy = [
        subprocess.Popen(["taskset", "-c", str(chosen), "sh", "-c", "while :; do :; done"], stdin=subprocess.DEVNULL)
        for _ in range(LOAD)
    ]
    try:
        yield chosen
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.fixture
def small(any_haproxy: Path, core: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    """An agent whose processes have that core and that much memory."""
    for program in ("prlimit", "taskset"):
        assert shutil.which(program), "util-linux"
    limited = ("prlimit", f"--as={MEMORY}", "taskset", "-c", str(core), *AGENT)
    monkeypatch.setattr(kit_edge, "AGENT", limited)
    with edge_in_folder(any_haproxy) as host:
        yield host


def document(ports: list[int], server: str, **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "frontends": {f"f{n}": {"bind": [f"127.0.0.1:{port}"], "backend": f"b{n}"} for n, port in enumerate(ports)},
        "backends": {
            f"b{n}": {"servers": {f"s{m}": {"address": server, **more} for m in range(4)}} for n in range(len(ports))
        },
    }


def test_everything_works_and_no_time_limit_fires_falsely(small: Edge):
    web, ports = free_port(), [free_port() for _ in range(FRONTENDS)]
    small.configure(f'[haproxy]\nbinary = "{small.binary}"\nmaxconn = 500\n[metrics]\nlisten = "127.0.0.1:{web}"')
    with echo("a") as server, echo("b") as other:
        small.live(document(ports, server.address))  # a cold start, by a command
        service = small.serve()
        pid = small.pid
        assert [first_line(port) != "" for port in ports] == [True] * FRONTENDS
        at_runtime = small.agent("sync", small.file(document(ports, server.address, weight=7)))
        assert (at_runtime.returncode, small.status()["plan"], small.pid) == (0, "runtime", pid), at_runtime.stdout
        by_reload = small.agent("sync", small.file(document([*ports, free_port()], other.address)))
        assert (by_reload.returncode, small.status()["plan"]) == (0, "reload"), by_reload.stdout + by_reload.stderr
        assert first_line(ports[0]).startswith("b ")
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/metrics", timeout=20) as answer:
            assert b'edgeagent_frontend_up{frontend="f0"} 1' in answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/readyz", timeout=20) as answer:
            assert answer.status == 200
        assert small.agent("status").returncode == 0
        assert not small.status()["counters"].get("drift_corrections.process"), (
            "nobody took a slow HAProxy for a dead one"
        )
        psutil.Process(small.pid).kill()
        until(lambda: small.haproxy.running() is not None and first_line(ports[0]), "it is started again", 60)
        until(lambda: small.status()["counters"].get("drift_corrections.process") == 1, "counted once", 60)
        assert service.poll() is None, small.log
        quiet = [line for line in small.log.splitlines() if "timed out" in line or "MemoryError" in line]
        assert not quiet
        service.terminate()
        assert service.wait(30) == 0
