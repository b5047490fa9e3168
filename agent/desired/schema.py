"""Desired state, version 1, as it is written: the keys, their types, what one value alone may be.

What values may be together (a backend that exists, an address bound once) is `rules`; what later stages see is
`desired`. The texts allowed here are narrow on purpose: every one of them ends up in haproxy.cfg, and none can
carry a space, a quote, a `#`, a `$` or a newline there.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
from typing import NewType

from attrs import Factory, frozen

from agent.desired import structure
from agent.desired.structure import Hook, describe, expected

MAX_PORT = 65_535
MAX_SERIAL = 2**53 - 1  # what every JSON reader keeps exact
MAX_CONNECTIONS = 10_000_000
DEFAULT_MAXCONN = 2_000
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  # recognised, not bound

Version = NewType("Version", int)
Name = NewType("Name", str)
Port = NewType("Port", int)
Count = NewType("Count", int)
Serial = NewType("Serial", int)
Weight = NewType("Weight", int)
Checks = NewType("Checks", int)
HttpStatus = NewType("HttpStatus", str)
"""`200`, or a range of them: `200-399`."""
Milliseconds = NewType("Milliseconds", int)
Address = NewType("Address", str)
"""An IP literal in its shortest form."""
Network = NewType("Network", str)
"""`203.0.113.0/24`, `2001:db8::/32`; a single address has no `/`."""
SniPattern = NewType("SniPattern", str)
"""A host name, `*.suffix` or `*`; lower case."""
HttpPath = NewType("HttpPath", str)
HttpHost = NewType("HttpHost", str)


class Application(enum.StrEnum):
    """What the server behind speaks: what the probe says to it."""

    SMTP = "smtp"
    IMAP = "imap"
    POP3 = "pop3"
    TLS = "tls"
    HTTP = "http"
    RAW = "raw"


class ProxyProtocol(enum.StrEnum):
    """Which header the server is told of its client with."""

    V2 = "v2"
    V1 = "v1"
    NONE = "none"


class Balance(enum.StrEnum):
    """How connections are spread over the servers (HAProxy's own words)."""

    ROUNDROBIN = "roundrobin"
    LEASTCONN = "leastconn"
    SOURCE = "source"
    FIRST = "first"
    RANDOM = "random"


class HealthType(enum.StrEnum):
    """How a server is checked."""

    TCP = "tcp"
    HTTP = "http"
    TLS = "tls"
    GREETING = "greeting"
    NONE = "none"


class OnDown(enum.StrEnum):
    """What becomes of the sessions of a server whose checks fail."""

    KEEP = "keep"
    CLOSE = "close"


@frozen(order=True)
class Endpoint:
    """An IP address and a port. `host` is the shortest form; `family` 4 or 6."""

    family: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family == 6 else f"{self.host}:{self.port}"

    @property
    def wildcard(self) -> bool:
        """Whether this is every address of its family.

        The families never meet: a v6 wildcard is bound v6only (facts.md, HAProxy 9).
        """
        return self.host in WILDCARDS


@frozen(kw_only=True)
class Timeouts:
    """How long HAProxy waits, in milliseconds."""

    connect: Milliseconds = Milliseconds(5_000)
    client: Milliseconds = Milliseconds(3_600_000)
    server: Milliseconds = Milliseconds(3_600_000)


@frozen(kw_only=True)
class FrontendTimeouts:
    """Overrides of `defaults.timeouts` for one frontend, in milliseconds. None: the default holds."""

    client: Milliseconds | None = None


@frozen(kw_only=True)
class BackendTimeouts:
    """Overrides of `defaults.timeouts` for one backend, in milliseconds. None: the default holds."""

    connect: Milliseconds | None = None
    server: Milliseconds | None = None


@frozen(kw_only=True)
class Defaults:
    """What every frontend starts from. `maxconn` None: not written, DEFAULT_MAXCONN holds."""

    maxconn: Count | None = None
    timeouts: Timeouts = Timeouts()


@frozen(kw_only=True)
class RateLimit:
    """Limits per source address: `connections` new ones in a `period` (milliseconds), `concurrent` ones at once.

    `exempt`: networks that no limit holds for.
    """

    connections: Count | None = None
    period: Milliseconds | None = None
    concurrent: Count | None = None
    exempt: tuple[Network, ...] = ()


@frozen(kw_only=True)
class Route:
    """The backend of the connections whose SNI is one of these."""

    sni: tuple[SniPattern, ...]
    backend: Name


@frozen(kw_only=True)
class Frontend:
    """What clients connect to. `backend` None: a client that matches no route is refused.

    `accept_proxy`: whether clients send a PROXY header, or the networks of the proxies that alone may send one.
    """

    bind: tuple[Endpoint, ...]
    backend: Name | None = None
    maxconn: Count | None = None
    timeouts: FrontendTimeouts = FrontendTimeouts()
    accept_proxy: bool | tuple[Network, ...] = False
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    rate_limit: RateLimit | None = None
    routes: tuple[Route, ...] = ()
    canary: bool = False


@frozen(kw_only=True)
class Server:
    """One server, written one by one."""

    address: Endpoint
    weight: Weight = Weight(1)
    backup: bool = False
    disabled: bool = False


@frozen(kw_only=True)
class Health:
    """How servers are checked. None: not written; what then holds depends on the type and on the server."""

    type: HealthType = HealthType.TCP
    port: Port | None = None
    interval: Milliseconds | None = None
    timeout: Milliseconds | None = None
    rise: Checks | None = None
    fall: Checks | None = None
    send_proxy: bool | None = None
    path: HttpPath | None = None
    host: HttpHost | None = None
    status: HttpStatus | None = None
    tls: bool | None = None
    verify: bool | None = None


@frozen(kw_only=True)
class Backend:
    """A pool of servers, by group, one by one, or both."""

    application: Application = Application.RAW
    proxy_protocol: ProxyProtocol = ProxyProtocol.V2
    balance: Balance = Balance.ROUNDROBIN
    nodes: Name | None = None
    port: Port | None = None
    servers: dict[Name, Server] = Factory(dict)
    timeouts: BackendTimeouts = BackendTimeouts()
    on_down: OnDown = OnDown.KEEP
    health: Health = Health()


@frozen(kw_only=True)
class Written:
    """The whole document. `allow_empty`: it may be without a frontend, and end all service."""

    version: Version
    name: Name = Name("")
    serial: Serial | None = None
    allow_empty: bool = False
    defaults: Defaults = Defaults()
    nodes: dict[Name, dict[Name, Address]] = Factory(dict)
    frontends: dict[Name, Frontend] = Factory(dict)
    backends: dict[Name, Backend] = Factory(dict)


# --- hooks ------------------------------------------------------------------------------------------------------

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENDPOINT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([1-9][0-9]{0,4})")


def _address(value: object) -> Address:
    if not isinstance(value, str):
        raise expected("an IP address", value)
    return Address(ip(value)[1])


@functools.lru_cache(maxsize=4_096)  # a thousand backends have the same few nodes
def ip(text: str) -> tuple[int, str]:
    """Family and shortest form of an IP literal. Raises ValueError with what is wrong with it."""
    if "%" in text:  # ipaddress takes any character, a newline too, behind the % of a scope
        raise ValueError(f"an address with a scope is not taken, got {describe(text)}")
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"expected an IP address (names are not looked up), got {describe(text)}") from None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        raise ValueError(f"an IPv4 address in IPv6 clothes; write {found.ipv4_mapped}")
    if found.is_multicast:
        raise ValueError(f"a multicast address cannot be connected to: {found}")
    return found.version, str(found)


