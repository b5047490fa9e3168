"""`agent echo` behind a live frontend: the address seen is the address used."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from kit.edge import Edge, connect
from kit.servers import free_port

from agent.model.proxyheader import header
from agent.model.schema import ProxyProtocol, endpoint


@contextlib.contextmanager
def agent_echo(address: str) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-u", "-m", "agent", "echo", "--listen", address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"listening on {address}" in process.stderr.readline()
        try:
            yield process
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()


def test_through_a_live_frontend_the_address_seen_is_the_address_used(edge: Edge):
    server, front = free_port(), free_port("127.0.0.1", "::1")
    with agent_echo(f"127.0.0.1:{server}") as process:
        edge.live(
            {
                "version": 1,
                "frontends": {"front": {"bind": [f"127.0.0.1:{front}", f"[::1]:{front}"], "backend": "echo"}},
                "backends": {"echo": {"servers": {"echo": {"address": f"127.0.0.1:{server}"}}}},
            }
        )
        for source, host in (("127.0.0.77", "127.0.0.1"), ("127.0.0.78", "127.0.0.1"), ("::1", "::1")):
            with connect(front, source=source, host=host) as one, one.makefile("r") as stream:
                port = one.getsockname()[1]
                used = f"[{source}]:{port}" if ":" in source else f"{source}:{port}"
                assert stream.readline().strip() == f"client {used}"
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert any("client 127.0.0.77:" in line or "LOCAL" in line for line in said)


def test_whoever_sends_no_header_is_told_so(one_edge: Edge):
    port = free_port()
    with agent_echo(f"127.0.0.1:{port}"):
        with connect(port) as one, one.makefile("r") as stream:
            one.sendall(b"EHLO client.example\r\n")
            assert stream.readline() == "no PROXY v2 header: this does not begin with a PROXY v2 header\n"
        with connect(port) as one, one.makefile("r") as stream:
            start = time.monotonic()
            assert stream.readline() == "no PROXY v2 header: none came\n"
            assert time.monotonic() - start < 9
        with connect(port) as one:  # hangs up half-way, and harms nobody
            one.sendall(b"\r\n\r\n\x00")
        four = endpoint("198.51.100.7:4711")
        with connect(port) as one, one.makefile("r") as stream:
            one.sendall(header(ProxyProtocol.V2, four, endpoint("192.0.2.1:25")))
            assert stream.readline() == "client 198.51.100.7:4711\n"


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999"])
def test_a_wrong_address_is_a_usage_error(one_edge: Edge, listen: str):
    done = one_edge.agent("echo", "--listen", listen)
    assert done.returncode == 2
    assert "expected an address and a port" in done.stderr


def test_an_address_that_is_taken_is_said(one_edge: Edge):
    port = free_port()
    with agent_echo(f"127.0.0.1:{port}"):
        done = one_edge.agent("echo", "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
