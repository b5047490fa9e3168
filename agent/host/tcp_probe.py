"""TCP probes: which servers take a connection, before and after a step. No byte is sent; see `proxy_probe` for more."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key

_AT_ONCE = 200  # a fresh process may open 1,024 files on many systems
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: end with a reset, as HAProxy's own checks do


def reachable(servers: Mapping[Key, Iterable[Endpoint]], *, timeout: float) -> frozenset[Key]:
    """Those servers whose every address took a connection within `timeout` seconds, all asked side by side."""
    endpoints_to_try = {endpoint for endpoints in servers.values() for endpoint in endpoints}
    answered = _answered(endpoints_to_try, timeout)
    return frozenset(key for key, endpoints in servers.items() if answered.issuperset(endpoints))


def _answered(endpoints_to_try: Iterable[Endpoint], timeout: float) -> set[Endpoint]:
    """Bounded in number at once and in time as a whole. What was not asked in time did not answer."""
    waiting = list(endpoints_to_try)
    answered: set[Endpoint] = set()
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        while (waiting or selector.get_map()) and (left := deadline - time.monotonic()) > 0:
            while waiting and len(selector.get_map()) < _AT_ONCE:
                _knock(waiting.pop(), selector, answered)
            for key, _ in selector.select(left) if selector.get_map() else ():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                selector.unregister(connection)
                with connection:
                    if _connected(connection):
                        answered.add(key.data)
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    return answered


def _knock(endpoint: Endpoint, selector: selectors.BaseSelector, answered: set[Endpoint]) -> None:
    try:
        connection = socket.socket(socket.AF_INET6 if endpoint.family == 6 else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:  # a host without IPv6, or without another file
        return
    with contextlib.suppress(OSError):  # no route, no such address: it did not answer
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        code = connection.connect_ex((endpoint.host, endpoint.port))
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            selector.register(connection, selectors.EVENT_WRITE, endpoint)
            return
        if code == 0 and _connected(connection):
            answered.add(endpoint)
    connection.close()


def _connected(connection: socket.socket) -> bool:
    """Whether another socket took the connection: on loopback a socket can meet itself where none listens."""
    failed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with contextlib.suppress(OSError):
        return failed == 0 and connection.getsockname() != connection.getpeername()
    return False
