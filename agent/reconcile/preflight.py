"""Before anything is touched: which addresses and servers must be asked, and what follows from the answers. Pure.

HAProxy starts whole or not at all: one address that cannot be bound would take every frontend down (facts.md, HAProxy
1). So such an address is left out, and only it. And no client is sent to a server that has not answered (facts.md,
HAProxy 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import evolve, field, frozen

from agent.desired.addresses import WILDCARDS, Endpoint
from agent.desired.identity import Key
from agent.desired.schema import Backend, DesiredState, HealthType, Server
from agent.errors import Finding, Refusal
from agent.haproxy.observed import Observation, ServerStats
from agent.haproxy.quarantine import Quarantined
from agent.proxy_protocol import policy
from agent.proxy_protocol.greetings import Question
from agent.proxy_protocol.record import Handshake

_MAX_NAMED = 5
_MAX_SILENT = 50  # servers that are named one by one
_BY_ITSELF = "it goes live by itself at the next resync"
_REMEDIES = {
    "in_use": f"end that listener, or take the address out; once it is free, {_BY_ITSELF}",
    "no_such_address": "give the address to an interface or a virtual IP, or take it out; "
    f"once this host has it, {_BY_ITSELF}",
    "not_permitted": "run the agent as root, or use a port from 1024 up (Linux: or allow it by CAP_NET_BIND_SERVICE); "
    f"once it may bind it, {_BY_ITSELF}",
}
"""What to do about an address in quarantine, by its reason (`BindFailure.reason`)."""
_OTHER_REMEDY = f"take the address out, or mend what the system says; once it can be bound, {_BY_ITSELF}"


@frozen(kw_only=True)
class BindFailure:
    """Why an address cannot be bound."""

    reason: str
    """`in_use`, `no_such_address`, `not_permitted` or `failed`"""
    detail: str
    """a sentence"""
    holder: str = ""
    """names of the programs that hold it, where the system shows them"""


@frozen(kw_only=True)
class Checks:
    """What has to be asked of this host and of the servers."""

    binds: tuple[Endpoint, ...]
    """addresses that HAProxy does not hold yet"""
    servers: Mapping[Key, tuple[Endpoint, ...]] = field(factory=dict)
    """of each, the addresses that must all answer"""
    unproven: frozenset[Key] = frozenset()
    """those that are new, moved, enabled, or checked in another way"""
    handshakes: tuple[Question, ...] = ()
    """those to be probed for PROXY"""


def checks(
    target: DesiredState,
    *,
    live: DesiredState | None,
    observed: Observation | None,
    held: Callable[[Endpoint], bool],
    dirty: frozenset[Key] = frozenset(),
    unreachable: frozenset[Key] = frozenset(),
) -> Checks:
    """What to ask before `target` goes live.

    `live`: what is now; `observed`: the process that serves it; `held`: whether that process has an address bound.
    `dirty`: servers that an interrupted step has changed, so that nothing is known of them. `unreachable`: servers
    without a check that have never answered.
    """
    binds = tuple(endpoint for frontend in target.frontends for endpoint in frontend.bind if not held(endpoint))
    servers = {(backend.name, server.name) for backend in target.backends for server in backend.servers}
    unproven = _unproven(live, target) | (dirty & servers)
    stats = {server.key: server for server in observed.servers} if observed is not None else None
    asked = {
        key: _endpoints(backend, server)
        for backend in target.backends
        for server in backend.servers
        if not server.disabled
        and (
            (key := (backend.name, server.name)) in unproven
            or key in unreachable
            or _is_unknown(backend, server, key, stats)
        )
    }
    return Checks(binds=binds, servers=asked, unproven=unproven, handshakes=policy.servers_to_probe(live, target))


def _unproven(before: DesiredState | None, after: DesiredState) -> frozenset[Key]:
    """Servers of `after` of which nothing is known from `before`: new, moved, enabled, or checked in another way."""
    old_backends = {backend.name: backend for backend in before.backends} if before else {}
    unproven = set()
    for backend in after.backends:
        old = old_backends.get(backend.name)
        same_check = old is not None and (old.health, old.proxy_protocol) == (backend.health, backend.proxy_protocol)
        known = {server.name: server for server in old.servers} if old and same_check else {}
        for server in backend.servers:
            was = known.get(server.name)
            if was is None or was.address != server.address or was.disabled:
                unproven.add((backend.name, server.name))
    return frozenset(unproven)


def _is_unknown(backend: Backend, server: Server, key: Key, stats: Mapping[Key, ServerStats] | None) -> bool:
    """Whether it is not known that an unchanged server answers. `stats` None: HAProxy does not run."""
    unchecked = backend.health.type is HealthType.NONE
    if stats is None:
        # A fresh process would take it for up. Without a check nothing but this agent would bring it up again, so
        # such a one, which answered when it came, is believed.
        return not unchecked
    # It was changed at the socket; or it did not answer when it came, and has no check that would look again.
    now = stats.get(key)
    return now is None or now.address != str(server.address) or (unchecked and now.down)


def _endpoints(backend: Backend, server: Server) -> tuple[Endpoint, ...]:
    """The server's own address, and that of a plain TCP check: where that is closed, the server is down in seconds."""
    health = backend.health
    if health.type is HealthType.TCP and health.port not in (None, server.address.port):
        return (server.address, Endpoint(server.address.family, server.address.host, health.port))
    return (server.address,)


