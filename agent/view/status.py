"""status.json, schema 1: the one document that `agent status`, `agent sync` and other people's scripts read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from attrs import frozen

from agent.errors import Finding, Violation, dotted
from agent.model import canary
from agent.model.canary import Arrival
from agent.model.desired import Backend, DesiredState, Frontend, Server
from agent.model.generation import Asked, Generation, Handshake, Hold, Quarantined
from agent.model.handshake import mismatch
from agent.model.observed import FrontendStats, Observation, ServerStats
from agent.model.report import Report
from agent.model.schema import Endpoint
from agent.view.insync import NotInSync

SCHEMA = 1
_NAMED = 5  # frontends in the headline
_MOST = 100  # violations and findings told one by one; a junk file can have as many as it has lines


@frozen(kw_only=True)
class Agent:
    """Who wrote the status: its version, pid, since when (seconds since the epoch), and as which command."""

    version: str
    pid: int
    started: float
    command: str


def when(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC: `2026-11-24T03:44:52Z`."""
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> float:
    """The reverse of `when`. Raises ValueError."""
    return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC).timestamp()


def document(
    *,
    agent: Agent,
    report: Report | None,
    live: Generation | None,
    state: DesiredState | None,
    hold: Hold | None,
    observed: Observation | None,
    now: float,
    handshakes: Mapping[Asked, Handshake] | None = None,
    arrivals: Sequence[Arrival] = (),
    file_id: tuple[int, int] | None = None,
    counters: dict[str, int] | None = None,
    trouble: NotInSync | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """All of status.json.

    `report`: of the last reconcile, None before the first. `live`: the live generation; `state`: its state, None where
    this version of the agent cannot read it. `observed` None: HAProxy does not answer. `trouble`: why the desired state
    is not live, None where it is. `events`: what happened lately, oldest first.
    """
    index = Index.of(observed)
    aside = {(one.frontend, one.address): one for one in live.quarantined} if live else {}
    pools = {one.name: one for one in state.backends} if state else {}
    return {
        "schema": SCHEMA,
        "at": when(now),
        "agent": {
            "version": agent.version,
            "pid": agent.pid,
            "command": agent.command,
            "started": when(agent.started),
        },
        "desired": _desired(report, file_id),
        "live": None if live is None else _live(live),
        "outcome": report.outcome.value if report else None,
        "exit_code": int(report.exit_code) if report else None,
        "message": report.message if report else "",
        "remedy": report.remedy if report else "",
        "in_sync": trouble is None,
        "not_in_sync": None if trouble is None else trouble.document(),
        "held": None if hold is None else {"digest": hold.digest, "reason": hold.reason, "since": when(hold.since)},
        "violations": [_violation(report, one) for one in report.violations[:_MOST]] if report else [],
        "violations_total": report.violations_total if report else 0,
        "findings": [_finding(one) for one in (report.findings if report else ())[:_MOST]]
        + [_finding(one) for one in canary.findings(arrivals)[:_MOST]],
        "frontends": [_frontend(one, pools, index, aside) | _canary(one, arrivals) for one in state.frontends]
        if state
        else [],
        "backends": [_backend(one, index, handshakes or {}) for one in state.backends] if state else [],
        "haproxy": None if observed is None else _haproxy(observed),
        "timings": dict(report.timings) if report else {},
        "plan": report.plan if report else None,
        "reasons": list(report.reasons[:_MOST]) if report else [],
        "counters": counters or {},
        "events": list(events),
    }


def headline(document: dict[str, Any]) -> str:
    """What is wrong with the desired state, if anything, and what serves: all frontends, or which do not."""
    trouble, live = document.get("not_in_sync"), document["live"]
    if trouble is None:
        return _serving(document)
    if live is None:
        return f"The desired state is not live: {trouble['text']}. Nothing is live."
    return (
        f"The desired state is not live: {trouble['text']}. "
        f"Generation {live['generation']} is live: {_serving(document)}"
    )


def _serving(document: dict[str, Any]) -> str:
    """One sentence: all are serving, or which is not."""
    frontends = document["frontends"]
    if not frontends:
        return "Nothing is live." if document["live"] is None else "What is live has no frontend."
    bad = [one for one in frontends if one["state"] != "up"]
    if not bad:
        return f"All {len(frontends)} frontends are serving." if len(frontends) > 1 else "The one frontend is serving."
    names = ", ".join(f"{one['name']} is {one['state']} ({why(one)})" for one in bad[:_NAMED])
    rest = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"{len(frontends) - len(bad)} of {len(frontends)} frontends are fully serving; {names}{rest}."


def why(frontend: dict[str, Any]) -> str:
    """Why it is not up: its addresses that do not listen, else its servers that are not up."""
    closed = [f"{one['address']}: {one['reason']}" for one in frontend["binds"] if one["state"] != "listening"]
    rest = f" and {len(closed) - 2} more" if len(closed) > 2 else ""
    up, total = frontend["servers_up"], frontend["servers_total"]
    return "; ".join(closed[:2]) + rest or f"{up} of {total} servers up"


def _desired(report: Report | None, file_id: tuple[int, int] | None) -> dict[str, Any] | None:
    """`file_id`: inode and modification time (ns) of the very file that the report is about."""
    if report is None:
        return None
    return {
        "file": report.file,
        "digest": report.digest,
        "name": report.name,
        "serial": report.serial,
        "read": when(report.at),
        "file_id": None if file_id is None else list(file_id),
    }


def _live(live: Generation) -> dict[str, Any]:
    return {
        "generation": live.number,
        "digest": live.digest,
        "name": live.name,
        "serial": live.serial,
        "since": when(live.at),
    }


def _violation(report: Report, one: Violation) -> dict[str, Any]:
    return {"file": report.file, "line": one.line, "path": dotted(one.path), "message": one.message}


def _finding(one: Finding) -> dict[str, Any]:
    return {"where": one.where, "line": one.line, "message": one.message, "remedy": one.remedy}


def _haproxy(seen: Observation) -> dict[str, Any]:
    process = seen.process
    return {
        "pid": process.pid,
        "version": process.version,
        "uptime": process.uptime,
        "generation": process.generation,
    }


@frozen(kw_only=True)
class Index:
    """An observation by name. `answered`: whether there was one."""

    answered: bool
    frontends: dict[str, FrontendStats]
    servers: dict[str, dict[str, ServerStats]]

    @classmethod
    def of(cls, seen: Observation | None) -> Index:
        """Of one look at HAProxy, or of none."""
        servers: dict[str, dict[str, ServerStats]] = {}
        for one in seen.servers if seen else ():
            servers.setdefault(one.backend, {})[one.name] = one
        frontends = {one.name: one for one in seen.frontends} if seen else {}
        return cls(answered=seen is not None, frontends=frontends, servers=servers)

    def count(self, backend: Backend) -> tuple[int, int]:
        """Servers that get clients, and servers that should: those taken out on purpose count in neither."""
        if not self.answered:
            return 0, sum(not server.disabled for server in backend.servers)
        wanted = [one for one in self.servers.get(backend.name, {}).values() if one.wanted]
        return sum(one.up for one in wanted), len(wanted)


def _frontend(
    frontend: Frontend, pools: dict[str, Backend], index: Index, aside: dict[tuple[str, str], Quarantined]
) -> dict[str, Any]:
    found = index.frontends.get(frontend.name)
    is_open = found is not None and found.open
    counts = [index.count(pools[name]) for name in frontend.backends]
    gone = [one for one in frontend.binds if (frontend.name, str(one)) in aside]
    return {
        "name": frontend.name,
        "state": frontend_state(frontend, gone, counts, is_open=is_open),
        "binds": [
            _bind(str(endpoint), aside.get((frontend.name, str(endpoint))), found, index) for endpoint in frontend.binds
        ],
        "backends": list(frontend.backends),
        "routes": [
            *({"sni": list(one.sni), "backend": one.backend} for one in frontend.routes),
            # Clients that send no name, or match no route; null: they are refused.
            {"sni": [], "backend": frontend.backend},
        ],
        "servers_up": sum(up for up, _ in counts),
        "servers_total": sum(total for _, total in counts),
        "sessions": found.sessions if found else 0,
    }


def _canary(frontend: Frontend, arrivals: Sequence[Arrival]) -> dict[str, Any]:
    """Whether clients' addresses get through, where it was tried; None: nobody knows."""
    return {
        "client_ip_preserved": canary.preserved(arrivals, frontend.name),
        "canary": [arrival_document(one) for one in arrivals if one.frontend == frontend.name],
    }


def arrival_document(one: Arrival) -> dict[str, Any]:
    """What came of one passage through a frontend, for programs."""
    return {
        "address": one.address,
        "used": one.used,
        "told": one.told,
        "preserved": one.preserved,
        "detail": one.detail,
        "milliseconds": one.milliseconds,
    }


def _bind(address: str, aside: Quarantined | None, found: FrontendStats | None, index: Index) -> dict[str, Any]:
    if aside is not None:
        return {"address": address, "state": "quarantined", "reason": aside.detail}
    if found is not None and found.open:
        return {"address": address, "state": "listening", "reason": ""}
    return {"address": address, "state": "closed", "reason": _why_closed(found, index)}


def frontend_state(
    frontend: Frontend, gone: Collection[Endpoint], counts: list[tuple[int, int]], *, is_open: bool
) -> str:
    """`up`, `degraded`, `down` or `quarantined`. `gone`: its addresses that are; `counts`: see Index.count."""
    if len(gone) == len(frontend.binds):
        return "quarantined"
    state = _state(counts) if is_open else "down"
    return "degraded" if gone and state == "up" else state


def _state(counts: list[tuple[int, int]]) -> str:
    """Of an open frontend. `up`: all servers get clients; `degraded`: not all; `down`: none does."""
    if not any(up for up, _ in counts):
        return "down"
    return "up" if all(up == total for up, total in counts) else "degraded"


def _why_closed(found: FrontendStats | None, index: Index) -> str:
    if not index.answered:
        return "HAProxy does not answer"
    return "not in the running HAProxy" if found is None else "the frontend is stopped in HAProxy"


def _backend(backend: Backend, index: Index, handshakes: Mapping[Asked, Handshake]) -> dict[str, Any]:
    found = index.servers.get(backend.name, {})
    up, total = index.count(backend)
    return {
        "name": backend.name,
        "application": backend.application.value,
        "proxy_protocol": backend.proxy_protocol.value,
        "servers_up": up,
        "servers_total": total,
        "servers": [
            {
                "name": server.name,
                "address": str(server.address),
                "weight": server.weight,
                "backup": server.backup,
                "status": found[server.name].status if server.name in found else "unknown",
                "check": found[server.name].check if server.name in found else "",
                "sessions": found[server.name].sessions if server.name in found else 0,
                "handshake": _handshake(handshakes, backend, server),
            }
            for server in backend.servers
        ],
    }


def _handshake(found: Mapping[Asked, Handshake], backend: Backend, server: Server) -> dict[str, Any] | None:
    """What a server was last found to be; None where nobody has asked it as it is now."""
    asked = (backend.name, server.name, str(server.address), backend.application.value, backend.proxy_protocol.value)
    one = found.get(asked)
    return None if one is None else handshake_document(one)


def handshake_document(one: Handshake) -> dict[str, Any]:
    """What a server was found to be, for programs."""
    return {
        "result": one.result,
        "mismatch": mismatch(one.version, one.result),
        "detail": one.detail,
        "subject": one.subject,
        "milliseconds": one.milliseconds,
        "at": when(one.at),
    }
