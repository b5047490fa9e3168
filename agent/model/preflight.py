"""Before anything is touched: which addresses and servers must be asked, and what the answers make of a state. Pure.

HAProxy starts whole or not at all: one address that cannot be bound would take every frontend down (FACTS, HAProxy
1). So such an address is left out, and only it. And nobody is sent to a server that nobody has reached (FACTS,
HAProxy 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import evolve, field, frozen

from agent.errors import Finding
from agent.model import proof
from agent.model.desired import Backend, DesiredState, Server
from agent.model.generation import Handshake, Quarantined
from agent.model.handshake import Question
from agent.model.observed import Key, Observation, ServerStats
from agent.model.schema import WILDCARDS, Endpoint, HealthType

_MOST_NAMED = 5
_MOST_SILENT = 50  # servers that are named one by one
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
    """Why an address cannot be bound: `in_use`, `no_such_address`, `not_permitted` or `failed`, and in words.

    `holder`: the names of the programs that hold it, where the system tells.
    """

    reason: str
    detail: str
    holder: str = ""


@frozen(kw_only=True)
class Checks:
    """What has to be asked of this host and of the servers.

    `servers`: of each, the addresses that must all answer. `unproven`: those that are new, moved, enabled, or checked
    in another way. `handshakes`: of whom to ask whether they speak PROXY.
    """

    binds: tuple[Endpoint, ...]
    servers: Mapping[Key, tuple[Endpoint, ...]] = field(factory=dict)
    unproven: frozenset[Key] = frozenset()
    handshakes: tuple[Question, ...] = ()


def questions(
    wanted: DesiredState,
    *,
    live: DesiredState | None,
    seen: Observation | None,
    held: Callable[[Endpoint], bool],
    dirty: frozenset[Key] = frozenset(),
    unreached: frozenset[Key] = frozenset(),
) -> Checks:
    """What to ask before `wanted` goes live.

    `live`: what is now; `seen`: the process that serves it; `held`: whether that one has an address bound already.
    `dirty`: servers that an interrupted step has changed, so that nothing is known of them. `unreached`: servers
    without a check that have never answered.
    """
    binds = tuple(endpoint for frontend in wanted.frontends for endpoint in frontend.binds if not held(endpoint))
    servers = {(pool.name, server.name) for pool in wanted.backends for server in pool.servers}
    new = _unproven(live, wanted) | (dirty & servers)
    now = {one.key: one for one in seen.servers} if seen is not None else None
    asked = {
        key: _endpoints(pool, server)
        for pool in wanted.backends
        for server in pool.servers
        if not server.disabled
        and ((key := (pool.name, server.name)) in new or key in unreached or _unsure(pool, server, key, now))
    }
    return Checks(binds=binds, servers=asked, unproven=new, handshakes=proof.servers_to_probe(live, wanted))


def _unproven(before: DesiredState | None, after: DesiredState) -> frozenset[Key]:
    """Servers of `after` of which nothing is known from `before`: new, moved, enabled, or checked in another way."""
    pools = {one.name: one for one in before.backends} if before else {}
    found = set()
    for pool in after.backends:
        old = pools.get(pool.name)
        same_check = old is not None and (old.health, old.proxy_protocol) == (pool.health, pool.proxy_protocol)
        known = {one.name: one for one in old.servers} if old and same_check else {}
        for server in pool.servers:
            was = known.get(server.name)
            if was is None or was.address != server.address or was.disabled:
                found.add((pool.name, server.name))
    return frozenset(found)


def _unsure(pool: Backend, server: Server, key: Key, seen: Mapping[Key, ServerStats] | None) -> bool:
    """Whether nobody knows of a server that is as it was that it answers. `seen` None: HAProxy does not run."""
    unchecked = pool.health.type is HealthType.NONE
    if seen is None:
        # A fresh process would take it for up. Without a check nothing but this agent would bring it up again, so
        # such a one, which answered when it came, is believed.
        return not unchecked
    # Somebody changed it at the socket; or it did not answer when it came, and has no check that would look again.
    now = seen.get(key)
    return now is None or now.address != str(server.address) or (unchecked and now.down)


def _endpoints(pool: Backend, server: Server) -> tuple[Endpoint, ...]:
    """The server's own address, and where a plain TCP check knocks: one that is shut would have it dead in seconds."""
    health = pool.health
    if health.type is HealthType.TCP and health.port not in (None, server.address.port):
        return (server.address, evolve(server.address, port=health.port))
    return (server.address,)


