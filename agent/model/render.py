"""A desired state as haproxy.cfg.

What each line says is decided here; how the lines stand in the file is the template's (`haproxy.cfg.j2`), which
holds no logic. Rendering knows nothing of generations: the text carries two marks where digest and generation
go, `Config.stamped` puts them in, and so two configurations can be compared without their names.
"""

from __future__ import annotations

import ipaddress
import traceback
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import jinja2
from attrs import field, frozen

from agent.errors import InvalidError, RefusedError, Violation
from agent.model.desired import Backend, DesiredState, Frontend, Server
from agent.model.schema import Balance, Endpoint, HealthType, ProxyProtocol
from agent.model.structure import duration

CONFIG_TEMPLATE = "haproxy.cfg.j2"
DESCRIPTION = "edgeagent generation "
"""How the running process names its configuration (`show info`, description)."""

# Private-use characters: no valid state can hold them, so a mark is never mistaken for text.
_DIGEST_MARK = "\ue000digest\ue001"
_GENERATION_MARK = "\ue000generation\ue001"
_SECTIONS = 12  # networks on one acl line: HAProxy takes 64 words and 2,048 characters a line
_SAFE_PATH = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:=,")


@frozen(kw_only=True)
class Process:
    """What haproxy.cfg says of the process itself; comes from agent.toml, never from the desired state.

    Times in milliseconds; "" where nothing is to be said. `ca_file`: what `verify: true` checks certificates by.
    """

    socket: PurePosixPath
    server_state: PurePosixPath
    maxconn: int
    hard_stop_after: int
    user: str = ""
    group: str = ""
    chroot: str = ""
    log: str = ""
    ca_file: str = ""


@frozen(kw_only=True)
class Template:
    """A template's text and the file people know it by."""

    file: str
    text: str


@frozen(kw_only=True)
class ServerLine:
    """One server's line. `fixed`: the words that only a new process can change."""

    name: str
    address: Endpoint
    weight: int
    fixed: tuple[str, ...]
    disabled: bool

    def __str__(self) -> str:
        words = ["server", self.name, str(self.address), f"weight {self.weight}", *self.fixed]
        return " ".join([*words, "disabled"] if self.disabled else words)


@frozen
class Config:
    """A rendered configuration that has no generation yet. `servers`: the line of each, by backend and name."""

    _text: str
    servers: dict[tuple[str, str], ServerLine] = field(eq=False, factory=dict)
    _lines: frozenset[str] = field(eq=False, factory=frozenset)

    def holds(self, line: ServerLine) -> bool:
        """Whether the text says of a server what `line` says: a template may have written it otherwise."""
        return str(line) in self._lines

    def stamped(self, *, digest: str, generation: int) -> bytes:
        """The bytes of haproxy.cfg, as `generation` of the document with that `digest`."""
        named = self._text.replace(_DIGEST_MARK, digest).replace(_GENERATION_MARK, str(generation))
        return named.encode()


@frozen(kw_only=True)
class _FrontendSection:
    name: str
    lines: tuple[str, ...]


@frozen(kw_only=True)
class _BackendSection:
    name: str
    lines: tuple[str, ...]
    servers: tuple[str, ...]


