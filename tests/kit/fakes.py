"""A HAProxy, a prober and a clock for unit tests, without a process: the fake does what the real one was seen to do.

`tests/integration/test_contract.py` holds the fake and every real HAProxy to the same script.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key
from agent.desired.schema import ProxyProtocol
from agent.errors import CommandError, NoAnswerError
from agent.haproxy.commands import Command, Verb
from agent.haproxy.observed import FRONTEND_PREFIX, FrontendStats, Observation, Running, ServerStats
from agent.proxy_protocol.greetings import ProbeResult, Question, Result
from agent.reconcile.preflight import BindFailure

SERVER = re.compile(r"\s+server (\S+) (\S+) weight (\d+)(.*)")


def apply(servers: dict[Key, ServerStats], command: Command, *, sessions: Mapping[Key, int] | None = None) -> None:
    """What a command does to the servers of a process. Raises CommandError where HAProxy would not do it."""
    key = command.server
    assert key is not None
    if command.verb is Verb.ADD_SERVER:
        if key in servers:
            raise CommandError(f"{command}: Already exists a server with the same name in backend.")
        address, weight, *fixed = command.value.replace("weight ", "", 1).split()
        servers[key] = ServerStats(
            backend=key[0],
            name=key[1],
            status="MAINT",
            check="",
            sessions=0,
            address=address,
            weight=int(weight),
            backup="backup" in fixed,
        )
        return
    if key not in servers:
        raise CommandError(f"{command}: No such server.")
    now = servers[key]
    match command.verb, command.value:
        case Verb.ENABLE_HEALTH, _:
            pass
        case Verb.SET_STATE, "ready":
            servers[key] = evolve(now, status="DOWN" if now.status == "DOWN" else "UP")
        case Verb.SET_STATE, state:
            servers[key] = evolve(now, status=state.upper())
        case Verb.SET_HEALTH, health:
            servers[key] = evolve(now, status=health.upper())
        case Verb.SET_ADDRESS, value:
            host, _, port = value.split()
            servers[key] = evolve(now, address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        case Verb.SET_WEIGHT, weight:
            servers[key] = evolve(now, weight=int(weight))
        case Verb.DELETE_SERVER, _:
            if now.status != "MAINT":
                raise CommandError(f"{command}: Only servers in maintenance mode can be deleted.")
            if not (sessions or {}).get(key):
                del servers[key]
        case _:
            raise AssertionError(command)


def servers_of(config: str) -> dict[Key, ServerStats]:
    """The servers of a haproxy.cfg, as a fresh process has them."""
    found, backend = {}, ""
    for line in config.splitlines():
        if line.startswith("backend "):
            backend = line.split()[1]
        elif match := SERVER.fullmatch(line):
            name, address, weight, rest = match.groups()
            found[backend, name] = ServerStats(
                backend=backend,
                name=name,
                status="MAINT" if rest.endswith(" disabled") else "UP",
                check="",
                sessions=0,
                address=address,
                weight=int(weight),
                backup=" backup" in rest,
            )
    return found


@define
class FakeProxy:
    """Notes what it is asked. `fail`: what to raise, by step. `sessions`: servers that cannot be deleted yet.

    `unchecked`: servers that were added and whose checks have not begun. `closed`: frontends that somebody closed at
    the socket, and whether for good.
    """

    now: Running | None = None
    calls: list[Any] = field(factory=list)
    fail: dict[str, Callable[[], None]] = field(factory=dict)
    servers: dict[Key, ServerStats] = field(factory=dict)
    frontends: list[str] = field(factory=list)
    sessions: dict[Key, int] = field(factory=dict)
    unchecked: set[Key] = field(factory=set)
    closed: dict[str, bool] = field(factory=dict)
    pids: int = 100

    def _do(self, step: str, *what: object) -> None:
        self.calls.append((step, *what) if what else step)
        if step in self.fail:
            self.fail[step]()

    def running(self) -> Running | None:
        return self.now

    def observe(self) -> Observation:
        if self.now is None:
            raise NoAnswerError("silent")
        self.fail.get("observe", lambda: None)()
        return self._observation(self.now)

    def observe_brief(self) -> Observation:
        return self.observe()

    def _observation(self, now: Running) -> Observation:
        seen = tuple(
            FrontendStats(
                name=name,
                open=name not in self.closed,
                sessions=3,
                connections=9,
                proxy=f"{FRONTEND_PREFIX}{name}",
                stopped=self.closed.get(name, False),
            )
            for name in self.frontends
        )
        return Observation(process=now, frontends=seen, servers=tuple(self.servers.values()))

    def server_states(self) -> str:
        self._do("server_states")
        return "1\n"

    def wait_for_start(self, config: Path) -> None:
        """A start of this one is over at once."""

    def limits_settled(self) -> bool:
        self._do("limits_settled")
        return True

    @contextlib.contextmanager
    def conversation(self) -> Iterator[Callable[[Command], None]]:
        yield self.tell

    def tell(self, command: Command) -> None:
        self._do("tell", str(command))
        if command.verb is Verb.ENABLE_FRONTEND:
            name = command.subject.removeprefix(FRONTEND_PREFIX)
            if self.closed.get(name):
                raise CommandError(f"{command}: Frontend was previously shut down, cannot enable.")
            self.closed.pop(name, None)
            return
        apply(self.servers, command, sessions=self.sessions)
        key = command.server
        assert key is not None
        if command.verb is Verb.ENABLE_HEALTH:
            self.unchecked = self.unchecked - {key}
        if command.verb is Verb.ADD_SERVER:
            self.unchecked = self.unchecked | {key}

    def delete_drained(self, command: Command) -> bool:
        self._do("delete_drained", str(command))
        apply(self.servers, command, sessions=self.sessions)
        return command.server not in self.servers

    @contextlib.contextmanager
    def checking(self, config: Path) -> Iterator[Callable[[], None]]:
        assert config.read_bytes()
        yield lambda: self._do("check")

    @contextlib.contextmanager
    def trial_start(self, config: Path, generation: int) -> Iterator[None]:
        assert config.read_bytes()
        yield
        self._do("trial_start")

    def switch(self, config: Path, old: Running | None) -> None:
        text = config.read_text()
        generation = int(text.split("edgeagent generation ")[1].split('"')[0])
        self._do("switch", generation, old.generation if old else None)
        self.pids += 1
        self.now = Running(pid=self.pids, version="2.8", uptime=0, generation=generation)
        self.servers = servers_of(text)
        self.closed = {}
        self.frontends = re.findall(rf"^frontend (?:{FRONTEND_PREFIX})?(\S+)$", text, re.MULTILINE)

    def end_trial(self) -> None:
        """There is none."""

    def wait_until_serving(self, generation: int, frontends: frozenset[str], old: Running | None) -> Observation:
        self._do("wait_until_serving", generation, sorted(frontends))
        assert self.now is not None
        return self._observation(self.now)


@define
class FakeNames:
    """A resolver with these answers."""

    addresses: dict[str, tuple[str, ...]] = field(factory=dict)
    asked: list[tuple[frozenset[str], float]] = field(factory=list)
    here: set[str] = field(factory=set)

    def is_here(self, address: str) -> bool:
        return address in self.here

    def answers(self, names: Collection[str], *, seconds: float) -> Mapping[str, Sequence[str]]:
        self.asked.append((frozenset(names), seconds))
        return {name: self.addresses.get(name, ()) for name in names}


@define
class FakeProber:
    """Everything can be bound and every server answers, and as it should, but for these."""

    busy: dict[str, str] = field(factory=dict)
    dead: set[str] = field(factory=set)
    odd: dict[str, Result] = field(factory=dict)
    asked: list[Key] = field(factory=list)
    greeted: list[Key] = field(factory=list)
    probed_open: list[str] = field(factory=list)

    def unbound(self, endpoints: Collection[Endpoint]) -> Mapping[Endpoint, BindFailure]:
        return {
            endpoint: BindFailure(reason="in_use", detail=self.busy[str(endpoint)])
            for endpoint in endpoints
            if str(endpoint) in self.busy
        }

    def shared(self, endpoints: Collection[Endpoint]) -> Iterable[tuple[Endpoint, str]]:
        return ()

    def reachable(self, servers: Mapping[Key, Iterable[Endpoint]], *, timeout: float) -> frozenset[Key]:
        self.asked += sorted(servers)
        self.probed_open += [str(end) for ends in servers.values() for end in ends]
        return frozenset(key for key, ends in servers.items() if not any(str(end) in self.dead for end in ends))

    def handshakes(self, questions: Collection[Question]) -> Mapping[Key, ProbeResult]:
        self.greeted += sorted(question.key for question in questions)
        return {question.key: ProbeResult(result=self._result(question), detail="as told") for question in questions}

    def _result(self, question: Question) -> Result:
        if str(question.address) in self.dead:
            return Result.REFUSED
        good = Result.PLAIN if question.version is ProxyProtocol.NONE else Result.SPEAKS_PROXY
        return self.odd.get(str(question.address), good)


class Clock:
    """Each look at it is a millisecond later."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return 1_000_000 + self.at

    def monotonic(self) -> float:
        self.at += 0.001
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
