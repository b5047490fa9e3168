"""Reports outcomes to syslog and to the operator's program. Never waits for either."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping

from agent.host.syslog import DAEMON, to_syslog

COMMAND_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_SAID = 300  # bytes of its output that are logged
_WAITING = 50  # notices that wait for a slow command; later ones are dropped, and said so

_log = logging.getLogger("agent")


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
                code, output = _run(self._command, json.dumps(what).encode())
            except (OSError, subprocess.TimeoutExpired) as error:
                _log.error("notify.command: %s", error)
            else:
                if code != 0:
                    _log.error("notify.command: exit %s: %r", code, output)


def _run(command: str, given: bytes) -> tuple[int, bytes]:
    """Its exit code, and the beginning of what it said on stderr; the rest is read and dropped.

    Raises OSError, TimeoutExpired: it and what it has started are killed then. What it leaves in the background when
    it ends is its own affair.
    """
    end = time.monotonic() + COMMAND_SECONDS
    process = subprocess.Popen(  # noqa: S603  # the administrator's own program, no shell
        [command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    output, more = b"", b"-"
    with process.stderr as errors:
        with contextlib.suppress(BrokenPipeError), process.stdin as door:  # it need not read
            door.write(given)  # a few KB: less than a pipe holds
        while process.poll() is None:
            if time.monotonic() > end:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise subprocess.TimeoutExpired(command, COMMAND_SECONDS)
            if more and select.select([errors], [], [], _LOOK_SECONDS)[0]:
                output = (output + (more := errors.read(65_536)))[:_SAID]
            elif not more:  # it has closed stderr, and goes on
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
        if more and select.select([errors], [], [], 0)[0]:
            output = (output + errors.read(65_536))[:_SAID]
    return process.returncode, output


def line(what: Mapping[str, object]) -> str:
    """`outcome=committed generation=42 message="..."`: every value a word or in quotes, all of it printable."""
    return " ".join(f"{key}={_word(value)}" for key, value in what.items() if value not in (None, ""))


def _word(value: object) -> str:
    text = str(value)
    return text if text.replace("_", "").replace("-", "").replace(".", "").isalnum() else json.dumps(text[:1_000])
