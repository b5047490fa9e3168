"""What a server is, by how it takes a PROXY header: the table of facts.md, as values and rules. Pure.

One connection is enough: the v2 signature holds `QUIT` on a line of its own, so a plain server greets, rejects it and
closes, where one that speaks PROXY greets and waits.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection

from attrs import evolve, frozen

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key
from agent.desired.schema import Application, Backend, DesiredState, ProxyProtocol, Server


class Result(enum.StrEnum):
    """What a server was found to be."""

    SPEAKS_PROXY = "speaks_proxy"
    """it takes the PROXY header that it is sent"""
    PLAIN = "plain"
    """it answers without a header"""
    SILENT = "silent"
    """it accepts the connection and says nothing"""
    REFUSED = "refused"
    """it refuses the connection"""
    UNREACHABLE = "unreachable"
    """there is no way to it, or no answer in time"""
    WRONG_PROTOCOL = "wrong_protocol"
    """it answers, but not in the protocol of `application`"""
    UNKNOWN = "unknown"
    """the answer proves neither"""


@frozen(kw_only=True)
class Question:
    """A server to probe."""

    key: Key
    """backend and server"""
    address: Endpoint
    """address and port"""
    application: Application
    """what it should speak"""
    version: ProxyProtocol
    """which header it should take"""
    client: Endpoint | None = None
    """client address in the header; None: the true source"""
    destination: Endpoint | None = None
    """destination in the header; None: the server's own address"""


@frozen(kw_only=True)
class ProbeResult:
    """The result of one connection to a server."""

    result: Result
    """what the server was found to be"""
    detail: str
    """what was received, on one printable line"""
    milliseconds: int = 0
    """duration"""
    subject: str = ""
    """common name of its TLS certificate; empty: none"""
    inconclusive: bool = False
    """the answer may be to something else than the header; a connection without one decides"""


@frozen(kw_only=True)
class Received:
    """What a server has sent so far."""

    data: bytes = b""
    """bytes"""
    closed: bool = False
    """it has closed the connection"""
    over: bool = False
    """there is no more time"""


@frozen(kw_only=True)
class _Dialect:
    """How a protocol greets, how it complains, and what only begins a greeting."""

    greeting: re.Pattern[bytes]
    complaint: re.Pattern[bytes]


_DIALECTS = {
    # A greeting may have more than one line; postscreen sends its last one only after some seconds.
    Application.SMTP: _Dialect(
        greeting=re.compile(rb"(?:220-[^\n]*\n)*220(?: [^\n]*)?\n"), complaint=re.compile(rb"(?m)^[45](?!21)\d\d[ -]")
    ),
    Application.IMAP: _Dialect(
        greeting=re.compile(rb"\* (?:OK|PREAUTH)[^\n]*\n"), complaint=re.compile(rb"\S+ BAD", re.IGNORECASE)
    ),
    Application.POP3: _Dialect(greeting=re.compile(rb"\+OK[^\n]*\n"), complaint=re.compile(rb"-ERR")),
}
_REFUSALS = {
    Application.SMTP: re.compile(rb"(?m)^[45]\d\d[ -]"),
    Application.IMAP: re.compile(rb"^(?:\* (?:BAD|BYE|NO)|\S+ BAD)", re.IGNORECASE),
    Application.POP3: re.compile(rb"^-ERR"),
}
_WORD = 5  # bytes by which a refusal is known
_BEGINNINGS = {Application.SMTP: b"220", Application.IMAP: b"* ", Application.POP3: b"+OK"}
_HTTP = re.compile(rb"HTTP/1\.[01] (\d{3})")

# Alerts that answer a first record which is no ClientHello (RFC 8446, 6); any other answers a ClientHello, and a
# server that has read it has taken the header off.
CHOKED = ("UNEXPECTED_MESSAGE", "PROTOCOL_VERSION", "DECODE_ERROR", "RECORD_OVERFLOW", "ILLEGAL_PARAMETER")


def questions(
    state: DesiredState, backends: Collection[str] = (), client: Endpoint | None = None
) -> tuple[Question, ...]:
    """One for each enabled server of `backends` (empty: of all), as a client of their frontend would come.

    `client`: the client that the headers name; servers of the other address family are asked with the true source.
    """
    binds: dict[str, list[Endpoint]] = {}
    for frontend in state.frontends:
        for name in frontend.backends:
            binds.setdefault(name, []).extend(frontend.bind)

    def question(pool: Backend, server: Server) -> Question:
        named = client if client is not None and client.family == server.address.family else None
        places = [bind for bind in binds.get(pool.name, ()) if bind.family == server.address.family]
        return Question(
            key=(pool.name, server.name),
            address=server.address,
            application=pool.application,
            version=pool.proxy_protocol,
            client=named,
            destination=next((place for place in places if not place.wildcard), None),
        )

    return tuple(
        question(pool, server)
        for pool in state.backends
        if not backends or pool.name in backends
        for server in pool.servers
        if not server.disabled
    )


