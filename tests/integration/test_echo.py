"""`agent echo` behind a live frontend: the address seen is the address used."""

from __future__ import annotations

import contextlib
import json
import signal
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from kit.edge import Edge, connect, until
from kit.onefile import AGENT
from kit.servers import free_port

from agent.desired.addresses import endpoint
from agent.desired.schema import ProxyProtocol
from agent.proxy_protocol.header import header


@contextlib.contextmanager
def agent_echo(address: str) -> Iterator[subprocess.Popen[str]]:
    words = [*AGENT, "echo", "--listen", address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"listening on {address}" in process.stderr.readline()
        try:
            yield process
            process.send_signal(signal.SIGTERM)
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


@contextlib.contextmanager
def liar(answer: bytes) -> Iterator[int]:
    """Answers everybody with that line."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(1_000)
                self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def canaried(front: int, server: int, **more: Any) -> dict[str, Any]:
    pool = {"servers": {"echo": {"address": f"127.0.0.1:{server}"}}, "health": {"type": "none"}}
    bind = [f"127.0.0.1:{front}", f"[::1]:{front}"]
    return {
        "version": 1,
        "frontends": {"front": {"bind": bind, "backend": "echo", **more}},
        "backends": {"echo": pool},
    }


@pytest.mark.parametrize("more", [{}, {"accept_proxy": True}, {"routes": [{"sni": ["x.example"], "backend": "echo"}]}])
def test_via_a_live_frontend_the_address_seen_is_the_address_used(one_edge: Edge, more: dict[str, Any]):
    server, front = free_port(), free_port("127.0.0.1", "::1")
    with agent_echo(f"127.0.0.1:{server}"):
        one_edge.live(canaried(front, server, **more))
        for source in ("127.0.0.77", "127.0.0.78", "::1"):
            done = one_edge.agent("probe", "--via", "front", "--source", source, "--json")
            (arrival,) = json.loads(done.stdout)
            assert (done.returncode, arrival["preserved"]) == (0, True), arrival
            assert arrival["used"] == arrival["told"]
            assert arrival["used"].strip("[").startswith(source)
        done = one_edge.agent("probe", "--via", "front")
        assert (done.returncode, done.stdout.count("the address seen is the address used")) == (0, 2)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"client 10.0.20.1:4711\r\n", 4, "and was seen as 10.0.20.1:4711"),
        (b"LOCAL\r\n", 4, 'the echo was not told who came: "LOCAL"'),
        (b"220 mail.example.org ESMTP\r\n", 7, 'no echo answered, but "220 mail.example.org ESMTP"'),
        (b"", 7, "nothing answered"),
        (b"x" * 100_000, 7, "no echo answered"),
        (b"client \xff\x1b[31m\r\n", 7, 'no echo answered, but "client ..[31m"'),
    ],
)
def test_via_tells_what_else_came(one_edge: Edge, answer: bytes, code: int, words: str):
    front = free_port("127.0.0.1", "::1")
    with liar(answer) as server:
        one_edge.live(canaried(front, server))
        done = one_edge.agent("probe", "--via", "front")
        assert done.returncode == code
        assert words in done.stdout


def test_via_says_what_is_wrong_with_the_question(one_edge: Edge):
    def error(*words: str) -> str:
        done = one_edge.agent("probe", *words)
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "nothing is live yet" in error("--via", "front")
    with liar(b"") as server:
        one_edge.live(canaried(free_port("127.0.0.1", "::1"), server))
        assert "no frontend nobody is live" in error("--via", "nobody")
        assert "x is no IP address" in error("--via", "front", "--source", "x")
        assert "leave the others out" in error("echo", "--via", "front")
        assert "--source belongs to --via" in error("--source", "127.0.0.1")


def test_a_canary_is_tried_at_every_resync_and_says_when_addresses_are_lost(one_edge: Edge):
    server, front, web = free_port(), free_port("127.0.0.1", "::1"), free_port()
    haproxy = f'[haproxy]\nbinary = "{one_edge.binary}"\nmaxconn = 500\n[apply]\nresync = "200ms"\n'
    one_edge.configure(f'{haproxy}[metrics]\nlisten = "127.0.0.1:{web}"')

    def exported(value: float) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/metrics", timeout=10) as answer:
            return f'frontend_client_ip_preserved{{frontend="front"}} {value}\n'.encode() in answer.read()

    with agent_echo(f"127.0.0.1:{server}") as process:
        one_edge.put(canaried(front, server, canary=True))
        one_edge.serve()

        def preserved() -> Any:
            return one_edge.status()["frontends"][0]["client_ip_preserved"]

        until(lambda: preserved() is True, "the canary sings")
        until(lambda: exported(1.0), "and Prometheus hears it")
        assert process.stdout is not None
        seen = {process.stdout.readline().split()[-1] for _ in range(4)}
        assert len(seen) == 4  # at every resync another connection
        with liar(b"client 10.0.20.1:4711\r\n") as other:
            one_edge.put(canaried(front, other, canary=True))
            until(lambda: preserved() is False, "somebody replaces addresses")
            until(lambda: exported(0.0), "and Prometheus hears it")
            finding = next(one for one in one_edge.status()["findings"] if "canary" in one["message"])
            assert finding["where"] == "frontends.front"
            assert "was seen as 10.0.20.1:4711" in finding["message"]
            assert one_edge.agent("status").stdout.count("was seen as 10.0.20.1:4711") == 2
        until(lambda: preserved() is None, "nobody answers")
        assert one_edge.log.count("was seen as 10.0.20.1:4711") == 2  # said once for each address
        one_edge.put(canaried(front, server))
        until(lambda: not one_edge.status()["frontends"][0]["canary"], "no canary any more")


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


def test_it_ends_at_ctrl_c(one_edge: Edge):
    # Whoever started the tests in the background of a shell had it ignore SIGINT, and all of its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with agent_echo(f"127.0.0.1:{free_port()}") as process:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0
    finally:
        signal.signal(signal.SIGINT, before)


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
