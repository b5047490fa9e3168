"""The HTTP server by itself: who takes too long is hung up on, with TLS and without."""

from __future__ import annotations

import contextlib
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
        assert ask() == b"HTTP/1.0 2"
