"""The status as people read it in a terminal. Apart from `tables`, which knows plans: `agent status` starts fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from agent.view.status import BindStatus, HandshakeStatus, ServerStatus, Status, moment, when

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
    owned = any(frontend.owner for frontend in now.frontends)
    text += table(
        ("FRONTEND", "STATE", "SERVERS", "SESSIONS", "ADDRESSES", *(["OWNER"] if owned else [])),
        (
            (
                frontend.name,
                _state(frontend.state),
                f"{frontend.servers_up}/{frontend.servers_total}",
                frontend.sessions,
                ", ".join(_bind(bind) for bind in frontend.binds),
                *([frontend.owner] if owned else []),
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
                _address(server),
                f"{server.status}, drained" if server.drained else server.status,
                server.check,
                _proxy(server.handshake),
                server.sessions,
            )
            for backend in now.backends
            for server in backend.servers
        ),
    )
    return text + "\n" + "\n".join(_facts(now, running=running)) + "\n"


def _address(server: ServerStatus) -> str:
    named = server.host_name and server.status != "unresolved"
    return f"{server.address} ({server.host_name})" if named else server.address


def _proxy(handshake: HandshakeStatus | None) -> str:
    if handshake is None:
        return "-"
    return click.style(handshake.result, fg="red" if handshake.mismatch else None)


def _bind(bind: BindStatus) -> str:
    return bind.address if bind.state == "listening" else f"{bind.address} ({bind.state}: {bind.reason})"


def _by(actor: str) -> str:
    return f", by {actor}" if actor else ""


def _facts(now: Status, *, running: bool) -> Iterable[str]:
    if live := now.live:
        serial = f", serial {live.serial}" if live.serial is not None else ""
        since = f", since {live.since}{_by(live.actor)}"
        yield f"live:    generation {live.generation}{serial}, sha256 {live.digest[:12]}{since}"
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
        by = _by(now.desired.actor) if now.desired else ""
        yield f"last:    {now.outcome}, desired sha256 {(digest or 'none')[:12]}{by}"
    if held := now.held:
        reason = f"sha256 {held.digest[:12]} since {held.since}: {held.reason}"
        yield f"held:    {reason} (change it, or `agent apply --retry`)"
    if now.message:
        yield f"why:     {now.message}"
    if now.remedy:
        yield f"do:      {now.remedy}"
    for event in now.events[-3:]:
        times = f" ({event.count} times)" if event.count > 1 else ""
        yield f"event:   {event.at} {event.message}{times}{_by(event.actor)}"
    for finding in now.findings:
        where = f"{finding.where}: " if finding.where else ""
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        yield f"note:    {where}{finding.message}{remedy}"
