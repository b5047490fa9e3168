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
from agent.errors import AgentError, ExitCode, InvalidError, NoAnswerError, PolicyError, StoreError
from agent.host.desired_file import STALE_REMEDY, Intake
from agent.host.documents import read_signature
from agent.host.limits import limits_of
from agent.host.store import Identity, Store, identity
from agent.reconcile import policy
from agent.reconcile.event import invalid_in_words, refusal, repeats
from agent.reconcile.generation import Hold, Request
from agent.remote.answer import Answer
from agent.settings import Settings

POLL_SECONDS = 0.01  # status.json gives no event; a look at its name costs microseconds


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
    actor: str = ""
    """who hands it over"""

    def request(self, digest: str) -> Request:
        """What the service is to know of it beside the document."""
        return Request(digest=digest, force=self.force, retry=self.retry, actor=self.actor)


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
    before: bytes | None
    """the document that stood there before; None: there was none"""
    signature_before: bytes
    """its signature; empty: none"""
    hold_before: Hold | None
    """what was held then: a document that is handed over ends a hold of another one"""
    restorable: bool
    """whether what stood there was read, and read whole"""


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
                before, signature_before = to.intake.desired(), read_signature(to.intake.file)
                absent = identity(to.intake.file) is None and not to.intake.file.is_symlink()
                whole = isinstance(before, bytes) and len(before) <= to.intake.settings.sync.max_bytes
                hold = to.store.hold()
                to.store.set_request(request.request(parsed.digest))
                file = to.intake.put(request.data, request.signature)
                return Submission(
                    parsed=parsed,
                    file=file,
                    number=number,
                    served=served,
                    progress=progress,
                    before=before if isinstance(before, bytes) else None,
                    signature_before=signature_before,
                    hold_before=hold,
                    restorable=absent or whole,
                )
        if time.monotonic() > deadline:
            raise NoAnswerError("another change is under way, and takes too long", remedy="try again")
        time.sleep(POLL_SECONDS)  # a lock gives no event


def record_refusal(store: Store, request: SyncRequest, error: AgentError) -> None:
    """In the history, with whom it came from: also what is refused before it is stored is a try.

    Without the lock, which a change may hold for seconds: at worst an event of the same moment is lost.
    """
    why = invalid_in_words(error.violations, error.total) if isinstance(error, InvalidError) else str(error)
    refused = refusal(digest_of(request.data), why, actor=request.actor, at=time.time())
    with contextlib.suppress(StoreError):  # the answer counts, not the record of it
        if not repeats(refused, store.events()):
            store.add_events([refused])


def admit(to: Destination, parsed: Parsed, request: SyncRequest) -> None:
    """Raises PolicyError for a document that is not taken on these terms."""
    live = to.store.live()
    if request.if_live and (moved := policy.moved_on(request.if_live, live)):
        raise PolicyError(moved, remedy="somebody else was faster: look at what is live, and decide again")
    to.intake.admit(parsed, live, force=request.force)
    for other in (policy.newest(live), _waiting(to)):
        if stale := policy.stale(parsed, other):
            raise PolicyError(stale, remedy=STALE_REMEDY)


def _waiting(to: Destination) -> policy.Newest | None:
    """What stands in the desired file, where no agent has said anything of it yet; None for what cannot be read."""
    data = to.intake.desired()
    if not isinstance(data, bytes):
        return None
    hold = to.store.hold()
    if digest_of(data) in (_reported(to.store.status()), hold.digest if hold else None):
        return None
    with contextlib.suppress(InvalidError):
        waiting = to.read(data)
        return policy.Newest(digest=waiting.digest, serial=waiting.state.serial, how="waits to be applied")
    return None


def _reported(status: dict[str, Any] | None) -> object:
    """The digest of the document that a status.json is about. Its types cost a start, and are not needed for that."""
    desired = (status or {}).get("desired")
    return desired.get("digest") if isinstance(desired, dict) else None


def withdraw(to: Destination, submission: Submission, *, deadline: float) -> bool:
    """Put the desired file back as it was before, and what was held; unless the file was replaced since.

    `deadline`: by the monotonic clock; the service may be at it. Returns whether it was put back. Raises StoreError,
    UsageError.
    """
    if not submission.restorable:
        return False
    while True:
        with to.store.try_lock() as ours:
            if ours:
                if identity(to.intake.file) != submission.file:
                    return False
                if submission.hold_before is not None:  # before the file: it must not go live for a moment
                    to.store.write_hold(submission.hold_before)
                to.intake.restore(submission.before, submission.signature_before)
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)  # a lock gives no event


def stored(submission: Submission) -> Answer:
    """The caller does not wait for the outcome."""
    return Answer(
        word="stored",
        exit_code=ExitCode.LIVE,
        digest=submission.parsed.digest,
        serial=submission.parsed.state.serial,
        message="the document is stored; the outcome was not waited for",
    )
