"""A cluster at one moment, as a desired state: the pure heart of `agent discover`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attrs import field, frozen

from agent.discover.annotations import Mistake
from agent.discover.base import Base
from agent.discover.fragments import Fragment, current_groups, kept, resolve, selectors
from agent.discover.merge import as_json, judge, merge
from agent.discover.objects import Key, Snapshot
from agent.discover.pools import View


@frozen(kw_only=True)
class Config:
    """What is not the cluster's to say."""

    base: Base = field(factory=Base)
    bind: tuple[str, ...] = ()
    """addresses for Services that name none"""
    max_bytes: int = 1_048_576
    """of a document that the firewalls accept"""
    manager: str = ""
    """who writes the document, unless the base says it: the cluster's uid"""


@frozen(kw_only=True)
class Desired:
    """What the Services make of it."""

    tree: Mapping[str, Any]
    """the desired state, without a serial"""
    fragments: Mapping[Key, Fragment] = field(factory=dict)
    """what each Service has in it"""
    mistakes: Mapping[Key, tuple[Mistake, ...]] = field(factory=dict)
    """why a Service is not in it as it asks"""
    kept: frozenset[Key] = frozenset()
    """Services that are in it as they are live, not as they ask"""
    violations: tuple[str, ...] = ()
    """why it cannot be a desired state, where no Service is behind that"""
    groups: Mapping[str, tuple[str, tuple[int, ...]]] = field(factory=dict)
    """all groups of nodes that are known, by what they choose"""
    remarks: tuple[str, ...] = ()
    """what a person should know, of the base or of the whole"""


def desired(
    snapshot: Snapshot,
    config: Config,
    *,
    live: Mapping[Key, Fragment] = {},
    excluded: Mapping[Key, tuple[Mistake, ...]] = {},
    pinned: Collection[Key] = (),
    groups: Mapping[str, tuple[str, tuple[int, ...]]] = {},
) -> Desired:
    """Every Service that can be served; a mistaken one leaves the others alone.

    `live`: what each has on the firewalls; `excluded`: Services that go on as they are live, and why; `pinned`: those
    of them that get no other servers; `groups`: of nodes that Services chose earlier, and may be live in (`selectors`).
    """
    view, base = View(snapshot.nodes, snapshot.slices), config.base
    layout = base.layout(config.bind)
    chosen = {**groups, **selectors(snapshot.services, layout)}
    now = current_groups(chosen, view)
    bound = {service.key for service in snapshot.services if service.says_bind}
    live = {
        key: base.without(kept(fragment, now, pin=key in pinned, foreign=layout.groups), says_bind=key in bound)
        for key, fragment in live.items()
    }
    excluded = dict(excluded)
    while True:  # to its end: each round excludes somebody, for good
        resolved = resolve(snapshot.services, view, layout, live=live, against=base.conflicts, excluded=excluded)
        fragments = list(resolved.fragments.values())
        tree, waits = merge(base, fragments, now)
        if config.manager:
            tree.setdefault("manager", config.manager)
        judged = judge(as_json(tree), base, fragments, max_bytes=config.max_bytes)
        culprits = {key: mistakes for key, mistakes in judged.culprits.items() if key not in resolved.kept}
        if not culprits:
            break
        excluded |= culprits
    advice = [
        ": ".join(part for part in (finding.where, finding.message) if part)
        for finding in (judged.parsed.findings if judged.parsed else ())
    ]
    # What is live is not taken away because the rest of the document does not go with it.
    stuck = [
        f"Service {'/'.join(key)} cannot go on as it is: {mistake.text}"
        for key, mistakes in {**judged.culprits, **resolved.stuck}.items()
        for mistake in mistakes
    ]
    if live and not snapshot.nodes:
        stuck.append("the cluster names no Node at all: that is not believed")
    return Desired(
        tree=tree,
        fragments=resolved.fragments,
        mistakes=resolved.mistakes,
        kept=resolved.kept,
        violations=(*judged.violations, *stuck),
        remarks=(*waits, *advice),
        groups=chosen,
    )
