"""Do the servers of a state speak PROXY: whom to ask, what is known already, what speaks against a change. Pure.

A server is asked when it comes or changes, and once more when it did not answer then and is up later: Postfix logs
every probe, and once throttled clients for them (FACTS). In between, what it was found to be is remembered.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from agent.errors import Finding
from agent.model.desired import Backend, DesiredState
from agent.model.generation import Handshake
from agent.model.handshake import Question, Result, Seen, mismatch, questions
from agent.model.observed import Key, Observation
from agent.model.schema import Application, ProxyProtocol

AWAY = (Result.REFUSED, Result.UNREACHABLE)
"""Did not take a connection."""
_MOST_NAMED = 5
REMEDY = (
    "nothing was touched; have the server expect what it would be sent, or set proxy_protocol to what it expects; it "
    "is asked again by `agent apply`, when the file changes, and else every five minutes"
)
SETTINGS = "see docs/backends.md for each server's settings"


def newcomers(live: DesiredState | None, wanted: DesiredState) -> tuple[Question, ...]:
    """What to ask before `wanted` goes live: the servers of which nothing follows from `live`.

    Those that are new, moved or enabled, or that would be sent another header or are said to speak something else.
    Nothing can be told of a raw one, so it is not asked.
    """
    known = {(one.key, one.address, one.application, one.version) for one in questions(live)} if live else set()
    return tuple(
        one
        for one in questions(wanted)
        if one.application is not Application.RAW and (one.key, one.address, one.application, one.version) not in known
    )


def latecomers(state: DesiredState, known: Mapping[Key, Handshake], seen: Observation) -> tuple[Question, ...]:
    """Servers that did not answer when they came, and that HAProxy finds up now."""
    up = {one.key for one in seen.servers if one.up}
    return tuple(
        one
        for one in questions(state)
        if one.key in up and (was := known.get(one.key)) is not None and fits(was, one) and was.result in AWAY
    )


def fits(known: Handshake, question: Question) -> bool:
    """Whether that is what was asked then."""
    return (known.address, known.application, known.version) == (
        str(question.address),
        question.application,
        question.version,
    )


def believed(
    asked: Iterable[Question], known: Mapping[Key, Handshake], *, digest: str, since: float
) -> tuple[Handshake, ...]:
    """What need not be asked again: a refused or a paced document is looked at every few seconds.

    `digest`: of the document, since one that was changed is somebody's wish to have everything looked at. `since`:
    what was seen before is not believed (seconds since the epoch). Who did not answer may answer now.
    """
    return tuple(
        was
        for one in asked
        if (was := known.get(one.key)) is not None
        and fits(was, one)
        and (was.digest, was.at >= since, was.result in AWAY) == (digest, True, False)
    )


def noted(asked: Iterable[Question], seen: Mapping[Key, Seen], *, digest: str, at: float) -> tuple[Handshake, ...]:
    """Answers as they are remembered. `at`: seconds since the epoch."""
    return tuple(
        Handshake(
            backend=one.key[0],
            server=one.key[1],
            address=str(one.address),
            application=one.application.value,
            version=one.version.value,
            result=found.result.value,
            detail=found.detail,
            subject=found.subject,
            milliseconds=found.milliseconds,
            at=at,
            digest=digest,
        )
        for one in asked
        for found in (seen[one.key],)
    )


def remembered(
    known: Iterable[Handshake], fresh: Iterable[Handshake], *states: DesiredState | None
) -> tuple[Handshake, ...]:
    """All that is worth keeping, by name: the newest word on each server of these states."""
    there = {(pool.name, one.name) for state in states if state for pool in state.backends for one in pool.servers}
    newest = {one.key: one for one in itertools.chain(known, fresh) if one.key in there}
    return tuple(newest[key] for key in sorted(newest))


# --- what is made of it


def mismatches(found: Iterable[Handshake]) -> tuple[str, ...]:
    """Why a change is refused: who provably does not take what it would be sent, and what was seen."""
    wrong = [
        f"server {one.server} of backend {one.backend} ({one.address}) {_fault(one)}"
        for one in found
        if mismatch(one.version, one.result)
    ]
    more = len(wrong) - _MOST_NAMED
    return (*wrong[:_MOST_NAMED], *((f"and {more} more",) if more > 0 else ()))


def unproven(live: DesiredState | None, wanted: DesiredState, found: Iterable[Handshake]) -> tuple[str, ...]:
    """Why a change is refused where proof is required: new backends of which no server was seen to speak PROXY."""
    before = {(pool.name, pool.proxy_protocol) for pool in live.backends} if live else set()
    answers: dict[str, list[Handshake]] = {}
    for one in found:
        answers.setdefault(one.backend, []).append(one)
    return tuple(
        f"no server of the new backend {pool.name} was seen to speak PROXY: {_evidence(pool, answers)}"
        for pool in wanted.backends
        if pool.proxy_protocol is not ProxyProtocol.NONE
        and (pool.name, pool.proxy_protocol) not in before
        and all(one.result != Result.SPEAKS_PROXY for one in answers.get(pool.name, ()))
    )


def _evidence(pool: Backend, answers: Mapping[str, list[Handshake]]) -> str:
    if pool.application is Application.RAW:
        return "nothing can be told of application: raw; say what it speaks"
    told = [f"{one.server} is {one.result} ({one.detail})" for one in answers.get(pool.name, ())]
    return ", ".join(told[:_MOST_NAMED]) or "every server is disabled"


def findings(state: DesiredState, known: Mapping[Key, Handshake]) -> tuple[Finding, ...]:
    """What people should know of the servers of a state, by what they were last found to be."""
    return tuple(
        Finding(f"backends.{one.key[0]}.servers.{one.key[1]}", _fault(was), SETTINGS)
        for one in questions(state)
        if (was := known.get(one.key)) is not None and fits(was, one) and _fault(was)
    )


def _fault(one: Handshake) -> str:
    """What is wrong with a server, "" where nothing is, or where it did not answer: its checks tell of that."""
    header = f"a PROXY {one.version} header" if one.version != ProxyProtocol.NONE else "a PROXY header"
    if mismatch(one.version, one.result):
        if one.version == ProxyProtocol.NONE:
            return f"demands {header} and is sent none: {one.detail}"
        return f"is sent {header} and does not take it: {one.detail}"
    return {
        Result.SILENT: f"takes connections but says nothing: {one.detail}",
        Result.WRONG_PROTOCOL: f"does not speak {one.application}: {one.detail}",
        Result.UNKNOWN: f"nobody can tell whether it takes {header}: {one.detail}",
    }.get(Result(one.result), "")
