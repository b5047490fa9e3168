"""What is, what is wanted, and what stands between. Everything is asked here, and nothing is changed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from attrs import frozen

from agent.errors import Finding, InvalidError, RefusedError, UsageError
from agent.model import preflight, proof
from agent.model.desired import DesiredState, Limits, Parsed, parse
from agent.model.generation import Asked, Generation, Handshake, Journal, Quarantined
from agent.model.handshake import Question
from agent.model.observed import Key, Observation
from agent.model.plan import Committed, Plan, Reload, Unchanged, Wanted, diff, plan
from agent.model.preflight import Questions, Stake
from agent.model.render import Config, Process, Template, render
from agent.model.schema import Endpoint
from agent.ports import Ports
from agent.settings import ProbeMode
from agent.switch import KNOCK_SECONDS, RETRY, Change


@frozen(kw_only=True)
class Proposal:
    """What a converge would do now, and nothing done: the plan, haproxy.cfg and its difference, sessions at risk.

    `sessions`: open now, and left to the replaced process until they end or hard-stop-after ends them. `losses`: why
    it would be refused without force, `objections`: with it too. `silent`: new servers that do not answer. `running`:
    whether an HAProxy runs already. `held`: why this document is held, "" where it is not. `handshakes`: what new
    servers were found to be.
    """

    parsed: Parsed
    plan: Plan
    config: bytes
    diff: str
    sessions: int
    quarantined: tuple[Quarantined, ...] = ()
    losses: tuple[str, ...] = ()
    objections: tuple[str, ...] = ()
    silent: tuple[Key, ...] = ()
    running: bool = True
    held: str = ""
    handshakes: tuple[Handshake, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What people should know before it is done."""
        remarks = () if isinstance(self.plan, Reload) else self.plan.remarks
        held = (Finding("", f"this document is held: {self.held}", RETRY),) if self.held else ()
        doubts = proof.findings(self.parsed.state, {one.asked: one for one in self.handshakes})
        return (*held, *preflight.findings(self.quarantined), *preflight.silent(self.silent), *doubts, *remarks)


