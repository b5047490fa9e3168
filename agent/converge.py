"""The story, top to bottom: load, plan, check, swap, switch, verify, commit or put back, report.

Everything it touches comes in through the ports below, so that each step can be seen to fail. Whoever calls
`Story.converge` holds the store's lock. It returns a Report for everything that can be wrong with a desired state,
with HAProxy or with a file; what it still raises is wrong with this host (no haproxy, folders of somebody else).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from attrs import evolve, field, frozen

from agent.errors import (
    AgentError,
    Finding,
    InvalidError,
    NoAnswerError,
    Outcome,
    RefusedError,
    StoreError,
    SwitchError,
)
from agent.model import serverstate
from agent.model.desired import Limits, Parsed, digest_of, parse
from agent.model.generation import Generation, Hold, Journal
from agent.model.observed import Observation, Running
from agent.model.plan import Committed, Plan, Reload, Wanted, diff, plan
from agent.model.render import Config, Process, Template, render
from agent.model.report import Report


class Proxy(Protocol):
    """The HAProxy of this host. See `agent.host.haproxy`."""

    def running(self) -> Running | None: ...
    def observe(self) -> Observation: ...
    def server_states(self) -> str: ...
    def check(self, config: Path) -> None: ...
    def switch(self, config: Path, old: Running | None) -> None: ...
    def prove(self, generation: int, frontends: frozenset[str], old: Running | None) -> Running: ...


class Files(Protocol):
    """The agent's files. See `agent.host.store`."""

    @property
    def config(self) -> Path: ...
    def live(self) -> Generation | None: ...
    def next_number(self) -> int: ...
    def desired_of(self, number: int) -> bytes: ...
    def config_of(self, number: int) -> bytes: ...
    def stage(self, number: int, *, desired: bytes, config: bytes) -> Path: ...
    def staged(self, number: int) -> tuple[bytes, bytes] | None: ...
    def unstage(self) -> None: ...
    def swap(self, config: bytes | None) -> None: ...
    def swapped(self) -> bytes | None: ...
    def commit(self, generation: Generation) -> None: ...
    def begin(self, journal: Journal) -> None: ...
    def end(self) -> None: ...
    def hold(self) -> Hold | None: ...
    def set_hold(self, hold: Hold | None) -> None: ...
    def write_server_state(self, dump: str) -> None: ...
    def ensure_server_state(self) -> None: ...


class Clock(Protocol):
    """Time. `now`: seconds since the epoch, for people; `monotonic`: seconds, for durations."""

    def now(self) -> float: ...
    def monotonic(self) -> float: ...


@frozen(kw_only=True)
class Proposal:
    """What a converge would do now, and nothing done: the plan, the diff of haproxy.cfg, sessions at risk.

    `sessions`: open now, and left to the replaced process until they end or hard-stop-after ends them.
    """

    parsed: Parsed
    plan: Plan
    diff: str
    sessions: int


