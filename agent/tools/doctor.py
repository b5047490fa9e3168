"""`agent doctor`: is this host ready. What it looks at is in `checks`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from agent import settings
from agent.errors import ExitCode, UsageError
from agent.host import listeners
from agent.host.subprocesses import output_of
from agent.tools import basetools, checks
from agent.tools.checks import Found, Scene

_SECONDS = 10.0  # for each of the system's own tools
_MARKS = {"ok": "green", "note": "cyan", "look": "yellow", "broken": "red"}


def report(chosen: Path | None, *, as_json: bool) -> tuple[str, ExitCode]:
    """What was found, and the exit code: 4 where something is broken, 6 where something needs attention."""
    findings = list(examine(chosen))
    code = exit_code(findings)
    return (_as_json(findings, code) if as_json else _as_text(findings)), code


def _as_json(findings: Sequence[Found], code: ExitCode) -> str:
    levels = [
        {"level": finding.level, "what": finding.what, "message": finding.message, "remedy": finding.remedy}
        for finding in findings
    ]
    return json.dumps({"exit_code": int(code), "findings": levels}, indent=2) + "\n"


def _as_text(findings: Sequence[Found]) -> str:
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        mark = click.style(f"{finding.level:<7}", fg=_MARKS[finding.level])
        lines.append(f"{mark}{finding.what:<{width}}  {finding.message}")
        if finding.remedy:
            lines.append(f"{'':<{width + 9}}{finding.remedy}")
    bad = sum(finding.level in ("look", "broken") for finding in findings)
    return "\n".join([*lines, f"{bad} of {len(findings)} findings need attention." if bad else "All is well."]) + "\n"


def exit_code(findings: Sequence[Found]) -> ExitCode:
    """By the gravest of them."""
    levels = {finding.level for finding in findings}
    return ExitCode.REFUSED if "broken" in levels else ExitCode.DEGRADED if "look" in levels else ExitCode.LIVE


def examine(chosen: Path | None) -> Iterator[Found]:
    """All checks on this host."""
    try:
        loaded = settings.load(chosen)
    except UsageError as error:
        remedy = error.remedy or "mend agent.toml"
        yield Found(level="broken", what="settings", message=str(error), remedy=remedy)
        return
    state, findings = checks.desired(loaded)
    scene = Scene(
        settings=loaded,
        ask=ask,
        listening=listeners.listeners(),
        state=state,
        addresses=basetools.addresses(ask(["ifconfig"])),
        now=time.time(),
    )
    yield from checks.checked(scene, findings)


def ask(arguments: Sequence[str]) -> str:
    """What a tool prints; "" where it is not here, fails or hangs."""
    return output_of(arguments, seconds=_SECONDS)
