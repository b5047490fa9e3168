"""The base and what Services add to it, as one desired state; every conflict with both places. Pure.

The base is an operator's file: binds, SNI routes, settings, whatever the cluster does not know. It is put underneath:
each key is said by one of the two, or by both alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from attrs import field, frozen

from agent.desired import document, schema
from agent.desired.addresses import endpoint, ip
from agent.desired.document import Document
from agent.desired.scalars import describe
from agent.desired.state import DEFAULT_MAX_BYTES, Limits, Parsed, parse
from agent.desired.structure import keys_of
from agent.discover.annotations import Mistake
from agent.discover.fragments import BaseLayout, Bound, Fragment, flat
from agent.discover.objects import PREFIX, Key
from agent.discover.pools import NOBODY
from agent.errors import InvalidError, Path, Violation, dotted

OWNERS = "owners"
_SERVICE = re.compile(r"[a-z0-9.-]{1,63}/[a-z0-9.-]{1,253}")
_NO_LIMITS = Limits(process_maxconn=2**62, file_limit=None)  # the firewall knows its own


@frozen(kw_only=True)
class Base:
    """An operator's part, as it was written. `file` "" where there is none.

    `owners`: which Service (`namespace/name`) alone may have a name; a key of the base that goes no further.
    """

    file: str = ""
    tree: Mapping[str, Any] = field(factory=dict)
    owners: Mapping[str, str] = field(factory=dict)
    read: Document | None = None

    def place(self, path: Path) -> str:
        """`base.yaml:14`"""
        line = self.read.line(path) if self.read else None
        return self.file if line is None else f"{self.file}:{line}"

    def ground(self, bind: Sequence[str]) -> BaseLayout:
        """What it has of frontends and groups already."""
        bound: dict[str, Bound] = {}
        taken = []
        for name, one in self._part("frontends").items():
            if not isinstance(one, Mapping) or "bind" not in one:
                continue
            ports = set()
            for index, text in enumerate(one["bind"] if isinstance(one["bind"], list) else ()):
                try:
                    where = endpoint(text)
                except ValueError:  # the whole is judged later, with the line
                    continue
                taken.append((where.host, where.port, self.place(("frontends", name, "bind", index)), name))
                ports.add(where.port)
            bound[name] = Bound(ports=frozenset(ports), place=self.place(("frontends", name, "bind")))
        groups = frozenset(self._part("nodes"))
        return BaseLayout(bind=tuple(bind), bound=bound, taken=tuple(taken), groups=groups)

    def closed(self, name: str, service: str) -> Mistake | None:
        """Why this Service may not have this name: it is kept for another, or is the base's own."""
        owner = self.owners.get(name)
        if owner == service:
            return None
        if owner is not None:
            said = f"{self.place((OWNERS, name))} keeps {name} for Service {owner}"
            return Mistake(f"{PREFIX}expose", said, conflict=True, kept=True)
        own = self._part("backends").get(name)
        if isinstance(own, Mapping) and own.keys() & {"servers", "nodes"}:
            said = f"{self.place(('backends', name))} has servers of its own in {name}; `{OWNERS}` there lets one join"
            return Mistake(f"{PREFIX}expose", said, conflict=True)
        return None

    def _part(self, key: str) -> Mapping[str, Any]:
        found = self.tree.get(key)
        return found if isinstance(found, Mapping) else {}


def base(data: bytes, file: str, *, watched: bool) -> Base:
    """An operator's file. Raises InvalidError; `watched`: the controller counts serials itself."""
    read = document.read(data, file=file, max_bytes=DEFAULT_MAX_BYTES)
    violations = list(read.violations)
    if not isinstance(read.value, dict):
        violations.append(Violation((), "a mapping is expected", read.line(())))
    elif watched and "serial" in read.value:
        message = "not in a base that is watched: the controller counts serials itself"
        violations.append(Violation(("serial",), message, read.line(("serial",))))
    tree = dict(read.value) if isinstance(read.value, dict) else {}
    owners = tree.pop(OWNERS, {})
    if not isinstance(owners, dict) or not all(
        isinstance(owner, str) and _SERVICE.fullmatch(owner) for owner in owners.values()
    ):
        told = 'names, and the Service each is kept for, are expected, such as `smtp: "mail/mail"`'
        violations.append(Violation((OWNERS,), told, read.line((OWNERS,))))
    if violations:
        raise InvalidError(file, tuple(violations))
    return Base(file=file, tree=tree, owners=owners, read=read)


