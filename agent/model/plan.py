"""What a wanted configuration is worth: nothing to do, a few words at the socket, or a reload and why. Pure.

The plan is made whole before the first side effect, and printed as it is. Everything of a server but its fixed
words can be changed in the running process; whatever else differs takes a new process. What servers *are* is taken
from the running process, so that the same step corrects what somebody, or a crash, has changed there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

import attrs
from attrs import AttrsInstance, evolve, field, frozen

from agent.errors import Finding
from agent.model.desired import Backend, DesiredState, Frontend, Server
from agent.model.generation import Quarantined
from agent.model.observed import FrontendSeen, Key, Running, ServerSeen
from agent.model.render import Config, ServerLine
from agent.model.schema import Application, HealthType


@frozen(kw_only=True)
class Committed:
    """The live generation: its number, whose process may carry it (`loaded`), its digest and exact bytes.

    `state`: what it serves, without its quarantined addresses; None where this version of the agent can no longer
    read it. `today`: how the template and settings of today would write it, None where they cannot.
    """

    number: int
    loaded: int
    digest: str
    config: bytes
    state: DesiredState | None
    today: Config | None = None
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def as_today(self) -> bool:
        """Whether settings and template are still those it was written with."""
        return self.today is not None and self.today.stamped(digest=self.digest, generation=self.number) == self.config


@frozen(kw_only=True)
class Wanted:
    """What shall be live: the document's digest, its state without quarantined addresses, its configuration."""

    digest: str
    state: DesiredState
    config: Config
    quarantined: tuple[Quarantined, ...] = ()

    def is_live(self, committed: Committed | None) -> bool:
        """Whether it is the very document and configuration that are live."""
        return (
            committed is not None
            and self.digest == committed.digest
            and self.config.stamped(digest=committed.digest, generation=committed.number) == committed.config
        )


# --- commands


class Command:
    """One line for the stats socket."""


@frozen
class EnableFrontend(Command):
    """Open a frontend that was disabled at the socket. `proxy`: its name in haproxy.cfg."""

    proxy: str

    def __str__(self) -> str:
        return f"enable frontend {self.proxy}"


@frozen
class ServerCommand(Command):
    """One about a server."""

    backend: str
    server: str

    @property
    def at(self) -> str:
        """`backend/server`"""
        return f"{self.backend}/{self.server}"


@frozen
class AddServer(ServerCommand):
    """A new server, in maintenance until it is told otherwise. It inherits nothing (FACTS, HAProxy 6)."""

    line: ServerLine

    def __str__(self) -> str:
        return f"add server {self.at} {self.line.address} {' '.join([f'weight {self.line.weight}', *self.line.fixed])}"


@frozen
class EnableHealth(ServerCommand):
    """Begin the checks of an added server."""

    def __str__(self) -> str:
        return f"enable health {self.at}"


@frozen
class SetState(ServerCommand):
    """`ready`, `drain` (no new clients) or `maint` (no clients, no checks; sessions go on)."""

    state: str

    def __str__(self) -> str:
        return f"set server {self.at} state {self.state}"


@frozen
class SetHealth(ServerCommand):
    """What checks have found, until the next one finds otherwise: `up` or `down`."""

    health: str

    def __str__(self) -> str:
        return f"set server {self.at} health {self.health}"


@frozen
class Move(ServerCommand):
    """The server is at another address."""

    line: ServerLine

    def __str__(self) -> str:
        return f"set server {self.at} addr {self.line.address.host} port {self.line.address.port}"


@frozen
class SetWeight(ServerCommand):
    """Its share of the clients, 0 to 256."""

    weight: int

    def __str__(self) -> str:
        return f"set server {self.at} weight {self.weight}"


@frozen
class Delete(ServerCommand):
    """Forget a server. Only one in maintenance, without a session."""

    def __str__(self) -> str:
        return f"del server {self.at}"


# --- plans


