"""The step that could hurt: a switch by commands or by a new process, its proof, its verdict, its way back.

Journal first, files before processes: wherever this is cut short, the old generation or the new one is whole, and
`converge` finds out which by asking the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

from attrs import frozen

from agent.errors import (
    CommandError,
    Finding,
    NoAnswerError,
    Outcome,
    RefusedError,
    StoreError,
    SwitchError,
    WorseError,
)
from agent.model import preflight, serverstate, verdict
from agent.model.desired import DesiredState, digest_of
from agent.model.generation import Generation, Handshake, Hold, Journal
from agent.model.observed import Key, Observation, Running
from agent.model.pace import Pace
from agent.model.plan import Committed, Delete, Reload, Runtime, ServerCommand, Wanted
from agent.model.preflight import Questions, Stake
from agent.model.schema import Endpoint, HealthType
from agent.model.verdict import Word
from agent.ports import Ports
from agent.telling import Told

RETRY = "change it, or apply it again with --retry (`agent apply --retry`, `agent sync --retry`)"
KNOCK_SECONDS = 1.0  # for all servers together, side by side; a server that takes longer is as good as dead
LIMITS_SECONDS = (
    11.0  # a process of HAProxy 2.6 or 2.8 is ready 5 s after its start, 10 s where its old one sent nothing
)
LIMITS_POLL_SECONDS = 0.05
POLL_SECONDS = 0.02  # between two looks at checks that have not ended yet


@frozen(kw_only=True)
class Change:
    """All that a switch has to know: from what, to what, and what was found out on the way.

    `data`: the document's bytes. `seen`: the running process before. `at_stake`: what must not get worse.
    `handshakes`: what new servers were found to be. `objections`: why that speaks against it. `dirty`: servers that an
    interrupted step has changed.
    """

    committed: Committed | None
    wanted: Wanted
    data: bytes
    seen: Observation | None
    asked: Questions
    reached: frozenset[Key]
    at_stake: tuple[Stake, ...] = ()
    handshakes: tuple[Handshake, ...] = ()
    objections: tuple[str, ...] = ()
    dirty: frozenset[Key] = frozenset()

    @property
    def old(self) -> Running | None:
        """The process that runs before."""
        return self.seen.process if self.seen else None

    @property
    def loaded(self) -> int:
        """The generation whose file the running process was started with: it may have been started anew since."""
        assert self.committed is not None
        generation = self.old.generation if self.old else None
        return self.committed.loaded if generation is None else generation

    @property
    def before(self) -> DesiredState | None:
        """The state that it serves."""
        return self.committed.state if self.committed else None

    @property
    def down(self) -> frozenset[Key]:
        """Servers that were asked and did not answer: they start as down."""
        return frozenset(self.asked.servers.keys() - self.reached)

    @property
    def verification(self) -> Verification:
        """What has to be seen when it is done."""
        return Verification(
            state=self.wanted.state,
            at_stake=self.at_stake,
            unproven=self.asked.unproven,
            endpoints=self.asked.servers,
            handshakes=self.handshakes,
            down=self.down,
        )


def changed_servers(step: Runtime) -> frozenset[Key]:
    """The servers that the commands of a step are about."""
    commands = [command for command in step.commands if isinstance(command, ServerCommand)]
    return frozenset((command.backend, command.server) for command in commands)


@frozen(kw_only=True)
class Verification:
    """What has to be seen after a switch to `state`.

    `at_stake`: what must not get worse. `unproven`: servers that are new or changed. `endpoints`: where those listen.
    `handshakes`: what they were found to be. `down`: those that did not answer before.
    """

    state: DesiredState
    at_stake: tuple[Stake, ...]
    unproven: frozenset[Key]
    endpoints: Mapping[Key, tuple[Endpoint, ...]]
    handshakes: tuple[Handshake, ...] = ()
    down: frozenset[Key] = frozenset()


@frozen(kw_only=True)
class Switch:
    """Makes a change in the running HAProxy. `verify_seconds`: how long it has to show that it did not hurt."""

    ports: Ports
    pace: Pace
    verify_seconds: float

    def tell(self, told: Told, change: Change, step: Runtime) -> None:
        """By commands to the running process, `haproxy -c` of the new file beside them.

        Raises CommandError (part of it may be done), SwitchError and RefusedError (undo it).
        """
        store, proxy, committed = self.ports.store, self.ports.proxy, change.committed
        assert committed is not None
        number = store.next_number() if step.record else committed.number
        with contextlib.ExitStack() as beside:
            if step.record:
                config = change.wanted.config.stamped(digest=change.wanted.digest, generation=number)
                checked = beside.enter_context(proxy.checking(store.stage(number, desired=change.data, config=config)))
            store.begin(self._journal(change, number, servers=change.dirty | changed_servers(step)))
            told.touched = True
            with told.stage("switch"), proxy.conversation() as tell:
                for command in step.commands:
                    tell(command)
            with told.stage("verify"):
                moved = frozenset(one.key for one in change.seen.servers) if change.seen else frozenset()
                self._verify(told, change.verification, self._look(), known=moved)
            if step.record:
                with told.stage("check"):
                    checked()
        with told.stage("commit"):
            if step.record:
                store.swap(config)
                self.commit(told, change, number, loaded=change.loaded, reasons=step.reasons)
            else:
                store.end()
        told.touched = False
        self.forget(told, step.leaving)

    def reload(self, told: Told, change: Change, step: Reload) -> None:
        """By a new process. Raises RefusedError (nothing was touched), SwitchError (undo it)."""
        if not step.record:
            assert change.committed is not None
            with told.stage("switch"):
                self.start(change.committed, change.old, was=change.before, down=change.down, dirty=change.dirty)
            return
        store, proxy, wanted = self.ports.store, self.ports.proxy, change.wanted
        number = store.next_number()
        config = wanted.config.stamped(digest=wanted.digest, generation=number)
        with told.stage("check"):
            self._wait_for_limits(change)
            staged = store.stage(number, desired=change.data, config=config)
            with proxy.trying_out(staged, number):
                self.hand_over(
                    change.before,
                    wanted.state,
                    change.old,
                    down=change.down,
                    reached=change.reached,
                    dirty=change.dirty,
                )
        with told.stage("swap"):
            self._describe(told, change, number, loaded=number, reasons=step.reasons)
            store.begin(self._journal(change, number, servers=change.dirty, runtime=False))
            store.swap(config)
        told.tried = number
        with told.stage("switch"):
            proxy.switch(store.config, change.old)
            self.pace.spend(self.ports.clock.monotonic())
        with told.stage("verify"):
            after = proxy.prove(number, frozenset(one.name for one in wanted.state.frontends), change.old)
            self._verify(told, change.verification, after, known=frozenset())
        with told.stage("commit"):
            self.commit(told, change, number, loaded=number, reasons=step.reasons)
        told.tried, told.touched = None, False

    def _wait_for_limits(self, change: Change) -> None:
        """Where clients are counted before and after: until the old process can pass its counts on to the new one."""
        counts_before = change.before is not None and any(one.rate_limit for one in change.before.frontends)
        if change.old is None or not counts_before or not any(one.rate_limit for one in change.wanted.state.frontends):
            return
        deadline = self.ports.clock.monotonic() + LIMITS_SECONDS
        with contextlib.suppress(NoAnswerError):  # it has died, and its counts with it
            while not self.ports.proxy.limits_settled() and self.ports.clock.monotonic() < deadline:
                self.ports.clock.sleep(LIMITS_POLL_SECONDS)  # HAProxy sends no word when it is ready

    def record(self, told: Told, change: Change) -> None:
        """Another document, the same configuration: a generation of its own, and HAProxy is left alone."""
        committed, store = change.committed, self.ports.store
        assert committed is not None
        with told.stage("commit"):
            number = store.next_number()
            config = change.wanted.config.stamped(digest=change.wanted.digest, generation=number)
            store.stage(number, desired=change.data, config=config)
            why = ("the document changed, the configuration did not",)
            self.commit(told, change, number, loaded=change.loaded, reasons=why, outcome=Outcome.UNCHANGED)
            store.swap(config)

    def commit(
        self,
        told: Told,
        change: Change,
        number: int,
        *,
        loaded: int,
        reasons: tuple[str, ...],
        outcome: Outcome = Outcome.COMMITTED,
    ) -> None:
        """The staged generation is what is live from here on."""
        generation = self._generation(told, change, number, loaded=loaded, reasons=reasons, outcome=outcome)
        self.ports.store.commit(generation, change.handshakes)
        self.ports.store.end()

    def _generation(
        self, told: Told, change: Change, number: int, *, loaded: int, reasons: tuple[str, ...], outcome: Outcome
    ) -> Generation:
        wanted = change.wanted
        config = wanted.config.stamped(digest=wanted.digest, generation=number)
        return Generation(
            number=number,
            digest=wanted.digest,
            config_digest=digest_of(config),
            loaded=loaded,
            at=self.ports.clock.now(),
            outcome=(Outcome.DEGRADED if wanted.quarantined or told.unserved else outcome).value,
            name=wanted.state.name,
            serial=wanted.state.serial,
            reasons=reasons,
            seconds=round(told.seconds, 3),
            quarantined=wanted.quarantined,
            restores=told.restores,
            unserved=told.unserved,
        )

    def _describe(self, told: Told, change: Change, number: int, *, loaded: int, reasons: tuple[str, ...]) -> None:
        """Stage the generation whole: if this agent ends before the verdict, the next one finishes it by a rename."""
        generation = self._generation(told, change, number, loaded=loaded, reasons=reasons, outcome=Outcome.COMMITTED)
        self.ports.store.describe(generation, change.handshakes)

    def _journal(
        self, change: Change, number: int, *, servers: frozenset[Key] = frozenset(), runtime: bool = True
    ) -> Journal:
        committed = change.committed
        return Journal(
            before=committed.number if committed else None,
            after=number,
            runtime=runtime,
            servers=tuple(sorted(servers)),
            at_stake=tuple((stake.frontend, stake.backends) for stake in change.at_stake),
            unproven=tuple(sorted(change.asked.unproven)),
        )

    def judge_interrupted(self, told: Told, journal: Journal, state: DesiredState) -> None:
        """Judge a switch whose agent ended before the verdict. Raises SwitchError, WorseError."""
        expected = Verification(
            state=state,
            at_stake=preflight.known_stakes(journal.at_stake, state),
            unproven=frozenset(journal.unproven),
            endpoints=preflight.endpoints(state, journal.unproven),
        )
        self._verify(told, expected, self._look(), known=frozenset())

    def forget(self, told: Told, leaving: Collection[Delete]) -> None:
        """Delete servers whose last session has ended; what cannot be deleted yet is tried again at the next look."""
        for command in leaving:
            try:
                self.ports.proxy.forget(command)
            except NoAnswerError:  # it runs no more, and its leftovers with it
                return
            except CommandError as error:  # in maintenance it harms nobody
                told.findings.append(Finding(f"backends.{command.backend}", str(error)))

    def put_back(self, error: SwitchError, change: Change) -> SwitchError | RefusedError:
        """The previous files again; the document is held where it was seen to serve worse.

        Returns what to report; the process comes after.
        """
        store, committed = self.ports.store, change.committed
        store.swap(committed.config if committed else None)
        store.unstage()
        if committed is None:
            store.end()  # else when what is live runs: until then it says which servers this step has changed
        if committed is None or change.old is None:
            # Nothing served before, so nothing got worse; what was live, if anything was, is started after this.
            return RefusedError(str(error), remedy="it is tried again at every resync")
        if not isinstance(error, WorseError):  # HAProxy died, the run folder was wiped, ...: the world did it
            return SwitchError(str(error), remedy="the previous state is live; this document is tried again")
        self.hold(change.wanted.digest, error)
        return WorseError(str(error), remedy=f"the previous state is live; this document is held; {RETRY}")

    def hold(self, digest: str, error: WorseError) -> None:
        """Keep a document from being applied again until it changes, or somebody asks for it."""
        self.ports.store.set_hold(Hold(digest=digest, reason=str(error), since=self.ports.clock.now()))

    def start(
        self,
        committed: Committed,
        running: Running | None,
        *,
        was: DesiredState | None,
        down: Collection[Key] = frozenset(),
        dirty: Collection[Key] = frozenset(),
    ) -> None:
        """The committed bytes, by a new process. `was`: what `running` serves. Raises SwitchError."""
        store = self.ports.store
        if store.swapped() != committed.config:
            store.swap(committed.config)
        with contextlib.suppress(StoreError):  # a full run folder costs what was known of servers, not the service
            self.hand_over(was, committed.state, running, down=down, dirty=dirty)
        self.ports.proxy.switch(store.config, running)
        frontends = frozenset(one.name for one in committed.state.frontends) if committed.state else frozenset()
        self.ports.proxy.prove(committed.number, frontends, running)

    def hand_over(
        self,
        before: DesiredState | None,
        after: DesiredState | None,
        old: Running | None,
        *,
        down: Collection[Key],
        reached: Collection[Key] = frozenset(),
        dirty: Collection[Key] = frozenset(),
    ) -> None:
        """What the old process knows of its servers, and who did not answer, for the next one."""
        dump = ""
        if old is not None:
            with contextlib.suppress(NoAnswerError):  # without it, new checks find out what is up
                dump = self.ports.proxy.server_states()
        known = (
            serverstate.EMPTY
            if after is None
            else serverstate.carried(dump, before, after, down=down, reached=reached, dirty=dirty)
        )
        self.ports.store.write_server_state(known)

    def _verify(self, told: Told, expected: Verification, after: Observation, *, known: frozenset[Key]) -> None:
        """Wait for a verdict, no longer than it takes. Raises WorseError where it got worse.

        `known`: servers that the running process had before; of one that was moved, the last check is an old one.
        """
        if not expected.at_stake:
            return
        state, clock, unproven = expected.state, self.ports.clock, expected.unproven
        # Until then a check that began before the move may be the last one that has ended.
        old_news = {pool.name: (pool.health.interval + pool.health.timeout) / 1000 for pool in state.backends}
        begin = clock.monotonic()
        knocked: dict[Key, bool] | None = None
        while True:
            passed = clock.monotonic() - begin
            stale = frozenset(key for key in unproven & known if passed < old_news.get(key[0], 0.0))
            judged = verdict.judge(
                expected.at_stake, after, state=state, unproven=unproven, knocked=knocked or {}, stale=stale
            )
            if judged.word is Word.WORSE:
                raise WorseError("; ".join(judged.reasons))
            if judged.word is Word.FINE:
                return
            if passed >= self.verify_seconds:
                told.findings += [verdict.undecided(reason) for reason in judged.reasons]
                return
            if knocked is None:
                knocked = self._knock(expected)
            else:
                clock.sleep(POLL_SECONDS)  # HAProxy sends no word when a check ends
            after = self._look()

    def _look(self) -> Observation:
        try:
            return self.ports.proxy.observe()
        except NoAnswerError as error:
            raise SwitchError(f"after the switch, {error}") from error

    def _knock(self, expected: Verification) -> dict[Key, bool]:
        """Once more after the switch, at those for whom an open door is all that a check asks."""
        plain = {pool.name for pool in expected.state.backends if pool.health.type in (HealthType.TCP, HealthType.NONE)}
        asked = {key: ends for key, ends in expected.endpoints.items() if key in expected.unproven and key[0] in plain}
        unmet = preflight.unmet(asked, expected.handshakes)
        answered = self.ports.prober.reached(unmet, timeout=KNOCK_SECONDS) - expected.down
        return {key: key in answered for key in unmet}
