"""The base: an operator's part of the desired state, put beneath what Services add. Pure.

Binds, SNI routes, settings, whatever the cluster does not know. Each key is said by one of the two, or by both alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from agent.desired import document
from agent.desired.addresses import endpoint
from agent.desired.document import Document
from agent.desired.scalars import describe
from agent.desired.state import DEFAULT_MAX_BYTES
from agent.discover.annotations import Mistake
from agent.discover.fragments import BaseLayout, Bound, Fragment, at
from agent.discover.objects import PREFIX
from agent.errors import InvalidError, Path, Violation, dotted

OWNERS = "owners"
_SAID_BY_SERVICES = frozenset({"bind", "allow", "application", "proxy_protocol", "type", "port", "path"})
_SERVICE = re.compile(r"[a-z0-9.-]{1,63}/[a-z0-9.-]{1,253}")


@frozen(kw_only=True)
class Base:
    """As it was written. `file` "" where there is none.

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

    def layout(self, bind: Sequence[str]) -> BaseLayout:
        """Its frontends and groups. `bind`: addresses for Services that name none."""
        bound: dict[str, Bound] = {}
        taken = []
        for name, frontend in self.part("frontends").items():
            if not isinstance(frontend, Mapping) or "bind" not in frontend:
                continue
            ports = set()
            for index, text in enumerate(frontend["bind"] if isinstance(frontend["bind"], list) else ()):
                try:
                    where = endpoint(text)
                except ValueError:  # the whole is judged later, with the line
                    continue
                taken.append((where.host, where.port, name, self.place(("frontends", name, "bind", index))))
                ports.add(where.port)
            bound[name] = Bound(ports=frozenset(ports), place=self.place(("frontends", name, "bind")))
        groups = frozenset(self.part("nodes"))
        return BaseLayout(bind=tuple(bind), bound=bound, taken=tuple(taken), groups=groups)

    def conflicts(self, fragment: Fragment) -> tuple[Mistake, ...]:
        """Where it says otherwise than a Service, with both places."""
        parts = {"nodes": fragment.groups, "frontends": fragment.frontends, "backends": fragment.backends}
        service = "/".join(fragment.service)
        closed = [mistake for name in fragment.backends if (mistake := self._closed(name, service))]
        return (*closed, *(conflict for key, part in parts.items() for conflict in self._conflicts((key,), part)))

    def without(self, fragment: Fragment, *, says_bind: bool) -> Fragment:
        """A fragment that was read back from a firewall, without what is the base's to say there.

        `says_bind`: whether the Service says itself where it listens. Where the base contradicts a Service, what is
        live stays, as a conflict.
        """
        said = _SAID_BY_SERVICES if says_bind else _SAID_BY_SERVICES - {"bind"}
        frontends, backends = (
            {name: _minus(part, self.part(kind).get(name), said) for name, part in parts.items()}
            for kind, parts in (("frontends", fragment.frontends), ("backends", fragment.backends))
        )
        return evolve(fragment, frontends=frontends, backends=backends)

    def part(self, key: str) -> Mapping[str, Any]:
        """A section; empty where it has none."""
        found = self.tree.get(key)
        return found if isinstance(found, Mapping) else {}

    def _closed(self, name: str, service: str) -> Mistake | None:
        """Why this Service may not have this name: it is kept for another, or is the base's own."""
        owner = self.owners.get(name)
        if owner == service:
            return None
        if owner is not None:
            text = f"{self.place((OWNERS, name))} keeps {name} for Service {owner}"
            return Mistake(f"{PREFIX}expose", text, conflict=True, kept=True)
        own = self.part("backends").get(name)
        if isinstance(own, Mapping) and own.keys() & {"servers", "nodes"}:
            text = f"{self.place(('backends', name))} has servers of its own in {name}; `{OWNERS}` there lets one join"
            return Mistake(f"{PREFIX}expose", text, conflict=True)
        return None

    def _conflicts(self, path: Path, ours: object) -> Iterator[Mistake]:
        """Where it says something else at the same place."""
        theirs = at(self.tree, path)
        if theirs is None or theirs == ours or (path[-1] == "bind" and _endpoints(theirs) == _endpoints(ours)):
            return
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            for key, value in ours.items():
                yield from self._conflicts((*path, key), value)
            return
        text = f"the Service makes it {_short(ours)}, {self.place(path)} says {_short(theirs)}"
        yield Mistake(dotted(path), text, conflict=True)


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
        text = 'names, and the Service each is kept for, are expected, such as `smtp: "mail/mail"`'
        violations.append(Violation((OWNERS,), text, read.line((OWNERS,))))
    if violations:
        raise InvalidError(file, tuple(violations))
    return Base(file=file, tree=tree, owners=owners, read=read)


def _minus(ours: Mapping[str, Any], theirs: object, said: Collection[str]) -> dict[str, Any]:
    if not isinstance(theirs, Mapping):
        return dict(ours)
    left: dict[str, Any] = {}
    for key, value in ours.items():
        if isinstance(value, Mapping) and isinstance(theirs.get(key), Mapping):
            left[key] = _minus(value, theirs[key], said)
        elif key not in theirs or (key in said and theirs[key] != value):
            left[key] = value
    return left


def _endpoints(texts: object) -> frozenset[str] | None:
    """Addresses however they are written."""
    try:
        return frozenset(str(endpoint(text)) for text in texts) if isinstance(texts, list) else None
    except ValueError:
        return None


def _short(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) else describe(value)
