"""The answer to a sync: what a command prints, and what crosses the ssh connection back."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from agent.errors import AgentError, ExitCode, InvalidError

STAGE = "stage: "
"""How a line of progress begins on the stderr of the gate."""

_REFUSALS = {ExitCode.INVALID: "invalid", ExitCode.POLICY: "policy", ExitCode.NO_ANSWER: "no_answer"}


@frozen(kw_only=True)
class Answer:
    """The outcome of a sync."""

    word: str
    """an Outcome, or `stored`, `no_answer`, `policy`, `overtaken`"""
    exit_code: ExitCode
    """of the command"""
    digest: str = ""
    """of the document"""
    serial: int | None = None
    """its serial"""
    message: str = ""
    """what happened"""
    remedy: str = ""
    """what to do"""
    report: dict[str, Any] | None = None
    """what the agent reported, whole"""
    seconds: float = 0.0
    """duration"""

    def document(self) -> dict[str, Any]:
        """For programs, and for the other side of an ssh connection."""
        return {
            "protocol": 1,
            "result": self.word,
            "exit_code": int(self.exit_code),
            "digest": self.digest,
            "serial": self.serial,
            "message": self.message,
            "remedy": self.remedy,
            "seconds": round(self.seconds, 3),
            "report": self.report,
        }


def refused(error: AgentError, digest: str) -> Answer:
    """What was not even stored."""
    word = _REFUSALS.get(error.exit_code, "refused")
    violations = error.violations if isinstance(error, InvalidError) else ()
    return Answer(
        word=word,
        exit_code=error.exit_code,
        digest=digest,
        message=str(error),
        remedy=error.remedy,
        report={
            "violations": [{"line": violation.line, "message": violation.message} for violation in violations[:100]]
        }
        if violations
        else None,
    )
