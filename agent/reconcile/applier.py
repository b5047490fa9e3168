"""The step that can hurt: by commands or by a new process, then its verification, its commit, and its rollback.

Journal first, files before processes: wherever this is cut short, the old generation or the new one is whole, and
the reconciler finds out which by asking the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

from attrs import field, frozen

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key, digest_of
from agent.desired.schema import DesiredState, HealthType
from agent.errors import (
    CommandError,
    Finding,
    NoAnswerError,
    Outcome,
    Refusal,
    RefusedError,
    StoreError,
    SwitchError,
    WorseError,
)
from agent.haproxy import server_state
from agent.haproxy.commands import Command
from agent.haproxy.observed import Observation, Running
from agent.haproxy.plan import LiveGeneration, Reload, Runtime, Target
from agent.proxy_protocol.record import Handshake
from agent.reconcile import preflight, verify
from agent.reconcile.generation import Drain, Generation, Hold, Journal
from agent.reconcile.names import Resolution
from agent.reconcile.pace import Pace
from agent.reconcile.ports import Environment
from agent.reconcile.preflight import Checks, ServingBackend
from agent.reconcile.report_builder import ReportBuilder
from agent.reconcile.verify import Judgement

RETRY = "change it, or apply it again with --retry (`agent apply --retry`, `agent sync --retry`)"
TCP_PROBE_SECONDS = 1.0  # for all servers together, side by side; a server that takes longer is as good as dead
LIMITS_SECONDS = 11.0  # HAProxy 2.6 and 2.8: ready 5 s after the start, 10 s where the old process sent nothing
LIMITS_POLL_SECONDS = 0.05
POLL_SECONDS = 0.02  # between two looks at checks that have not ended yet
SAME_CONFIG = ("the document changed, the configuration did not",)


@frozen(kw_only=True)
class Assessment:
    """A target on this host: from what, to what, and what preflight has found out."""

    live: LiveGeneration | None
    """the live generation; None: nothing is live"""
    target: Target
    """what shall be live"""
    data: bytes
    """the document's bytes"""
    template: str
    """digest of template and settings"""
    observed: Observation | None
    """the running process before; None: none answers"""
    checks: Checks
    """what was asked"""
    reachable: frozenset[Key]
    """servers that answered"""
    serving: tuple[ServingBackend, ...] = ()
    """what must not get worse"""
    handshakes: tuple[Handshake, ...] = ()
    """what new servers were found to be"""
    objections: tuple[Refusal, ...] = ()
    """what speaks against the target in that"""
    dirty: frozenset[Key] = frozenset()
    """servers that an interrupted step has changed"""
    drains: tuple[Drain, ...] = ()
    """servers that a person has drained"""
    written: DesiredState
    """the document with addresses for its names, and nothing else changed"""
    resolution: Resolution = field(factory=Resolution)
    """what its names are"""

    @property
    def old(self) -> Running | None:
        """The process that runs before."""
        return self.observed.process if self.observed else None

    @property
    def loaded(self) -> int:
        """The generation whose file the running process was started with: it may have been started anew since."""
        assert self.live is not None
        generation = self.old.generation if self.old else None
        return self.live.loaded if generation is None else generation

    @property
    def before(self) -> DesiredState | None:
        """The state that it serves."""
        return self.live.state if self.live else None

    @property
    def down(self) -> frozenset[Key]:
        """Servers that were asked and did not answer: they start as down."""
        return frozenset(self.checks.servers.keys() - self.reachable)

    def config(self, number: int) -> bytes:
        """The target's haproxy.cfg as generation `number`."""
        return self.target.config.stamped(digest=self.target.digest, generation=number)

    @property
    def expected(self) -> Expected:
        """What has to be seen when the step is done."""
        return Expected(
            state=self.target.state,
            serving=self.serving,
            unproven=self.checks.unproven,
            endpoints=self.checks.servers,
            handshakes=self.handshakes,
            down=self.down,
        )


@frozen(kw_only=True)
class Expected:
    """What has to be observed after a step."""

    state: DesiredState
    """what HAProxy shall serve"""
    serving: tuple[ServingBackend, ...]
    """what must not get worse"""
    unproven: frozenset[Key]
    """servers that are new or changed"""
    endpoints: Mapping[Key, tuple[Endpoint, ...]]
    """where those listen"""
    handshakes: tuple[Handshake, ...] = ()
    """what they were found to be"""
    down: frozenset[Key] = frozenset()
    """those that did not answer before"""


