"""A frontend, or that half of a listen section: addresses, names, sources, rates. Nothing is opened by it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from agent.desired.rules import MAX_ROUTES
from agent.desired.scalars import duration
from agent.tools.importer import skipped
from agent.tools.importer.conditions import (
    IPV4,
    IPV6,
    Acl,
    endpoint,
    ends_without_dot,
    matcher,
    milliseconds,
    number,
    terms,
)
from agent.tools.importer.haproxycfg import Line, Section
from agent.tools.importer.timing import Timing

_HELLO = re.compile(r"tcp-request\s+content\s+accept\s+if\s+\{\s*req[._]ssl_hello_type\s+(gt 0|1)\s*\}$")


_LIMIT = re.compile(
    r"reject if \{ (?:sc0_conn_|src_conn_|sc_conn_(?=(?:rate|cur)\(0\)))(?P<what>rate|cur)(?:\(0\))? gt "
    r"(?P<most>\d{1,9}) \}"
)


class FrontendReader:
    """Of one section; `translate` leaves its frontend with `work`, or says why not."""

    def __init__(self, work: skipped.Work, section: Section, head: Line, defaults: Section | None) -> None:
        self.work, self.section, self.head, self.defaults = work, section, head, defaults
        self.lost: list[tuple[str, Line]] = []
        self.frontend: dict[str, Any] = {"bind": []}
        self.binds: list[tuple[str, bool, Line]] = []
        self.routes: list[dict[str, Any]] = []
        self.acls: dict[str, Acl | None] = {}
        self.default: tuple[str, Line] | None = None
        self.timing = Timing.of(defaults)
        self.waits = False
        self.admitted: list[str] = []  # names that a rule accepts before a bare reject
        self.refuses: Line | None = None  # the bare reject
        self.accepted: tuple[list[str], Line] | None = None  # sources that a rule accepts, until a bare reject follows
        self.final = False  # a use_backend without a condition: nothing behind it is ever reached
        self.inspects: list[Line] = []
        self.period: tuple[str, Line] | None = None
        self.table: tuple[str, ...] | None = None  # what the stick-table stores
        self.table_line: Line | None = None
        self.exempt: list[str] = []
        self.limits = False  # whether a limit has been read: a rule behind it is for those within it
        self.tracked: Line | None = None
        self.closed: list[Line] = []  # rules that turn clients away, and are lost
        self.moved: list[Line] = []  # each use_backend that is lost, and that tests more than names
        self.rules: list[Line] = []  # rules that turn clients away, and are expressed
        found = [number(line.words[1]) for line in (defaults.lines if defaults else ()) if skipped.is_maxconn(line)]
        self.inherits = (found[-1] if found else 0) or 0

    def translate(self) -> None:
        """Line by line, then as a whole."""
        for line in filter(
            _is_acl, self.section.lines
        ):  # they may stand anywhere before their use; all of them first costs nothing
            self._acl(line)
        handlers = self._handlers()
        for line in self.section.lines:
            own = skipped.own(line)
            if own is not None:
                if own:
                    self.work.skip(line, own)
                continue
            if skipped.http_only(line):
                continue
            handler = handlers.get(line.words[0] if line.words else "")
            if _is_acl(line) or (handler is not None and handler(line)):
                continue
            if skipped.restricts_clients(line):
                self.closed.append(line)
            elif self.section.kind != "listen" or not skipped.of_backend(line):
                self.work.skip(line, skipped.why(line))
                if line.words[:1] == ("use_backend",) and len(line.words) > 1:
                    if "%[" not in line.words[1]:
                        self.lost.append((line.words[1], line))
                    if not self._only_by_name(line):
                        self.moved.append(line)
                elif not line.words and line.text.startswith("use_backend"):
                    self.closed.append(line)  # in an .if block, or a line that cannot be split
        self.closed += skipped.inherited_rules(self.section, self.defaults)
        counted = () if "rate_limit" in self.frontend else (self.tracked, self.table_line)
        for unused in (*counted, *(() if self.routes else self.inspects)):
            if unused is not None:
                self.work.skip(unused, "cannot be expressed here")
        self._settle_binds()
        self._settle_moved()
        if self.accepted is not None:  # whoever it accepts passes the rules behind it
            self.closed.append(self.accepted[1])
        if self.refuses is not None:
            named = {pattern for route in self.routes for pattern in route["sni"]}
            if self.default is not None or named != {*self.admitted}:
                self.closed.append(self.refuses)
        if self.frontend.get("accept_proxy"):
            # A connection rule tests who connects, a session rule whom the header names: only that is known here.
            self.closed += [line for line in self.rules if line.words[1] == "connection"]
        if self.closed or not self.frontend["bind"]:
            for line in self.closed:
                self.work.skip(line, "turns clients away, and cannot be expressed: the whole frontend is left out")
            why = "left out: it would be open to more clients than now" if self.closed else "no address of it is left"
            self.work.skip(self.head, why)
            return
        self._place()

    def _place(self) -> None:
        name = self.section.name
        if self.work.name("frontend", name, self.head) in self.work.frontends:
            self.work.skip(self.head, "the name is there twice; the second is left out")
            return
        target = self.default[0] if self.default else name if self.section.kind == "listen" else None
        if target is None and not self.routes:
            self.work.skip(self.head, "left out: it has no default_backend, so it refuses clients")
            return
        if self.routes and not self.waits:
            self.work.skip(self.head, "no inspect-delay there: names are waited for, 5s, here")
        if self.routes:
            routes = self.routes if len(self.routes) <= MAX_ROUTES else _merged(self.routes)
            self.frontend["routes"] = [
                {"sni": list(route["sni"]), "backend": self.work.name("backend", route["of"], route["line"])}
                for route in routes
            ]
        if target is not None:
            line = self.default[1] if self.default else self.head
            self.frontend["backend"] = self.work.name("backend", target, line)
        called = self.work.name("frontend", name, self.head)
        self.work.timings["frontend", called] = self.timing
        self.work.frontend(called, self.frontend, self.head, self.inherits)
        self.work.lost += [(called, self.work.name("backend", target, line)) for target, line in self.lost]

    def _settle_moved(self) -> None:
        """Clients that a lost use_backend moves elsewhere may be turned away there: the frontend would serve them.

        Not where it leads to the same backend as everything else.
        """
        if self.default is None and self.defaults is not None and self.section.kind != "listen":
            inherited = [line for line in self.defaults.lines if line.words[:1] == ("default_backend",)]
            if inherited and len(inherited[-1].words) == 2:
                self.default = (inherited[-1].words[1], inherited[-1])
        default = self.default[0] if self.default else None
        self.closed += [line for line in self.moved if self.routes or line.words[1] != default]

    def _only_by_name(self, line: Line) -> bool:
        """Whether a use_backend tests nothing but the name that a client sends: a condition, or a dynamic name."""
        if "%[" in line.text and not re.search(r"%\[req[._]ssl_sni\b", line.text):
            return False
        names = {"req.ssl_sni", "req_ssl_sni", "req.ssl_sni,lower", "req.ssl_hello_type", "req_ssl_hello_type"}
        by_name = {
            acl.words[1]
            for acl in self.section.lines
            if acl.words[:1] == ("acl",) and len(acl.words) > 2 and acl.words[2] in names
        }
        by_name -= {
            acl.words[1]
            for acl in self.section.lines
            if acl.words[:1] == ("acl",) and len(acl.words) > 2 and acl.words[2] not in names
        }
        words = list(line.words[3:])
        while words:
            word = words.pop(0).lstrip("!")
            if word == "{":
                if not words or words[0] not in names or "}" not in words:
                    return False
                del words[: words.index("}") + 1]
            elif word not in ("", "||", "or") and word not in by_name:
                return False
        return True

    def _handlers(self) -> dict[str, Callable[[Line], bool]]:
        return {
            "bind": self._bind,
            "mode": lambda _: True,
            "maxconn": self._maxconn,
            "timeout": lambda line: self.timing.take(line, "frontend"),
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
        words = [word for word in words if word not in ("v4v6", "v6only", "accept-proxy")]
        if words:
            why = "TLS ends behind the agent, not in it" if "ssl" in words else f"{' '.join(words)} is not known here"
            self.work.skip(line, f"{why}; the address is left out")
            return True
        for text in line.words[1].split(",") if len(line.words) > 1 else ():
            address = endpoint(text)
            if text.startswith("<"):
                interface = text.partition(">")[0][1:]
                self.work.skip(line, f"interface {interface} has no static address; bind the address that it has")
                continue
            if address is None:
                self.work.skip(line, f"{text} is no single address and port")
                continue
            if address.startswith("[::]") and not both and not only and not text.startswith("ipv6@"):
                self.work.skip(line, "takes IPv6 only here; add 0.0.0.0 where it took both")
            more = [f"0.0.0.0:{address.rpartition(':')[2]}"] if both and address.startswith("[::]") else []
            self.binds += [(each, accept, line) for each in (address, *more)]
        return len(line.words) > 1

    def _settle_binds(self) -> None:
        mixed = len({accept for _, accept, _ in self.binds}) > 1
        for address, accept, line in self.binds:
            if mixed and accept:
                self.work.skip(line, "accept-proxy is of the whole frontend here: make one of its own for this address")
            elif address not in self.frontend["bind"]:
                self.frontend["bind"].append(address)
        if self.binds and not mixed and self.binds[0][1]:
            self.frontend["accept_proxy"] = True

    def _maxconn(self, line: Line) -> bool:
        count = number(line.words[1]) if skipped.is_maxconn(line) else None
        if not count:
            return False
        self.frontend["maxconn"] = count
        return True

    def _default_backend(self, line: Line) -> bool:
        if len(line.words) != 2 or self.final:
            return False
        if self.default is not None:  # the last one counts (M)
            self.work.skip(self.default[1], "another one follows")
        self.default = (line.words[1], line)
        return True

    def _acl(self, line: Line) -> None:
        name, words = [*line.text.split(), ""][1], line.words[2:]
        acl = matcher(words) if line.words[1:2] == (name,) else None
        if words == ("src", "::ffff:0:0/96"):
            acl = Acl("helper", IPV4)
        if words == ("src", "-m", "sub", ":"):  # as the agent wrote it until 0.1
            acl = Acl("helper", IPV6)
        if len(words) == 2 and words[0] in ("req.ssl_hello_type", "req_ssl_hello_type") and words[1] == "1":
            acl = Acl("hello", ())
        if _LIMIT.fullmatch(f"reject if {{ {' '.join(words)} }}"):
            acl = Acl("limit", (" ".join(words),))
        if acl is not None and acl.kind == "sni":
            self._report_ends(line, words)
        before = self.acls.get(name)
        if name in self.acls and (acl is None or before is None or before.kind != acl.kind):
            acl = None
        elif before is not None and acl is not None:
            acl = Acl(acl.kind, before.patterns + acl.patterns)
        if acl is None:
            self.work.skip(line, "only names by SNI and sources by address are known here")
        elif acl.kind == "sni" and "-i" not in words and "*" not in acl.patterns and not words[0].endswith(",lower"):
            self.work.skip(line, "names are the same in capitals here")
        self.acls[name] = acl

    def _report_ends(self, line: Line, words: tuple[str, ...]) -> None:
        """`-m end example.org` takes badexample.org as well; here it is the name and what is below it."""
        if ends_without_dot(words):
            self.work.skip(line, "the name itself and all names below it here; any name that ends so there")

    def _use_backend(self, line: Line) -> bool:
        if self.final:
            self.work.skip(line, "never reached: a use_backend without a condition stands before it")
            return True
        if len(line.words) > 1 and "%[" in line.words[1]:
            return False
        if len(line.words) == 2:
            if self.default is not None:
                self.work.skip(self.default[1], "never reached")
            self.default, self.final = (line.words[1], line), True
            return True
        if len(line.words) < 4 or line.words[2] != "if":
            return False
        tests = terms(line.words[3:], self.acls)
        if tests is None or any(not term.positive or term.helped or term.acl.kind != "sni" for term in tests):
            return False
        inline = [term for term in tests if term.inline and "*" not in term.acl.patterns]
        if inline and "-i" not in line.words and "req.ssl_sni,lower" not in line.words:
            self.work.skip(line, "names are the same in capitals here")
        self._report_ends(line, line.words[3:])
        sni = [pattern for term in tests for pattern in term.acl.patterns]
        self.routes.append({"sni": list(dict.fromkeys(sni)), "of": line.words[1], "line": line})
        return True

    def _tcp_request(self, line: Line) -> bool:
        words = line.words[1:]
        if words[:1] == ("inspect-delay",) and len(words) == 2:
            self.waits = True
            if milliseconds(words[1]) != 5_000:
                self.work.skip(line, "5s here")
            return True
        named = self.acls.get(words[3]) if words[:3] == ("content", "accept", "if") and len(words) == 4 else None
        if _HELLO.match(" ".join(line.words)) or (named is not None and named.kind == "hello"):
            self.inspects.append(line)
            return True
        if words[:1] not in (("connection",), ("session",), ("content",)):
            return False
        if words[:2] == ("connection", "expect-proxy") and self._outer_proxies(words):
            return True
        if words[:2] == ("content", "accept") and words[2:3] == ("if",) and self._admits(words[3:]):
            return True
        if words == ("content", "reject") and self.admitted and self.refuses is None:
            self.refuses = line
            return True
        if words[1:3] == ("track-sc0", "src") and self.tracked is None and self._exempts(words[3:]):
            self.tracked = line
            return True
        if self.accepted is not None:
            patterns, accept = self.accepted
            if words != (accept.words[1], "reject") or "allow" in self.frontend:
                return False
            self.accepted, self.frontend["allow"] = None, patterns
            self.rules.append(accept)
            return True
        if words[1:3] == ("accept", "if") and words[0] != "content" and not self.limits and self._accepts(line):
            return True
        if words[1:2] != ("reject",) or len(words) < 4 or words[2] not in ("if", "unless"):
            return False
        named_limit = self.acls.get(words[3]) if words[1:3] == ("reject", "if") and len(words) == 4 else None
        text = f"reject if {{ {named_limit.patterns[0]} }}" if named_limit and named_limit.kind == "limit" else ""
        limit = _LIMIT.fullmatch(text or " ".join(words[1:]))
        if limit and self.tracked and self.tracked.words[1] == words[0] and self._limit(limit):
            self.rules.append(line)
            self.limits = True
            return True
        return self._access(line, words[2] == "if", words[3:])

    def _outer_proxies(self, words: tuple[str, ...]) -> bool:
        """`expect-proxy layer4 if SOURCES`: these alone may send a PROXY header."""
        tests = terms(words[4:], self.acls) if words[2:4] == ("layer4", "if") else None
        if tests is None or any(not term.positive or term.acl.kind != "src" for term in tests):
            return False
        if self.rules or "accept_proxy" in self.frontend:  # a rule before it tests who connects
            return False
        self.frontend["accept_proxy"] = [pattern for term in tests for pattern in term.acl.patterns]
        return True

    def _admits(self, condition: tuple[str, ...]) -> bool:
        """`content accept if NAMES`, which a bare reject may follow."""
        tests = terms(condition, self.acls)
        if tests is None or any(not term.positive or term.helped or term.acl.kind != "sni" for term in tests):
            return False
        self.admitted += [pattern for term in tests for pattern in term.acl.patterns]
        return True

    def _accepts(self, line: Line) -> bool:
        """`accept if SOURCES`: with a bare reject right behind it, a list of who may come."""
        tests = terms(line.words[4:], self.acls)
        if tests is None or any(not term.positive or term.acl.kind != "src" for term in tests):
            return False
        self.accepted = ([pattern for term in tests for pattern in term.acl.patterns], line)
        return True

    def _exempts(self, condition: tuple[str, ...]) -> bool:
        """Nothing, or `unless SOURCES`: those are not counted."""
        if not condition:
            return True
        tests = terms(condition[1:], self.acls) if condition[0] == "unless" else None
        if tests is None or any(not term.positive or term.acl.kind != "src" for term in tests):
            return False
        self.exempt = [pattern for term in tests for pattern in term.acl.patterns]
        return True

    def _limit(self, limit: re.Match[str]) -> bool:
        limits = self.frontend.get("rate_limit", {})
        key = "connections" if limit["what"] == "rate" else "concurrent"
        if key in limits or self.table is None or (key == "connections" and self.period is None):
            return False
        if key == "concurrent" and "conn_cur" not in self.table:
            return False
        limits = {**limits, key: int(limit["most"])}
        if key == "connections" and self.period is not None:
            limits["period"] = self.period[0]
        if self.exempt:
            limits["exempt"] = self.exempt
        self.frontend["rate_limit"] = limits
        return True

    def _access(self, line: Line, on_match: bool, condition: tuple[str, ...]) -> bool:  # noqa: FBT001  # if or unless
        """Deny: who matches one of several. Allow, once: who matches none of several is turned away."""
        tests = terms(condition, self.acls)
        if tests is None:
            tests = terms(condition, self.acls, together=True)  # reject if !a !b: who is in neither
            if tests is None or not on_match or any(term.positive for term in tests):
                return False
            denies = False
        else:
            if any(not term.positive for term in tests) and len(tests) > 1:
                return False
            denies = tests[0].positive == on_match
        if self.inspects and line.words[1] == "content":
            return False  # who has said hello is through already
        if any(term.acl.kind != "src" or (term.helped and not term.positive) for term in tests):
            return False
        patterns = [pattern for term in tests for pattern in term.acl.patterns]
        if not denies and "allow" in self.frontend:
            return False  # two of them let in only who is in both
        key = "deny" if denies else "allow"
        self.frontend[key] = [*self.frontend.get(key, ()), *patterns]
        self.rules.append(line)
        return True

    def _stick_table(self, line: Line) -> bool:
        words = dict(zip(line.words[1::2], line.words[2::2], strict=False))
        stored = tuple(words.get("store", "").split(","))
        rates = [
            rate for counter in stored if (rate := re.fullmatch(r"conn_rate\((\d{1,9}(?:ms|s|m|h|d)?)\)", counter))
        ]
        known = set(words) - {"peers"} == {"type", "size", "expire", "store"} and words["type"] in ("ip", "ipv6")
        others = [counter for counter in stored if counter != "conn_cur" and not counter.startswith("conn_rate(")]
        length = milliseconds(rates[0][1]) if rates else None
        whole = len(line.words) == 1 + 2 * len(words)
        if not known or others or len(rates) > 1 or (rates and not length) or self.table is not None or not whole:
            return False
        self.table, self.table_line = stored, line
        if length:
            self.period = (duration(length), line)
        if words["type"] == "ip":
            self.work.skip(line, "of IPv6 clients too, here")
        if words["size"] != "100k":
            self.work.skip(line, "size 100k here")
        if length and milliseconds(words["expire"]) != length:
            self.work.skip(line, f"expire {duration(length)} here, the period of the rate")
        return True


def _merged(routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours that lead to one backend, as one route of several names."""
    merged: list[dict[str, Any]] = []
    for route in routes:
        if merged and merged[-1]["of"] == route["of"]:
            merged[-1]["sni"] = list(dict.fromkeys([*merged[-1]["sni"], *route["sni"]]))
        else:
            merged.append(dict(route))
    return merged


def _is_acl(line: Line) -> bool:
    """Also one that could not be split: it is part of what its name means."""
    return line.text.split()[:1] == ["acl"]
