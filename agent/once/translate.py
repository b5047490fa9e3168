"""Sections of a haproxy.cfg into a desired state, and every line that it cannot express, with the reason.

Nothing is guessed: a directive is either known here, and then becomes what it means, or it is told.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import define, field, frozen

from agent.once.haproxycfg import Line, Section, inherited

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_DURATION = re.compile(r"(\d+)(us|ms|s|m|h|d)?")
_FACTORS = {"ms": 1, "": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BALANCE = ("roundrobin", "leastconn", "source", "first", "random")
_BY_PORT = {
    25: "smtp",
    587: "smtp",
    143: "imap",
    110: "pop3",
    443: "tls",
    465: "tls",
    993: "tls",
    995: "tls",
    80: "http",
}
_SNI = ("req.ssl_sni", "req_ssl_sni", "req.ssl_sni,lower")
_HELLO = re.compile(r"req[._]ssl_hello_type(?: gt 0| 1)")
_OWN = "the agent's own"
_LOGS = "logging: haproxy.log in agent.toml"


@frozen
class Left:
    """A line that is not in the desired state, and why."""

    place: str
    text: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}: {self.why}"


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
        self.maxconn: int | None = None
        self._names: dict[tuple[str, str], str] = {}
        self._places: dict[str, Line] = {}

    def leave(self, line: Line, why: str) -> None:
        self.left.append(Left(line.place, line.text, why))

    def name(self, kind: str, name: str, line: Line) -> str:
        """As a desired state may have it; renamed where it must be, and said."""
        if (kind, name) not in self._names:
            fresh = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63].strip("-._") or "unnamed"
            taken = {one for (other, _), one in self._names.items() if other == kind}
            number = 2
            while fresh in taken:
                fresh, number = f"{fresh[:58]}-{number}", number + 1
            self._names[kind, name] = fresh
            if fresh != name:
                self.leave(line, f"is called {fresh} now")
        return self._names[kind, name]

    # --- sections

    def section(self, one: Section, defaults: Section | None) -> None:
        head = Line(one.place, f"{one.kind} {one.name}".strip(), ())
        if one.kind in ("frontend", "listen", "backend"):
            mode = _mode(one) or (_mode(defaults) if defaults else None) or "tcp"
            if mode != "tcp":
                self.leave(head, f"mode {mode}: the agent forwards TCP; terminate TLS and speak HTTP behind it")
                for line in one.lines:
                    self.leave(line, f"in a section of mode {mode}")
                return
            if one.kind in ("frontend", "listen"):
                _Frontend(self, one, head).translate()
            if one.kind in ("backend", "listen"):
                _Backend(self, one, head, defaults).translate()
        elif one.kind == "defaults":
            self._defaults(one)
        elif one.kind == "disabled":
            self.leave(head, "disabled there; left out here")
        else:
            why = "agent.toml's, or the agent's own" if one.kind == "global" else "nothing of the kind here"
            if one.kind not in ("global", ""):
                self.leave(head, why)
            for line in one.lines:
                self.leave(line, why)

    def _defaults(self, one: Section) -> None:
        for line in one.lines:
            if self.timeout(line) or line.words[:1] == ("mode",):
                continue
            if line.words[:1] == ("maxconn",) and len(line.words) == 2 and line.words[1].isdecimal():
                self.maxconn = int(line.words[1])
            elif line.words[:2] == ("default-server",) or line.words[:1] == ("default-server",):
                continue  # each backend takes them
            elif line.words[:1] == ("load-server-state-from-file",):
                self.leave(line, _OWN)
            else:
                self.leave(line, _why(line))

    def timeout(self, line: Line) -> bool:
        """Whether it was a timeout that a desired state knows. They are of all frontends there, not of one."""
        if (
            line.words[:1] != ("timeout",)
            or len(line.words) != 3
            or line.words[1] not in ("connect", "client", "server")
        ):
            return False
        milliseconds = _milliseconds(line.words[2])
        if milliseconds is None or milliseconds == 0:
            return False
        self.timeouts.setdefault(line.words[1], []).append((milliseconds, line))
        return True

    def done(self) -> Translation:
        document: dict[str, Any] = {"version": 1}
        defaults: dict[str, Any] = {} if self.maxconn is None else {"maxconn": self.maxconn}
        chosen = {}
        for name, found in self.timeouts.items():
            longest = max(milliseconds for milliseconds, _ in found)
            chosen[name] = duration(longest)
            for milliseconds, line in found:
                if milliseconds != longest:
                    self.leave(line, f"one for all here: the longest, {duration(longest)}")
        if chosen:
            defaults["timeouts"] = {name: chosen[name] for name in ("connect", "client", "server") if name in chosen}
        if defaults:
            document["defaults"] = defaults
        for name, one in self.frontends.items():
            for target in [one.get("backend"), *(route["backend"] for route in one.get("routes", ()))]:
                if target is not None and target not in self.backends:
                    self.leave(self._places[name], f"backend {target} is not here")
        used = {
            target
            for one in self.frontends.values()
            for target in [one.get("backend"), *(route["backend"] for route in one.get("routes", ()))]
        }
        self.backends = {name: one for name, one in self.backends.items() if one["servers"] or name in used}
        self._applications()
        document |= {"frontends": self.frontends, "backends": self.backends}
        return Translation(document, sorted(self.left, key=lambda one: int(one.place.rpartition(":")[2])))

    def frontend(self, name: str, one: dict[str, Any], head: Line) -> None:
        self._places[name] = head
        self.frontends[name] = one

    def _applications(self) -> None:
        """What the probe speaks, by the ports that clients use: the only thing that a haproxy.cfg does not say."""
        for one in self.frontends.values():
            ports = {int(bind.rpartition(":")[2]) for bind in one["bind"]}
            spoken = {"tls"} if one.get("routes") else {_BY_PORT.get(port, "raw") for port in ports}
            for target in [one.get("backend"), *(route["backend"] for route in one.get("routes", ()))]:
                if target in self.backends and len(spoken) == 1 and spoken != {"raw"}:
                    self.backends[target] = {"application": next(iter(spoken)), **self.backends[target]}


def _mode(one: Section) -> str | None:
    found = [line.words[1] for line in one.lines if line.words[:1] == ("mode",) and len(line.words) > 1]
    return found[-1] if found else None


def _why(line: Line) -> str:
    if line.words[:1] == ("log",) or "log" in line.text.partition(" ")[2] or line.text.startswith(("<dontlog", "<log")):
        return _LOGS
    return "cannot be expressed here"


def _milliseconds(text: str) -> int | None:
    found = _DURATION.fullmatch(text)
    if found is None or found[2] == "us":
        return None
    return int(found[1]) * _FACTORS[found[2] or ""]


def duration(milliseconds: int) -> str:
    """`1h`, `90s`, `1500ms`."""
    for unit in ("h", "m", "s"):
        if milliseconds % _FACTORS[unit] == 0:
            return f"{milliseconds // _FACTORS[unit]}{unit}"
    return f"{milliseconds}ms"


def endpoint(text: str) -> str | None:
    """`ADDRESS:PORT` as a desired state writes it; None for a name, a range, a variable."""
    text = text.removeprefix("ipv4@").removeprefix("ipv6@")
    host, _, port = text.rpartition(":")
    host = {"": "0.0.0.0", "*": "0.0.0.0"}.get(host, host.strip("[]"))  # noqa: S104  # read, not bound
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        return None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


# --- frontends --------------------------------------------------------------------------------------------------


@frozen
class _Acl:
    """`kind` sni or src; its patterns."""

    kind: str
    patterns: tuple[str, ...]


class _Frontend:
    def __init__(self, work: _Work, section: Section, head: Line) -> None:
        self.work, self.section, self.head = work, section, head
        self.found: dict[str, Any] = {"bind": []}
        self.routes: list[dict[str, Any]] = []
        self.acls: dict[str, _Acl | None] = {}
        self.default: str | None = None
        self.inspects: list[Line] = []
        self.period: tuple[str, Line] | None = None
        self.tracked: Line | None = None

    def translate(self) -> None:
        for line in self.section.lines:  # acls may stand anywhere before their use; all of them first costs nothing
            if line.words[:1] == ("acl",):
                self._acl(line)
        for line in self.section.lines:
            handler = self._handlers().get(line.words[0] if line.words else "")
            if line.words[:1] == ("acl",) or (handler is not None and handler(line)):
                continue
            if self.section.kind != "listen" or line.words[:1] not in _OF_BACKENDS:
                self.work.leave(line, _why(line))
        for line in (*(() if self.routes else self.inspects), *((self.tracked,) if self.tracked else ())):
            self.work.leave(line, "cannot be expressed here")
        if self.period is not None:
            self.work.leave(self.period[1], "cannot be expressed here")
        name = self.work.name("frontend", self.section.name, self.head)
        target = self.default or (self.section.name if self.section.kind == "listen" else None)
        if not self.found["bind"]:
            self.work.leave(self.head, "no address of it can be expressed, so it is left out")
            return
        if target is None and self.routes:
            target = self.routes[-1]["of"]
            self.work.leave(self.head, f"no default_backend: who sends no name goes to {target} here, and was refused")
        if self.routes:
            self.found["routes"] = [
                {"sni": list(one["sni"]), "backend": self.work.name("backend", one["of"], self.head)}
                for one in self.routes
            ]
        if target is not None:
            self.found["backend"] = self.work.name("backend", target, self.head)
        self.work.frontend(name, self.found, self.head)

    def _handlers(self) -> dict[str, Callable[[Line], bool]]:
        return {
            "bind": self._bind,
            "mode": lambda _: True,
            "maxconn": self._maxconn,
            "timeout": self.work.timeout,
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
        both = "v4v6" in words
        words = [one for one in words if one not in ("v4v6", "v6only")]
        if "accept-proxy" in words:
            words.remove("accept-proxy")
            self.found["accept_proxy"] = True
        if words:
            why = "TLS ends behind the agent, not in it" if "ssl" in words else f"{' '.join(words)} is not known here"
            self.work.leave(line, why)
            return True
        for text in line.words[1].split(",") if len(line.words) > 1 else ():
            found = endpoint(text)
            if found is None:
                self.work.leave(line, f"{text} is no single address and port")
                continue
            more = [f"0.0.0.0:{found.rpartition(':')[2]}"] if both and found.startswith("[::]") else []
            self.found["bind"] += [one for one in (found, *more) if one not in self.found["bind"]]
        return len(line.words) > 1

    def _maxconn(self, line: Line) -> bool:
        if len(line.words) != 2 or not line.words[1].isdecimal():
            return False
        self.found["maxconn"] = int(line.words[1])
        return True

    def _default_backend(self, line: Line) -> bool:
        if len(line.words) != 2 or self.default is not None:
            return False
        self.default = line.words[1]
        return True

    def _acl(self, line: Line) -> None:
        name, words = line.words[1] if len(line.words) > 1 else "", line.words[2:]
        found = _matcher(words)
        if name == "from_ipv6" and words == ("src", "-m", "sub", ":"):
            found = _Acl("helper", ())
        before = self.acls.get(name)
        if name in self.acls and (found is None or before is None or before.kind != found.kind):
            found = None
        elif before is not None and found is not None:
            found = _Acl(found.kind, before.patterns + found.patterns)
        if found is None:
            self.work.leave(line, "only names by SNI and sources by address are known here")
        self.acls[name] = found

    def _terms(self, words: Iterable[str]) -> list[tuple[bool, _Acl]] | None:
        """A condition that is a choice of single tests; None for anything else. The bool: not negated."""
        found: list[tuple[bool, _Acl]] = []
        for choice in _split(words, ("||", "or")):
            tests = list(_tests(choice))
            known = [(positive, _matcher(inner) if inner else self.acls.get(name)) for positive, name, inner in tests]
            real = [(positive, one) for positive, one in known if one is None or one.kind != "helper"]
            if len(real) != 1 or real[0][1] is None:
                return None
            found.append((real[0][0], real[0][1]))
        return found or None

    def _use_backend(self, line: Line) -> bool:
        if len(line.words) == 2:
            return self._default_backend(line)
        if len(line.words) < 4 or line.words[2] != "if":
            return False
        terms = self._terms(line.words[3:])
        if terms is None or any(not positive or one.kind != "sni" for positive, one in terms):
            return False
        sni = [pattern for _, one in terms for pattern in one.patterns]
        self.routes.append({"sni": list(dict.fromkeys(sni)), "of": line.words[1]})
        return True

    def _tcp_request(self, line: Line) -> bool:
        words = line.words[1:]
        if words[:1] == ("inspect-delay",) or (
            words[:2] == ("content", "accept") and _HELLO.search(line.text.replace("  ", " "))
        ):
            self.inspects.append(line)
            return True
        if words[:1] not in (("connection",), ("session",), ("content",)):
            return False
        if words[1:3] == ("track-sc0", "src") and len(words) == 3:
            self.tracked = line
            return True
        if words[1:2] != ("reject",) or len(words) < 4 or words[2] not in ("if", "unless"):
            return False
        rate = re.search(r"reject if \{ sc0_conn_rate gt (\d+) \}$", " ".join(words))
        if rate and self.period and self.tracked:
            self.found["rate_limit"] = {"connections": int(rate[1]), "period": self.period[0]}
            self.period = self.tracked = None
            return True
        terms = self._terms(words[3:])
        if terms is None or any(one.kind != "src" for _, one in terms):
            return False
        refuses = {positive == (words[2] == "if") for positive, _ in terms}
        if len(refuses) != 1 or (len(terms) > 1 and not next(iter(refuses)) and words[2] == "if"):
            return False
        key = "deny" if refuses.pop() else "allow"
        self.found[key] = [*self.found.get(key, ()), *(pattern for _, one in terms for pattern in one.patterns)]
        return True

    def _stick_table(self, line: Line) -> bool:
        rate = re.search(r"conn_rate\((\d+(?:ms|s|m|h|d)?)\)$", line.text)
        milliseconds = _milliseconds(rate[1]) if rate else None
        if milliseconds is None or self.period is not None:
            return False
        self.period = (duration(milliseconds), line)
        return True


def _split(words: Iterable[str], at: tuple[str, ...]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in at:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _tests(words: list[str]) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    """Each test of a condition: not negated, its name, or what stands in its braces."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        positive = not word.startswith("!")
        word = word.removeprefix("!")
        if not word and rest:
            word = rest.pop(0)
        if word == "{":
            inner = rest[: rest.index("}")] if "}" in rest else rest
            rest = rest[len(inner) + 1 :]
            yield positive, "", tuple(inner)
        else:
            yield positive, word, ()


