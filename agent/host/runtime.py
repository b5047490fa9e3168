"""HAProxy's stats socket: the only module that talks to it.

One connection per question, bounded in time; an answer is parsed into frozen values or is an error.
"""

from __future__ import annotations

import csv
import io
import re
import socket
import time
from pathlib import Path

from attrs import frozen

from agent.errors import NoAnswerError, UsageError
from agent.model.observed import FrontendSeen, Observation, Running, ServerSeen
from agent.model.render import DESCRIPTION

_GENERATION = re.compile(re.escape(DESCRIPTION) + r"(\d{1,18})")
_ROWS = {"frontend": "0", "server": "2"}  # the `type` column of `show stat` (HAProxy's management guide, 9.1)


@frozen
class StatsSocket:
    """The socket at `path`. `timeout`: seconds for a whole question and answer."""

    path: Path
    timeout: float = 2.0

    def ask(self, command: str) -> str:
        """The whole answer to one command. Raises NoAnswerError (nobody there, not in time), UsageError (not ours)."""
        deadline = time.monotonic() + self.timeout
        chunks = []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout)
                connection.connect(str(self.path))
                connection.sendall(f"{command}\n".encode())
                while chunk := connection.recv(65_536):
                    chunks.append(chunk)
                    # A peer that drips must not outlive the deadline; 1 ms keeps settimeout from meaning "forever".
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except PermissionError as error:
            raise UsageError(f"{self.path}: {error.strerror}", remedy="run as the user HAProxy belongs to") from error
        except OSError as error:
            raise NoAnswerError(f"HAProxy's socket {self.path} does not answer: {error}") from error
        return b"".join(chunks).decode(errors="replace")

    def running(self) -> Running | None:
        """The process behind the socket; None where nobody answers."""
        try:
            return _running(self.ask("show info"))
        except NoAnswerError:
            return None

    def observe(self) -> Observation:
        """Process, frontends and servers at one moment. Raises NoAnswerError."""
        answer = self.ask("show info;show stat")
        info, mark, stat = answer.partition("# pxname")
        if not mark:
            raise NoAnswerError(f"HAProxy's socket {self.path} gave no statistics")
        rows = [*csv.DictReader(io.StringIO(mark.removeprefix("# ") + stat))]
        return Observation(
            process=_running(info),
            frontends=tuple(_frontend(row) for row in rows if row["type"] == _ROWS["frontend"]),
            servers=tuple(_server(row) for row in rows if row["type"] == _ROWS["server"]),
        )

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


def _frontend(row: dict[str, str]) -> FrontendSeen:
    return FrontendSeen(
        name=row["pxname"],
        open=row["status"] == "OPEN",
        sessions=int(row["scur"] or 0),
        connections=int(row["stot"] or 0),
    )


def _server(row: dict[str, str]) -> ServerSeen:
    return ServerSeen(
        backend=row["pxname"],
        name=row["svname"],
        status=row["status"],
        check=row.get("check_status") or "",
        sessions=int(row["scur"] or 0),
    )
