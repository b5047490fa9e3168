"""What became of one converge: the value that exit code, log, history, status.json and tables are made from."""

from __future__ import annotations

from attrs import frozen

from agent.errors import ExitCode, Finding, Outcome, Refusal, Violation
from agent.haproxy.observed import Observation
from agent.proxy_protocol.record import Handshake


@frozen(kw_only=True)
class Report:
    """What became of a document."""

    outcome: Outcome
    """how it ended"""
    at: float
    """seconds since the epoch"""
    file: str
    """the document, for messages"""
    digest: str | None = None
    """of the document; None: there was none to read"""
    name: str = ""
    """its label"""
    serial: int | None = None
    """its serial"""
    generation: int | None = None
    """the live generation afterwards"""
    plan: str | None = None
    """`unchanged`, `runtime` or `reload`; None: it did not come to a plan"""
    reasons: tuple[str, ...] = ()
    """why, a sentence each"""
    started: bool = False
    """whether no HAProxy ran before"""
    drift: tuple[str, ...] = ()
    """kinds of what was not as this agent had left it, and was corrected"""
    handshakes: tuple[Handshake, ...] = ()
    """what the new servers were found to be"""
    findings: tuple[Finding, ...] = ()
    """warnings"""
    violations: tuple[Violation, ...] = ()
    """the first hundred mistakes in the document"""
    violations_total: int = 0
    """how many there are"""
    refused: tuple[Refusal, ...] = ()
    """the parts of the document for which it is refused, where it is for parts of it"""
    message: str = ""
    """what went wrong"""
    remedy: str = ""
    """what to do"""
    code: ExitCode | None = None
    """the error's own exit code; None: the outcome's"""
    timings: tuple[tuple[str, float], ...] = ()
    """seconds by stage, in order"""
    silent: frozenset[str] = frozenset()
    """host names of servers that do not resolve"""
    author: str = ""
    """who handed the document over, with its signer; `file`: a program that the agent does not know"""
    actor: str = ""
    """who made the change: the author, unless only the world around the document has changed"""
    observed: Observation | None = None
    """HAProxy after a step; None: it has to be asked"""

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
