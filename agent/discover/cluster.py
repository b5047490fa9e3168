"""What is watched of a cluster, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from agent.discover.informer import Informer
from agent.discover.objects import Node, Service, Slice, Snapshot

STALLED_SECONDS = 60.0  # without a word about a kind, nobody can say that all is in step


@frozen(kw_only=True)
class Cluster:
    """The informers: of each namespace, or of all at once."""

    services: Sequence[Informer[Service]]
    nodes: Informer[Node]
    slices: Sequence[Informer[Slice]]

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        """Each of them."""
        return (*self.services, self.nodes, *self.slices)

    @property
    def synced(self) -> bool:
        """Whether all have been read once: half of a cluster would take the other half's frontends away."""
        return all(informer.synced.is_set() for informer in self.informers)

    @property
    def stalled(self) -> list[str]:
        """Kinds that cannot be watched, for a while now."""
        return sorted({informer.kind for informer in self.informers if informer.failing_seconds() > STALLED_SECONDS})

    def snapshot(self) -> Snapshot:
        """What is there."""
        return Snapshot(
            services=[service for informer in self.services for service in informer.objects()],
            nodes=self.nodes.objects(),
            slices=[part for informer in self.slices for part in informer.objects()],
        )
