"""The base and what Services add to it, as one desired state: merged, written, judged. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from attrs import frozen

from agent.desired import schema
from agent.desired.addresses import ip
from agent.desired.state import Limits, Parsed, parse
from agent.desired.structure import keys_of
from agent.discover.annotations import Mistake
from agent.discover.base import Base
from agent.discover.fragments import Fragment, Groups, at
from agent.discover.objects import PREFIX, Key
from agent.discover.pools import NOBODY
from agent.errors import InvalidError, Path, dotted

_NO_LIMITS = Limits(process_maxconn=2**62, file_limit=None)  # the firewall knows its own


def merge(under: Base, fragments: Iterable[Fragment], groups: Groups) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All of it, as one tree, and what of the base waits for a Service that is not there.

    `groups`: the nodes as they are now; a fragment that was read back from a firewall may have older ones. Of two that
    have a name in common (one is about to give it up) the first is in it.
    """
    tree: dict[str, Any] = {"version": 1, **under.tree}
    names: set[str] = set()
    for fragment in fragments:
        if not names.isdisjoint(fragment.backends):
            continue
        names |= fragment.backends.keys()
        used = {name: groups.get(name, members) for name, members in fragment.groups.items()}
        for key, part in (("nodes", used), ("frontends", fragment.frontends), ("backends", fragment.backends)):
            if part:
                tree[key] = _together(tree.get(key), part)
    return tree, tuple(_wait(under, tree))


def _wait(under: Base, tree: dict[str, Any]) -> Iterator[str]:
    """Take out what only says something about a Service that is not there: it must not be in the others' way."""
    for kind, needed, known in (
        ("frontends", ({"bind"}, {"backend"}), {key.name for key in keys_of(schema.Frontend)}),
        ("backends", ({"servers", "nodes"},), {key.name for key in keys_of(schema.Backend)}),
    ):
        part = tree.get(kind)
        if not isinstance(part, Mapping):
            continue
        waits = [
            name
            for name, value in part.items()
            if isinstance(value, Mapping) and value.keys() <= known and not all(value.keys() & keys for keys in needed)
        ]
        if waits:
            tree[kind] = {name: value for name, value in part.items() if name not in waits}
        for name in waits:
            yield f"{under.place((kind, name))}: {kind}.{name} waits for a Service that makes the rest of it"
    backends, frontends = tree.get("backends", {}), tree.get("frontends", {})
    if not isinstance(backends, Mapping) or not isinstance(frontends, Mapping):
        return
    for name, where in dict(_led(frontends)).items():
        if name not in backends:
            # Left out, its clients would come to another backend: here they come to none.
            tree["backends"] = backends = {**backends, name: {"servers": {NOBODY: dict(_NONE)}}}
            yield f"{under.place(where)}: backend {name} is made by no Service: its clients are turned away"


_NONE = {"address": "127.0.0.1:9", "disabled": True}


def _led(frontends: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Each backend that a frontend leads to, and where it says so."""
    for name, frontend in frontends.items():
        if not isinstance(frontend, Mapping):
            continue
        if isinstance(frontend.get("backend"), str):
            yield frontend["backend"], ("frontends", name, "backend")
        for index, route in enumerate(frontend["routes"] if isinstance(frontend.get("routes"), list) else ()):
            if isinstance(route, Mapping) and isinstance(route.get("backend"), str):
                yield route["backend"], ("frontends", name, "routes", index, "backend")


def _together(theirs: object, ours: object) -> object:
    """Neither is changed; there is no conflict."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return {**theirs, **{key: _together(theirs.get(key), value) for key, value in ours.items()}}
    return ours


# --- written ------------------------------------------------------------------------------------------------------


def as_yaml(tree: Mapping[str, Any], source: str) -> bytes:
    """For people: one server a line, and where it comes from."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(_sorted(tree), Dumper=dumper, sort_keys=False, default_flow_style=None, width=120)
    head = f"# Made by `agent discover` of {source}: what is changed here by hand is gone with the next one."
    return f"{head}\n{text}".encode()


def as_json(tree: Mapping[str, Any], serial: int | None = None) -> bytes:
    """For agents: read many times faster than YAML; a frontend, a backend, a group a line."""
    ordered = _sorted(tree if serial is None else {**tree, "serial": serial})
    parts = []
    for key, value in ordered.items():
        if key in ("nodes", "frontends", "backends") and isinstance(value, dict) and value:
            lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{lines}\n }}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return ("{" + ",\n ".join(parts) + "}\n").encode()


_ORDER = ("version", "name", "serial", "manager", "defaults", "nodes", "frontends", "backends")


def _sorted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same state is the same bytes."""
    known = [key for key in _ORDER if key in tree]
    found = {key: tree[key] for key in (*known, *(key for key in tree if key not in _ORDER))}
    for key in ("nodes", "frontends", "backends"):
        if isinstance(found.get(key), Mapping):
            found[key] = {name: found[key][name] for name in sorted(found[key])}
            if key == "nodes":
                found[key] = {
                    name: dict(sorted(group.items())) if isinstance(group, Mapping) else group
                    for name, group in found[key].items()
                }
    return found


# --- judged -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Judged:
    """`parsed` None: it cannot be a desired state. `culprits`: the Services behind it; `violations`: what else is."""

    parsed: Parsed | None
    culprits: Mapping[Key, tuple[Mistake, ...]]
    violations: tuple[str, ...] = ()


def judge(data: bytes, under: Base, fragments: Sequence[Fragment], *, max_bytes: int) -> Judged:
    """What the agent on the firewall would say of it, and of whose making it is."""
    try:
        parsed = parse(data, file="desired state", max_bytes=max_bytes, limits=_NO_LIMITS)
    except InvalidError as error:
        owners: dict[tuple[str, str], list[Key]] = {}
        for fragment in fragments:
            for kind, names in (
                ("frontends", fragment.frontends),
                ("backends", fragment.backends),
                ("nodes", fragment.groups),
            ):
                for name in names:
                    owners.setdefault((kind, name), []).append(fragment.service)
        culprits: dict[Key, list[Mistake]] = {}
        rest = []
        for wrong in error.violations:
            path = wrong.path
            who = owners.get((str(path[0]), str(path[1])), []) if len(path) > 1 else []
            # Whoever wrote the line: without the Service it would be right, or it comes again as the base's own.
            for key in who:
                place = f" ({under.place(path)})" if at(under.tree, path) is not None else ""
                culprits.setdefault(key, []).append(Mistake(dotted(path), wrong.message + place))
            if not who:
                place = under.place(path) if path and at(under.tree, path) is not None else "desired state"
                rest.append(": ".join(part for part in (place, dotted(path), wrong.message) if part))
        if any("servers in all" in text for text in rest):
            rest.append(f"fewer nodes for each: {PREFIX}nodes, or externalTrafficPolicy: Local")
        return Judged(
            parsed=None, culprits={key: tuple(found) for key, found in culprits.items()}, violations=tuple(rest)
        )
    return Judged(parsed=parsed, culprits={})


def bind_addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """What `--bind` names. Raises ValueError."""
    return tuple(dict.fromkeys(ip(address.strip())[1] for text in texts for address in text.split(",")))
