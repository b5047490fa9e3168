"""The HTTP server by itself: who takes too long is hung up on, with TLS and without."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from agent.desired.addresses import Endpoint
from agent.host import http_server
from agent.host.http_server import Answer, Listen, serving


@pytest.mark.parametrize("tls", [False, True])
def test_who_drips_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool):
    import trustme

    monkeypatch.setattr(http_server, "SECONDS", 0.6)
    authority = trustme.CA()
    file = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    listen = Listen(
        address=Endpoint(4, "127.0.0.1", 0), certificate=str(file) if tls else "", key=str(file) if tls else ""
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    threads = threading.active_count()
    with serving(listen, {"/": lambda _: Answer(code=200, kind="text/plain", body=b"hello")}) as where:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(socket.create_connection((where.host, where.port), 5))
            one = stack.enter_context(context.wrap_socket(raw, server_hostname="127.0.0.1")) if tls else raw
            start = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - start < 5:
                    one.sendall(b"G")
                    time.sleep(0.05)  # the client's own behaviour: it drips
            assert time.monotonic() - start < 4
        with socket.create_connection((where.host, where.port), 5) as raw, contextlib.ExitStack() as stack:
            one = stack.enter_context(context.wrap_socket(raw, server_hostname="127.0.0.1")) if tls else raw
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while more := one.recv(1_000):
                said += more
            assert said.endswith(b"\r\n\r\nhello")
    while threading.active_count() > threads:
        time.sleep(0.01)  # threads give no event when they end


def test_a_thread_that_cannot_start_keeps_no_slot(monkeypatch: pytest.MonkeyPatch):
    class Tired(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with serving(
        Listen(address=Endpoint(4, "127.0.0.1", 0)), {"/": lambda _: Answer(code=200, kind="text/plain", body=b"hello")}
    ) as where:

        def ask() -> bytes:
            with socket.create_connection((where.host, where.port), 5) as one, contextlib.suppress(OSError):
                one.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return one.recv(10)
            return b""

        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", Tired)
            assert [ask() for _ in range(http_server.AT_ONCE + 1)] == [b""] * (http_server.AT_ONCE + 1)
        assert ask() == b"HTTP/1.1 2"


HELLO = {"/": lambda _: Answer(code=200, kind="text/plain", body=b"hello")}


def talk(where: Endpoint, request: bytes) -> bytes:
    """All that is answered to these bytes, until the server hangs up."""
    with socket.create_connection((where.host, where.port), 5) as client:
        client.sendall(request)
        answered = b""
        while more := client.recv(10_000):
            answered += more
        return answered


def test_a_connection_is_kept_for_the_next_request():
    with serving(Listen(address=Endpoint(4, "127.0.0.1", 0)), HELLO) as where:
        client = http.client.HTTPConnection(where.host, where.port, timeout=5)
        sockets = set()
        for path, method in (("/", "GET"), ("/none", "GET"), ("/", "HEAD"), ("/", "GET")):
            client.request(method, path)
            answer = client.getresponse()
            answer.read()
            assert (answer.version, answer.getheader("Connection")) == (11, None)
            sockets.add(client.sock)
        assert len(sockets) == 1
        client.close()
        # Two at once, and the last one says that it is.
        answered = talk(
            where, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        assert answered.count(b"hello") == 2


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",  # it is not told that the connection stays
        b"GET / HTTP/1.1\r\nContent-Length: 33\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 0, 5\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 21\r\n\r\nGET / HTTP/1.1\r\n\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length : 18\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nfoo\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nfoo\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_comes_behind_the_headers_is_no_next_request(request_: bytes):
    with serving(Listen(address=Endpoint(4, "127.0.0.1", 0)), HELLO) as where:
        answered = talk(where, request_)
        assert (answered.count(b"HTTP/1.1 "), b"Connection: close\r\n" in answered) == (1, True)


def test_the_bytes_of_each_request_are_counted_by_themselves():
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * 9_000 + b"\r\n"
    with serving(Listen(address=Endpoint(4, "127.0.0.1", 0)), HELLO) as where:
        assert talk(where, (head + b"\r\n") * 3 + head + b"Connection: close\r\n\r\n").count(b"hello") == 4
        answered = talk(where, head + b"\r\n" + b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n")
        assert (answered.count(b"hello"), b" 431 " in answered) == (1, True)


def test_connections_that_only_wait_give_their_slots_to_new_clients():
    with contextlib.ExitStack() as stack, serving(Listen(address=Endpoint(4, "127.0.0.1", 0)), HELLO) as where:
        for _ in range(http_server.AT_ONCE + 10):
            client = stack.enter_context(socket.create_connection((where.host, where.port), 5))
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(1_000).endswith(b"hello")


def test_an_idle_connection_is_closed_after_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.3)
    with serving(Listen(address=Endpoint(4, "127.0.0.1", 0)), HELLO) as where:
        assert talk(where, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").endswith(b"hello")