def endpoints(state: DesiredState, keys: Iterable[Key]) -> dict[Key, tuple[Endpoint, ...]]:
    """The addresses that must answer, of those servers of `state`."""
    wanted = frozenset(keys)
    return {
        key: _endpoints(pool, server)
        for pool in state.backends
        for server in pool.servers
        if (key := (pool.name, server.name)) in wanted and not server.disabled
    }


def still_unreachable(
    known: frozenset[Key], wanted: DesiredState, asked: Mapping[Key, object], reached: frozenset[Key]
) -> frozenset[Key]:
    """The servers without a check that have never answered: known before, or asked now and silent."""
    unchecked = {
        (pool.name, server.name)
        for pool in wanted.backends
        if pool.health.type is HealthType.NONE
        for server in pool.servers
    }
    return ((known - asked.keys()) | (asked.keys() - reached)) & unchecked


def unprobed(
    endpoints: Mapping[Key, tuple[Endpoint, ...]], handshakes: Iterable[Handshake]
) -> dict[Key, tuple[Endpoint, ...]]:
    """Where to knock although handshakes were held: where a check knocks, not at the same address again.

    A mail server logs each knock without a header as a warning.
    """
    met = {(one.key, one.address) for one in handshakes}
    return {key: tuple(one for one in ends if (key, str(one)) not in met) for key, ends in endpoints.items()}


# --- addresses


def quarantine(state: DesiredState, unbound: Mapping[Endpoint, BindFailure]) -> tuple[Quarantined, ...]:
    """The addresses of `state` that have to be left out."""
    return tuple(
        Quarantined(frontend=one.name, address=str(endpoint), reason=why.reason, detail=why.detail, holder=why.holder)
        for one in state.frontends
        for endpoint in one.binds
        if (why := unbound.get(endpoint)) is not None
    )


def without(state: DesiredState, quarantined: Iterable[Quarantined]) -> DesiredState:
    """`state` without those addresses; a frontend without any other is left out whole."""
    gone = {(one.frontend, one.address) for one in quarantined}
    if not gone:
        return state
    kept = (
        evolve(one, binds=tuple(endpoint for endpoint in one.binds if (one.name, str(endpoint)) not in gone))
        for one in state.frontends
    )
    return evolve(state, frontends=tuple(one for one in kept if one.binds))


def findings(quarantined: Iterable[Quarantined]) -> tuple[Finding, ...]:
    """What people are told of quarantined addresses."""
    return tuple(
        Finding(
            f"frontends.{one.frontend}",
            f"{one.address} is quarantined: {one.detail}",
            _REMEDIES.get(one.reason, _OTHER_REMEDY),
        )
        for one in quarantined
    )


def shared(found: Iterable[tuple[Endpoint, str]]) -> list[Finding]:
    """What people should know of addresses on which a foreign program listens as well."""
    return [
        Finding("haproxy", f"{endpoint} is also listened on by {program}: it takes a share of the clients", "end it")
        for endpoint, program in found
    ]


# --- servers


@frozen(kw_only=True)
class ServingBackend:
    """What a frontend that serves now must not lose: a server that works in one of these backends."""

    frontend: str
    backends: tuple[str, ...]


