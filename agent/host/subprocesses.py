"""Programs that are run and listened to, bounded in time. Argument lists only, never a shell."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from attrs import frozen

from agent.errors import UsageError

SECONDS = 60.0  # for `haproxy -c` and for `-D` to let go; both take far less at thousands of frontends
_MOST = 20_000


@frozen
class Completed:
    """A program that has ended."""

    code: int
    """exit code"""
    text: str
    """both output streams together"""


@frozen
class Program:
    """A program that runs. Its talk goes to a file: a daemon that kept a pipe open would keep us waiting."""

    child: subprocess.Popen[bytes]
    _talk: IO[bytes]

    @property
    def output(self) -> str:
        """What it has said so far."""
        self._talk.seek(0)
        return self._talk.read(_MOST).decode(errors="replace")

    def wait(self) -> Completed:
        """Its end, after SECONDS at the latest."""
        # Not `wait(timeout)`: it looks up to 50 ms late, which is as long as HAProxy takes.
        bound = threading.Timer(SECONDS, self.child.kill)
        bound.daemon = True
        bound.start()
        try:
            code = self.child.wait()
        finally:
            late = not bound.is_alive()
            bound.cancel()
        return Completed(code, f"{self.output}\nno end after {SECONDS:.0f} s" if late else self.output)


def _scratch() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no folder to write in: what it says is lost, but HAProxy must start all the same
        return Path(os.devnull).open("w+b")


@contextlib.contextmanager
def started(argv: Sequence[str]) -> Iterator[Program]:
    """Start a program; whatever happens, it has ended afterwards. Raises UsageError where it cannot be started."""
    with _scratch() as run:
        try:
            child = subprocess.Popen(  # noqa: S603  # an argument list, no shell; paths are the administrator's
                argv,
                stdin=subprocess.DEVNULL,
                stdout=run,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the agent is not meant for HAProxy
                cwd="/",
            )
        except OSError as error:
            raise UsageError(f"{argv[0]} does not run: {error.strerror}") from error
        try:
            yield Program(child, run)
        finally:
            child.kill()
            child.wait()


def run(argv: Sequence[str]) -> Completed:
    """Run to the end. Raises UsageError where it cannot be started."""
    with started(argv) as program:
        return program.wait()


def output_of(argv: Sequence[str], *, seconds: float) -> str:
    """What one of the system's own tools prints; "" where it is not here, fails, or takes longer than `seconds`."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(  # noqa: S603  # fixed words
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={"PATH": "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin", "LC_ALL": "C"},
        )
        return done.stdout if done.returncode == 0 else ""
    return ""
