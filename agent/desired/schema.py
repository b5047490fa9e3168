"""Desired state, version 1: every key with its type, its default, what one value alone may be, and what it is for.

The one set of classes: a document is structured into them (CONVERTER), and every later stage reads them. The JSON
Schema (`agent schema`) and the reference page are made of the same descriptions. What values may be together (a
backend that exists, an address bound once) is `rules`.

In a document `frontends`, `backends` and `servers` are mappings by name; here they are tuples of named values, which
`state` sorts by name, so that the order of the file changes nothing.
"""

from __future__ import annotations

import enum
import re
from typing import NewType

from attrs import field, frozen

from agent.desired import addresses, scalars, structure
from agent.desired.addresses import MAX_PORT, Address, Endpoint, HttpHost, Network, ServerEndpoint, SniPattern
from agent.desired.scalars import Scalar, about, describe, expected, name_key

MAX_SERIAL = 2**53 - 1  # what every JSON reader keeps exact
MAX_CONNECTIONS = 10_000_000

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
HttpPath = NewType("HttpPath", str)
Owner = NewType("Owner", str)


class Application(enum.StrEnum):
    """What the servers speak; it decides what the PROXY probe says to them."""

    SMTP = "smtp"
    IMAP = "imap"
    POP3 = "pop3"
    TLS = "tls"
    HTTP = "http"
    RAW = "raw"


class ProxyProtocol(enum.StrEnum):
    """Which PROXY header the servers receive."""

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
    """What happens to the sessions of a server whose checks fail."""

    KEEP = "keep"
    CLOSE = "close"


@frozen(kw_only=True)
class Timeouts:
    """How long HAProxy waits, unless a frontend or backend overrides it.

    In milliseconds.
    """

    connect: Milliseconds = field(
        default=Milliseconds(5_000),
        metadata=about("for a server to accept a connection", example="4s", line="timeout connect 4s"),
    )
    client: Milliseconds = field(
        default=Milliseconds(3_600_000),
        metadata=about("for a client that sends nothing", example="30m", line="timeout client 30m"),
    )
    server: Milliseconds = field(
        default=Milliseconds(3_600_000),
        metadata=about("for a server that sends nothing", example="30m", line="timeout server 30m"),
    )


@frozen(kw_only=True)
class FrontendTimeouts:
    """Overrides of `defaults.timeouts` for one frontend.

    In milliseconds; None: the default holds.
    """

    client: Milliseconds | None = field(
        default=None,
        metadata=about(
            "for a client that sends nothing (SMTP wants 5m, IMAP IDLE 1h)", example="5m", line="timeout client 5m"
        ),
    )


@frozen(kw_only=True)
class BackendTimeouts:
    """Overrides of `defaults.timeouts` for one backend.

    In milliseconds; None: the default holds.
    """

    connect: Milliseconds | None = field(
        default=None,
        metadata=about(
            "for a server to accept a connection; a client of a silent server waits this long before another server "
            "is tried",
            example="2s",
            line="timeout connect 2s",
        ),
    )
    server: Milliseconds | None = field(
        default=None, metadata=about("for a server that sends nothing", example="10m", line="timeout server 10m")
    )


@frozen(kw_only=True)
class Defaults:
    """What every frontend and backend starts from."""

    maxconn: Count = field(
        default=Count(2_000),
        metadata=about("connections at once, of one frontend", example=500, line="maxconn 500"),
    )
    timeouts: Timeouts = field(default=Timeouts(), metadata=about("how long HAProxy waits"))


@frozen(kw_only=True)
class RateLimit:
    """Limits per source address; `connections` in a `period`, `concurrent` ones at once, or both."""

    connections: Count | None = field(default=None, metadata=about("new connections in one `period`", example=30))
    period: Milliseconds | None = field(
        default=None, metadata=about("the time in which `connections` are counted", example="10s")
    )
    concurrent: Count | None = field(default=None, metadata=about("connections at once", example=20))
    exempt: tuple[Network, ...] = field(
        default=(), metadata=about("networks that are not limited", example=["203.0.113.9/32"])
    )


