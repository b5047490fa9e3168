"""What the benchmarks share: a host in a folder, states of a size, rounds and medians."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.binaries import binaries  # the tests' own kit
from kit.edge import Edge
from kit.servers import free_port

from agent import settings
from agent.cli.commands import collect_seldom
from agent.service.wiring import Host

BINARY = binaries()[min(binaries())]


@contextlib.contextmanager
def edge(binary: Path = BINARY) -> Iterator[Edge]:
    """An agent's folders; whatever was started in them is ended."""
    one = Edge(Path(tempfile.mkdtemp(prefix="edge-")), binary, maxconn=2_000)
    try:
        yield one
    finally:
        one.close()


def host(one: Edge) -> Host:
    """The service's own parts, in this process."""
    collect_seldom()
    made = Host(settings.load(one.settings), command="apply")
    made.store.prepare()
    return made


def state(frontends: int, servers: list[str], **more: Any) -> dict[str, Any]:
    """So many frontends on loopback, each with a backend of four servers: those given, again and again."""
    ports = [free_port() for _ in range(frontends)]
    names = [f"s{n}" for n in range(4)]
    return {
        "version": 1,
        "frontends": {f"f{n}": {"bind": [f"127.0.0.1:{port}"], "backend": f"b{n}"} for n, port in enumerate(ports)},
        "backends": {
            f"b{n}": {
                "servers": {name: {"address": servers[index % len(servers)]} for index, name in enumerate(names)},
                "health": {"interval": "10m"},
            }
            for n in range(frontends)
        },
        **more,
    }


@contextlib.contextmanager
def greeter(name: str) -> Iterator[str]:
    """A server that greets with its name, in a process of its own. Yields its address."""
    words = [sys.executable, str(Path(__file__).parent / "greeter.py"), name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def put(one: Edge, document: dict[str, Any]) -> None:
    """Rename it into place."""
    fresh = one.folder / ".fresh"
    fresh.write_bytes(json.dumps(document).encode())
    fresh.replace(one.desired)


def seconds(what: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def median(rounds: list[float]) -> float:
    """The middle one."""
    return statistics.median(rounds)
