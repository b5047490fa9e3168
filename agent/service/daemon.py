"""When to reconcile: after a hint from the folder, a signal, a tick. What is done then is `loop`'s.

One thread decides; the watch and the signals only put a word into its mailbox.
"""

from __future__ import annotations

import logging
import queue
import signal
import time
from collections.abc import Callable
from types import FrameType

from attrs import frozen

from agent.errors import AgentError
from agent.host.file_watcher import Watch, watching
from agent.host.file_writes import Writes
from agent.settings import Settings

HINT, LOOK, STOP = "hint", "look", "stop"
HEALTH_SECONDS = 1.0  # how soon a dead HAProxy is noticed
DEBOUNCE_CEILING = 20  # times the debounce: a file that never comes to rest is read all the same

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Service:
    """The loop of `agent run`, around what the wiring gives it."""

    settings: Settings
    """of this host"""
    reconcile: Callable[[], float]
    """makes the desired state live, or returns in how many seconds that can be tried again"""
    changed: Callable[[], bool]
    """whether the file is another one than at that time"""
    healthy: Callable[[], bool]
    """whether HAProxy answers"""
    writing: Callable[[], float] = lambda: 0.0
    """for how many seconds more the file must not be read, because it is being written"""
    writes: Writes | None = None
    """receives every event about the file"""
    keep_lock: Callable[[], bool] = lambda: False
    """raises LockLostError where another agent has the folders now; returns whether they were made anew"""
    report: Callable[[str], None] = lambda _: None
    """tells the service manager: `READY=1` once it has looked, `STOPPING=1`"""
    looked: Callable[[], bool] = lambda: True
    """whether anything is known of the desired state: a file that is being written is not read yet"""

    def run(self) -> None:
        """Until SIGTERM or SIGINT: the step under way is finished, HAProxy goes on serving."""
        # SimpleQueue.put is reentrant: safe in a signal handler, where an Event or a Lock could deadlock.
        mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()

        def received(number: int, _: FrameType | None) -> None:
            mailbox.put(LOOK if number == signal.SIGHUP else STOP)

        before = {number: signal.signal(number, received) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
        try:
            with watching(self.settings.desired, lambda: mailbox.put(HINT), self.writes) as watch:
                self._loop(mailbox, watch)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        _log.info("stopping; HAProxy goes on serving")

    def _loop(self, mailbox: queue.SimpleQueue[str], watch: Watch) -> None:
        resync = self.settings.apply.resync / 1000
        due = time.monotonic() + self._reconcile(resync)
        ready = self._ready()
        checkup = time.monotonic() + HEALTH_SECONDS
        while True:
            word = _next(mailbox, max(min(checkup, due) - time.monotonic(), 0))
            if word == LOOK or (word == HINT and not (self.writes is not None and self.writes.by_rename())):
                word = self._settle(mailbox, word)
            if word == STOP:
                self.report("STOPPING=1")
                return
            anew = self.keep_lock()
            now = time.monotonic()
            look = word == LOOK or now >= due or anew
            if word == HINT and not look and self._asked(self.changed):
                wait = self.writing()
                due = min(due, now + wait)
                look = wait <= 0
            if now >= checkup:  # a converge that is due, or that waits for a lock, does not take its place
                look = not self._asked(self.healthy, otherwise=True) or look
                watch.renew()
                checkup = now + HEALTH_SECONDS
            if look:
                due = time.monotonic() + self._reconcile(resync)
            ready = ready or self._ready()

    def _ready(self) -> bool:
        looked = self.looked()
        if looked:
            self.report("READY=1")
        return looked

    def _asked(self, what: Callable[[], bool], *, otherwise: bool = False) -> bool:
        """`otherwise`: what is assumed where it cannot be found out just now."""
        try:
            return what()
        except AgentError as error:
            _log.error("%s", error)
            return otherwise

    def _settle(self, mailbox: queue.SimpleQueue[str], first: str) -> str:
        """Wait until nothing has come for the debounce, but not for ever. STOP at once; a signal outdoes hints."""
        strongest = first
        quiet = self.settings.apply.debounce / 1000
        ceiling = time.monotonic() + quiet * DEBOUNCE_CEILING
        while (left := ceiling - time.monotonic()) > 0:
            word = _next(mailbox, min(quiet, left))
            if word is None:
                break
            if word == STOP:
                return STOP
            strongest = LOOK if word == LOOK else strongest
        return strongest

    def _reconcile(self, resync: float) -> float:
        """Returns in how many seconds to look again. Never waits for a lock: a signal must be handled meanwhile."""
        try:
            return self.reconcile() or resync
        except AgentError as error:
            # Of this host (a full disk, no haproxy): what serves goes on, and the next tick tries again.
            _log.error("%s%s", error, f" ({error.remedy})" if error.remedy else "")
            return resync


def _next(mailbox: queue.SimpleQueue[str], timeout: float) -> str | None:
    try:
        return mailbox.get(timeout=timeout)
    except queue.Empty:
        return None
