"""Telling the system, and whoever the operator chose, what became of a change. Never in the way of anything."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import socket
import subprocess
import threading
from collections.abc import Mapping

SYSLOG = ("/var/run/log", "/dev/log")  # FreeBSD, Linux
COMMAND_SECONDS = 10.0
_WAITING = 50  # notices that wait for a slow command; later ones are dropped, and said so

_log = logging.getLogger("agent")


AUTH, DAEMON = 4, 3
"""Facilities (RFC 5424, 6.2.1)."""


def to_syslog(logger: logging.Logger, ident: str, facility: int) -> None:
    """Lines of this logger go to syslog from here on, where there is one."""
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(_Syslog(ident, facility))


class _Syslog(logging.Handler):
    """The standard library's own waits for a syslogd that reads nothing, for ever (M); this one drops the line."""

    def __init__(self, ident: str, facility: int) -> None:
        super().__init__()
        self._ident, self._facility = ident, facility

    def emit(self, record: logging.LogRecord) -> None:
        severity = 4 if record.levelno >= logging.WARNING else 6
        said = f"<{self._facility * 8 + severity}>{self._ident}[{os.getpid()}]: {record.getMessage()}"
        for place in SYSLOG:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
                door.settimeout(0)
                door.connect(place)
                door.send(said.encode(errors="replace"))
                return


class Notices:
    """One line to syslog, and JSON on the standard input of the operator's `command` ("": there is none)."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._syslog = logging.getLogger("agent.notice")
        to_syslog(self._syslog, "edgeagent", DAEMON)
        self._mailbox: queue.Queue[Mapping[str, object]] = queue.Queue(_WAITING)
        if command:
            threading.Thread(target=self._run, name="notice", daemon=True).start()

    def tell(self, what: Mapping[str, object]) -> None:
        """Takes no time."""
        self._syslog.info("%s", line(what))
        if not self._command:
            return
        try:
            self._mailbox.put_nowait(what)
        except queue.Full:
            _log.error("notify.command is too slow: a notice was dropped")

    def _run(self) -> None:
        while True:
            what = self._mailbox.get()
            try:
                done = subprocess.run(  # noqa: S603  # the administrator's own program, no shell
                    [self._command],
                    input=json.dumps(what).encode(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=COMMAND_SECONDS,
                    cwd="/",
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                _log.error("notify.command: %s", error)
            else:
                if done.returncode != 0:
                    _log.error("notify.command: exit %s: %r", done.returncode, done.stderr[:300])


def line(what: Mapping[str, object]) -> str:
    """`outcome=committed generation=42 message="..."`: every value a word or in quotes, all of it printable."""
    return " ".join(f"{key}={_word(value)}" for key, value in what.items() if value not in (None, ""))


def _word(value: object) -> str:
    text = str(value)
    return text if text.replace("_", "").replace("-", "").replace(".", "").isalnum() else json.dumps(text[:1_000])
