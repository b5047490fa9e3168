"""How long a change takes: at the socket, and by a reload against the floor of doing the reload by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

from stage import BINARY, edge, greeter, host, median, put, seconds, state  # first: it finds the tests' kit

from agent.desired.identity import digest_of
from agent.reconcile.report import Report

from kit.binaries import binaries  # isort: skip
from kit.edge import Edge, first_line, until  # isort: skip

SIZES = (5, 100, 1_000)
OLDEST = min(binaries())
ROUNDS = 9
# Of a converge's stages, those that a careful script would have as well: from the file at hand to the proof.
RELOAD = ("check", "swap", "switch", "verify", "commit")


def runtime(size: int, version: str = OLDEST) -> dict[str, float]:
    """From the file renamed to the first connection on the new server, by the service; no reload on the way.

    Beside it `haproxy -c` on the same file, which a change at runtime used to wait for.
    """
    with greeter("old") as old, greeter("new") as new, edge(binaries()[version]) as one:
        document = state(size, [old])
        port = int(document["frontends"]["f0"]["bind"][0].split(":")[1])
        pool = document["backends"]["b0"]
        put(one, document)
        one.serve()
        pid = one.pid
        found = []
        for turn in range(ROUNDS):
            mine, name = (new, "new") if turn % 2 == 0 else (old, "old")
            pool["servers"] = {f"{name}{turn}": {"address": mine}}
            put(one, document)
            found.append(seconds(lambda name=name: served_by(port, name)))
            settled(one, document)
        assert one.pid == pid, "there was a reload"
        control = [seconds(lambda: first_line(port)) for _ in range(50)]
        check = [binaries()[version], "-c", "-f", one.folder / "state/haproxy.cfg"]
        checks = [seconds(lambda: subprocess.run(check, check=True, capture_output=True)) for _ in range(ROUNDS)]  # noqa: S603  # our own words
    what = f"runtime, {size} frontends, HAProxy {version}"
    return {
        f"{what}: file renamed to first connection (ms)": median(found) * 1000,
        f"{what}: file renamed to first connection (ratio to haproxy -c alone)": median(found) / median(checks),
        f"{what}: control, a connection without a change (ms)": median(control) * 1000,
    }


def served_by(port: int, name: str) -> None:
    """Connect until a server of this name answers."""
    while not first_line(port).startswith(name):
        time.sleep(0.0005)  # the measure's own grain; a connection gives no event before it is made


def settled(one: Edge, document: dict[str, Any]) -> None:
    """Wait until it is committed."""
    digest = digest_of(json.dumps(document).encode())
    until(lambda: (one.status()["live"] or {}).get("digest") == digest, "committed", 60)


def reload(size: int) -> dict[str, float]:
    """One converge that reloads, against `haproxy -c` and `haproxy -D -sf -x` on the very same file, in turn."""
    with greeter("a") as a, edge() as one, edge() as floor:
        document, other = state(size, [a]), state(size, [a])
        mine = host(one)
        put(one, document)
        mine.loop.reconcile()
        by_hand = Floor(floor, other)
        whole, reloads, serving, floors, again = [], [], [], [], []
        for turn in range(ROUNDS):
            floors.append(by_hand.reload())
            put(one, {**document, "defaults": {"maxconn": 100 + turn}})
            reports: list[Report] = []
            whole.append(seconds(lambda reports=reports: reports.append(mine.loop.reconcile())))
            timings = dict(reports[0].timings)
            reloads.append(sum(timings[stage] for stage in RELOAD))
            serving.append(sum(timings[stage] for stage in RELOAD[:3]))
            again.append(by_hand.reload())
        by_hand.stop()
    floor_ms = median(floors)
    return {
        f"reload, {size} frontends: the floor, haproxy -c and -D -sf -x by hand (ms)": floor_ms * 1000,
        f"reload, {size} frontends: control, floor to floor (ratio)": median(again) / floor_ms,
        f"reload, {size} frontends: file at hand to serving (ratio to the floor)": median(serving) / floor_ms,
        f"reload, {size} frontends: file at hand to proof and commit (ratio; target 1.5)": median(reloads) / floor_ms,
        f"reload, {size} frontends: whole, document to status.json (ratio)": median(whole) / floor_ms,
    }


class Floor:
    """What a careful script would do, and nothing more."""

    def __init__(self, one: Edge, document: dict[str, Any]) -> None:
        mine = host(one)
        put(one, document)
        mine.loop.reconcile()
        self._config = one.folder / "state/haproxy.cfg"
        self._run = one.folder / "run"

    @property
    def _pid(self) -> int:
        return int((self._run / "haproxy.pid").read_text())

    def reload(self) -> float:
        """Seconds until `-D` lets go."""
        check = [BINARY, "-c", "-f", self._config]
        pid, sock = self._run / "haproxy.pid", self._run / "haproxy.sock"
        switch = [BINARY, "-D", "-f", self._config, "-p", pid, "-sf", str(self._pid), "-x", sock]

        def both() -> None:
            for words in (check, switch):
                subprocess.run(words, check=True, capture_output=True)  # noqa: S603  # our own words

        return seconds(both)

    def stop(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGTERM)


def main() -> dict[str, float]:
    """Every size, both paths."""
    found: dict[str, float] = {}
    found |= runtime(SIZES[0], "2.8")
    for size in SIZES:
        found |= runtime(size)
        found |= reload(size)
    return found
