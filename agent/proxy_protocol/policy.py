"""Do the servers of a state speak PROXY: which to probe, what is known already, what speaks against a change. Pure.

A server is asked when it comes or changes, and again, rarely, while it is up and was away or not as it should be:
Postfix logs every probe, and once throttled clients for them (facts.md, mail servers). In between, its last answer
is remembered.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

from agent.desired.identity import Key
from agent.desired.schema import Application, Backend, DesiredState, ProxyProtocol
from agent.errors import Finding, Refusal
from agent.proxy_protocol.greetings import ProbeResult, Question, Result, mismatch, questions
from agent.proxy_protocol.record import Asked, Handshake

AWAY = (Result.REFUSED, Result.UNREACHABLE)
"""Did not take a connection."""
_MOST_NAMED = 5
REMEDY = (
    "nothing was touched of what is live; have the server expect what it would be sent, or set proxy_protocol to what "
    "it expects; it is asked again by `agent apply`, when the file changes, and else every five minutes"
)
SETTINGS = (
    "let the server accept the header, or set `proxy_protocol: none`; "
    "it is asked again every five minutes, and by `agent apply`"
)
_MOST_KEPT = 20_000  # of a file that names other servers every second


def asked(question: Question) -> Asked:
    """A question as a key."""
    return (*question.key, str(question.address), question.application.value, question.version.value)


def servers_to_probe(live: DesiredState | None, wanted: DesiredState) -> tuple[Question, ...]:
    """What to ask before `wanted` goes live: the servers of which nothing follows from `live`.

    Those that are new, moved or enabled, or that would be sent another header or are said to speak something else.
    A raw one cannot be judged, so it is not probed.
    """
    before = {backend.name: backend for backend in live.backends} if live else {}
    changed = [
        backend.name
        for backend in wanted.backends
        if backend.application is not Application.RAW and backend != before.get(backend.name)
    ]
    if not changed:
        return ()
    known = {asked(question) for question in questions(live, changed)} if live else set()
    return tuple(question for question in questions(wanted, changed) if asked(question) not in known)


def servers_to_probe_again(
    state: DesiredState, known: Mapping[Asked, Handshake], up: Collection[Key], *, now: float, patience: float
) -> tuple[Question, ...]:
    """Servers that HAProxy finds up, and that did not answer when they were asked last, or not as they should.

    `patience`: for how many seconds they are left alone; a fifth of it one that was away and may have come.
    """
    waited = {
        key
        for key, was in known.items()
        if (was.result in AWAY and not 0 <= now - was.at < patience / 5)
        or (_fault(was) and not 0 <= now - was.at < patience)
    }
    if not waited:
        return ()
    return tuple(question for question in questions(state) if question.key in up and asked(question) in waited)


def believed(
    wanted: Iterable[Question], known: Mapping[Asked, Handshake], *, digest: str, now: float, patience: float
) -> tuple[Handshake, ...]:
    """What need not be asked again: a refused or a paced document is looked at every few seconds.

    `digest`: of the document, since a changed one asks for everything to be probed. `patience`:
    for how many seconds an answer is believed. A server that did not answer may answer now.
    """
    return tuple(
        was
        for question in wanted
        if (was := known.get(asked(question))) is not None
        and (was.digest, was.result in AWAY) == (digest, False)
        and 0 <= now - was.at < patience
    )


def noted(
    questions_asked: Iterable[Question], answers: Mapping[Key, ProbeResult], *, digest: str, at: float
) -> tuple[Handshake, ...]:
    """Answers as they are remembered. `at`: seconds since the epoch."""
    return tuple(
        Handshake(
            backend=question.key[0],
            server=question.key[1],
            address=str(question.address),
            application=question.application.value,
            version=question.version.value,
            result=answer.result.value,
            detail=answer.detail,
            subject=answer.subject,
            milliseconds=answer.milliseconds,
            at=at,
            digest=digest,
        )
        for question in questions_asked
        for answer in (answers[question.key],)
    )


def remembered(
    known: Iterable[Handshake], fresh: Iterable[Handshake], *states: DesiredState | None
) -> tuple[Handshake, ...]:
    """All that is worth keeping: the newest word on each question of these states, and on those just asked."""
    fresh = tuple(fresh)
    current = {asked(question) for state in states if state for question in questions(state)} | {
        handshake.asked for handshake in fresh
    }
    newest = {handshake.asked: handshake for handshake in itertools.chain(known, fresh) if handshake.asked in current}
    kept = sorted(newest.values(), key=lambda handshake: handshake.at)[-_MOST_KEPT:]
    return tuple(sorted(kept, key=lambda handshake: handshake.asked))


# --- what is made of it


def mismatches(handshakes: Iterable[Handshake]) -> tuple[Refusal, ...]:
    """Why a change is refused: the servers that provably do not take what they would be sent, and what was seen."""
    return tuple(
        Refusal(
            kind="server",
            name=handshake.backend,
            server=handshake.server,
            reason=f"server {handshake.server} of backend {handshake.backend} ({handshake.address}) "
            f"{_fault(handshake)}",
        )
        for handshake in handshakes
        if mismatch(handshake.version, handshake.result)
    )


def in_words(objections: Sequence[Refusal]) -> tuple[str, ...]:
    """The first of them, a sentence each, and how many more there are."""
    more = len(objections) - _MOST_NAMED
    sentences = (objection.reason for objection in objections[:_MOST_NAMED])
    return (*sentences, *((f"and {more} more",) if more > 0 else ()))


def unproven(live: DesiredState | None, wanted: DesiredState, handshakes: Iterable[Handshake]) -> tuple[Refusal, ...]:
    """Why a change is refused where proof is required: new backends of which no server was seen to speak PROXY."""
    before = {(pool.name, pool.proxy_protocol) for pool in live.backends} if live else set()
    answers: dict[str, list[Handshake]] = {}
    for handshake in handshakes:
        answers.setdefault(handshake.backend, []).append(handshake)
    return tuple(
        Refusal(
            kind="backend",
            name=pool.name,
            reason=f"no server of the new backend {pool.name} was seen to speak PROXY: {_evidence(pool, answers)}",
        )
        for pool in wanted.backends
        if pool.proxy_protocol is not ProxyProtocol.NONE
        and (pool.name, pool.proxy_protocol) not in before
        and all(handshake.result != Result.SPEAKS_PROXY for handshake in answers.get(pool.name, ()))
    )


def _evidence(pool: Backend, answers: Mapping[str, list[Handshake]]) -> str:
    if pool.application is Application.RAW:
        return "application: raw cannot be probed; say what it speaks"
    results = [
        f"{handshake.server} is {handshake.result} ({handshake.detail})" for handshake in answers.get(pool.name, ())
    ]
    return ", ".join(results[:_MOST_NAMED]) or "every server is disabled"


def findings(state: DesiredState, known: Mapping[Asked, Handshake]) -> tuple[Finding, ...]:
    """What people should know of the servers of a state, by what they were last found to be."""
    wrong = {key: fault for key, was in known.items() if (fault := _fault(was))}
    if not wrong:
        return ()
    return tuple(
        Finding(f"backends.{question.key[0]}.servers.{question.key[1]}", complaint, SETTINGS)
        for question in questions(state)
        if (complaint := wrong.get(asked(question)))
    )


def _fault(handshake: Handshake) -> str:
    """What is wrong with a server, "" where nothing is, or where it did not answer: its checks tell of that."""
    header = f"a PROXY {handshake.version} header" if handshake.version != ProxyProtocol.NONE else "a PROXY header"
    if mismatch(handshake.version, handshake.result):
        if handshake.version == ProxyProtocol.NONE:
            return f"demands {header} and is sent none: {handshake.detail}"
        return f"is sent {header} and does not take it: {handshake.detail}"
    return {
        Result.SILENT: f"takes connections but says nothing: {handshake.detail}",
        Result.WRONG_PROTOCOL: f"does not speak {handshake.application}: {handshake.detail}",
        Result.UNKNOWN: f"it is not known whether it takes {header}: {handshake.detail}",
    }.get(Result(handshake.result), "")  # checked when it was read
