"""What became of a submitted document, as status.json reports it.

Apart from `submit`: this is imported while the service works on the document already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from agent.errors import ExitCode, Outcome
from agent.host.store import identity
from agent.reconcile import policy
from agent.remote.answer import Answer
from agent.remote.submit import POLL_SECONDS, Destination, Submission
from agent.view.status import Status, as_json, from_json

GONE_SECONDS = 2.0  # that long an agent may be away while it is started anew
_CODES = {result.value: result.exit_code for result in Outcome}
_REPORTED = (
    "outcome", "message", "remedy", "violations", "violations_total", "refused", "findings", "desired", "live", "held",
    "plan", "reasons", "timings",
)  # fmt: skip
_OF_FRONTENDS = ("name", "state", "binds", "servers_up", "servers_total")


def wait(
    to: Destination, submission: Submission, *, deadline: float, timeout: float, on_stage: Callable[[str], None]
) -> Answer:
    """Until the agent has looked at it, has looked at a later one, or does not answer in time.

    `deadline`: by the monotonic clock; `timeout`: what the caller has given for all of it, in seconds.
    """
    store, digest = to.store, submission.parsed.digest
    begin, status_seen, gone, stage = time.monotonic(), None, None, ""
    while True:
        now, present = identity(store.status_file), identity(to.intake.file)
        if now != status_seen or present is None:
            status_seen, status = now, from_json(to.store.status(), Status)
            desired = status.desired if status else None
            looked = desired.file_id if desired else None
            if status and looked and desired and desired.digest == digest and looked in (submission.file, present):
                # Of the very file, or of the very same document that another one has handed over since.
                return _answer(submission, status, time.monotonic() - begin)
            if present != submission.file and (present is None or looked == present):
                return _superseded(to, submission, status, time.monotonic() - begin)
        if identity(store.progress_file) != submission.progress:
            at = store.progress()
            if at is not None and at[0] == digest and at[1] != stage:
                stage = at[1]
                on_stage(stage)
        moment = time.monotonic()
        gone = None if store.service_running() else gone or moment
        if gone is not None and moment - gone >= GONE_SECONDS * submission.served:
            return _timed_out(submission, "no agent runs here", "start it: it is applied then", moment - begin)
        if moment > deadline:
            why = f"no answer within {timeout:.0f} s"
            return _timed_out(submission, why, "`agent status` shows the outcome", moment - begin)
        time.sleep(POLL_SECONDS)  # a file of another process gives no event


def _answer(submission: Submission, status: Status, seconds: float) -> Answer:
    return answer_of(status, digest=submission.parsed.digest, serial=submission.parsed.state.serial, seconds=seconds)


def answer_of(status: Status, *, digest: str, serial: int | None, seconds: float) -> Answer:
    """What a status says of the document that it is about."""
    return Answer(
        word=str(status.outcome),
        exit_code=ExitCode(status.exit_code) if status.exit_code is not None else ExitCode.BUG,
        digest=digest,
        serial=serial,
        message=status.message,
        remedy=status.remedy,
        report=_report(status),
        seconds=seconds,
    )


def _report(status: Status) -> dict[str, Any]:
    """What a client reads of the status. The frontends that do not serve fully may be few of a thousand."""
    document = as_json({name: getattr(status, name) for name in _REPORTED})
    not_up = as_json([{name: getattr(frontend, name) for name in _OF_FRONTENDS} for frontend in status.not_up])
    return {**document, "frontends": not_up}


def _superseded(to: Destination, submission: Submission, status: Status | None, seconds: float) -> Answer:
    """Another document took its place: after it was live, or before the outcome could be read."""
    later = status.desired if status else None
    serial = f", serial {later.serial}" if later and later.serial is not None else ""
    outcome = status.outcome if status else None
    by = f"sha256 {str(later.digest if later else None)[: policy.SHORTEST_DIGEST]}{serial} ({outcome})"
    digest = submission.parsed.digest
    mine = [
        generation
        for generation in to.store.generations()
        if generation.number > submission.number and generation.digest == digest
    ]
    if not mine:
        gone = identity(to.intake.file) is None
        return Answer(
            word="overtaken",
            exit_code=ExitCode.POLICY,
            digest=digest,
            serial=submission.parsed.state.serial,
            message="the desired file was taken away before an answer could be read"
            if gone
            else f"it was overtaken by {by} before an answer could be read",
            remedy="look at what is live, and sync again what is wanted",
            report=None if gone or status is None else _report(status),
            seconds=seconds,
        )
    live = mine[-1]
    return Answer(
        word=live.outcome,
        exit_code=_CODES.get(live.outcome, ExitCode.BUG),
        digest=digest,
        serial=live.serial,
        message=f"generation {live.number} was live with it, and was followed by {by}",
        report={"live": {"generation": live.number, "digest": live.digest, "serial": live.serial}},
        seconds=seconds,
    )


def _timed_out(submission: Submission, why: str, remedy: str, seconds: float) -> Answer:
    return Answer(
        word="no_answer",
        exit_code=ExitCode.NO_ANSWER,
        digest=submission.parsed.digest,
        serial=submission.parsed.state.serial,
        message=f"{why}; the document is stored",
        remedy=remedy,
        seconds=seconds,
    )