def conflicts(under: Base, fragment: Fragment) -> tuple[Mistake, ...]:
    """Where the base says otherwise than a Service, with both places."""
    parts = {"nodes": fragment.groups, "frontends": fragment.frontends, "backends": fragment.backends}
    who = "/".join(fragment.service)
    closed = [mistake for name in fragment.backends if (mistake := under.closed(name, who))]
    return (*closed, *(found for key, part in parts.items() for found in _conflicts(under, (key,), part)))


def merge(under: Base, fragments: Iterable[Fragment]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All of it, as one tree, and what of the base waits for a Service that is not there.

    Of two that have a name in common (one is about to give it up) the first is in it.
    """
    tree: dict[str, Any] = {"version": 1, **under.tree}
    names: set[str] = set()
    groups: dict[str, Mapping[str, str]] = {}
    for one in fragments:
        if not names.isdisjoint(one.backends):
            continue
        names |= one.backends.keys()
        for name, members in one.groups.items():
            if groups.setdefault(name, members) != members:  # as it was, while the others have moved on
                one = flat(one)  # the same servers, written otherwise
                break
        for key, part in (("nodes", one.groups), ("frontends", one.frontends), ("backends", one.backends)):
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
            for name, one in part.items()
            if isinstance(one, Mapping) and one.keys() <= known and not all(one.keys() & keys for keys in needed)
        ]
        if waits:
            tree[kind] = {name: one for name, one in part.items() if name not in waits}
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
    for name, one in frontends.items():
        if not isinstance(one, Mapping):
            continue
        if isinstance(one.get("backend"), str):
            yield one["backend"], ("frontends", name, "backend")
        for index, route in enumerate(one["routes"] if isinstance(one.get("routes"), list) else ()):
            if isinstance(route, Mapping) and isinstance(route.get("backend"), str):
                yield route["backend"], ("frontends", name, "routes", index, "backend")


def _conflicts(under: Base, path: Path, ours: object) -> Iterator[Mistake]:
    """Where the base says something else at the same place."""
    theirs = _at(under.tree, path)
    if theirs is None or theirs == ours or (path[-1] == "bind" and _endpoints(theirs) == _endpoints(ours)):
        return
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key, value in ours.items():
            yield from _conflicts(under, (*path, key), value)
        return
    yield Mistake(
        dotted(path), f"the Service makes it {_short(ours)}, {under.place(path)} says {_short(theirs)}", conflict=True
    )


def _endpoints(found: object) -> frozenset[str] | None:
    """Addresses however they are written."""
    try:
        return frozenset(str(endpoint(one)) for one in found) if isinstance(found, list) else None
    except ValueError:
        return None


def _at(tree: object, path: Path) -> object:
    for step in path:
        if isinstance(tree, Mapping):
            tree = tree.get(step)
        else:
            tree = tree[step] if isinstance(tree, list) and isinstance(step, int) and step < len(tree) else None
    return tree


def _together(theirs: object, ours: object) -> object:
    """Neither is changed; there is no conflict."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return {**theirs, **{key: _together(theirs.get(key), value) for key, value in ours.items()}}
    return ours


def _short(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) else describe(value)


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
            lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{lines}\n }}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return ("{" + ",\n ".join(parts) + "}\n").encode()


_ORDER = ("version", "name", "serial", "defaults", "nodes", "frontends", "backends")


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
                place = f" ({under.place(path)})" if _at(under.tree, path) is not None else ""
                culprits.setdefault(key, []).append(Mistake(dotted(path), wrong.message + place))
            if not who:
                place = under.place(path) if path and _at(under.tree, path) is not None else "desired state"
                rest.append(": ".join(part for part in (place, dotted(path), wrong.message) if part))
        if any("servers in all" in one for one in rest):
            rest.append(f"fewer nodes for each: {PREFIX}nodes, or externalTrafficPolicy: Local")
        return Judged(
            parsed=None, culprits={key: tuple(found) for key, found in culprits.items()}, violations=tuple(rest)
        )
    return Judged(parsed=parsed, culprits={})


def bind_addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """What `--bind` names. Raises ValueError."""
    return tuple(dict.fromkeys(ip(one.strip())[1] for text in texts for one in text.split(",")))
