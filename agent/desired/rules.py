"""What values may be together: every rule of the desired state that no single value can break by itself.

`violations` refuses; `advice` warns of what is valid but unwise. Both name the path of the value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import attrgetter

from attrs import frozen

from agent.desired.addresses import WILDCARDS, Endpoint, SniPattern
from agent.desired.scalars import did_you_mean
from agent.desired.schema import (
    Application,
    Backend,
    DesiredState,
    Frontend,
    HealthType,
    Name,
    Node,
    OnDown,
    ProxyProtocol,
    RateLimit,
    Route,
)
from agent.desired.structure import Structured
from agent.errors import Path

MAX_FRONTENDS = 5_000
MAX_BACKENDS = 5_000
MAX_BINDS = 256  # per frontend
MAX_ROUTES = 1_000  # per frontend
MAX_NETWORKS = 10_000  # per list
MAX_NODES = 1_000  # per group
MAX_SERVERS = 1_000  # per backend, groups unfolded
MAX_ALL_SERVERS = 100_000
MAX_ALL_BINDS = 20_000
MAX_ALL_NAMES = 100_000  # of routes
MAX_ALL_NETWORKS = 100_000
_NETWORKS = (("allow",), ("deny",), ("accept_proxy",), ("rate_limit", "exempt"))

GREETING_APPLICATIONS = frozenset({Application.SMTP, Application.IMAP, Application.POP3})
HEALTH_KEYS: Mapping[HealthType, frozenset[str]] = {
    HealthType.NONE: frozenset(),
    HealthType.TCP: frozenset({"port", "interval", "timeout", "rise", "fall", "send_proxy"}),
    HealthType.GREETING: frozenset({"port", "interval", "timeout", "rise", "fall", "send_proxy"}),
    HealthType.TLS: frozenset({"port", "interval", "timeout", "rise", "fall", "send_proxy", "host", "verify"}),
    HealthType.HTTP: frozenset(
        {"port", "interval", "timeout", "rise", "fall", "send_proxy", "path", "host", "status", "tls", "verify"}
    ),
}


@frozen
class Remark:
    """What a rule says about a value."""

    path: Path
    """of the value, in the document"""
    message: str
    """what is wrong"""
    remedy: str = ""
    """what to do; of advice only"""


def too_much(tree: object) -> Iterator[Remark]:
    """Limits of number, looked at before anything is built, so that a huge list costs one line and no time."""
    if not isinstance(tree, dict):
        return
    yield from _limit(tree.get("frontends"), ("frontends",), MAX_FRONTENDS, "frontends")
    yield from _limit(tree.get("backends"), ("backends",), MAX_BACKENDS, "backends")
    groups: dict[str, int] = {}
    for group, nodes in _items(tree, "nodes"):
        yield from _limit(nodes, ("nodes", group), MAX_NODES, "nodes in one group")
        groups[group] = _size(nodes)
    # What all frontends and all backends have together: an alias makes many of one in a few bytes.
    servers = binds = networks = names = 0
    for name, backend in _items(tree, "backends"):
        listed, group_name = _get(backend, "servers"), _get(backend, "nodes")
        yield from _limit(listed, ("backends", name, "servers"), MAX_SERVERS, "servers in one backend")
        servers += _size(listed) + (groups.get(group_name, 0) if isinstance(group_name, str) else 0)
    for name, frontend in _items(tree, "frontends"):
        at, bind, routes = ("frontends", name), _get(frontend, "bind"), _get(frontend, "routes")
        yield from _limit(bind, (*at, "bind"), MAX_BINDS, "addresses of one frontend")
        yield from _limit(routes, (*at, "routes"), MAX_ROUTES, "routes of one frontend")
        binds += _size(bind)
        for key in _NETWORKS:
            listed = _at(frontend, key)
            yield from _limit(listed, (*at, *key), MAX_NETWORKS, "networks in one list")
            networks += _size(listed)
        if isinstance(routes, list):
            names += sum(1 + _size(_get(route, "sni")) for route in routes)
    for count, most, section, what in (
        (binds, MAX_ALL_BINDS, "frontends", "addresses in all"),
        (networks, MAX_ALL_NETWORKS, "frontends", "networks in all"),
        (names, MAX_ALL_NAMES, "frontends", "routes and their names in all"),
        (servers, MAX_ALL_SERVERS, "backends", "servers in all, groups unfolded"),
    ):
        if count > most:
            yield Remark((section,), f"{count:,} {what}; at most {most:,} are taken")


def _items(tree: Mapping[str, object], key: str) -> Iterable[tuple[str, object]]:
    section = tree.get(key)
    return section.items() if isinstance(section, dict) else ()


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _limit(value: object, path: Path, most: int, what: str) -> Iterator[Remark]:
    if (size := _size(value)) > most:
        yield Remark(path, f"{size:,} {what}; at most {most:,} are taken")


def _size(value: object) -> int:
    """How many items a list or mapping has; 0 for anything else."""
    return len(value) if isinstance(value, (dict, list)) else 0


def _at(tree: object, path: Path) -> object:
    for step in path:
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list) and isinstance(step, int):
            tree = tree[step]
        else:
            return None
    return tree


def violations(built: Structured[DesiredState], tree: object) -> Iterator[Remark]:
    """Every broken rule among what could be built. What was cut out for its own fault is not blamed twice.

    `tree`: the document as written: it shows what was left to its default.
    """
    written = built.value
    if written is None:
        return
    yield from _addresses(written)
    backends = {backend.name: backend for backend in written.backends}
    for frontend in written.frontends:
        yield from _frontend(built, backends, ("frontends", frontend.name), frontend)
    for backend in written.backends:
        at = ("backends", backend.name)
        yield from _backend(built, written, at, backend)
        yield from _health(built, at, backend, _at(tree, (*at, "health")))


def _addresses(written: DesiredState) -> Iterator[Remark]:
    """An address is bound once, wildcards counted: HAProxy itself would bind it twice and share the traffic."""
    bound_by_port: dict[tuple[int, int], dict[str, tuple[Endpoint, str]]] = {}
    for frontend in written.frontends:
        name = frontend.name
        for index, endpoint in enumerate(frontend.bind):
            bound = bound_by_port.setdefault((endpoint.family, endpoint.port), {})
            met = bound.get(endpoint.host) or next((bound[host] for host in WILDCARDS if host in bound), None)
            if met is None and bound and endpoint.wildcard:
                met = next(iter(bound.values()))
            if met is not None:
                other, where = met
                how = "is bound already" if endpoint == other else f"overlaps {other}, which is bound already"
                yield Remark(("frontends", name, "bind", index), f"{endpoint} {how}, by {where}")
            bound.setdefault(endpoint.host, (endpoint, f"frontends.{name}.bind[{index}]"))


def _frontend(
    built: Structured[DesiredState], backends: Mapping[str, Backend], at: Path, frontend: Frontend
) -> Iterator[Remark]:
    if not frontend.bind and built.whole((*at, "bind")):
        yield Remark((*at, "bind"), "a frontend without an address serves nobody")
    if frontend.backend is not None:
        yield from _known(backends, frontend.backend, (*at, "backend"), "backend", built, "backends")
    elif not frontend.routes and built.whole((*at, "routes")) and built.whole((*at, "backend")):
        yield Remark(at, "the key `backend` is missing; only a frontend with `routes` can do without")
    if frontend.rate_limit is not None and built.whole((*at, "rate_limit")):
        yield from _rate_limit((*at, "rate_limit"), frontend.rate_limit)
    if frontend.canary:
        yield from _canary(backends, at, frontend)
    coverings = _coverings(frontend.routes)
    for index, route in enumerate(frontend.routes):
        where = (*at, "routes", index)
        yield from _known(backends, route.backend, (*where, "backend"), "backend", built, "backends")
        if not route.sni and built.whole((*where, "sni")):
            yield Remark((*where, "sni"), "a route without a name can never match")
        covering = coverings[index]
        if route.sni and all(by is not None for _, by in covering):
            names = ", ".join(f'"{pattern}" by "{by}"' for pattern, by in covering)
            yield Remark(where, f"can never match: earlier routes take it all ({names}); the first match wins")


def _rate_limit(at: Path, limit: RateLimit) -> Iterator[Remark]:
    if (limit.connections is None) != (limit.period is None):
        key = "connections" if limit.connections is None else "period"
        yield Remark(at, f"the key `{key}` is missing: a rate is so many `connections` in a `period`")
    elif limit.connections is None and limit.concurrent is None:
        yield Remark(at, "limits nothing; give it `connections` and `period`, or `concurrent`")


def _canary(backends: Mapping[str, Backend], at: Path, frontend: Frontend) -> Iterator[Remark]:
    """Behind a canary stands `agent echo`, which demands PROXY v2 of every client."""
    backend = backends.get(frontend.backend) if frontend.backend is not None else None
    if backend is not None and backend.proxy_protocol is not ProxyProtocol.V2:
        yield Remark(
            (*at, "canary"),
            f'the echo behind a canary demands PROXY v2; backend "{frontend.backend}" has proxy_protocol: '
            f"{backend.proxy_protocol}",
        )
    if frontend.routes:
        yield Remark((*at, "canary"), "a canary asks for no name: it cannot be tried through routes")


def _coverings(routes: tuple[Route, ...]) -> list[list[tuple[SniPattern, SniPattern | None]]]:
    """For each route, each of its names with an earlier route's pattern that takes all its connections, if any does.

    Looked up by the name's own suffixes, so that thousands of names cost no more than their length.
    """
    taken: set[str] = set()
    coverings = []
    for route in routes:
        coverings.append([(name, next((by for by in _takers(name) if by in taken), None)) for name in route.sni])
        taken.update(route.sni)
    return coverings


def _takers(name: SniPattern) -> Iterator[SniPattern]:
    """Every pattern that matches all that `name` (which may be a pattern itself) matches."""
    yield SniPattern("*")
    yield name
    labels = name.removeprefix("*.").split(".")
    first = 0 if name.startswith("*.") else 1
    for start in range(first, len(labels)):
        yield SniPattern(f"*.{'.'.join(labels[start:])}")


def _known(
    names: Collection[str], name: str, at: Path, what: str, built: Structured[DesiredState], key: str
) -> Iterator[Remark]:
    if name not in names and built.whole((key, name)):
        yield Remark(at, f'there is no {what} "{name}"{did_you_mean(name, names)}')


def _backend(built: Structured[DesiredState], written: DesiredState, at: Path, backend: Backend) -> Iterator[Remark]:
    group: Mapping[Name, object] = {}
    if backend.nodes is not None:
        yield from _known(written.nodes, backend.nodes, (*at, "nodes"), "group of nodes", built, "nodes")
        group = written.nodes.get(backend.nodes, {})
        if backend.port is None and built.whole((*at, "port")):
            yield Remark((*at, "nodes"), "a group of nodes needs the `port` its servers listen on")
    elif backend.port is not None and built.whole((*at, "nodes")):
        yield Remark((*at, "port"), "only servers of a group take their port from here; `nodes` is missing")
    for name in sorted(group.keys() & {server.name for server in backend.servers}):
        yield Remark(
            (*at, "servers", name),
            f'the group "{backend.nodes}" has a node of this name; servers need names of their own',
        )
    for server in backend.servers:
        if server.address.wildcard:
            yield Remark((*at, "servers", server.name, "address"), f"{server.address.host} is no address of a server")
    whole = all(built.whole(path) for path in ((*at, "nodes"), (*at, "servers"), ("nodes", backend.nodes or "")))
    if whole and not group and not backend.servers and (backend.nodes is None or backend.nodes in written.nodes):
        yield Remark(at, "a backend without a server; give it `servers`, or `nodes` and `port`")


def _health(built: Structured[DesiredState], at: Path, backend: Backend, tree: object) -> Iterator[Remark]:
    health = backend.health
    written = {key for key in tree if built.whole((*at, "health", key))} if isinstance(tree, dict) else set()
    allowed = HEALTH_KEYS[health.type]
    for key in sorted(HEALTH_KEYS[HealthType.HTTP] - allowed):
        if key in written:
            owners = " or ".join(kind for kind, keys in HEALTH_KEYS.items() if key in keys)
            yield Remark(
                (*at, "health", key), f"means nothing to a check of type {health.type}; it belongs to {owners}"
            )
    if health.type is HealthType.GREETING and backend.application not in GREETING_APPLICATIONS:
        yield Remark(
            (*at, "health", "type"),
            f"only smtp, imap and pop3 greet first; this backend has application: {backend.application}",
        )
    if health.send_proxy and backend.proxy_protocol is ProxyProtocol.NONE:
        yield Remark((*at, "health", "send_proxy"), "this backend sends no header (proxy_protocol: none)")
    if health.type is HealthType.HTTP and "verify" in written and not health.tls:
        yield Remark((*at, "health", "verify"), "only a check over TLS has a certificate to verify; set `tls: true`")


def advice(written: DesiredState, tree: object, *, process_maxconn: int, file_limit: int | None) -> Iterator[Remark]:
    """What is valid but unwise. `process_maxconn`: haproxy.maxconn; `file_limit`: open files, None if unlimited."""
    used = {name for frontend in written.frontends for name in frontend.backends}
    for name in sorted({backend.name for backend in written.backends} - used):
        yield Remark(("backends", name), "no frontend uses it", "remove it, or route something to it")
    groups = {backend.nodes for backend in written.backends}
    for name in sorted(written.nodes.keys() - groups):
        yield Remark(("nodes", name), "no backend uses this group", "remove it, or name it in a backend")
    if not written.frontends:
        yield Remark((), "no frontend: nothing will be served", "add one, unless this is meant")
    bound = frozenset(endpoint for frontend in written.frontends for endpoint in frontend.bind)
    by_name = attrgetter("name")
    for backend in sorted(written.backends, key=by_name):
        yield from _backend_advice(("backends", backend.name), backend, written, bound)
    for frontend in sorted(written.frontends, key=by_name):
        yield from _frontend_advice(("frontends", frontend.name), frontend, process_maxconn)
    if _at(tree, ("defaults", "maxconn")) is not None and written.defaults.maxconn > process_maxconn:
        yield _above(("defaults", "maxconn"), written.defaults.maxconn, process_maxconn)
    # Each proxied connection holds two descriptors (HAProxy's manual, maxconn).
    if file_limit is not None and 2 * process_maxconn > file_limit:
        yield Remark(
            (),
            f"haproxy.maxconn {process_maxconn:,} takes {2 * process_maxconn:,} files; the limit is {file_limit:,}",
            "raise the limit (ulimit -n) or lower haproxy.maxconn in agent.toml",
        )


def _above(at: Path, maxconn: int, process_maxconn: int) -> Remark:
    return Remark(
        at,
        f"{maxconn:,} connections, but all of HAProxy takes {process_maxconn:,}",
        "lower it, or raise haproxy.maxconn in agent.toml",
    )


def _frontend_advice(at: Path, frontend: Frontend, process_maxconn: int) -> Iterator[Remark]:
    if frontend.maxconn is not None and frontend.maxconn > process_maxconn:
        yield _above((*at, "maxconn"), frontend.maxconn, process_maxconn)
    by_source = [key for key in ("allow", "deny", "rate_limit") if getattr(frontend, key)]
    if frontend.accept_proxy is True and by_source:
        yield Remark(
            (*at, "accept_proxy"),
            f"any client can send a PROXY header that names another address, and so pass {' and '.join(by_source)}",
            "list the networks of the proxies: accept_proxy: [192.0.2.9]",
        )
    for index, covering in enumerate(_coverings(frontend.routes)):
        for position, (name, by) in enumerate(covering):
            if by is not None:
                where = (*at, "routes", index, "sni", position)
                yield Remark(where, f'"{name}" never comes here: an earlier route has "{by}"', "remove it, or reorder")


def _backend_advice(at: Path, backend: Backend, written: DesiredState, bound: frozenset[Endpoint]) -> Iterator[Remark]:
    nodes = written.nodes.get(backend.nodes, {}) if backend.nodes else {}
    ports = {server.address.port for server in backend.servers}
    ports |= {backend.port} if nodes and backend.port is not None else set()
    health = backend.health
    on_data_port = health.port is None or health.port in ports
    if (
        backend.proxy_protocol is not ProxyProtocol.NONE
        and health.type is not HealthType.NONE
        and health.send_proxy is False
        and on_data_port
    ):
        yield Remark(
            (*at, "health", "send_proxy"),
            "the servers expect a PROXY header, but the check sends none to the same port: it will find them dead",
            "leave send_proxy out, or check another, plain port with health.port",
        )
    if health.type is HealthType.NONE and len(nodes) + len(backend.servers) > 1:
        yield Remark((*at, "health"), "not checked: a dead server goes on getting its share of clients", "add a check")
    if health.type is HealthType.NONE and backend.on_down is OnDown.CLOSE:
        yield Remark((*at, "on_down"), "not checked: no server is ever found down", "add a check")
    enabled = [server for server in backend.servers if not server.disabled]
    if not nodes and not enabled:
        yield Remark((*at, "servers"), "every server is disabled: nobody will be served", "enable one")
    node_weights = [node.weight if isinstance(node, Node) else 1 for node in nodes.values()]
    if (enabled or nodes) and not any([*node_weights, *(server.weight for server in enabled)]):
        yield Remark((*at, "servers"), "every server has weight 0: nobody will be served", "give one a weight")
    for server in sorted(backend.servers, key=attrgetter("name")):
        if server.address in bound:
            yield Remark(
                (*at, "servers", server.name), f"{server.address} is an address this firewall binds: a loop", ""
            )