@frozen(kw_only=True)
class Unchanged:
    """HAProxy does already what is wanted. `record`: the document is another one all the same.

    `leaving`: removed servers that wait for their last session. `remarks`: what somebody did by hand.
    """

    record: bool
    leaving: tuple[Delete, ...] = ()
    remarks: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class Runtime:
    """The running process is told, and goes on.

    `drift`: what was not as this agent had left it; `kinds`: of each, `server` or `frontend`.
    """

    commands: tuple[Command, ...]
    reasons: tuple[str, ...]
    record: bool
    drift: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    leaving: tuple[Delete, ...] = ()
    remarks: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class Reload:
    """A new process takes over (or the first one starts), for these reasons.

    `record`: by a configuration of its own; else it is what is live, and HAProxy only has to be started. `kinds`: of
    what was not as this agent had left it, `frontend`.
    """

    reasons: tuple[str, ...]
    record: bool = True
    kinds: tuple[str, ...] = ()


Plan = Unchanged | Runtime | Reload


def plan(
    committed: Committed | None,
    running: Running | None,
    wanted: Wanted,
    *,
    servers: Iterable[ServerSeen] = (),
    frontends: Iterable[FrontendSeen] = (),
    reached: frozenset[Key] = frozenset(),
    dirty: frozenset[Key] = frozenset(),
) -> Plan:
    """The smallest step from what is committed and running to what is wanted.

    `servers`, `frontends`: those of the running process. `reached`: servers that answered just now, of all that had to
    be asked. `dirty`: servers that this agent was changing when it ended: whatever they are now, no person did it.
    """
    reasons = []
    if running is None:
        reasons.append("HAProxy is not running")
    if committed is None:
        reasons.append("nothing is live yet")
        return Reload(reasons=tuple(reasons))
    if running is not None and running.generation not in (committed.number, committed.loaded):
        held = "a file without a generation" if running.generation is None else f"generation {running.generation}"
        reasons.append(f"HAProxy runs {held}; generation {committed.number} is committed")
    same = wanted.config.stamped(digest=committed.digest, generation=committed.number) == committed.config
    found = [] if same else changes(committed.state, wanted.state)
    if not same and not (committed.state and committed.as_today and _shell(committed.state) == _shell(wanted.state)):
        reasons += found or ["the settings or the template changed"]
    if reasons and same and committed.digest == wanted.digest:
        return Reload(reasons=tuple(reasons), record=False)
    if reasons or committed.state is None:
        return Reload(reasons=tuple(reasons) or ("what is live cannot be read by this version of the agent",))
    steps = _Steps(committed, wanted, reached, dirty, committed.state)
    steps.take(servers)
    names = {frontend.name for frontend in wanted.state.frontends}
    closed = [frontend for frontend in frontends if frontend.name in names and not frontend.open]
    steps.commands.extend(EnableFrontend(frontend.proxy or frontend.name) for frontend in closed)
    drift = [f"frontend {frontend.name} was disabled" for frontend in closed]
    kinds = ("frontend",) * len(closed)
    if stopped := [f"frontend {frontend.name} was shut down" for frontend in closed if frontend.stopped]:
        return Reload(reasons=(*found, *stopped, *steps.reload), record=not wanted.is_live(committed), kinds=kinds)
    if steps.reload:
        return Reload(reasons=(*found, *steps.reload))
    record = not same or committed.digest != wanted.digest
    leaving, remarks = tuple(steps.leaving), tuple(steps.remarks)
    if not steps.commands:
        return Unchanged(record=record, leaving=leaving, remarks=remarks)
    why = (*found, *steps.drift, *drift, *steps.other)
    return Runtime(
        commands=tuple(steps.commands),
        reasons=why or ("what an interrupted step has left is put right",),
        record=record,
        drift=(*steps.drift, *drift),
        kinds=(*("server",) * len(steps.drift), *kinds),
        leaving=leaving,
        remarks=remarks,
    )


def _shell(state: DesiredState) -> DesiredState:
    """What only a new process can change: not the document's label and number, what the probe speaks, the servers."""
    backends = tuple(evolve(backend, servers=(), application=Application.RAW) for backend in state.backends)
    return evolve(state, name="", serial=None, backends=backends)


