"""Status, history and plans as people read them in a terminal. Text in, text out; colour only where asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from agent.desired.identity import Key
from agent.errors import Refusal
from agent.haproxy.plan import Plan, Runtime, Unchanged
from agent.proxy_protocol.canary import CanaryResult
from agent.proxy_protocol.greetings import ProbeResult, Question, mismatch
from agent.proxy_protocol.record import Handshake
from agent.view.assemble import handshake_status, refusal_status
from agent.view.status import as_json
from agent.view.status_table import table

_PRESERVED = {True: "yes", False: "no", None: "unknown"}


def handshakes(questions: Sequence[Question], results: Mapping[Key, ProbeResult]) -> str:
    """What each server was found to be."""
    return table(
        ("BACKEND", "SERVER", "ADDRESS", "WANTED", "FOUND", "TOOK", "SEEN"),
        (
            (
                *question.key,
                question.address,
                f"{question.application} {question.version}",
                click.style(result.result, fg="red" if mismatch(question.version, result.result) else None),
                f"{result.milliseconds} ms",
                result.detail,
            )
            for question in questions
            for result in (results[question.key],)
        ),
    )


def proofs(handshakes: Sequence[Handshake]) -> str:
    """What the servers that are new in a change were found to be."""
    return table(
        ("  BACKEND", "SERVER", "ADDRESS", "WANTED", "FOUND", "SEEN"),
        (
            (
                f"  {handshake.backend}",
                handshake.server,
                handshake.address,
                f"{handshake.application} {handshake.version}",
                click.style(handshake.result, fg="red" if mismatch(handshake.version, handshake.result) else None),
                handshake.detail,
            )
            for handshake in handshakes
        ),
    )


def canary_results(results: Sequence[CanaryResult]) -> str:
    """The results of canary probes."""
    return table(
        ("FRONTEND", "ADDRESS", "USED", "SEEN", "PRESERVED", "TOOK", "WHAT"),
        (
            (
                result.frontend,
                result.address,
                result.used or "-",
                result.reported or "-",
                click.style(_PRESERVED[result.preserved], fg=None if result.preserved else "red"),
                f"{result.milliseconds} ms",
                result.detail,
            )
            for result in results
        ),
    )


def coloured_diff(text: str) -> str:
    """A unified diff as terminals show it."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    return "".join(click.style(line, fg=colours.get(line[:1])) for line in text.splitlines(keepends=True))


def plan_document(step: Plan, difference: str, sessions: int, handshakes: Sequence[Handshake] = ()) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "plan": type(step).__name__.lower(),
        "reasons": [] if isinstance(step, Unchanged) else list(step.reasons),
        "commands": [str(command) for command in step.commands] if isinstance(step, Runtime) else [],
        "sessions": sessions,
        "handshakes": [
            {
                "backend": handshake.backend,
                "server": handshake.server,
                "address": handshake.address,
                **as_json(handshake_status(handshake)),
            }
            for handshake in handshakes
        ],
        "diff": difference,
    }


def refused_document(refused: Iterable[Refusal]) -> list[object]:
    """The parts of a document for which it would be refused, as status.json has them."""
    return [as_json(refusal_status(refusal)) for refusal in refused]


def plan(
    step: Plan, difference: str, sessions: int, handshakes: Sequence[Handshake] = (), *, running: bool = True
) -> str:
    """What would happen, why, what new servers are, and the difference it makes."""
    asked = f"\nServers that are new, asked as HAProxy would:\n{proofs(handshakes)}" if handshakes else ""
    if isinstance(step, Unchanged):
        return "No change: HAProxy already does what this says.\n" + asked
    if isinstance(step, Runtime):
        text = "Runtime: applied to the running HAProxy without a reload; no session is touched.\n"
        text += "".join(f"  - {reason}\n" for reason in step.reasons)
        text += "\n" + "".join(f"  > {command}\n" for command in step.commands) + asked
        return text + (f"\n{coloured_diff(difference)}" if difference else "")
    text = "Reload: a new HAProxy process takes the listening sockets over; no connection is refused.\n"
    if not running:
        text = "Start: no HAProxy runs yet; one is started.\n"
    text += "".join(f"  - {reason}\n" for reason in step.reasons) + asked
    if sessions:
        text += (
            f"Sessions at risk: none at once; {sessions} stay with the old process until they end or hard-stop-after.\n"
        )
    return text + (f"\n{coloured_diff(difference)}" if difference else "")
