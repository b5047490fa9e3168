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
from agent.model.observed import Key, Observation, ServerSeen
from agent.model.preflight import Stake, told


class Word(enum.StrEnum):
    """How a switch is judged."""

    FINE = "fine"
    OPEN = "open"
    WORSE = "worse"


@frozen(kw_only=True)
class Verdict:
    """A word, and a sentence for everything that is not fine."""

    word: Word
    reasons: tuple[str, ...] = ()


def judge(
    at_stake: Iterable[Stake],
    after: Observation,
    *,
    state: DesiredState,
    unproven: frozenset[Key],
    knocked: Mapping[Key, bool],
    stale: frozenset[Key] = frozenset(),
) -> Verdict:
    """`unproven`: servers that are new, moved, or checked in another way. `knocked`: who of them answered just now.

    `knocked` holds only servers for which an open door is proof enough. `stale`: servers whose last check was of the
    address they had before.
    """
    is_open = {one.name for one in after.frontends if one.open}
    idle = {(pool.name, one.name) for pool in state.backends for one in pool.servers if one.weight == 0}
    pools: dict[str, list[ServerSeen]] = {}
    for one in after.servers:
        if one.key not in idle:
            pools.setdefault(one.backend, []).append(one)
    worse: list[tuple[Stake, str]] = []
    still_open: dict[str, None] = {}
    for stake in at_stake:
        servers = [one for name in stake.backends for one in pools.get(name, ())]
        words = {_server(one, unproven, knocked, stale) for one in servers}
        names = " or ".join(stake.backends)
        if stake.frontend not in is_open:
            worse.append((stake, "is not open"))
        elif Word.FINE in words:
            continue
        elif Word.OPEN in words:
            still_open[f"no server of backend {names} has passed a check yet"] = None
        else:
            why = ", ".join(f"{one.name} {one.status} {one.check.removeprefix('* ')}".strip() for one in servers[:5])
            worse.append((stake, f"now no server of backend {names} does: {why}"))
    if worse:
        return Verdict(word=Word.WORSE, reasons=told(worse, one="served before", many="served before"))
    return Verdict(word=Word.OPEN if still_open else Word.FINE, reasons=tuple(still_open))


def _server(one: ServerSeen, unproven: frozenset[Key], knocked: Mapping[Key, bool], stale: frozenset[Key]) -> Word:
    if not one.up:
        # Held back because nobody reached it: its checks may still bring it up, but it is no server now.
        return Word.WORSE
    if one.key not in unproven:
        return Word.FINE
    if one.passed is not None and one.key not in stale:
        return Word.FINE if one.passed else Word.WORSE
    if one.key in knocked:
        return Word.FINE if knocked[one.key] else Word.WORSE
    return Word.OPEN


def undecided(reason: str) -> Finding:
    """What people are told of a switch that nothing speaks against, and no check for."""
    return Finding("verify", f"{reason}; they were reached before the switch", "look at their checks in `agent status`")
