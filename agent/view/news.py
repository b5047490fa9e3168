"""What is news of a converge, as lines of a log and as a notice."""

from __future__ import annotations

import logging

from agent.errors import Outcome
from agent.model.report import Report
from agent.view.status import when

_LONGEST = 1_000  # characters of a sentence: a notice fits into a pipe
_MOST_LOGGED = 20


def gist(report: Report) -> tuple[object, ...]:
    """What must differ for a report to be news."""
    return report.outcome, report.digest, report.generation, report.message, report.findings


def is_news(before: Report | None, report: Report) -> bool:
    """Whether people have not been told this already."""
    return before is None or gist(before) != gist(report)


def notice(before: Report | None, report: Report) -> dict[str, object]:
    """An outcome that is news, for syslog and for the operator's program."""
    return {
        "outcome": report.outcome.value,
        "before": before.outcome.value if before else None,
        "exit_code": int(report.exit_code),
        "generation": report.generation,
        "digest": report.digest,
        "serial": report.serial,
        "name": report.name,
        "plan": report.plan,
        "milliseconds": round(report.seconds * 1_000),
        "message": report.message[:_LONGEST],
        "remedy": report.remedy[:_LONGEST],
        "at": when(report.at),
    }


def log(logger: logging.Logger, report: Report) -> None:
    """All of it, for whoever reads the log later."""
    quiet = report.outcome in (Outcome.UNCHANGED, Outcome.COMMITTED)
    for finding in report.findings[:_MOST_LOGGED]:
        logger.warning("%s", finding.text(report.file))
    if len(report.findings) > _MOST_LOGGED:
        logger.warning("and %d more; `agent check` names them all", len(report.findings) - _MOST_LOGGED)
    logger.log(
        logging.INFO if quiet else logging.ERROR,
        "%s: generation %s is live, desired sha256 %s, %.0f ms%s",
        report.outcome.value,
        report.generation,
        (report.digest or "none")[:12],
        report.seconds * 1000,
        f": {'; '.join(report.reasons)}" if report.reasons else "",
    )
    if report.message:
        logger.error("%s", report.message)
