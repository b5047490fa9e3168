"""The smallest step to the target: none, commands to the running process, or a reload and why. Pure.

The plan is made whole before the first side effect, and printed as it is. Everything of a server but its fixed
words can be changed in the running process; whatever else differs takes a new process. What servers *are* is taken
from the running process, so that the same step corrects what a person, or a crash, has changed there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Protocol, TypeVar

import attrs
from attrs import AttrsInstance, evolve, frozen

from agent.desired.identity import Key
from agent.desired.schema import Application, Backend, DesiredState, Frontend, HealthType, Name, Server
from agent.errors import Finding
from agent.haproxy.commands import Command, Verb, of_server
from agent.haproxy.config import Config, ServerLine
from agent.haproxy.observed import FrontendStats, Running, ServerStats
from agent.haproxy.quarantine import Quarantined


@frozen(kw_only=True)
class LiveGeneration:
    """The live generation."""

    number: int
    """its number"""
    loaded: int
    """the generation whose process may carry it"""
    digest: str
    """of its document"""
    config: bytes
    """the exact bytes of its haproxy.cfg"""
    state: DesiredState | None
    """what it serves, without its quarantined addresses; None: this version of the agent cannot read it any more"""
    is_current: bool = False
    """whether today's template and settings would write it as it is"""
    quarantined: tuple[Quarantined, ...] = ()
    """addresses that were left out"""
    unserved: tuple[str, ...] = ()
    """its new frontends without a server that answered"""
    resolved: tuple[tuple[str, str], ...] = ()
    """host names of servers, each with the address that it uses"""


@frozen(kw_only=True)
class Target:
    """What shall be live."""

    digest: str
    """of the document"""
    state: DesiredState
    """without quarantined addresses"""
    config: Config
    """its haproxy.cfg"""
    quarantined: tuple[Quarantined, ...] = ()
    """addresses that are left out"""

    def is_live(self, live: LiveGeneration | None) -> bool:
        """Whether it is the very document and configuration that are live."""
        return live is not None and self.digest == live.digest and self.has_config_of(live)

    def has_config_of(self, live: LiveGeneration) -> bool:
        """Whether its haproxy.cfg is that of the live generation."""
        return self.config.stamped(digest=live.digest, generation=live.number) == live.config


@frozen(kw_only=True)
class Unchanged:
    """HAProxy does already what is wanted."""

    new_generation: bool
    """the document is another one all the same"""
    pending_deletes: tuple[Command, ...] = ()
    """removed servers that wait for their last session"""
    operator_overrides: tuple[Finding, ...] = ()
    """what was changed by hand and stays"""


@frozen(kw_only=True)
class Runtime:
    """Commands to the running process, which goes on."""

    commands: tuple[Command, ...]
    """in their order"""
    reasons: tuple[str, ...]
    """a sentence each"""
    new_generation: bool
    """whether the document is another one"""
    drift: tuple[str, ...] = ()
    """what was not as this agent had left it"""
    kinds: tuple[str, ...] = ()
    """of each drift: `server` or `frontend`"""
    pending_deletes: tuple[Command, ...] = ()
    """removed servers that wait for their last session"""
    operator_overrides: tuple[Finding, ...] = ()
    """what was changed by hand and stays"""

    @property
    def servers(self) -> frozenset[Key]:
        """Those that the commands are about."""
        return frozenset(key for command in self.commands if (key := command.server) is not None)


@frozen(kw_only=True)
class Reload:
    """A new process takes over, or the first one starts."""

    reasons: tuple[str, ...]
    """a sentence each"""
    new_generation: bool = True
    """with a configuration of its own; else what is live is only started"""
    kinds: tuple[str, ...] = ()
    """of what was not as this agent had left it: `frontend`"""


Plan = Unchanged | Runtime | Reload


