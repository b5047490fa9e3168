"""What can go wrong, and the one enum that names how a converge ended.

Imports nothing of ours, so that every room can raise and catch the same things. `Outcome` is exit code,
metric label, history row and status word alike; `ExitCode` is the contract of every command.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass

MOST_VIOLATIONS = 100
"""So many violations of one document are gathered and listed: a junk file can have one for each of its bytes."""

Path = tuple[str | int, ...]
"""Where a value stands in a document: ("frontends", "smtp", "bind", 0)."""


class ExitCode(enum.IntEnum):
    """What a command's exit code says. Scripts are written against these numbers."""

    LIVE = 0
    """the desired state is live: committed, or unchanged"""
    BUG = 1
    """a bug of the agent; what the demo claims did not hold"""
    USAGE = 2
    """wrong use, wrong settings, no HAProxy, or a result that cannot be written"""
    INVALID = 3
    """the desired state is invalid; every violation is named"""
    REFUSED = 4
    """refused before anything was touched: `haproxy -c`, preflight, trial start, PROXY probe, or a full disk"""
    ROLLED_BACK = 5
    """applied, got worse, rolled back; or the document is held and was not applied"""
    DEGRADED = 6
    """live but degraded (a frontend is quarantined), or the desired state is not what is live"""
    NO_ANSWER = 7
    """no answer in time; the agent is not running"""
    SSH = 8
    """ssh failed"""
    POLICY = 9
    """refused by policy: stale serial, signature, an empty document, `--if-live`"""


class Outcome(enum.StrEnum):
    """How one converge ended."""

    UNCHANGED = "unchanged"
    """nothing had to change"""
    COMMITTED = "committed"
    """a change is live"""
    DEGRADED = "degraded"
    """a change is live, but an address is quarantined or a new frontend has no server that answers"""
    INVALID = "invalid"
    """the document is invalid; what was live stays"""
    REFUSED = "refused"
    """the document was refused; what was live stays"""
    ROLLED_BACK = "rolled_back"
    """the change made a frontend unhealthy and was undone; or the document is held for that, or by `agent rollback`"""

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command that ended so."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Outcome.UNCHANGED: ExitCode.LIVE,
    Outcome.COMMITTED: ExitCode.LIVE,
    Outcome.DEGRADED: ExitCode.DEGRADED,
    Outcome.INVALID: ExitCode.INVALID,
    Outcome.REFUSED: ExitCode.REFUSED,
    Outcome.ROLLED_BACK: ExitCode.ROLLED_BACK,
}


def dotted(path: Path) -> str:
    """A path as people read it: `frontends.smtp.bind[0]`. The empty path is the document itself.

    A key that is no plain word stands in quotes, escaped: it came from a file, and goes to logs and terminals.
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            word = (
                step
                if _PLAIN_KEY.fullmatch(step)
                else json.dumps(step if len(step) <= _LONGEST_KEY else step[:_LONGEST_KEY] + "...")
            )
            text += f".{word}" if text else word
    return text


_LONGEST_KEY = 64  # characters of it that are shown
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason why a document is refused."""

    path: Path
    """where in the document"""
    message: str
    """what is wrong"""
    line: int | None = None
    """1-based; None: not known"""

    def text(self, file: str) -> str:
        """`desired.yaml:14: frontends.smtp.bind[0]: ...`"""
        return ": ".join(part for part in (_place(file, self.line), dotted(self.path), self.message) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an operator should know that is no reason to refuse."""

    where: str
    """the path in the document, or what it is about"""
    message: str
    """what was found"""
    remedy: str = ""
    """what to do"""
    line: int | None = None
    """1-based; None: not about a line"""

    def text(self, file: str) -> str:
        """`desired.yaml:9: backends.old: no frontend uses it (remove it, or ...)`"""
        body = ": ".join(part for part in (_place(file, self.line), self.where, self.message) if part)
        return f"{body} ({self.remedy})" if self.remedy else body


def _place(file: str, line: int | None) -> str:
    return file if line is None else f"{file}:{line}"


class AgentError(Exception):
    """Anything the agent says on purpose. The message says what happened, `remedy` what to do next."""

    exit_code = ExitCode.BUG
    outcome: Outcome | None = None

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(AgentError):
    """The command, its settings or its surroundings are not as they must be; nothing was looked at."""

    exit_code = ExitCode.USAGE


class InvalidError(AgentError):
    """Input that cannot become a configuration: every violation at once, each with its place.

    At most MOST_VIOLATIONS are listed; `more`: how many there are beyond those, at least.
    """

    exit_code = ExitCode.INVALID
    outcome = Outcome.INVALID

    def __init__(self, file: str, violations: tuple[Violation, ...], *, more: int = 0) -> None:
        self.file = file
        self.violations = violations[:MOST_VIOLATIONS]
        self.more = more + len(violations) - len(self.violations)
        rest = [f"{file}: and at least {self.more:,} more"] if self.more else []
        super().__init__("\n".join([*(violation.text(file) for violation in self.violations), *rest]))

    @property
    def total(self) -> int:
        """How many violations there are, at least."""
        return len(self.violations) + self.more


@dataclass(frozen=True, slots=True)
class Refusal:
    """One part of a document for which the whole of it is refused: for programs that can do without that part."""

    kind: str
    """`frontend`, `backend` or `server`"""
    name: str
    """of the frontend, or of the backend"""
    reason: str
    """why, in a sentence"""
    server: str = ""
    """of `kind: server`: its name in the backend"""


class RefusedError(AgentError):
    """Refused before anything that serves was touched. `refused`: for which parts of the document, where it is that."""

    exit_code = ExitCode.REFUSED
    outcome = Outcome.REFUSED

    def __init__(self, message: str, *, remedy: str = "", refused: tuple[Refusal, ...] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.refused = refused


class PolicyError(RefusedError):
    """A document that is not taken, however valid: stale, not signed, overtaken."""

    exit_code = ExitCode.POLICY


class StoreError(RefusedError):
    """A file of the agent's own could not be read or written: no space, no right, a read-only file system."""


class SwitchError(AgentError):
    """The new process did not come up, or did not serve what it must."""

    exit_code = ExitCode.ROLLED_BACK
    outcome = Outcome.ROLLED_BACK


class WorseError(SwitchError):
    """The new configuration was seen to serve worse than the one before: the document did it, not the world."""


class CommandError(AgentError):
    """HAProxy did not execute a command at its socket."""

    exit_code = ExitCode.ROLLED_BACK
    outcome = Outcome.ROLLED_BACK


class RateLimitedError(AgentError):
    """Not now: too many reloads in a short time. `seconds`: until it may be tried again."""

    exit_code = ExitCode.NO_ANSWER

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class NoAnswerError(AgentError):
    """HAProxy's socket, or the agent, did not answer in time."""

    exit_code = ExitCode.NO_ANSWER
