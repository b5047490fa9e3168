"""Whether a switch hurt: *after* against *before*, per frontend. Pure.

Only what served before can get worse; a backend that was down already blocks nothing. Servers that are as they were
are believed at once. New and changed ones are believed when their check, or somebody who knocked after the switch,
says so; until then the answer is open.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from attrs import frozen

from agent.errors import Finding
from agent.model.desired import DesiredState
from agent.model.observed import Key, Observation, ServerStats
from agent.model.preflight import ServingBackend, told


class Judgement(enum.StrEnum):
    """How a step is judged: nothing got worse, some checks have not ended yet, something got worse."""

    OK = "ok"
    PENDING = "pending"
    REGRESSED = "regressed"


@frozen(kw_only=True)
class Verdict:
    """A judgement, and a sentence for everything that is not OK."""

    judgement: Judgement
    reasons: tuple[str, ...] = ()


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
    is_open = {one.name for one in after.frontends if one.open}
    idle = {(pool.name, one.name) for pool in state.backends for one in pool.servers if one.weight == 0}
    pools: dict[str, list[ServerStats]] = {}
    for one in after.servers:
        if one.key not in idle:
            pools.setdefault(one.backend, []).append(one)
    worse: list[tuple[ServingBackend, str]] = []
    still_open: dict[str, None] = {}
    for stake in serving:
        servers = [one for name in stake.backends for one in pools.get(name, ())]
        judgements = {_server(one, unproven, probed_open, stale) for one in servers}
        names = " or ".join(stake.backends)
        if stake.frontend not in is_open:
            worse.append((stake, "is not open"))
        elif Judgement.OK in judgements:
            continue
        elif Judgement.PENDING in judgements:
            still_open[f"no server of backend {names} has passed a check yet"] = None
        else:
            why = ", ".join(f"{one.name} {one.status} {one.check.removeprefix('* ')}".strip() for one in servers[:5])
            worse.append((stake, f"now no server of backend {names} does: {why}"))
    if worse:
        return Verdict(judgement=Judgement.REGRESSED, reasons=told(worse, one="served before", many="served before"))
    return Verdict(judgement=Judgement.PENDING if still_open else Judgement.OK, reasons=tuple(still_open))


def _server(
    one: ServerStats, unproven: frozenset[Key], probed_open: Mapping[Key, bool], stale: frozenset[Key]
) -> Judgement:
    if not one.up:
        # Held back because nobody reached it: its checks may still bring it up, but it is no server now.
        return Judgement.REGRESSED
    if one.key not in unproven:
        return Judgement.OK
    if one.passed is not None and one.key not in stale:
        return Judgement.OK if one.passed else Judgement.REGRESSED
    if one.key in probed_open:
        return Judgement.OK if probed_open[one.key] else Judgement.REGRESSED
    return Judgement.PENDING


def undecided(reason: str) -> Finding:
    """What people are told of a switch that nothing speaks against, and no check for."""
    return Finding("verify", f"{reason}; they were reached before the switch", "look at their checks in `agent status`")
