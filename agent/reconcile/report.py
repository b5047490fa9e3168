"""What became of one converge: the value that exit code, log, history, status.json and tables are made from."""

from __future__ import annotations

from attrs import frozen

from agent.errors import ExitCode, Finding, Outcome, Violation
from agent.haproxy.observed import Observation
from agent.proxy_protocol.record import Handshake

STAGES = ("recover", "load", "preflight", "plan", "check", "swap", "switch", "verify", "commit")
"""Of one change that goes live, in their order."""

STAGE_WORDS = {
    "recover": "looking at what runs",
    "load": "reading the document",
    "preflight": "trying addresses and servers",
    "plan": "planning",
    "check": "testing the configuration with haproxy -c and a trial start",
    "swap": "writing the configuration",
    "switch": "applying it to HAProxy",
    "verify": "verifying that it serves",
    "commit": "recording the generation",
    "roll back": "putting the previous configuration back",
    "keep": "looking after what is live",
    "revive": "starting HAProxy",
}
"""The same, and what follows a failure, as people read them."""


@frozen(kw_only=True)
class Report:
    """What became of a document. `digest`: of the document looked at, None where there was none to read.

    `generation`: what is live now. `plan`: "unchanged", "runtime" or "reload", None where it did not come to a plan.
    `started`: whether no HAProxy ran before. `drift`: what was not as this agent had left it, and was corrected, by
    kind. `handshakes`: what the servers that are new in the document were found to be. `violations` stand in `file`;
    of more than a hundred only the first are listed, and `violations_total` counts all. `timings`: seconds by stage,
    in order. `at`: seconds since the epoch. `observed`: HAProxy after a step, None where it has to be asked.
    """

    outcome: Outcome
    at: float
    file: str
    digest: str | None = None
    name: str = ""
    serial: int | None = None
    generation: int | None = None
    plan: str | None = None
    reasons: tuple[str, ...] = ()
    started: bool = False
    drift: tuple[str, ...] = ()
    handshakes: tuple[Handshake, ...] = ()
    findings: tuple[Finding, ...] = ()
    violations: tuple[Violation, ...] = ()
    violations_total: int = 0
    message: str = ""
    remedy: str = ""
    code: ExitCode | None = None
    timings: tuple[tuple[str, float], ...] = ()
    observed: Observation | None = None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command: the error's own, where it was one, else the outcome's."""
        return self.outcome.exit_code if self.code is None else self.code

    @property
    def switched(self) -> bool:
        """Whether it came to a switch, by commands or by a new process."""
        return any(stage == "switch" for stage, _ in self.timings)

    @property
    def seconds(self) -> float:
        """How long all stages took together."""
        return sum(seconds for _, seconds in self.timings)
