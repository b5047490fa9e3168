"""HAProxy's stats socket: the only module that talks to it.

One connection per question, or per sequence of commands, bounded in time; an answer is parsed into frozen values or is
an error.
"""

from __future__ import annotations

import contextlib
import csv
import io
import ipaddress
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from agent.errors import CommandError, NoAnswerError, UsageError
from agent.haproxy.commands import Command
from agent.haproxy.config import DESCRIPTION, PEERS
from agent.haproxy.observed import FRONTEND_PREFIX, FrontendStats, Observation, Running, ServerStats

_GENERATION = re.compile(re.escape(DESCRIPTION) + r"(\d{1,18})")
_FRONTEND, _SERVER = "0", "2"  # the `type` column of `show stat` (HAProxy's management guide, 9.1)
_STATISTICS = "show info;show stat -1 5 -1"  # 5: frontends and servers, no backends
_BACKENDS = "show stat -1 2 -1"  # 2: backends
_BRIEF = "show info;show stat -1 1 -1;show servers state"  # 1: frontends
# The columns of `show servers state`, and what stands in two of them (its management guide; HAProxy, server-t.h).
_BACKEND, _NAME, _ADDRESS, _OPERATIONAL, _ADMIN, _WEIGHT, _PORT = 1, 3, 4, 5, 6, 7, 18
_IN_MAINTENANCE = 0x01 | 0x02 | 0x20  # SRV_ADMF_MAINT (facts.md, HAProxy 6)
_DRAINS = 0x08 | 0x10  # SRV_ADMF_DRAIN
_TAKES_CLIENTS = ("1", "2")  # starting, running

_PROMPT = b"\n> "
_PEERS_FLAGS = re.compile(rf"\bid={PEERS} disabled=\d+ flags=0x([0-9a-f]+)")
_RESYNC_FINISHED = 0x3
_BUSY = "Server still has connections attached to it, cannot remove it."


@frozen
class StatsSocket:
    """HAProxy's stats socket."""

    path: Path
    """of the socket"""
    timeout: float = 2.0
    """seconds for a whole question and answer"""

    def ask(self, command: str) -> str:
        """The whole answer to one command. Raises NoAnswerError (no process, or not in time), UsageError (not ours)."""
        deadline = time.monotonic() + self.timeout
        chunks = []
        with self._answering(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self.timeout)
            connection.connect(str(self.path))
            connection.sendall(f"{command}\n".encode())
            while chunk := connection.recv(65_536):
                chunks.append(chunk)
                # A peer that drips must not outlive the deadline; 1 ms keeps settimeout from meaning "forever".
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
        return b"".join(chunks).decode(errors="replace")

    def running(self) -> Running | None:
        """The process behind the socket; None where none answers."""
        try:
            return _running(self.ask("show info"))
        except NoAnswerError:
            return None

    def observe(self) -> Observation:
        """Process, frontends and servers at one moment. Raises NoAnswerError."""
        answer = self.ask(_STATISTICS)
        with self._whole():
            info, _, stat = answer.partition("# pxname")
            if not stat.endswith("\n\n"):  # the empty line behind the last row
                raise IndexError
            frontends, servers = _rows("pxname" + stat)
            return Observation(process=_running(info), frontends=frontends, servers=servers)

    def backends_up(self) -> frozenset[str]:
        """The backends that have a server for clients. One row of each: cheap to ask for. Raises NoAnswerError."""
        with self._whole():
            head, *rows = csv.reader(io.StringIO(self.ask(_BACKENDS).removeprefix("# ")))
            name, status = head.index("pxname"), head.index("status")
            return frozenset(row[name] for row in rows if len(row) > status and row[status].startswith("UP"))

    def observe_brief(self) -> Observation:
        """The same with less of each server: whether it is up, but not how its check ended. Raises NoAnswerError.

        A third of the time at 4,000 servers, while it is not known yet whether a switch went well.
        """
        answer = self.ask(_BRIEF)
        with self._whole():
            info, _, rest = answer.partition("# pxname")
            stat, end, states = rest.partition("\n\n1\n")
            frontends, _ = _rows("pxname" + stat)
            lines = (line.split(" ") for line in states.splitlines() if line and not line.startswith("#"))
            servers = tuple(_brief(fields) for fields in lines)
            if not end:
                raise IndexError
            return Observation(process=_running(info), frontends=frontends, servers=servers)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """HAProxy that ends while it answers leaves half an answer."""
        try:
            yield
        except (IndexError, KeyError, ValueError) as error:
            raise NoAnswerError(f"HAProxy's socket {self.path} gave no whole answer") from error

    @contextlib.contextmanager
    def conversation(self) -> Iterator[Callable[[Command], None]]:
        """Many commands over one connection: yields what has one done.

        That raises CommandError for any answer but the command's own "done", and NoAnswerError. In HAProxy's
        interactive mode each answer ends with a prompt (its management guide, 9.3, prompt; M: 2.6, 2.8, 3.0).
        """
        with self._answering(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self.timeout)
            connection.connect(str(self.path))
            self._exchange(connection, "prompt")

            def tell(command: Command) -> None:
                # A connection is an effect that Python audits, a line sent over it is none.
                sys.audit("edgeagent.command", str(command))
                with self._answering():
                    reply = self._exchange(connection, str(command)).strip()
                if not command.succeeded(reply):
                    raise CommandError(f"HAProxy answered `{command}` with: {reply or 'nothing'}")

            yield tell

    def _exchange(self, connection: socket.socket, command: str) -> str:
        """Send a line, and read up to the next prompt."""
        deadline = time.monotonic() + self.timeout
        connection.settimeout(self.timeout)
        connection.sendall(f"{command}\n".encode())
        answer = b""
        while not answer.endswith(_PROMPT):
            chunk = connection.recv(65_536)
            if not chunk:
                raise ConnectionResetError("it has hung up")
            answer += chunk
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        return answer.removesuffix(_PROMPT).decode(errors="replace")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """What the system says of the socket, as an error of ours."""
        try:
            yield
        except PermissionError as error:
            raise UsageError(f"{self.path}: {error.strerror}", remedy="run as the user HAProxy belongs to") from error
        except OSError as error:
            raise NoAnswerError(f"HAProxy's socket {self.path} does not answer: {error}") from error

    def tell(self, command: Command) -> None:
        """Have one command done. Raises CommandError for any answer but its own "done"; NoAnswerError."""
        with self.conversation() as tell:
            tell(command)

    def delete_drained(self, command: Command) -> bool:
        """Delete a server that has left. Whether it is gone; False while it still has sessions."""
        reply = self.ask(str(command)).strip()
        if reply == _BUSY:
            return False
        if not command.succeeded(reply):
            raise CommandError(f"HAProxy answered `{command}` with: {reply or 'nothing'}")
        return True

    def limits_settled(self) -> bool:
        """Whether the process could send its rate-limit tables to the next one now. Raises NoAnswerError.

        HAProxy below 3.0 sends nothing until it has given up asking its own peers for theirs, 5 s after its start (M;
        peers.c, process_peer_sync: PEERS_RESYNC_STATEMASK, PEER_RESYNC_TIMEOUT). True where it has no tables.
        """
        match = _PEERS_FLAGS.search(self.ask(f"show peers {PEERS}"))
        return match is None or int(match[1], 16) & _RESYNC_FINISHED == _RESYNC_FINISHED

    def server_states(self) -> str:
        """The dump that a later process can read as its server-state file. Raises NoAnswerError."""
        return self.ask("show servers state")