def _matcher(words: tuple[str, ...]) -> _Acl | None:
    """What the words of an acl match: names or sources; None where a desired state has no word for it."""
    if not words:
        return None
    what, flags, patterns = words[0], [], list(words[1:])
    while patterns and patterns[0].startswith("-"):
        flags.append(patterns.pop(0))
        if flags[-1] == "-m" and patterns:
            flags[-1] = f"-m {patterns.pop(0)}"
        if flags[-1] == "--":
            break
    flags = [one for one in flags if one not in ("--", "-i")]
    if what == "src" and flags in ([], ["-m ip"]) and patterns:
        try:
            return _Acl("src", tuple(_network(one) for one in patterns))
        except ValueError:
            return None
    if what not in _SNI or len(flags) > 1:
        return None
    how = flags[0] if flags else "-m str"
    if how == "-m found" and not patterns:
        return _Acl("sni", ("*",))
    if how == "-m str" and patterns:
        return _Acl("sni", tuple(patterns))
    if how == "-m end" and patterns and all(one.startswith(".") for one in patterns):
        return _Acl("sni", tuple(f"*{one}" for one in patterns))
    return None


def _network(text: str) -> str:
    found = ipaddress.ip_network(text, strict=False)
    return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)


# --- backends ---------------------------------------------------------------------------------------------------

