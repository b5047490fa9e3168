"""What every command does with the terminal: the last word, and the outcome whatever became of the word."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any, NoReturn, TextIO, cast

import click

from agent.errors import ExitCode


def print_json(document: object) -> None:
    """One JSON document."""
    click.echo(json.dumps(document, indent=2))


def clear_line() -> None:
    """Wipe the line of progress, where there is a terminal that shows one."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


class _Forgiving:
    """Standard error that loses lines where it cannot be written (a full disk, a reader that has gone): talk only."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Each write has done that."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Open what was closed before the start, so that no file of ours gets its number; make standard error forgiving."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003  # takes no keyword
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123  # for the whole process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # likewise
    # For the whole process, as the two above.
    stderr = sys.stderr if sys.stderr is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stderr = cast("TextIO", _Forgiving(stderr))


def lost(error: OSError, code: ExitCode = ExitCode.USAGE) -> NoReturn:
    """The result could not be written, and is all that the command was for.

    `code`: of a command whose reader has gone, which has read what it wanted (`| head -1`).
    """
    if error.errno == errno.EPIPE:
        os._exit(code)  # the interpreter would try to write it again
    click.echo(f"agent: cannot write to standard output: {error.strerror}", err=True)
    os._exit(ExitCode.USAGE)


def show(text: str | bytes, code: ExitCode) -> None:
    """Print the result of a command that only reads. A reader that has gone leaves its exit code, `code`, as it is."""
    try:
        click.echo(text, nl=False)
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        lost(error, code)


UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)
"""Why a standard stream cannot be written."""


def end(tell: Callable[[], None], code: ExitCode) -> NoReturn:
    """Say it, and exit with the outcome: a full disk or a reader that has gone takes the words, not that."""
    try:
        clear_line()
        tell()
        sys.stdout.flush()
    except OSError:
        os._exit(code)
    sys.exit(code)
