"""A desired state as haproxy.cfg.

What each line says is decided here; how the lines stand in the file is the template's (`haproxy.cfg.j2`), which
holds no logic. Rendering knows nothing of generations: the text carries two marks where digest and generation
go, `Config.stamped` puts them in, and so two configurations can be compared without their names.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import traceback
from collections.abc import Generator, Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from attrs import asdict, field, frozen

from agent import __version__
from agent.desired.addresses import Endpoint
from agent.desired.scalars import duration
from agent.desired.schema import (
    Application,
    Backend,
    Balance,
    DesiredState,
    Frontend,
    HealthType,
    OnDown,
    ProxyProtocol,
    RateLimit,
    Server,
)
from agent.errors import InvalidError, RefusedError, Violation
from agent.haproxy.observed import FRONTEND_PREFIX

if TYPE_CHECKING:
    import jinja2

CONFIG_TEMPLATE = "haproxy.cfg.j2"
DESCRIPTION = "edgeagent generation "
"""How the running process names its configuration (`show info`, description)."""

# Private-use characters: no valid state can hold them, so a mark is never mistaken for text.
_DIGEST_MARK = "\ue000digest\ue001"
_GENERATION_MARK = "\ue000generation\ue001"
PEERS = "edgeagent"
"""The name of the peers section, and of the local peer in it."""
_SECTIONS = 12  # networks on one acl line: HAProxy takes 64 words and 2,048 characters a line
RETRIES = 3
HALF_CLOSED = "1m"
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = "4m", "30s", 4
# What greets first, the polite way to leave, and its answer (RFC 5321, 9051, 1939).
_GREETINGS = {
    Application.SMTP: ("'^220[ -]'", r'"QUIT\r\n"', "^221"),
    Application.IMAP: (r"'^\* (OK|PREAUTH)'", r'"a LOGOUT\r\n"', r"'^\* BYE'"),
    Application.POP3: (r"'^\+OK'", r'"QUIT\r\n"', r"'^\+OK'"),
}
_SAFE_PATH = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:=,")


@frozen(kw_only=True)
class Process:
    """The global section of haproxy.cfg. Comes from agent.toml, never from the desired state.

    A text that is empty: nothing is written.
    """

    socket: PurePosixPath
    """the stats socket"""
    server_state: PurePosixPath
    """the server-state file"""
    maxconn: int
    """connections of the whole process"""
    hard_stop_after: int
    """how long an old process may finish its sessions, in milliseconds"""
    user: str = ""
    """the user that HAProxy changes to"""
    group: str = ""
    """the group that HAProxy changes to"""
    chroot: str = ""
    """the folder that HAProxy changes its root to"""
    log: str = ""
    """syslog address"""
    ca_file: str = ""
    """certificate authorities for `verify: true`"""
    peers: PurePosixPath | None = None
    """the unix socket by which a process passes its rate limits on to the next one, below `chroot` where there is
    one; None: they cannot be passed on"""


@frozen(kw_only=True)
class Template:
    """A template."""

    file: str
    """its name, for messages"""
    text: str
    """Jinja2"""
    built_in: bool = False
    """the one of this package: written without Jinja2, to the same bytes"""


def digest_of_template(template: Template, process: Process) -> str:
    """SHA-256 (hex) of all but the state that makes a configuration: the template, the settings, and this program."""
    return hashlib.sha256("\0".join((__version__, template.text, repr(process))).encode()).hexdigest()


@frozen(kw_only=True)
class ServerLine:
    """A `server` line."""

    name: str
    """of the server"""
    address: Endpoint
    """address and port"""
    weight: int
    """0 to 256"""
    fixed: tuple[str, ...]
    """the keywords that only a new process can change"""
    disabled: bool
    """in maintenance"""

    def __str__(self) -> str:
        keywords = ["server", self.name, str(self.address), f"weight {self.weight}", *self.fixed]
        return " ".join([*keywords, "disabled"] if self.disabled else keywords)


@frozen
class Config:
    """A rendered configuration that has no generation yet. `servers`: the line of each, by backend and name."""

    _text: str
    _process: Process = field(eq=False)
    servers: dict[tuple[str, str], ServerLine] = field(eq=False, factory=dict)
    _lines: frozenset[str] = field(eq=False, factory=frozenset)

    def line(self, backend: Backend, server: Server) -> ServerLine:
        """How a server of any state would be written with the settings of this one."""
        return _server(server, backend, self._process)

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


@frozen(kw_only=True)
class _Parts:
    """What a template is given. The names are its variables, in templates/haproxy.cfg.j2."""

    digest: str
    generation: str
    description: str
    global_lines: tuple[str, ...]
    defaults_lines: tuple[str, ...]
    peers: str
    peers_lines: tuple[str, ...]
    frontends: tuple[_FrontendSection, ...]
    backends: tuple[_BackendSection, ...]


def require_authorities(state: DesiredState, process: Process) -> None:
    """Raises RefusedError where certificates shall be verified and this host knows no authorities."""
    unverifiable = [backend.name for backend in state.backends if backend.health.verify] if not process.ca_file else []
    if unverifiable:
        raise RefusedError(
            f"backends.{unverifiable[0]}.health.verify: this host has no bundle of certificate authorities",
            remedy="set haproxy.ca_file in agent.toml",
        )


def render(state: DesiredState, process: Process, template: Template) -> Config:
    """The configuration of `state`.

    Raises InvalidError, with the template's line, when the template is broken or asks for what does not exist;
    RefusedError when certificates shall be verified and this host knows no authorities.
    """
    require_authorities(state, process)
    servers = {
        (pool.name, server.name): _server(server, pool, process) for pool in state.backends for server in pool.servers
    }
    parts = _Parts(
        digest=_DIGEST_MARK,
        generation=_GENERATION_MARK,
        description=f"{DESCRIPTION}{_GENERATION_MARK}",
        global_lines=tuple(_global(state, process)),
        defaults_lines=tuple(_defaults(state, process)),
        peers=PEERS,
        peers_lines=tuple(_peers(process)) if passes_limits_on(state, process) else (),
        frontends=tuple(
            _FrontendSection(name=f"{FRONTEND_PREFIX}{frontend.name}", lines=tuple(_frontend(frontend, process)))
            for frontend in state.frontends
        ),
        backends=tuple(
            _BackendSection(
                name=backend.name,
                lines=tuple(_backend(backend)),
                servers=tuple(str(servers[backend.name, server.name]) for server in backend.servers),
            )
            for backend in state.backends
        ),
    )
    text = _built_in(parts) if template.built_in else _rendered(parts, template)
    if f"{DESCRIPTION}{_GENERATION_MARK}" not in text:
        what = 'the global section must keep `description "{{ description }}"`: by it the agent knows what runs'
        raise InvalidError(template.file, (Violation((), what),))
    if passes_limits_on(state, process) and f"\npeers {PEERS}\n" not in text:
        what = "rate limits need the section `peers {{ peers }}` with {{ peers_lines }}: see the built-in template"
        raise InvalidError(template.file, (Violation((), what),))
    return Config(text, process, servers, frozenset(line.strip() for line in text.splitlines()))


def _built_in(parts: _Parts) -> str:
    """What the template of this package makes of the parts, without Jinja2.

    Importing that is a sixth of `agent plan` and of the memory of the service. The tests hold both to the same bytes.
    """

    def section(head: str, *groups: tuple[str, ...]) -> Iterator[str]:
        yield head
        for lines in groups:
            yield from (f"    {line}" for line in lines)

    lines = [
        "# Written by edgeagent. Changes made here are overwritten: change the desired state instead.",
        f"# generation {parts.generation}",
        f"# sha256 of the desired state {parts.digest}",
        "",
        *section("global", (f'description "{parts.description}"',), parts.global_lines),
        "",
        *section("defaults", parts.defaults_lines),
    ]
    if parts.peers_lines:
        lines += ["", *section(f"peers {parts.peers}", parts.peers_lines)]
    for frontend in parts.frontends:
        lines += ["", *section(f"frontend {frontend.name}", frontend.lines)]
    for backend in parts.backends:
        lines += ["", *section(f"backend {backend.name}", backend.lines, backend.servers)]
    return "\n".join([*lines, ""])


def _rendered(parts: _Parts, template: Template) -> str:
    """What an operator's template makes of the parts. Raises InvalidError, with the template's line."""
    import jinja2

    try:
        return _compiled(template).render(asdict(parts, recurse=False))
    except jinja2.TemplateSyntaxError as error:
        raise InvalidError(template.file, (Violation((), error.message or "broken template", error.lineno),)) from None
    except Exception as error:  # a template can raise whatever its expressions raise; each is a mistake in the file
        if isinstance(error, (MemoryError, RecursionError)):
            raise
        line = _template_line(error, template.file)
        raise InvalidError(template.file, (Violation((), f"{type(error).__name__}: {error}", line),)) from None


@functools.lru_cache(maxsize=2)  # compiling costs milliseconds, more than rendering a small state
def _compiled(template: Template) -> jinja2.Template:
    """Raises TemplateSyntaxError."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701  # haproxy.cfg is no HTML; what goes in was checked by `schema`
        loader=jinja2.FunctionLoader(lambda _: (template.text, template.file, lambda: True)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    return environment.get_template(CONFIG_TEMPLATE)


def _template_line(error: BaseException, file: str) -> int | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return frames[-1].lineno if frames else None


def quoted(path: str | PurePosixPath) -> str:
    """A path as one word of haproxy.cfg. Single quotes keep everything as it is there but themselves.

    Settings refuse a path with a single quote or a control character in it; see `settings`.
    """
    text = str(path)
    return text if _SAFE_PATH.issuperset(text) else f"'{text}'"


def passes_limits_on(state: DesiredState, process: Process) -> bool:
    """Whether a process counts clients for rate limits, and can pass those counts on to the next process."""
    return process.peers is not None and any(frontend.rate_limit for frontend in state.frontends)


def _peers(process: Process) -> Iterator[str]:
    """The local process as its own peer: on a reload the old process sends its tables to the new one.

    See facts.md, HAProxy 13.

    HAProxy binds the socket before it enters its chroot, and connects to it from inside: `unix-bind prefix` stands in
    front of bound paths only (HAProxy's manual, unix-bind).
    """
    assert process.peers is not None
    owner = [f"user {process.user}"] if process.user else []
    owner += [f"group {process.group}"] if process.group else []
    yield " ".join(["default-bind", *owner, "mode 600"])
    path = PurePosixPath("/", process.peers.relative_to(process.chroot)) if process.chroot else process.peers
    yield f"peer {PEERS} {quoted(f'unix@{path}')}"


def _global(state: DesiredState, process: Process) -> Iterator[str]:
    yield f"maxconn {process.maxconn}"
    if process.user:
        yield f"user {process.user}"
    if process.group:
        yield f"group {process.group}"
    if process.chroot:
        yield f"chroot {quoted(process.chroot)}"
    # Replaced processes live until their last session ends: IMAP IDLE takes hours (facts.md, HAProxy 7).
    yield f"hard-stop-after {duration(process.hard_stop_after)}"
    # The next process takes the listening sockets over from here, so that no connection is lost (facts.md, HAProxy 4).
    yield f"stats socket {quoted(process.socket)} mode 600 level admin expose-fd listeners"
    yield "stats timeout 1m"
    yield f"server-state-file {quoted(process.server_state)}"
    if passes_limits_on(state, process):
        yield f"localpeer {PEERS}"
        if process.chroot:
            yield f"unix-bind prefix {quoted(process.chroot)}"
    if any(_greets_with_header(backend, server) for backend in state.backends for server in backend.servers):
        # A check of a mail server carries a PROXY header with true addresses: Postfix died of LOCAL (facts.md, mail
        # servers).
        yield "pp2-never-send-local"
    if process.log:
        yield f"log {process.log} daemon"


def _defaults(state: DesiredState, process: Process) -> Iterator[str]:
    yield "mode tcp"
    yield f"maxconn {state.defaults.maxconn}"
    yield f"timeout connect {duration(state.defaults.timeouts.connect)}"
    yield f"timeout client {duration(state.defaults.timeouts.client)}"
    yield f"timeout server {duration(state.defaults.timeouts.server)}"
    # A client or server that vanishes without a word is noticed after idle + 4 x intvl, not after an hour; and one
    # that has closed its half of a session holds the other half no longer than this.
    yield f"timeout client-fin {HALF_CLOSED}"
    yield f"timeout server-fin {HALF_CLOSED}"
    for side in ("cli", "srv"):
        yield f"option {side}tcpka"
        yield f"{side}tcpka-idle {KEEPALIVE_IDLE}"
        yield f"{side}tcpka-intvl {KEEPALIVE_INTERVAL}"
        yield f"{side}tcpka-cnt {KEEPALIVE_COUNT}"
    # Each try goes to another server, or a dead one costs its clients until its checks notice (facts.md, HAProxy 11).
    yield f"retries {RETRIES}"
    yield "option redispatch 1"
    # Dead servers stay dead over a reload (facts.md, HAProxy 5).
    yield "load-server-state-from-file global"
    if process.log:
        yield "log global"
        yield "option tcplog"
        yield "option dontlognull"


# --- frontends --------------------------------------------------------------------------------------------------


def _frontend(frontend: Frontend, process: Process) -> Iterator[str]:
    for endpoint in frontend.bind:
        yield " ".join(_bind(endpoint, frontend))
    if frontend.maxconn is not None:
        yield f"maxconn {frontend.maxconn}"
    if frontend.timeouts.client is not None:
        yield f"timeout client {duration(frontend.timeouts.client)}"
    yield from _sources(frontend, process)
    yield from _routes(frontend)
    if frontend.backend is not None:
        yield f"default_backend {frontend.backend}"


def _bind(endpoint: Endpoint, frontend: Frontend) -> Iterator[str]:
    yield "bind"
    yield str(endpoint)
    if endpoint.family == 6:
        # IPv4 clients of a v6 wildcard would come as ::ffff:a.b.c.d and break reverse lookups (facts.md, HAProxy 9).
        yield "v6only"
    if frontend.accept_proxy is True:
        yield "accept-proxy"


def _sources(frontend: Frontend, process: Process) -> Iterator[str]:
    """The sources that may connect, and how often. Deny wins over allow; only clients that pass both are counted.

    HAProxy converts addresses between the families when it matches (`::/0` takes every IPv4 client, an IPv4 network
    takes its 6to4 twin), so where a client of the other family can come, the family is tested as well (M: all three).
    An outer proxy may name an IPv4 client as `::ffff:a.b.c.d`: that is IPv4 to every rule, and `::ffff:0:0/96` takes
    both forms (HAProxy's pattern.c, pat_match_ip; M).

    Behind an outer proxy the client is known only after its header: `session` rules run then, `connection` rules
    before (HAProxy's manual, tcp-request session). Where only some proxies send one, the first rule tests who connects.
    """
    rule = "tcp-request session" if frontend.accept_proxy else "tcp-request connection"
    connecting = {endpoint.family for endpoint in frontend.bind}
    named = {4, 6} if frontend.accept_proxy else connecting
    proxies = () if isinstance(frontend.accept_proxy, bool) else frontend.accept_proxy
    exempt = frontend.rate_limit.exempt if frontend.rate_limit is not None else ()
    tested = (frontend.allow, frontend.deny, exempt)
    if _strangers(proxies, connecting) or any(_strangers(networks, named) for networks in tested):
        yield "acl from_ipv4 src ::ffff:0:0/96"
    if proxies:
        terms = yield from _terms("proxy", proxies, connecting)
        yield f"tcp-request connection expect-proxy layer4 if {terms}"
    for name, networks, verb in (("denied", frontend.deny, "if"), ("allowed", frontend.allow, "unless")):
        if networks:
            terms = yield from _terms(name, networks, named)
            yield f"{rule} reject {verb} {terms}"
    if frontend.rate_limit is not None:
        yield from _limits(frontend.rate_limit, rule, named, process)


def _terms(name: str, networks: tuple[str, ...], families: set[int]) -> Generator[str, None, str]:
    """The acls of `networks`, and the condition that a client of one of these `families` is in one of them."""
    terms = []
    for family, members in _by_family(networks):
        yield from _acl(f"{name}{family}", members)
        test = "" if families == {family} else " !from_ipv4" if family == 6 else " from_ipv4"
        terms.append(f"{name}{family}{test}")
    return " || ".join(terms)


def _limits(limit: RateLimit, rule: str, families: set[int], process: Process) -> Iterator[str]:
    unless = ""
    if limit.exempt:
        terms = yield from _terms("exempt", limit.exempt, families)
        unless = f" unless {terms}"
    # An entry in use does not expire: a table of concurrent connections alone needs only some time.
    period = duration(limit.period or 60_000)
    counters = ([f"conn_rate({period})"] if limit.connections else []) + (["conn_cur"] if limit.concurrent else [])
    peers = f" peers {PEERS}" if process.peers is not None else ""
    # An ipv6 table holds both families: HAProxy maps an IPv4 source into it.
    yield f"stick-table type ipv6 size 100k expire {period} store {','.join(counters)}{peers}"
    yield f"{rule} track-sc0 src{unless}"
    if limit.connections:
        yield f"{rule} reject if {{ sc0_conn_rate gt {limit.connections} }}"
    if limit.concurrent:
        yield f"{rule} reject if {{ sc0_conn_cur gt {limit.concurrent} }}"


def _by_family(networks: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for family in (4, 6):
        if members := tuple(network for network in networks if (":" in network) == (family == 6)):
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
    if frontend.backend is not None:
        yield "tcp-request content accept if { req.ssl_hello_type gt 0 }"
    else:
        for route in frontend.routes:
            yield from (f"acl routed {test}" for test in _tests(route.sni))
        yield "tcp-request content accept if routed"
        yield "tcp-request content reject"
    for route in frontend.routes:
        yield from (f"use_backend {route.backend} if {{ {test} }}" for test in _tests(route.sni))


def _tests(patterns: tuple[str, ...]) -> Iterator[str]:
    """`req.ssl_sni ...` for these names, as many on a line as HAProxy reads."""
    for matcher, names in _matchers(patterns):
        for start in range(0, len(names), _SECTIONS):
            chunk = " ".join(names[start : start + _SECTIONS])
            yield f"req.ssl_sni {matcher}{' ' if chunk else ''}{chunk}"


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
        # Servers can be added at runtime only to a dynamic algorithm (facts.md, HAProxy 6).
        yield "hash-type consistent"
    for name, length in (("connect", backend.timeouts.connect), ("server", backend.timeouts.server)):
        if length is not None:
            yield f"timeout {name} {duration(length)}"
    health = backend.health
    if health.type is HealthType.NONE:
        return
    yield f"timeout check {duration(health.timeout)}"
    if health.type is HealthType.HTTP:
        yield "option httpchk"
        host = f" ver HTTP/1.1 hdr Host {health.host}" if health.host is not None else ""
        yield f"http-check send meth GET uri {health.path}{host}"
        yield f"http-check expect status {health.status}"
    if health.type is HealthType.GREETING:
        greeting, goodbye, answer = _GREETINGS[backend.application]
        yield "option tcp-check"
        yield f"tcp-check expect rstring {greeting}"
        yield f"tcp-check send {goodbye}"
        yield f"tcp-check expect rstring {answer}"


def _server(server: Server, backend: Backend, process: Process) -> ServerLine:
    keywords = []
    if backend.proxy_protocol is ProxyProtocol.V2:
        keywords.append("send-proxy-v2")
    elif backend.proxy_protocol is ProxyProtocol.V1:
        keywords.append("send-proxy")
    keywords += _check(server, backend, process)
    if backend.on_down is OnDown.CLOSE:
        keywords.append("on-marked-down shutdown-sessions")
    if server.backup:
        keywords.append("backup")
    return ServerLine(
        name=server.name,
        address=server.address,
        weight=server.weight,
        fixed=tuple(keywords),
        disabled=server.disabled,
    )


def _check(server: Server, backend: Backend, process: Process) -> Iterable[str]:
    """The words of a server's check.

    A plain `check` on a send-proxy server sends a LOCAL header; `port N` sends none, even for the data port's own
    number, unless `check-send-proxy` (facts.md, HAProxy 8). All three are used here to say what is meant.
    """
    health = backend.health
    if health.type is HealthType.NONE:
        return
    yield "check"
    own_port = _checks_data_port(backend, server)
    speaks = backend.proxy_protocol is not ProxyProtocol.NONE
    with_header = _check_has_header(backend, server)
    if not own_port:
        yield f"port {health.port}"
    elif speaks and not with_header:
        yield f"port {server.address.port}"
    if with_header and not own_port:
        yield "check-send-proxy"
    if health.over_tls:
        yield "check-ssl"
        yield from _verify(backend, process)
    yield f"inter {duration(health.interval)} rise {health.rise} fall {health.fall}"


def _checks_data_port(backend: Backend, server: Server) -> bool:
    return backend.health.port in (None, server.address.port)


def _check_has_header(backend: Backend, server: Server) -> bool:
    sends = backend.health.send_proxy
    speaks = backend.proxy_protocol is not ProxyProtocol.NONE
    return speaks and (_checks_data_port(backend, server) if sends is None else sends)


def _greets_with_header(backend: Backend, server: Server) -> bool:
    """Whether a check carries a v2 header to a server that speaks SMTP, or whose greeting is read."""
    health = backend.health
    spoken = backend.application is Application.SMTP or health.type is HealthType.GREETING
    checked = health.type is not HealthType.NONE and _check_has_header(backend, server)
    return spoken and checked and backend.proxy_protocol is ProxyProtocol.V2


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
