"""Servers that a document gives by host name: which of the resolver's answers is used. Pure.

An address that is in use stays while it is among the answers, and where there is no answer at all. Each generation
records what its names were, so that what is live can be told, and started, without a resolver.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from attrs import evolve, field, frozen

from agent.desired.addresses import WILDCARDS, Endpoint, ServerEndpoint, ip
from agent.desired.schema import Backend, DesiredState
from agent.errors import Finding

Resolved = tuple[str, str]
"""A name, and the address that is used for it."""


@frozen(kw_only=True)
class Resolution:
    """What the names of a document are now."""

    addresses: Mapping[str, str] = field(factory=dict)
    """by name: the address that is used"""
    silent: frozenset[str] = frozenset()
    """names that the resolver gave no usable address for"""
    worse: frozenset[Resolved] = frozenset()
    """answers that were tried, and rolled back"""
    loops: frozenset[Resolved] = frozenset()
    """answers that are addresses of this document's own frontends: HAProxy would connect to itself"""

    @property
    def recorded(self) -> tuple[Resolved, ...]:
        """As a generation keeps it."""
        return tuple(sorted(self.addresses.items()))


def of(state: DesiredState) -> frozenset[str]:
    """The names of a document, as it was written."""
    return frozenset(server.address.name for backend in state.backends for server in backend.servers) - {""}


def own(state: DesiredState, is_here: Callable[[str], bool]) -> Callable[[Resolved], bool]:
    """Whether a name with that address leads back to a frontend of the document, by any server of that name.

    `is_here`: whether an address is one of this host, all of which a wildcard binds.
    """
    ports: dict[str, set[int]] = {}
    for server in (server for backend in state.backends for server in backend.servers if server.address.name):
        ports.setdefault(server.address.name, set()).add(server.address.port)
    bound = {(endpoint.host, endpoint.port) for frontend in state.frontends for endpoint in frontend.bind}

    def is_own(resolved: Resolved) -> bool:
        name, address = resolved
        wildcard = WILDCARDS[":" in address]
        by_name = ports.get(name, set())
        if any((address, port) in bound for port in by_name):
            return True
        return any((wildcard, port) in bound for port in by_name) and is_here(address)

    return is_own


def choose(
    names: Collection[str],
    answers: Mapping[str, Sequence[str]],
    known: Mapping[str, str],
    *,
    worse: Collection[Resolved] = (),
    is_own: Callable[[Resolved], bool] = lambda _: False,
) -> Resolution:
    """`answers`: of the resolver, by name; a name without one is silent. `known`: the addresses used until now.

    `worse`: answers that are not taken, because they were tried and rolled back. `is_own`: see `own`.
    """
    addresses: dict[str, str] = {}
    silent, refused, loops = set(), set(), set()
    for name in names:
        offered = [address for text in answers.get(name, ()) if (address := usable(text)) is not None]
        now = known.get(name)
        loops |= {(name, address) for address in offered if is_own((name, address))}
        refused |= {(name, address) for address in offered if (name, address) in worse and address != now}
        taken = [address for address in offered if (name, address) not in refused | loops]
        if not offered:
            silent.add(name)
        if now is not None and is_own((name, now)):  # the frontend came later than the address
            now = None
        if now is not None and (now in offered or not taken):
            addresses[name] = now
        elif taken:
            addresses[name] = taken[0]
    return Resolution(addresses=addresses, silent=frozenset(silent), worse=frozenset(refused), loops=frozenset(loops))


def usable(text: str) -> str | None:
    """An answer in its shortest form, None for one that no server can have.

    Among those is 0.0.0.0, which resolvers answer for blocked names and HAProxy takes for "where the client wanted to
    go" (its manual, `server`).
    """
    try:
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_unspecified or (address.is_link_local and address.version == 6):
            return None
        return ip(str(address))[1]
    except ValueError:  # multicast, a scope, or no address
        return None


def resolved(state: DesiredState, addresses: Mapping[str, str]) -> DesiredState:
    """The same with addresses for names; a name without one stays what it is."""
    return evolve(state, backends=tuple(_resolved(backend, addresses) for backend in state.backends))


def _resolved(backend: Backend, addresses: Mapping[str, str]) -> Backend:
    if not any(server.address.name in addresses for server in backend.servers):
        return backend
    servers = tuple(
        evolve(server, address=_endpoint(server.address, addresses[server.address.name]))
        if server.address.name in addresses
        else server
        for server in backend.servers
    )
    return evolve(backend, servers=servers)


def _endpoint(written: Endpoint, address: str) -> ServerEndpoint:
    return ServerEndpoint(evolve(written, family=6 if ":" in address else 4, host=address))


def without_unresolved(state: DesiredState) -> DesiredState:
    """The same without servers that have no address: HAProxy can be given none."""
    if all(server.address.resolved for backend in state.backends for server in backend.servers):
        return state
    return evolve(
        state,
        backends=tuple(
            evolve(backend, servers=tuple(server for server in backend.servers if server.address.resolved))
            for backend in state.backends
        ),
    )


def findings(written: DesiredState, resolution: Resolution) -> Iterable[Finding]:
    """What people should know of the names. `written`: the document, with its names."""
    for backend in written.backends:
        for server in backend.servers:
            name, where = server.address.name, f"backends.{backend.name}.servers.{server.name}"
            address = resolution.addresses.get(name)
            if name in resolution.silent:
                stays = f"its last address {address} stays" if address else "the server is left out until it does"
                yield Finding(where, f"{name} does not resolve: {stays}", f"look at the resolver: `host {name}`")
            elif loops := sorted(other for known, other in resolution.loops if known == name):
                message = f"{name} is {', '.join(loops)} now, which this document binds itself: a loop"
                yield Finding(
                    where, f"{message}; {address or 'no address'} is used", f"look at the resolver: `host {name}`"
                )
            elif refused := sorted(other for known, other in resolution.worse if known == name):
                message = f"{name} is {', '.join(refused)} now, which was tried and rolled back"
                yield Finding(where, f"{message}: {address or 'no address'} stays", "`agent apply --retry` tries it")
