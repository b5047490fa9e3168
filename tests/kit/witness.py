"""A healthy frontend that has nothing to do with the fault, and clients that notice what it costs them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from kit.edge import Load, first_line


class Witness(Load):
    """Clients that connect, read the greeting and leave; tells what failed, for how long, and the longest wait."""

    def __init__(self, port: int, threads: int = 2, *, host: str = "127.0.0.1") -> None:
        super().__init__(port, threads, host=host)
        self.outage = 0.0
        self.slowest = 0.0

    def _run(self) -> None:
        failing_since: float | None = None
        while not self._stop.is_set() and len(self.greetings) < 100_000:
            start = time.monotonic()
            try:
                greeting = first_line(self.port, host=self.host)
            except OSError as error:
                greeting, why = "", repr(error)
            else:
                why = "closed without a greeting"
            end = time.monotonic()
            self.slowest = max(self.slowest, end - start)
            if greeting:
                self.greetings.append(greeting)
                if failing_since is not None:
                    self.outage = max(self.outage, end - failing_since)
                    failing_since = None
            else:
                self.failures.append(why)
                failing_since = start if failing_since is None else failing_since
                time.sleep(0.01)  # a refused connection costs nothing; do not turn a short outage into thousands


@dataclass
class Row:
    """One fault on one HAProxy: what the witness saw, and what was live afterwards."""

    fault: str
    version: str
    outage_ms: int = 0
    failed: int = 0
    served: int = 0
    slowest_ms: int = 0
    after: str = ""

    def fill(self, witness: Witness) -> None:
        """What the witness saw."""
        self.served, self.failed = len(witness.greetings), len(witness.failures)
        self.outage_ms, self.slowest_ms = round(witness.outage * 1000), round(witness.slowest * 1000)


@dataclass
class Table:
    """All rows of a run."""

    rows: list[Row] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A table for people: one line a fault, the worst of the versions."""
        faults: dict[str, list[Row]] = {}
        for row in self.rows:
            faults.setdefault(row.fault, []).append(row)
        head = "| fault | HAProxy | connections served | failed | outage (ms) | slowest (ms) | live afterwards |"
        lines = [head, "|---|---|--:|--:|--:|--:|---|"]
        for fault, rows in faults.items():
            versions = ", ".join(sorted({row.version for row in rows}))
            lines.append(
                f"| {fault} | {versions} | {sum(row.served for row in rows)} | {sum(row.failed for row in rows)} | "
                f"{max(row.outage_ms for row in rows)} | {max(row.slowest_ms for row in rows)} | {rows[0].after} |"
            )
        return lines