@frozen(kw_only=True)
class Survey:
    """Reads documents, files, HAProxy and the servers. `file` names the desired state in messages.

    `probe`: whether new servers are asked if they speak PROXY. `believe_seconds`: how long an answer is believed
    while the same document is looked at again.
    """

    file: Path
    max_bytes: int
    limits: Limits
    process: Process
    template: Callable[[], Template]
    ports: Ports
    probe: ProbeMode = ProbeMode.MISMATCH
    believe_seconds: float = 0.0

    def read(self, data: bytes) -> Parsed:
        """A document that somebody wants. Raises InvalidError."""
        return _verdict(data, str(self.file), self.max_bytes, self.limits)

    def reread(self, data: bytes) -> Parsed:
        """A document that was taken once, whatever the limit is today. Raises InvalidError."""
        return _verdict(data, str(self.file), max(self.max_bytes, len(data)), self.limits)

    def document(self, number: int) -> Parsed | None:
        """The document of a generation, None where this version of the agent cannot read it."""
        data = self.ports.store.desired_of(number)
        with contextlib.suppress(InvalidError):  # written by an agent with other rules
            return self.reread(data)
        return None

    def live(self) -> tuple[Generation, DesiredState | None] | None:
        """The live generation, and its whole state where this version of the agent can read it."""
        live = self.ports.store.live()
        if live is None:
            return None
        parsed = self.document(live.number)
        return live, parsed.state if parsed else None

    def committed(self) -> Committed | None:
        """The live generation, as a plan needs it."""
        live = self.ports.store.live()
        if live is None:
            return None
        parsed, today = self.document(live.number), None
        state = preflight.without(parsed.state, live.quarantined) if parsed else None
        with contextlib.suppress(InvalidError, RefusedError, UsageError):  # told where the wanted one is rendered
            today = _rendered(state, self.process, self.template()) if state else None
        return Committed(
            number=live.number,
            loaded=live.loaded,
            digest=live.digest,
            config=self.ports.store.config_of(live.number),
            state=state,
            today=today,
            quarantined=live.quarantined,
        )

    def seen(self) -> Observation | None:
        """The running process in detail, None where none answers. Raises NoAnswerError for one that answers half."""
        return None if self.ports.proxy.running() is None else self.ports.proxy.observe()

    def change(
        self,
        parsed: Parsed,
        data: bytes,
        committed: Committed | None,
        seen: Observation | None,
        journal: Journal | None = None,
    ) -> Change:
        """Preflight: what `data` comes to on this host, now. Raises InvalidError and RefusedError of the template.

        `journal`: of a step by commands that was interrupted; what it had at stake still is.
        """
        live, prober = committed.state if committed else None, self.ports.prober
        dirty = frozenset(journal.servers) if journal else frozenset()
        asked = preflight.questions(
            parsed.state,
            live=live,
            seen=seen,
            held=_held(committed, seen),
            dirty=dirty,
            unreached=self.ports.store.unreached() if seen is None else frozenset(),
        )
        unbound = prober.unbound(asked.binds) if asked.binds else {}
        quarantined = preflight.quarantine(parsed.state, unbound)
        state = preflight.without(parsed.state, quarantined)
        config = _rendered(state, self.process, self.template())  # what cannot be rendered is nobody's question
        handshakes = self._handshakes(asked.handshakes, parsed.digest)
        reached = self._reached(asked, handshakes)
        wanted = Wanted(digest=parsed.digest, state=state, config=config, quarantined=quarantined)
        at_stake = preflight.stakes(live, seen, state)
        # What is live is what a step is put back to: it is not judged by what that step had at stake.
        before = preflight.known_stakes(journal.at_stake, state) if journal and not wanted.is_live(committed) else ()
        return Change(
            committed=committed,
            wanted=wanted,
            data=data,
            seen=seen,
            asked=asked,
            reached=reached,
            at_stake=(*at_stake, *(stake for stake in before if stake not in at_stake)),
            handshakes=handshakes,
            objections=self._objections(live, parsed.state, handshakes),
            dirty=dirty,
        )

    def unsettled(self, wanted: Wanted, seen: Observation, just: Iterable[Handshake]) -> tuple[Handshake, ...]:
        """What those are found to be now that are up, and were away or not as they should be. `just`: asked now."""
        if self.probe is ProbeMode.OFF:
            return ()
        now, fresh = self.ports.clock.now(), {one.asked for one in just}
        known = {key: one for key, one in self.remembered().items() if key not in fresh}
        asked = proof.unsettled(wanted.state, known, seen, now=now, patience=self.believe_seconds)
        return self._asked(asked, wanted.digest)

    def doubts(self, state: DesiredState) -> tuple[Finding, ...]:
        """What people should know of the servers of a state."""
        return () if self.probe is ProbeMode.OFF else proof.findings(state, self.remembered())

    def remembered(self) -> Mapping[Asked, Handshake]:
        """What servers were last found to be."""
        return {one.asked: one for one in self.ports.store.handshakes()}

    def _handshakes(self, asked: Collection[Question], digest: str) -> tuple[Handshake, ...]:
        """What the servers are found to be, now or as it is believed still."""
        if self.probe is ProbeMode.OFF or not asked:
            return ()
        now, patience = self.ports.clock.now(), self.believe_seconds
        known = proof.believed(asked, self.remembered(), digest=digest, now=now, patience=patience)
        settled = {one.key for one in known}
        return (*known, *self._asked([one for one in asked if one.key not in settled], digest))

    def _asked(self, asked: Collection[Question], digest: str) -> tuple[Handshake, ...]:
        if not asked:
            return ()
        return proof.noted(asked, self.ports.prober.handshakes(asked), digest=digest, at=self.ports.clock.now())

    def _reached(self, asked: Questions, handshakes: Collection[Handshake]) -> frozenset[Key]:
        """Who answers, a knock or a handshake."""
        unmet = preflight.unmet(asked.servers, handshakes)
        answered = self.ports.prober.reached(unmet, timeout=KNOCK_SECONDS) if unmet else frozenset()
        return answered - {one.key for one in handshakes if one.result in proof.AWAY}

    def _objections(
        self, live: DesiredState | None, wanted: DesiredState, found: tuple[Handshake, ...]
    ) -> tuple[str, ...]:
        if self.probe is ProbeMode.OFF:
            return ()
        required = proof.unproven(live, wanted, found) if self.probe is ProbeMode.REQUIRE else ()
        return (*proof.mismatches(found), *required)

    def propose(self, data: bytes, *, admit: Callable[[Parsed], None] = lambda _: None) -> Proposal:
        """The plan for `data`, without a side effect. Raises InvalidError, RefusedError, and what `admit` raises."""
        parsed = self.read(data)
        admit(parsed)
        committed, seen = self.committed(), self.seen()
        change = self.change(parsed, data, committed, seen)
        step, number, hold = plan_of(change), self.ports.store.next_number(), self.ports.store.hold()
        config = change.wanted.config.stamped(digest=parsed.digest, generation=number)
        return Proposal(
            parsed=parsed,
            plan=step,
            config=config,
            diff="" if isinstance(step, Unchanged) else diff(committed, config, number=number),
            sessions=sum(one.sessions for one in seen.frontends) if isinstance(step, Reload) and seen else 0,
            quarantined=change.wanted.quarantined,
            losses=() if isinstance(step, Unchanged) else loss_sentences(losses_of(change)),
            objections=change.objections,
            handshakes=change.handshakes,
            silent=tuple(sorted(change.down)),
            running=seen is not None,
            held=hold.reason if hold is not None and hold.digest == parsed.digest else "",
        )