def render(state: DesiredState, process: Process, template: Template) -> Config:
    """The configuration of `state`.

    Raises InvalidError, with the template's line, when the template is broken or asks for what does not exist;
    RefusedError when certificates shall be verified and this host knows no authorities.
    """
    unverifiable = [one.name for one in state.backends if one.health.verify] if not process.ca_file else []
    if unverifiable:
        raise RefusedError(
            f"backends.{unverifiable[0]}.health.verify: this host has no bundle of certificate authorities",
            remedy="set haproxy.ca_file in agent.toml",
        )
    environment = jinja2.Environment(  # noqa: S701  # haproxy.cfg is no HTML; what goes in was checked by `schema`
        loader=jinja2.FunctionLoader(lambda _: (template.text, template.file, lambda: True)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    servers = {
        (pool.name, server.name): _server(server, pool, process) for pool in state.backends for server in pool.servers
    }
    try:
        text = environment.get_template(CONFIG_TEMPLATE).render(
            digest=_DIGEST_MARK,
            generation=_GENERATION_MARK,
            description=f"{DESCRIPTION}{_GENERATION_MARK}",
            global_lines=tuple(_global(process)),
            defaults_lines=tuple(_defaults(state, process)),
            frontends=tuple(_FrontendSection(name=one.name, lines=tuple(_frontend(one))) for one in state.frontends),
            backends=tuple(
                _BackendSection(
                    name=one.name,
                    lines=tuple(_backend(one)),
                    servers=tuple(str(servers[one.name, server.name]) for server in one.servers),
                )
                for one in state.backends
            ),
        )
    except jinja2.TemplateSyntaxError as error:
        raise InvalidError(template.file, (Violation((), error.message or "broken template", error.lineno),)) from None
    except Exception as error:  # a template can raise whatever its expressions raise; each is a mistake in the file
        if isinstance(error, (MemoryError, RecursionError)):
            raise
        line = _template_line(error, template.file)
        raise InvalidError(template.file, (Violation((), f"{type(error).__name__}: {error}", line),)) from None
    if f"{DESCRIPTION}{_GENERATION_MARK}" not in text:
        what = 'the global section must keep `description "{{ description }}"`: by it the agent knows what runs'
        raise InvalidError(template.file, (Violation((), what),))
    return Config(text, servers, frozenset(line.strip() for line in text.splitlines()))


def _template_line(error: BaseException, file: str) -> int | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return frames[-1].lineno if frames else None


def quoted(path: str | PurePosixPath) -> str:
    """A path as one word of haproxy.cfg. Single quotes keep everything as it is there but themselves.

    Settings refuse a path with a single quote or a control character in it; see `settings`.
    """
    text = str(path)
    return text if _SAFE_PATH.issuperset(text) else f"'{text}'"


def _global(process: Process) -> Iterator[str]:
    yield f"maxconn {process.maxconn}"
    if process.user:
        yield f"user {process.user}"
    if process.group:
        yield f"group {process.group}"
    if process.chroot:
        yield f"chroot {quoted(process.chroot)}"
    # Replaced processes live until their last session ends: IMAP IDLE takes hours (FACTS, HAProxy 7).
    yield f"hard-stop-after {duration(process.hard_stop_after)}"
    # The next process takes the listening sockets over from here, so that no connection is lost (FACTS, HAProxy 4).
    yield f"stats socket {quoted(process.socket)} mode 600 level admin expose-fd listeners"
    yield "stats timeout 1m"
    yield f"server-state-file {quoted(process.server_state)}"
    if process.log:
        yield f"log {process.log} daemon"


def _defaults(state: DesiredState, process: Process) -> Iterator[str]:
    yield "mode tcp"
    yield f"maxconn {state.maxconn}"
    yield f"timeout connect {duration(state.timeouts.connect)}"
    yield f"timeout client {duration(state.timeouts.client)}"
    yield f"timeout server {duration(state.timeouts.server)}"
    # Dead servers stay dead over a reload (FACTS, HAProxy 5).
    yield "load-server-state-from-file global"
    if process.log:
        yield "log global"
        yield "option tcplog"
        yield "option dontlognull"


# --- frontends --------------------------------------------------------------------------------------------------


def _frontend(frontend: Frontend) -> Iterator[str]:
    for endpoint in frontend.binds:
        yield " ".join(_bind(endpoint, frontend))
    if frontend.maxconn is not None:
        yield f"maxconn {frontend.maxconn}"
    yield from _sources(frontend)
    yield from _routes(frontend)
    yield f"default_backend {frontend.backend}"


def _bind(endpoint: Endpoint, frontend: Frontend) -> Iterator[str]:
    yield "bind"
    yield str(endpoint)
    if endpoint.family == 6:
        # IPv4 clients of a v6 wildcard would come as ::ffff:a.b.c.d and break reverse lookups (FACTS, HAProxy 9).
        yield "v6only"
    if frontend.accept_proxy:
        yield "accept-proxy"


def _sources(frontend: Frontend) -> Iterator[str]:
    """Who may connect, and how often. Deny wins over allow; only who passed both is counted.

    HAProxy converts addresses between the families when it matches (`::/0` takes every IPv4 client, an IPv4 network
    takes its 6to4 twin), so where a client of the other family can come, the family is tested as well (M: all three).

    Behind an outer proxy the client is known only after its header: `session` rules run then, `connection` rules
    before (HAProxy's manual, tcp-request session).
    """
    rule = "tcp-request session" if frontend.accept_proxy else "tcp-request connection"
    families = {4, 6} if frontend.accept_proxy else {endpoint.family for endpoint in frontend.binds}
    if any(_strangers(networks, families) for networks in (frontend.allow, frontend.deny)):
        yield "acl from_ipv6 src -m sub :"
    for name, networks, verb in (("denied", frontend.deny, "if"), ("allowed", frontend.allow, "unless")):
        if networks:
            terms = []
            for family, members in _by_family(networks):
                yield from _acl(f"{name}{family}", members)
                test = "" if families == {family} else " from_ipv6" if family == 6 else " !from_ipv6"
                terms.append(f"{name}{family}{test}")
            yield f"{rule} reject {verb} {' || '.join(terms)}"
    if frontend.rate_limit is not None:
        period = duration(frontend.rate_limit.period)
        # An ipv6 table holds both families: HAProxy maps an IPv4 source into it.
        yield f"stick-table type ipv6 size 100k expire {period} store conn_rate({period})"
        yield f"{rule} track-sc0 src"
        yield f"{rule} reject if {{ sc0_conn_rate gt {frontend.rate_limit.connections} }}"


def _by_family(networks: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for family in (4, 6):
        if members := tuple(one for one in networks if (":" in one) == (family == 6)):
            yield family, members


def _strangers(networks: tuple[str, ...], families: set[int]) -> bool:
    """Whether a client of another family than a network's can come."""
    return any(families != {family} for family, _ in _by_family(networks))


def _acl(name: str, networks: tuple[str, ...]) -> Iterator[str]:
    for start in range(0, len(networks), _SECTIONS):
        yield f"acl {name} src {' '.join(networks[start : start + _SECTIONS])}"


def _routes(frontend: Frontend) -> Iterator[str]:
    if not frontend.routes:
        return
    # Wait for the name, but no longer than for bytes that cannot be a TLS hello.
    yield "tcp-request inspect-delay 5s"
    yield "tcp-request content accept if { req.ssl_hello_type gt 0 }"
    for route in frontend.routes:
        for matcher, names in _matchers(route.sni):
            for start in range(0, len(names), _SECTIONS):
                words = " ".join(names[start : start + _SECTIONS])
                yield f"use_backend {route.backend} if {{ req.ssl_sni {matcher}{' ' if words else ''}{words} }}"


def _matchers(patterns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    if "*" in patterns:
        yield "-m found", [""]
        return
    if exact := [pattern for pattern in patterns if not pattern.startswith("*.")]:
        yield "-i -m str", exact
    if suffixes := [pattern[1:] for pattern in patterns if pattern.startswith("*.")]:
        yield "-i -m end", suffixes


# --- backends ---------------------------------------------------------------------------------------------------


def _backend(backend: Backend) -> Iterator[str]:
    yield f"balance {backend.balance}"
    if backend.balance is Balance.SOURCE:
        # Servers can be added at runtime only to a dynamic algorithm (FACTS, HAProxy 6).
        yield "hash-type consistent"
    health = backend.health
    if health.type is HealthType.NONE:
        return
    yield f"timeout check {duration(health.timeout)}"
    if health.type is HealthType.HTTP:
        yield "option httpchk"
        host = f" ver HTTP/1.1 hdr Host {health.host}" if health.host is not None else ""
        yield f"http-check send meth GET uri {health.path}{host}"
        yield f"http-check expect status {health.status}"


def _server(server: Server, backend: Backend, process: Process) -> ServerLine:
    words = []
    if backend.proxy_protocol is ProxyProtocol.V2:
        words.append("send-proxy-v2")
    elif backend.proxy_protocol is ProxyProtocol.V1:
        words.append("send-proxy")
    words += _check(server, backend, process)
    if server.backup:
        words.append("backup")
    return ServerLine(
        name=server.name,
        address=server.address,
        weight=server.weight,
        fixed=tuple(words),
        disabled=server.disabled,
    )


def _check(server: Server, backend: Backend, process: Process) -> Iterable[str]:
    """The words of a server's check.

    A plain `check` on a send-proxy server sends a LOCAL header; `port N` sends none, even for the data port's own
    number, unless `check-send-proxy` (FACTS, HAProxy 8). All three are used here to say what is meant.
    """
    health = backend.health
    if health.type is HealthType.NONE:
        return
    yield "check"
    own_port = health.port is None or health.port == server.address.port
    speaks = backend.proxy_protocol is not ProxyProtocol.NONE
    with_header = speaks and (own_port if health.send_proxy is None else health.send_proxy)
    if not own_port:
        yield f"port {health.port}"
    elif speaks and not with_header:
        yield f"port {server.address.port}"
    if with_header and not own_port:
        yield "check-send-proxy"
    if health.tls:
        yield "check-ssl"
        yield from _verify(backend, process)
    yield f"inter {duration(health.interval)} rise {health.rise} fall {health.fall}"


def _verify(backend: Backend, process: Process) -> Iterator[str]:
    health = backend.health
    if health.host is not None and not _is_address(health.host):
        yield f"check-sni {health.host}"
    if not health.verify:
        yield "verify none"
        return
    yield f"verify required ca-file {quoted(process.ca_file)}"
    if health.host is not None:
        yield f"verifyhost {health.host}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
