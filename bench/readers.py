"""What readers of the page and of the metrics cost a change: 400 weights, with 0, 4 and 16 readers that never pause."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from stage import BINARY, edge, greeter, state

from kit.edge import Edge, until  # isort: skip
from kit.servers import free_port  # isort: skip

READERS = (0, 4, 16)
FRONTENDS, ROUNDS = 100, 5
_READ = """
import sys, urllib.request
while True:
    for path in ("/", "/metrics"):
        try:
            urllib.request.urlopen(sys.argv[1] + path, timeout=30).read()
        except OSError:  # turned away, like any client too many
            pass
"""


@contextlib.contextmanager
def readers(url: str, count: int) -> Iterator[None]:
    """So many processes that read one page after the other."""
    processes = [subprocess.Popen([sys.executable, "-c", _READ, url]) for _ in range(count)]  # noqa: S603  # fixed words
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> dict[str, float]:
    """Seconds from the rename to `committed`, the median of rounds, and the ratios to no reader."""
    found: dict[str, float] = {}
    with contextlib.ExitStack() as stack, edge() as one:
        server = stack.enter_context(greeter("a"))
        web = free_port()
        one.configure(f'[haproxy]\nbinary = "{BINARY}"\nmaxconn = 2000\n[metrics]\nlisten = "127.0.0.1:{web}"')
        document = state(FRONTENDS, [server])
        one.live(document)
        one.put(document)
        one.serve()
        url, weight = f"http://127.0.0.1:{web}", 1
        until(lambda: urllib.request.urlopen(url, timeout=10).status == 200, "the page is served")
        for count in READERS:
            times = []
            with readers(url, count):
                time.sleep(1)  # they all read
                for _ in range(ROUNDS):
                    weight += 1
                    times.append(_change(one, document, weight))
            found[f"a change of {FRONTENDS * 4} weights, {count} readers (s)"] = statistics.median(times)
    none, *some = found.values()
    for count, seconds in zip(READERS[1:], some, strict=True):
        found[f"a change of {FRONTENDS * 4} weights, {count} readers, over none"] = seconds / none
    return found


def _change(one: Edge, document: dict[str, object], weight: int) -> float:
    for pool in document["backends"].values():  # type: ignore[attr-defined]  # a plain document
        for server in pool["servers"].values():
            server["weight"] = weight
    generation = one.status()["live"]["generation"]
    begin = time.monotonic()
    one.put(document)
    until(lambda: one.status()["live"]["generation"] > generation, "the change is live", 60)
    return time.monotonic() - begin


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:60} {value:.3f}")
