"""What each Service has on the firewalls, by the owners that stand in their live documents. Pure.

The firewalls are all that the controller remembers: it can be started anew at any moment, and two can run at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve

from agent.desired.addresses import endpoint
from agent.discover.fragments import Fragment, overlap

Owner = str
"""`namespace/name/uid` of a Service."""


def fragments(tree: Mapping[str, Any]) -> dict[Owner, Fragment]:
    """Of one document. What cannot be read, or has no such owner, is nobody's."""
    found: dict[Owner, Fragment] = {}
    nodes = _section(tree, "nodes")
    for kind in ("frontends", "backends"):
        for name, part in _section(tree, kind).items():
            owner = part.get("owner") if isinstance(part, Mapping) else None
            if not isinstance(owner, str) or owner.count("/") != 2 or not _is_readable(part, nodes):
                continue
            namespace, service, _ = owner.split("/")
            fragment = found.get(owner) or Fragment(service=(namespace, service))
            if kind == "frontends":
                fragment = evolve(fragment, frontends={**fragment.frontends, name: part})
            else:
                group = part.get("nodes")
                groups = {**fragment.groups, group: nodes[group]} if group in nodes else fragment.groups
                fragment = evolve(fragment, backends={**fragment.backends, name: part}, groups=groups)
            found[owner] = fragment
    return found


def together(known: Sequence[Mapping[Owner, Fragment]], present: Collection[Owner] = ()) -> dict[Owner, Fragment]:
    """Of several documents: the first that has something of a Service counts, where it fits the others.

    `present`: Services that are there come before all that are not: somebody else's document takes nothing from them.
    """
    found: dict[Owner, Fragment] = {}
    for are_present in (True, False):
        for fragments in known:
            new = {
                owner: fragment
                for owner, fragment in fragments.items()
                if owner not in found and (owner in present) is are_present
            }
            found |= {owner: fragment for owner, fragment in new.items() if _disjoint(fragment, found.values())}
    return found


def unowned(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What of a document is no Service's: the base that it was made with, but for what that says of Services."""
    left = {key: part for key, part in tree.items() if key not in ("manager", "allow_empty", "nodes")}
    for kind in ("frontends", "backends"):
        if kind in left:
            own = {
                name: part
                for name, part in _section(tree, kind).items()
                if isinstance(part, Mapping) and "owner" not in part
            }
            left[kind] = own
    used = {part.get("nodes") for part in _section(left, "backends").values()}
    groups = {name: group for name, group in _section(tree, "nodes").items() if name in used}
    return left | ({"nodes": groups} if groups else {})


def _disjoint(fragment: Fragment, others: Iterable[Fragment]) -> bool:
    """Whether it has no name and no address in common with any of them."""
    binds = list(fragment.binds)
    for other in others:
        if not fragment.backends.keys().isdisjoint(other.backends):
            return False
        if any(port == number and overlap(host, there) for host, port, _ in binds for there, number, _ in other.binds):
            return False
    return True


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_readable(part: Mapping[str, Any], nodes: Mapping[str, Any]) -> bool:
    """Whether a frontend or backend has the shape that an agent accepts, as far as it is looked at here."""
    bind, servers, group = part.get("bind", []), part.get("servers", {}), part.get("nodes")
    try:
        for text in bind:
            endpoint(text)
    except (TypeError, ValueError):
        return False
    members = nodes.get(group) if isinstance(group, str) else {} if group is None else None
    return _is_servers(servers) and isinstance(members, Mapping) and all(_has_host(node) for node in members.values())


def _is_servers(servers: object) -> bool:
    return isinstance(servers, Mapping) and all(
        isinstance(server, Mapping) and isinstance(server.get("address"), str) for server in servers.values()
    )


def _has_host(node: object) -> bool:
    return isinstance(node, str) or (isinstance(node, Mapping) and isinstance(node.get("address"), str))
