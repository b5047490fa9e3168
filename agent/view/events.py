"""What is news of a converge, and what else happened: lines of a log, notices, events."""

from __future__ import annotations

import logging
from typing import Any

from agent.errors import Outcome
from agent.reconcile.event import LONGEST, Event, Kind, invalid_in_words, refusal
from agent.reconcile.report import Report
from agent.view.status import Status, as_json, event_status, when

_MOST_LOGGED = 20
_FIRST = "nothing is live yet"  # of a plan: then HAProxy is started for the first time


def fingerprint(report: Report) -> tuple[object, ...]:
    """What must differ for a report to be news."""
    return report.outcome, report.digest, report.generation, report.message, report.findings


def is_news(before: Report | None, report: Report) -> bool:
    """Whether this has not been reported already."""
    return before is None or fingerprint(before) != fingerprint(report)


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
        "message": report.message[:LONGEST],
        "remedy": report.remedy[:LONGEST],
        "actor": report.actor,
        "at": when(report.at),
    }


def log(logger: logging.Logger, report: Report) -> None:
    """All of it, for the log."""
    quiet = report.outcome in (Outcome.UNCHANGED, Outcome.COMMITTED)
    for finding in report.findings[:_MOST_LOGGED]:
        logger.warning("%s", finding.text(report.file))
    if len(report.findings) > _MOST_LOGGED:
        logger.warning("and %d more; `agent check` names them all", len(report.findings) - _MOST_LOGGED)
    logger.log(
        logging.INFO if quiet else logging.ERROR,
        "%s: %s, desired sha256 %s, by %s, %.0f ms%s",
        report.outcome.value,
        "nothing is live" if report.generation is None else f"generation {report.generation} is live",
        (report.digest or "none")[:12],
        report.actor or "nobody",
        report.seconds * 1000,
        f": {'; '.join(report.reasons)}" if report.reasons else "",
    )
    if report.message:
        logger.error("%s", report.message)


def events_of(report: Report) -> list[Event]:
    """What a look has found and put right, and what it has tried and put back."""
    happened = []
    died_meanwhile = report.started and report.switched and _FIRST not in report.reasons
    if "process" in report.drift or died_meanwhile:
        happened.append((Kind.HAPROXY_RESTARTED, "haproxy", "HAProxy was not running; it was started again"))
    if "file" in report.drift:
        happened.append(
            (Kind.DRIFT_CORRECTED, "haproxy.cfg", "the live haproxy.cfg had been changed; it was put right")
        )
    if "server" in report.drift:
        what = "; ".join(report.reasons[:3]) or "servers"
        happened.append((Kind.DRIFT_CORRECTED, "servers", f"changed by hand at the socket and put right: {what}"))
    if "frontend" in report.drift:
        what = "; ".join(reason for reason in report.reasons if reason.startswith("frontend ")) or "frontends"
        happened.append((Kind.DRIFT_CORRECTED, "frontends", f"closed by hand at the socket and opened again: {what}"))
    if report.outcome is Outcome.ROLLED_BACK and report.switched:
        serial = f", serial {report.serial}" if report.serial is not None else ""
        subject = (report.digest or "")[:12]
        happened.append((Kind.ROLLED_BACK, subject, f"tried and put back: sha256 {subject}{serial}: {report.message}"))
    return [
        _event(kind, subject, message, report, actor=report.actor if kind is Kind.ROLLED_BACK else "")
        for kind, subject, message in happened
    ]


def refusal_of(report: Report) -> Event | None:
    """A document that was refused, or is none; not a file that cannot be read."""
    if report.outcome not in (Outcome.REFUSED, Outcome.INVALID) or report.digest is None:
        return None
    why = invalid_in_words(report.violations, report.violations_total) if report.violations else report.message
    return refusal(report.digest, why, actor=report.actor, at=report.at)


def _event(kind: Kind, subject: str, message: str, report: Report, *, actor: str) -> Event:
    message = message[:LONGEST]
    return Event(kind=kind.value, subject=subject, message=message, at=report.at, until=report.at, actor=actor)


def event_document(event: Event) -> dict[str, Any]:
    """An event for the operator's program."""
    document: dict[str, Any] = as_json(event_status(event))
    return document


def unserved(status: Status) -> dict[str, str] | None:
    """Why each frontend does not serve, "" where it does; None where HAProxy did not answer."""
    if status.haproxy is None:
        return None
    return {
        frontend.name: frontend.why if frontend.state in ("down", "quarantined") else ""
        for frontend in status.frontends
    }
