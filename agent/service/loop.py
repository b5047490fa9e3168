"""What the service does at each look, and what `apply` and `rollback` do once: reconcile the desired file, and publish.

*When* the service looks is the daemon's.
"""

from __future__ import annotations

import contextlib
import logging

from attrs import evolve

from agent.desired.identity import digest_of
from agent.errors import InvalidError, Outcome, RateLimitedError, StoreError, Violation
from agent.host.desired_file import Intake
from agent.host.file_writes import QUIET_SECONDS, Writes
from agent.host.notifier import Notices
from agent.host.store import Identity, Store
from agent.reconcile.actor import FILE
from agent.reconcile.assessor import Assessor
from agent.reconcile.reconciler import Reconciler
from agent.reconcile.report import Report
from agent.service.live_backup import LiveBackup
from agent.service.publisher import Publisher
from agent.view import events

WRITING_SECONDS = 0.5  # until the next look at a file that is being written when the service starts
BUSY_SECONDS = 0.1  # until the next try where another process has the lock
MAX_NAMED = 5

_log = logging.getLogger("agent")


class Loop:
    """Around the reconciler: which bytes are wanted now, and what becomes known of the outcome."""

    def __init__(
        self,
        *,
        store: Store,
        intake: Intake,
        backup: LiveBackup,
        assessor: Assessor,
        reconciler: Reconciler,
        publisher: Publisher,
        writes: Writes,
        notices: Notices | None,
    ) -> None:
        self._store, self._intake, self._backup = store, intake, backup
        self._assessor, self._reconciler, self._publisher, self._notices = assessor, reconciler, publisher, notices
        self.writes: Writes = writes
        self._data: bytes | InvalidError | None = None  # what was read of the desired file last
        self._unread = ""  # why the desired file is not read now
        self._files: tuple[Identity | None, Identity | None] | None = None  # document and signature, when read last
        self._marks: tuple[Identity | None, ...] | None = None  # of generations and hold, after the last reconcile
        self._has_live = False  # whether a generation was live then

    # --- once

    def reconcile(self, *, force: bool = False, retry: bool = False, actor: str = "") -> Report:
        """One reconcile of the desired file as it is now, and its status. The caller holds the lock.

        `actor`: who asks for it; "" where the service looks by itself.
        """
        if self._unread:  # the file is left alone; what was read of it before is wanted until it is whole
            data, request = self._data or self._live_document(), self._data is not None
        else:
            self._files = self._intake.identities()
            data, request = self._intake.desired(), True
            self._data = data
        digest = digest_of(data) if isinstance(data, bytes) else None
        asked = self._store.request()
        about = asked if asked is not None and asked.digest == digest else None
        if about is not None:
            force, retry = force or about.force, retry or about.retry
        # Whoever forces it, or wants it tried once more, makes the change, also where the document is live already.
        asks = bool(actor) or (about is not None and (about.force or about.retry))
        author = about.actor if about is not None and about.actor else FILE
        with self._publisher.changing(digest, self._files):
            report = self._reconciler.reconcile(
                data, force=force, retry=retry, request=request, actor=actor or author, by_command=asks
            )
        after = about and evolve(about, force=False, retry=False)
        if after != asked:
            with contextlib.suppress(StoreError):  # reported already, where it matters
                self._store.set_request(after)
        self._publisher.note(report)
        if report.digest is not None and report.outcome not in (Outcome.INVALID, Outcome.REFUSED):
            self._intake.record_serial(report.digest, report.serial)
        return report

    def rollback(self, generation: int | None, *, actor: str) -> Report:
        """Put a generation's document back, and hold the present file. The caller holds the lock."""
        present = self._intake.desired()
        with self._publisher.changing(None, None):  # what is reported is not the desired file
            document = present if isinstance(present, bytes) else None
            report = self._reconciler.rollback(generation, document, actor=actor)
        self._publisher.note(report)
        return report

    def _live_document(self) -> bytes | InvalidError:
        """What is live, which goes on while a service that starts cannot read the desired file yet."""
        live = self._store.live()
        if live is None:
            return InvalidError(str(self._intake.file), (Violation((), self._unread),))
        return self._store.desired_of(live.number)

    # --- at each look of the service

    def reconcile_and_log(self) -> float:
        """Reconcile, and log what is new.

        Returns in how many seconds to look again because it could not be done now; 0.0 where it was.
        """
        before = self._publisher.last
        wait = self.writing()
        if wait and self._data is None and self._store.live() is None:
            return min(wait, WRITING_SECONDS)  # nothing was read yet, and nothing serves that must be kept
        self._store.prepare()  # pfSense wipes /var/run under running services
        with self._store.try_lock() as ours:
            if not ours:
                return BUSY_SECONDS
            try:
                report = self.reconcile()
            except RateLimitedError as later:
                _log.info("%s", later)
                self._publisher.waiting, self._marks = str(later), self._store.marks()
                self._publisher.publish()
                return later.seconds
            self._marks, self._has_live = self._store.marks(), report.generation is not None
            self._backup.remember()
            self._publisher.write_events()
        self._publisher.try_canaries()
        if events.is_news(before, report):
            events.log(_log, report)
            if self._notices is not None:
                self._notices.tell(events.notice(before, report))
        return wait

    def changed(self) -> bool:
        """Whether the desired file is another one than at the last reconcile: an event alone says nothing.

        One that was put in its place again, the very same bytes, is a request to reconcile.
        """
        if self._intake.identities() != self._files:
            return True
        data, last = self._intake.desired(), self._publisher.last
        return last is None or last.digest != (digest_of(data) if isinstance(data, bytes) else None)

    def writing(self) -> float:
        """For how many seconds more the desired file must not be read.

        It is being written, or it takes frontends away and was written in place just now.
        """
        # After a rename in the clock tick of its write nothing but the event, which is on its way, tells the two apart.
        wait = self.writes.unfinished()
        why = "it is being written" if self.writes.is_open() or wait > QUIET_SECONDS else "it was changed just now"
        if not wait and (unconfirmed := self.writes.unconfirmed()) and (gone := self._removed_frontends()):
            names = ", ".join(gone[:MAX_NAMED]) + (
                f" and {len(gone) - MAX_NAMED} more" if len(gone) > MAX_NAMED else ""
            )
            wait = unconfirmed
            why = f"it was written in place and takes frontends away ({names}); it counts once it is left unchanged"
        before, self._unread = self._unread, why if wait else ""
        self._publisher.unread = self._unread
        if self._unread and self._unread != before:
            _log.info("%s is not read yet: %s", self._intake.file, why)
            if self._publisher.last is not None:  # else the first look is about to say more
                self._publisher.publish()
        return wait

    def _removed_frontends(self) -> list[str]:
        """The frontends that are live and not in the desired file as it is now."""
        live, data = self._assessor.live_state(), self._intake.desired()
        if live is None or live[1] is None or not isinstance(data, bytes) or digest_of(data) == live[0].digest:
            return []
        with contextlib.suppress(InvalidError):
            wanted = {frontend.name for frontend in self._assessor.read(data).state.frontends}
            return [frontend.name for frontend in live[1].frontends if frontend.name not in wanted]
        return []

    def healthy(self) -> bool:
        """Whether HAProxy answers, and no command of another process has put a generation or a hold in place."""
        self._publisher.tick()
        if self._marks is not None and self._store.marks() != self._marks:
            self._publisher.publish()
            return False
        # Generations are read whole only where none was live: once a second they need not be.
        if not self._has_live and self._store.live() is None:
            return True  # nothing to keep alive yet
        return self._publisher.refresh()
