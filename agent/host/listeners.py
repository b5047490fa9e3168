"""Holders of addresses: what can be bound here, and which program listens where.

The test-bind is HAProxy's own without SO_REUSEPORT: with it, a second process of the same user binds beside a
listener without an error and shares its traffic (facts.md, HAProxy 2). Nothing listens, so no client is ever caught.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.desired.addresses import Endpoint
from agent.host import sockstat
from agent.host.listener import Listener
from agent.reconcile.preflight import BindFailure

IN_USE = BindFailure(reason="in_use", detail="the address is in use")
_REASONS = {
    errno.EADDRINUSE: (IN_USE.reason, IN_USE.detail),
    errno.EADDRNOTAVAIL: ("no_such_address", "this host does not have the address"),
    errno.EACCES: ("not_permitted", "this user may not bind the port"),
    errno.EPERM: ("not_permitted", "this user may not bind the port"),
}
_LISTEN = "0A"  # include/net/tcp_states.h


def unbound(endpoint: Endpoint) -> BindFailure | None:
    """Why `endpoint` cannot be bound now, None where it can. The holder is not named here: see `holders`."""
    family = socket.AF_INET6 if endpoint.family == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As HAProxy: connections of the past (TIME_WAIT) are no listeners.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if endpoint.family == 6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((endpoint.host, endpoint.port))
    except OSError as error:
        reason, detail = _REASONS.get(error.errno or 0, ("failed", f"it cannot be bound: {error.strerror}"))
        return BindFailure(reason=reason, detail=detail)
    return None


def listeners() -> tuple[Listener, ...]:
    """Every listening TCP socket that the system lists; empty where it lists none.

    By the system's own means on FreeBSD and Linux: psutil lists each connection on the way, which takes seconds on a
    firewall that has tens of thousands.
    """
    return tuple(_from_proc() if sys.platform == "linux" else sockstat.listeners(sockstat.text()))


def holders(endpoint: Endpoint, among: Iterable[Listener]) -> tuple[Listener, ...]:
    """The listeners on `endpoint` or on one that overlaps it, by the families and ports."""
    return tuple(listener for listener in among if overlap(endpoint, listener.endpoint))


def overlap(endpoint: Endpoint, other: Endpoint) -> bool:
    """Whether two addresses are the same, or one is the wildcard of the other."""
    if (endpoint.family, endpoint.port) != (other.family, other.port):
        return False
    return endpoint.host == other.host or endpoint.wildcard or other.wildcard


def _from_proc() -> Iterable[Listener]:
    by_inode: dict[str, Endpoint] = {}
    for family, name in ((4, "tcp"), (6, "tcp6")):
        with contextlib.suppress(OSError), Path("/proc/net", name).open() as table:
            next(table)
            for line in table:
                columns = line.split()
                if columns[3] != _LISTEN:  # the kernel lists listeners first (proc(5); net/ipv4/tcp_ipv4.c)
                    break
                host, port = columns[1].split(":")
                by_inode[columns[9]] = Endpoint(family, _from_hex(host), int(port, 16))
    owners = _owners(by_inode.keys())
    for inode, endpoint in by_inode.items():
        pid = owners.get(inode)
        yield Listener(endpoint=endpoint, pid=pid, program=_name(pid))


def _from_hex(text: str) -> str:
    """Four bytes at a time, each in the machine's own order."""
    groups = (int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(b"".join(groups)))


def _owners(inodes: Collection[str]) -> dict[str, int]:
    """Which process has each of these sockets open, as far as this user may see."""
    owners: dict[str, int] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            for link in (folder / "fd").iterdir() if folder.name.isdecimal() else ():
                with contextlib.suppress(OSError):
                    inode = str(link.readlink()).removeprefix("socket:[").removesuffix("]")
                    if inode in inodes:
                        owners.setdefault(inode, int(folder.name))
    return owners


def _name(pid: int | None) -> str:
    with contextlib.suppress(OSError):
        return "" if pid is None else Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