@frozen(kw_only=True)
class Story:
    """Turns desired bytes into a live HAProxy, or says why not. `file` names the desired state in messages."""

    file: Path
    max_bytes: int
    limits: Limits
    process: Process
    template: Callable[[], Template]
    proxy: Proxy
    store: Files
    clock: Clock
    on_stage: Callable[[str], None] = field(default=lambda _: None)

    def converge(self, data: bytes | InvalidError) -> Report:
        """Make `data` live, in the smallest step that does it; an InvalidError says why there is none to read."""
        told = _Told(self, digest_of(data) if isinstance(data, bytes) else None)
        try:
            with told.stage("recover"):
                self._recover()
                self._lift_hold(told.digest)
            with told.stage("load"):
                if isinstance(data, InvalidError):
                    raise data
                parsed, wanted = self._load(data)
            told.parsed = parsed
            self._refuse_held(wanted)
            with told.stage("plan"):
                committed, running = self.committed(), self.proxy.running()
                step = plan(committed, running, wanted)
            told.step = step
            if isinstance(step, Reload):
                self._reload(told, wanted, step, data)
                return told.report(Outcome.COMMITTED)
            if step.record and committed is not None:
                self._record(told, wanted, committed, data)
            return told.report(Outcome.UNCHANGED)
        except AgentError as error:
            with told.stage("keep"):
                trouble = self._keep_serving(told.tried)
            return told.failure(error, trouble)

    def propose(self, data: bytes) -> Proposal:
        """The plan for `data`, without a side effect. Raises InvalidError."""
        parsed, wanted = self._load(data)
        committed, running = self.committed(), self.proxy.running()
        step = plan(committed, running, wanted)
        number = self.store.next_number()
        config = wanted.config.stamped(digest=wanted.digest, generation=number)
        sessions = 0
        if isinstance(step, Reload) and running is not None:
            with contextlib.suppress(NoAnswerError):  # it answered a moment ago; if it is gone, so are its sessions
                sessions = sum(one.sessions for one in self.proxy.observe().frontends)
        difference = diff(committed, config, number=number) if isinstance(step, Reload) else ""
        return Proposal(parsed=parsed, plan=step, diff=difference, sessions=sessions)

    def staged_config(self, data: bytes) -> bytes:
        """The haproxy.cfg that `data` would become. Raises InvalidError."""
        _, wanted = self._load(data)
        return wanted.config.stamped(digest=wanted.digest, generation=self.store.next_number())

    def committed(self) -> Committed | None:
        """The live generation, with its state where this version of the agent can read it."""
        live = self.store.live()
        if live is None:
            return None
        desired = self.store.desired_of(live.number)
        try:
            state = _parsed(desired, str(self.file), len(desired), self.limits).state
        except InvalidError:  # written by an agent with other rules
            state = None
        return Committed(
            number=live.number,
            loaded=live.loaded,
            digest=live.digest,
            config=self.store.config_of(live.number),
            state=state,
        )

    # --- the steps

    def _load(self, data: bytes) -> tuple[Parsed, Wanted]:
        parsed = _parsed(data, str(self.file), self.max_bytes, self.limits)
        config = _rendered(parsed, self.process, self.template())
        return parsed, Wanted(digest=parsed.digest, state=parsed.state, config=config)

    def _lift_hold(self, digest: str | None) -> None:
        """A hold ends with the document it is for: when that comes again, it is somebody's wish to try again."""
        hold = self.store.hold()
        if hold is not None and digest is not None and hold.digest != digest:
            self.store.set_hold(None)

    def _refuse_held(self, wanted: Wanted) -> None:
        if (hold := self.store.hold()) is not None and hold.digest == wanted.digest:
            raise SwitchError(
                f"held since it was rolled back: {hold.reason}",
                remedy="the previous state stays live until the desired state changes",
            )

    def _reload(self, told: _Told, wanted: Wanted, step: Reload, desired: bytes) -> None:
        committed, old = self.committed(), self.proxy.running()
        number = self.store.next_number()
        config = wanted.config.stamped(digest=wanted.digest, generation=number)
        with told.stage("check"):
            self.store.ensure_server_state()
            self.proxy.check(self.store.stage(number, desired=desired, config=config))
        with told.stage("swap"):
            self.store.begin(Journal(before=committed.number if committed else None, after=number))
            self._hand_over_servers(committed, wanted, old)
            self.store.swap(config)
        told.tried = number
        try:
            with told.stage("switch"):
                self.proxy.switch(self.store.config, old)
            with told.stage("verify"):
                self.proxy.prove(number, frozenset(one.name for one in wanted.state.frontends), old)
        except SwitchError as error:
            with told.stage("roll back"):
                raise self._put_back(error, wanted, committed, old) from error
        with told.stage("commit"):
            self.store.commit(
                Generation(
                    number=number,
                    digest=wanted.digest,
                    config_digest=digest_of(config),
                    loaded=number,
                    at=self.clock.now(),
                    outcome=Outcome.COMMITTED.value,
                    name=wanted.state.name,
                    serial=wanted.state.serial,
                    reasons=step.reasons,
                    seconds=round(told.seconds, 3),
                )
            )
            self.store.end()

    def _hand_over_servers(self, committed: Committed | None, wanted: Wanted, old: Running | None) -> None:
        dump = serverstate.EMPTY
        if old is not None:
            with contextlib.suppress(NoAnswerError):  # without it, new checks find out what is up
                dump = self.proxy.server_states()
        before = committed.state if committed else None
        self.store.write_server_state(serverstate.carried(dump, before, wanted.state))

    def _record(self, told: _Told, wanted: Wanted, committed: Committed, desired: bytes) -> None:
        """Another document, the same configuration: a generation of its own, and HAProxy is left alone."""
        with told.stage("commit"):
            number = self.store.next_number()
            config = wanted.config.stamped(digest=wanted.digest, generation=number)
            self.store.stage(number, desired=desired, config=config)
            self.store.commit(
                Generation(
                    number=number,
                    digest=wanted.digest,
                    config_digest=digest_of(config),
                    loaded=committed.loaded,
                    at=self.clock.now(),
                    outcome=Outcome.UNCHANGED.value,
                    name=wanted.state.name,
                    serial=wanted.state.serial,
                    reasons=("the document changed, the configuration did not",),
                    seconds=round(told.seconds, 3),
                )
            )
            self.store.swap(config)

    def _put_back(
        self, error: SwitchError, wanted: Wanted, committed: Committed | None, old: Running | None
    ) -> AgentError:
        """Undo a switch: the previous bytes, and a process that runs them. Returns what to report."""
        self.store.swap(committed.config if committed else None)
        self.store.unstage()
        self.store.end()
        if committed is None or old is None:
            # Nothing served before, so nothing got worse; `_keep_serving` starts what was live, if anything was.
            return RefusedError(str(error), remedy="it is tried again at every resync")
        self.store.set_hold(Hold(digest=wanted.digest, reason=str(error), since=self.clock.now()))
        return SwitchError(str(error), remedy="the previous state is live; this document is held until it changes")

    def _keep_serving(self, tried: int | None) -> str:
        """What is live must run, whatever became of the new document. Returns what is wrong with that, or ""."""
        try:
            committed = self.committed()
            running = self.proxy.running()
            if committed is None or self._serves(committed, running, tried):
                return ""
            frontends = frozenset(one.name for one in committed.state.frontends) if committed.state else frozenset()
            if self.store.swapped() != committed.config:
                self.store.swap(committed.config)
            with contextlib.suppress(StoreError):  # a full run folder costs a warning of HAProxy's, not the service
                self.store.ensure_server_state()
            self.proxy.switch(self.store.config, running)
            self.proxy.prove(committed.number, frontends, running)
        except AgentError as error:
            return f"what was live does not start either: {error}"
        return ""

    def _serves(self, committed: Committed, running: Running | None, tried: int | None) -> bool:
        """Whether what runs is to be left alone: it is what is live, or newer than all that can still be read.

        Not so the generation that was `tried` just now and failed.
        """
        if running is None or (tried is not None and running.generation == tried):
            return False
        return running.generation in (committed.number, committed.loaded, None) or (
            running.generation > committed.number
        )

    def _recover(self) -> None:
        """Finish or undo what a crash left: afterwards the newest whole generation is what haproxy.cfg says.

        Asks the running process rather than the journal, which may be as old as the crash: a process that answers
        as a staged generation has taken over, and everything else never happened.
        """
        live, running = self.store.live(), self.proxy.running()
        reached = running.generation if running is not None else None
        if reached is not None and (live is None or reached > live.number):
            staged = self.store.staged(reached)
            if staged is not None:
                desired, config = staged
                live = Generation(
                    number=reached,
                    digest=digest_of(desired),
                    config_digest=digest_of(config),
                    loaded=reached,
                    at=self.clock.now(),
                    outcome=Outcome.COMMITTED.value,
                    reasons=("finished after the agent was interrupted",),
                )
                with contextlib.suppress(InvalidError):  # the label and serial are all that is lost
                    state = _parsed(desired, str(self.file), len(desired), self.limits).state
                    live = evolve(live, name=state.name, serial=state.serial)
                self.store.swap(config)
                self.store.commit(live)
        expected = self.store.config_of(live.number) if live is not None else None
        if expected is not None and self.store.swapped() != expected:
            self.store.swap(expected)
        self.store.unstage()
        self.store.end()