def plan_of(change: Change) -> Plan:
    """The smallest step that makes a change."""
    servers = change.seen.servers if change.seen else ()
    return plan(
        change.committed,
        change.old,
        change.wanted,
        servers=servers,
        frontends=change.seen.frontends if change.seen else (),
        reached=change.reached,
        dirty=change.dirty,
    )


def loss_sentences(losses: Mapping[Stake, str]) -> tuple[str, ...]:
    """Losses as people are told of them."""
    return preflight.told(losses.items(), one="serves now", many="serve now")


def losses_of(change: Change) -> dict[Stake, str]:
    """What a change would take from those who serve now, and why."""
    return preflight.losses(change.at_stake, change.wanted.state, change.seen, change.asked, change.reached)


def _held(committed: Committed | None, seen: Observation | None) -> Callable[[Endpoint], bool]:
    """Which addresses the running process holds: sockets handed over by it need no bind (FACTS, HAProxy 1)."""
    if seen is None:
        return lambda _: False
    known = committed is not None and seen.process.generation in (committed.number, committed.loaded)
    if committed is None or committed.state is None or not known:
        return lambda _: False  # nobody knows: the prober tells our own sockets from foreign ones
    closed = {frontend.name for frontend in seen.frontends if not frontend.open}  # at the socket: it let go of them
    bound = frozenset(endpoint for one in committed.state.frontends if one.name not in closed for endpoint in one.binds)
    return bound.__contains__


def _verdict(data: bytes, file: str, max_bytes: int, limits: Limits) -> Parsed:
    """Raises InvalidError."""
    parsed = _parsed(data, file, max_bytes, limits)
    if isinstance(parsed, InvalidError):
        raise InvalidError(parsed.file, parsed.violations, more=parsed.more)
    return parsed


@functools.lru_cache(maxsize=4)
def _parsed(data: bytes, file: str, max_bytes: int, limits: Limits) -> Parsed | InvalidError:
    """Kept, because a resync looks at the same bytes again and again, valid or not."""
    try:
        return parse(data, file=file, max_bytes=max_bytes, limits=limits)
    except InvalidError as error:
        return error.with_traceback(None)


@functools.lru_cache(maxsize=4)
def _rendered(state: DesiredState, process: Process, template: Template) -> Config:
    return render(state, process, template)