def plan(
    live: LiveGeneration | None,
    running: Running | None,
    target: Target,
    *,
    servers: Iterable[ServerStats] = (),
    frontends: Iterable[FrontendStats] = (),
    reachable: frozenset[Key] = frozenset(),
    dirty: frozenset[Key] = frozenset(),
) -> Plan:
    """The smallest step from what is live and running to the target.

    `servers`, `frontends`: those of the running process. `reachable`: servers that answered just now, of all that had
    to be asked. `dirty`: servers that this agent was changing when it ended: whatever they are now, no person did it.
    """
    reasons = [] if running is not None else ["HAProxy is not running"]
    if live is None:
        return Reload(reasons=(*reasons, "nothing is live yet"))
    if running is not None and running.generation not in (live.number, live.loaded):
        runs = "a file without a generation" if running.generation is None else f"generation {running.generation}"
        reasons.append(f"HAProxy runs {runs}; generation {live.number} is committed")
    same = target.has_config_of(live)
    differences = [] if same else changes(live.state, target.state)
    if not same and not (live.state and live.is_current and static_part(live.state) == static_part(target.state)):
        reasons += differences or ["the settings or the template changed"]
    if reasons and same and live.digest == target.digest:
        return Reload(reasons=tuple(reasons), new_generation=False)
    if reasons or live.state is None:
        return Reload(reasons=tuple(reasons) or ("what is live cannot be read by this version of the agent",))
    steps = _server_steps(live.state, target, servers, reachable, dirty)
    wanted = {frontend.name for frontend in target.state.frontends}
    closed = [frontend for frontend in frontends if frontend.name in wanted and not frontend.open]
    if stopped := [f"frontend {frontend.name} was shut down" for frontend in closed if frontend.stopped]:
        return Reload(
            reasons=(*differences, *stopped, *steps.reload),
            new_generation=not target.is_live(live),
            kinds=("frontend",) * len(closed),
        )
    if steps.reload:
        return Reload(reasons=(*differences, *steps.reload))
    new_generation = not same or live.digest != target.digest
    commands = (*steps.enter, *steps.leave, *steps.remove, *(_enabled(frontend) for frontend in closed))
    if not commands:
        return Unchanged(
            new_generation=new_generation,
            pending_deletes=steps.pending_deletes,
            operator_overrides=steps.operator_overrides,
        )
    drift = (*steps.drift, *(f"frontend {frontend.name} was disabled" for frontend in closed))
    return Runtime(
        commands=commands,
        reasons=(*differences, *drift, *steps.reasons) or ("what an interrupted step has left is put right",),
        new_generation=new_generation,
        drift=drift,
        kinds=(*("server",) * len(steps.drift), *("frontend",) * len(closed)),
        pending_deletes=steps.pending_deletes,
        operator_overrides=steps.operator_overrides,
    )


def _enabled(frontend: FrontendStats) -> Command:
    return Command(Verb.ENABLE_FRONTEND, frontend.proxy or frontend.name)


def static_part(state: DesiredState) -> DesiredState:
    """What only a new process can change: not the document's label and number, what the probe speaks, the servers."""
    backends = tuple(evolve(backend, servers=(), application=Application.RAW) for backend in state.backends)
    return evolve(state, name=Name(""), serial=None, backends=backends)


# --- servers: a function for each thing of a server that can differ


@frozen(kw_only=True)
class _Server:
    """A server of the target, and what is known of it.

    `line`: as the target writes it. `before`: of the live document, None where that has none, or where an interrupted
    step was about it (`dirty`). `same_words`: whether the running one has the fixed words of `line`, None where the
    live document does not tell. `stats`: of the running process. `reachable`: it answered just now.
    """

    backend: Backend
    server: Server
    line: ServerLine
    before: Server | None
    same_words: bool | None
    stats: ServerStats
    reachable: bool
    dirty: bool

    @property
    def key(self) -> Key:
        return (self.backend.name, self.server.name)

    @property
    def checked(self) -> bool:
        return self.backend.health.type is not HealthType.NONE

    def __str__(self) -> str:
        return f"server {self.backend.name}/{self.server.name}"


@frozen(kw_only=True)
class _Steps:
    """What has to be done, and said, of one server or of many.

    `enter`: commands that bring servers into service or change their share. `leave`: those that take clients away.
    `remove`: those about servers that the target does not have. In this order over all servers, so that a backend is
    never without a server in between. `reload`: what no command can do.
    """

    enter: tuple[Command, ...] = ()
    leave: tuple[Command, ...] = ()
    remove: tuple[Command, ...] = ()
    pending_deletes: tuple[Command, ...] = ()
    drift: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    operator_overrides: tuple[Finding, ...] = ()
    reload: tuple[str, ...] = ()


_NOTHING = _Steps()


def _joined(parts: Iterable[_Steps]) -> _Steps:
    busy = [part for part in parts if part is not _NOTHING]
    names = [attribute.name for attribute in attrs.fields(_Steps)]
    return _Steps(**{name: tuple(item for part in busy for item in getattr(part, name)) for name in names})