def _running(info: str) -> Running:
    fields = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
    try:
        named = _GENERATION.fullmatch(fields.get("description", ""))
        return Running(
            pid=int(fields["Pid"]),
            version=fields["Version"],
            uptime=int(fields["Uptime_sec"]),
            generation=int(named[1]) if named else None,
        )
    except (KeyError, ValueError) as error:
        raise NoAnswerError(f"`show info` answered without {error}") from error


def _rows(text: str) -> tuple[tuple[FrontendStats, ...], tuple[ServerStats, ...]]:
    head, *rows = csv.reader(io.StringIO(text))
    column = {name: index for index, name in enumerate(head)}
    kind = column["type"]
    rows = [row for row in rows if len(row) > kind]
    return (
        tuple(_frontend(row, column) for row in rows if row[kind] == _FRONTEND),
        tuple(_server(row, column) for row in rows if row[kind] == _SERVER),
    )


def _brief(fields: list[str]) -> ServerStats:
    admin, host, port = int(fields[_ADMIN]), fields[_ADDRESS], fields[_PORT]
    if admin & _IN_MAINTENANCE:
        status = "MAINT"
    elif fields[_OPERATIONAL] not in _TAKES_CLIENTS:
        status = "DOWN"
    else:
        status = "DRAIN" if admin & _DRAINS else "UP"
    return ServerStats(
        backend=fields[_BACKEND],
        name=fields[_NAME],
        status=status,
        check="",
        sessions=0,
        address=f"[{_shortest(host)}]:{port}" if ":" in host else f"{host}:{port}",
        weight=int(fields[_WEIGHT]),
    )


def _address(shown: str) -> str:
    """`[2001:db8::1]:25` or `192.0.2.1:25`, the host in its shortest form."""
    host, bracket, port = shown[1:].partition("]")
    return f"[{_shortest(host)}]{port}" if bracket and shown.startswith("[") else shown


def _shortest(host: str) -> str:
    """HAProxy prints some IPv6 addresses as C libraries do, `::0.1.0.2` for `::1:2` (inet_ntop(3))."""
    if "." not in host:
        return host
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:  # a name, or nothing that is compared
        return host


def _frontend(row: list[str], column: dict[str, int]) -> FrontendStats:
    return FrontendStats(
        name=row[column["pxname"]].removeprefix(FRONTEND_PREFIX),
        proxy=row[column["pxname"]],
        open=row[column["status"]] == "OPEN",
        stopped=row[column["status"]] == "STOP",
        sessions=int(row[column["scur"]] or 0),
        connections=int(row[column["stot"]] or 0),
        # By a connection rule, by a session rule, by an inspected one (management guide, 9.1: dcon, dses, dreq).
        denied=sum(int(row[column[name]] or 0) for name in ("dcon", "dses", "dreq")),
        bytes_in=int(row[column["bin"]] or 0),
        bytes_out=int(row[column["bout"]] or 0),
    )


def _server(row: list[str], column: dict[str, int]) -> ServerStats:
    return ServerStats(
        backend=row[column["pxname"]],
        name=row[column["svname"]],
        status=row[column["status"]],
        check=row[column["check_status"]],
        sessions=int(row[column["scur"]] or 0),
        address=_address(row[column["addr"]]),
        weight=int(row[column["uweight"]] or 0),
        backup=row[column["bck"]] == "1",
        check_milliseconds=int(row[column["check_duration"]]) if row[column["check_duration"]] else None,
    )