_OF_BACKENDS = tuple((word,) for word in ("balance", "server", "default-server", "option", "http-check", "hash-type"))
_VALUED = ("port", "inter", "rise", "fall", "weight", "verify", "check-sni", "verifyhost", "ca-file", "init-addr", "id")
_PROXY = {"send-proxy": "v1", "send-proxy-v2": "v2"}


class _Backend:
    def __init__(self, work: _Work, section: Section, head: Line, defaults: Section | None) -> None:
        self.work, self.section, self.head, self.defaults = work, section, head, defaults
        self.found: dict[str, Any] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.health: dict[str, Any] = {}
        self.proxies: list[tuple[str, Line]] = []
        self.checks: list[tuple[dict[str, Any], str, Line]] = []
        self.headers: list[tuple[bool, bool, Line]] = []  # whether there is one, at the data port or elsewhere
        self.http: dict[str, Any] | None = None
        self.tls = False

    def translate(self) -> None:
        for line in self.section.lines:
            words = line.words
            known = (
                words[:1] in (("mode",), ("default-server",))
                or self.work.timeout(line)
                or (words[:2] == ("timeout", "check") and self._check_timeout(line))
                or (words[:1] == ("balance",) and self._balance(line))
                or words == ("hash-type", "consistent")
                or (words[:1] == ("option",) and self._option(line))
                or (words[:1] == ("http-check",) and self._http_check(line))
                or (words[:1] == ("server",) and len(words) > 2 and self._server(line))
            )
            if not known and (self.section.kind != "listen" or words[:1] in _OF_BACKENDS):
                self.work.leave(line, _why(line))
        name = self.work.name("backend", self.section.name, self.head)
        self._settle()
        self.work.backends[name] = {
            **self.found,
            "servers": self.servers,
            **({"health": self.health} if self.health else {}),
        }
        if not self.servers:
            self.work.leave(self.head, "no server of it can be expressed")

    def _check_timeout(self, line: Line) -> bool:
        milliseconds = _milliseconds(line.words[2]) if len(line.words) == 3 else None
        if milliseconds is not None:
            self.health["timeout"] = duration(milliseconds)
        return milliseconds is not None

    def _balance(self, line: Line) -> bool:
        if len(line.words) != 2 or line.words[1] not in _BALANCE:
            return False
        self.found["balance"] = line.words[1]
        return True

    def _option(self, line: Line) -> bool:
        words = line.words[1:]
        if words[0] == "httpchk":
            version = words[3] if len(words) > 3 else "HTTP/1.0"
            if (
                (words[1:2] or ("GET",))[0] not in ("GET", "/", "")
                or not version.startswith("HTTP/1")
                or len(words) > 4
            ):
                return False
            self.http = {"path": words[2]} if len(words) > 2 else {}
            return True
        if words[0] == "ssl-hello-chk":
            self.tls = True
        return words[0] in ("ssl-hello-chk", "tcp-check")

    def _http_check(self, line: Line) -> bool:
        words = list(line.words[1:])
        if words[:2] == ["expect", "status"] and len(words) == 3 and words[2].isdecimal():
            self.http = {**(self.http or {}), "status": int(words[2])}
            return True
        if words[:1] != ["send"]:
            return False
        rest, told = words[1:], {}
        while rest:
            key = rest.pop(0)
            if key == "hdr" and len(rest) > 1 and rest[0].lower() == "host":
                told["host"] = rest[1]
                rest = rest[2:]
            elif key == "uri" and rest:
                told["path"] = rest.pop(0)
            elif (key == "meth" and rest[:1] == ["GET"]) or (key == "ver" and rest):
                rest.pop(0)
            else:
                return False
        self.http = {**(self.http or {}), **told}
        return True

    def _server(self, line: Line) -> bool:
        address = endpoint(line.words[2])
        if address is None:
            self.work.leave(line, f"{line.words[2]} is no address and port: a desired state names addresses")
            return True
        every = [words for one in (self.defaults, self.section) if one for words in _default_server(one)]
        told = _Told.of([*every, *line.words[3:]])
        if told.unknown:
            self.work.leave(line, f"{', '.join(told.unknown)}: not known here; the server is there without it")
        one: dict[str, Any] = {"address": address}
        if (weight := told.values.get("weight", "1")) != "1" and weight.isdecimal():
            one["weight"] = int(weight)
        one |= {key: True for key in ("backup", "disabled") if key in told.flags}
        name = self.work.name(f"server of {self.section.name}", line.words[1], line)
        self.servers[name] = one
        self.proxies.append((told.proxy, line))
        if "check" in told.flags and told.proxy != "none":
            # It carries a header where it uses the data port and names none (FACTS, HAProxy 8).
            header = "check-send-proxy" in told.flags or "port" not in told.values
            self.headers.append((header, told.values.get("port", _port(address)) == _port(address), line))
        self.checks.append((self._check(told), _port(address), line))
        return True

    def _check(self, told: _Told) -> dict[str, Any]:
        if "check" not in told.flags:
            return {"type": "none"}
        found: dict[str, Any] = {}
        port = told.values.get("port")
        if port and port.isdecimal():
            found["port"] = int(port)
        for key, name in (("inter", "interval"), ("rise", "rise"), ("fall", "fall")):
            value = told.values.get(key)
            milliseconds = _milliseconds(value) if value and key == "inter" else None
            if value is not None:
                found[name] = duration(milliseconds) if milliseconds else int(value) if value.isdecimal() else value
        if "check-ssl" in told.flags:
            found["ssl"] = True
            found["verify"] = told.values.get("verify") == "required"
            host = told.values.get("check-sni") or told.values.get("verifyhost")
            if host:
                found["host"] = host
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
            self.checks = [({"port": int(own)} | one, own, line) for one, own, line in self.checks]
        chosen = _most([tuple(sorted(one.items())) for one, _, _ in self.checks])
        for check, _, line in self.checks:
            if tuple(sorted(check.items())) != chosen:
                self.work.leave(line, "its check is another than the others': one for the whole backend here")
        if chosen is not None:
            self._health(dict(chosen))

    def _health(self, check: dict[str, Any]) -> None:
        if check.get("type") == "none":
            self.health = {"type": "none"}
            return
        ssl = check.pop("ssl", False)
        verify = check.pop("verify", False)
        host = check.pop("host", None)
        found: dict[str, Any] = {}
        if self.http is not None:
            found = {"type": "http", **({"tls": True} if ssl else {}), "path": "/", **self.http}
        elif ssl or self.tls:
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
        self.health = {**found, **check, **self.health}


@frozen
class _Told:
    """The words behind a server: flags, values, the PROXY version, and what is not known."""

    flags: frozenset[str]
    values: dict[str, str]
    proxy: str
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, words: list[str]) -> _Told:
        flags, values, unknown, proxy, rest = set(), {}, [], "none", list(words)
        while rest:
            word = rest.pop(0)
            if word in _PROXY:
                proxy = _PROXY[word]
            elif word in _VALUED and rest:
                values[word] = rest.pop(0)
            elif word in ("check", "backup", "disabled", "check-ssl", "check-send-proxy"):
                flags.add(word)
            elif word == "no-check":
                flags.discard("check")
            elif word == "enabled":
                flags.discard("disabled")
            elif word:
                unknown.append(word)
        return cls(frozenset(flags), values, proxy, tuple(unknown))


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _default_server(one: Section) -> Iterator[str]:
    for line in one.lines:
        if line.words[:1] == ("default-server",):
            yield from line.words[1:]


def _most(found: list[Any]) -> Any:
    return Counter(found).most_common(1)[0][0] if found else None