def _server_steps(
    live: DesiredState,
    target: Target,
    running: Iterable[ServerStats],
    reachable: frozenset[Key],
    dirty: frozenset[Key],
) -> _Steps:
    """From the servers that `running` has to those of the target."""
    stats_of: dict[str, dict[str, ServerStats]] = {}
    for server_stats in running:
        stats_of.setdefault(server_stats.backend, {})[server_stats.name] = server_stats
    old_backends = {backend.name: backend for backend in live.backends}
    parts: list[_Steps] = []
    for backend in target.state.backends:
        now, old = stats_of.get(backend.name, {}), old_backends.get(backend.name)
        before = {server.name: server for server in old.servers} if old else {}
        for server in backend.servers:
            key, was = (backend.name, server.name), before.get(server.name)
            known = None if key in dirty else was
            if (stats := now.get(server.name)) is None:
                parts.append(_missing(backend, server, known, target.config, reachable=key in reachable))
            elif not _is_as_wanted(backend, server, known, stats):
                line = target.config.servers[key]
                same_words = None if was is None or old is None else target.config.line(old, was).fixed == line.fixed
                parts.append(
                    _present(
                        _Server(
                            backend=backend,
                            server=server,
                            line=line,
                            before=known,
                            same_words=same_words,
                            stats=stats,
                            reachable=key in reachable,
                            dirty=key in dirty,
                        )
                    )
                )
        parts += [
            _unwanted(now[name], asked_for=name in before or (backend.name, name) in dirty)
            for name in sorted(now.keys() - {server.name for server in backend.servers})
        ]
    return _joined(parts)


def _is_as_wanted(backend: Backend, server: Server, before: Server | None, stats: ServerStats) -> bool:
    """Whether nothing of a server differs, which is so of nearly all."""
    settled = stats.up or (stats.down and backend.health.type is not HealthType.NONE)
    placed = stats.weight == server.weight and stats.address == str(server.address)
    return settled and placed and before == server and not server.disabled


def _missing(backend: Backend, server: Server, before: Server | None, config: Config, *, reachable: bool) -> _Steps:
    """The running process does not have the server."""
    key = (backend.name, server.name)
    name, line = f"server {backend.name}/{server.name}", config.servers[key]
    enter = [of_server(Verb.ADD_SERVER, key, f"{line.address} {' '.join([f'weight {line.weight}', *line.fixed])}")]
    if backend.health.type is not HealthType.NONE:
        enter.append(of_server(Verb.ENABLE_HEALTH, key))
    if not server.disabled:
        enter += _entering(key, reachable=reachable)
    return _Steps(
        enter=tuple(enter),
        drift=(f"{name} is gone from the running HAProxy",) if before == server else (),
        reload=() if config.holds(line) else (f"the template writes {name} in its own way",),
    )


def _entering(key: Key, *, reachable: bool) -> list[Command]:
    """Out of maintenance. HAProxy starts it as up; one that did not answer starts as down (facts.md, HAProxy 5)."""
    ready = of_server(Verb.SET_STATE, key, "ready")
    if reachable:
        return [ready]
    # In this order it gets no client in between (M: 2.6, 2.8, 3.0; `health down` before `ready` is forgotten).
    return [of_server(Verb.SET_STATE, key, "drain"), of_server(Verb.SET_HEALTH, key, "down"), ready]


def _present(server: _Server) -> _Steps:
    """The running process has the server, in some other way."""
    if not _has_fixed_words(server):
        return _Steps(reload=(f"{server} cannot be changed in the running HAProxy",))
    return _joined(
        (_moved(server), _weighted(server), _disabled(server) if server.server.disabled else _serving(server))
    )


def _has_fixed_words(server: _Server) -> bool:
    if server.same_words is not None:
        return server.same_words
    # One that left and comes back before its last session ended. Its words are those of its backend, which did not
    # change, or this would be a reload; its own are whether it is a backup, and where a check must name a port,
    # whether that is its own.
    health, line, stats = server.backend.health, server.line, server.stats
    anywhere = health.port is None and health.send_proxy is not False
    return (anywhere or stats.address == str(line.address)) and stats.backup == ("backup" in line.fixed)


def _moved(server: _Server) -> _Steps:
    key, stats, address = server.key, server.stats, server.server.address
    up = of_server(Verb.SET_HEALTH, key, "up")
    if stats.address == str(address):
        # Nothing but this agent takes an unchecked server for dead, so nothing else brings it up again.
        answers = stats.down and server.reachable and not server.checked
        return _Steps(enter=(up,), reasons=(f"{server} answers",)) if answers else _NOTHING
    move = of_server(Verb.SET_ADDRESS, key, f"{address.host} port {address.port}")
    was_there = server.before is not None and server.before.address == address
    drift = (f"{server} was at {stats.address}, not at {address}",) if was_there else ()
    if not server.reachable and not stats.maintenance:
        return _Steps(leave=(of_server(Verb.SET_HEALTH, key, "down"), move), drift=drift)
    # What checks found at the address it had before is no finding of this one, and one may fail there even now.
    judged = server.reachable and (stats.up or stats.down)
    return _Steps(enter=(move, up) if judged else (move,), drift=drift)


def _weighted(server: _Server) -> _Steps:
    weight = server.server.weight
    if server.stats.weight == weight or (server.before is not None and server.before.weight == weight):
        return _NOTHING
    command = of_server(Verb.SET_WEIGHT, server.key, str(weight))
    return _Steps(enter=(command,)) if weight else _Steps(leave=(command,))


