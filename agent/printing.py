"""What every command does with the terminal: the last word, and the outcome whatever became of the word."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from agent.errors import ExitCode


def print_json(document: object) -> None:
    """One JSON document."""
    click.echo(json.dumps(document, indent=2))


def clear_line() -> None:
    """Wipe the line of progress, where there is a terminal that shows one."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


def end(tell: Callable[[], None], code: ExitCode) -> NoReturn:
    """Say it, and exit with the outcome: a full disk or a reader that has gone takes the words, not that."""
    try:
        clear_line()
        tell()
        sys.stdout.flush()
    except OSError:
        os._exit(code)
    sys.exit(code)