def endpoints(state: DesiredState, keys: Iterable[Key]) -> dict[Key, tuple[Endpoint, ...]]:
    """The addresses that must answer, of those servers of `state`."""
    wanted = frozenset(keys)
    return {
        key: _endpoints(backend, server)
        for backend in state.backends
        for server in backend.servers
        if (key := (backend.name, server.name)) in wanted and not server.disabled
    }


def still_unreachable(
    known: frozenset[Key], target: DesiredState, asked: Mapping[Key, object], reachable: frozenset[Key]
) -> frozenset[Key]:
    """The servers without a check that have never answered: known before, or asked now and silent."""
    unchecked = {
        (backend.name, server.name)
        for backend in target.backends
        if backend.health.type is HealthType.NONE
        for server in backend.servers
    }
    return ((known - asked.keys()) | (asked.keys() - reachable)) & unchecked


def unprobed(
    endpoints: Mapping[Key, tuple[Endpoint, ...]], handshakes: Iterable[Handshake]
) -> dict[Key, tuple[Endpoint, ...]]:
    """The addresses left to a TCP probe: not those that a PROXY probe has reached.

    A mail server logs each connection without a header as a warning.
    """
    probed = {(handshake.key, handshake.address) for handshake in handshakes}
    return {key: tuple(end for end in ends if (key, str(end)) not in probed) for key, ends in endpoints.items()}


# --- addresses


def quarantine(state: DesiredState, failures: Mapping[Endpoint, BindFailure]) -> tuple[Quarantined, ...]:
    """The addresses of `state` that have to be left out."""
    return tuple(
        Quarantined(
            frontend=frontend.name,
            address=str(endpoint),
            reason=failure.reason,
            detail=failure.detail,
            holder=failure.holder,
        )
        for frontend in state.frontends
        for endpoint in frontend.bind
        if (failure := failures.get(endpoint)) is not None
    )


def without(state: DesiredState, quarantined: Iterable[Quarantined]) -> DesiredState:
    """`state` without those addresses; a frontend without any other is left out whole."""
    gone = {(bind.frontend, bind.address) for bind in quarantined}
    if not gone:
        return state
    kept = (
        evolve(frontend, bind=tuple(end for end in frontend.bind if (frontend.name, str(end)) not in gone))
        for frontend in state.frontends
    )
    return evolve(state, frontends=tuple(frontend for frontend in kept if frontend.bind))


def findings(quarantined: Iterable[Quarantined]) -> tuple[Finding, ...]:
    """What people should know of quarantined addresses."""
    return tuple(
        Finding(
            f"frontends.{bind.frontend}",
            f"{bind.address} is quarantined: {bind.detail}",
            _REMEDIES.get(bind.reason, _OTHER_REMEDY),
        )
        for bind in quarantined
    )


def shared(listeners: Iterable[tuple[Endpoint, str]]) -> list[Finding]:
    """What people should know of addresses on which a foreign program listens as well."""
    return [
        Finding("haproxy", f"{endpoint} is also listened on by {program}: it takes a share of the clients", "end it")
        for endpoint, program in listeners
    ]


# --- servers


@frozen(kw_only=True)
class ServingBackend:
    """What a frontend that serves now must not lose."""

    frontend: str
    """its name"""
    backends: tuple[str, ...]
    """one of these must have a server that works"""


def serving_backends(
    live: DesiredState | None, observed: Observation | None, target: DesiredState
) -> tuple[ServingBackend, ...]:
    """What must not get worse in going from `live`, as it is observed, to `target`. What is down blocks nothing.

    A frontend of `target` stands for every live frontend of its name or with an address that overlaps one of its own:
    clients know addresses, not names.
    """
    if live is None or observed is None:
        return ()
    up = {server.backend for server in observed.servers if server.up and server.weight > 0}
    is_open = {frontend.name for frontend in observed.frontends if frontend.open}
    before = [frontend for frontend in live.frontends if frontend.name in is_open and up & set(frontend.backends)]
    names = {frontend.name for frontend in before}
    hosts: dict[tuple[int, int], set[str]] = {}  # by family and port
    for frontend in before:
        for endpoint in frontend.bind:
            hosts.setdefault((endpoint.family, endpoint.port), set()).add(endpoint.host)
    serving = []
    for frontend in target.frontends:
        if frontend.name not in names and not any(_overlaps(endpoint, hosts) for endpoint in frontend.bind):
            continue
        kept = [name for name in frontend.backends if name in up]
        serving += [ServingBackend(frontend=frontend.name, backends=(name,)) for name in kept]
        if not kept:
            serving.append(ServingBackend(frontend=frontend.name, backends=frontend.backends))
    return tuple(serving)


