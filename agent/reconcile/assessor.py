"""What is, what is wanted, and what stands between: reads and asks everything, changes nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from attrs import evolve, frozen

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key
from agent.desired.schema import DesiredState
from agent.desired.state import Limits, Parsed, parse
from agent.errors import Finding, InvalidError, NoAnswerError, Refusal, RefusedError, UsageError
from agent.haproxy.config import Config, Process, Template, digest_of_template, render
from agent.haproxy.observed import Observation
from agent.haproxy.plan import LiveGeneration, Plan, Reload, Target, Unchanged, diff, plan
from agent.haproxy.quarantine import Quarantined
from agent.proxy_protocol import policy
from agent.proxy_protocol.greetings import Question
from agent.proxy_protocol.record import Asked, Handshake
from agent.reconcile import drains, names, preflight
from agent.reconcile.applier import RETRY, TCP_PROBE_SECONDS, Assessment
from agent.reconcile.generation import Generation, Journal
from agent.reconcile.names import Resolution, Resolved
from agent.reconcile.ports import Environment
from agent.reconcile.preflight import Checks, ServingBackend
from agent.settings import ProbeMode

RESOLVE_SECONDS = 2.0  # that long a change may have to wait for a name server that does not answer


@frozen(kw_only=True)
class Preview:
    """What a reconcile would do now, with nothing done."""

    parsed: Parsed
    """the document"""
    plan: Plan
    """the step"""
    config: bytes
    """the haproxy.cfg that would be written"""
    diff: str
    """its difference to the live one"""
    sessions: int
    """open now, and left to the old process until they end or hard-stop-after ends them"""
    quarantined: tuple[Quarantined, ...] = ()
    """addresses that would be left out"""
    outages: tuple[str, ...] = ()
    """why it would be refused without `--force`"""
    objections: tuple[str, ...] = ()
    """why it would be refused with `--force` too"""
    refused: tuple[Refusal, ...] = ()
    """the parts of the document behind both, for programs"""
    silent: tuple[Key, ...] = ()
    """new servers that do not answer"""
    running: bool = True
    """whether an HAProxy runs already"""
    held: str = ""
    """why this document is held; empty: it is not"""
    handshakes: tuple[Handshake, ...] = ()
    """what new servers were found to be"""
    names: tuple[Finding, ...] = ()
    """what is to know of servers that have a host name"""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What people should know before it is done."""
        overrides = () if isinstance(self.plan, Reload) else self.plan.operator_overrides
        held = (Finding("", f"this document is held: {self.held}", RETRY),) if self.held else ()
        warnings = policy.findings(self.parsed.state, {probed.asked: probed for probed in self.handshakes})
        unreached = preflight.silent(self.silent)
        return (*held, *preflight.findings(self.quarantined), *unreached, *warnings, *self.names, *overrides)


