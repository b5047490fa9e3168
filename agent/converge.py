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
)
from agent.model import preflight, proof
from agent.model.desired import DesiredState, Parsed, digest_of
from agent.model.generation import Generation, Handshake, Hold, Quarantined
from agent.model.observed import Running
from agent.model.pace import Pace
from agent.model.plan import Committed, Reload, Runtime, Unchanged, Wanted, plan
from agent.model.report import Report
from agent.ports import Ports
from agent.survey import Survey, loss_sentences, losses_of, plan_of
from agent.switch import RETRY, Change, Switch
from agent.telling import Told

FORCE = "`--force` does it anyway; without it, a running agent tries again at every resync"


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

        `force`: although a frontend that serves now would have no server that answers. `retry`: although it is held.
        `request`: somebody asks for it; else it is what is live, until the desired file can be read, and ends no hold.
        """
        told = self._told(digest_of(data) if isinstance(data, bytes) else None)
        try:
            self._recover(told)
            with told.stage("load"):
                told.parsed = self._load(told, data, request=request)
            if retry:
                self._lift_hold(told.digest, same=True)
            self._refuse_held(told.parsed)
            assert isinstance(data, bytes)
            return self._make_live(told, told.parsed, data, force=force)
        except LaterError:  # what runs is as it was, and serves
            raise
        except AgentError as error:
            return self._failed(told, error)

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
            self._recover(told)
            with told.stage("load"):
                told.parsed = self.survey.reread(data)
            told.restores = number
            # Back is back: what was live once is not put to the proof, it is told what it is.
            report = self._make_live(told, told.parsed, data, force=False, proven=False)
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

    def _make_live(self, told: Told, parsed: Parsed, data: bytes, *, force: bool, proven: bool = True) -> Report:
        """`force`: whatever serving frontends would lose. `proven`: only where no handshake speaks against it."""
        committed, seen = self.survey.committed(), self.survey.seen()
        with told.stage("preflight"):
            change = self.survey.change(parsed, data, committed, seen)
            told.quarantined, told.handshakes = change.wanted.quarantined, change.handshakes
            self._remember(change.handshakes, change.before, parsed.state)
        if change.objections and proven:
            raise RefusedError("; ".join(change.objections), remedy=proof.REMEDY)
        with told.stage("plan"):
            step = told.step = plan_of(change)
        if isinstance(step, Unchanged):
            return self._unchanged(told, change, step)
        losses = losses_of(change)
        told.findings += preflight.silent(change.down)
        if losses and not force:
            raise RefusedError(
                "; ".join(loss_sentences(losses)), remedy=f"nothing was touched of what is live; {FORCE}"
            )
        change = evolve(change, at_stake=tuple(one for one in change.at_stake if one not in losses))
        live = self.ports.store.live()
        told.unserved = self._unserved(change, since=live.unserved if live else ())
        told.started = change.old is None
        try:
            self._step(told, change, step)
        except SwitchError as error:
            with told.stage("roll back"):
                raise self._switch.put_back(error, change) from error
        told.findings += self.survey.doubts(parsed.state)
        corrected = isinstance(told.step, Runtime) and not told.step.record
        return told.report(Outcome.UNCHANGED if corrected else Outcome.COMMITTED)

    def _step(self, told: Told, change: Change, step: Runtime | Reload) -> None:
        if isinstance(step, Runtime):
            told.findings += step.remarks
            try:
                self._switch.tell(told, change, step)
            except (CommandError, NoAnswerError) as error:
                step = told.step = Reload(reasons=(*step.reasons, f"the running HAProxy could not do it: {error}"))
            else:
                told.drift += ["server"] * len(step.drift)
                return
        elif change.old is not None and (wait := self._pace.wait(self.ports.clock.monotonic())) > 0:
            raise LaterError(f"reloads are paced: the next one in {wait:.1f} s", seconds=wait)
        self._switch.reload(told, change, step)

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
        """What is live must run, whatever became of the new document. Returns what is wrong with that, or ""."""
        try:
            committed, running = self.survey.committed(), self.ports.proxy.running()
            if committed is None:
                return ""
            if running is None:
                self._revive(told, committed)
            elif told.touched or not self._serves(committed, running, told.tried):
                was = told.parsed.state if told.parsed else None
                self._switch.start(committed, running, was=was)
            else:
                self._tend(told, committed)
        except AgentError as error:
            return f"what was live does not start either: {error}"
        return ""

    def _serves(self, committed: Committed, running: Running, tried: int | None) -> bool:
        """Whether what runs is to be left alone: it is what is live, or newer than all that can still be read.

        Not so the generation that was `tried` just now and failed.
        """
        if tried is not None and running.generation == tried:
            return False
        return running.generation in (committed.number, committed.loaded, None) or (
            running.generation > committed.number
        )

    def _tend(self, told: Told, committed: Committed) -> None:
        """Look after what is live as if it were still wanted: addresses that are free again, drift, leftovers.

        Not where template or settings have changed: they came with what was just refused.
        """
        parsed = self.survey.document(committed.number)
        running = self.ports.proxy.running()
        ours = running is not None and running.generation in (committed.number, committed.loaded)
        if parsed is None or not ours or not committed.as_today or committed.number in self._untended:
            return
        aside = told.aside(committed.digest)
        data, hold = self.ports.store.desired_of(committed.number), self.ports.store.hold()
        try:
            self._make_live(aside, parsed, data, force=False)
        except AgentError as error:  # refused, paced or put back: the next resync looks again
            if isinstance(error, SwitchError):  # but does not hurt again for a document that nobody has asked for
                self._untended.add(committed.number)
                self.ports.store.set_hold(hold)
            running = self.ports.proxy.running()
            if running is None or aside.touched or not self._serves(committed, running, aside.tried):
                self._switch.start(committed, running, was=parsed.state)

    def _revive(self, told: Told, committed: Committed) -> None:
        """HAProxy does not run: start what was live, without addresses that cannot be bound now. Raises SwitchError."""
        parsed = self.survey.document(committed.number)
        if parsed is None:
            self._switch.start(committed, None, was=None)
            return
        try:
            change = self.survey.change(parsed, self.ports.store.desired_of(committed.number), committed, None)
        except (InvalidError, RefusedError, UsageError):  # of a template that came later: these bytes need none
            self._switch.start(committed, None, was=None)
            return
        if _places(change.wanted.quarantined) == _places(committed.quarantined):
            self._switch.start(committed, None, was=None, down=change.down)
            return
        try:
            self._switch.reload(told.aside(committed.digest), change, Reload(reasons=("HAProxy is not running",)))
        except SwitchError as error:
            raise self._switch.put_back(error, change) from error

    def _recover(self, told: Told) -> None:
        """Finish or undo what a crash left, and have HAProxy run: afterwards the newest whole generation is live.

        Asks the running process rather than the journal, which may be as old as the crash: a process that answers
        as a staged generation has taken over, and everything else never happened.
        """
        with told.stage("recover"):
            store = self.ports.store
            live, running = store.live(), self.ports.proxy.running()
            reached = running.generation if running is not None else None
            if reached is not None and (live is None or reached > live.number):
                live = self._finish(reached) or live
            expected = store.config_of(live.number) if live is not None else None
            if expected is not None and store.swapped() != expected:
                if store.journal() is None:
                    told.drift.append("file")
                store.swap(expected)
            if live is not None and running is not None:
                self._undo_commands(live, running)
            store.unstage()
            store.end()
        if live is None or running is not None or (committed := self.survey.committed()) is None:
            return
        with told.stage("revive"):
            try:
                self._revive(told, committed)
                told.drift.append("process")
            except AgentError as error:  # the document may still bring one that starts
                told.findings.append(Finding("haproxy", f"what was live does not start: {error}", "look at its log"))

    def _finish(self, number: int) -> Generation | None:
        """Commit a staged generation whose process runs already."""
        store, staged = self.ports.store, self.ports.store.staged(number)
        if staged is None:
            return None
        desired, config = staged
        live = Generation(
            number=number,
            digest=digest_of(desired),
            config_digest=digest_of(config),
            loaded=number,
            at=self.ports.clock.now(),
            outcome=Outcome.COMMITTED.value,
            reasons=("finished after the agent was interrupted",),
        )
        with contextlib.suppress(InvalidError):  # the label, serial and quarantine are all that is lost
            state = self.survey.reread(desired).state
            bound = {tuple(line.split()[:2]) for line in config.decode(errors="replace").splitlines()}
            missing = tuple(
                Quarantined(frontend=one.name, address=str(endpoint), reason="failed", detail="it was left out")
                for one in state.frontends
                for endpoint in one.binds
                if ("bind", str(endpoint)) not in bound
            )
            live = evolve(live, name=state.name, serial=state.serial, quarantined=missing)
        store.swap(config)
        store.commit(live)
        return live

    def _undo_commands(self, live: Generation, running: Running) -> None:
        """Commands that were under way when the agent ended, and were never committed."""
        journal = self.ports.store.journal()
        if journal is None or not journal.runtime or live.number != journal.before:
            return
        committed, staged = self.survey.committed(), self.ports.store.staged(journal.after)
        parsed = self.survey.document(live.number)
        if committed is None or committed.state is None or committed.today is None or staged is None or parsed is None:
            return
        data = self.ports.store.desired_of(live.number)
        with contextlib.suppress(InvalidError):  # not whole: then no command was sent either
            was = self.survey.reread(staged[0]).state
            seen = self.ports.proxy.observe()
            change = self.survey.change(parsed, data, committed, seen)
            everyone = frozenset((pool.name, one.name) for pool in committed.state.backends for one in pool.servers)
            known = change.reached | (everyone - change.asked.servers.keys())
            wanted = Wanted(digest=committed.digest, state=committed.state, config=committed.today)
            step = plan(committed, running, wanted, servers=seen.servers, reached=known, before=was)
            try:
                with self.ports.proxy.conversation() as tell:
                    for command in step.commands if isinstance(step, Runtime) else ():
                        tell(command)
            except CommandError:
                self._switch.start(committed, running, was=was)


def _places(quarantined: tuple[Quarantined, ...]) -> frozenset[tuple[str, str]]:
    return frozenset((one.frontend, one.address) for one in quarantined)
