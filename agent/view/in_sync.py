"""Whether the desired state is what is live, and if not, why: for the headline, the exit code, the page and /readyz."""

from __future__ import annotations

import enum

from agent.errors import Outcome
from agent.reconcile.generation import Generation, Hold
from agent.reconcile.report import Report
from agent.view.status import NotInSync

_LONGEST = 300  # characters of a reason


class Relation(enum.StrEnum):
    """Why the desired state is not what is live."""

    MISSING = "missing"
    """the file is missing"""
    INVALID = "invalid"
    """`agent check` names every mistake"""
    REFUSED = "refused"
    """refused before anything was touched"""
    HELD = "held"
    """not applied again until it changes, or `agent apply --retry`"""
    ROLLED_BACK = "rolled_back"
    """tried and rolled back"""
    PENDING = "pending"
    """not read yet: it is still being written"""
    OTHER = "other"
    """not applied for another reason"""


HINT = "change it, or `agent apply --retry`"
_WORDS = {
    Relation.MISSING: "the file is missing",
    Relation.INVALID: "it is invalid",
    Relation.REFUSED: "it is refused",
    Relation.HELD: "it is held",
    Relation.ROLLED_BACK: "it was tried and rolled back",
    Relation.PENDING: "it is not read yet",
    Relation.OTHER: "it has not been applied",
}


def _trouble(relation: Relation, reason: str = "") -> NotInSync:
    """`it is held: generation 1 was put back by hand`. `reason`: a sentence, "" where the relation says all."""
    text = _WORDS[relation]
    return NotInSync(state=relation.value, reason=reason, text=f"{text}: {reason}" if reason else text)


def not_in_sync(
    *,
    report: Report | None,
    wanted: str | None,
    live: Generation | None,
    hold: Hold | None,
    pending: str = "",
    missing: bool = False,
) -> NotInSync | None:
    """None where the desired state is live.

    `wanted`: the digest of the desired file, None where there is none. `pending`: why the file is not read now.
    `report`: of the last reconcile; one that is older than the live generation knows nothing of it.
    """
    if pending:
        return _trouble(Relation.PENDING, pending)
    if missing:
        return _trouble(Relation.MISSING)
    outcome = report.outcome if report is not None else None
    # By a command, beside the service.
    overtaken = report is not None and live is not None and wanted == live.digest and live.at > report.at
    fresh = report is not None and report.digest == wanted and not overtaken
    if fresh and outcome is Outcome.ROLLED_BACK and report is not None and report.switched:
        return _trouble(Relation.ROLLED_BACK, _first_line(report.message))
    if hold is not None and wanted == hold.digest:
        return _trouble(Relation.HELD, f"{_first_line(hold.reason)} ({HINT})")
    if fresh and report is not None and outcome in (Outcome.INVALID, Outcome.REFUSED, Outcome.ROLLED_BACK):
        relation = {Outcome.INVALID: Relation.INVALID, Outcome.REFUSED: Relation.REFUSED}.get(
            outcome, Relation.ROLLED_BACK
        )
        return _trouble(relation, _first_line(report.message))
    if live is None or wanted != live.digest:
        return _trouble(Relation.OTHER)
    return None


def _first_line(text: str) -> str:
    first, *rest = text.splitlines() or [""]
    short = first if len(first) <= _LONGEST else f"{first[:_LONGEST]}..."
    return f"{short} (and {len(rest)} more lines)" if rest else short
