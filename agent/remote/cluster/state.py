"""A cluster at one moment, as a desired state: the pure heart of `agent discover`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from attrs import field, frozen

from agent.remote.cluster.annotations import Mistake
from agent.remote.cluster.fragments import Found, Fragment, gather
from agent.remote.cluster.merge import Base, as_json, conflicts, judge, merge
from agent.remote.cluster.objects import Key, Node, Service, Slice
from agent.remote.cluster.pools import View

_ROUNDS = 8  # of leaving out whom the whole is refused for; each round uncovers at most a layer


@frozen(kw_only=True)
class Snapshot:
    """What is there at one moment."""

    services: Sequence[Service] = ()
    nodes: Sequence[Node] = ()
    slices: Sequence[Slice] = ()


@frozen(kw_only=True)
class Terms:
    """What is not the cluster's to say. `max_bytes`: what the firewall takes."""

    base: Base = field(factory=Base)
    bind: tuple[str, ...] = ()
    max_bytes: int = 1_048_576


@frozen(kw_only=True)
class Wanted:
    """What the Services make of it. `violations`: why it cannot be a desired state, where no Service is behind it."""

    fragments: Mapping[Key, Fragment] = field(factory=dict)
    mistakes: Mapping[Key, tuple[Mistake, ...]] = field(factory=dict)
    stands: frozenset[Key] = frozenset()
    violations: tuple[str, ...] = ()


def wanted(
    snapshot: Snapshot, terms: Terms, good: Mapping[Key, Mapping[str, str]], held: Mapping[Key, Mistake] = {}
) -> Wanted:
    """Every Service that can be served; a mistaken one leaves the others alone.

    `good`: the annotations of each Service that were live last; they go on where the present ones are mistaken, or
    where it is `held` back as it is.
    """
    view = View(snapshot.nodes, snapshot.slices)
    ground = terms.base.ground(terms.bind)
    banned: dict[Key, list[tuple[Mistake, ...]]] = {key: [(mistake,)] for key, mistake in held.items()}
    violations: tuple[str, ...] = ()
    found = Found(fragments={}, mistakes={})
    for _ in range(_ROUNDS):
        found = gather(
            snapshot.services, view, ground, good=good, against=partial(conflicts, terms.base), banned=banned
        )
        fragments = list(found.fragments.values())
        judged = judge(as_json(merge(terms.base, fragments)), terms.base, fragments, max_bytes=terms.max_bytes)
        violations = judged.violations
        if not judged.guilty:
            break
        for key, mistakes in judged.guilty.items():
            known = banned.setdefault(key, [])
            if key in found.stands and not known:
                known.append(())  # the present ones were mistaken before; now the good ones are
            known.append(mistakes)
    return Wanted(fragments=found.fragments, mistakes=found.mistakes, stands=found.stands, violations=violations)


def document(terms: Terms, fragments: Mapping[Key, Fragment]) -> dict[str, Any]:
    """The whole as a tree, in the order of age where that matters."""
    return merge(terms.base, fragments.values())
