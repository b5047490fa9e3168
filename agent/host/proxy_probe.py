"""Does a server speak PROXY: one connection each, all of them side by side, each within its own deadline."""

from __future__ import annotations

import asyncio
import resource
import ssl
import time
from collections.abc import Iterable

from attrs import evolve

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key
from agent.desired.schema import Application, ProxyProtocol
from agent.proxy_protocol.certificate import common_name
from agent.proxy_protocol.greetings import CHOKED, ProbeResult, Question, Received, Result, compared, judge, shown
from agent.proxy_protocol.header import header

SECONDS = 2.0  # for each; Postfix greets at once, and what has not by then is silent
QUIET_SECONDS = 0.5  # a plain server answers a header with errors within milliseconds, a busy one later
MOST_AT_ONCE = 1_000
CONNECT_SECONDS = 1.0  # a server that takes longer to take a connection is as good as dead
_ALONE_SHARE = 0.5  # of the time: after it, one that was sent no header and says nothing is asked with one as well
_MOST = 4_096  # bytes that are read of a server

_REQUEST = b"GET / HTTP/1.1\r\nHost: probe.invalid\r\nUser-Agent: edgeagent\r\nConnection: close\r\n\r\n"


def ask(questions: Iterable[Question], *, seconds: float = SECONDS) -> dict[Key, ProbeResult]:
    """What each server is found to be, within `seconds` for each thousand of them; a slow one never delays the rest.

    One connection each; a second one only where the first cannot tell: where the answer may be to the header or may
    not, and behind `none` where it did not answer as a plain server.
    """
    return asyncio.run(_ask_all(tuple(questions), seconds))


async def _ask_all(questions: tuple[Question, ...], seconds: float) -> dict[Key, ProbeResult]:
    slots = asyncio.Semaphore(_at_once())

    async def ask_one(question: Question) -> ProbeResult:
        async with slots:
            if question.version is ProxyProtocol.NONE:
                return await _without(question, seconds)
            return await _with(question, time.monotonic() + seconds)

    results = await asyncio.gather(*(ask_one(question) for question in questions))
    return {question.key: result for question, result in zip(questions, results, strict=True)}