@frozen(kw_only=True)
class Assessor:
    """Reads documents, files, HAProxy and the servers. Changes nothing."""

    file: Path
    """the desired file, for messages"""
    max_bytes: int
    """size of the largest document"""
    limits: Limits
    """what this host allows"""
    process: Process
    """the global section of haproxy.cfg"""
    template: Callable[[], Template]
    """reads the template"""
    environment: Environment
    """what it needs of this host"""
    probe: ProbeMode = ProbeMode.MISMATCH
    """what is done with a server that does not speak PROXY as it should"""
    believe_seconds: float = 0.0
    """how long the answer of a probe is believed while the same document is looked at again"""

    # --- documents

    def read(self, data: bytes) -> Parsed:
        """A document that is wanted. Raises InvalidError."""
        return _parsed_or_raise(data, str(self.file), self.max_bytes, self.limits)

    def reread(self, data: bytes) -> Parsed:
        """A document that was accepted once, whatever the limit is today. Raises InvalidError."""
        return _parsed_or_raise(data, str(self.file), max(self.max_bytes, len(data)), self.limits)

    def document(self, number: int) -> Parsed | None:
        """The document of a generation, None where this version of the agent cannot read it."""
        data = self.environment.store.desired_of(number)
        with contextlib.suppress(InvalidError):  # written by an agent with other rules
            return self.reread(data)
        return None

    # --- what is

    def live_state(self) -> tuple[Generation, DesiredState | None] | None:
        """The live generation, and its whole state where this version of the agent can read it."""
        generation = self.environment.store.live()
        if generation is None:
            return None
        parsed = self.document(generation.number)
        return generation, _as_recorded(parsed.state, generation) if parsed else None

    def live(self) -> LiveGeneration | None:
        """The live generation, as a plan needs it."""
        generation = self.environment.store.live()
        if generation is None:
            return None
        parsed, config = self.document(generation.number), self.environment.store.config_of(generation.number)
        written = names.without_unresolved(_as_recorded(parsed.state, generation)) if parsed else None
        state = preflight.without(written, generation.quarantined) if written else None
        return LiveGeneration(
            number=generation.number,
            loaded=generation.loaded,
            digest=generation.digest,
            config=config,
            state=state,
            is_current=state is not None and self._is_current(generation, state, config),
            quarantined=generation.quarantined,
            unserved=generation.unserved,
            resolved=generation.resolved,
        )

    def _is_current(self, generation: Generation, state: DesiredState, config: bytes) -> bool:
        """Whether template and settings are those of `generation`; after an upgrade: whether they write the same."""
        with contextlib.suppress(InvalidError, RefusedError, UsageError):  # reported where the target is rendered
            template = self.template()
            if digest_of_template(template, self.process) == generation.template:
                return True
            rendered = _rendered(state, self.process, template)
            return rendered.stamped(digest=generation.digest, generation=generation.number) == config
        return False

    def observed(self, live: LiveGeneration | None) -> Observation | None:
        """The running process, None where none answers. Raises NoAnswerError for one that answers half.

        In brief where it has no other servers than the live document: only of a server that was removed and may come
        back are the statistics needed, which tell whether it is a backup.
        """
        proxy = self.environment.proxy
        if live is None or live.state is None:
            return None if proxy.running() is None else proxy.observe()
        try:
            brief = proxy.observe_brief()
        except NoAnswerError:
            if proxy.running() is None:
                return None
            raise
        known = {(backend.name, server.name) for backend in live.state.backends for server in backend.servers}
        return brief if all(server.key in known for server in brief.servers) else proxy.observe()

    # --- preflight

    def assess(
        self,
        parsed: Parsed,
        data: bytes,
        live: LiveGeneration | None,
        observed: Observation | None,
        journal: Journal | None = None,
        *,
        resolution: Resolution | None = None,
        worse: Collection[Resolved] = (),
    ) -> Assessment:
        """What `data` comes to on this host, now. Raises InvalidError and RefusedError of the template.

        `journal`: of a step by commands that was interrupted; what it had at stake still is. `resolution`: what its
        names are, None where they have to be looked up. `worse`: answers to that which were tried and rolled back.
        """
        if resolution is None:
            resolution = self.resolution(parsed.state, live, observed, worse)
        written = names.without_unresolved(names.resolved(parsed.state, resolution.addresses))
        before, store, prober = live.state if live else None, self.environment.store, self.environment.prober
        dirty = frozenset(journal.servers) if journal else frozenset()
        drained = drains.active(store.drains(), parsed.state)
        wanted = drains.drained(written, frozenset(drain.key for drain in drained))
        checks = preflight.checks(
            wanted,
            live=before,
            observed=observed,
            held=_held(live, observed),
            dirty=dirty,
            unreachable=store.unreachable() if observed is None else frozenset(),
        )
        unbound = prober.unbound(checks.binds) if checks.binds else {}
        quarantined = preflight.quarantine(wanted, unbound)
        state, template = preflight.without(wanted, quarantined), self.template()
        config = _rendered(state, self.process, template)  # what cannot be rendered is not worth a probe
        handshakes = self._handshakes(checks.handshakes, parsed.digest)
        target = Target(digest=parsed.digest, state=state, config=config, quarantined=quarantined)
        serving = preflight.serving_backends(before, observed, state)
        # What is live is what a step is rolled back to: it is not judged by what that step had at stake.
        recorded = preflight.recorded_serving(journal.serving, state) if journal and not target.is_live(live) else ()
        return Assessment(
            live=live,
            target=target,
            data=data,
            template=digest_of_template(template, self.process),
            observed=observed,
            checks=checks,
            reachable=self._reachable(checks, handshakes),
            serving=(*serving, *(backend for backend in recorded if backend not in serving)),
            handshakes=handshakes,
            objections=self._objections(before, wanted, handshakes),
            dirty=dirty,
            drains=drained,
            written=written,
            resolution=resolution,
        )

    # --- names of servers

    def resolution(
        self,
        state: DesiredState,
        live: LiveGeneration | None,
        observed: Observation | None,
        worse: Collection[Resolved] = (),
    ) -> Resolution:
        """What the names of a document are. Where nothing serves and all are known, the resolver is not waited for."""
        wanted = names.of(state)
        if not wanted:
            return Resolution()
        known = {name: address for name, address in (live.resolved if live else ()) if name in wanted}
        if wanted - known.keys():
            older: dict[str, str] = {}
            for generation in self.environment.store.generations():  # the newest comes last, and counts
                older |= {name: address for name, address in generation.resolved if name in wanted}
            known = {**older, **known}
        at_once = observed is None and wanted <= known.keys()
        answers = self.environment.names.answers(wanted, seconds=0.0 if at_once else RESOLVE_SECONDS)
        is_own = names.own(state, self.environment.names.is_here)
        chosen = names.choose(wanted, answers, known, worse=worse, is_own=is_own)
        return evolve(chosen, silent=frozenset()) if at_once else chosen

    def _reachable(self, checks: Checks, handshakes: Collection[Handshake]) -> frozenset[Key]:
        """The servers that answer a TCP or a PROXY probe."""
        unprobed = preflight.unprobed(checks.servers, handshakes)
        answered = self.environment.prober.reachable(unprobed, timeout=TCP_PROBE_SECONDS) if unprobed else frozenset()
        return answered - {probed.key for probed in handshakes if probed.result in policy.AWAY}

    # --- PROXY probes

    def probe_again(self, target: Target, observed: Observation, just: Iterable[Handshake]) -> tuple[Handshake, ...]:
        """What those servers are found to be that are up, and were away or not as they should be. `just`: asked now."""
        if self.probe is ProbeMode.OFF:
            return ()
        now, fresh = self.environment.clock.now(), {probed.asked for probed in just}
        known = {key: probed for key, probed in self.remembered().items() if key not in fresh}
        patience = self.believe_seconds
        up = {server.key for server in observed.servers if server.up}
        questions = policy.servers_to_probe_again(target.state, known, up, now=now, patience=patience)
        return self._ask(questions, target.digest)

    def probe_warnings(self, state: DesiredState) -> tuple[Finding, ...]:
        """What people should know of the servers of a state."""
        return () if self.probe is ProbeMode.OFF else policy.findings(state, self.remembered())

    def remembered(self) -> Mapping[Asked, Handshake]:
        """What servers were last found to be."""
        return {probed.asked: probed for probed in self.environment.store.handshakes()}

    def _handshakes(self, questions: Collection[Question], digest: str) -> tuple[Handshake, ...]:
        """What the servers are found to be, now or as it is believed still."""
        if self.probe is ProbeMode.OFF or not questions:
            return ()
        now, patience = self.environment.clock.now(), self.believe_seconds
        known = policy.believed(questions, self.remembered(), digest=digest, now=now, patience=patience)
        settled = {probed.key for probed in known}
        return (*known, *self._ask([question for question in questions if question.key not in settled], digest))

    def _ask(self, questions: Collection[Question], digest: str) -> tuple[Handshake, ...]:
        if not questions:
            return ()
        answers = self.environment.prober.handshakes(questions)
        return policy.noted(questions, answers, digest=digest, at=self.environment.clock.now())

    def _objections(
        self, live: DesiredState | None, target: DesiredState, handshakes: tuple[Handshake, ...]
    ) -> tuple[Refusal, ...]:
        if self.probe is ProbeMode.OFF:
            return ()
        required = policy.unproven(live, target, handshakes) if self.probe is ProbeMode.REQUIRE else ()
        return (*policy.mismatches(handshakes), *required)

    # --- a plan, and nothing done

    def preview(self, data: bytes, *, admit: Callable[[Parsed], None] = lambda _: None) -> Preview:
        """The plan for `data`, without a side effect. Raises InvalidError, RefusedError, and what `admit` raises."""
        parsed, store = self.read(data), self.environment.store
        admit(parsed)
        live = self.live()
        observed = self.observed(live)
        assessment = self.assess(parsed, data, live, observed)
        step, number, hold = plan_of(assessment), store.next_number(), store.hold()
        config = assessment.config(number)
        outages = {} if isinstance(step, Unchanged) else outages_of(assessment)
        return Preview(
            parsed=parsed,
            plan=step,
            config=config,
            diff="" if isinstance(step, Unchanged) else diff(live, config, number=number),
            sessions=sum(frontend.sessions for frontend in observed.frontends)
            if isinstance(step, Reload) and observed
            else 0,
            quarantined=assessment.target.quarantined,
            outages=outage_sentences(outages),
            objections=policy.in_words(assessment.objections),
            refused=(*assessment.objections, *preflight.refusals(outages)),
            handshakes=assessment.handshakes,
            silent=tuple(sorted(assessment.down)),
            running=observed is not None,
            names=tuple(names.findings(parsed.state, assessment.resolution)),
            held=hold.reason if hold is not None and hold.digest == parsed.digest else "",
        )