@frozen(kw_only=True)
class Applier:
    """Takes a planned step."""

    environment: Environment
    """what it needs of this host"""
    pace: Pace
    """how often a reload may come"""
    verify_seconds: float
    """how long a step may take until every frontend serves as well as before"""

    def run_commands(self, report: ReportBuilder, assessment: Assessment, step: Runtime) -> None:
        """Commands to the running process, with `haproxy -c` of the new file beside them.

        Raises CommandError (part of it may be done), SwitchError and RefusedError (undo it).
        """
        store, proxy, live = self.environment.store, self.environment.proxy, assessment.live
        assert live is not None
        number = store.next_number() if step.new_generation else live.number
        # Also where only drift is corrected: a server left draining by a crash is no operator's override.
        store.write_journal(_journal(assessment, number, servers=assessment.dirty | step.servers, runtime=True))
        report.commands_sent = True
        with report.stage("switch"), proxy.conversation() as run:
            for command in step.commands:
                run(command)
        with contextlib.ExitStack() as beside:
            if step.new_generation:
                staged = store.stage(number, desired=assessment.data, config=assessment.config(number))
                wait_for_check = beside.enter_context(proxy.checking(staged))
            with report.stage("verify"):
                observed = assessment.observed
                known = frozenset(server.key for server in observed.servers) if observed else frozenset()
                self._verify(report, assessment.expected, self._observe(), known=known)
            if step.new_generation:
                with report.stage("check"):
                    wait_for_check()
        with report.stage("commit"):
            if step.new_generation:
                store.write_config(assessment.config(number))
                store.commit(
                    self._generation(report, assessment, number, loaded=assessment.loaded, reasons=step.reasons),
                    assessment.handshakes,
                )
            store.clear_journal()
        report.commands_sent = False
        self.delete_drained(report, step.pending_deletes)

    def reload(self, report: ReportBuilder, assessment: Assessment, step: Reload) -> None:
        """A new process. Raises RefusedError (nothing was touched), SwitchError (undo it)."""
        if not step.new_generation:
            a = assessment
            assert a.live is not None
            with report.stage("switch"):
                self.start(a.live, a.old, before=a.before, down=a.down, dirty=a.dirty)
            return
        store, proxy, target = self.environment.store, self.environment.proxy, assessment.target
        number = store.next_number()
        with report.stage("check"):
            self._wait_for_limits(assessment)
            staged = store.stage(number, desired=assessment.data, config=assessment.config(number))
            with proxy.trial_start(staged, number):
                self.save_server_state(
                    assessment.before,
                    target.state,
                    assessment.old,
                    down=assessment.down,
                    reachable=assessment.reachable,
                    dirty=assessment.dirty,
                )
        with report.stage("swap"):
            # Staged whole: if this agent ends before the verdict, the next one finishes it by a rename.
            generation = self._generation(report, assessment, number, loaded=number, reasons=step.reasons)
            store.describe(generation, assessment.handshakes)
            store.write_journal(_journal(assessment, number, servers=assessment.dirty, runtime=False))
            store.write_config(assessment.config(number))
        report.started_generation = number
        with report.stage("switch"):
            proxy.switch(store.config, assessment.old)
            self.pace.spend(self.environment.clock.monotonic())
        with report.stage("verify"):
            frontends = frozenset(frontend.name for frontend in target.state.frontends)
            observed = proxy.wait_until_serving(number, frontends, assessment.old)
            self._verify(report, assessment.expected, observed, known=frozenset())
        with report.stage("commit"):
            generation = self._generation(report, assessment, number, loaded=number, reasons=step.reasons)
            store.commit(generation, assessment.handshakes)
            store.clear_journal()
        report.started_generation, report.commands_sent = None, False

    def record_document(self, report: ReportBuilder, assessment: Assessment) -> None:
        """Another document, the same configuration: a generation of its own, and HAProxy is left alone."""
        store = self.environment.store
        with report.stage("commit"):
            number = store.next_number()
            store.stage(number, desired=assessment.data, config=assessment.config(number))
            loaded, outcome = assessment.loaded, Outcome.UNCHANGED
            store.commit(
                self._generation(report, assessment, number, loaded=loaded, reasons=SAME_CONFIG, outcome=outcome),
                assessment.handshakes,
            )
            store.clear_journal()
            store.write_config(assessment.config(number))

    def _generation(
        self,
        report: ReportBuilder,
        assessment: Assessment,
        number: int,
        *,
        loaded: int,
        reasons: tuple[str, ...],
        outcome: Outcome = Outcome.COMMITTED,
    ) -> Generation:
        target = assessment.target
        return Generation(
            number=number,
            digest=target.digest,
            config_digest=digest_of(assessment.config(number)),
            template=assessment.template,
            loaded=loaded,
            at=self.environment.clock.now(),
            outcome=(Outcome.DEGRADED if target.quarantined or report.unserved else outcome).value,
            name=target.state.name,
            serial=target.state.serial,
            manager=target.state.manager,
            reasons=reasons,
            seconds=round(report.seconds, 3),
            quarantined=target.quarantined,
            restores=report.restores,
            unserved=report.unserved,
            drained=tuple(sorted(drain.key for drain in assessment.drains)),
            actor=report.actor,
            resolved=assessment.resolution.recorded,
        )

    def _wait_for_limits(self, assessment: Assessment) -> None:
        """Where clients are counted before and after: until the old process can pass its counts on to the new one."""
        states = (assessment.before, assessment.target.state)
        counted = all(state and any(frontend.rate_limit for frontend in state.frontends) for state in states)
        if assessment.old is None or not counted:
            return
        proxy, clock = self.environment.proxy, self.environment.clock
        deadline = clock.monotonic() + LIMITS_SECONDS
        with contextlib.suppress(NoAnswerError):  # it has died, and its counts with it
            while not proxy.limits_settled() and clock.monotonic() < deadline:
                clock.sleep(LIMITS_POLL_SECONDS)  # HAProxy sends no word when it is ready

    def delete_drained(self, report: ReportBuilder, pending_deletes: Collection[Command]) -> None:
        """Delete servers whose last session has ended; what cannot be deleted yet is tried again at the next resync."""
        for command in pending_deletes:
            try:
                self.environment.proxy.delete_drained(command)
            except NoAnswerError:  # it runs no more, and its leftovers with it
                return
            except CommandError as error:  # in maintenance it harms no client
                report.findings.append(Finding(f"backends.{command.subject.partition('/')[0]}", str(error)))

    # --- the way back

    def roll_back(self, error: SwitchError, assessment: Assessment) -> SwitchError | RefusedError:
        """The previous files again; the document is held where it was seen to serve worse.

        Returns what to report; the process comes after.
        """
        store, live = self.environment.store, assessment.live
        store.write_config(live.config if live else None)
        store.unstage()
        if live is None:
            store.clear_journal()  # else once it runs: until then it names the servers that this step has changed
        if live is None or assessment.old is None:
            # Nothing served before, so nothing got worse; what was live, if anything was, is started after this.
            return RefusedError(str(error), remedy="it is tried again at every resync")
        if not isinstance(error, WorseError):  # HAProxy died, the run folder was wiped, ...: the world did it
            return SwitchError(str(error), remedy="the previous state is live; this document is tried again")
        if assessment.target.digest == live.digest and live.is_current:
            # Addresses or names have changed, or a person has drained: what is live is not held for that.
            return WorseError(str(error), remedy="the previous state is live")
        self.hold(assessment.target.digest, error)
        return WorseError(str(error), remedy=f"the previous state is live; this document is held; {RETRY}")

    def hold(self, digest: str, error: WorseError) -> None:
        """Keep a document from being applied again until it changes, or is asked for."""
        self.environment.store.write_hold(Hold(digest=digest, reason=str(error), since=self.environment.clock.now()))

    def start(
        self,
        live: LiveGeneration,
        running: Running | None,
        *,
        before: DesiredState | None,
        down: Collection[Key] = frozenset(),
        dirty: Collection[Key] = frozenset(),
    ) -> None:
        """A new process for the live bytes. `before`: what `running` serves. Raises SwitchError."""
        store = self.environment.store
        if store.read_config() != live.config:
            store.write_config(live.config)
        with contextlib.suppress(StoreError):  # a full run folder costs what was known of servers, not the service
            self.save_server_state(before, live.state, running, down=down, dirty=dirty)
        self.environment.proxy.switch(store.config, running)
        frontends = frozenset(frontend.name for frontend in live.state.frontends) if live.state else frozenset()
        self.environment.proxy.wait_until_serving(live.number, frontends, running)

    def save_server_state(
        self,
        before: DesiredState | None,
        after: DesiredState | None,
        old: Running | None,
        *,
        down: Collection[Key],
        reachable: Collection[Key] = frozenset(),
        dirty: Collection[Key] = frozenset(),
    ) -> None:
        """What the old process knows of its servers, and which did not answer, for the next process."""
        dump, state = "", server_state.EMPTY
        if old is not None:
            with contextlib.suppress(NoAnswerError):  # without it, new checks find out what is up
                dump = self.environment.proxy.server_states()
        if after is not None:
            state = server_state.carried(dump, before, after, down=down, reached=reachable, dirty=dirty)
        self.environment.store.write_server_state(state)

    # --- the verdict

    def judge_interrupted(self, report: ReportBuilder, journal: Journal, state: DesiredState) -> None:
        """Judge a step whose agent ended before the verdict. Raises SwitchError, WorseError."""
        expected = Expected(
            state=state,
            serving=preflight.recorded_serving(journal.serving, state),
            unproven=frozenset(journal.unproven),
            endpoints=preflight.endpoints(state, journal.unproven),
        )
        self._verify(report, expected, self._observe(), known=frozenset())

    def _verify(
        self, report: ReportBuilder, expected: Expected, observed: Observation, *, known: frozenset[Key]
    ) -> None:
        """Wait for a verdict, no longer than it takes. Raises WorseError where it got worse.

        `known`: servers that the running process had before; of one that was moved, the last check is an old one.
        """
        if not expected.serving:
            report.observed = observed
            return
        state, clock, unproven = expected.state, self.environment.clock, expected.unproven
        # Until then a check that began before the move may be the last one that has ended.
        stale_seconds = {pool.name: (pool.health.interval + pool.health.timeout) / 1000 for pool in state.backends}
        begin = clock.monotonic()
        probed: dict[Key, bool] | None = None
        while True:
            passed = clock.monotonic() - begin
            stale = frozenset(key for key in unproven & known if passed < stale_seconds.get(key[0], 0.0))
            judged = verify.judge(
                expected.serving, observed, state=state, unproven=unproven, probed_open=probed or {}, stale=stale
            )
            if judged.judgement is Judgement.REGRESSED:
                raise WorseError("; ".join(judged.reasons))
            if judged.judgement is Judgement.OK:
                report.observed = observed
                return
            if passed >= self.verify_seconds:
                report.observed = observed
                report.findings += [verify.undecided(reason) for reason in judged.reasons]
                return
            if probed is None:
                probed = self._tcp_probe(expected)
            else:
                clock.sleep(POLL_SECONDS)  # HAProxy sends no word when a check ends
            observed = self._observe()

    def _observe(self) -> Observation:
        try:
            return self.environment.proxy.observe()
        except NoAnswerError as error:
            raise SwitchError(f"after the switch, {error}") from error

    def _tcp_probe(self, expected: Expected) -> dict[Key, bool]:
        """Once more after the step, those servers for which an open port is all that a check asks."""
        plain = {pool.name for pool in expected.state.backends if pool.health.type in (HealthType.TCP, HealthType.NONE)}
        asked = {key: ends for key, ends in expected.endpoints.items() if key in expected.unproven and key[0] in plain}
        unprobed = preflight.unprobed(asked, expected.handshakes)
        answered = self.environment.prober.reachable(unprobed, timeout=TCP_PROBE_SECONDS) - expected.down
        return {key: key in answered for key in unprobed}


def _journal(assessment: Assessment, number: int, *, servers: frozenset[Key], runtime: bool) -> Journal:
    return Journal(
        before=assessment.live.number if assessment.live else None,
        after=number,
        runtime=runtime,
        servers=tuple(sorted(servers)),
        serving=tuple((serving.frontend, serving.backends) for serving in assessment.serving),
        unproven=tuple(sorted(assessment.checks.unproven)),
    )
