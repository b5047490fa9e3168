"""Sections of a haproxy.cfg into a desired state, and every line that it cannot express, with the reason.

Nothing is guessed: a directive is either known here, and then becomes what it means, or it is told. And nothing is
opened: a frontend with a rule that turns clients away, and cannot be expressed, is left out whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field, frozen

from agent.host.haproxy import CA_FILES
from agent.once.conditions import Acl, duration, endpoint, matcher, milliseconds, number, terms
from agent.once.haproxycfg import Line, Section, inherited

_BALANCE = ("roundrobin", "leastconn", "source", "first", "random")
_BY_PORT = {25: "smtp", 587: "smtp", 143: "imap", 110: "pop3", 80: "http"} | dict.fromkeys((443, 465, 993, 995), "tls")
_TIMEOUTS = ("connect", "client", "server")
_HELLO = re.compile(r"tcp-request\s+content\s+accept\s+if\s+\{\s*req[._]ssl_hello_type\s+(gt 0|1)\s*\}$")
_LOGS = "logging: haproxy.log in agent.toml"
_SILENT = {"connect": "5s", "client": "1h", "server": "1h"}  # what holds where a desired state names none
# Rules that leave every client what it is; each other one may turn some away, or be about what it made of them.
_HARMLESS = re.compile(
    r"tcp-(?:request|response)\s+(?:inspect-delay|(?:connection|session|content)\s+"
    r"(?:track-sc\d|capture|set-log-level|set-nice|set-tos|set-mark|set-priority|set-var|unset-var|sc-))"
)
_REFUSING = ("deny", "tarpit", "reject", "silent-drop", "return", "auth")


@frozen
class Left:
    """A line that is not in the desired state, and why."""

    place: str
    text: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}: {self.why}"

    @property
    def number(self) -> int:
        """Of the line."""
        return int(self.place.rpartition(":")[2])


@define
class Translation:
    """`document`: the desired state, as YAML has it. `left`: what is not in it."""

    document: dict[str, Any]
    left: list[Left] = field(factory=list)


def translate(sections: list[Section]) -> Translation:
    """All of it."""
    work = _Work()
    for section, defaults in inherited(sections):
        work.section(section, defaults)
    return work.done()


class _Work:
    def __init__(self) -> None:
        self.left: list[Left] = []
        self.frontends: dict[str, dict[str, Any]] = {}
        self.backends: dict[str, dict[str, Any]] = {}
        self.timeouts: dict[str, list[tuple[int, Line]]] = {}
        self.heads: dict[str, Line] = {}
        self.refusing: set[str] = set()  # backends that turn clients away, by rules or because they are disabled
        self.lost: list[tuple[str, str]] = []  # frontends, and where a use_backend that is lost leads
        self._maxconn = 0  # of the last defaults
        self._maxconns: dict[str, int] = {}  # what each frontend inherits, 0: HAProxy's own
        self._names: dict[tuple[str, str], str] = {}

    def leave(self, line: Line, why: str) -> None:
        self.left.append(Left(line.place, line.text, why))

    def name(self, kind: str, name: str, line: Line) -> str:
        """As a desired state may have it; renamed where it must be, and said."""
        if (kind, name) not in self._names:
            self._names[kind, name] = self.fresh(kind, name, line)
        return self._names[kind, name]

    def fresh(self, kind: str, name: str, line: Line) -> str:
        """One that nobody else has."""
        bare = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63].strip("-._") or "unnamed"
        taken, fresh, count = {one for (other, _), one in self._names.items() if other == kind}, bare, 2
        while fresh in taken:
            fresh, count = f"{bare[:58]}-{count}", count + 1
        self._names[kind, f"{name}\n{count}" if (kind, name) in self._names else name] = fresh
        if fresh != name:
            self.leave(line, f"{name} is called {fresh} now")
        return fresh

    # --- sections

    def section(self, one: Section, defaults: Section | None) -> None:
        head = Line(one.place, f"{one.kind} {one.name}".strip(), ())
        if one.kind in ("frontend", "listen", "backend"):
            mode = _mode(one) or (_mode(defaults) if defaults else None) or "tcp"
            if one.lost or mode != "tcp":
                why = f"mode {mode}: the agent forwards TCP; terminate TLS and speak HTTP behind it"
                self._leave_all(one, head, "its head cannot be read" if one.lost else why)
                return
            if one.kind in ("frontend", "listen"):
                _Frontend(self, one, head, defaults).translate()
            if one.kind in ("backend", "listen"):
                _Backend(self, one, head, defaults).translate()
        elif one.kind == "defaults":
            self._defaults(one, head)
        elif one.kind == "disabled":
            self._leave_all(one, head, "disabled there; left out here")
        elif one.kind in ("global", ""):
            for line in one.lines:
                self.leave(line, "agent.toml's, or the agent's own")
        else:
            self._leave_all(one, head, "nothing of the kind here")

    def _leave_all(self, one: Section, head: Line, why: str) -> None:
        self.leave(head, why)
        for line in one.lines:
            self.leave(line, "in a section that is left out")

    def _defaults(self, one: Section, head: Line) -> None:
        if one.lost:
            self._leave_all(one, head, "its head cannot be read, or what it is from is not here")
        for line in () if one.lost else one.lines:
            known = line.words[:1] in (("mode",), ("default-server",)) or self.timeout(line, _TIMEOUTS)
            if _is_maxconn(line):
                self._maxconn = number(line.words[1]) or 0
                continue  # each frontend takes it
            if line.words[:1] == ("load-server-state-from-file",):
                self.leave(line, "the agent's own")
            elif not known:
                self.leave(line, _why(line))

    def timeout(self, line: Line, of: tuple[str, ...]) -> bool:
        """Whether it was a timeout of this kind of section. There they are of each, here of all."""
        if line.words[:1] != ("timeout",) or len(line.words) != 3 or line.words[1] not in of:
            return False
        found = milliseconds(line.words[2])
        if not found:
            return False
        self.timeouts.setdefault(line.words[1], []).append((found, line))
        return True

    def frontend(self, name: str, one: dict[str, Any], head: Line, inherits: int) -> None:
        self.heads[name] = head
        self.frontends[name] = one
        self._maxconns[name] = inherits

    def done(self) -> Translation:
        document: dict[str, Any] = {"version": 1}
        if defaults := self._shared():
            document["defaults"] = defaults
        self._close()
        for name, one in self.frontends.items():
            for target in _targets(one):
                if target not in self.backends:
                    self.leave(self.heads[name], f"backend {target} is not here")
        used = {target for one in self.frontends.values() for target in _targets(one)}
        self.backends = {name: one for name, one in self.backends.items() if one["servers"] or name in used}
        self._applications()
        document |= {"frontends": self.frontends, "backends": self.backends}
        return Translation(document, sorted(self.left, key=lambda one: one.number))

    def _close(self) -> None:
        """A backend that turns clients away does so for every frontend that leads there."""
        empty = {name for name, one in self.backends.items() if not one["servers"]} | self.refusing
        lost = {name for name, target in self.lost if target in empty or target not in self.backends}
        for name in list(self.frontends):
            if name in lost or self.refusing & {*_targets(self.frontends[name])}:
                why = "left out: a backend of it turns clients away, by rules that cannot be expressed"
                self.leave(self.heads[name], why)
                del self.frontends[name]

    def _shared(self) -> dict[str, Any]:
        """What is one for all in a desired state: timeouts, and the maxconn that most frontends inherit."""
        defaults: dict[str, Any] = {}
        inherited = {name: self._maxconns[name] for name in self.frontends}
        common = _most([one for one in inherited.values() if one]) or (0 if inherited else self._maxconn)
        if common:
            defaults["maxconn"] = common
        for name, one in self.frontends.items():
            if "maxconn" in one or inherited[name] == common:
                continue
            if inherited[name]:
                one["maxconn"] = inherited[name]
            else:
                self.leave(self.heads[name], f"maxconn was HAProxy's own, and is {common} here")
        chosen = {}
        for name, found in self.timeouts.items():
            longest = max(length for length, _ in found)
            chosen[name] = duration(longest)
            for length, line in found:
                if length != longest:
                    self.leave(line, f"one for all here: the longest, {duration(longest)}")
        if chosen:
            defaults["timeouts"] = {name: chosen[name] for name in _SILENT if name in chosen}
        for name, always in _SILENT.items():
            if name not in chosen and self.heads:
                head = next(iter(self.heads.values()))
                self.leave(head, f"no timeout {name} there, which is for ever; {always} here")
        return defaults

    def _applications(self) -> None:
        """What the probe speaks, by the ports that clients use: the only thing that a haproxy.cfg does not say."""
        for one in self.frontends.values():
            ports = {int(bind.rpartition(":")[2]) for bind in one["bind"]}
            spoken = {"tls"} if one.get("routes") else {_BY_PORT.get(port, "raw") for port in ports}
            for target in _targets(one):
                if target in self.backends and len(spoken) == 1 and spoken != {"raw"}:
                    self.backends[target] = {"application": next(iter(spoken)), **self.backends[target]}


def _closes(line: Line) -> bool:
    """Whether a line that is not expressed may turn clients away."""
    first = (line.text.split() or [""])[0]
    if first.startswith("tcp-request"):
        return _HARMLESS.match(line.text) is None
    if first in ("http-request", "<a_actionitems>", "<a_acl>"):
        return first != "http-request" or not line.words or bool({*line.words} & {*_REFUSING})
    return first == "disabled"


def _inherited_rules(section: Section, defaults: Section | None) -> list[Line]:
    """Rules of a defaults section, which hold for each frontend and backend; `enabled` takes `disabled` back."""
    enabled = any(line.words == ("enabled",) for line in section.lines)
    found = [line for line in (defaults.lines if defaults else ()) if _closes(line)]
    return [line for line in found if not (enabled and line.words == ("disabled",))]


def _targets(one: dict[str, Any]) -> list[str]:
    found = [one.get("backend"), *(route["backend"] for route in one.get("routes", ()))]
    return [target for target in found if target is not None]


def _mode(one: Section) -> str | None:
    found = [line.words[1] for line in one.lines if line.words[:1] == ("mode",) and len(line.words) > 1]
    return found[-1] if found else None


def _why(line: Line) -> str:
    if line.words[:1] == ("log",) or "log" in line.text.partition(" ")[2] or line.text.startswith(("<dontlog", "<log")):
        return _LOGS
    return "cannot be expressed here"


# --- frontends --------------------------------------------------------------------------------------------------


class _Frontend:
    def __init__(self, work: _Work, section: Section, head: Line, defaults: Section | None) -> None:
        self.work, self.section, self.head, self.defaults = work, section, head, defaults
        self.lost: list[tuple[str, Line]] = []
        self.found: dict[str, Any] = {"bind": []}
        self.binds: list[tuple[str, bool, Line]] = []
        self.routes: list[dict[str, Any]] = []
        self.acls: dict[str, Acl | None] = {}
        self.default: tuple[str, Line] | None = None
        self.waits = False
        self.final = False  # a use_backend without a condition: nothing behind it is ever reached
        self.inspects: list[Line] = []
        self.period: tuple[str, Line] | None = None
        self.tracked: Line | None = None
        self.closed: list[Line] = []  # rules that turn clients away, and are lost
        self.rules: list[Line] = []  # rules that turn clients away, and are expressed
        found = [number(line.words[1]) for line in (defaults.lines if defaults else ()) if _is_maxconn(line)]
        self.inherits = (found[-1] if found else 0) or 0

    def translate(self) -> None:
        acls = [line for line in self.section.lines if line.text.split()[:1] == ["acl"]]
        for line in acls:  # they may stand anywhere before their use; all of them first costs nothing
            self._acl(line)
        handlers = self._handlers()
        for line in self.section.lines:
            handler = handlers.get(line.words[0] if line.words else "")
            if line in acls or (handler is not None and handler(line)):
                continue
            if _closes(line):
                self.closed.append(line)
            elif self.section.kind != "listen" or not _of_backend(line):
                self.work.leave(line, _why(line))
                if line.words[:1] == ("use_backend",) and len(line.words) > 1:
                    self.lost.append((line.words[1], line))
        self.closed += _inherited_rules(self.section, self.defaults)
        for one in (self.tracked, self.period[1] if self.period else None, *(() if self.routes else self.inspects)):
            if one is not None:
                self.work.leave(one, "cannot be expressed here")
        self._settle_binds()
        if self.found.get("accept_proxy"):
            # A connection rule tests who connects, a session rule whom the header names: only that is known here.
            self.closed += [line for line in self.rules if line.words[1] == "connection"]
        if self.closed or not self.found["bind"]:
            for line in self.closed:
                self.work.leave(line, "turns clients away, and cannot be expressed: the whole frontend is left out")
            why = "left out: it would be open to more clients than now" if self.closed else "no address of it is left"
            self.work.leave(self.head, why)
            return
        self._place()

    def _place(self) -> None:
        name = self.section.name
        if self.work.name("frontend", name, self.head) in self.work.frontends:
            self.work.leave(self.head, "the name is there twice; the second is left out")
            return
        target = self.default[0] if self.default else name if self.section.kind == "listen" else None
        if target is None and self.routes:
            self.work.leave(self.head, "left out: no default_backend, so who sends no name is refused there")
            return
        if self.routes and not self.waits:
            self.work.leave(self.head, "no inspect-delay there: names are waited for, 5s, here")
        if self.routes:
            self.found["routes"] = [
                {"sni": list(one["sni"]), "backend": self.work.name("backend", one["of"], one["line"])}
                for one in self.routes
            ]
        if target is not None:
            line = self.default[1] if self.default else self.head
            self.found["backend"] = self.work.name("backend", target, line)
        called = self.work.name("frontend", name, self.head)
        self.work.frontend(called, self.found, self.head, self.inherits)
        self.work.lost += [(called, self.work.name("backend", target, line)) for target, line in self.lost]

    def _handlers(self) -> dict[str, Callable[[Line], bool]]:
        return {
            "bind": self._bind,
            "mode": lambda _: True,
            "maxconn": self._maxconn,
            "timeout": lambda line: self.work.timeout(line, ("client",)),
            "default_backend": self._default_backend,
            "use_backend": self._use_backend,
            "tcp-request": self._tcp_request,
            "stick-table": self._stick_table,
        }

    def _bind(self, line: Line) -> bool:
        words = list(line.words[2:])
        if "name" in words[:-1]:
            at = words.index("name")
            del words[at : at + 2]
        both, only = "v4v6" in words, "v6only" in words
        accept = "accept-proxy" in words
        words = [one for one in words if one not in ("v4v6", "v6only", "accept-proxy")]
        if words:
            why = "TLS ends behind the agent, not in it" if "ssl" in words else f"{' '.join(words)} is not known here"
            self.work.leave(line, f"{why}; the address is left out")
            return True
        for text in line.words[1].split(",") if len(line.words) > 1 else ():
            found = endpoint(text)
            if found is None:
                self.work.leave(line, f"{text} is no single address and port")
                continue
            if found.startswith("[::]") and not both and not only and not text.startswith("ipv6@"):
                self.work.leave(line, "takes IPv6 only here; add 0.0.0.0 where it took both")
            more = [f"0.0.0.0:{found.rpartition(':')[2]}"] if both and found.startswith("[::]") else []
            self.binds += [(one, accept, line) for one in (found, *more)]
        return len(line.words) > 1

    def _settle_binds(self) -> None:
        mixed = len({accept for _, accept, _ in self.binds}) > 1
        for address, accept, line in self.binds:
            if mixed and accept:
                self.work.leave(
                    line, "accept-proxy is of the whole frontend here: make one of its own for this address"
                )
            elif address not in self.found["bind"]:
                self.found["bind"].append(address)
        if self.binds and not mixed and self.binds[0][1]:
            self.found["accept_proxy"] = True

    def _maxconn(self, line: Line) -> bool:
        found = number(line.words[1]) if _is_maxconn(line) else None
        if not found:
            return False
        self.found["maxconn"] = found
        return True

    def _default_backend(self, line: Line) -> bool:
        if len(line.words) != 2 or self.final:
            return False
        if self.default is not None:  # the last one counts (M)
            self.work.leave(self.default[1], "another one follows")
        self.default = (line.words[1], line)
        return True

    def _acl(self, line: Line) -> None:
        name, words = [*line.text.split(), ""][1], line.words[2:]
        found = matcher(words) if line.words[1:2] == (name,) else None
        if words == ("src", "-m", "sub", ":"):
            found = Acl("helper", ())
        before = self.acls.get(name)
        if name in self.acls and (found is None or before is None or before.kind != found.kind):
            found = None
        elif before is not None and found is not None:
            found = Acl(found.kind, before.patterns + found.patterns)
        if found is None:
            self.work.leave(line, "only names by SNI and sources by address are known here")
        elif (
            found.kind == "sni" and "-i" not in words and "*" not in found.patterns and not words[0].endswith(",lower")
        ):
            self.work.leave(line, "names are the same in capitals here")
        self.acls[name] = found

    def _use_backend(self, line: Line) -> bool:
        if self.final:
            self.work.leave(line, "never reached: a use_backend without a condition stands before it")
            return True
        if len(line.words) == 2:
            if self.default is not None:
                self.work.leave(self.default[1], "never reached")
            self.default, self.final = (line.words[1], line), True
            return True
        if len(line.words) < 4 or line.words[2] != "if":
            return False
        found = terms(line.words[3:], self.acls)
        if found is None or any(not one.positive or one.helped or one.acl.kind != "sni" for one in found):
            return False
        inline = [one for one in found if one.inline and "*" not in one.acl.patterns]
        if inline and "-i" not in line.words and "req.ssl_sni,lower" not in line.words:
            self.work.leave(line, "names are the same in capitals here")
        sni = [pattern for one in found for pattern in one.acl.patterns]
        self.routes.append({"sni": list(dict.fromkeys(sni)), "of": line.words[1], "line": line})
        return True

    def _tcp_request(self, line: Line) -> bool:
        words = line.words[1:]
        if words[:1] == ("inspect-delay",) and len(words) == 2:
            self.waits = True
            if self.routes or milliseconds(words[1]) != 5_000:
                self.work.leave(line, "5s here")
            return True
        if _HELLO.match(" ".join(line.words)):
            self.inspects.append(line)
            return True
        if words[:1] not in (("connection",), ("session",), ("content",)):
            return False
        if words[1:] == ("track-sc0", "src") and self.tracked is None:
            self.tracked = line
            return True
        if words[1:2] != ("reject",) or len(words) < 4 or words[2] not in ("if", "unless"):
            return False
        rate = re.fullmatch(r"reject if \{ sc0_conn_rate gt (\d{1,9}) \}", " ".join(words[1:]))
        if rate and self.period and self.tracked and self.tracked.words[1] == words[0]:
            self.found["rate_limit"] = {"connections": int(rate[1]), "period": self.period[0]}
            self.period = self.tracked = None
            self.rules.append(line)
            return True
        return self._access(line, words[2] == "if", words[3:])

    def _access(self, line: Line, on_match: bool, condition: tuple[str, ...]) -> bool:  # noqa: FBT001  # if or unless
        """Deny: who matches one of several. Allow, once: who matches none of several is turned away."""
        found = terms(condition, self.acls)
        if found is None:
            found = terms(condition, self.acls, together=True)  # reject if !a !b: who is in neither
            if found is None or not on_match or any(one.positive for one in found):
                return False
            denies = False
        else:
            if any(not one.positive for one in found) and len(found) > 1:
                return False
            denies = found[0].positive == on_match
        if self.inspects and line.words[1] == "content":
            return False  # who has said hello is through already
        if any(one.acl.kind != "src" or (one.helped and not one.positive) for one in found):
            return False
        patterns = [pattern for one in found for pattern in one.acl.patterns]
        if not denies and "allow" in self.found:
            return False  # two of them let in only who is in both
        key = "deny" if denies else "allow"
        self.found[key] = [*self.found.get(key, ()), *patterns]
        self.rules.append(line)
        return True

    def _stick_table(self, line: Line) -> bool:
        words = dict(zip(line.words[1::2], line.words[2::2], strict=False))
        rate = re.fullmatch(r"conn_rate\((\d{1,9}(?:ms|s|m|h|d)?)\)", words.get("store", ""))
        known = set(words) == {"type", "size", "expire", "store"} and words["type"] in ("ip", "ipv6")
        length = milliseconds(rate[1]) if rate else None
        if not length or not known or self.period is not None or len(line.words) != 9:
            return False
        self.period = (duration(length), line)
        if words["type"] == "ip":
            self.work.leave(line, "of IPv6 clients too, here")
        return True


def _is_maxconn(line: Line) -> bool:
    return line.words[:1] == ("maxconn",) and len(line.words) == 2 and number(line.words[1]) is not None


# --- backends ---------------------------------------------------------------------------------------------------

_OF_BACKENDS = tuple((word,) for word in ("balance", "server", "default-server", "option", "http-check", "hash-type"))
_OF_BACKENDS += (("timeout",),)
_VALUED = ("port", "inter", "rise", "fall", "weight", "verify", "check-sni", "verifyhost", "ca-file")
_FLAGS = ("check", "backup", "disabled", "check-ssl", "check-send-proxy")
_PROXY = {"send-proxy": "v1", "send-proxy-v2": "v2"}
# Not known here, and with a value behind them, which must not be taken for a word of its own.
_OTHERS = frozenset(
    """
    agent-addr agent-inter agent-port agent-send addr alpn check-alpn check-proto ciphers ciphersuites cookie crl-file
    crt curves downinter error-limit fastinter guid id init-addr log-bufsize log-proto max-reuse maxconn maxqueue
    minconn namespace npn observe on-error on-marked-down on-marked-up pool-conn-name pool-low-conn pool-max-conn
    pool-purge-delay proto proxy-v2-options redir resolvers resolve-net resolve-opts resolve-prefer shard slowstart sni
    socks4 source ssl-max-ver ssl-min-ver track usesrc ws