def recorded_serving(
    recorded: Iterable[tuple[str, tuple[str, ...]]], target: DesiredState
) -> tuple[ServingBackend, ...]:
    """What served before an interrupted step, as far as `target` has those frontends and backends."""
    frontends = {frontend.name: set(frontend.backends) for frontend in target.frontends}
    return tuple(
        ServingBackend(frontend=frontend, backends=backends)
        for frontend, backends in recorded
        if set(backends) <= frontends.get(frontend, set())
    )


def _overlaps(endpoint: Endpoint, hosts: Mapping[tuple[int, int], set[str]]) -> bool:
    bound = hosts.get((endpoint.family, endpoint.port), set())
    return endpoint.host in bound or (bool(bound) and (endpoint.wildcard or not bound.isdisjoint(WILDCARDS)))


def outages(
    serving: Iterable[ServingBackend],
    target: DesiredState,
    observed: Observation | None,
    asked: Checks,
    reachable: frozenset[Key],
) -> dict[ServingBackend, str]:
    """What would no longer be served, and why: none of its servers is known to work. See `sentences`."""
    works = working(target, observed, asked, reachable)
    backends_asked = {backend for backend, _ in asked.servers}
    return {
        lost: f"no server of backend {' or '.join(lost.backends)} "
        f"{'answers' if backends_asked & set(lost.backends) else 'would be in use'}"
        for lost in serving
        if not works & set(lost.backends)
    }


def working(
    target: DesiredState, observed: Observation | None, asked: Checks, reachable: frozenset[Key]
) -> frozenset[str]:
    """The backends of `target` with a server that is known to work: it answered just now, or HAProxy has it up."""
    up = {server.key for server in observed.servers if server.up} if observed else set()
    return frozenset(
        backend.name
        for backend in target.backends
        for server in backend.servers
        if server.weight > 0
        and not server.disabled
        and (key in reachable if (key := (backend.name, server.name)) in asked.servers else key in up)
    )


def unserved(
    live: DesiredState | None, target: DesiredState, works: frozenset[str], *, since: Iterable[str] = ()
) -> tuple[str, ...]:
    """Frontends without a server: new ones (not in `live`), and those of `since`, which had none when they came."""
    before = {frontend.name for frontend in live.frontends} if live else set()
    watched = {frontend.name for frontend in target.frontends if frontend.name not in before} | set(since)
    return tuple(
        frontend.name
        for frontend in target.frontends
        if frontend.name in watched and not works & set(frontend.backends)
    )


def unserved_findings(names: Iterable[str]) -> list[Finding]:
    """What people should know of new frontends without a server that answers."""
    return [Finding(f"frontends.{name}", "none of its servers answers: it serves nobody yet") for name in names]


def silent(down: Iterable[Key]) -> list[Finding]:
    """What people should know of new servers that do not answer."""
    names = sorted(down)
    silent = [
        Finding(f"backends.{backend}.servers.{name}", "does not answer: no client is sent there before it does")
        for backend, name in names[:_MAX_SILENT]
    ]
    if len(names) > _MAX_SILENT:
        silent.append(Finding("backends", f"{len(names) - _MAX_SILENT:,} more servers do not answer"))
    return silent


def refusals(outages: Mapping[ServingBackend, str]) -> tuple[Refusal, ...]:
    """Outages, for programs: one for each frontend."""
    return tuple(
        Refusal(kind="frontend", name=lost.frontend, reason=f"it serves now, and {reason}")
        for lost, reason in outages.items()
    )


def sentences(reasons: Iterable[tuple[ServingBackend, str]], *, singular: str, plural: str) -> tuple[str, ...]:
    """A sentence for each reason, with the frontends it is true of: hundreds can share one backend.

    `singular`, `plural`: what they do, `serves now` and `serve now`.
    """
    frontends: dict[str, list[str]] = {}
    for backend, reason in reasons:
        frontends.setdefault(reason, []).append(backend.frontend)
    lines = []
    for reason, names in frontends.items():
        if len(names) == 1:
            lines.append(f"frontend {names[0]} {singular}, and {reason}")
        else:
            rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            lines.append(f"frontends {', '.join(names[:_MAX_NAMED])}{rest} {plural}, and {reason}")
    return tuple(lines)
