"""Addresses, networks and names of hosts as they may be written, each to its shortest form.

The texts allowed here are narrow on purpose: every one of them ends up in haproxy.cfg, and none can carry a space, a
quote, a `#`, a `$` or a newline there.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NewType

from attrs import field, frozen

from agent.desired.scalars import Scalar, describe, expected

MAX_PORT = 65_535
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  # recognised, not bound

Address = NewType("Address", str)
"""An IP literal in its shortest form."""
Network = NewType("Network", str)
"""`203.0.113.0/24`, `2001:db8::/32`; a single address has no `/`."""
SniPattern = NewType("SniPattern", str)
"""A host name, `*.suffix` or `*`; lower case."""
HttpHost = NewType("HttpHost", str)
ServerEndpoint = NewType("ServerEndpoint", "Endpoint")
"""Where a server listens: an address or a host name, and a port."""


@frozen(order=True)
class Endpoint:
    """An IP address and a port; of a server also a host name that has no address yet."""

    family: int
    """4 or 6; 0: a host name"""
    host: str
    """the address in its shortest form"""
    port: int
    """1 to 65535"""
    name: str = field(default="", eq=False, order=False)
    """the host name that it is for; empty: the document has the address"""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family == 6 else f"{self.host}:{self.port}"

    @property
    def resolved(self) -> bool:
        """Whether it has an address."""
        return self.family != 0

    @property
    def wildcard(self) -> bool:
        """Whether this is every address of its family.

        The families never meet: a v6 wildcard is bound v6only (facts.md, HAProxy 9).
        """
        return self.host in WILDCARDS


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENDPOINT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([1-9][0-9]{0,4})")


def address(value: object) -> Address:
    """An IP literal. Raises ValueError, as all of these do."""
    if not isinstance(value, str):
        raise expected("an IP address", value)
    return Address(ip(value)[1])


@functools.lru_cache(maxsize=4_096)  # a thousand backends have the same few nodes
def ip(text: str) -> tuple[int, str]:
    """Family and shortest form of an IP literal. Raises ValueError with what is wrong with it."""
    if "%" in text:  # ipaddress takes any character, a newline too, behind the % of a scope
        raise ValueError(f"an address with a scope is not taken, got {describe(text)}")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"expected an IP address (names are not looked up), got {describe(text)}") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError(f"an IPv4 address in IPv6 clothes; write {address.ipv4_mapped}")
    if address.is_multicast:
        raise ValueError(f"a multicast address cannot be connected to: {address}")
    return address.version, str(address)


def endpoint(value: object) -> Endpoint:
    """`192.0.2.1:25` or `[2001:db8::1]:25`. Raises ValueError."""
    match = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None or (port := int(match[3])) > MAX_PORT:
        hint = ""
        if isinstance(value, str) and value.count(":") > 2 and not value.startswith("["):
            hint = "; an IPv6 address stands in brackets"
        raise ValueError(
            f'expected an address and a port from 1 to 65,535, such as "192.0.2.1:25" or "[2001:db8::1]:25", '
            f"got {describe(value)}{hint}"
        )
    family, host = ip(match[1] or match[2])
    if (family == 6) != (match[1] is not None):
        raise ValueError(f"an IPv6 address stands in brackets, an IPv4 address does not, got {describe(value)}")
    return Endpoint(family, host, port)


_SERVER = re.compile(r"([^\[\]:]+):([1-9][0-9]{0,4})")


def server_endpoint(value: object) -> ServerEndpoint:
    """An endpoint, or `mx1.example.org:25`. Raises ValueError.

    A name whose last label is a number is none (RFC 3696, 2): it would be an address that was mistyped, and the
    system's resolver takes `10.0.20` for 10.0.0.20.
    """
    match = _SERVER.fullmatch(value) if isinstance(value, str) else None
    name = _hostname(match[1]) if match else None
    if match is None or name is None or name.rpartition(".")[2].isdigit() or int(match[2]) > MAX_PORT:
        return ServerEndpoint(endpoint(value))
    return ServerEndpoint(Endpoint(0, name, int(match[2]), name))


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4-mapped addresses (RFC 4291, 2.5.5.2): IPv4 clients to every rule."""


def network(value: object) -> Network:
    """A network, or one address. Raises ValueError."""
    if not isinstance(value, str) or "%" in value:
        raise expected('a network, such as "203.0.113.0/24"', value)
    try:
        parsed = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise expected('a network, such as "203.0.113.0/24" or "2001:db8::/32"', value) from None
    given = ipaddress.ip_interface(value)
    if given.ip != parsed.network_address:
        raise ValueError(f"{value} has bits behind its mask; write {parsed} (or {given.ip} for that one address)")
    if (
        isinstance(parsed, ipaddress.IPv6Network)
        and parsed.prefixlen >= _MAPPED.prefixlen
        and parsed.subnet_of(_MAPPED)
    ):
        plain = ipaddress.IPv4Address(int(parsed.network_address) & 0xFFFFFFFF)
        raise ValueError(f"an IPv4 network in IPv6 clothes; write {plain}/{parsed.prefixlen - _MAPPED.prefixlen}")
    return Network(str(given.ip) if parsed.prefixlen == parsed.max_prefixlen else str(parsed))


def _hostname(value: object) -> str | None:
    lowered = value.lower() if isinstance(value, str) else ""
    return lowered if len(lowered) <= 253 and _HOSTNAME.fullmatch(lowered) else None


def sni_pattern(value: object) -> SniPattern:
    """A host name, `*.suffix` or `*`, of any case. Raises ValueError."""
    if isinstance(value, str):
        if value == "*":
            return SniPattern("*")
        suffix = value.removeprefix("*.")
        if name := _hostname(suffix):
            return SniPattern(name if suffix == value else f"*.{name}")
    raise expected('a host name, "*.example.org" for all below it, or "*" for any name', value)


def http_host(value: object) -> HttpHost:
    """A host name, of any case. Raises ValueError."""
    if name := _hostname(value):
        return HttpHost(name)
    raise expected("a host name", value)


# --- the same as JSON Schema, as far as a pattern can say it --------------------------------------------------------

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
_IPV6 = r"[0-9A-Fa-f:]*:[0-9A-Fa-f:]*(\.[0-9]{1,3}){0,3}"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"


def _text(pattern: str, **more: object) -> dict[str, object]:
    return {"type": "string", "pattern": f"^{pattern}$", **more}


ADDRESS = Scalar(address, "IP address", _text(f"({_IPV4}|{_IPV6})"))
NETWORK = Scalar(
    network, "network", _text(f"({_IPV4}(/(3[0-2]|[12]?[0-9]))?|{_IPV6}(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)")
)
ENDPOINT = Scalar(endpoint, "address:port", _text(rf"({_IPV4}|\[{_IPV6}\]):{_PORT}"))
SERVER_ENDPOINT = Scalar(
    server_endpoint,
    "address:port or name:port",
    _text(rf"({_IPV4}|\[{_IPV6}\]|(?!([^:]*\.)?[0-9]+:)(?=[^:]{{1,253}}:){_NAME}):{_PORT}"),
)
SNI_PATTERN = Scalar(sni_pattern, "host name pattern", _text(rf"(\*|(\*\.)?{_NAME})", maxLength=255))
HTTP_HOST = Scalar(http_host, "host name", _text(_NAME, maxLength=253))