def endpoint(value: object) -> Endpoint:
    """`192.0.2.1:25` or `[2001:db8::1]:25`. Raises ValueError."""
    found = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if found is None or (port := int(found[3])) > MAX_PORT:
        hint = ""
        if isinstance(value, str) and value.count(":") > 2 and not value.startswith("["):
            hint = "; an IPv6 address stands in brackets"
        raise ValueError(
            f'expected an address and a port from 1 to 65,535, such as "192.0.2.1:25" or "[2001:db8::1]:25", '
            f"got {describe(value)}{hint}"
        )
    family, host = ip(found[1] or found[2])
    if (family == 6) != (found[1] is not None):
        raise ValueError(f"an IPv6 address stands in brackets, an IPv4 address does not, got {describe(value)}")
    return Endpoint(family, host, port)


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4-mapped addresses (RFC 4291, 2.5.5.2): IPv4 clients to every rule."""


def _network(value: object) -> Network:
    if not isinstance(value, str) or "%" in value:
        raise expected('a network, such as "203.0.113.0/24"', value)
    try:
        found = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise expected('a network, such as "203.0.113.0/24" or "2001:db8::/32"', value) from None
    given = ipaddress.ip_interface(value)
    if given.ip != found.network_address:
        raise ValueError(f"{value} has bits behind its mask; write {found} (or {given.ip} for that one address)")
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= _MAPPED.prefixlen and found.subnet_of(_MAPPED):
        plain = ipaddress.IPv4Address(int(found.network_address) & 0xFFFFFFFF)
        raise ValueError(f"an IPv4 network in IPv6 clothes; write {plain}/{found.prefixlen - _MAPPED.prefixlen}")
    return Network(str(given.ip) if found.prefixlen == found.max_prefixlen else str(found))


def _hostname(value: object) -> str | None:
    lowered = value.lower() if isinstance(value, str) else ""
    return lowered if len(lowered) <= 253 and _HOSTNAME.fullmatch(lowered) else None


def _sni(value: object) -> SniPattern:
    if isinstance(value, str):
        if value == "*":
            return SniPattern("*")
        suffix = value.removeprefix("*.")
        if name := _hostname(suffix):
            return SniPattern(name if suffix == value else f"*.{name}")
    raise expected('a host name, "*.example.org" for all below it, or "*" for any name', value)


def _http_host(value: object) -> HttpHost:
    if name := _hostname(value):
        return HttpHost(name)
    raise expected("a host name", value)


_STATUS = re.compile(r"([1-5][0-9]{2})-([1-5][0-9]{2})")


def _http_status(value: object) -> HttpStatus:
    """`200` as a number, or `"200-399"` as a text (HAProxy's manual, http-check expect status)."""
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return HttpStatus(str(value))
    limits = _STATUS.fullmatch(value) if isinstance(value, str) else None
    if limits is None or limits[1] > limits[2]:
        raise expected('a status from 100 to 599, or a range such as "200-399"', value)
    return HttpStatus(limits[1] if limits[1] == limits[2] else limits[0])


def _version(value: object) -> Version:
    if value != 1 or isinstance(value, (bool, float)):
        raise ValueError(f"this agent reads version 1 of the desired state, got {describe(value)}")
    return Version(1)


SCALARS: dict[object, Hook] = {
    Version: _version,
    Name: structure.matching(
        r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?",
        "a name: at most 63 of a-z 0-9 . _ - that begins and ends with a letter or a digit",
    ),
    Port: structure.whole(1, MAX_PORT),
    Count: structure.whole(1, MAX_CONNECTIONS),
    Serial: structure.whole(0, MAX_SERIAL),
    Weight: structure.whole(0, 256),
    Checks: structure.whole(1, 1_000),
    HttpStatus: _http_status,
    Milliseconds: structure.milliseconds,
    Address: _address,
    Network: _network,
    SniPattern: _sni,
    HttpPath: structure.matching(
        r"/[A-Za-z0-9._~/=&?+:@%,;-]{0,254}", 'a path, such as "/readyz", of at most 255 plain characters'
    ),
    HttpHost: _http_host,
    Endpoint: endpoint,
}

CONVERTER = structure.converter(SCALARS)
