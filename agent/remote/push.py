"""`agent sync --to`: the system's ssh carries a document to the agents of other hosts, and their answers back.

No shell here and nothing to quote: ssh is started by an argument list, and what it runs on the other side is
made of fixed words, digits and base64 only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from attrs import evolve, frozen

from agent.desired.identity import digest_of
from agent.errors import ExitCode, Outcome
from agent.remote.answer import STAGE

CONNECT_SECONDS = 10
GRACE_SECONDS = 15.0  # beyond the time the other side has: for connecting, and for its start
MOST = 8_388_608  # bytes of an answer
LAST_WORDS_SECONDS = 2.0

_TARGET = re.compile(
    r"(?:([A-Za-z0-9_][A-Za-z0-9._-]{0,63})@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::(\d+))?"
)
_SSH_FAILED = 255
_MOST_SAID = 100
_NOT_FOUND = 127


@frozen(kw_only=True)
class Target:
    """Where to."""

    text: str
    """as it was written"""
    host: str
    """what ssh takes for a host"""
    port: int | None
    """None: as ssh_config says"""


@frozen(kw_only=True)
class Result:
    """The outcome at one target."""

    target: Target
    """which"""
    exit_code: ExitCode
    """the other side's, or SSH"""
    message: str
    """what happened"""
    remedy: str = ""
    """what to do"""
    answer: dict[str, Any] | None = None
    """the other side's answer, whole; None: there was none"""
    seconds: float = 0.0
    """duration"""


@frozen(kw_only=True)
class Payload:
    """What is sent to each target."""

    data: bytes
    """the document"""
    signature: bytes
    """empty: none"""
    arguments: tuple[str, ...]
    """options of `agent sync` over there"""
    seconds: float
    """how long it may take"""

    @property
    def command(self) -> str:
        """What ssh runs over there. By the digest the other side notices that half of a document arrived."""
        arguments = ["agent", "sync", "-", "--json", "--digest", digest_of(self.data), *self.arguments]
        if self.signature:
            arguments += ["--signature", base64.urlsafe_b64encode(self.signature).decode()]
        return " ".join(arguments)


def target(text: str) -> Target:
    """`admin@10.0.20.1`, `fw1:2222`, `root@[2001:db8::1]:22`, or a Host of ssh_config. Raises ValueError."""
    match = _TARGET.fullmatch(text)
    if match is None or (match[3] is not None and not 1 <= int(match[3]) <= 65_535):
        raise ValueError(f"expected USER@HOST or USER@HOST:PORT (an IPv6 address in brackets), got {text!r}")
    user, host, port = match.groups()
    bare = host.strip("[]")
    return Target(text=text, host=f"{user}@{bare}" if user else bare, port=int(port) if port else None)


def push(
    targets: Sequence[Target],
    payload: Payload,
    *,
    ordered: bool,
    on_stage: Callable[[Target, str], None],
    on_end: Callable[[Result], None],
    more: Mapping[str, tuple[str, ...]] = {},
    check: Callable[[], None] = lambda: None,
) -> tuple[Result, ...]:
    """Send it everywhere at once, or (`ordered`) to one after the other until one is not live.

    `on_end`: called for each as it finishes. `more`: further options, by a target's text. `check`: runs in a thread
    while ssh connects; nothing of the document leaves before it has returned, and what it raises is raised here.
    Returns one result for each target, in their order.
    """

    async def send(where: Target, checked: asyncio.Future[None]) -> Result:
        try:
            arguments = (*payload.arguments, *more.get(where.text, ()))
            result = await _send(where, evolve(payload, arguments=arguments), checked, on_stage)
        except (OSError, ValueError) as error:  # of one host; the others go on
            result = Result(target=where, exit_code=ExitCode.SSH, message=f"ssh failed: {error}", remedy=AGAIN)
        await asyncio.shield(checked)
        on_end(result)
        return result

    async def everyone() -> tuple[Result, ...]:
        checked = asyncio.ensure_future(asyncio.to_thread(check))
        if not ordered:
            return tuple(await asyncio.gather(*(send(where, checked) for where in targets)))
        results: list[Result] = []
        for where in targets:
            if results and results[-1].exit_code not in (ExitCode.LIVE, ExitCode.DEGRADED):
                first = next(result for result in results if result.exit_code not in (ExitCode.LIVE, ExitCode.DEGRADED))
                left = Result(
                    target=where, exit_code=first.exit_code, message=f"not tried: {first.target.text} is not live"
                )
                on_end(left)
                results.append(left)
                continue
            results.append(await send(where, checked))
        return tuple(results)

    return asyncio.run(everyone())


