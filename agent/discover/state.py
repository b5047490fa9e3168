"""A cluster at one moment, as a desired state: the pure heart of `agent discover`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, field, frozen

from agent.discover.annotations import Mistake
from agent.discover.fragments import Before, Fragment, addresses_of, disjoint, fragment, resolve, revived
from agent.discover.merge import Base, as_json, conflicts, judge, merge
from agent.discover.objects import Key, Node, Service, Slice
from agent.discover.pools import View
from agent.discover.service_status import ServiceStatus


@frozen(kw_only=True)
class Snapshot:
    """What is there at one moment."""

    services: Sequence[Service] = ()
    nodes: Sequence[Node] = ()
    slices: Sequence[Slice] = ()


@frozen(kw_only=True)
class Config:
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


def wanted(
    snapshot: Snapshot, terms: Config, before: Before = _NEVER, held: Mapping[Key, tuple[int, Mistake]] = {}
) -> Wanted:
    """Every Service that can be served; a mistaken one leaves the others alone.

    `held`: Services that are held back, up to a level, and why: they go on as they were.
    """
    view = View(snapshot.nodes, snapshot.slices)
    ground = terms.base.ground(terms.bind)
    excluded: dict[Key, dict[int, tuple[Mistake, ...]]] = {
        key: dict.fromkeys(range(level + 1), (mistake,)) for key, (level, mistake) in held.items()
    }
    against = partial(conflicts, terms.base)
    while True:  # to its end: each round bans somebody, for good
        found = resolve(snapshot.services, view, ground, before=before, against=against, excluded=excluded)
        fragments = list(found.fragments.values())
        tree, waits = merge(terms.base, fragments)
        judged = judge(as_json(tree), terms.base, fragments, max_bytes=terms.max_bytes)
        culprits = {key: one for key, one in judged.culprits.items() if found.levels[key] < 2}
        if not culprits:
            break
        for key, mistakes in culprits.items():
            excluded.setdefault(key, {})[found.levels[key]] = mistakes
    advice = (
        [": ".join(part for part in (finding.where, finding.message) if part) for finding in judged.parsed.findings]
        if judged.parsed
        else []
    )
    # What is live is not taken away because the rest of the document does not go with it.
    stuck = [
        f"Service {'/'.join(key)} cannot go on as it is: {mistake.text}"
        for key, mistakes in {**judged.culprits, **found.stuck}.items()
        for mistake in mistakes
    ]
    if before.live and not snapshot.nodes:
        stuck.append("the cluster names no Node at all: that is not believed")
    return Wanted(
        fragments=found.fragments,
        mistakes=found.mistakes,
        levels=found.levels,
        violations=(*judged.violations, *stuck),
        remarks=(*waits, *advice),
    )


def document(terms: Config, fragments: Mapping[Key, Fragment]) -> dict[str, Any]:
    """The whole as a tree, in the order of age where that matters."""
    return merge(terms.base, fragments.values())[0]


def restore_all(
    snapshot: Snapshot, terms: Config, said: Mapping[Key, ServiceStatus], servers: Mapping[str, Mapping[str, Any]]
) -> dict[Key, Fragment]:
    """Which Services are live indeed, of those that are said to be, and as what.

    `servers`: by name, of each backend on the firewalls. Whoever may write a Service can write its status too: where
    two claim the same, that one is believed of which the firewall has a server behind each backend; then the older.
    """
    view = View(snapshot.nodes, snapshot.slices)
    ground = terms.base.ground(terms.bind)
    claims = []
    for service in snapshot.services:
        told = said.get(service.key)
        if not service.wants or told is None or not told.live:
            continue
        made = revived(service.key, told.live, _without(terms.base, servers))
        if made is None:
            continue
        now, _ = fragment(evolve(service, annotations=told.good), view, ground) if told.good else (None, ())
        there = addresses_of(made)
        proven = now is not None and all(
            not addresses.isdisjoint(there.get(name, ())) for name, addresses in addresses_of(now).items()
        )
        claims.append((not proven, service.created, service.key, made))
    found: dict[Key, Fragment] = {}
    for _, _, key, made in sorted(claims, key=lambda claim: claim[:3]):
        if disjoint(made, found.values()):
            found[key] = made
    return found


def _without(base: Base, servers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The servers that are not the base's own."""
    backends = base.tree.get("backends")
    own = {
        name: part.get("servers") or {}
        for name, part in (backends.items() if isinstance(backends, Mapping) else ())
        if isinstance(part, Mapping)
    }
    return {
        name: {each: server for each, server in part.items() if each not in own.get(name, {})}
        for name, part in servers.items()
    }
