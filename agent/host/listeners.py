"""Who holds an address: what can be bound here, and which program listens where.

The test-bind is HAProxy's own without SO_REUSEPORT: with it, a second process of the same user binds beside a
listener without an error and shares its traffic (FACTS, HAProxy 2). Nothing listens, so no client is ever caught.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import subprocess
import sys
from collections.abc import Iterable

from attrs import frozen

from agent.host.processes import psutil
from agent.model.preflight import Unbound
from agent.model.schema import Endpoint

_REASONS = {
    errno.EADDRINUSE: ("in_use", "the address is in use"),
    errno.EADDRNOTAVAIL: ("no_such_address", "this host does not have the address"),
    errno.EACCES: ("not_permitted", "this user may not bind the port"),
    errno.EPERM: ("not_permitted", "this user may not bind the port"),
}
# USER COMMAND PID FD PROTO LOCAL FOREIGN (FreeBSD's sockstat(1))
_SOCKSTAT = re.compile(r"\S+\s+(\S+)\s+(\d+)\s+\S+\s+tcp([46]{1,2})\s+(\S+):(\d+)\s")


@frozen(kw_only=True)
class Listener:
    """A listening TCP socket. `pid` None and `program` "": the system does not tell this user."""

    endpoint: Endpoint
    pid: int | None = None
    program: str = ""

    def __str__(self) -> str:
        who = self.program or "a program that this user may not see"
        return f"{who} (pid {self.pid})" if self.pid else who


def unbound(endpoint: Endpoint) -> Unbound | None:
    """Why `endpoint` cannot be bound now, None where it can. Nobody is named here: see `holder`."""
    family = socket.AF_INET6 if endpoint.family == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            # As HAProxy: connections of the past (TIME_WAIT) are no listeners.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if endpoint.family == 6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((endpoint.host, endpoint.port))
    except OSError as error:
        reason, detail = _REASONS.get(error.errno or 0, ("failed", f"it cannot be bound: {error.strerror}"))
        return Unbound(reason=reason, detail=detail)
    return None


def listeners() -> tuple[Listener, ...]:
    """Every listening TCP socket the system tells of; empty where it tells nothing (no psutil, no sockstat)."""
    if psutil is not None:
        with contextlib.suppress(psutil.Error, OSError):
            return tuple(_from_psutil())
    if sys.platform.startswith("freebsd"):
        return tuple(_from_sockstat(_sockstat()))
    return ()


def holders(endpoint: Endpoint, among: Iterable[Listener]) -> tuple[Listener, ...]:
    """Those who hold `endpoint` or one that overlaps it, by the families and ports."""
    return tuple(one for one in among if overlap(endpoint, one.endpoint))


def overlap(one: Endpoint, other: Endpoint) -> bool:
    """Whether two addresses are the same, or one is the wildcard of the other."""
    if (one.family, one.port) != (other.family, other.port):
        return False
    return one.host == other.host or one.wildcard or other.wildcard


def _from_psutil() -> Iterable[Listener]:
    names: dict[int, str] = {}
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN:
            family = 6 if one.family == socket.AF_INET6 else 4
            if one.pid is not None and one.pid not in names:
                with contextlib.suppress(psutil.Error):
                    names[one.pid] = psutil.Process(one.pid).name()
            endpoint = Endpoint(family, one.laddr.ip.partition("%")[0], one.laddr.port)
            yield Listener(endpoint=endpoint, pid=one.pid, program=names.get(one.pid or 0, ""))


def _sockstat() -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            ["/usr/bin/sockstat", "-46", "-l", "-P", "tcp"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
        ).stdout
    return ""


def _from_sockstat(text: str) -> Iterable[Listener]:
    for found in _SOCKSTAT.finditer(text):
        program, pid, families, host, port = found.groups()
        for family in families:
            wildcard = "::" if family == "6" else "0.0.0.0"  # noqa: S104  # recognised, not bound
            address = wildcard if host == "*" else host.strip("[]").partition("%")[0]
            yield Listener(endpoint=Endpoint(int(family), address, int(port)), pid=int(pid), program=program)
