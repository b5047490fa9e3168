"""TCP servers that say what they were told: each parses the PROXY header by itself, by the protocol's own text.

Written apart from HAProxy and from the agent, so that both are measured against a third party.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


@dataclass
class SentHeader:
    """One connection: the command (LOCAL, PROXY, none), the client's address, what came after the header."""

    command: str
    client: str = ""
    rest: bytes = b""


def parse_header(stream: socket.socket) -> SentHeader:
    """Read a PROXY header, v1 or v2, and nothing behind it. `none` where the first bytes are no header."""
    first = stream.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL)
    if first.startswith(SIGNATURE):
        head = stream.recv(16, socket.MSG_WAITALL)
        version, family, length = struct.unpack("!BBH", head[12:])
        body = stream.recv(length, socket.MSG_WAITALL) if length else b""
        if version & 0xF == 0:
            return SentHeader("LOCAL")
        if family == 0x11:
            return SentHeader("PROXY", socket.inet_ntop(socket.AF_INET, body[:4]))
        return SentHeader("PROXY", socket.inet_ntop(socket.AF_INET6, body[:16]))
    if first.startswith(b"PROXY "):
        line = b""
        while not line.endswith(b"\r\n"):
            line += stream.recv(1)
        return SentHeader("PROXY", line.split()[2].decode())
    return SentHeader("none", rest=first)


@dataclass
class EchoServer:
    """Greets each connection with `NAME COMMAND CLIENT`, then sends back what comes. `seen`: all of them."""

    name: str
    port: int = 0
    host: str = "127.0.0.1"
    seen: list[SentHeader] = field(default_factory=list)
    expects_header: bool = True

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def commands(self) -> list[str]:
        return [one.command for one in self.seen]


@contextlib.contextmanager
def echo(name: str, *, header: bool = True, port: int = 0, host: str = "127.0.0.1") -> Iterator[EchoServer]:
    """A running EchoServer. Without `header` it speaks first and reads nothing it was not sent."""
    record = EchoServer(name, expects_header=header, host=host)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.settimeout(10)
                found = parse_header(self.request) if header else SentHeader("none", self.client_address[0])
                record.seen.append(found)
                self.request.settimeout(None)  # a session may sit quiet for as long as its client likes
                self.request.sendall(f"{name} {found.command} {found.client}\n".encode())
                while data := self.request.recv(4096):
                    self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

    with Server((record.host, port), Handler) as server:
        record.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield record
        finally:
            server.shutdown()
            thread.join()


# Below what the system hands out to clients (32768 and up on Linux, 49152 on FreeBSD), so that no client of a test
# can sit on a port between this look and its use; and never the same one twice in a process.
# Tests that run beside each other draw from decks of their own.
_WORKER, _WORKERS = (
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]),
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)
_DECK = range(10_000 + _WORKER, 32_000, _WORKERS)
_PORTS = itertools.cycle(random.sample(_DECK, len(_DECK)))


def free_port(*hosts: str) -> int:
    """A port that is free on all these addresses at this moment, another one at every call."""
    for port in itertools.islice(_PORTS, 200):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for host in hosts or ("127.0.0.1",):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                stack.enter_context(socket.socket(family, socket.SOCK_STREAM)).bind((host, port))
            return port
    raise RuntimeError("no free port")
