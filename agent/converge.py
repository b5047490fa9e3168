"""The story, top to bottom: load, preflight, plan, check, swap, switch, verify, commit or put back, report.

Everything it touches comes in through `ports`, so that each step can be seen to fail. Whoever calls
`Story.converge` holds the store's lock. It returns a Report for everything that can be wrong with a desired state,
with HAProxy or with a file; what it still raises is wrong with this host (no haproxy, folders of somebody else), or
a LaterError: not now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from attrs import evolve, field, frozen

from agent.errors import (
    AgentError,
    CommandError,
    Finding,
    InvalidError,
    LaterError,
    NoAnswerError,
    Outcome,
    RefusedError,
    StoreError,
    SwitchError,
    UsageError,
    WorseError,
)
from agent.model import preflight, proof
from agent.model.desired import DesiredState, Parsed, digest_of
from agent.model.generation import Generation, Handshake, Hold, Journal, Quarantined
from agent.model.observed import Key, Running
from agent.model.pace import Pace
from agent.model.plan import Committed, Reload, Runtime, Unchanged
from agent.model.report import Report
from agent.ports import Ports
from agent.survey import Survey, loss_sentences, losses_of, plan_of
from agent.switch import RETRY, Change, Switch, changed_servers
from agent.telling import Told

RETRY_SECONDS = 30.0  # until a document is tried again whose step the world has made fail; doubled each time
MOST_RETRY_SECONDS = 600.0
FORCE = "`--force` does it anyway; without it, a running agent tries again at every resync"


@frozen(kw_only=True)
class Failure:
    """A document whose step failed through no fault of its own: why, how often, until when it is not tried again."""

    reason: str
    count: int
    retry_at: float


@frozen(kw_only=True)
class Story:
    """Turns desired bytes into a live HAProxy, or says why not.

    `verify_seconds`: how long a switch has to show that it did not hurt. `burst`: reloads that need not be paced.
    `verify`: raises PolicyError for bytes whose signature is not good, before they are parsed; returns whether the
    document is a request, not only what is live anyway. `admit`: raises PolicyError for a valid document that policy
    rejects.
    """

    survey: Survey
    ports: Ports
    verify_seconds: float = 10.0
    burst: int = 1_000_000
    on_stage: Callable[[str], None] = field(default=lambda _: None)
    verify: Callable[[bytes], bool] = field(default=lambda _: True)
    admit: Callable[[Parsed], None] = field(default=lambda _: None)
    _pace: Pace = field(init=False)
    _untended: set[int] = field(init=False, factory=set)  # generations that are not tended: the last try hurt
    _failures: dict[str, Failure] = field(init=False, factory=dict)  # by digest: what the world did to documents

    @_pace.default
    def _make_pace(self) -> Pace:
        return Pace(self.burst)

    @property
    def _switch(self) -> Switch:
        return Switch(ports=self.ports, pace=self._pace, verify_seconds=self.verify_seconds)

    def converge(
        self, data: bytes | InvalidError, *, force: bool = False, retry: bool = False, request: bool = True
    ) -> Report:
        """Make `data` live, in the smallest step that does it; an InvalidError says why there is none to read.

        What is live goes on in any case: as this host is now, or else by the very bytes it was started with.
        `force`: although a frontend that serves now would have no server that answers. `retry`: although it is held.
        `request`: somebody asks for it; else it is what is live, until the desired file can be read, and ends no hold.
        """
        told = self._told(digest_of(data) if isinstance(data, bytes) else None)
        try:
            self._settle(told)
            with told.stage("load"):
                told.parsed = self._load(told, data, request=request)
            if retry:
                self._lift_hold(told.digest, same=True)
                self._failures.pop(told.parsed.digest, None)
            self._refuse_held(told.parsed)
            self._refuse_waiting(told.parsed)
            assert isinstance(data, bytes)
            report = self._reach(told, told.parsed, data, force=force)
        except LaterError:  # what runs is as it was, and serves
            raise
        except AgentError as error:
            return self._failed(told, self._noted(told, error))
        self._failures.clear()
        return report

    def _refuse_waiting(self, parsed: Parsed) -> None:
        """A step that failed through no fault of its document can cost clients something: not at each look."""
        failure, now = self._failures.get(parsed.digest), self.ports.clock.monotonic()
        if failure is not None and now < failure.retry_at:
            remedy = f"{_REMEDY_WAITING} in {failure.retry_at - now:.0f} s, or at once with --retry"
            raise SwitchError(failure.reason, remedy=remedy)

    def _noted(self, told: Told, error: AgentError) -> AgentError:
        """A step that failed and did not hold its document is tried again, less and less often."""
        by_the_world = isinstance(error, SwitchError) and not isinstance(error, WorseError)
        if told.parsed is None or not told.switched or not by_the_world:
            return error
        digest, now = told.parsed.digest, self.ports.clock.monotonic()
        before = self._failures.get(digest)
        count = before.count + 1 if before else 1
        wait = min(RETRY_SECONDS * 2 ** (count - 1), MOST_RETRY_SECONDS)
        self._failures.clear()  # of documents that nobody wants any more
        self._failures[digest] = Failure(reason=str(error), count=count, retry_at=now + wait)
        times = "" if count == 1 else f", after {count} failures"
        return SwitchError(str(error), remedy=f"{_REMEDY_WAITING} in {wait:.0f} s{times}")

    def rollback(self, number: int | None, present: bytes | None) -> Report:
        """Put the document of generation `number` back (None: the last one before the live one that differs).

        `present`: the desired file as it is, which is held until it changes. Raises UsageError for a generation
        that is not there.
        """
        number = self._previous() if number is None else number
        if all(one.number != number for one in self.ports.store.generations()):
            raise UsageError(f"there is no generation {number}", remedy="`agent history` lists them")
        data = self.ports.store.desired_of(number)
        told = self._told(digest_of(data))
        earlier = self.ports.store.hold()
        if present is not None and digest_of(present) != told.digest:
            reason = f"generation {number} was put back by hand"
            self.ports.store.set_hold(Hold(digest=digest_of(present), reason=reason, since=self.ports.clock.now()))
            held = f"sha256 {digest_of(present)[:12]} is held: the agent does not apply it"
            told.findings.append(Finding("", held, RETRY))
        try:
            self._settle(told)
            with told.stage("load"):
                told.parsed = self.survey.reread(data)
            told.restores = number
            # Back is back: what was live once is not put to the proof, it is told what it is.
            report = self._reach(told, told.parsed, data, force=False, proven=False)
        except AgentError as error:
            self.ports.store.set_hold(earlier)
            return self._failed(told, error)
        self._lift_hold(told.digest, same=True)
        return report

    # --- the steps

    def _load(self, told: Told, data: bytes | InvalidError, *, request: bool) -> Parsed:
        """The document that is wanted. One that is not taken is nobody's wish, so it lifts no hold."""
        if isinstance(data, InvalidError):
            raise data
        requested = self.verify(data) and request
        try:
            parsed = self.survey.read(data)
        except InvalidError:
            if requested:
                self._lift_hold(told.digest)
            raise
        self.admit(parsed)
        if requested:
            self._lift_hold(told.digest)
        return parsed

    def _told(self, digest: str | None) -> Told:
        return Told(ports=self.ports, file=str(self.survey.file), on_stage=self.on_stage, digest=digest)

    def _reach(self, told: Told, parsed: Parsed, data: bytes, *, force: bool, proven: bool = True) -> Report:
        """`force`: whatever serving frontends would lose. `proven`: only where no handshake speaks against it."""
        committed, seen = self.survey.committed(), self.survey.seen()
        with told.stage("preflight"):
            change = self.survey.change(parsed, data, committed, seen, told.interrupted)
            told.quarantined, told.handshakes = change.wanted.quarantined, change.handshakes
            self._remember(change.handshakes, change.before, parsed.state)
        if change.objections and proven:
            raise RefusedError("; ".join(change.objections), remedy=proof.REMEDY)
        with told.stage("plan"):
            step = told.step = plan_of(change)
        if isinstance(step, Unchanged) and told.interrupted is None:
            return self._unchanged(told, change, step)
        losses = losses_of(change)
        told.findings += preflight.silent(change.down)
        if losses and not force:
            raise RefusedError(
                "; ".join(loss_sentences(losses)), remedy=f"nothing was touched of what is live; {FORCE}"
            )
        judged = () if change.wanted.is_live(committed) else change.at_stake  # there is nothing to go back to
        change = evolve(change, at_stake=tuple(stake for stake in judged if stake not in losses))
        live = self.ports.store.live()
        told.unserved = self._unserved(change, since=live.unserved if live else ())
        told.started = change.old is None
        self._note_unreached(change)
        try:
            self._step(told, change, _judged(step) if isinstance(step, Unchanged) else step)
        except SwitchError as error:
            told.switched = True
            with told.stage("roll back"):
                raise self._switch.put_back(error, change) from error
        except RefusedError:
            if told.touched:  # commands were given, and then haproxy -c refused the file: as if nothing had been
                told.interrupted, told.touched = self.ports.store.journal(), False
            raise
        told.interrupted = None
        told.findings += self.survey.doubts(parsed.state)
        corrected = isinstance(step, Unchanged) or not (told.step is not None and told.step.record)
        return told.report(Outcome.UNCHANGED if corrected else Outcome.COMMITTED)

    def _step(self, told: Told, change: Change, step: Runtime | Reload) -> None:
        if isinstance(step, Runtime):
            told.findings += step.remarks
            try:
                self._switch.tell(told, change, step)
            except (CommandError, NoAnswerError) as error:
                change = evolve(change, dirty=change.dirty | changed_servers(step))  # some of it may be done
                step = told.step = Reload(reasons=(*step.reasons, f"the running HAProxy could not do it: {error}"))
            else:
                told.drift += step.kinds
                return
        elif change.old is not None and (wait := self._pace.wait(self.ports.clock.monotonic())) > 0:
            raise LaterError(f"reloads are paced: the next one in {wait:.1f} s", seconds=wait)
        self._switch.reload(told, change, step)
        told.drift += step.kinds

    def _unchanged(self, told: Told, change: Change, step: Unchanged) -> Report:
        self._switch.forget(told, step.leaving)
        told.findings += step.remarks
        told.findings += self._shared(change.wanted.state)
        if change.seen is not None:
            again = self.survey.unsettled(change.wanted, change.seen, change.handshakes)
            self._remember(again, change.wanted.state)
        told.findings += self.survey.doubts(change.wanted.state)
        live = self.ports.store.live()
        told.unserved = self._unserved(change, since=live.unserved if live else ())
        if step.record:
            self._switch.record(told, change)
        return told.report(Outcome.UNCHANGED)

    def _unserved(self, change: Change, *, since: Iterable[str]) -> tuple[str, ...]:
        works = preflight.working(change.wanted.state, change.seen, change.asked, change.reached)
        return preflight.unserved(change.before, change.wanted.state, works, since=since)

    def _remember(self, found: tuple[Handshake, ...], *states: DesiredState | None) -> None:
        """Keep what servers were found to be. A disk that is full costs that, and is told where it costs more."""
        before = self.ports.store.handshakes()
        if (after := proof.remembered(before, found, *states)) != before and found:
            with contextlib.suppress(StoreError):
                self.ports.store.set_handshakes(after)

    def _note_unreached(self, change: Change) -> None:
        """For a process that starts anew. A full disk costs that, and is told where it costs more."""
        known = self.ports.store.unreached()
        now = preflight.still_unreached(known, change.wanted.state, change.asked.servers, change.reached)
        if now != known:
            with contextlib.suppress(StoreError):
                self.ports.store.set_unreached(now)

    def _shared(self, state: DesiredState) -> list[Finding]:
        ours = [endpoint for one in state.frontends for endpoint in one.binds]
        return [
            Finding("haproxy", f"{endpoint} is also listened on by {who}: it takes a share of the clients", "end it")
            for endpoint, who in self.ports.prober.shared(ours)
        ]

    def _lift_hold(self, digest: str | None, *, same: bool = False) -> None:
        """A hold ends with the document it is for: when that comes again, it is somebody's wish to try again.

        `same`: it ends where it is for this document, which is live now.
        """
        hold = self.ports.store.hold()
        if hold is not None and digest is not None and (hold.digest == digest) is same:
            self.ports.store.set_hold(None)

    def _refuse_held(self, parsed: Parsed) -> None:
        hold = self.ports.store.hold()
        if hold is None or hold.digest != parsed.digest:
            return
        committed = self.survey.committed()
        if committed is not None and committed.digest == parsed.digest and committed.as_today:
            self.ports.store.set_hold(None)  # it is what is live: nothing would be applied that could hurt
        else:
            raise SwitchError(f"held: {hold.reason}", remedy=f"what is live stays; {RETRY}")

    def _previous(self) -> int:
        """The last generation before the live one that had another document, and at least one frontend."""
        *earlier, live = self.ports.store.generations() or (None,)
        for generation in reversed(earlier):
            if generation is None or live is None or generation.digest == live.digest:
                continue
            parsed = self.survey.document(generation.number)
            if parsed is None or parsed.state.frontends:
                return generation.number
        raise UsageError(
            "there is no earlier generation with a frontend",
            remedy="`agent history` lists all of them; `agent rollback NUMBER` takes any",
        )

    # --- what is live goes on, whatever happens

    def _failed(self, told: Told, error: AgentError) -> Report:
        with told.stage("keep"):
            trouble = self._keep_serving(told)
        return told.failure(error, trouble)

    def _keep_serving(self, told: Told) -> str:
        """What is live must run, whatever became of the new document. Returns what is wrong with that, or "".

        First as this host is now: addresses that are free again, drift, what an interrupted step has left. Where that
        cannot be, or a switch has just failed, by the bytes that were live.
        """
        try:
            committed = self.survey.committed()
            if committed is not None and not self._kept_as_is(told, committed):
                self._ensure_live_bytes(told, committed)
            self.ports.store.end()
        except AgentError as error:
            return f"what was live does not start either: {error}"
        return ""

    def _kept_as_is(self, told: Told, committed: Committed) -> bool:
        """Whether the live document is what runs, as this host is now.

        Not where template or settings have changed: they came with what was just refused.
        """
        parsed, running = self.survey.document(committed.number), self.ports.proxy.running()
        if parsed is None or told.touched or committed.number in self._untended:
            return False
        if running is not None and running.generation not in (committed.number, committed.loaded):
            return False
        data, hold = self.ports.store.desired_of(committed.number), self.ports.store.hold()
        if not committed.as_today and (running is not None or not self._is_short_of_addresses(committed, parsed, data)):
            return False
        aside = told.aside(committed.digest)
        try:
            self._reach(aside, parsed, data, force=False, proven=running is not None)
        except AgentError as error:  # refused, paced or put back: the next resync looks again
            told.touched, told.tried = told.touched or aside.touched, aside.tried or told.tried
            if isinstance(error, SwitchError):  # but does not hurt again for a document that nobody has asked for
                self._untended.add(committed.number)
                self.ports.store.set_hold(hold)
                told.touched = True
            return False
        told.interrupted = None
        return True

    def _is_short_of_addresses(self, committed: Committed, parsed: Parsed, data: bytes) -> bool:
        """Whether other addresses can be bound than when it went live: its bytes would not start, or miss some."""
        with contextlib.suppress(InvalidError, RefusedError, UsageError):  # of a template that came later
            now = self.survey.change(parsed, data, committed, None).wanted.quarantined
            return _places(now) != _places(committed.quarantined)
        return False

    def _ensure_live_bytes(self, told: Told, committed: Committed) -> None:
        """The bytes that were live serve: no preflight, no trial start. Raises SwitchError."""
        running = self.ports.proxy.running()
        dirty = told.interrupted.servers if told.interrupted else ()
        if running is not None and not told.touched and not dirty and self._serves(committed, running, told.tried):
            return
        was = told.parsed.state if told.parsed else committed.state
        down = self._unreached(committed) if running is None else frozenset()
        self._switch.start(committed, running, was=was, down=down, dirty=dirty)
        told.interrupted = None

    def _unreached(self, committed: Committed) -> frozenset[Key]:
        """Servers that do not answer now: a process that starts without a state file would take them for up."""
        parsed = self.survey.document(committed.number)
        if parsed is None:
            return frozenset()
        with contextlib.suppress(InvalidError, RefusedError, UsageError):  # of a template that came later
            data = self.ports.store.desired_of(committed.number)
            return self.survey.change(parsed, data, committed, None).down
        return frozenset()

    def _serves(self, committed: Committed, running: Running, tried: int | None) -> bool:
        """Whether what runs is to be left alone: it is what is live, or newer than all that can still be read.

        Not so the generation that was `tried` just now and failed.
        """
        if tried is not None and running.generation == tried:
            return False
        return running.generation in (committed.number, committed.loaded, None) or (
            running.generation > committed.number
        )

    # --- what an agent before this one has left

    def _settle(self, told: Told) -> None:
        """Find out what is, whatever was left: by the running process, not by history. Then HAProxy runs.

        A process that answers as the staged generation has taken over: where no verdict was reached, it is judged now.
        Of a step by commands only the servers it was about are remembered: the next plan sees what they are.
        """
        with told.stage("recover"):
            store = self.ports.store
            with contextlib.suppress(StoreError):
                self.ports.proxy.end_trial()
            live, running, journal = store.live(), self.ports.proxy.running(), store.journal()
            number = running.generation if running is not None else None
            if number is not None and (live is None or number > live.number):
                live = self._finish(told, number, journal) or live
            expected = store.config_of(live.number) if live is not None else None
            if expected is not None and store.swapped() != expected:
                if journal is None:
                    told.drift.append("file")
                store.swap(expected)
            if journal is not None and journal.servers and live is not None and running is not None:
                told.interrupted = journal if journal.before == live.number else None
            store.unstage()
            if told.interrupted is None:
                store.end()
        if live is None or self.ports.proxy.running() is not None:
            return
        with told.stage("revive"):
            if trouble := self._keep_serving(told):  # the document may still bring one that starts
                what = trouble.replace("what was live does not start either", "what was live does not start")
                told.findings.append(Finding("haproxy", what, "look at its log"))
            else:
                told.drift.append("process")

    def _finish(self, told: Told, number: int, journal: Journal | None) -> Generation | None:
        """Commit the staged generation whose process runs already, unless it serves worse than the one before."""
        store, staged, content = self.ports.store, self.ports.store.staged_generation(number), None
        if staged is None or (content := store.staged(number)) is None:
            return None
        desired, config = content
        if journal is not None and journal.after == number and journal.at_stake:
            with contextlib.suppress(InvalidError):  # of an agent with other rules: nothing to judge it by
                state = preflight.without(self.survey.reread(desired).state, staged.quarantined)
                try:
                    self._switch.judge_interrupted(told, journal, state)
                except WorseError as error:
                    self._switch.hold(staged.digest, error)
                    told.tried = number
                    return None
                except SwitchError:  # it died while it was looked at: nothing is known of it
                    told.tried = number
                    return None
        store.swap(config)
        finished = evolve(staged, at=self.ports.clock.now(), reasons=(_FINISHED, *staged.reasons))
        store.commit(finished)
        return finished


def _places(quarantined: tuple[Quarantined, ...]) -> frozenset[tuple[str, str]]:
    return frozenset((one.frontend, one.address) for one in quarantined)


_FINISHED = "finished after the agent was interrupted"
_REMEDY_WAITING = "the previous state is live; this document is tried again"


def _judged(step: Unchanged) -> Runtime:
    """Nothing is left to do of an interrupted step, but it was never judged."""
    return Runtime(
        commands=(),
        reasons=("an interrupted step was found complete",),
        record=step.record,
        leaving=step.leaving,
        remarks=step.remarks,
    )
