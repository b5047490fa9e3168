"""What is watched of a cluster, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from agent.discover.objects import Node, Service, Slice
from agent.discover.reflector import Reflector
from agent.discover.state import Snapshot

STALLED_SECONDS = 60.0  # without a word of a kind, nobody can say that all is in step


@frozen(kw_only=True)
class Sources:
    """What is watched."""

    services: Sequence[Reflector[Service]]
    nodes: Reflector[Node]
    slices: Sequence[Reflector[Slice]]

    @property
    def all(self) -> tuple[Reflector[Any], ...]:
        """Each of them."""
        return (*self.services, self.nodes, *self.slices)

    @property
    def synced(self) -> bool:
        """Whether all have been read once: half of a cluster would take the other half's frontends away."""
        return all(reflector.synced.is_set() for reflector in self.all)

    def fresh(self, seconds: float) -> bool:
        """Whether all have been read within so many seconds; those that were not are read anew, in time."""
        stale = [reflector for reflector in self.all if not reflector.listed_within(seconds)]
        for reflector in stale:
            reflector.relist()
        return not stale

    @property
    def stalled(self) -> list[str]:
        """Kinds that cannot be watched, for a while now."""
        return sorted({reflector.kind for reflector in self.all if reflector.failing_for() > STALLED_SECONDS})

    def now(self) -> Snapshot:
        """What is there."""
        return Snapshot(
            services=[service for reflector in self.services for service in reflector.objects()],
            nodes=self.nodes.objects(),
            slices=[part for reflector in self.slices for part in reflector.objects()],
        )