_SEVERITY = (0, 6, 9, 4, 3, 5, 7, 8, 2, 1)


def worst(codes: Sequence[ExitCode]) -> ExitCode:
    """The worst code: from live over refused, where nothing was touched, to unknown, and a bug."""
    return max(codes, key=lambda code: _SEVERITY.index(int(code)))


def status(targets: Sequence[Target], *, seconds: float) -> tuple[dict[str, Any] | str, ...]:
    """The status.json of each, in their order; of one that does not answer, why."""

    def read(code: int | None, out: bytes, stderr: Sequence[str]) -> dict[str, Any] | str:
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(out)
            if isinstance(answer, dict) and answer.get("schema") == 1:
                return answer
        return _unanswered(code, stderr) or f"it reports no status: {'; '.join(stderr) or f'exit {code}'}"

    return _ask(targets, "agent status --json", read, seconds=seconds)


def show(targets: Sequence[Target], *, seconds: float) -> tuple[bytes | str, ...]:
    """The live document of each, in their order; of one that does not answer, or has none, why."""

    def read(code: int | None, out: bytes, stderr: Sequence[str]) -> bytes | str:
        if code == 0 and len(out) <= MOST:
            return out
        return _unanswered(code, stderr) or f"it shows no document: {'; '.join(stderr) or f'exit {code}'}"

    return _ask(targets, "agent show", read, seconds=seconds)


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(?:/[a-z0-9][a-z0-9._-]{0,62})?|--[a-z]+")


def run(targets: Sequence[Target], arguments: Sequence[str], *, seconds: float) -> tuple[tuple[ExitCode, str], ...]:
    """Exit code and message of a short command of the agent on each, in their order.

    Raises ValueError for an argument that could be anything but a name or an option: what ssh runs is read by a shell.
    """
    if odd := [argument for argument in arguments if not _NAME.fullmatch(argument)]:
        raise ValueError(f"{odd[0]!r} is no name of a server")

    def read(code: int | None, out: bytes, stderr: Sequence[str]) -> tuple[ExitCode, str] | str:
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(out)
            if isinstance(answer, dict) and answer.get("exit_code") == code and code in list(ExitCode):
                servers = ", ".join(map(str, answer.get("servers") or ()))
                return ExitCode(code), printable(f"{servers}: {answer.get('message')}", 2_000)
        if code in list(ExitCode) and stderr:
            return ExitCode(code), "; ".join(line.removeprefix("agent: ") for line in stderr)
        return _unanswered(code, stderr) or f"exit {code}"

    results = _ask(targets, " ".join(["agent", *arguments]), read, seconds=seconds)
    return tuple((ExitCode.SSH, result) if isinstance(result, str) else result for result in results)


T = TypeVar("T")


def _ask(
    targets: Sequence[Target],
    command: str,
    read: Callable[[int | None, bytes, Sequence[str]], T | str],
    *,
    seconds: float,
) -> tuple[T | str, ...]:
    """What each answers to a command that only reads."""

    async def ask(where: Target) -> T | str:
        try:
            return read(*await _session(where, command, _nothing, seconds, lambda _: None))
        except OSError as error:
            return f"ssh does not run: {error.strerror}"

    async def everyone() -> tuple[T | str, ...]:
        return tuple(await asyncio.gather(*map(ask, targets)))

    return asyncio.run(everyone())


def _unanswered(code: int | None, stderr: Sequence[str]) -> str:
    """Why there is no answer at all; "" where there is one."""
    if code is None:
        return "no answer in time"
    return _ssh_failed(stderr)[0] if code == _SSH_FAILED else ""


async def _nothing() -> bytes:
    return b""


async def _send(
    where: Target, payload: Payload, checked: asyncio.Future[None], on_stage: Callable[[Target, str], None]
) -> Result:
    async def data() -> bytes:
        await asyncio.shield(checked)  # of all targets: one that ends takes it from nobody
        return payload.data

    begin = time.monotonic()
    try:
        code, out, stderr = await _session(
            where, payload.command, data, payload.seconds, lambda word: on_stage(where, word)
        )
    except OSError as error:
        return Result(
            target=where,
            exit_code=ExitCode.SSH,
            message=f"ssh does not run: {error.strerror}",
            remedy="install OpenSSH's client",
        )
    return evolve(_judge(where, code, out, stderr), seconds=time.monotonic() - begin)