""".split()  # noqa: SIM905  # as a paragraph it can be read
)


class _Backend:
    def __init__(self, work: _Work, section: Section, head: Line, defaults: Section | None) -> None:
        self.work, self.section, self.head = work, section, head
        self.found: dict[str, Any] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.health: dict[str, Any] = {}
        self.proxies: list[tuple[str, Line]] = []
        self.checks: list[tuple[dict[str, Any], str, Line]] = []
        self.headers: list[tuple[bool, bool, Line]] = []  # whether there is one, at the data port or elsewhere
        self.kind: tuple[str, Line] | None = None  # the check option that counts: the last one (M)
        self.http: dict[str, Any] = {}
        self.method = ""
        self.rules: list[Line] = []
        self.consistent: Line | None = None
        self.closed = [] if section.kind == "listen" else _inherited_rules(section, defaults)
        self.default = [word for line in (defaults.lines if defaults else ()) for word in _defaults_of(line)]

    def translate(self) -> None:
        for line in self.section.lines:
            words = line.words
            if words[:1] == ("default-server",):
                self.default += _defaults_of(line)  # holds for the servers below it, and for them only (M)
                continue
            known = (
                words[:1] == ("mode",)
                or self.work.timeout(line, ("connect", "server"))
                or (words[:2] == ("timeout", "check") and self._check_timeout(line))
                or (words[:1] == ("balance",) and self._balance(line))
                or (words == ("hash-type", "consistent") and self._consistent(line))
                or (words[:1] == ("option",) and self._option(line))
                or (words[:1] == ("http-check",) and self._http_check(line))
                or (words[:1] == ("server",) and len(words) > 2 and self._server(line))
            )
            if not known and (self.section.kind != "listen" or _of_backend(line)):
                self.work.leave(line, _why(line))
                if _closes(line):
                    self.closed.append(line)
        name = self.work.name("backend", self.section.name, self.head)
        if name in self.work.backends:
            self.work.leave(self.head, "the name is there twice; the second is left out")
            return
        if self.closed:
            self.work.refusing.add(name)
        if self.found.get("balance") == "source" and self.consistent is None:
            self.work.leave(self.head, "balance source: by a map there, consistent here")
        self._settle()
        self.work.backends[name] = {
            **self.found,
            "servers": self.servers,
            **({"health": self.health} if self.health else {}),
        }
        if not self.servers:
            self.work.leave(self.head, "no server of it can be expressed")

    def _check_timeout(self, line: Line) -> bool:
        length = milliseconds(line.words[2]) if len(line.words) == 3 else None
        if length:
            self.health["timeout"] = duration(length)
        return bool(length)

    def _consistent(self, line: Line) -> bool:
        self.consistent = line
        return True

    def _balance(self, line: Line) -> bool:
        if len(line.words) != 2 or line.words[1] not in _BALANCE:
            return False
        self.found["balance"] = line.words[1]
        return True

    def _option(self, line: Line) -> bool:
        words = line.words[1:]
        if words[:1] not in (("httpchk",), ("tcp-check",), ("ssl-hello-chk",)):
            return False
        if self.kind is not None:
            self.work.leave(self.kind[1], "another check follows")
        self.kind = (words[0], line)
        if words[0] == "ssl-hello-chk":
            self.work.leave(line, "asks with a hello of old there; a whole handshake here")
        if words[0] != "httpchk":
            return True
        self.http, self.method = {}, words[1] if len(words) > 2 else "OPTIONS"
        if len(words) > 1:
            self.http["path"] = words[2] if len(words) > 2 else words[1]
        version = line.text.partition(" HTTP/")[2]
        host = re.match(r"1\.[01]\\r\\nHost:(?:\\ )?([A-Za-z0-9.-]+)$", version)
        if host:
            self.http["host"] = host[1]
        elif version not in ("", "1.0"):
            self.work.leave(line, "by HTTP/1.0 here, and without those headers")
        return True

    def _http_check(self, line: Line) -> bool:
        words = list(line.words[1:])
        self.rules.append(line)
        if words[:2] == ["expect", "status"] and len(words) == 3 and number(words[2]) is not None:
            self.http["status"] = number(words[2])
            return True
        if words[:1] != ["send"]:
            return False
        rest, told, method = words[1:], {}, "OPTIONS"
        while rest:
            key = rest.pop(0)
            if key == "hdr" and len(rest) > 1 and rest[0].lower() == "host":
                told["host"] = rest[1]
                rest = rest[2:]
            elif key in ("uri", "meth", "ver") and rest:
                value = rest.pop(0)
                if key == "uri":
                    told["path"] = value
                elif key == "meth":
                    method = value
            else:
                return False
        self.http |= told
        self.method = method
        return True

    def _server(self, line: Line) -> bool:
        address = endpoint(line.words[2])
        if address is None or line.words[2].startswith((":", "*")):
            self.work.leave(line, f"{line.words[2]} is no address and port: a desired state names addresses")
            return True
        told = _Told.of([*self.default, *line.words[3:]])
        if told.unknown:
            self.work.leave(line, f"{', '.join(told.unknown)}: not known here; the server is there without it")
        one: dict[str, Any] = {"address": address}
        weight = number(told.values.get("weight", "1"))
        if weight is None:
            self.work.leave(line, "its weight is no number")
        elif weight != 1:
            one["weight"] = weight
        one |= {key: True for key in ("backup", "disabled") if key in told.flags}
        kind = f"server of {self.section.name}"
        name = self.work.name(kind, line.words[1], line)
        if name in self.servers:
            name = self.work.fresh(kind, line.words[1], line)
        self.servers[name] = one
        self.proxies.append((told.proxy, line))
        if "check" in told.flags and told.proxy != "none":
            # It carries a header where it uses the data port and names none (FACTS, HAProxy 8).
            header = "check-send-proxy" in told.flags or "port" not in told.values
            self.headers.append((header, told.values.get("port", _port(address)) == _port(address), line))
        elif "check-send-proxy" in told.flags:
            self.work.leave(line, "check-send-proxy without send-proxy: its check carries no header here")
        self.checks.append((self._check(told, line), _port(address), line))
        return True

    def _check(self, told: _Told, line: Line) -> dict[str, Any]:
        if "check" not in told.flags:
            return {"type": "none"}
        found: dict[str, Any] = {"interval": "2s"}  # HAProxy's own
        for key, name in (("port", "port"), ("rise", "rise"), ("fall", "fall")):
            if key in told.values:
                value = number(told.values[key])
                if value is None:
                    self.work.leave(line, f"{key} is no number")
                else:
                    found[name] = value
        if "inter" in told.values:
            length = milliseconds(told.values["inter"])
            if length:
                found["interval"] = duration(length)
            else:
                self.work.leave(line, "inter is no duration")
        if "check-ssl" in told.flags:
            found |= {"ssl": True, "verify": told.values.get("verify", "required") == "required"}
            hosts = {told.values[key] for key in ("check-sni", "verifyhost") if key in told.values}
            if len(hosts) == 1:
                found["host"] = hosts.pop()
            elif hosts:
                self.work.leave(line, "check-sni and verifyhost are one here")
            if "ca-file" in told.values and told.values["ca-file"] not in CA_FILES:
                self.work.leave(line, "ca-file: haproxy.ca_file in agent.toml")
        return found

    def _settle(self) -> None:
        """What is of each server there and of all of them here: the most frequent, and the others are told."""
        proxy = _most([one for one, _ in self.proxies])
        if proxy is not None and proxy != "v2":
            self.found["proxy_protocol"] = proxy
        for one, line in self.proxies:
            if one != proxy:
                self.work.leave(line, f"PROXY {one}: one for the whole backend here, {proxy}")
        if any("port" in one for one, _, _ in self.checks):  # named for one of them, it is the others' own
            self.checks = [
                ({"port": int(own)} | one if one.get("type") != "none" else one, own, line)
                for one, own, line in self.checks
            ]
        chosen = _most([tuple(sorted(one.items())) for one, _, _ in self.checks])
        for check, _, line in self.checks:
            if tuple(sorted(check.items())) != chosen:
                self.work.leave(line, "its check is another than the others': one for the whole backend here")
        if chosen is not None:
            self._health(dict(chosen))

    def _health(self, check: dict[str, Any]) -> None:
        kind = self.kind[0] if self.kind else ""
        if kind != "httpchk":
            for line in self.rules:
                self.work.leave(line, "without option httpchk it says nothing")
        if check.get("type") == "none":
            self.health = {"type": "none"}
            return
        ssl = check.pop("ssl", False)
        verify = check.pop("verify", False)
        host = check.pop("host", None)
        found: dict[str, Any] = {}
        if kind == "httpchk" and self.kind is not None:
            found = {"type": "http", **({"tls": True} if ssl else {}), "path": "/", **self.http}
            if self.method != "GET":
                self.work.leave(self.kind[1], f"asks by {self.method} there, by GET here")
            if "status" not in self.http:
                self.work.leave(self.kind[1], "any 2xx or 3xx is well there, 200 here: http-check expect status")
        elif ssl or kind == "ssl-hello-chk":
            found = {"type": "tls"}
        if ssl and verify:
            found["verify"] = True
        if host is not None and found:
            found.setdefault("host", host)
        if any(header != own for header, own, _ in self.headers):
            sent = _most([header for header, _, _ in self.headers])
            found["send_proxy"] = sent
            for header, _, line in self.headers:
                if header != sent:
                    self.work.leave(line, "whether its check carries a header is one for the whole backend here")
        self.health = {**found, **check, "timeout": check["interval"], **self.health}


def _of_backend(line: Line) -> bool:
    return line.words[:1] in _OF_BACKENDS and line.words[:2] != ("timeout", "client")


@frozen
class _Told:
    """The words behind a server: flags, values, the PROXY version, and what is not known."""

    flags: frozenset[str]
    values: dict[str, str]
    proxy: str
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, words: list[str]) -> _Told:
        flags: set[str] = set()
        proxies: set[str] = set()
        values: dict[str, str] = {}
        unknown: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word in _PROXY:
                proxies.add(_PROXY[word])
            elif word in _VALUED and rest:
                values[word] = rest.pop(0)
            elif word in _FLAGS:
                flags.add(word)
            elif word.removeprefix("no-") in _FLAGS:
                flags.discard(word.removeprefix("no-"))
            elif word.removeprefix("no-") in _PROXY:
                proxies.discard(_PROXY[word.removeprefix("no-")])
            elif word == "enabled":
                flags.discard("disabled")
            elif word:
                unknown += [word, *([rest.pop(0)] if word in _OTHERS and rest else [])]
        # Both: v2 is sent (M).
        return cls(frozenset(flags), values, max(proxies, default="none"), tuple(unknown))


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _defaults_of(line: Line) -> Iterator[str]:
    if line.words[:1] == ("default-server",):
        yield from line.words[1:]


def _most(found: list[Any]) -> Any:
    return Counter(found).most_common(1)[0][0] if found else None
