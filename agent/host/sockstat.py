"""The listening TCP sockets of FreeBSD, by sockstat(1).

Its columns differ between releases (usr.bin/sockstat/sockstat.c; main.c since libxo). `-w`: without it main cuts local
addresses to 21 columns, and IPv6 listeners vanish. `-n`: a uid is short, while a long user name and a command of ten
letters grow together with the pid; FreeBSD 12 has no `-n`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable

from agent.desired.addresses import Endpoint
from agent.host.listener import Listener
from agent.host.subprocesses import output_of

_COMMAND = "/usr/bin/sockstat"
_TIMEOUT_SECONDS = 5
_COMMAND_LENGTH = 10  # `%.10s`, in every release
_PID_COLUMN = 20
_PID_DIGITS = 5  # PID_MAX is 99999 (sys/sys/proc.h)
# USER COMMAND PID FD PROTO LOCAL FOREIGN; "?" or "??" where no process has the socket.
_LINE = re.compile(
    r"(?P<user>\S+)\s+(?P<process>\S.*?)\s+(?P<fd>\d+|\?+)\s+tcp(?P<families>4|6|46)\s+(?P<host>\S+):(?P<port>\d+)\s"
)
_PROCESS = re.compile(r"(?P<command>.+?)\s+(?P<pid>\d+|\?+)")


def text() -> str:
    """What sockstat prints of listening TCP sockets, "" where it does not run."""
    for options in ("-46lnw", "-46lw"):
        if printed := output_of([_COMMAND, options, "-P", "tcp"], seconds=_TIMEOUT_SECONDS):
            return printed
    return ""


def listeners(printed: str) -> Iterable[Listener]:
    """The listeners of what sockstat printed; a line that is none is left out."""
    for line in filter(None, map(_LINE.match, printed.splitlines())):
        command, pid = _process(line["user"], line["process"])
        for family in map(int, line["families"]):
            host = _host(line["host"], family)
            if host is not None:
                endpoint = Endpoint(family, host, int(line["port"]))
                yield Listener(endpoint=endpoint, pid=pid, program=command)


def _process(user: str, shown: str) -> tuple[str, int | None]:
    """Command and pid, which are one word where the user's name is so long that no blank is left between them."""
    if apart := _PROCESS.fullmatch(shown):
        known = apart["pid"].isdecimal()
        return (apart["command"], int(apart["pid"])) if known else ("", None)
    command, pid = shown[:_COMMAND_LENGTH], shown[_COMMAND_LENGTH:]
    whole = not command[-1].isdecimal() or len(pid) == _PID_DIGITS
    if whole and pid.isdecimal() and len(pid) <= _PID_DIGITS and len(user) + 1 + _COMMAND_LENGTH >= _PID_COLUMN:
        return command, int(pid)
    return shown, None  # a shorter command: where it ends is not known


def _host(shown: str, family: int) -> str | None:
    """The address as `Endpoint` has it; a scope (`%igc0`) is not part of that."""
    if shown == "*":
        return "::" if family == 6 else "0.0.0.0"  # noqa: S104  # recognised, not bound
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(shown.strip("[]").partition("%")[0])
        if address.version == family:
            return str(address)
    return None