def mismatch(version: str, result: str) -> bool:
    """Whether a server provably does not take what it would be sent. One that is down is no mismatch."""
    return result == (Result.SPEAKS_PROXY if version == ProxyProtocol.NONE else Result.PLAIN)


def judge(question: Question, received: Received, *, quiet: bool) -> ProbeResult | None:
    """What a server is that was sent a header; None: not clear yet. `quiet`: nothing has come for a while.

    One that was sent none (version `none`) and behaves like that is plain, and does not hang up because of it.
    """
    if question.application in _DIALECTS:
        return _greeted(question.application, received, quiet=quiet)
    if question.application is Application.HTTP:
        return _http(question.version, received)
    if received.over or received.closed:
        what = "it hung up" if received.closed else "it waits"
        return ProbeResult(result=Result.UNKNOWN, detail=f"{what} after {shown(received.data)}")
    return None


def _greeted(application: Application, received: Received, *, quiet: bool) -> ProbeResult | None:
    dialect, data = _DIALECTS[application], received.data
    greeting = dialect.greeting.match(data)
    if greeting is None:
        return _no_greeting(application, received)
    rest = data[greeting.end() :]
    if dialect.complaint.search(rest):
        return ProbeResult(result=Result.PLAIN, detail=f"greeted, then {shown(rest)}")
    if received.closed:  # over the header, or because it ends just now, or refuses this client
        detail = f"greeted, then {shown(rest) if rest else 'hung up'}"
        return ProbeResult(result=Result.UNKNOWN, detail=detail, inconclusive=True)
    if quiet:
        return ProbeResult(result=Result.SPEAKS_PROXY, detail=f"greeted, then waited: {shown(greeting[0])}")
    if received.over:
        return ProbeResult(result=Result.UNKNOWN, detail=f"greeted too late to tell: {shown(greeting[0])}")
    return None


def _no_greeting(application: Application, received: Received) -> ProbeResult | None:
    """Nothing, half of a greeting, or something else."""
    data, beginning = received.data, _BEGINNINGS[application]
    if _REFUSALS[application].search(data):
        # Exim's synchronization check, postscreen's greet action; or a server that takes no connection just now.
        return ProbeResult(result=Result.UNKNOWN, detail=f"{shown(data)} and no greeting", inconclusive=True)
    if not data.startswith(beginning[: len(data)]) and not _maybe_refusal(data):
        return ProbeResult(result=Result.WRONG_PROTOCOL, detail=f"no {application} greeting: {shown(data)}")
    if received.closed:
        return ProbeResult(result=Result.SILENT, detail=f"hung up after {shown(data)}")
    if received.over:
        half = Result.UNKNOWN if data else Result.SILENT
        return ProbeResult(result=half, detail=f"no whole greeting in time: {shown(data)}")
    return None


def _maybe_refusal(data: bytes) -> bool:
    """Whether a refusal may be on its way, byte by byte."""
    return len(data) < _WORD and data[:1] in (b"4", b"5", b"-", b"*")


def _http(version: ProxyProtocol, received: Received) -> ProbeResult | None:
    match = _HTTP.match(received.data)
    if match is not None:
        # A header is a bad request to a plain server, but so may be our own request to another one.
        inconclusive = match[1] == b"400"
        unsure = inconclusive and version is not ProxyProtocol.NONE
        return ProbeResult(
            result=Result.UNKNOWN if unsure else Result.SPEAKS_PROXY,
            detail=f"answered {shown(received.data)}",
            inconclusive=inconclusive,
        )
    if received.data and not b"HTTP/1.".startswith(received.data[:7]):
        return ProbeResult(result=Result.WRONG_PROTOCOL, detail=f"no HTTP answer: {shown(received.data)}")
    if received.closed:
        return ProbeResult(result=Result.SILENT, detail="hung up", inconclusive=True)
    return ProbeResult(result=Result.SILENT, detail="no answer in time") if received.over else None


def compared(with_header: ProbeResult, without_header: ProbeResult) -> ProbeResult:
    """A suspect answer to a header beside the answer of the same server without one."""
    if without_header.result is Result.PLAIN and not without_header.inconclusive:
        return evolve(
            with_header,
            result=Result.PLAIN,
            detail=f"{with_header.detail}; not so without a header",
            inconclusive=False,
        )
    return evolve(
        with_header, detail=f"{with_header.detail}; without a header, {without_header.detail}", inconclusive=False
    )


def shown(data: bytes) -> str:
    """The first line of what was said, printable and short; it came from the network."""
    if not data:
        return "nothing"
    line = data[:200].splitlines()[0].decode("ascii", errors="replace")
    text = "".join(character if character.isprintable() and character.isascii() else "." for character in line)
    return f'"{text[:70]}..."' if len(text) > 73 else f'"{text}"'
