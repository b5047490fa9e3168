"""The reconcile, top to bottom: settle, accept, preflight, plan, step, verify, commit or roll back, report.

Level-triggered: every step is planned from what is (the running process, the files, the addresses), never from what
was done last. Three targets are tried in order, and the first that can be reached is what serves: the desired document;
the live document as this host is now; the live bytes.

Everything it touches comes in through `ports`, so that each step can be seen to fail. The caller of
`Reconciler.reconcile` holds the store's lock. It returns a Report for everything that can be wrong with a desired
state, with HAProxy or with a file; what it still raises is wrong with this host (no haproxy, folders of another user),
or a RateLimitedError: not now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from attrs import evolve, field, frozen

from agent.desired.identity import Key, digest_of
from agent.desired.schema import DesiredState
from agent.desired.state import Parsed
from agent.errors import (
    AgentError,
    CommandError,
    Finding,
    InvalidError,
    NoAnswerError,
    Outcome,
    RateLimitedError,
    RefusedError,
    StoreError,
    SwitchError,
    UsageError,
    WorseError,
)
from agent.haproxy.observed import Running
from agent.haproxy.plan import LiveGeneration, Reload, Runtime, Unchanged
from agent.proxy_protocol import policy
from agent.proxy_protocol.record import Handshake
from agent.reconcile import drains, names, preflight
from agent.reconcile.actor import FILE, signed
from agent.reconcile.applier import RETRY, Applier, Assessment
from agent.reconcile.assessor import Assessor, outage_sentences, outages_of, plan_of
from agent.reconcile.generation import Generation, Hold, Journal
from agent.reconcile.names import Resolution, Resolved
from agent.reconcile.pace import Pace
from agent.reconcile.ports import Admit, Environment
from agent.reconcile.report import Report
from agent.reconcile.report_builder import ReportBuilder

RETRY_SECONDS = 30.0  # until a document is tried again whose step the world has made fail; doubled each time
MAX_RETRY_SECONDS = 600.0
FORCE = "`--force` does it anyway; without it, a running agent tries again at every resync"
TRIED_AGAIN = "the previous state is live; this document is tried again"
FINISHED = "finished after the agent was interrupted"


@frozen(kw_only=True)
class Failure:
    """A document whose step failed through no fault of its own."""

    reason: str
    """what happened"""
    count: int
    """how often"""
    retry_at: float
    """when it is tried again, by the monotonic clock"""


@frozen(kw_only=True)
class Reconciler:
    """Turns desired bytes into a live HAProxy, or says why not."""

    assessor: Assessor
    """reads and asks"""
    environment: Environment
    """what it needs of this host"""
    verify_seconds: float = 10.0
    """how long a step may take until every frontend serves as well as before"""
    burst: int = 1_000_000
    """reloads that need not be paced"""
    on_stage: Callable[[str], None] = field(default=lambda _: None)
    """called with each stage as it begins"""
    verify: Callable[[bytes], str | None] = field(default=lambda _: "")
    """raises PolicyError for bytes whose signature is not good, before they are parsed; returns the signer, "" where
    documents are not signed, None for a document that is no request, only what is live anyway"""
    admit: Admit = field(default=lambda _, *, force=False: None)  # noqa: ARG005  # the parameter of the protocol
    """raises PolicyError for a valid document that policy rejects"""
    _pace: Pace = field(init=False)
    _failed_generations: set[int] = field(init=False, factory=set)  # not reached again as this host is now: it hurt
    # By digest: addresses of names that hurt, and until when they are not tried again, by the monotonic clock.
    _worse: dict[str, dict[Resolved, float]] = field(init=False, factory=dict)
    _failures: dict[str, Failure] = field(init=False, factory=dict)  # by digest: what the world did to documents

    @_pace.default
    def _make_pace(self) -> Pace:
        return Pace(self.burst)

    @property
    def _applier(self) -> Applier:
        return Applier(environment=self.environment, pace=self._pace, verify_seconds=self.verify_seconds)

    def reconcile(
        self,
        data: bytes | InvalidError,
        *,
        force: bool = False,
        retry: bool = False,
        request: bool = True,
        actor: str = FILE,
        by_command: bool = False,
    ) -> Report:
        """Make `data` live, in the smallest step that does it; an InvalidError says why there is none to read.

        `force`: although a frontend that serves now would have no server that answers, or another manager wrote what is
        live. `retry`: although it is held.
        `request`: it is asked for; else it is what is live, until the desired file can be read, and ends no hold.
        `actor`: who asks for it now (`by_command`), or has handed it over before.
        """
        report = self._builder(digest_of(data) if isinstance(data, bytes) else None, actor)
        report.by_command = by_command
        try:
            self._settle(report)
            with report.stage("load"):
                parsed = report.parsed = self._accept(report, data, force=force, retry=retry, request=request)
            assert isinstance(data, bytes)
            done = self._reach(report, parsed, data, force=force)
        except RateLimitedError:  # what runs is as it was, and serves
            raise
        except AgentError as error:
            return self._failed(report, self._retried(report, error))
        self._failures.clear()
        return done

    def rollback(self, number: int | None, present: bytes | None, *, actor: str = "") -> Report:
        """Put the document of generation `number` back (None: the last one before the live one that differs).

        `present`: the desired file as it is, which is held until it changes. `actor`: who asks for it. Raises
        UsageError for a generation that is not there.
        """
        store = self.environment.store
        number = self._previous() if number is None else number
        if all(generation.number != number for generation in store.generations()):
            raise UsageError(f"there is no generation {number}", remedy="`agent history` lists them")
        data, earlier = store.desired_of(number), store.hold()
        report = self._builder(digest_of(data), actor)
        report.by_command = True
        if present is not None and (held := digest_of(present)) != report.digest:
            reason = f"generation {number} was put back by hand"
            store.write_hold(Hold(digest=held, reason=reason, since=self.environment.clock.now()))
            report.findings.append(Finding("", f"sha256 {held[:12]} is held: the agent does not apply it", RETRY))
        try:
            self._settle(report)
            with report.stage("load"):
                parsed = report.parsed = self.assessor.reread(data)
            report.restores = number
            # What PROXY probes find is reported, not refused: a rollback must work in an emergency.
            done = self._reach(report, parsed, data, force=False, proven=False)
        except AgentError as error:
            store.write_hold(earlier)
            return self._failed(report, error)
        self._lift_hold(report.digest, same=True)
        return done

    def _builder(self, digest: str | None, actor: str) -> ReportBuilder:
        file = str(self.assessor.file)
        return ReportBuilder(
            environment=self.environment, file=file, on_stage=self.on_stage, digest=digest, author=actor
        )

    def _previous(self) -> int:
        """The last generation before the live one that had another document, and at least one frontend."""
        *earlier, live = self.environment.store.generations() or (None,)
        for generation in reversed(earlier):
            if generation is None or live is None or generation.digest == live.digest:
                continue
            parsed = self.assessor.document(generation.number)
            if parsed is None or parsed.state.frontends:
                return generation.number
        raise UsageError(
            "there is no earlier generation with a frontend",
            remedy="`agent history` lists all of them; `agent rollback NUMBER` takes any",
        )

    # --- accept: is this document to be applied now

    def _accept(
        self, report: ReportBuilder, data: bytes | InvalidError, *, force: bool, retry: bool, request: bool
    ) -> Parsed:
        """The desired document. Raises InvalidError, PolicyError, and SwitchError for one that has to wait."""
        if isinstance(data, InvalidError):
            raise data
        signer = self.verify(data)
        requested = signer is not None and request
        report.author = signed(report.author, signer)
        try:
            parsed = self.assessor.read(data)
        except InvalidError:
            if requested:
                self._lift_hold(report.digest)
            raise
        self.admit(parsed, force=force)
        if requested:
            self._lift_hold(report.digest)
        if retry:
            self._lift_hold(report.digest, same=True)
            self._failures.pop(parsed.digest, None)
            self._worse.clear()
        report.parsed = parsed
        self._refuse_held(parsed)
        self._refuse_failed(parsed)
        return parsed

    def _lift_hold(self, digest: str | None, *, same: bool = False) -> None:
        """A hold ends when another document is asked for. `same`: it ends where it is for this document."""
        hold = self.environment.store.hold()
        if hold is not None and digest is not None and (hold.digest == digest) is same:
            self.environment.store.write_hold(None)

    def _refuse_held(self, parsed: Parsed) -> None:
        hold = self.environment.store.hold()
        if hold is None or hold.digest != parsed.digest:
            return
        live = self.assessor.live()
        if live is not None and live.digest == parsed.digest and live.is_current:
            self.environment.store.write_hold(None)  # it is what is live: nothing would be applied that could hurt
        else:
            raise SwitchError(f"held: {hold.reason}", remedy=f"what is live stays; {RETRY}")

    def _refuse_failed(self, parsed: Parsed) -> None:
        """A step that failed through no fault of its document can cost clients something: not at each resync."""
        failure, now = self._failures.get(parsed.digest), self.environment.clock.monotonic()
        if failure is not None and now < failure.retry_at:
            remedy = f"{TRIED_AGAIN} in {failure.retry_at - now:.0f} s, or at once with --retry"
            raise SwitchError(failure.reason, remedy=remedy)

    def _retried(self, report: ReportBuilder, error: AgentError) -> AgentError:
        """A step that failed and did not hold its document is tried again, less and less often."""
        by_the_world = isinstance(error, SwitchError) and not isinstance(error, WorseError)
        if report.parsed is None or not report.switched or not by_the_world:
            return error
        digest, now = report.parsed.digest, self.environment.clock.monotonic()
        count = self._failures[digest].count + 1 if digest in self._failures else 1
        wait = min(RETRY_SECONDS * 2 ** (count - 1), MAX_RETRY_SECONDS)
        self._failures.clear()  # of documents that are no longer wanted
        self._failures[digest] = Failure(reason=str(error), count=count, retry_at=now + wait)
        times = "" if count == 1 else f", after {count} failures"
        return SwitchError(str(error), remedy=f"{TRIED_AGAIN} in {wait:.0f} s{times}")

    # --- reach: from what is to a document, in the smallest step

    def _reach(
        self,
        report: ReportBuilder,
        parsed: Parsed,
        data: bytes,
        *,
        force: bool,
        proven: bool = True,
        resolution: Resolution | None = None,
    ) -> Report:
        """`force`: whatever serving frontends would lose. `proven`: only where no PROXY probe speaks against it.

        `resolution`: what the names of servers are, None where they have to be looked up.
        """
        live = self.assessor.live()
        observed = self.assessor.observed(live)
        report.unasked = not report.by_command and live is not None and live.digest == parsed.digest
        with report.stage("preflight"):
            now = self.environment.clock.monotonic()
            worse = [resolved for resolved, until in self._worse.get(parsed.digest, {}).items() if now < until]
            assessment = self.assessor.assess(
                parsed, data, live, observed, report.interrupted, resolution=resolution, worse=worse
            )
            report.quarantined, report.handshakes = assessment.target.quarantined, assessment.handshakes
            report.written, report.silent = assessment.written, assessment.resolution.silent
            report.name_findings = tuple(names.findings(parsed.state, assessment.resolution))
            self._remember(assessment.handshakes, assessment.before, assessment.written)
        if assessment.objections and proven:
            why = "; ".join(policy.in_words(assessment.objections))
            raise RefusedError(why, remedy=policy.REMEDY, refused=assessment.objections)
        with report.stage("plan"):
            step = report.step = plan_of(assessment)
        if isinstance(step, Unchanged) and report.interrupted is None:
            return self._unchanged(report, assessment, step)
        report.findings += preflight.silent(assessment.down)
        outages = outages_of(assessment)
        if outages and not force:
            why = "; ".join(outage_sentences(outages))
            remedy = f"nothing was touched of what is live; {FORCE}"
            raise RefusedError(why, remedy=remedy, refused=preflight.refusals(outages))
        judged = () if assessment.target.is_live(live) else assessment.serving  # there is nothing to go back to
        assessment = evolve(assessment, serving=tuple(serving for serving in judged if serving not in outages))
        report.unserved = self._unserved(assessment)
        report.cold_start = assessment.old is None
        self._note_unreachable(assessment)
        try:
            self._take(report, assessment, _judgement_of(step) if isinstance(step, Unchanged) else step)
        except SwitchError as error:
            report.switched = True
            self._note_worse(error, assessment)
            with report.stage("roll back"):
                raise self._applier.roll_back(error, assessment) from error
        except RefusedError:
            if report.commands_sent:  # and then haproxy -c refused the file: undone like an interrupted step
                report.interrupted, report.commands_sent = self.environment.store.journal(), False
            raise
        report.interrupted = None
        report.findings += self.assessor.probe_warnings(assessment.written)
        self._note_drains(report, assessment)
        # A fallback to a reload has replaced `report.step`.
        new_generation = not isinstance(step, Unchanged) and report.step is not None and report.step.new_generation
        return report.done(Outcome.COMMITTED if new_generation else Outcome.UNCHANGED)

    def _note_worse(self, error: SwitchError, assessment: Assessment) -> None:
        """Addresses of names that came with a step that hurt are not taken again for a while."""
        live, digest = assessment.live, assessment.target.digest
        if isinstance(error, WorseError) and live is not None and live.digest == digest:
            until = self.environment.clock.monotonic() + MAX_RETRY_SECONDS
            moved = dict.fromkeys(set(assessment.resolution.recorded) - set(live.resolved), until)
            before = self._worse.get(digest, {})
            self._worse.clear()  # of documents that are no longer wanted
            self._worse[digest] = before | moved

    def _take(self, report: ReportBuilder, assessment: Assessment, step: Runtime | Reload) -> None:
        """Take the step; where the running HAProxy does not take the commands, by a reload."""
        if isinstance(step, Runtime):
            report.findings += step.operator_overrides
            try:
                self._applier.run_commands(report, assessment, step)
            except (CommandError, NoAnswerError) as error:
                assessment = evolve(assessment, dirty=assessment.dirty | step.servers)  # some of it may be done
                step = report.step = Reload(reasons=(*step.reasons, f"the running HAProxy could not do it: {error}"))
        elif assessment.old is not None and (wait := self._pace.wait(self.environment.clock.monotonic())) > 0:
            raise RateLimitedError(f"reloads are paced: the next one in {wait:.1f} s", seconds=wait)
        if isinstance(step, Reload):
            self._applier.reload(report, assessment, step)
        report.drift += step.kinds

    def _unchanged(self, report: ReportBuilder, assessment: Assessment, step: Unchanged) -> Report:
        state = assessment.target.state
        self._applier.delete_drained(report, step.pending_deletes)
        report.findings += step.operator_overrides
        binds = [endpoint for frontend in state.frontends for endpoint in frontend.bind]
        report.findings += preflight.shared(self.environment.prober.shared(binds))
        if assessment.observed is not None:
            again = self.assessor.probe_again(assessment.target, assessment.observed, assessment.handshakes)
            self._remember(again, assessment.written)
        report.findings += self.assessor.probe_warnings(assessment.written)
        self._note_drains(report, assessment)
        report.unserved = self._unserved(assessment)
        if step.new_generation:
            self._applier.record_document(report, assessment)
        return report.done(Outcome.UNCHANGED)

    def _note_drains(self, report: ReportBuilder, assessment: Assessment) -> None:
        """What a person has drained; one that the document has ended is forgotten. A full disk costs only that."""
        report.findings += drains.findings(assessment.drains)
        if assessment.drains != self.environment.store.drains():
            with contextlib.suppress(StoreError):
                self.environment.store.set_drains(assessment.drains)

    def _unserved(self, assessment: Assessment) -> tuple[str, ...]:
        live, state = assessment.live, assessment.target.state
        works = preflight.working(state, assessment.observed, assessment.checks, assessment.reachable)
        return preflight.unserved(assessment.before, state, works, since=live.unserved if live else ())

    def _remember(self, handshakes: tuple[Handshake, ...], *states: DesiredState | None) -> None:
        """Keep what servers were found to be. A full disk costs that, and is reported where it costs more."""
        before = self.environment.store.handshakes()
        if handshakes and (after := policy.remembered(before, handshakes, *states)) != before:
            with contextlib.suppress(StoreError):
                self.environment.store.set_handshakes(after)

    def _note_unreachable(self, assessment: Assessment) -> None:
        """For a process that starts anew. A full disk costs that, and is reported where it costs more."""
        store, checks = self.environment.store, assessment.checks
        known = store.unreachable()
        now = preflight.still_unreachable(known, assessment.target.state, checks.servers, assessment.reachable)
        if now != known:
            with contextlib.suppress(StoreError):
                store.set_unreachable(now)

    # --- what is live goes on, whatever happens

    def _failed(self, report: ReportBuilder, error: AgentError) -> Report:
        with report.stage("keep"):
            trouble = self._keep_serving(report)
        self._forget_drains()
        return report.failed(error, trouble)

    def _forget_drains(self) -> None:
        """Drains that could not be made live: one that would end a frontend's service must not refuse each document."""
        store = self.environment.store
        with contextlib.suppress(StoreError):
            live, before = store.live(), store.drains()
            kept = tuple(drain for drain in before if live is not None and drain.key in live.drained)
            if kept != before:
                store.set_drains(kept)

    def _keep_serving(self, report: ReportBuilder) -> str:
        """The second and the third target. Returns what is wrong with what was live, "" where nothing is.

        First as this host is now: addresses that are free again, drift, what an interrupted step has left. Where that
        cannot be, or a step has just failed, by the bytes that were live.
        """
        try:
            live = self.assessor.live()
            if live is not None and not self._reach_live(report, live):
                self._ensure_live_bytes(report, live)
            self.environment.store.clear_journal()
        except AgentError as error:
            return f"what was live does not start either: {error}"
        return ""

    def _reach_live(self, report: ReportBuilder, live: LiveGeneration) -> bool:
        """Whether the live document is what runs, as this host is now.

        Not where template or settings have changed: they came with what was just refused.
        """
        store, running = self.environment.store, self.environment.proxy.running()
        parsed = self.assessor.document(live.number)
        if parsed is None or report.commands_sent or live.number in self._failed_generations:
            return False
        if running is not None and running.generation not in (live.number, live.loaded):
            return False
        data, hold = store.desired_of(live.number), store.hold()
        if not live.is_current and (running is not None or not self._has_other_addresses(live, parsed, data)):
            return False
        for_live = report.for_live(live.digest)
        recorded = Resolution(addresses=dict(live.resolved))
        # Names of servers move also while the desired state is held, invalid or refused.
        moving = running is not None and not report.switched and bool(names.of(parsed.state))
        try:
            try:
                self._reach(
                    for_live,
                    parsed,
                    data,
                    force=False,
                    proven=running is not None,
                    resolution=None if moving else recorded,
                )
            except RefusedError:
                if not moving:
                    raise
                self._reach(for_live, parsed, data, force=False, resolution=recorded)
        except AgentError as error:  # refused, paced or rolled back: the next resync tries again
            report.commands_sent = report.commands_sent or for_live.commands_sent
            report.started_generation = for_live.started_generation or report.started_generation
            if isinstance(error, SwitchError):  # but nothing hurts twice for a document that was not asked for
                # Where a name has moved, `_worse` has its address, and the rest of the document goes on.
                if not (moving and isinstance(error, WorseError)):
                    self._failed_generations.add(live.number)
                store.write_hold(hold)
                report.commands_sent = True
            return False
        report.interrupted = None
        if report.written is None:  # what was wanted did not come that far
            report.silent, report.name_findings = for_live.silent, for_live.name_findings
        return True

    def _as_now(self, live: LiveGeneration, parsed: Parsed, data: bytes) -> Assessment | None:
        """The live document on this host, for a process that starts anew; None where it cannot be rendered."""
        with contextlib.suppress(InvalidError, RefusedError, UsageError):  # of a template that came later
            return self.assessor.assess(parsed, data, live, None, resolution=Resolution(addresses=dict(live.resolved)))
        return None

    def _has_other_addresses(self, live: LiveGeneration, parsed: Parsed, data: bytes) -> bool:
        """Whether other addresses can be bound than when it went live: its bytes would not start, or lack some."""
        assessment = self._as_now(live, parsed, data)
        if assessment is None:
            return False
        now, then = (
            {(bind.frontend, bind.address) for bind in binds}
            for binds in (assessment.target.quarantined, live.quarantined)
        )
        return now != then

    def _ensure_live_bytes(self, report: ReportBuilder, live: LiveGeneration) -> None:
        """The bytes that were live serve: no preflight, no trial start. Raises SwitchError."""
        running = self.environment.proxy.running()
        dirty = report.interrupted.servers if report.interrupted else ()
        untouched = not report.commands_sent and not dirty
        if running is not None and untouched and _serves(live, running, report.started_generation):
            return
        before, down = report.written or live.state, frozenset[Key]()
        parsed = self.assessor.document(live.number) if running is None else None
        if parsed is not None:  # a process that starts without a server-state file would take silent servers for up
            assessment = self._as_now(live, parsed, self.environment.store.desired_of(live.number))
            down = assessment.down if assessment else down
        self._applier.start(live, running, before=before, down=down, dirty=dirty)
        report.interrupted = None

    # --- settle: what an earlier agent, a crash or a reboot has left

    def _settle(self, report: ReportBuilder) -> None:
        """Find out what is, by the running process, not by history. Then HAProxy runs.

        A process that answers as the staged generation has taken over: it is judged now, where no verdict was reached.
        Of a step by commands only the servers it was about are remembered: the next plan sees what they are.
        """
        store, proxy = self.environment.store, self.environment.proxy
        with report.stage("recover"):
            with contextlib.suppress(StoreError):
                proxy.end_trial()
            if (journal := store.journal()) is not None:
                proxy.wait_for_start(store.config)
            live, running = store.live(), proxy.running()
            number = running.generation if running is not None else None
            if number is not None and (live is None or number > live.number):
                live = self._finish(report, number, journal) or live
            config = store.config_of(live.number) if live is not None else None
            if config is not None and store.read_config() != config:
                if journal is None:
                    report.drift.append("file")
                store.write_config(config)
            if journal is not None and journal.servers and live is not None and running is not None:
                report.interrupted = journal if journal.before == live.number else None
            store.unstage()
            if report.interrupted is None:
                store.clear_journal()
        if live is None or running is not None:
            return
        with report.stage("revive"):
            if trouble := self._keep_serving(report):  # the document may still bring one that starts
                what = trouble.replace("what was live does not start either", "what was live does not start")
                report.findings.append(Finding("haproxy", what, "look at its log"))
            else:
                report.drift.append("process")

    def _finish(self, report: ReportBuilder, number: int, journal: Journal | None) -> Generation | None:
        """Commit the staged generation whose process runs already, unless it serves worse than the one before."""
        store = self.environment.store
        staged, content = store.staged_generation(number), store.staged(number)
        if staged is None or content is None:
            return None
        desired, config = content
        if journal is not None and journal.after == number and journal.serving:
            with contextlib.suppress(InvalidError):  # of an agent with other rules: nothing to judge it by
                written = names.resolved(self.assessor.reread(desired).state, dict(staged.resolved))
                state = preflight.without(names.without_unresolved(written), staged.quarantined)
                try:
                    self._applier.judge_interrupted(report, journal, state)
                except SwitchError as error:
                    if isinstance(error, WorseError):  # else it died while it was observed: that says nothing of it
                        self._applier.hold(staged.digest, error)
                    report.started_generation = number
                    return None
        store.write_config(config)
        finished = evolve(staged, at=self.environment.clock.now(), reasons=(FINISHED, *staged.reasons))
        store.commit(finished)
        return finished


def _serves(live: LiveGeneration, running: Running, started: int | None) -> bool:
    """Whether what runs is to be left alone: it is what is live, or newer than all that can still be read.

    Not so the generation that was `started` just now and failed.
    """
    number = running.generation
    if started is not None and number == started:
        return False
    return number in (live.number, live.loaded, None) or (number is not None and number > live.number)


def _judgement_of(step: Unchanged) -> Runtime:
    """Nothing is left to do of an interrupted step, but it was never judged."""
    return Runtime(
        commands=(),
        reasons=("an interrupted step was found complete",),
        new_generation=step.new_generation,
        pending_deletes=step.pending_deletes,
        operator_overrides=step.operator_overrides,
    )