class _Told:
    """Gathers what a converge has to tell: stages with their time, and at the end the Report."""

    def __init__(self, story: Story, digest: str | None) -> None:
        self._story = story
        self.digest = digest
        self._timings: list[tuple[str, float]] = []
        self.parsed: Parsed | None = None
        self.tried: int | None = None  # the generation a process was started for
        self.step: Plan | None = None

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self._timings)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._story.on_stage(name)
        start = self._story.clock.monotonic()
        try:
            yield
        finally:
            self._timings.append((name, round(self._story.clock.monotonic() - start, 6)))

    def report(self, outcome: Outcome) -> Report:
        live = None
        with contextlib.suppress(StoreError):  # told already: this is the report of it
            live = self._story.store.live()
        parsed, step = self.parsed, self.step
        return Report(
            outcome=outcome,
            at=self._story.clock.now(),
            file=str(self._story.file),
            digest=self.digest,
            name=parsed.state.name if parsed else "",
            serial=parsed.state.serial if parsed else None,
            generation=live.number if live else None,
            plan=None if step is None else "reload" if isinstance(step, Reload) else "unchanged",
            reasons=step.reasons if isinstance(step, Reload) else (),
            findings=parsed.findings if parsed else (),
            timings=tuple(self._timings),
        )

    def failure(self, error: AgentError, trouble: str) -> Report:
        report = self.report(error.outcome or Outcome.REFUSED)
        violations = error.violations if isinstance(error, InvalidError) else ()
        if trouble:
            report = evolve(report, findings=(*report.findings, Finding("haproxy", trouble, "look at HAProxy's log")))
        return evolve(
            report,
            file=error.file if isinstance(error, InvalidError) else report.file,
            message=str(error),
            remedy=error.remedy,
            violations=violations,
        )


@functools.lru_cache(maxsize=4)
def _parsed(data: bytes, file: str, max_bytes: int, limits: Limits) -> Parsed:
    """Kept, because a resync looks at the same bytes again and again."""
    return parse(data, file=file, max_bytes=max_bytes, limits=limits)


@functools.lru_cache(maxsize=2)
def _rendered(parsed: Parsed, process: Process, template: Template) -> Config:
    return render(parsed.state, process, template)