async def _session(
    where: Target,
    command: str,
    data: Callable[[], Coroutine[None, None, bytes]],
    seconds: float,
    on_stage: Callable[[str], None],
) -> tuple[int | None, bytes, list[str]]:
    """Run it over there: its exit code (None: it hangs), what it answered, what it or ssh said. Raises OSError.

    `data`: becomes its standard input, once it is there.
    """
    port = ("-p", str(where.port)) if where.port is not None else ()
    arguments = (
        "ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=5",
        "-o", "ServerAliveCountMax=2", *port, "--", where.host, command,
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # so that it ends with all that it has started
    )
    stderr: list[str] = []
    out = b""
    try:
        async with asyncio.timeout(seconds + GRACE_SECONDS):
            listening = asyncio.create_task(_listen(process, stderr, on_stage))
            _, out = await asyncio.gather(_feed(process, data), _read(process))
            # What ssh has started (a proxy, a master) may hold its stderr for longer than it lives.
            await asyncio.wait([listening], timeout=LAST_WORDS_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), LAST_WORDS_SECONDS)
    except TimeoutError:
        pass
    finally:
        listening.cancel()
        code = process.returncode
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), LAST_WORDS_SECONDS)
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001  # else its pipes are, whenever
    return code, out, stderr


async def _feed(process: asyncio.subprocess.Process, data: Callable[[], Coroutine[None, None, bytes]]) -> None:
    assert process.stdin is not None
    standard_input = await data()
    with contextlib.suppress(ConnectionError):  # it ended before it had read all: its exit code says why
        process.stdin.write(standard_input)
        await process.stdin.drain()
    process.stdin.close()
    with contextlib.suppress(ConnectionError):
        await process.stdin.wait_closed()


async def _read(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    data = b""
    while more := await process.stdout.read(65_536):
        data = (data + more)[: MOST + 1]
    return data


async def _listen(process: asyncio.subprocess.Process, stderr: list[str], on_stage: Callable[[str], None]) -> None:
    assert process.stderr is not None
    rest = b""
    while more := await process.stderr.read(4_096):
        *lines, rest = (rest + more)[-65_536:].split(b"\n")
        for line in lines:
            _heard(line, stderr, on_stage)
    _heard(rest, stderr, on_stage)


def _heard(line: bytes, stderr: list[str], on_stage: Callable[[str], None]) -> None:
    text = "".join(character if character.isprintable() else " " for character in line.decode(errors="replace")).strip()
    if text.startswith(STAGE):
        on_stage(text.removeprefix(STAGE)[:40])
    elif text:
        stderr.append(text[:500])
        del stderr[:-_MOST_SAID]  # a banner may be long, and what ssh says itself comes last


# --- what went wrong --------------------------------------------------------------------------------------------

_UNREACHABLE = "is it up, and does the firewall let this host connect?"
_BEFORE = (  # there was no session at all, whatever else was said: a banner, a jump host that ended with it
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "find out why before anything else; if it was set up anew, `ssh-keygen -R HOST`, and compare the new key",
    ),
    ("Host key verification failed", "connect once by hand and compare the key, or put it into known_hosts"),
    ("Permission denied", "`agent gate --print-authorized-key KEYFILE` prints the line for its authorized_keys"),
    ("Too many authentication failures", "name one key with IdentityFile in ssh_config"),
    ("during banner exchange", "is this sshd's port?"),
)
_CUT = re.compile(  # said of a session that was under way
    r"Connection to \S+ closed|[Cc]onnection (?:closed|reset) by|Broken pipe|lost connection|client_loop|"
    r"kex_exchange_identification|Read from remote host|not responding"
)
_NOWHERE = (
    ("Could not resolve hostname", "an address will do as well"),
    ("Connection refused", "is sshd on, and is this its port?"),
    ("No route to host", _UNREACHABLE),
    ("Network is unreachable", "has this host a route to it?"),
    ("Connection timed out", _UNREACHABLE),
    ("Operation timed out", _UNREACHABLE),
)
AGAIN = "whether it is live over there nobody can tell from here: sync again, the same document changes nothing twice"


