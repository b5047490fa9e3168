"""The limits of the schema, as one service carries them: 5,000 frontends, and 100,000 servers.

Each work is timed at 1,000 and at 5,000 frontends of four servers (linear growth is a ratio of 5), and once with
100,000 servers. While a change is applied, a client asks /healthz without a pause: its longest wait is reported.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
from attrs import frozen
from stage import edge, greeter, seconds

from agent.desired.identity import digest_of
from agent.desired.rules import MAX_ALL_SERVERS, MAX_FRONTENDS

from kit.edge import Edge  # isort: skip
from kit.servers import free_port  # isort: skip

PATIENCE = 300.0  # seconds that a change may take before the benchmark gives up
MEBIBYTE = 1_048_576
PORT = 10_025


@frozen(kw_only=True)
class Size:
    """So many frontends, each with a backend of so many servers."""

    frontends: int
    servers: int

    @property
    def label(self) -> str:
        """As the table's head says it."""
        return f"{self.frontends:,} x {self.servers:,}"


SIZES = (
    Size(frontends=1_000, servers=4),
    Size(frontends=MAX_FRONTENDS, servers=4),
    Size(frontends=MAX_ALL_SERVERS // 1_000, servers=1_000),
)


def document(size: Size, server: str, *, weight: int = 1) -> dict[str, Any]:
    """Frontends on loopback addresses of their own. `weight`: of the first server of each tenth backend."""
    return {
        "version": 1,
        "frontends": {
            f"f{n}": {"bind": [f"127.20.{n // 250}.{n % 250 + 1}:{PORT}"], "backend": f"b{n}"}
            for n in range(size.frontends)
        },
        "backends": {
            f"b{n}": {
                "servers": {
                    f"s{m}": {"address": server, **({"weight": weight} if not m and not n % 10 else {})}
                    for m in range(size.servers)
                },
                "health": {"type": "none"},  # each check takes a file, and a host may allow fewer than these
            }
            for n in range(size.frontends)
        },
    }


def measure(size: Size, server: str) -> dict[str, float]:
    """Seconds of each work, memory in MiB, and the longest wait of a /healthz while a change was applied."""
    with edge() as host:
        port = free_port()
        binary = json.dumps(str(host.binary))
        host.configure(
            f'[haproxy]\nbinary = {binary}\nmaxconn = 1_000\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
            '[sync]\nmax_bytes = 33_554_432\n[apply]\nverify_timeout = "60s"'
        )
        first = host.file(document(size, server), "first.yaml")
        results = {
            "check": seconds(lambda: run(host, "check", first)),
            "plan": seconds(lambda: run(host, "plan", first)),
        }
        host.live(document(Size(frontends=1, servers=1), server))
        service = host.serve()
        with asking(port) as waits:
            results["apply by a reload"] = applied(host, document(size, server))
            results["apply at runtime"] = applied(host, document(size, server, weight=7))
        results["longest /healthz meanwhile"] = max(waits)
        results["status"] = seconds(lambda: run(host, "status"))
        results["scrape"] = seconds(lambda: fetched(port, "/metrics"))
        results["page"] = seconds(lambda: fetched(port, "/"))
        memory = psutil.Process(service.pid).memory_info()
        results["resident memory of the agent (MiB)"] = memory.rss / MEBIBYTE
        results["the same of HAProxy (MiB)"] = psutil.Process(host.pid).memory_info().rss / MEBIBYTE
        results["end on SIGTERM"] = seconds(lambda: stopped(service))
        return results


def run(host: Edge, *words: Any) -> None:
    """One command of the agent, which succeeds."""
    done = host.agent(*words, timeout=PATIENCE)
    if done.returncode != 0:
        raise RuntimeError(f"{words}: exit {done.returncode}: {done.stderr[-2_000:]}")


def applied(host: Edge, wanted: dict[str, Any]) -> float:
    """Seconds from the rename of the desired file to the status that says it is live."""
    data = json.dumps(wanted).encode()
    fresh = host.folder / ".fresh"
    fresh.write_bytes(data)
    digest = digest_of(data)
    begin = time.perf_counter()
    fresh.replace(host.desired)
    while (status := host.status())["live"]["digest"] != digest:
        of_it = status["desired"]["digest"] == digest
        if time.perf_counter() - begin > PATIENCE or of_it:
            raise RuntimeError(f"not live: {status.get('outcome')}: {status.get('message')}\n{host.log[-2_000:]}")
        time.sleep(0.02)  # a file of another process gives no event
    return time.perf_counter() - begin


@contextlib.contextmanager
def asking(port: int) -> Iterator[list[float]]:
    """A client of /healthz that never pauses. Yields the seconds of each answer."""
    waits, over = [0.0], threading.Event()

    def ask() -> None:
        while not over.is_set():
            waits.append(seconds(lambda: fetched(port, "/healthz")))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def fetched(port: int, path: str) -> int:
    """Bytes of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        return len(answer.read())


def stopped(service: subprocess.Popen[bytes]) -> None:
    """Until it has ended."""
    service.terminate()
    service.wait(PATIENCE)


def main(sizes: tuple[Size, ...] = SIZES) -> dict[str, float]:
    """Each size's figures: seconds, where no other unit is named."""
    with greeter("g") as server:
        return {
            f"{size.label} servers: {name}": figure for size in sizes for name, figure in measure(size, server).items()
        }


if __name__ == "__main__":
    for name, value in main(tuple(size for size in SIZES if len(sys.argv) < 2 or size.label in sys.argv[1:])).items():
        print(f"{name:<92}{value:>12.2f}", flush=True)
