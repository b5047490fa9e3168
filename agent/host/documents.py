"""A document as a command gets it: the desired file, another file or standard input; and the signature beside it."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import NoReturn

from agent.errors import InvalidError, PolicyError, UsageError, Violation
from agent.host.files import read_regular
from agent.settings import Settings

GATE_SECONDS = 30.0  # for a whole document to arrive, where the caller names no time
MOST_OF_A_SIGNATURE = 65_536  # bytes that are read; fewer are taken


def read(path: Path, settings: Settings) -> bytes:
    """At most one byte more than is taken, so that a huge or endless file costs nothing.

    Raises InvalidError for a configured file that is not there, UsageError for one that was named or cannot be read.
    """
    most = settings.sync.max_bytes + 1
    try:
        if path == settings.desired:
            return read_regular(path, most)
        if str(path) == "-":
            if sys.stdin is None:
                raise UsageError("standard input is closed")
            return sys.stdin.buffer.read(most)
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        if path == settings.desired:
            raise InvalidError(str(path), (Violation((), "there is no such file"),)) from None
        raise UsageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def read_in_time(path: Path, settings: Settings, seconds: float) -> bytes:
    """A client whose network is gone sends no end: the gate does not wait for it."""

    def late(_number: int, _frame: object) -> NoReturn:
        raise PolicyError(f"no whole document within {seconds:g} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return read(path, settings)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def read_signature(path: Path) -> bytes:
    """The signature that stands beside a document, b"" where there is none."""
    if str(path) == "-":
        return b""
    with contextlib.suppress(OSError):
        return read_regular(path.with_name(f"{path.name}.sig"), MOST_OF_A_SIGNATURE)
    return b""


def label(path: Path) -> str:
    """A file as messages name it."""
    return "<stdin>" if str(path) == "-" else str(path)