@frozen
class _Steps:
    """Gathers the commands from what servers are to what they shall be; `reload`: what no command can do."""

    committed: Committed
    wanted: Wanted
    reached: frozenset[Key]
    dirty: frozenset[Key]
    before: DesiredState
    commands: list[Command] = field(factory=list)
    last: list[Command] = field(factory=list)
    leaving: list[Delete] = field(factory=list)
    drift: list[str] = field(factory=list)
    other: list[str] = field(factory=list)
    remarks: list[Finding] = field(factory=list)
    reload: list[str] = field(factory=list)

    def take(self, servers: Iterable[ServerSeen]) -> None:
        """What enters service first, what leaves it last: a backend is never without a server in between."""
        seen: dict[str, dict[str, ServerSeen]] = {}
        for one in servers:
            seen.setdefault(one.backend, {})[one.name] = one
        old = {pool.name: {one.name: one for one in pool.servers} for pool in self.before.backends}
        goodbyes: list[Command] = []
        for pool in self.wanted.state.backends:
            now, before = seen.get(pool.name, {}), old.get(pool.name, {})
            for server in pool.servers:
                known = None if (pool.name, server.name) in self.dirty else before.get(server.name)
                self._server(pool, server, known, now.get(server.name))
            goodbyes.extend(self._removed(pool, now, before))
        self.commands.extend([*self.last, *goodbyes])

    def _server(self, pool: Backend, server: Server, before: Server | None, now: ServerSeen | None) -> None:
        key = (pool.name, server.name)
        line = self.wanted.config.servers[key]
        if now is None:
            if before == server:
                self.drift.append(f"server {pool.name}/{server.name} is gone from the running HAProxy")
            if not self.wanted.config.holds(line):
                self.reload.append(f"the template writes server {pool.name}/{server.name} in its own way")
            self.commands.append(AddServer(*key, line))
            self._begin(pool, server)
            return
        if not self._same_words(pool, key, line, now):
            self.reload.append(f"server {pool.name}/{server.name} cannot be changed in the running HAProxy")
            return
        self._address(pool, server, before, now, line)
        if now.weight != server.weight and (before is None or before.weight != server.weight):
            (self.commands if server.weight else self.last).append(SetWeight(*key, server.weight))
        self._presence(pool, server, before, now)

    def _begin(self, pool: Backend, server: Server) -> None:
        key = (pool.name, server.name)
        if pool.health.type is not HealthType.NONE:
            self.commands.append(EnableHealth(*key))
        if not server.disabled:
            self._enter(pool, server)

    def _enter(self, pool: Backend, server: Server) -> None:
        """Out of maintenance. HAProxy starts it as up, unseen: one that nobody reached starts as down (FACTS, 5)."""
        key = (pool.name, server.name)
        if key not in self.reached:
            # In this order it gets no client in between (M: 2.6, 2.8, 3.0; `health down` before `ready` is forgotten).
            self.commands.extend([SetState(*key, "drain"), SetHealth(*key, "down")])
        self.commands.append(SetState(*key, "ready"))

    def _same_words(self, pool: Backend, key: Key, line: ServerLine, now: ServerSeen) -> bool:
        """Whether the running server has the fixed words of `line`."""
        known = self.committed.today.servers.get(key) if self.committed.today else None
        if known is not None:
            return known.fixed == line.fixed
        # One that left and comes back before its last session ended. Its words are those of its backend, which did
        # not change, or this would be a reload; its own are whether it is a backup, and where a check must name a
        # port, whether that is its own.
        health = pool.health
        anywhere = health.port is None and health.send_proxy is not False
        return (anywhere or now.address == str(line.address)) and now.backup == ("backup" in line.fixed)

    def _address(self, pool: Backend, server: Server, before: Server | None, now: ServerSeen, line: ServerLine) -> None:
        key = (pool.name, server.name)
        if now.address == str(server.address):
            # Nothing but this agent takes an unchecked server for dead, so nothing else brings it up again.
            if pool.health.type is HealthType.NONE and now.down and key in self.reached:
                self.commands.append(SetHealth(*key, "up"))
                self.other.append(f"server {pool.name}/{server.name} answers")
            return
        if before is not None and before.address == server.address:
            self.drift.append(f"server {pool.name}/{server.name} was at {now.address}, not at {server.address}")
        unreached = key not in self.reached and not now.maintenance
        where = self.last if unreached else self.commands
        where.extend([SetHealth(*key, "down")] if unreached else [])
        where.append(Move(*key, line))
        if now.down and key in self.reached:  # it was dead at the address it had before
            self.commands.append(SetHealth(*key, "up"))

    def _presence(self, pool: Backend, server: Server, before: Server | None, now: ServerSeen) -> None:
        key = (pool.name, server.name)
        where = f"backends.{pool.name}.servers.{server.name}"
        if server.disabled:
            if not now.maintenance:
                if before is not None and before.disabled:
                    self.drift.append(f"server {pool.name}/{server.name} was in service, but is disabled")
                self.last.append(SetState(*key, "maint"))
        elif now.maintenance and (before is None or before.disabled):
            if key in self.dirty and pool.health.type is not HealthType.NONE:
                self.commands.append(EnableHealth(*key))  # added, and its checks not begun
            self._enter(pool, server)
        elif now.draining and key in self.dirty:
            self._enter(pool, server)
        elif now.maintenance or now.draining:
            how = "in maintenance" if now.maintenance else "draining"
            self.remarks.append(
                Finding(where, f"is {how}, by hand", f"`set server {pool.name}/{server.name} state ready` ends it")
            )
        elif before is not None and now.weight != server.weight and before.weight == server.weight:
            self.remarks.append(Finding(where, f"has weight {now.weight} by hand, not {server.weight}"))

    def _removed(self, pool: Backend, now: Mapping[str, ServerSeen], before: Mapping[str, Server]) -> Iterator[Command]:
        wanted = {server.name for server in pool.servers}
        for name in sorted(now.keys() - wanted):
            if not now[name].maintenance:
                if name not in before and (pool.name, name) not in self.dirty:
                    self.drift.append(f"server {pool.name}/{name} is in the running HAProxy, but nobody asked for it")
                yield SetState(pool.name, name, "maint")
            self.leaving.append(Delete(pool.name, name))


