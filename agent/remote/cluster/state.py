"""A cluster at one moment, as a desired state: the pure heart of `agent discover`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, field, frozen

from agent.remote.cluster.annotations import Mistake
from agent.remote.cluster.fragments import Before, Fragment, fragment, gather, servers_of
from agent.remote.cluster.merge import Base, as_json, conflicts, judge, merge
from agent.remote.cluster.objects import Key, Node, Service, Slice
from agent.remote.cluster.pools import View


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
    """What the Services make of it. `violations`: why it cannot be a desired state, where no Service is behind it.

    `levels`: what each fragment is made of (`fragments.Found`). `remarks`: what a person should know, of the base or
    of the whole.
    """

    fragments: Mapping[Key, Fragment] = field(factory=dict)
    mistakes: Mapping[Key, tuple[Mistake, ...]] = field(factory=dict)
    levels: Mapping[Key, int] = field(factory=dict)
    violations: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


_NEVER = Before()


def wanted(snapshot: Snapshot, terms: Terms, before: Before = _NEVER, held: Mapping[Key, Mistake] = {}) -> Wanted:
    """Every Service that can be served; a mistaken one leaves the others alone.

    `held`: Services that are held back as they are: they go on as they were.
    """
    view = View(snapshot.nodes, snapshot.slices)
    ground = terms.base.ground(terms.bind)
    banned: dict[Key, dict[int, tuple[Mistake, ...]]] = {key: {0: (mistake,)} for key, mistake in held.items()}
    against = partial(conflicts, terms.base)
    while True:  # to its end: each round bans somebody, for good
        found = gather(snapshot.services, view, ground, before=before, against=against, banned=banned)
        fragments = list(found.fragments.values())
        tree, waits = merge(terms.base, fragments)
        judged = judge(as_json(tree), terms.base, fragments, max_bytes=terms.max_bytes)
        guilty = {key: one for key, one in judged.guilty.items() if found.levels[key] < 2}
        if not guilty:
            break
        for key, mistakes in guilty.items():
            banned.setdefault(key, {})[found.levels[key]] = mistakes
    advice = (
        [": ".join(part for part in (one.where, one.message) if part) for one in judged.parsed.findings]
        if judged.parsed
        else []
    )
    # What is live is not taken away because the rest of the document does not go with it.
    stuck = [
        f"Service {'/'.join(key)} cannot go on as it is: {mistake.text}"
        for key, mistakes in judged.guilty.items()
        for mistake in mistakes
    ]
    return Wanted(
        fragments=found.fragments,
        mistakes=found.mistakes,
        levels=found.levels,
        violations=(*judged.violations, *stuck),
        remarks=(*waits, *advice),
    )


def document(terms: Terms, fragments: Mapping[Key, Fragment]) -> dict[str, Any]:
    """The whole as a tree, in the order of age where that matters."""
    return merge(terms.base, fragments.values())[0]


def lives(
    snapshot: Snapshot, terms: Terms, good: Mapping[Key, Mapping[str, str]], live: Mapping[str, set[str]]
) -> dict[Key, Fragment]:
    """Which Services are live indeed, of those that are said to be, and as what.

    `live`: the servers of each backend on the firewalls. Whoever may write a Service can write its status too: it is
    believed where the firewall has, behind each of its backends, a server of it.
    """
    view = View(snapshot.nodes, snapshot.slices)
    ground = terms.base.ground(terms.bind)
    found = {}
    for one in snapshot.services:
        if one.key in good:
            made, _ = fragment(evolve(one, annotations=good[one.key]), view, ground)
            if made is not None and all(
                not addresses.isdisjoint(live.get(name, ())) for name, addresses in servers_of(made).items()
            ):
                found[one.key] = made
    return found
