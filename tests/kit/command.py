"""The command line in this process, with standard output and standard error apart."""

from __future__ import annotations

import inspect
from typing import Any

from click.testing import CliRunner, Result

from agent.cli import main

# click 8.1 mixes the two unless it is told not to; 8.2 keeps them apart and knows no such option (its CHANGES).
_APART: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def invoke(*words: str, data: str | bytes | None = None) -> Result:
    """Run `agent WORDS`; an exception that is a bug comes through."""
    return CliRunner(**_APART).invoke(main, list(words), input=data, catch_exceptions=False)