def _as_recorded(state: DesiredState, generation: Generation) -> DesiredState:
    """A document as it was live: with what its names were, and who was drained."""
    return drains.drained(names.resolved(state, dict(generation.resolved)), generation.drained)


def plan_of(assessment: Assessment) -> Plan:
    """The smallest step to the target."""
    observed = assessment.observed
    return plan(
        assessment.live,
        assessment.old,
        assessment.target,
        servers=observed.servers if observed else (),
        frontends=observed.frontends if observed else (),
        reachable=assessment.reachable,
        dirty=assessment.dirty,
    )


def outage_sentences(outages: Mapping[ServingBackend, str]) -> tuple[str, ...]:
    """Outages, for people."""
    return preflight.sentences(outages.items(), singular="serves now", plural="serve now")


def outages_of(assessment: Assessment) -> dict[ServingBackend, str]:
    """What the target would take from the frontends that serve now, and why."""
    a = assessment
    return preflight.outages(a.serving, a.target.state, a.observed, a.checks, a.reachable)


def _held(live: LiveGeneration | None, observed: Observation | None) -> Callable[[Endpoint], bool]:
    """Which addresses the running process holds: sockets handed over by it need no bind (facts.md, HAProxy 1)."""
    if live is None or live.state is None or observed is None:
        return lambda _: False
    if observed.process.generation not in (live.number, live.loaded):
        return lambda _: False  # unknown: the prober distinguishes our own sockets from foreign ones
    closed = {frontend.name for frontend in observed.frontends if not frontend.open}  # at the socket: it let go of them
    bound = (endpoint for frontend in live.state.frontends if frontend.name not in closed for endpoint in frontend.bind)
    return frozenset(bound).__contains__


def _parsed_or_raise(data: bytes, file: str, max_bytes: int, limits: Limits) -> Parsed:
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
