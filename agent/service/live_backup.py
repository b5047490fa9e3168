"""What is live, kept in memory by the service, for the case that the state folder is deleted under it."""

from __future__ import annotations

import contextlib
import logging

from agent.desired.state import Parsed
from agent.errors import StoreError
from agent.host.desired_file import Intake
from agent.host.lock import ServiceLock
from agent.host.store import Store
from agent.reconcile.generation import Generation

_log = logging.getLogger("agent")


class LiveBackup:
    """Of one store. Without it, the next document would be the first one, whatever it ends."""

    def __init__(self, store: Store, intake: Intake) -> None:
        self._store, self._intake = store, intake
        self._kept: tuple[Generation, bytes, bytes] | None = None  # what is live: record, document, haproxy.cfg

    def remember(self) -> None:
        """Keep what is live now."""
        live = self._store.live()
        if live is not None and (self._kept is None or self._kept[0] != live):
            with contextlib.suppress(StoreError):
                self._kept = live, self._store.desired_of(live.number), self._store.config_of(live.number)

    def admit(self, parsed: Parsed, *, force: bool = False) -> None:
        """Check a document against what is live, on disk or in memory. Raises PolicyError, StoreError.

        `force`: another manager takes over. The caller holds the lock.
        """
        live = self._store.live()
        if live is None and self._kept is not None:
            live = self._kept[0]
            self._write_back()
        self._intake.admit(parsed, live, force=force)

    def keep_lock(self, lock: ServiceLock) -> bool:
        """Take a state folder that was made anew, with what was live in it. Returns whether to reconcile at once.

        Raises LockLostError where another agent was faster: two never run on the same folders.
        """
        try:
            anew = lock.keep(self._store.prepare)
            if anew:
                _log.warning("%s was removed; it is made anew, with what was live", self._store.state)
                with self._store.try_lock() as ours:
                    if ours:
                        self._write_back()
        except StoreError as error:  # a full disk, say: reported by whatever needs the folder next
            _log.error("%s", error)
            return False
        return anew

    def _write_back(self) -> None:
        """Record the live generation once more. The caller holds the lock. Raises StoreError."""
        if self._kept is None or self._store.live() is not None:
            return
        generation, desired, config = self._kept
        self._store.prepare()
        self._store.stage(generation.number, desired=desired, config=config)
        self._store.commit(generation)
        self._store.write_config(config)
        self._intake.record_serial(generation.digest, generation.serial)
