"""One reconcile so far: gathered on the way, a Report at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from attrs import Factory, define, evolve, field

from agent.desired.schema import DesiredState
from agent.desired.state import Parsed
from agent.errors import AgentError, Finding, InvalidError, Outcome, RefusedError, StoreError
from agent.haproxy.observed import Observation
from agent.haproxy.plan import Plan, Reload, Runtime
from agent.haproxy.quarantine import Quarantined
from agent.proxy_protocol.record import Handshake
from agent.reconcile import preflight
from agent.reconcile.actor import AGENT
from agent.reconcile.generation import Journal
from agent.reconcile.ports import Environment
from agent.reconcile.report import Report


@define(kw_only=True)
class ReportBuilder:
    """Gathers what a Report says, and what the next step of the same reconcile has to know."""

    environment: Environment
    """what it needs of this host"""
    file: str
    """the document, for messages"""
    on_stage: Callable[[str], None]
    """called with each stage as it begins"""
    digest: str | None
    """of the document; None: there is none to read"""
    author: str = ""
    """who handed the document over, or asks for this reconcile"""
    by_command: bool = False
    """it was asked for just now, by a person or a program"""
    unasked: bool = False
    """the document is live already, and nobody has asked for this reconcile"""
    parsed: Parsed | None = None
    """the document, once it is valid"""
    written: DesiredState | None = None
    """the document with addresses for the names of its servers, once they are looked up"""
    silent: frozenset[str] = frozenset()
    """host names of servers that do not resolve"""
    name_findings: tuple[Finding, ...] = ()
    """what is to know of host names"""
    step: Plan | None = None
    """the plan, once there is one"""
    started_generation: int | None = None
    """the generation that a process was started for, until it is committed"""
    commands_sent: bool = False
    """the running process was changed in a way that is not committed"""
    cold_start: bool = False
    """no HAProxy ran before"""
    switched: bool = False
    """a step was taken and failed"""
    interrupted: Journal | None = None
    """a step that an earlier agent left undone, until it is settled"""
    restores: int | None = None
    """the earlier generation that is put back"""
    unserved: tuple[str, ...] = ()
    """frontends that are new and have no server that answers"""
    observed: Observation | None = None
    """HAProxy after the step"""
    quarantined: tuple[Quarantined, ...] = ()
    """addresses that are left out"""
    handshakes: tuple[Handshake, ...] = ()
    """what new servers were found to be"""
    findings: list[Finding] = field(default=Factory(list))
    """warnings"""
    drift: list[str] = field(default=Factory(list))
    """kinds of what was not as this agent had left it, and was corrected"""
    _timings: list[tuple[str, float]] = field(default=Factory(list))

    @property
    def seconds(self) -> float:
        """How long all stages have taken so far."""
        return sum(seconds for _, seconds in self._timings)

    @property
    def actor(self) -> str:
        """Who makes the change."""
        return AGENT if self.unasked else self.author

    def for_live(self, digest: str) -> ReportBuilder:
        """Another one, for the live document when the desired one cannot be reached. Only its drift is reported."""
        return ReportBuilder(
            environment=self.environment,
            file=self.file,
            on_stage=lambda _: None,
            digest=digest,
            author=AGENT,
            drift=self.drift,
            interrupted=self.interrupted,
        )

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the reconcile, with its time."""
        self.on_stage(name)
        start = self.environment.clock.monotonic()
        try:
            yield
        finally:
            self._timings.append((name, round(self.environment.clock.monotonic() - start, 6)))

    def done(self, outcome: Outcome) -> Report:
        """What became of it. With an address in quarantine, what is live is degraded."""
        if (self.quarantined or self.unserved) and outcome in (Outcome.COMMITTED, Outcome.UNCHANGED):
            outcome = Outcome.DEGRADED
        live = None
        with contextlib.suppress(StoreError):  # reported already: this is the report of it
            live = self.environment.store.live()
        parsed, step = self.parsed, self.step
        return Report(
            outcome=outcome,
            at=self.environment.clock.now(),
            file=self.file,
            digest=self.digest,
            name=parsed.state.name if parsed else "",
            serial=parsed.state.serial if parsed else None,
            generation=live.number if live else None,
            plan=None if step is None else type(step).__name__.lower(),
            reasons=step.reasons if isinstance(step, (Reload, Runtime)) else (),
            started=self.cold_start,
            drift=tuple(self.drift),
            handshakes=self.handshakes,
            findings=(
                *(parsed.findings if parsed else ()),
                *preflight.findings(self.quarantined),
                *preflight.unserved_findings(self.unserved),
                *self.name_findings,
                *self.findings,
            ),
            timings=tuple(self._timings),
            author=self.author,
            actor=self.actor,
            silent=self.silent,
            observed=self.observed,
        )

    def failed(self, error: AgentError, trouble: str) -> Report:
        """The same for what ended in an error; `trouble`: what is wrong with what was live, "" where nothing is."""
        self.observed = None  # of a step that failed
        if trouble:
            self.findings.append(Finding("haproxy", trouble, "look at HAProxy's log"))
        report = self.done(error.outcome or Outcome.REFUSED)
        return evolve(
            report,
            file=error.file if isinstance(error, InvalidError) else report.file,
            message=str(error),
            code=error.exit_code,
            remedy=error.remedy,
            violations=error.violations if isinstance(error, InvalidError) else (),
            violations_total=error.total if isinstance(error, InvalidError) else 0,
            refused=error.refused if isinstance(error, RefusedError) else (),
        )
