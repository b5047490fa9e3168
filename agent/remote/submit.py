"""Handing a document to the agent of this host, and hearing what became of it.

The document goes into the desired file, the answer comes out of status.json, by digest: there is no other way in, so
that `agent sync` reports what everything else reports.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from agent.desired.identity import digest_of
from agent.desired.state import Parsed, parse
from agent.errors import ExitCode, InvalidError, NoAnswerError, Outcome, PolicyError
from agent.host.desired_file import STALE_REMEDY, Intake
from agent.host.limits import limits_of
from agent.host.store import Identity, Store, identity
from agent.reconcile import policy
from agent.reconcile.generation import Request
from agent.remote.answer import Answer
from agent.settings import Settings
from agent.view.status import Status, as_json, from_json

POLL_SECONDS = 0.01  # status.json gives no event; a look at its name costs microseconds
GONE_SECONDS = 2.0  # that long an agent may be away while it is started anew
_CODES = {result.value: result.exit_code for result in Outcome}
_REPORTED = (
    "outcome", "message", "remedy", "violations", "violations_total", "findings", "desired", "live", "held", "plan",
    "reasons", "timings",
)  # fmt: skip
_OF_FRONTENDS = ("name", "state", "binds", "servers_up", "servers_total")


@frozen(kw_only=True)
class Destination:
    """The desired file of this host, and what a submission needs to put a document there."""

    store: Store
    """the agent's files"""
    intake: Intake
    """the desired file and its signature"""
    read: Callable[[bytes], Parsed]
    """checks a document against the schema and the limits of this host; raises InvalidError"""


def destination(settings: Settings, file: Path) -> Destination:
    """Of this host. `file`: how messages name the document.

    Made here and not by `service.wiring`, which imports all that a reconcile needs: a sync waits for this start.
    """
    store = Store(settings.state, settings.run, keep=settings.apply.keep_generations)
    limits = limits_of(settings)
    return Destination(
        store=store,
        intake=Intake(settings, store),
        read=lambda data: parse(data, file=str(file), max_bytes=settings.sync.max_bytes, limits=limits),
    )


@frozen(kw_only=True)
class SyncRequest:
    """What is handed over."""

    data: bytes
    """the document"""
    signature: bytes = b""
    """empty: none"""
    if_live: str = ""
    """the digest that must be live now; empty: any"""
    force: bool = False
    """although a serving frontend would be left without a server that answers"""
    retry: bool = False
    """although it is held"""

    def request(self, digest: str) -> Request | None:
        """What the service is to know of it beside the document."""
        if not self.force and not self.retry:
            return None
        return Request(digest=digest, force=self.force, retry=self.retry)


@frozen(kw_only=True)
class Submission:
    """A document that stands in the desired file, and what was so when it was put there."""

    parsed: Parsed
    """the document"""
    file: Identity
    """identity of that very file: a status about another one is no answer"""
    number: int
    """the last generation before it"""
    served: bool
    """whether an agent ran"""
    progress: Identity | None
    """identity of the progress file before it"""


def submit(to: Destination, request: SyncRequest, *, deadline: float) -> Submission:
    """Put the document in its place. Raises InvalidError, PolicyError, NoAnswerError; then nothing was touched."""
    to.intake.verify(request.data, request.signature)
    parsed = to.read(request.data)
    to.store.prepare()
    while True:
        with to.store.try_lock() as ours:
            if ours:
                admit(to, parsed, request)
                live = to.store.live()
                number, served = live.number if live else 0, to.store.service_running()
                progress = identity(to.store.progress_file)
                to.store.set_request(request.request(parsed.digest))
                file = to.intake.put(request.data, request.signature)
                return Submission(parsed=parsed, file=file, number=number, served=served, progress=progress)
        if time.monotonic() > deadline:
            raise NoAnswerError("another change is under way, and takes too long", remedy="try again")
        time.sleep(POLL_SECONDS)  # a lock gives no event


def admit(to: Destination, parsed: Parsed, request: SyncRequest) -> None:
    """Raises PolicyError for a document that is not taken on these terms."""
    live = to.store.live()
    if request.if_live and (moved := policy.moved_on(request.if_live, live)):
        raise PolicyError(moved, remedy="somebody else was faster: look at what is live, and decide again")
    to.intake.admit(parsed, live)
    for other in (policy.newest(live), _waiting(to)):
        if stale := policy.stale(parsed, other):
            raise PolicyError(stale, remedy=STALE_REMEDY)


def _waiting(to: Destination) -> policy.Newest | None:
    """What stands in the desired file, where no agent has said anything of it yet; None for what cannot be read."""
    data = to.intake.desired()
    if not isinstance(data, bytes):
        return None
    status, hold = from_json(to.store.status(), Status), to.store.hold()
    reported = status.desired.digest if status and status.desired else None
    if digest_of(data) in (reported, hold.digest if hold else None):
        return None
    with contextlib.suppress(InvalidError):
        waiting = to.read(data)
        return policy.Newest(digest=waiting.digest, serial=waiting.state.serial, how="waits to be applied")
    return None


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
    return Answer(
        word=str(status.outcome),
        exit_code=ExitCode(status.exit_code) if status.exit_code is not None else ExitCode.BUG,
        digest=submission.parsed.digest,
        serial=submission.parsed.state.serial,
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


def stored(submission: Submission) -> Answer:
    """The caller does not wait for the outcome."""
    return Answer(
        word="stored",
        exit_code=ExitCode.LIVE,
        digest=submission.parsed.digest,
        serial=submission.parsed.state.serial,
        message="the document is stored; the outcome was not waited for",
    )
