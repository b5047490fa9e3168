"""The agent's HTTP server: a few answers, made elsewhere, over the standard library's own server.

HTTP/1.1: a connection is kept for the next request. Bounded in everything that a client could make large: connections
at once, time, bytes of a request. A client that reads slowly or never keeps one of the slots, for a few seconds, and
nothing of the agent waits for it. Where no slot is free, connections that only wait for a next request give theirs.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import hmac
import http.server
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from pathlib import Path

from attrs import frozen

from agent.desired.addresses import Endpoint
from agent.errors import UsageError
from agent.host.files import read_regular

AT_ONCE = 64  # clients; the next ones are turned away
MOST = 16_384  # bytes of a request; the standard library alone would parse six megabytes of headers
SECONDS = 10.0  # for a whole request and its answer
IDLE_SECONDS = 90.0  # for the next request of a connection: longer than scrapes are apart, by default a minute at most
_EVICTION_SECONDS = 0.5  # that long a new client waits for the slot of an idle one
_WORTH_GZIP = 1_000  # bytes
_REALM = 'Basic realm="edgeagent", charset="UTF-8"'


@frozen(kw_only=True)
class Answer:
    """An HTTP answer."""

    code: int
    """status"""
    kind: str
    """content type"""
    body: bytes
    """bytes"""
    headers: Mapping[str, str] = {}
    """further ones"""


Route = Callable[[str], Answer]
"""Answers a GET, given its Accept header."""


@frozen(kw_only=True)
class Listen:
    """Where and how to listen."""

    address: Endpoint
    """address and port"""
    certificate: str = ""
    """PEM file; with `key`: TLS"""
    key: str = ""
    """PEM file"""
    passwords: str = ""
    """file of `user:password` lines; empty: everybody may read"""


@contextlib.contextmanager
def serving(listen: Listen, routes: Mapping[str, Route]) -> Iterator[Endpoint]:
    """Serve in threads of its own while the body runs; yields where. Raises UsageError where it cannot be."""
    allowed = _allowed(listen.passwords) if listen.passwords else frozenset()
    if listen.key and not listen.certificate:
        raise UsageError("metrics.key without metrics.certificate: passwords would go in the clear")
    context = _context(listen) if listen.certificate else None

    class Handler(_Handler):
        pass

    Handler.routes, Handler.allowed = routes, allowed
    try:
        server = _Server(listen.address, Handler, context)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {listen.address} for metrics: {error.strerror}",
            remedy='free the address, or set metrics.listen in agent.toml ("": nowhere)',
        ) from error
    host, port = server.socket.getsockname()[:2]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.5}, name="web", daemon=True)
    thread.start()
    try:
        yield Endpoint(listen.address.family, host, port)
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join(5)


def _allowed(file: str) -> frozenset[bytes]:
    """SHA-256 of each `user:password`: compared in constant time, and nothing else of them is kept."""
    try:
        lines = read_regular(Path(file)).splitlines()
    except OSError as error:
        raise UsageError(f"metrics.passwords: {file}: {error.strerror}") from error
    pairs = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
    good = [pair for pair in pairs if all(pair.partition(b":")[::2])]
    digests = frozenset(hashlib.sha256(pair).digest() for pair in good)
    if not digests:
        raise UsageError(f"metrics.passwords: {file}: no line of the form user:password")
    return digests


def _context(listen: Listen) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(listen.certificate, listen.key or None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"metrics.certificate: {listen.certificate}: {error}") from error
    return context


class _Server(http.server.ThreadingHTTPServer):
    """At most AT_ONCE clients, each for SECONDS at most, whatever they do."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: Endpoint, handler: type[_Handler], context: ssl.SSLContext | None) -> None:
        self.address_family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
        self._context = context
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._open: dict[socket.socket, float] = {}  # until when
        self._idle: dict[socket.socket, None] = {}  # those that wait for a next request, the oldest first
        self._lock = threading.Lock()
        super().__init__((address.host, address.port), handler)

    def server_bind(self) -> None:
        """Without looking up its own name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "edgeagent", self.server_address[1]

    def process_request(self, request: object, client_address: object) -> None:
        """In a thread, where a slot is free."""
        assert isinstance(request, socket.socket)
        if not self._slots.acquire(blocking=False) and not self._evict():
            self.shutdown_request(request)
            return
        with self._lock:
            self._open[request] = time.monotonic() + SECONDS
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            with self._lock:
                self._open.pop(request, None)
            self._slots.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """The TLS handshake belongs here: it waits for the client."""
        assert isinstance(request, socket.socket)
        try:
            request.settimeout(SECONDS)
            if self._context is None:
                super().process_request_thread(request, client_address)
            else:
                with contextlib.suppress(OSError), self._context.wrap_socket(request, server_side=True) as talk:
                    with self._lock:  # `request` is an empty shell from here on
                        self._open[talk] = self._open.pop(request, time.monotonic() + SECONDS)
                    try:
                        super().process_request_thread(talk, client_address)
                    finally:
                        self._forget(talk)
        finally:
            self._forget(request)
            self.shutdown_request(request)
            self._slots.release()

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)
            self._idle.pop(connection, None)

    def waits(self, connection: socket.socket) -> None:
        """It has had an answer, and may ask again."""
        with self._lock:
            self._open[connection] = time.monotonic() + IDLE_SECONDS
            self._idle[connection] = None

    def asks(self, connection: socket.socket) -> None:
        """A request begins on it."""
        with self._lock:
            self._idle.pop(connection, None)
            self._open[connection] = time.monotonic() + SECONDS

    def _evict(self) -> bool:
        """Whether an idle connection has given its slot."""
        with self._lock:
            connection = next(iter(self._idle), None)
            self._idle.pop(connection, None)  # type: ignore[arg-type]  # None is no key
        if connection is None:
            return False
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        return self._slots.acquire(timeout=_EVICTION_SECONDS)

    def hang_up(self) -> None:
        """On everybody, at the end of the service."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def service_actions(self) -> None:
        """Twice a second: close connections that have had their time."""
        now = time.monotonic()
        with self._lock:
            late = [connection for connection, deadline in self._open.items() if deadline < now]
        for connection in late:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Bounded:
    """MOST bytes of each request, then its end; `spent` says that there may have been more."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._left = file, MOST

    def begins(self) -> bool:
        """Wait for a request, whose bytes are counted anew. Whether there is one; else the client has gone."""
        self._left = MOST
        return bool(self._file.peek(1))

    @property
    def spent(self) -> bool:
        return not self._left

    def readline(self, size: int = -1) -> bytes:
        line = self._file.readline(min(self._left, size) if size >= 0 else self._left) if self._left else b""
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


def _has_more(headers: Message) -> bool:
    """Whether there may be a body, or something that another server would take for one (RFC 9112, 11.2)."""
    lengths = headers.get_all("Content-Length", [])
    odd = headers.defects or headers.get_payload() or any(name != name.strip() for name in headers)
    return bool(odd) or any(length.strip() != "0" for length in lengths) or "Transfer-Encoding" in headers


class _Handler(http.server.BaseHTTPRequestHandler):
    routes: Mapping[str, Route] = {}
    allowed: frozenset[bytes] = frozenset()
    server: _Server
    server_version, sys_version = "edgeagent", ""
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Bounded before a password is checked."""
        super().setup()
        assert isinstance(self.rfile, io.BufferedReader), "what socket.makefile makes"
        self.rfile = self._bounded = _Bounded(self.rfile)  # type: ignore[assignment]  # only lines are read of it
        self._answered = False

    def handle_one_request(self) -> None:
        """Wait for the next one with another bound than for the rest of one that has begun."""
        self.close_connection = True
        if self._answered:
            self.server.waits(self.connection)
            self.connection.settimeout(IDLE_SECONDS)
        with contextlib.suppress(OSError):  # a time-out among them
            if self._bounded.begins():
                self.server.asks(self.connection)
                self.connection.settimeout(SECONDS)
                super().handle_one_request()
                self._answered = True

    def do_GET(self) -> None:  # the standard library's own name
        self._answer(body=True)

    def do_HEAD(self) -> None:  # likewise
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        route = self.routes.get(self.path.partition("?")[0])
        if self._bounded.spent:  # half a request: what its headers would have said is not known
            answer = Answer(code=431, kind="text/plain", body=b"431\n")
        elif not self._may():
            answer = Answer(code=401, kind="text/plain", body=b"401\n", headers={"WWW-Authenticate": _REALM})
        elif route is None:
            answer = Answer(code=404, kind="text/plain", body=b"404: /, /metrics, /healthz and /readyz are here\n")
        else:
            answer = route(self.headers.get("Accept", ""))
        # What came behind the headers is not read, and must not be taken for the next request. A client of 1.0 would
        # have to be told that the connection stays.
        last = self._bounded.spent or self.request_version != "HTTP/1.1" or _has_more(self.headers)
        data, zipped = answer.body, False
        if len(data) > _WORTH_GZIP and "gzip" in self.headers.get("Accept-Encoding", ""):
            data, zipped = gzip.compress(data, compresslevel=1, mtime=0), True
        head = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **answer.headers,
            **({"Content-Encoding": "gzip"} if zipped else {}),
            **({"Connection": "close"} if last else {}),
        }
        self.send_response(answer.code)
        for name, value in head.items():
            self.send_header(name, value)
        with io.BytesIO() as whole:  # head and body in one piece: two would wait for each other
            out, self.wfile = self.wfile, whole
            self.end_headers()
            self.wfile = out
            self.wfile.write(whole.getvalue() + (data if body else b""))

    def _may(self) -> bool:
        if not self.allowed:
            return True
        word, _, sent = self.headers.get("Authorization", "").partition(" ")
        try:
            given = hashlib.sha256(base64.b64decode(sent, validate=True)).digest()
        except ValueError:
            return False
        matches = [hmac.compare_digest(given, candidate) for candidate in self.allowed]
        return word.lower() == "basic" and any(matches)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the standard library's own name
        """A scrape every few seconds is no news."""
