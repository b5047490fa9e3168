"""Whether a step hurt: *after* against *before*, per frontend. Pure.

Only what served before can get worse; a backend that was down already blocks nothing. Servers that are as they were
are believed at once. New and changed ones are believed when their check, or a TCP probe after the step, says so;
until then the judgement is pending.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from attrs import frozen

from agent.desired.identity import Key
from agent.desired.schema import DesiredState
from agent.errors import Finding
from agent.haproxy.observed import Observation, ServerStats
from agent.reconcile.preflight import ServingBackend, sentences


class Judgement(enum.StrEnum):
    """How a step is judged: nothing got worse, some checks have not ended yet, something got worse."""

    OK = "ok"
    PENDING = "pending"
    REGRESSED = "regressed"


@frozen(kw_only=True)
class Verdict:
    """The judgement of a step."""

    judgement: Judgement
    """OK, PENDING or REGRESSED"""
    reasons: tuple[str, ...] = ()
    """a sentence for everything that is not OK"""


def judge(
    serving: Iterable[ServingBackend],
    after: Observation,
    *,
    state: DesiredState,
    unproven: frozenset[Key],
    probed_open: Mapping[Key, bool],
    stale: frozenset[Key] = frozenset(),
) -> Verdict:
    """`unproven`: servers that are new, moved, or checked in another way.

    `probed_open`: which of them answered just now, of those for which an open port is proof enough. `stale`: servers
    whose last check was of the address they had before.
    """
    is_open = {frontend.name for frontend in after.frontends if frontend.open}
    idle = {
        (backend.name, server.name) for backend in state.backends for server in backend.servers if not server.weight
    }
    servers_of: dict[str, list[ServerStats]] = {}
    for server in after.servers:
        if server.key not in idle:
            servers_of.setdefault(server.backend, []).append(server)
    regressed: list[tuple[ServingBackend, str]] = []
    pending: dict[str, None] = {}
    for before in serving:
        servers = [server for name in before.backends for server in servers_of.get(name, ())]
        judgements = {_server(server, unproven, probed_open, stale) for server in servers}
        names = " or ".join(before.backends)
        if before.frontend not in is_open:
            regressed.append((before, "is not open"))
        elif Judgement.OK in judgements:
            continue
        elif Judgement.PENDING in judgements:
            pending[f"no server of backend {names} has passed a check yet"] = None
        else:
            why = ", ".join(
                f"{stats.name} {stats.status} {stats.check.removeprefix('* ')}".strip() for stats in servers[:5]
            )
            regressed.append((before, f"now no server of backend {names} does: {why}"))
    if regressed:
        reasons = sentences(regressed, singular="served before", plural="served before")
        return Verdict(judgement=Judgement.REGRESSED, reasons=reasons)
    return Verdict(judgement=Judgement.PENDING if pending else Judgement.OK, reasons=tuple(pending))


def _server(
    server: ServerStats, unproven: frozenset[Key], probed_open: Mapping[Key, bool], stale: frozenset[Key]
) -> Judgement:
    if not server.up:
        # Started as down because it did not answer: its checks may still bring it up, but it is no server now.
        return Judgement.REGRESSED
    if server.key not in unproven:
        return Judgement.OK
    if server.passed is not None and server.key not in stale:
        return Judgement.OK if server.passed else Judgement.REGRESSED
    if server.key in probed_open:
        return Judgement.OK if probed_open[server.key] else Judgement.REGRESSED
    return Judgement.PENDING


def undecided(reason: str) -> Finding:
    """What people should know of a step that nothing speaks against, and no check for."""
    return Finding("verify", f"{reason}; they were reached before the switch", "look at their checks in `agent status`")
