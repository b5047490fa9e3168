"""The step that could hurt: a switch by commands or by a new process, its proof, its verdict, its way back.

Journal first, files before processes: wherever this is cut short, the old generation or the new one is whole, and
`converge` finds out which by asking the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from attrs import frozen

from agent.errors import CommandError, Finding, NoAnswerError, Outcome, RefusedError, StoreError, SwitchError
from agent.model import preflight, serverstate, verdict
from agent.model.desired import DesiredState, digest_of
from agent.model.generation import Generation, Handshake, Hold, Journal
from agent.model.observed import Key, Observation, Running
from agent.model.pace import Pace
from agent.model.plan import Committed, Delete, Reload, Runtime, Wanted
from agent.model.preflight import Questions, Stake
from agent.model.schema import HealthType
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
    `handshakes`: what new servers were found to be. `objections`: why that speaks against it.
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

    @property
    def old(self) -> Running | None:
        """The process that runs before."""
        return self.seen.process if self.seen else None

    @property
    def before(self) -> DesiredState | None:
        """The state that it serves."""
        return self.committed.state if self.committed else None

    @property
    def down(self) -> frozenset[Key]:
        """Servers that were asked and did not answer: they start as down."""
        return frozenset(self.asked.servers.keys() - self.reached)


@frozen(kw_only=True)
class Switch:
    """Makes a change in the running HAProxy. `verify_seconds`: how long it has to show that it did not hurt."""

    ports: Ports
    pace: Pace
    verify_seconds: float

    def tell(self, told: Told, change: Change, step: Runtime) -> None:
        """By commands to the running process. Raises CommandError (part of it may be done), SwitchError (undo it)."""
        store, proxy, committed = self.ports.store, self.ports.proxy, change.committed
        assert committed is not None
        number = store.next_number() if step.record else committed.number
        if step.record:
            config = change.wanted.config.stamped(digest=change.wanted.digest, generation=number)
            with told.stage("check"):
                proxy.check(store.stage(number, desired=change.data, config=config))
            with told.stage("swap"):
                store.begin(Journal(before=committed.number, after=number, runtime=True))
                store.swap(config)
        told.touched = True
        with told.stage("switch"), proxy.conversation() as tell:
            for command in step.commands:
                tell(command)
        with told.stage("verify"):
            moved = frozenset(one.key for one in change.seen.servers) if change.seen else frozenset()
            self._verify(told, change, self._look(), known=moved)
        if step.record:
            with told.stage("commit"):
                self.commit(told, change, number, loaded=committed.loaded, reasons=step.reasons)
        told.touched = False
        self.forget(told, step.leaving)

    def reload(self, told: Told, change: Change, step: Reload) -> None:
        """By a new process. Raises RefusedError (nothing was touched), SwitchError (undo it)."""
        store, proxy, wanted = self.ports.store, self.ports.proxy, change.wanted
        number = store.next_number()
        config = wanted.config.stamped(digest=wanted.digest, generation=number)
        with told.stage("check"):
            self._wait_for_limits(change)
            staged = store.stage(number, desired=change.data, config=config)
            with proxy.trying_out(staged, number):
                self.hand_over(change.before, wanted.state, change.old, down=change.down, reached=change.reached)
        with told.stage("swap"):
            store.begin(Journal(before=change.committed.number if change.committed else None, after=number))
            store.swap(config)
        told.tried = number
        with told.stage("switch"):
            proxy.switch(store.config, change.old)
            self.pace.spend(self.ports.clock.monotonic())
        with told.stage("verify"):
            after = proxy.prove(number, frozenset(one.name for one in wanted.state.frontends), change.old)
            self._verify(told, change, after, known=frozenset())
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
            self.commit(told, change, number, loaded=committed.loaded, reasons=why, outcome=Outcome.UNCHANGED)
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
        wanted = change.wanted
        config = wanted.config.stamped(digest=wanted.digest, generation=number)
        self.ports.store.commit(
            Generation(
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
            ),
            change.handshakes,
        )
        self.ports.store.end()

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
        """The previous files again, and the document held. Returns what to report; the process comes after."""
        store, committed = self.ports.store, change.committed
        store.swap(committed.config if committed else None)
        store.unstage()
        store.end()
        if committed is None or change.old is None:
            # Nothing served before, so nothing got worse; what was live, if anything was, is started after this.
            return RefusedError(str(error), remedy="it is tried again at every resync")
        store.set_hold(Hold(digest=change.wanted.digest, reason=str(error), since=self.ports.clock.now()))
        return SwitchError(str(error), remedy=f"the previous state is live; this document is held; {RETRY}")

    def start(
        self,
        committed: Committed,
        running: Running | None,
        *,
        was: DesiredState | None,
        down: Collection[Key] = frozenset(),
    ) -> None:
        """The committed bytes, by a new process. `was`: what `running` serves. Raises SwitchError."""
        store = self.ports.store
        if store.swapped() != committed.config:
            store.swap(committed.config)
        with contextlib.suppress(StoreError):  # a full run folder costs what was known of servers, not the service
            self.hand_over(was, committed.state, running, down=down)
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
    ) -> None:
        """What the old process knows of its servers, and who did not answer, for the next one."""
        dump = ""
        if old is not None:
            with contextlib.suppress(NoAnswerError):  # without it, new checks find out what is up
                dump = self.ports.proxy.server_states()
        known = (
            serverstate.EMPTY if after is None else serverstate.carried(dump, before, after, down=down, reached=reached)
        )
        self.ports.store.write_server_state(known)

    def _verify(self, told: Told, change: Change, after: Observation, *, known: frozenset[Key]) -> None:
        """Wait for a verdict, no longer than it takes. Raises SwitchError where it got worse.

        `known`: servers that the running process had before; of one that was moved, the last check is an old one.
        """
        if not change.at_stake:
            return
        state, clock = change.wanted.state, self.ports.clock
        unproven = change.asked.unproven
        # Until then a check that began before the move may be the last one that has ended.
        old_news = {pool.name: (pool.health.interval + pool.health.timeout) / 1000 for pool in state.backends}
        begin = clock.monotonic()
        knocked: dict[Key, bool] | None = None
        while True:
            passed = clock.monotonic() - begin
            stale = frozenset(key for key in unproven & known if passed < old_news[key[0]])
            judged = verdict.judge(
                change.at_stake, after, state=state, unproven=unproven, knocked=knocked or {}, stale=stale
            )
            if judged.word is Word.WORSE:
                raise SwitchError("; ".join(judged.reasons))
            if judged.word is Word.FINE:
                return
            if passed >= self.verify_seconds:
                told.findings += [verdict.undecided(reason) for reason in judged.reasons]
                return
            if knocked is None:
                knocked = self._knock(change, unproven)
            else:
                clock.sleep(POLL_SECONDS)  # HAProxy sends no word when a check ends
            after = self._look()

    def _look(self) -> Observation:
        try:
            return self.ports.proxy.observe()
        except NoAnswerError as error:
            raise SwitchError(f"after the switch, {error}") from error

    def _knock(self, change: Change, unproven: frozenset[Key]) -> dict[Key, bool]:
        """Once more after the switch, at those for whom an open door is all that a check asks."""
        plain = {
            pool.name for pool in change.wanted.state.backends if pool.health.type in (HealthType.TCP, HealthType.NONE)
        }
        asked = {key: ends for key, ends in change.asked.servers.items() if key in unproven and key[0] in plain}
        doors = preflight.unmet(asked, change.handshakes)
        answered = self.ports.prober.reached(doors, timeout=KNOCK_SECONDS) - change.down
        return {key: key in answered for key in doors}