def serving_backends(
    live: DesiredState | None, seen: Observation | None, wanted: DesiredState
) -> tuple[ServingBackend, ...]:
    """What is at stake in going from `live`, as it is `seen`, to `wanted`. A backend already down blocks nothing.

    A frontend inherits the stake of every live frontend of its name or with an address that overlaps one of its own:
    clients know addresses, not names.
    """
    if live is None or seen is None:
        return ()
    serving = {one.backend for one in seen.servers if one.up and one.weight > 0}
    is_open = {one.name for one in seen.frontends if one.open}
    before = [one for one in live.frontends if one.name in is_open and serving & set(one.backends)]
    names = {one.name for one in before}
    hosts: dict[tuple[int, int], set[str]] = {}  # by family and port
    for old in before:
        for endpoint in old.binds:
            hosts.setdefault((endpoint.family, endpoint.port), set()).add(endpoint.host)
    found = []
    for frontend in wanted.frontends:
        if frontend.name not in names and not any(_overlaps(endpoint, hosts) for endpoint in frontend.binds):
            continue
        kept = [name for name in frontend.backends if name in serving]
        found += [ServingBackend(frontend=frontend.name, backends=(name,)) for name in kept]
        if not kept:
            found.append(ServingBackend(frontend=frontend.name, backends=frontend.backends))
    return tuple(found)


def recorded_serving(
    recorded: Iterable[tuple[str, tuple[str, ...]]], wanted: DesiredState
) -> tuple[ServingBackend, ...]:
    """What an interrupted step had at stake, as far as `wanted` has those frontends and backends."""
    frontends = {one.name: set(one.backends) for one in wanted.frontends}
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
    wanted: DesiredState,
    seen: Observation | None,
    asked: Checks,
    reached: frozenset[Key],
) -> dict[ServingBackend, str]:
    """Each stake that would be lost, and why: none of its servers is known to work. See `told`."""
    works = working(wanted, seen, asked, reached)
    questioned = {key[0] for key in asked.servers}
    return {
        one: f"no server of backend {' or '.join(one.backends)} "
        f"{'answers' if questioned & set(one.backends) else 'would be in use'}"
        for one in serving
        if not works & set(one.backends)
    }


def working(wanted: DesiredState, seen: Observation | None, asked: Checks, reached: frozenset[Key]) -> frozenset[str]:
    """The backends of `wanted` with a server that is known to work: it was reached just now, or HAProxy has it up."""
    up = {one.key for one in seen.servers if one.up} if seen else set()
    return frozenset(
        pool.name
        for pool in wanted.backends
        for server in pool.servers
        if server.weight > 0
        and not server.disabled
        and (key in reached if (key := (pool.name, server.name)) in asked.servers else key in up)
    )


def unserved(
    live: DesiredState | None, wanted: DesiredState, works: frozenset[str], *, since: Iterable[str] = ()
) -> tuple[str, ...]:
    """Frontends that serve nobody: new ones (not in `live`), and those of `since`, which did so when they came."""
    before = {one.name for one in live.frontends} if live else set()
    watched = {one.name for one in wanted.frontends if one.name not in before} | set(since)
    return tuple(one.name for one in wanted.frontends if one.name in watched and not works & set(one.backends))


def unserved_findings(names: Iterable[str]) -> list[Finding]:
    """What people should know of new frontends without a server that answers."""
    return [Finding(f"frontends.{name}", "none of its servers answers: it serves nobody yet") for name in names]


def silent(down: Iterable[Key]) -> list[Finding]:
    """What people are told of new servers that do not answer."""
    names = sorted(down)
    found = [
        Finding(f"backends.{pool}.servers.{name}", "does not answer: no client is sent there before it does")
        for pool, name in names[:_MOST_SILENT]
    ]
    if len(names) > _MOST_SILENT:
        found.append(Finding("backends", f"{len(names) - _MOST_SILENT:,} more servers do not answer"))
    return found


def told(found: Iterable[tuple[ServingBackend, str]], *, one: str, many: str) -> tuple[str, ...]:
    """A sentence for each reason, with the frontends it is true of: hundreds can share one backend.

    `one`, `many`: what they do, `serves now` and `serve now`.
    """
    frontends: dict[str, list[str]] = {}
    for stake, reason in found:
        frontends.setdefault(reason, []).append(stake.frontend)
    sentences = []
    for reason, names in frontends.items():
        if len(names) == 1:
            sentences.append(f"frontend {names[0]} {one}, and {reason}")
        else:
            rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            sentences.append(f"frontends {', '.join(names[:_MOST_NAMED])}{rest} {many}, and {reason}")
    return tuple(sentences)
