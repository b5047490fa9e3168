"""How long to wait after each failure in a row."""

from __future__ import annotations

import random


class Backoff:
    """Twice as long after each failure, with jitter, up to a limit; in seconds."""

    def __init__(self, first: float = 0.5, most: float = 10.0) -> None:
        self._first, self._most, self._next = first, most, first

    def next(self) -> float:
        """From half of it to all of it: many that failed at once do not come back at once."""
        wait, self._next = self._next, min(self._next * 2, self._most)
        return wait * random.uniform(0.5, 1)  # noqa: S311  # spreads load, guards nothing

    def reset(self) -> None:
        """It went well."""
        self._next = self._first