@frozen(kw_only=True)
class Route:
    """The backend of the connections whose SNI is one of these names. The first route that matches wins."""

    sni: tuple[SniPattern, ...] = field(
        metadata=about("host names; `*.example.org` is every name below it, `*` any name", example=["mail.example.org"])
    )
    backend: Name = field(metadata=about("where these connections go", example="webmail"))


_OWNER = about(
    "whose it is, in the words of whatever writes the document; kept and shown, nothing in haproxy.cfg depends on it",
    example="mail/mail/0b2f9c1e-5d3a-4e0b-8f6d-2a1c3b4d5e6f",
)


@frozen(kw_only=True)
class Frontend:
    """What clients connect to."""

    name: str = field(default="", metadata=name_key(Name))
    bind: tuple[Endpoint, ...] = field(
        metadata=about(
            "addresses with ports, on this firewall; an IPv6 address in brackets",
            example=["192.0.2.1:25"],
            line="bind 192.0.2.1:25",
        )
    )
    backend: Name | None = field(
        default=None,
        metadata=about(
            "where connections go; beside `routes`: those without a name or a match. Left out beside `routes`, such "
            "connections are refused before any server is involved",
            example="webmail",
            line="default_backend webmail",
        ),
    )
    maxconn: Count | None = field(
        default=None,
        metadata=about("connections at once; left out: `defaults.maxconn`", example=500, line="maxconn 500"),
    )
    timeouts: FrontendTimeouts = field(default=FrontendTimeouts(), metadata=about("overrides of `defaults.timeouts`"))
    accept_proxy: bool | tuple[Network, ...] = field(
        default=False,
        metadata=about(
            "the networks of the outer proxies that send a PROXY header; any other client is a client like any other, "
            "and a header that it sends is only data. `true`: every client must send one, so that anybody can forge "
            "an address and pass `allow`, `deny` and `rate_limit` (a warning)",
            example=["192.0.2.8"],
            line="tcp-request connection expect-proxy layer4 if",
        ),
    )
    allow: tuple[Network, ...] = field(
        default=(),
        metadata=about(
            "source networks that may connect; each concerns the clients of its own address family",
            example=["203.0.113.0/24"],
        ),
    )
    deny: tuple[Network, ...] = field(
        default=(),
        metadata=about("source networks that may not connect; wins over `allow`", example=["198.51.100.0/24"]),
    )
    rate_limit: RateLimit | None = field(
        default=None, metadata=about("limits per source address; counts survive reloads")
    )
    routes: tuple[Route, ...] = field(default=(), metadata=about("backends by the name in the TLS ClientHello (SNI)"))
    owner: Owner = field(default=Owner(""), eq=False, metadata=_OWNER)
    canary: bool = field(
        default=False,
        metadata=about(
            "`agent echo` is behind this frontend, and every resync tries whether the client's address arrives there; "
            "the backend must have `proxy_protocol: v2`, the frontend no `routes`",
            example=True,
        ),
    )

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend a connection can get to, each once, the default last unless a route leads there."""
        default = () if self.backend is None else (self.backend,)
        return tuple(dict.fromkeys([*(route.backend for route in self.routes), *default]))


@frozen(kw_only=True)
class Server:
    """One server of a backend."""

    name: str = field(default="", metadata=name_key(Name))
    address: ServerEndpoint = field(
        metadata=about(
            "address and port, or a host name and port, which the agent looks up at each resync",
            example="10.0.20.9:2525",
            line="10.0.20.9:2525",
        )
    )
    weight: Weight = field(
        default=Weight(1),
        metadata=about("its share, beside the weights of the others; 0: no new clients", example=10, line="weight 10"),
    )
    backup: bool = field(
        default=False,
        metadata=about("gets clients only where no other server can", example=True, line="backup"),
    )
    disabled: bool = field(
        default=False, metadata=about("in maintenance: no clients, no checks", example=True, line="disabled")
    )


@frozen(kw_only=True)
class Health:
    """How the servers of a backend are checked.

    Times in milliseconds.
    """

    type: HealthType = field(
        default=HealthType.TCP,
        metadata=about(
            "`tcp` connects; `http` asks for `path`; `tls` shakes hands; `greeting` reads the first line of smtp "
            "(`220`), imap (`* OK`) or pop3 (`+OK`) and says goodbye; `none` checks nothing",
            example="tls",
            line="check-ssl",
        ),
    )
    port: Port | None = field(
        default=None,
        metadata=about("where to check; left out: each server's own port", example=30145, line="port 30145"),
    )
    interval: Milliseconds = field(
        default=Milliseconds(5_000), metadata=about("between two checks", example="7s", line="inter 7s")
    )
    timeout: Milliseconds = field(
        default=Milliseconds(3_000),
        metadata=about(
            "for the answer of a check; for the connection itself HAProxy waits the shorter of `interval` and "
            "`timeouts.connect`",
            example="2s",
            line="timeout check 2s",
        ),
    )
    rise: Checks = field(
        default=Checks(2), metadata=about("good checks until a server is up", example=4, line="rise 4")
    )
    fall: Checks = field(
        default=Checks(3), metadata=about("bad checks until a server is down", example=5, line="fall 5")
    )
    send_proxy: bool | None = field(
        default=None,
        metadata=about(
            "whether the check carries a PROXY header; left out: only where it uses the data port",
            example=True,
            line="check-send-proxy",
        ),
    )
    path: HttpPath = field(
        default=HttpPath("/"),
        metadata=about(
            "of an http check: the path that is requested",
            example="/readyz",
            line="http-check send meth GET uri /readyz",
        ),
    )
    host: HttpHost | None = field(
        default=None,
        metadata=about(
            "of an http or tls check: the Host header, and the name asked for over TLS", example="health.example.org"
        ),
    )
    status: HttpStatus = field(
        default=HttpStatus("200"),
        metadata=about(
            "of an http check: the status, or a range of them, that is healthy",
            example="200-399",
            line="http-check expect status 200-399",
        ),
    )
    tls: bool = field(default=False, metadata=about("of an http check: ask over TLS", example=True, line="check-ssl"))
    verify: bool = field(
        default=False,
        metadata=about("of a check over TLS: verify the certificate, by `haproxy.ca_file`", example=True),
    )

    @property
    def over_tls(self) -> bool:
        """Whether checks speak TLS."""
        return self.tls or self.type is HealthType.TLS


@frozen(kw_only=True)
class Backend:
    """A pool of servers: a group of nodes, servers one by one, or both."""

    name: str = field(default="", metadata=name_key(Name))
    application: Application = field(
        default=Application.RAW,
        metadata=about("what the servers speak: what the PROXY probe says to them", example="smtp"),
    )
    proxy_protocol: ProxyProtocol = field(
        default=ProxyProtocol.V2,
        metadata=about("which PROXY header the servers receive", example="v1", line="send-proxy"),
    )
    balance: Balance = field(
        default=Balance.ROUNDROBIN,
        metadata=about("how connections are spread over the servers", example="leastconn", line="balance leastconn"),
    )
    # Unfolded into `servers` by `state`: how they were written makes no other backend.
    nodes: Name | None = field(
        default=None,
        eq=False,
        metadata=about("a group of `nodes`: each of them is a server of this backend, at `port`", example="workers"),
    )
    port: Port | None = field(
        default=None, eq=False, metadata=about("the port of the servers that `nodes` makes", example=30125)
    )
    servers: tuple[Server, ...] = field(default=(), metadata=about("servers one by one"))
    timeouts: BackendTimeouts = field(default=BackendTimeouts(), metadata=about("overrides of `defaults.timeouts`"))
    on_down: OnDown = field(
        default=OnDown.KEEP,
        metadata=about(
            "what happens to the sessions of a server whose checks fail: `keep` lets them go on, `close` ends them",
            example="close",
            line="on-marked-down shutdown-sessions",
        ),
    )
    health: Health = field(default=Health(), metadata=about("how the servers are checked"))
    owner: Owner = field(default=Owner(""), eq=False, metadata=_OWNER)


@frozen(kw_only=True)
class Node:
    """One node of a group; its address alone is a node of weight 1."""

    address: Address = field(metadata=about("its address, without a port", example="10.0.20.102"))
    weight: Weight = field(
        default=Weight(1),
        metadata=about("of its server in every backend that names the group; 0: no new clients there", example=0),
    )


@frozen(kw_only=True, cache_hash=True)  # it is a key of what was rendered, and large
class DesiredState:
    """The keys at the top level."""

    version: Version = field(metadata=about("version of this format", example=1))
    name: Name = field(
        default=Name(""), metadata=about("a label of this edge, in status and metrics", example="home-edge")
    )
    serial: Serial | None = field(
        default=None,
        metadata=about(
            "a number that only grows: a lower one than what is live is refused on every path in (exit 9)", example=42
        ),
    )
    allow_empty: bool = field(
        default=False,
        metadata=about(
            "`true`: a document without a frontend is accepted although it ends all service; without it such a "
            "document is refused (exit 9) wherever something is live",
            example=True,
        ),
    )
    defaults: Defaults = field(default=Defaults(), metadata=about("what every frontend and backend starts from"))
    # Unfolded into the servers of the backends by `state`.
    nodes: dict[Name, dict[Name, Address | Node]] = field(
        factory=dict,
        eq=False,
        metadata=about(
            "groups of addresses, named once and used by many backends; a node of weight 0 takes no new clients",
            example={"workers": {"node1": "10.0.20.101", "node2": {"address": "10.0.20.102", "weight": 0}}},
        ),
    )
    manager: Owner = field(
        default=Owner(""),
        eq=False,
        metadata=about(
            "who writes this document, such as a cluster's uid: one that another manager writes is refused (exit 9) "
            "while this is live, unless it is forced; left out, anybody may",
            example="8c5e1b0a-4c2f-4b2e-9d7a-1f2e3d4c5b6a",
        ),
    )
    frontends: tuple[Frontend, ...] = field(default=(), metadata=about("what clients connect to"))
    backends: tuple[Backend, ...] = field(default=(), metadata=about("where connections go"))


# --- scalars ------------------------------------------------------------------------------------------------------

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


SCALARS: dict[object, Scalar] = {
    Version: Scalar(_version, "1", {"const": 1}),
    Name: scalars.matching(
        r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?",
        "a name: at most 63 of a-z 0-9 . _ - that begins and ends with a letter or a digit",
        label="name",
    ),
    Port: scalars.int_between(1, MAX_PORT),
    Count: scalars.int_between(1, MAX_CONNECTIONS),
    Serial: scalars.int_between(0, MAX_SERIAL),
    Weight: scalars.int_between(0, 256),
    Checks: scalars.int_between(1, 1_000),
    HttpStatus: Scalar(
        _http_status,
        "status or range",
        {
            "anyOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "pattern": f"^{_STATUS.pattern}$"},
            ]
        },
    ),
    Milliseconds: scalars.DURATION,
    Address: addresses.ADDRESS,
    Network: addresses.NETWORK,
    SniPattern: addresses.SNI_PATTERN,
    Owner: scalars.matching(
        r"[!-~]{1,400}", "1 to 400 printable ASCII characters without a space", label="1 to 400 ASCII characters"
    ),
    HttpPath: scalars.matching(
        r"/[A-Za-z0-9._~/=&?+:@%,;-]{0,254}",
        'a path, such as "/readyz", of at most 255 plain characters',
        label="path",
    ),
    HttpHost: addresses.HTTP_HOST,
    Endpoint: addresses.ENDPOINT,
    ServerEndpoint: addresses.SERVER_ENDPOINT,
}

CONVERTER = structure.converter(SCALARS)
