"""Events of the running service: reported once to the log, to syslog and to notify.command, and kept on disk."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping

from agent.errors import StoreError
from agent.host.notifier import Notices
from agent.host.store import Store
from agent.reconcile.event import Damper, Event, frontend_changes

_log = logging.getLogger("agent")


class EventLog:
    """What happened to HAProxy and the frontends. `document`: an event as the operator's program reads it."""

    def __init__(
        self, store: Store, notices: Notices | None, *, document: Callable[[Event], Mapping[str, object]]
    ) -> None:
        self._store, self._notices, self._document = store, notices, document
        self._damper = Damper()
        self._unserved: Mapping[str, str] | None = None
        self._unwritten: list[Event] = []

    def start(self, unserved: Mapping[str, str] | None) -> None:
        """Why each frontend did not serve when an agent looked last, None where that is not known.

        So an agent that is started again reports nothing twice.
        """
        self._unserved = unserved

    def look(self, unserved: Mapping[str, str] | None, now: float) -> None:
        """Note why frontends do not serve now ("": it serves; None: HAProxy does not answer), and report changes."""
        changes = []
        if unserved is not None:
            changes = frontend_changes(self._unserved, unserved, at=now) if self._unserved is not None else []
            self._unserved = dict(unserved)
        self._tell(self._damper.take(changes, now))

    def take(self, events: Iterable[Event], now: float) -> None:
        """Tell other events, damped alike."""
        self._tell(self._damper.take(events, now))

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            _log.warning("%s", event.message)
            if self._notices is not None:
                self._notices.tell(self._document(event))
        self._unwritten += events
        if self._unwritten:
            with contextlib.suppress(StoreError), self._store.try_lock() as ours:
                if ours:
                    self.write()

    def close(self) -> None:
        """Tell what was kept back, so that the next agent need not know of it."""
        self._tell(self._damper.flush())

    def write(self) -> None:
        """Keep what was reported. The caller holds the lock; a full disk is tried again at the next event or look."""
        if not self._unwritten:
            return
        with contextlib.suppress(StoreError):
            self._store.add_events(self._unwritten)
            self._unwritten = []
