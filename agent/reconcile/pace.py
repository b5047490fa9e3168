"""How often a new process may replace the running one: each old one lives on with its sessions. Pure."""

from __future__ import annotations

from attrs import define

EVERY = 5.0  # seconds for one more reload, once the burst is used up


@define
class Pace:
    """A bucket of `burst` reloads that fills by one every EVERY seconds. Times in seconds of one monotonic clock."""

    burst: int
    _left: float = -1.0
    _at: float = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next reload may be; 0.0: now."""
        self._fill(now)
        return 0.0 if self._left >= 1 else (1 - self._left) * EVERY

    def spend(self, now: float) -> None:
        """One reload has been."""
        self._fill(now)
        self._left = max(self._left - 1, 0.0)

    def _fill(self, now: float) -> None:
        full = float(self.burst)
        self._left = full if self._left < 0 else min(full, self._left + max(now - self._at, 0.0) / EVERY)
        self._at = now
