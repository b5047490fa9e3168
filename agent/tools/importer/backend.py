"""A backend, or that half of a listen section: servers, and how they are checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from agent.desired.addresses import server_endpoint
from agent.desired.scalars import duration
from agent.host.global_section import CA_FILES
from agent.tools.importer import skipped
from agent.tools.importer.conditions import endpoint, milliseconds, number
from agent.tools.importer.haproxycfg import Line, Section
from agent.tools.importer.timing import Timing

CHECK_OPTIONS = ("httpchk", "tcp-check", "ssl-hello-chk")
_INHERITED = (("balance",), ("hash-type",), ("http-check",))
_GREETED: dict[tuple[str, ...], str] = {
    ("expect rstring ^220[ -]", r"send QUIT\r\n", "expect rstring ^221"): "smtp",
    (r"expect rstring ^\* (OK|PREAUTH)", r"send a LOGOUT\r\n", r"expect rstring ^\* BYE"): "imap",
    (r"expect rstring ^\+OK", r"send QUIT\r\n", r"expect rstring ^\+OK"): "pop3",
}
_BALANCE = ("roundrobin", "leastconn", "source", "first", "random")

_VALUED = ("port", "inter", "rise", "fall", "weight", "verify", "check-sni", "verifyhost", "ca-file", "on-marked-down")
_FLAGS = ("check", "backup", "disabled", "check-ssl", "check-send-proxy")
_PROXY = {"send-proxy": "v1", "send-proxy-v2": "v2", "send-proxy-v2-ssl": "v2", "send-proxy-v2-ssl-cn": "v2"}
# Not known here, and with a value behind them, which must not be taken for a word of its own.
_OTHERS = frozenset(
    """
    agent-addr agent-inter agent-port agent-send addr alpn check-alpn check-proto ciphers ciphersuites cookie crl-file
    crt curves downinter error-limit fastinter guid id init-addr log-bufsize log-proto max-reuse maxconn maxqueue
    minconn namespace npn observe on-error on-marked-up pool-conn-name pool-low-conn pool-max-conn
    pool-purge-delay proto proxy-v2-options redir resolvers resolve-net resolve-opts resolve-prefer shard slowstart sni
    socks4 source ssl-max-ver ssl-min-ver track usesrc ws