def _disabled(server: _Server) -> _Steps:
    if server.stats.maintenance:
        return _NOTHING
    was_disabled = server.before is not None and server.before.disabled
    return _Steps(
        leave=(of_server(Verb.SET_STATE, server.key, "maint"),),
        drift=(f"{server} was in service, but is disabled",) if was_disabled else (),
    )


def _serving(server: _Server) -> _Steps:
    """Into service; but what a person has set at the socket stays."""
    key, stats, before = server.key, server.stats, server.before
    if stats.maintenance and (before is None or before.disabled):
        begin = (
            [of_server(Verb.ENABLE_HEALTH, key)] if server.dirty and server.checked else []
        )  # added, not yet checked
        return _Steps(enter=(*begin, *_entering(key, reachable=server.reachable)))
    if stats.draining and server.dirty:
        return _Steps(enter=tuple(_entering(key, reachable=server.reachable)))
    where = f"backends.{server.backend.name}.servers.{server.server.name}"
    if stats.maintenance or stats.draining:
        how = "in maintenance" if stats.maintenance else "draining"
        remedy = f"`set server {'/'.join(key)} state ready` ends it"
        return _Steps(operator_overrides=(Finding(where, f"is {how}, by hand", remedy),))
    if before is not None and stats.weight != server.server.weight and before.weight == server.server.weight:
        message = f"has weight {stats.weight} by hand, not {server.server.weight}"
        return _Steps(operator_overrides=(Finding(where, message),))
    return _NOTHING


def _unwanted(stats: ServerStats, *, asked_for: bool) -> _Steps:
    """The running process has a server that the target does not have. `asked_for`: the live document, or this agent."""
    delete = (of_server(Verb.DELETE_SERVER, stats.key),)
    if stats.maintenance:
        return _Steps(pending_deletes=delete)
    name = "/".join(stats.key)
    return _Steps(
        remove=(of_server(Verb.SET_STATE, stats.key, "maint"),),
        drift=() if asked_for else (f"server {name} is in the running HAProxy, but nobody asked for it",),
        pending_deletes=delete,
    )


# --- differences, for people


def diff(live: LiveGeneration | None, config: bytes, *, number: int) -> str:
    """A unified diff of haproxy.cfg, from the live one to `config`; empty where nothing is different."""
    before = live.config.decode(errors="replace").splitlines() if live else []
    name = f"haproxy.cfg (generation {live.number})" if live else "haproxy.cfg (none)"
    after = config.decode(errors="replace").splitlines()
    lines = difflib.unified_diff(before, after, name, f"haproxy.cfg (generation {number})", lineterm="")
    return "".join(f"{line}\n" for line in lines)


def changes(before: DesiredState | None, after: DesiredState) -> list[str]:
    """What is different between two states, a sentence each, in the order of the file."""
    if before is None:
        return ["what is live cannot be read by this version of the agent"]
    sentences = []
    if before.defaults != after.defaults:
        sentences.append("defaults changed")
    sentences += _named("frontend", _by_name(before.frontends), _by_name(after.frontends))
    old, new = _by_name(before.backends), _by_name(after.backends)
    for name in sorted(old.keys() | new.keys()):
        if name in old and name in new:
            sentences += _backend(old[name], new[name])
        else:
            sentences.append(f"backend {name} {'added' if name in new else 'removed'}")
    return sentences


class _Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_Named)


def _by_name(items: Iterable[N]) -> dict[str, N]:
    return {item.name: item for item in items}


def _named(kind: str, old: dict[str, Frontend], new: dict[str, Frontend]) -> list[str]:
    sentences = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            sentences.append(f"{kind} {name} added")
        elif name not in new:
            sentences.append(f"{kind} {name} removed")
        elif old[name] != new[name]:
            sentences.append(f"{kind} {name} changed: {', '.join(_fields(old[name], new[name]))}")
    return sentences


def _fields(old: AttrsInstance, new: AttrsInstance) -> list[str]:
    names = [attribute.name for attribute in attrs.fields(type(old))]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _backend(old: Backend, new: Backend) -> list[str]:
    if old == new:
        return []
    sentences = []
    if fields := [name for name in _fields(old, new) if name != "servers"]:
        sentences.append(f"backend {new.name} changed: {', '.join(fields)}")
    before, after = _by_name(old.servers), _by_name(new.servers)
    changed = {name: _server(before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())}
    return [*sentences, *(f"server {new.name}/{name} {how}" for name, how in changed.items() if how)]


def _server(old: Server | None, new: Server | None) -> str:
    if old is None:
        return "added"
    if new is None:
        return "removed"
    changed = [f"moved from {old.address} to {new.address}"] if old.address != new.address else []
    if fields := [name for name in _fields(old, new) if name != "address"]:
        changed.append(f"changed: {', '.join(fields)}")
    return ", ".join(changed)
