"""How long a change takes: at the socket, and by a reload against the floor of doing the reload by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from stage import BINARY, edge, host, median, put, seconds, state  # first: it finds the tests' kit

from kit.edge import Edge, first_line, until  # isort: skip
from kit.servers import echo  # isort: skip

SIZES = (5, 100, 1_000)
ROUNDS = 9


def runtime(size: int) -> dict[str, float]:
    """From the file renamed to the first connection on the new server, by the service; no reload on the way."""
    with echo("old") as old, echo("new") as new, edge() as one:
        document = state(size, [old.address])
        port = int(document["frontends"]["f0"]["bind"][0].split(":")[1])
        pool = document["backends"]["b0"]
        put(one, document)
        one.serve()
        pid = one.pid
        found = []
        for turn in range(ROUNDS):
            mine, name = (new, "new") if turn % 2 == 0 else (old, "old")
            pool["servers"] = {f"{name}{turn}": {"address": mine.address}}
            put(one, document)
            found.append(seconds(lambda: until(lambda: first_line(port).startswith(name), "the new server", 60)))  # noqa: B023  # called at once
            settled(one, document)
        assert one.pid == pid, "there was a reload"
        control = [seconds(lambda: first_line(port)) for _ in range(50)]
    return {
        f"file renamed to first connection, runtime, {size} frontends (ms)": median(found) * 1000,
        f"  control: a connection without a change, {size} frontends (ms)": median(control) * 1000,
    }


def settled(one: Edge, document: dict[str, Any]) -> None:
    """Wait until it is committed."""
    from agent.model.desired import digest_of

    digest = digest_of(json.dumps(document).encode())
    until(lambda: (one.status()["live"] or {}).get("digest") == digest, "committed", 60)


def reload(size: int) -> dict[str, float]:
    """One converge that reloads, against `haproxy -c` and `haproxy -D -sf -x` on the very same file, in turn."""
    with echo("a") as a, edge() as one, edge() as floor:
        document, other = state(size, [a.address]), state(size, [a.address])
        mine = host(one)
        put(one, document)
        mine.converge()
        by_hand = Floor(floor, other)
        agent, floors, again = [], [], []
        for turn in range(ROUNDS):
            floors.append(by_hand.reload())
            put(one, {**document, "defaults": {"maxconn": 100 + turn}})
            agent.append(seconds(mine.converge))
            again.append(by_hand.reload())
            assert mine.story.ports.store.live().reasons == ("defaults changed",)
        by_hand.stop()
    return {
        f"reload by the agent, {size} frontends (ms)": median(agent) * 1000,
        "  floor: haproxy -c and -D -sf -x by hand (ms)": median(floors) * 1000,
        f"  ratio to the floor, {size} frontends (target 1.5)": median(agent) / median(floors),
        "  control: floor to floor": median(again) / median(floors),
    }


class Floor:
    """What a careful script would do, and nothing more."""

    def __init__(self, one: Edge, document: dict[str, Any]) -> None:
        mine = host(one)
        put(one, document)
        mine.converge()
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
    for size in SIZES:
        found |= runtime(size)
        found |= reload(size)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<80} {value:8.2f}")
