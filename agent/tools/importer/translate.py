"""Sections of a haproxy.cfg into a desired state, and every line that it cannot express, with the reason.

Nothing is guessed: a directive is either known here, and then becomes what it means, or it is listed. And nothing is
opened: a frontend with a rule that turns clients away, and cannot be expressed, is left out whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import define, field

from agent.haproxy.observed import FRONTEND_PREFIX
from agent.tools.importer import skipped, timing
from agent.tools.importer.backend import CHECK_OPTIONS, BackendReader
from agent.tools.importer.conditions import number
from agent.tools.importer.frontend import FrontendReader
from agent.tools.importer.haproxycfg import Line, Section, inherited
from agent.tools.importer.timing import Timing

_BY_PORT = {25: "smtp", 587: "smtp", 143: "imap", 110: "pop3", 80: "http"} | dict.fromkeys((443, 465, 993, 995), "tls")
_INHERITED = ("mode", "default-server", "default_backend", "balance", "hash-type", "http-check")
_SETTINGS = ("maxconn", "user", "group", "chroot", "log")
_SECRETS = re.compile(r"(\bstats\s+auth\s+|\bpassword\s+).*", re.IGNORECASE | re.DOTALL)


@define
class Translation:
    """What became of a configuration."""

    document: dict[str, Any]
    """the desired state, as YAML has it"""
    left: list[skipped.SkippedLine] = field(factory=list)
    """what is not in it"""


def translate(sections: list[Section], resolve: Callable[[str], str | None] | None = None) -> Translation:
    """All of it. `resolve`: the address of a host name, None where it has none; left out, names are listed."""
    work = _Work(resolve)
    for section, defaults in inherited(sections):
        work.files.setdefault(section.place.rpartition(":")[0])
        work.section(section, defaults)
    return work.done()


class _Work:
    def __init__(self, resolve: Callable[[str], str | None] | None) -> None:
        self.resolve = resolve
        self.left: list[skipped.SkippedLine] = []
        self.files: dict[str, None] = {}  # in their order
        self.frontends: dict[str, dict[str, Any]] = {}
        self.backends: dict[str, dict[str, Any]] = {}
        self.timings: dict[tuple[str, str], Timing] = {}
        self.unusable: set[str] = set()  # backends of which no server can take a client
        self.frontends_there = False  # whether the files have a frontend, imported or not
        self.heads: dict[str, Line] = {}
        self.heads_of_pools: dict[str, Line] = {}
        self.refusing: set[str] = set()  # backends that turn clients away, by rules or because they are disabled
        self.lost: list[tuple[str, str]] = []  # frontends, and where a use_backend that is lost leads
        self._maxconn = 0  # of the last defaults
        self._maxconns: dict[str, int] = {}  # what each frontend inherits, 0: HAProxy's own
        self._names: dict[tuple[str, str], str] = {}

    def skip(self, line: Line, why: str) -> None:
        self.left.append(skipped.SkippedLine(line.place, _SECRETS.sub(r"\1...", line.text), why))

    def name(self, kind: str, name: str, line: Line) -> str:
        """As a desired state may have it; renamed where it must be, and said."""
        if (kind, name) not in self._names:
            self._names[kind, name] = self.fresh(kind, name, line)
        return self._names[kind, name]

    def fresh(self, kind: str, name: str, line: Line) -> str:
        """One that nobody else has."""
        plain = name.removeprefix(FRONTEND_PREFIX) if kind == "frontend" else name  # a haproxy.cfg of ours
        bare = re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._")[:63].strip("-._") or "unnamed"
        taken, fresh, count = {used for (other, _), used in self._names.items() if other == kind}, bare, 2
        while fresh in taken:
            fresh, count = f"{bare[:58]}-{count}", count + 1
        self._names[kind, f"{name}\n{count}" if (kind, name) in self._names else name] = fresh
        if fresh != plain:
            self.skip(line, f"{name} is called {fresh} now")
        return fresh

    # --- sections

    def section(self, section: Section, defaults: Section | None) -> None:
        head = Line(section.place, f"{section.kind} {section.name}".strip(), ())
        if section.kind in ("frontend", "listen", "backend"):
            self.frontends_there |= section.kind != "backend"
            mode = _mode(section) or (_mode(defaults) if defaults else None) or "tcp"
            section.lost |= any(
                not line.words and line.text.startswith("mode ") for line in section.lines
            )  # in an .if block
            if section.lost or mode != "tcp":
                why = f"mode {mode}: the agent forwards TCP; terminate TLS and speak HTTP behind it"
                self._leave_all(section, head, "its head cannot be read" if section.lost else why)
                return
            if section.kind in ("frontend", "listen"):
                FrontendReader(self, section, head, defaults).translate()
            if section.kind in ("backend", "listen"):
                BackendReader(self, section, head, defaults).translate()
        elif section.kind == "defaults":
            self._defaults(section, head)
        elif section.kind == "disabled":
            self._leave_all(section, head, "disabled there; left out here")
        elif section.kind in ("global", ""):
            for line in section.lines:
                key = line.words[0] if line.words else ""
                where = f"haproxy.{key} in agent.toml"
                if key not in _SETTINGS:
                    where = f"the agent writes the global section itself; `{key}` needs a template of your own"
                self.skip(line, where)
        else:
            self._leave_all(section, head, "nothing of the kind here")

    def _leave_all(self, section: Section, head: Line, why: str) -> None:
        self.skip(head, why)
        for line in section.lines:
            self.skip(line, "in a section that is left out")

    def _defaults(self, section: Section, head: Line) -> None:
        if section.lost:
            self._leave_all(section, head, "its head cannot be read, or what it is from is not here")
        for line in () if section.lost else section.lines:
            words = line.words
            known = (
                (words[:1] and words[0] in _INHERITED)
                or (words[:1] == ("option",) and words[1:2] and words[1] in CHECK_OPTIONS)
                or timing.read(line, (*timing.DEFAULTS, "tunnel", "check")) is not None
            )
            own = "" if skipped.http_only(line) else skipped.own(line)
            if own is not None:
                if own:
                    self.skip(line, own)
                continue
            if skipped.is_maxconn(line):
                self._maxconn = number(line.words[1]) or 0
                continue  # each frontend takes it
            if line.words[:1] == ("load-server-state-from-file",):
                self.skip(line, "the agent's own")
            elif not known:
                self.skip(line, skipped.why(line))

    def frontend(self, name: str, frontend: dict[str, Any], head: Line, inherits: int) -> None:
        self.heads[name] = head
        self.frontends[name] = frontend
        self._maxconns[name] = inherits

    def done(self) -> Translation:
        document: dict[str, Any] = {"version": 1}
        self._close()
        self._keep_reached()
        if defaults := self._shared():
            document["defaults"] = defaults
        for name, section in self.frontends.items():
            for target in _targets(section):
                if target not in self.backends:
                    self.skip(self.heads[name], f"backend {target} is not here")
        self._applications()
        document |= {"frontends": self.frontends, "backends": self.backends}
        order = {file: index for index, file in enumerate(self.files)}
        return Translation(document, sorted(self.left, key=lambda section: (order[section.file], section.number)))

    def _keep_reached(self) -> None:
        """A pool that no imported frontend reaches would only be checked; a file of pools alone is another matter."""
        used = {target for frontend in self.frontends.values() for target in _targets(frontend)}
        for name in [name for name in self.backends if name not in used]:
            if self.frontends_there:
                self.skip(self.heads_of_pools[name], "no imported frontend leads to it; left out")
                del self.backends[name]
            elif not self.backends[name]["servers"]:
                del self.backends[name]

    def _close(self) -> None:
        """A backend that turns clients away does so for every frontend that leads there."""
        empty = (
            {name for name, backend in self.backends.items() if not backend["servers"]} | self.refusing | self.unusable
        )
        lost = {name for name, target in self.lost if target in empty or target not in self.backends}
        for name in list(self.frontends):
            if name in lost or self.refusing & {*_targets(self.frontends[name])}:
                why = "left out: a backend of it turns clients away, by rules that cannot be expressed"
                self.skip(self.heads[name], why)
                del self.frontends[name]

    def _shared(self) -> dict[str, Any]:
        """What is one for all in a desired state: timeouts, and the maxconn that most frontends inherit."""
        defaults: dict[str, Any] = {}
        inherited = {name: self._maxconns[name] for name in self.frontends}
        common = skipped.most([frontend for frontend in inherited.values() if frontend]) or (
            0 if inherited else self._maxconn
        )
        if common:
            defaults["maxconn"] = common
        for name, frontend in self.frontends.items():
            if "maxconn" in frontend or inherited[name] == common:
                continue
            if inherited[name]:
                frontend["maxconn"] = inherited[name]
            else:
                self.skip(self.heads[name], f"maxconn was HAProxy's own, and is {common} here")
        shared = timing.settle(
            self.frontends,
            self.backends,
            self.timings,
            {name: _targets(frontend) for name, frontend in self.frontends.items()},
            self.heads,
            self.skip,
        )
        if shared:
            defaults["timeouts"] = shared
        return defaults

    def _applications(self) -> None:
        """What the probe speaks, by the ports that clients use: the only thing that a haproxy.cfg does not say."""
        for frontend in self.frontends.values():
            ports = {int(bind.rpartition(":")[2]) for bind in frontend["bind"]}
            spoken = {"tls"} if frontend.get("routes") else {_BY_PORT.get(port, "raw") for port in ports}
            for target in _targets(frontend):
                if target in self.backends and len(spoken) == 1 and spoken != {"raw"}:
                    self.backends[target] = {"application": next(iter(spoken)), **self.backends[target]}


def _targets(frontend: dict[str, Any]) -> list[str]:
    targets = [frontend.get("backend"), *(route["backend"] for route in frontend.get("routes", ()))]
    return [target for target in targets if target is not None]


def _mode(section: Section) -> str | None:
    modes = [line.words[1] for line in section.lines if line.words[:1] == ("mode",) and len(line.words) > 1]
    return modes[-1] if modes else None
