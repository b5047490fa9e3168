"""The desired state as later stages see it: frozen, sorted by name, groups unfolded, every default said.

`parse` is the only way to get one from bytes: all of it is right, or every violation is told at once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

from attrs import field, frozen

from agent.desired import document, rules, schema, structure
from agent.desired.document import Document
from agent.desired.schema import (
    Application,
    BackendTimeouts,
    Balance,
    Endpoint,
    FrontendTimeouts,
    HealthType,
    OnDown,
    ProxyProtocol,
    RateLimit,
    Timeouts,
)
from agent.errors import MOST_VIOLATIONS, Finding, InvalidError, Violation, dotted

DEFAULT_MAX_BYTES = 1_048_576


Key = tuple[str, str]
"""A server: its backend and its name."""


@frozen(kw_only=True)
class Route:
    """Connections whose SNI is one of `sni` (host name, `*.suffix`, `*`) go to `backend`."""

    sni: tuple[str, ...]
    backend: str


@frozen(kw_only=True)
class Frontend:
    """What clients connect to. `maxconn` None: the default of all frontends.

    `backend` None: a client that matches no route is refused. `accept_proxy`: whether clients send a PROXY header, or
    the networks of the proxies that alone may send one.
    `canary`: an echo is behind it, and at every resync it is tried whether clients' addresses get through.
    """

    name: str
    binds: tuple[Endpoint, ...]
    backend: str | None
    maxconn: int | None
    accept_proxy: bool | tuple[str, ...]
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    rate_limit: RateLimit | None
    routes: tuple[Route, ...]
    timeouts: FrontendTimeouts = field(factory=FrontendTimeouts)
    canary: bool = False

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend a connection can get to, each once, the default last unless a route leads there."""
        default = () if self.backend is None else (self.backend,)
        return tuple(dict.fromkeys([*(route.backend for route in self.routes), *default]))


@frozen(kw_only=True)
class Server:
    """One server of one backend."""

    name: str
    address: Endpoint
    weight: int = 1
    backup: bool = False
    disabled: bool = False


@frozen(kw_only=True)
class Health:
    """How the servers of a backend are checked; times in milliseconds.

    `port` None: each server's own. `send_proxy` None: a header only where the check uses the data port.
    """

    type: HealthType
    port: int | None
    interval: int
    timeout: int
    rise: int
    fall: int
    send_proxy: bool | None
    path: str
    host: str | None
    status: str
    tls: bool
    verify: bool


@frozen(kw_only=True)
class Backend:
    """A pool of servers, sorted by name."""

    name: str
    application: Application
    proxy_protocol: ProxyProtocol
    balance: Balance
    servers: tuple[Server, ...]
    health: Health
    timeouts: BackendTimeouts = field(factory=BackendTimeouts)
    on_down: OnDown = OnDown.KEEP


@frozen(kw_only=True, cache_hash=True)  # it is a key of what was rendered, and large
class DesiredState:
    """What shall be. Frontends and backends are sorted by name: the order of the file changes nothing.

    `allow_empty`: a document without a frontend may end all service.
    """

    name: str
    serial: int | None
    maxconn: int
    timeouts: Timeouts
    frontends: tuple[Frontend, ...]
    backends: tuple[Backend, ...]
    allow_empty: bool = False


@frozen(kw_only=True)
class Limits:
    """What this host allows: connections of the whole process, open files (None: not known)."""

    process_maxconn: int = 4_000
    file_limit: int | None = None


@frozen(kw_only=True)
class Parsed:
    """A valid document: the state, the SHA-256 of its bytes (hex), and what is unwise about it."""

    state: DesiredState
    digest: str
    findings: tuple[Finding, ...]