def _at_once() -> int:
    """Two files for each, and some for the rest: without a file, a server would be reported as unreachable."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_AT_ONCE if files < 0 else max(10, min(MOST_AT_ONCE, (files - 60) // 2))


async def _with(question: Question, deadline: float) -> ProbeResult:
    """One that is sent a header. Where its answer may be to something else, one without a header is compared."""
    result = await _ask(question, deadline)
    if not result.inconclusive:
        return result
    return compared(result, await _ask(evolve(question, version=ProxyProtocol.NONE), deadline))


async def _without(question: Question, seconds: float) -> ProbeResult:
    """One that is sent none. Where it does not answer as a plain one, a second connection asks with a header.

    It demands one if it answers that, and the first has been silent to the end or was hung up: a plain server may be
    slow the first time, and quick the second.
    """
    begin = time.monotonic()
    first = asyncio.create_task(_ask(question, begin + seconds))
    await asyncio.wait({first}, timeout=seconds * _ALONE_SHARE)
    if first.done() and _settled(question, first.result()):
        return first.result()
    other = await _ask(evolve(question, version=ProxyProtocol.V2), begin + seconds)
    result = await first
    if _settled(question, result):
        return result
    if other.result not in (Result.SPEAKS_PROXY, Result.PLAIN):
        return evolve(result, inconclusive=False)
    detail = f"without a header, {result.detail}; with one, {other.detail}"
    return evolve(other, detail=detail, milliseconds=_since(begin))


def _settled(question: Question, result: ProbeResult) -> bool:
    done = (Result.PLAIN, Result.REFUSED, Result.UNREACHABLE)
    return result.result in done or question.application is Application.RAW


async def _ask(question: Question, deadline: float) -> ProbeResult:
    begin = time.monotonic()
    try:
        async with asyncio.timeout_at(_loop_time(min(deadline, begin + CONNECT_SECONDS))):
            reader, writer = await asyncio.open_connection(question.address.host, question.address.port)
    except ConnectionRefusedError:
        return ProbeResult(result=Result.REFUSED, detail="connection refused", milliseconds=_since(begin))
    except (ConnectionResetError, BrokenPipeError):  # it took the connection, and ended it before a word was said
        return ProbeResult(result=Result.SILENT, detail="reset at once", milliseconds=_since(begin))
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer in time"
        return ProbeResult(result=Result.UNREACHABLE, detail=why, milliseconds=_since(begin))
    try:
        writer.write(_header(question, writer))
        if question.application is Application.TLS:
            result = await _tls(reader, writer, deadline)
        else:
            writer.write(_REQUEST if question.application is Application.HTTP else b"")
            result = await _listen(question, reader, deadline)
    except OSError:  # likewise, while the header was on its way
        result = ProbeResult(result=Result.SILENT, detail="reset at once")
    finally:
        writer.transport.abort()  # `close` would wait for a peer that reads nothing
    if question.version is ProxyProtocol.NONE and result.result is Result.SPEAKS_PROXY:
        result = evolve(result, result=Result.PLAIN)  # it was sent no header, and answered
    return evolve(result, milliseconds=_since(begin))


def _header(question: Question, writer: asyncio.StreamWriter) -> bytes:
    name = writer.get_extra_info("sockname")
    if name is None:  # it was over before the address could be asked for
        raise ConnectionResetError
    host, port = name[:2]
    family = question.address.family
    source = question.client or Endpoint(family, host, port)
    destination = question.destination or question.address
    if source.family != destination.family:
        destination = question.address if source.family == family else evolve(source, port=destination.port)
    return header(question.version, source, destination)


async def _listen(question: Question, reader: asyncio.StreamReader, deadline: float) -> ProbeResult:
    received, quiet = Received(), False
    while (result := judge(question, received, quiet=quiet)) is None:
        left = deadline - time.monotonic()
        if left <= 0 or len(received.data) > _MOST:
            received = evolve(received, over=True)
            continue
        patience = min(left, QUIET_SECONDS)
        try:
            more = await asyncio.wait_for(reader.read(_MOST), patience)
        except TimeoutError:
            quiet = patience == QUIET_SECONDS
            continue
        except ConnectionError:
            more = b""
        quiet = False
        received = evolve(received, data=received.data + more, closed=not more)
    return result


async def _tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: float) -> ProbeResult:
    """A TLS handshake behind the header; the subject of the certificate is not the question."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = context.wrap_bio(incoming, outgoing)
    first = b""
    while True:
        try:
            talk.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            return _choked(error, first)
        else:
            subject = common_name(talk.getpeercert(binary_form=True) or b"")
            named = f'certificate of "{subject}"' if subject else "a certificate without a name"
            return ProbeResult(
                result=Result.SPEAKS_PROXY, detail=f"{talk.version() or 'TLS'}, {named}", subject=subject
            )
        writer.write(outgoing.read())
        left = deadline - time.monotonic()
        try:
            more = await asyncio.wait_for(reader.read(65_536), max(left, 0.001))
        except TimeoutError:
            return ProbeResult(result=Result.SILENT, detail=f"no whole handshake in time: {shown(first)}")
        except ConnectionError:
            more = b""
        if not more:
            return ProbeResult(
                result=Result.UNKNOWN if first else Result.SILENT,
                detail=f"hung up after {shown(first)}",
                inconclusive=True,
            )
        first = first or more
        incoming.write(more)


def _choked(error: ssl.SSLError, first: bytes) -> ProbeResult:
    reason = error.reason or str(error)
    alert = reason.lower().replace("_", " ")
    if reason in ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST") or first[:1] not in (b"\x15", b"\x16"):
        # A web server for TLS takes a header for plain HTTP, and says so in plain HTTP (nginx, M).
        return ProbeResult(result=Result.WRONG_PROTOCOL, detail=f"no TLS: {shown(first)}", inconclusive=True)
    if any(word in reason for word in CHOKED):
        return ProbeResult(result=Result.UNKNOWN, detail=f"answers with an alert: {alert}", inconclusive=True)
    return ProbeResult(result=Result.SPEAKS_PROXY, detail=f"takes the header, but: {alert}")


def _since(begin: float) -> int:
    return round((time.monotonic() - begin) * 1_000)


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + max(deadline - time.monotonic(), 0.001)
