"""The system's resolver, asked beside the agent: a name server that does not answer costs a bounded wait.

getaddrinfo(3) has no timeout of its own (resolv.conf's are 5 s twice for each server) and cannot be interrupted, so a
few threads call it, and an answer that comes too late is that of the next look.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

MAX_THREADS = 8
_NOBODYS = ("192.0.2.1", "2001:db8::1")  # for documents (RFC 5737, RFC 3849): of no host


def lookup(name: str) -> tuple[str, ...]:
    """The addresses of a name in the order in which the system would use them (RFC 6724); empty: it has none."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in answers))


def _can_be_bound(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class Resolver:
    """`believe_seconds`: how long an answer is not asked for again."""

    def __init__(self, *, believe_seconds: float = 0.0, lookup: Callable[[str], Sequence[str]] = lookup) -> None:
        self._believe_seconds, self._lookup = believe_seconds, lookup
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._asked: set[str] = set()  # waiting, or being asked
        self._threads = 0
        self._answers: dict[str, tuple[float, Sequence[str]]] = {}
        self._fresh: set[str] = set()  # answered since the last look

    def answers(self, names: Collection[str], *, seconds: float) -> Mapping[str, Sequence[str]]:
        """What is known of these names after at most `seconds`. A name that is missing has not been answered yet."""
        deadline = time.monotonic() + seconds
        with self._changed:
            for name in names:
                if not self._known(name) and name not in self._asked:
                    self._asked.add(name)
                    self._waiting.append(name)
            for _ in range(min(len(self._waiting), MAX_THREADS - self._threads)):
                self._threads += 1
                threading.Thread(target=self._work, name="resolver", daemon=True).start()
            while any(name in self._asked for name in names) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            answered = {name: self._answers[name][1] for name in names if self._known(name)}
            self._fresh.difference_update(answered)
            for name in [name for name in self._answers if name not in names]:
                del self._answers[name]  # of a document that is gone
            return answered

    def is_here(self, address: str) -> bool:
        """Whether an address is one of this host: it can be bound, whatever the port.

        Where any address can (Linux: net.ipv4.ip_nonlocal_bind), only loopback is known to be.
        """
        if ipaddress.ip_address(address).is_loopback:
            return True
        return _can_be_bound(address) and not _can_be_bound(_NOBODYS[":" in address])

    def _known(self, name: str) -> bool:
        if name not in self._answers:
            return False
        return name in self._fresh or time.monotonic() - self._answers[name][0] < self._believe_seconds

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._threads -= 1
                    return
                name = self._waiting.popleft()
            answer = self._lookup(name)
            with self._changed:
                self._answers[name] = (time.monotonic(), answer)
                self._fresh.add(name)
                self._asked.discard(name)
                self._changed.notify_all()