def digest_of(data: bytes) -> str:
    """The name of a document's exact bytes: SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes, *, file: str, max_bytes: int = DEFAULT_MAX_BYTES, limits: Limits = Limits()) -> Parsed:
    """Bytes to a desired state. `file` names it in messages.

    Raises InvalidError with every violation, in the order of the document; never anything else.
    """
    found = document.read(data, file=file, max_bytes=max_bytes)
    if excess := tuple(itertools.islice(rules.too_much(found.value), MOST_VIOLATIONS)):
        raise InvalidError(file, _placed(found, excess))
    if isinstance(found.value, dict) and "version" in found.value and found.value["version"] != 1:
        built = structure.structure(schema.CONVERTER, {"version": found.value["version"]}, schema.Written)
    else:
        built = structure.structure(schema.CONVERTER, found.value, schema.Written)
    broken = [Violation(fault.path, fault.message, found.line(fault.path)) for fault in built.faults]
    remarks_on_rules = itertools.islice(rules.violations(built), MOST_VIOLATIONS + 1)  # one more: there are others
    broken += _placed(found, (_at(built, remark) for remark in remarks_on_rules))
    broken += found.violations
    if broken or built.value is None:
        listed = tuple(sorted(dict.fromkeys(broken), key=_order))
        raise InvalidError(file, listed, more=built.more + found.more)
    remarks = rules.advice(built.value, process_maxconn=limits.process_maxconn, file_limit=limits.file_limit)
    findings = tuple(
        Finding(dotted(remark.path), remark.message, remark.remedy, found.line(remark.path) if remark.path else None)
        for remark in remarks
    )
    return Parsed(state=_unfold(built.value), digest=digest_of(data), findings=findings)


def _at(built: structure.Structured[schema.Written], remark: rules.Remark) -> rules.Remark:
    """Rules see the tree without what was cut out; people see the document."""
    return rules.Remark(built.at(remark.path), remark.message, remark.remedy)


def _placed(found: Document, remarks: Iterable[rules.Remark]) -> tuple[Violation, ...]:
    return tuple(Violation(remark.path, remark.message, found.line(remark.path)) for remark in remarks)


def _order(violation: Violation) -> tuple[int, str]:
    return (violation.line or 0, dotted(violation.path))


def _unfold(written: schema.Written) -> DesiredState:
    return DesiredState(
        name=written.name,
        serial=written.serial,
        allow_empty=written.allow_empty,
        maxconn=schema.DEFAULT_MAXCONN if written.defaults.maxconn is None else written.defaults.maxconn,
        timeouts=written.defaults.timeouts,
        frontends=tuple(_frontend(name, one) for name, one in sorted(written.frontends.items())),
        backends=tuple(_backend(name, one, written) for name, one in sorted(written.backends.items())),
    )


def _frontend(name: str, one: schema.Frontend) -> Frontend:
    return Frontend(
        name=name,
        binds=one.bind,
        backend=one.backend,
        maxconn=one.maxconn,
        accept_proxy=one.accept_proxy,
        allow=one.allow,
        deny=one.deny,
        rate_limit=one.rate_limit,
        routes=tuple(Route(sni=route.sni, backend=route.backend) for route in one.routes),
        timeouts=one.timeouts,
        canary=one.canary,
    )


def _backend(name: str, one: schema.Backend, written: schema.Written) -> Backend:
    servers = [
        Server(
            name=key,
            address=server.address,
            weight=server.weight,
            backup=server.backup,
            disabled=server.disabled,
        )
        for key, server in one.servers.items()
    ]
    if one.nodes is not None and one.port is not None:
        servers += [
            Server(name=key, address=Endpoint(6 if ":" in host else 4, host, one.port))
            for key, host in written.nodes[one.nodes].items()
        ]
    health = one.health
    return Backend(
        name=name,
        application=one.application,
        proxy_protocol=one.proxy_protocol,
        balance=one.balance,
        servers=tuple(sorted(servers, key=lambda server: server.name)),
        health=Health(
            type=health.type,
            port=health.port,
            interval=5_000 if health.interval is None else health.interval,
            timeout=3_000 if health.timeout is None else health.timeout,
            rise=2 if health.rise is None else health.rise,
            fall=3 if health.fall is None else health.fall,
            send_proxy=health.send_proxy,
            path="/" if health.path is None else health.path,
            host=health.host,
            status="200" if health.status is None else health.status,
            tls=health.type is HealthType.TLS or bool(health.tls),
            verify=bool(health.verify),
        ),
        timeouts=one.timeouts,
        on_down=one.on_down,
    )