def _judge(where: Target, code: int | None, out: bytes, stderr: Sequence[str]) -> Result:
    """What an end of ssh means."""

    def failed(message: str, remedy: str) -> Result:
        return Result(target=where, exit_code=ExitCode.SSH, message=message, remedy=remedy)

    talk = "; ".join(stderr)
    if code is None:
        return failed("the session hangs: no answer in time", AGAIN)
    answer = _answer(out)
    if answer is not None and answer["exit_code"] == code:
        return Result(
            target=where,
            exit_code=ExitCode(answer["exit_code"]),
            message=f"{answer['result'].replace('_', ' ')}: {_story(answer)}",
            remedy=printable(answer.get("remedy"), 500),
            answer=answer,
        )
    if code == _SSH_FAILED:
        return failed(*_ssh_failed(stderr))
    if code == _NOT_FOUND:
        return failed(f"there is no agent there: {talk or 'command not found'}", "install edgeagent on it")
    if "is not let through" in talk:
        return failed(f"its gate does not know this call: {talk}", "update edgeagent on it, or here")
    if "No such command" in talk or "No such option" in talk:
        return failed(f"its agent is older than this one: {stderr[-1]}", "update edgeagent on it")
    own = [line for line in stderr if line.startswith("agent: ")]
    if own and code in (2, 3, 4, 7, 9):
        message = "; ".join(line.removeprefix("agent: ") for line in own)
        return Result(target=where, exit_code=ExitCode(code), message=message, remedy="")
    return failed(
        f"what answers there is no agent of this version (exit {code}): {talk or printable(out[:80], 80)!r}",
        "is `agent gate` the forced command of this key, and edgeagent up to date?",
    )


def _ssh_failed(stderr: Sequence[str]) -> tuple[str, str]:
    """Message and remedy of a failed ssh: its own words, since it has one exit code for everything."""
    if known := _known(_BEFORE, stderr):
        return known
    if over := [line for line in stderr if _CUT.search(line)]:
        hangs = "not responding" in over[-1] or "timed out" in over[-1]
        return f"the session {'hangs' if hangs else 'was cut'}: {over[-1]}", AGAIN
    if known := _known(_NOWHERE, stderr):
        return known
    if not stderr:
        return "the session was cut: no word why", AGAIN
    return f"ssh failed: {stderr[-1]}", "try `ssh` by hand"


def _known(remedies: Sequence[tuple[str, str]], stderr: Sequence[str]) -> tuple[str, str] | None:
    for pattern, remedy in remedies:
        if line := next((candidate for candidate in stderr if pattern in candidate), ""):
            return f"ssh failed: {line}", remedy
    return None


def _answer(out: bytes) -> dict[str, Any] | None:
    """The answer of an agent; None for anything else. The other side is believed in nothing but its words."""
    try:
        document = json.loads(out)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("protocol") != 1:
        return None
    if not isinstance(document.get("result"), str) or document["result"] not in _WORDS:
        return None
    code, report = document.get("exit_code"), document.get("report")
    shaped = isinstance(report, dict) or report is None
    return document if isinstance(code, int) and code in list(ExitCode) and shaped else None


_WORDS = {outcome.value for outcome in Outcome} | {
    "policy", "overtaken", "stored", "no_answer", "planned", "would be refused",
}  # fmt: skip


def diff_of(answer: dict[str, Any]) -> str:
    """What a dry run would change in haproxy.cfg over there."""
    plan = (answer.get("report") or {}).get("plan")
    text = plan.get("diff") if isinstance(plan, dict) else ""
    return "".join(f"{printable(line, 2_000)}\n" for line in str(text or "").splitlines())


def _story(answer: dict[str, Any]) -> str:
    """What the other side said, in one line."""
    live = (answer.get("report") or {}).get("live")
    parts = [str(answer["message"]).replace("\n", "; ")] if answer.get("message") else []
    if isinstance(live, dict) and isinstance(live.get("generation"), int):
        parts.append(f"generation {live['generation']} is live")
    return printable("; ".join(parts) or "no more was said", 2_000)


def printable(text: object, most: int) -> str:
    """What came from another host, for a terminal of ours."""
    shown = text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")
    return "".join(character if character.isprintable() else " " for character in shown)[:most]