""".split()  # noqa: SIM905  # as a paragraph it can be read
)


class BackendReader:
    """Of one section; `translate` leaves its backend with `work`."""

    def __init__(self, work: skipped.Work, section: Section, head: Line, defaults: Section | None) -> None:
        self.work, self.section, self.head, self.defaults = work, section, head, defaults
        self.keys: dict[str, Any] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.health: dict[str, Any] = {}
        self.proxies: list[tuple[str, Line]] = []
        self.checks: list[tuple[dict[str, Any], str, Line]] = []
        self.headers: list[tuple[bool, bool, Line]] = []  # whether there is one, at the data port or elsewhere
        self.kind: tuple[str, Line] | None = None  # the check option that counts: the last one (M)
        self.timing = Timing.of(defaults)
        self.tcp_rules: list[Line] = []
        self.closing: list[tuple[bool, Line]] = []  # whether each server's sessions end when it goes down
        self.usable = False
        self.http: dict[str, Any] = {}
        self.method = ""
        self.rules: list[Line] = []
        self.consistent: Line | None = None
        self.closed = [] if section.kind == "listen" else skipped.inherited_rules(section, defaults)
        self.default = [word for line in (defaults.lines if defaults else ()) for word in _defaults_of(line)]

    def translate(self) -> None:
        """Line by line, then as a whole."""
        inherited = [line for line in (self.defaults.lines if self.defaults else ()) if _is_inherited(line)]
        for line in (*inherited, *self.section.lines):
            words = line.words
            own = skipped.own(line)
            if skipped.http_only(line):
                continue
            if own is not None:
                if own and self.section.kind != "listen":  # its other half reports it
                    self.work.skip(line, own)
                continue
            if words[:1] == ("default-server",):
                self.default += _defaults_of(line)  # holds for the servers below it, and for them only (M)
                continue
            known = (
                words[:1] == ("mode",)
                or self.timing.take(line, "backend")
                or (words[:2] == ("timeout", "check") and self._check_timeout(line))
                or (words[:1] == ("balance",) and self._balance(line))
                or (words == ("hash-type", "consistent") and self._consistent(line))
                or (words[:1] == ("option",) and self._option(line))
                or (words[:1] == ("http-check",) and self._http_check(line))
                or (words[:1] == ("tcp-check",) and self._tcp_check(line))
                or (words[:1] == ("server",) and len(words) > 2 and self._server(line))
            )
            if not known and (self.section.kind != "listen" or skipped.of_backend(line)):
                self.work.skip(line, skipped.why(line))
                if skipped.restricts_clients(line):
                    self.closed.append(line)
        name = self.work.name("backend", self.section.name, self.head)
        if name in self.work.backends:
            self.work.skip(self.head, "the name is there twice; the second is left out")
            return
        if self.closed:
            self.work.refusing.add(name)
        if self.keys.get("balance") == "source" and self.consistent is None:
            self.work.skip(self.head, "balance source: by a map there, consistent here")
        self._settle()
        self.work.heads_of_pools[name] = self.head
        self.work.timings["backend", name] = self.timing
        if not self.usable:
            self.work.unusable.add(name)
        self.work.backends[name] = {
            **self.keys,
            "servers": self.servers,
            **({"health": self.health} if self.health else {}),
        }
        if not self.servers:
            self.work.skip(self.head, "no server of it can be expressed")

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
        self.keys["balance"] = line.words[1]
        return True

    def _option(self, line: Line) -> bool:
        words = line.words[1:]
        if not words or words[0] not in CHECK_OPTIONS:
            return False
        if self.kind is not None and self.kind[1] in self.section.lines:
            self.work.skip(self.kind[1], "another check follows")
        self.kind = (words[0], line)
        if words[0] == "ssl-hello-chk":
            self.work.skip(line, "asks with a hello of old there; a whole handshake here")
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
            self.work.skip(line, "by HTTP/1.0 here, and without those headers")
        return True

    def _http_check(self, line: Line) -> bool:
        words = list(line.words[1:])
        self.rules.append(line)
        status = re.fullmatch(r"([1-5]\d\d)(?:-([1-5]\d\d))?", words[2]) if len(words) == 3 else None
        if words[:2] == ["expect", "status"] and status and status[1] <= (status[2] or "999"):
            self.http["status"] = words[2] if status[2] else int(status[1])
            return True
        if words[:1] != ["send"]:
            return False
        rest, request, method = words[1:], {}, "OPTIONS"
        while rest:
            key = rest.pop(0)
            if key == "hdr" and len(rest) > 1 and rest[0].lower() == "host":
                request["host"] = rest[1]
                rest = rest[2:]
            elif key in ("uri", "meth", "ver") and rest:
                value = rest.pop(0)
                if key == "uri":
                    request["path"] = value
                elif key == "meth":
                    method = value
            else:
                return False
        self.http |= request
        self.method = method
        return True

    def _tcp_check(self, line: Line) -> bool:
        """The rules of one check, which are known where they are those of a greeting; `_health` sees."""
        self.tcp_rules.append(line)
        return True

    def _server(self, line: Line) -> bool:
        options = _ServerOptions.of([*self.default, *line.words[3:]])
        address = None if line.words[2].startswith((":", "*")) else _listens(line.words[2])
        for word in ("send-proxy-v2-ssl", "send-proxy-v2-ssl-cn"):
            if word in line.words or word in self.default:
                self.work.skip(line, f"{word}: a v2 header without what it says of TLS here")
        if address is not None and endpoint(address) is None and self.work.resolve is not None:
            host, _, port = address.rpartition(":")
            if resolved := self.work.resolve(host):
                address = endpoint(f"[{resolved}]:{port}" if ":" in resolved else f"{resolved}:{port}")
                self.work.skip(line, f"{host} is {resolved} now, and stays that in this document")
        if address is None:
            # What its backend says of all servers is known from it all the same.
            self.work.skip(line, f"{line.words[2]} is no address or host name with a port")
            if number(_port(line.words[2])):
                self._about_all(options, line, line.words[2])
            return True
        if options.unknown:
            self.work.skip(line, f"{', '.join(options.unknown)}: not known here; the server is there without it")
        server: dict[str, Any] = {"address": address}
        weight = number(options.values.get("weight", "1"))
        if weight is None:
            self.work.skip(line, "its weight is no number")
        elif weight != 1:
            server["weight"] = weight
        server |= {key: True for key in ("backup", "disabled") if key in options.flags}
        kind = f"server of {self.section.name}"
        name = self.work.name(kind, line.words[1], line)
        if name in self.servers:
            name = self.work.fresh(kind, line.words[1], line)
        self.servers[name] = server
        self.usable |= "disabled" not in options.flags and weight != 0
        self._about_all(options, line, address)
        return True

    def _about_all(self, options: _ServerOptions, line: Line, address: str) -> None:
        """What one server says of header and checks, and a desired state says of the whole backend."""
        self.closing.append((options.values.get("on-marked-down") == "shutdown-sessions", line))
        self.proxies.append((options.proxy, line))
        if "check" in options.flags and options.proxy != "none":
            # It carries a header where it uses the data port and names none (facts.md, HAProxy 8).
            header = "check-send-proxy" in options.flags or "port" not in options.values
            self.headers.append((header, options.values.get("port", _port(address)) == _port(address), line))
        elif "check-send-proxy" in options.flags:
            self.work.skip(line, "check-send-proxy without send-proxy: its check carries no header here")
        self.checks.append((self._check(options, line), _port(address), line))

    def _check(self, options: _ServerOptions, line: Line) -> dict[str, Any]:
        if "check" not in options.flags:
            return {"type": "none"}
        check: dict[str, Any] = {"interval": "2s"}  # HAProxy's own
        for key, name in (("port", "port"), ("rise", "rise"), ("fall", "fall")):
            if key in options.values:
                value = number(options.values[key])
                if value is None:
                    self.work.skip(line, f"{key} is no number")
                else:
                    check[name] = value
        if "inter" in options.values:
            length = milliseconds(options.values["inter"])
            if length:
                check["interval"] = duration(length)
            else:
                self.work.skip(line, "inter is no duration")
        if "check-ssl" in options.flags:
            check |= {"ssl": True, "verify": options.values.get("verify", "required") == "required"}
            hosts = {options.values[key] for key in ("check-sni", "verifyhost") if key in options.values}
            if len(hosts) == 1:
                check["host"] = hosts.pop()
            elif hosts:
                self.work.skip(line, "check-sni and verifyhost are one here")
            if "ca-file" in options.values and options.values["ca-file"] not in CA_FILES:
                self.work.skip(line, "ca-file: haproxy.ca_file in agent.toml")
        return check

    def _settle(self) -> None:
        """What is of each server there and of all of them here: the most frequent, and the others are listed."""
        proxy = skipped.most([value for value, _ in self.proxies])
        if proxy is not None and proxy != "v2":
            self.keys["proxy_protocol"] = proxy
        closing = skipped.most([closes for closes, _ in self.closing])
        if closing:
            self.keys["on_down"] = "close"
        for closes, line in self.closing:
            if closes != closing:
                self.work.skip(line, "on-marked-down is one for the whole backend here")
        for value, line in self.proxies:
            if value != proxy:
                self.work.skip(line, f"PROXY {value}: one for the whole backend here, {proxy}")
        if any("port" in value for value, _, _ in self.checks):  # named for one of them, it is the others' own
            self.checks = [
                ({"port": int(own)} | value if value.get("type") != "none" else value, own, line)
                for value, own, line in self.checks
            ]
        chosen = skipped.most([tuple(sorted(value.items())) for value, _, _ in self.checks])
        for check, _, line in self.checks:
            if tuple(sorted(check.items())) != chosen:
                self.work.skip(line, "its check is another than the others': one for the whole backend here")
        if chosen is not None:
            self._health(dict(chosen))

    def _health(self, check: dict[str, Any]) -> None:
        kind = self.kind[0] if self.kind else ""
        if kind != "httpchk":
            for line in (rule for rule in self.rules if rule in self.section.lines):
                self.work.skip(line, "without option httpchk it says nothing")
        greeted = (
            _GREETED.get(tuple(" ".join(line.words[1:]) for line in self.tcp_rules)) if kind == "tcp-check" else None
        )
        for line in () if greeted and check.get("type") != "none" else self.tcp_rules:
            self.work.skip(line, "cannot be expressed here; whether it connects is checked")
        if check.get("type") == "none":
            self.health = {"type": "none"}
            return
        ssl = check.pop("ssl", False)
        verify = check.pop("verify", False)
        host = check.pop("host", None)
        health: dict[str, Any] = {}
        if kind == "httpchk" and self.kind is not None:
            health = {"type": "http", **({"tls": True} if ssl else {}), "path": "/", **self.http}
            if self.method != "GET":
                self.work.skip(self.kind[1], f"asks by {self.method} there, by GET here")
            health.setdefault("status", "200-399")
        elif greeted:
            health = {"type": "greeting"}
            self.keys["application"] = greeted
        elif ssl or kind == "ssl-hello-chk":
            health = {"type": "tls"}
        if ssl and verify:
            health["verify"] = True
        if host is not None and health:
            health.setdefault("host", host)
        if any(header != own for header, own, _ in self.headers):
            sent = skipped.most([header for header, _, _ in self.headers])
            health["send_proxy"] = sent
            for header, _, line in self.headers:
                if header != sent:
                    self.work.skip(line, "whether its check carries a header is one for the whole backend here")
        self.health = {**health, **check, "timeout": check["interval"], **self.health}


@frozen
class _ServerOptions:
    """The words behind a server: flags, values, the PROXY version, and what is not known."""

    flags: frozenset[str]
    values: dict[str, str]
    proxy: str
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, words: list[str]) -> _ServerOptions:
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


def _is_inherited(line: Line) -> bool:
    """Of a line of a defaults section, whether a backend takes it over."""
    if line.words[:1] == ("option",):
        return line.words[1:2] != () and line.words[1] in CHECK_OPTIONS
    return line.words[:1] in _INHERITED or line.words[:2] == ("timeout", "check")


def _defaults_of(line: Line) -> Iterator[str]:
    if line.words[:1] == ("default-server",):
        yield from line.words[1:]


def _listens(text: str) -> str | None:
    """Where a server listens, as a desired state writes it; None for what is neither an address nor a host name."""
    if (address := endpoint(text)) is not None:
        return address
    try:
        return str(server_endpoint(text))
    except ValueError:
        return None


def _port(address: str) -> str:
    return address.rpartition(":")[2]
