"""Status, history and plans as people read them in a terminal. Text in, text out; colour only where asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from attrs import asdict

from agent.desired.state import Key
from agent.haproxy.plan import Plan, Runtime, Unchanged
from agent.proxy_protocol.canary import CanaryResult
from agent.proxy_protocol.greetings import ProbeResult, Question, mismatch
from agent.proxy_protocol.record import Handshake
from agent.reconcile.event import Event
from agent.reconcile.generation import Generation
from agent.view.assemble import event_status, handshake_status
from agent.view.status import BindStatus, HandshakeStatus, Status, as_json, moment, when

_PRESERVED = {True: "yes", False: "no", None: "unknown"}
_COLOURS = {"up": "green", "listening": "green", "degraded": "yellow", "quarantined": "magenta"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they must be; the last one as long as it likes."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(click.unstyle(line[column])) for line in lines) for column in range(len(head))]
    return "".join(
        "  ".join(
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def _state(word: str) -> str:
    return click.style(word, fg=_COLOURS.get(word, "red"))


def status(now: Status, *, running: bool) -> str:
    """The status, in a screenful. `running`: whether an agent holds these folders now."""
    text = now.headline + "\n\n"
    text += table(
        ("FRONTEND", "STATE", "SERVERS", "SESSIONS", "ADDRESSES"),
        (
            (
                frontend.name,
                _state(frontend.state),
                f"{frontend.servers_up}/{frontend.servers_total}",
                frontend.sessions,
                ", ".join(_bind(bind) for bind in frontend.binds),
            )
            for frontend in now.frontends
        ),
    )
    text += "\n" + table(
        ("BACKEND", "SERVER", "ADDRESS", "STATUS", "CHECK", "PROXY", "SESSIONS"),
        (
            (
                backend.name,
                server.name,
                server.address,
                server.status,
                server.check,
                _proxy(server.handshake),
                server.sessions,
            )
            for backend in now.backends
            for server in backend.servers
        ),
    )
    return text + "\n" + "\n".join(_facts(now, running=running)) + "\n"


def _proxy(handshake: HandshakeStatus | None) -> str:
    if handshake is None:
        return "-"
    return click.style(handshake.result, fg="red" if handshake.mismatch else None)


def _bind(bind: BindStatus) -> str:
    return bind.address if bind.state == "listening" else f"{bind.address} ({bind.state}: {bind.reason})"


def _facts(now: Status, *, running: bool) -> Iterable[str]:
    if live := now.live:
        serial = f", serial {live.serial}" if live.serial is not None else ""
        yield f"live:    generation {live.generation}{serial}, sha256 {live.digest[:12]}, since {live.since}"
    if haproxy := now.haproxy:
        # Not "up N s": that would be as old as the status, and this stays true.
        since = when(moment(now.at) - haproxy.uptime)
        yield f"haproxy: {haproxy.version}, pid {haproxy.pid}, up since {since}"
    else:
        yield "haproxy: " + click.style("does not answer", fg="red")
    if running:
        yield f"agent:   {now.agent.version}, pid {now.agent.pid}"
    else:
        yield "agent:   " + click.style("not running", fg="red") + " (start it with `agent run`, or its service)"
    if now.outcome is not None:
        digest = now.desired.digest if now.desired else None
        yield f"last:    {now.outcome}, desired sha256 {(digest or 'none')[:12]}"
    if held := now.held:
        reason = f"sha256 {held.digest[:12]} since {held.since}: {held.reason}"
        yield f"held:    {reason} (change it, or `agent apply --retry`)"
    if now.message:
        yield f"why:     {now.message}"
    if now.remedy:
        yield f"do:      {now.remedy}"
    for event in now.events[-3:]:
        times = f" ({event.count} times)" if event.count > 1 else ""
        yield f"event:   {event.at} {event.message}{times}"
    for finding in now.findings:
        where = f"{finding.where}: " if finding.where else ""
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        yield f"note:    {where}{finding.message}{remedy}"


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


def history(generations: Sequence[Generation], events: Sequence[Event] = ()) -> str:
    """What was live and when, and what happened meanwhile, newest first."""
    newest = generations[-1].number if generations else None
    rows: list[tuple[float, tuple[object, ...]]] = [
        (
            generation.at,
            (
                f"{generation.number}{' *' if generation.number == newest else ''}",
                when(generation.at),
                generation.outcome if generation.restores is None else "rollback",
                "-" if generation.serial is None else generation.serial,
                generation.digest[:12],
                f"{generation.seconds * 1000:.0f} ms",
                _why(generation),
            ),
        )
        for generation in generations
    ]
    rows += [
        (
            event.at,
            ("-", when(event.at), event.kind, "-", "-", f"x{event.count}" if event.count > 1 else "-", event.message),
        )
        for event in events
    ]
    return table(
        ("GENERATION", "SINCE", "OUTCOME", "SERIAL", "SHA256", "TOOK", "WHY"),
        (row for _, row in sorted(rows, key=lambda entry: entry[0], reverse=True)),
    )


def _why(generation: Generation) -> str:
    why = _reasons(generation.reasons)
    return why if generation.restores is None else f"generation {generation.restores} was put back: {why}"


def history_document(generations: Sequence[Generation], events: Sequence[Event]) -> list[dict[str, Any]]:
    """The same for programs, oldest first."""
    entries = [
        (generation.at, {"kind": "generation", **asdict(generation), "at": when(generation.at)})
        for generation in generations
    ]
    entries += [(event.at, {"kind": "event", **as_json(event_status(event))}) for event in events]
    return [entry for _, entry in sorted(entries, key=lambda entry: entry[0])]


def _reasons(reasons: Sequence[str]) -> str:
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")


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