def diff(committed: Committed | None, config: bytes, *, number: int) -> str:
    """A unified diff of haproxy.cfg, from the live one to `config`; empty where nothing is different."""
    before = committed.config.decode(errors="replace").splitlines() if committed else []
    name = f"haproxy.cfg (generation {committed.number})" if committed else "haproxy.cfg (none)"
    after = config.decode(errors="replace").splitlines()
    lines = difflib.unified_diff(before, after, name, f"haproxy.cfg (generation {number})", lineterm="")
    return "".join(f"{line}\n" for line in lines)


def changes(before: DesiredState | None, after: DesiredState) -> list[str]:
    """What is different between two states, a sentence each, in the order of the file."""
    if before is None:
        return ["what is live cannot be read by this version of the agent"]
    found = []
    if (before.maxconn, before.timeouts) != (after.maxconn, after.timeouts):
        found.append("defaults changed")
    found += _named("frontend", {one.name: one for one in before.frontends}, {one.name: one for one in after.frontends})
    old = {one.name: one for one in before.backends}
    new = {one.name: one for one in after.backends}
    for name in sorted(old.keys() | new.keys()):
        if name in old and name in new:
            found += _backend(old[name], new[name])
        else:
            found.append(f"backend {name} {'added' if name in new else 'removed'}")
    return found


def _named(kind: str, old: dict[str, Frontend], new: dict[str, Frontend]) -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            found.append(f"{kind} {name} added")
        elif name not in new:
            found.append(f"{kind} {name} removed")
        elif old[name] != new[name]:
            found.append(f"{kind} {name} changed: {', '.join(_fields(old[name], new[name]))}")
    return found


def _fields(old: AttrsInstance, new: AttrsInstance) -> list[str]:
    names = [attribute.name for attribute in attrs.fields(type(old))]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _backend(old: Backend, new: Backend) -> list[str]:
    found = []
    if fields := [name for name in _fields(old, new) if name != "servers"]:
        found.append(f"backend {new.name} changed: {', '.join(fields)}")
    before = {one.name: one for one in old.servers}
    after = {one.name: one for one in new.servers}
    words = {name: _server(before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())}
    return found + [f"server {new.name}/{name} {word}" for name, word in words.items() if word]


def _server(old: Server | None, new: Server | None) -> str:
    if old is None:
        return "added"
    if new is None:
        return "removed"
    words = [f"moved from {old.address} to {new.address}"] if old.address != new.address else []
    if fields := [name for name in _fields(old, new) if name != "address"]:
        words.append(f"changed: {', '.join(fields)}")
    return ", ".join(words)
