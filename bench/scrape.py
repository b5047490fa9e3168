"""What a scrape costs, beside Debian's exporter and HAProxy's own, on one HAProxy."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from stage import edge, greeter, median, put, state

from kit.edge import until  # isort: skip
from kit.servers import free_port  # isort: skip

SIZES = (6, 100, 1_000)
ROUNDS = 7
TEMPLATE = Path(__file__).parents[1] / "templates/haproxy.cfg.j2"


@contextlib.contextmanager
def exporter(socket: Path) -> Iterator[tuple[int, int]]:
    """Debian's, by HAProxy's own socket. Yields its port and pid."""
    program, port = shutil.which("prometheus-haproxy-exporter"), free_port()
    if program is None:
        raise FileNotFoundError("prometheus-haproxy-exporter")
    words = (f"--haproxy.scrape-uri=unix:{socket}", f"--web.listen-address=127.0.0.1:{port}")
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def scraped(port: int, pid: int) -> tuple[float, int, float]:
    """Medians: seconds, bytes, and seconds of processor time of who answers."""

    def once() -> tuple[float, int, float]:
        before = psutil.Process(pid).cpu_times()
        start = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            size = len(answer.read())
        took = time.perf_counter() - start
        after = psutil.Process(pid).cpu_times()
        time.sleep(0.3)  # what was asked just now is believed for a quarter of a second
        return took, size, after.user + after.system - before.user - before.system

    def answers() -> bool:
        with contextlib.suppress(OSError):
            once()
            return True
        return False

    until(answers, f"port {port} answers")
    found = [once() for _ in range(ROUNDS)]
    return median([one[0] for one in found]), found[0][1], median([one[2] for one in found])


def main() -> dict[str, float]:
    """At each size, all three in turn."""
    if shutil.which("prometheus-haproxy-exporter") is None:
        print("scrape: prometheus-haproxy-exporter is not here; left out", file=sys.stderr)
        return {}
    results: dict[str, float] = {}
    for size in SIZES:
        with edge() as one, greeter("g") as server:
            web, own = free_port(), free_port()
            one.configure(f'[haproxy]\nbinary = "{one.binary}"\nmaxconn = 4000\n[metrics]\nlisten = "127.0.0.1:{web}"')
            native = f"\nfrontend native\n    mode http\n    bind 127.0.0.1:{own}\n"
            native += "    http-request use-service prometheus-exporter\n"
            (one.folder / "templates/haproxy.cfg.j2").write_text(TEMPLATE.read_text() + native)
            put(one, state(size, [server]))
            service = one.serve()
            with exporter(one.folder / "run/haproxy.sock") as (port, pid):
                who = {"agent": (web, service.pid), "Debian's exporter": (port, pid), "HAProxy's own": (own, one.pid)}
                for name, (where, whose) in who.items():
                    seconds, size_of, cpu = scraped(where, whose)
                    results[f"a scrape at {size} frontends of 4 servers, {name}: ms"] = seconds * 1_000
                    results[f"a scrape at {size} frontends of 4 servers, {name}: KB"] = size_of / 1_000
                    results[f"a scrape at {size} frontends of 4 servers, {name}: ms of processor"] = cpu * 1_000
    return results


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<92}{value:>12.2f}")
