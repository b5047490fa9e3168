"""What a scrape tells, whatever happens, and whoever asks."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.edge import Edge, connect, first_line, until
from kit.left_out import leave_out
from kit.servers import EchoServer, echo, free_port
from prometheus_client.parser import text_string_to_metric_families

from agent.view import routes as view

NAMES = """
    frontend_up frontend_listening frontend_quarantined frontend_current_sessions frontend_sessions_total
    frontend_connections_denied_total frontend_bytes_in_total frontend_bytes_out_total frontend_servers_up
    frontend_servers backend_servers server_up server_current_sessions server_check_duration_seconds
    server_proxy_handshake
    applies_total apply_duration_seconds_bucket reloads_total runtime_updates_total rollbacks_total
    drift_corrections_total in_sync held live_generation live_timestamp_seconds desired_read_timestamp_seconds live_info
    haproxy_up haproxy_processes haproxy_resident_memory_bytes haproxy_open_fds build_info
"""


class Scraped(dict[tuple[str, tuple[tuple[str, str], ...]], float]):
    """Samples by name and labels."""

    def of(self, name: str, /, **labels: str) -> float:
        return self[f"edgeagent_{name}", tuple(sorted(labels.items()))]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self}


class Site:
    """An agent that serves, and where."""

    def __init__(self, edge: Edge, port: int) -> None:
        self.edge, self.port = edge, port

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    def scrape(self) -> Scraped:
        code, body, _ = self.get()
        assert code == 200
        return Scraped(
            ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        )


def served(edge: Edge, document: dict[str, Any], more: str = "") -> Site:
    port = free_port()
    haproxy = f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1s"\n'
    edge.configure(f'{haproxy}[metrics]\nlisten = "127.0.0.1:{port}"\n{more}')
    edge.put(document)
    edge.serve()
    return Site(edge, port)


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as one:
        yield one


def state(server: str, *ports: int, **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "home",
        "serial": 7,
        "frontends": {f"f{n}": {"bind": [f"127.0.0.1:{port}"], "backend": "pool"} for n, port in enumerate(ports)},
        "backends": {"pool": {"servers": {"a": {"address": server}}, "health": {"interval": "200ms"}}},
        **more,
    }


def test_every_metric_of_the_contract_is_there(edge: Edge, backend: EchoServer):
    port, taken = free_port(), free_port()
    document = state(backend.address, port, taken)
    document["frontends"]["canary"] = {"bind": [f"127.0.0.1:{free_port()}"], "backend": "pool", "canary": True}
    document["backends"]["mail"] = {"application": "smtp", "servers": {"m": {"address": backend.address}}}
    document["frontends"]["mail"] = {"bind": [f"127.0.0.1:{free_port()}"], "backend": "mail"}
    with socket.create_server(("127.0.0.1", taken)):
        site = served(edge, document)
        first_line(port)
        wanted = {f"edgeagent_{name}" for name in NAMES.split()}
        until(lambda: wanted <= site.scrape().names, "all of them")
        # HAProxy counts bytes when a session ends (its manual, option contstats).
        until(lambda: site.scrape().of("frontend_bytes_out_total", frontend="f0") > 1, "the session has ended")
        found = site.scrape()
        assert found.of("frontend_quarantined", frontend="f1", bind=f"127.0.0.1:{taken}", reason="in_use") == 1
        assert (found.of("frontend_up", frontend="f0"), found.of("frontend_up", frontend="f1")) == (1, 0)
        assert found.of("frontend_listening", frontend="f1", bind=f"127.0.0.1:{taken}") == 0
        assert found.of("frontend_sessions_total", frontend="f0") == 1
        assert found.of("frontend_bytes_out_total", frontend="f0") > 1
        assert found.of("live_info", digest=edge.status()["live"]["digest"], serial="7", name="home") == 1
        assert found.of("haproxy_processes", role="serving") == 1
        assert found.of("server_proxy_handshake", backend="mail", server="m", result="wrong_protocol") == 1
        assert found.of("in_sync") == 1
        assert found["process_resident_memory_bytes", ()] > 10_000_000
        assert found["process_cpu_seconds_total", ()] > 0
        assert edge.status()["frontends"][0]["client_ip_preserved"] is None  # it is no echo of ours that answered


def test_promtool_finds_nothing_to_say(one_edge: Edge, backend: EchoServer):
    promtool = "/usr/bin/promtool"
    if not Path(promtool).exists():
        leave_out("promtool is not here")
    site = served(one_edge, state(backend.address, free_port()))
    done = subprocess.run([promtool, "check", "metrics"], input=site.get()[1], capture_output=True, check=False)
    # The names are a contract: a gauge `frontend_sessions` stands beside a counter `frontend_sessions_total`.
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_totals_go_on_over_reloads(edge: Edge, backend: EchoServer):
    port = free_port()
    site = served(edge, state(backend.address, port))
    seen = 0.0
    for turn in range(1, 4):
        for _ in range(5):
            assert first_line(port)
        until(lambda turn=turn: site.scrape().of("frontend_sessions_total", frontend="f0") == 5 * turn, "counted")
        before, old = site.scrape(), edge.pid
        edge.put(state(backend.address, port, free_port(), defaults={"maxconn": 100 + turn}))
        until(lambda old=old: edge.haproxy.running() and edge.pid != old, "a new process")
        now = site.scrape()
        for name in ("frontend_sessions_total", "frontend_bytes_in_total", "frontend_bytes_out_total"):
            assert now.of(name, frontend="f0") >= before.of(name, frontend="f0") >= 0
        seen = now.of("frontend_sessions_total", frontend="f0")
    assert seen == 15
    until(lambda: site.scrape().of("reloads_total") == 4, "reloads are counted")


def test_a_frozen_haproxy_fails_no_scrape(one_edge: Edge, backend: EchoServer):
    port = free_port()
    site = served(one_edge, state(backend.address, port))
    until(lambda: site.scrape().of("frontend_servers_up", frontend="f0") == 1, "up")
    process = psutil.Process(one_edge.pid)
    process.suspend()
    try:
        # What was asked just before is believed for a quarter of a second; for 30 s while the agent is at a change.
        until(lambda: site.scrape().of("haproxy_up") == 0, "it is noticed", 45)
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: site.scrape(), range(50)))
        assert time.monotonic() - start < 8  # two rounds of a second at most, however many ask
        start = time.monotonic()
        last = site.scrape()
        assert time.monotonic() - start < 1.5
    finally:
        process.resume()
    assert {one.of("haproxy_up") for one in (*answers, last)} == {0}
    assert last.of("frontend_current_sessions", frontend="f0") == 0  # last known
    assert last.of("server_up", backend="pool", server="a") == 1
    assert last.of("frontend_up", frontend="f0") == last.of("frontend_servers_up", frontend="f0") == 1
    until(lambda: site.scrape().of("haproxy_up") == 1, "up again")


def test_a_thousand_frontends_with_the_longest_names(one_edge: Edge, backend: EchoServer):
    ports = iter(range(40_000, 60_000))  # nobody connects to them, and a few may be taken
    names = [f"{n:04d}{'x' * 59}" for n in range(1_000)]
    document = {
        "version": 1,
        "frontends": {name: {"bind": [f"127.0.0.1:{next(ports)}"], "backend": name} for name in names},
        "backends": {
            name: {"servers": {"a": {"address": backend.address}}, "health": {"interval": "10m"}} for name in names
        },
    }
    site = served(one_edge, document)
    until(lambda: site.get("/healthz")[0] == 200, "the agent lives")
    found = until(lambda: (scraped := site.scrape()).names >= {"edgeagent_frontend_up"} and scraped, "a scrape", 60)
    assert sum(1 for name, _ in found if name == "edgeagent_frontend_up") == 1_000
    assert found.of("server_up", backend=names[7], server="a") == 1
    assert site.get("/")[0] == 200


def test_health_and_readiness(one_edge: Edge, backend: EchoServer):
    port, taken = free_port(), free_port()
    site = served(one_edge, state(backend.address, port))
    assert site.get("/healthz")[:2] == (200, b"ok\n")
    until(lambda: site.get("/readyz")[0] == 200, "ready")
    with socket.create_server(("127.0.0.1", taken)):
        one_edge.put(state(backend.address, port, taken))
        until(lambda: site.get("/readyz")[0] == 503, "not ready")
        reasons = json.loads(site.get("/readyz")[1])["reasons"]
        assert len(reasons) == 1
        assert f"frontend f1 is quarantined (127.0.0.1:{taken}: " in reasons[0]
    until(lambda: site.get("/readyz")[0] == 200, "ready by itself")
    one_edge.put({"version": 1, "nonsense": 1})
    until(lambda: "nonsense" in site.get("/readyz")[1].decode(), "it says what of the document is wrong")
    assert site.get("/readyz")[0] == 503


def test_formats(one_edge: Edge, backend: EchoServer):
    site = served(one_edge, state(backend.address, free_port()))
    code, body, headers = site.get(Accept="application/openmetrics-text; version=1.0.0")
    assert (code, body.endswith(b"# EOF\n")) == (200, True)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict

    assert {one.name for one in strict(body.decode())} >= {"edgeagent_frontend_sessions", "edgeagent_reloads"}
    code, zipped, headers = site.get(Accept_Encoding="gzip")
    assert (headers["Content-Encoding"], gzip.decompress(zipped)[:7]) == ("gzip", b"# HELP ")
    code, body, headers = site.get(method="HEAD")
    assert (code, body, int(headers["Content-Length"]) > 5_000) == (200, b"", True)


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/nobody", "GET", 404),
        ("/../../etc/passwd", "GET", 404),
        ("//etc/passwd", "GET", 404),
        ("/%2e%2e/etc/passwd", "GET", 404),
        ("/metrics", "POST", 501),
        ("/metrics", "DELETE", 501),
        ("/metrics?x=1", "GET", 200),
    ],
)
def test_other_questions(one_edge: Edge, path: str, method: str, code: int):
    site = served(one_edge, {"version": 1})
    assert site.get(path, method)[0] == code


def test_hostile_clients_cost_no_memory_no_thread_and_no_time(one_edge: Edge, backend: EchoServer):
    port = free_port()
    site = served(one_edge, state(backend.address, port))
    service = psutil.Process(one_edge.services[0].pid)
    site.get()
    before = service.memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(40):  # never say a word, never read an answer
            one = stack.enter_context(connect(site.port))
            one.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert site.get(Host="../../x\"'<script>")[0] == 200
        for junk in (
            b"\xff\x00\x01\r\n\r\n",
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x00" * 50,
        ):
            with connect(site.port) as other, contextlib.suppress(OSError):  # it may hang up
                other.sendall(junk)
                other.shutdown(socket.SHUT_WR)
                assert b"Traceback" not in other.recv(10_000)
        with connect(site.port) as other, contextlib.suppress(ConnectionError):
            other.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000)
            assert other.recv(100)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
        start = time.monotonic()
        one_edge.put(state(backend.address, port, free_port()))
        one_edge.wait("committed")
        until(lambda: one_edge.status()["live"]["generation"] == 2, "a change meanwhile", 5)
        assert time.monotonic() - start < 5
    until(lambda: service.num_threads() < 12, "the threads have ended", 15)
    assert service.memory_info().rss - before < 30_000_000


def test_headers_are_bounded_before_a_password_is_looked_at(one_edge: Edge, tmp_path: Path):
    (tmp_path / "passwords").write_text("# prometheus: not an account\n:\n\nprometheus:secret\n")
    site = served(one_edge, {"version": 1}, f'passwords = "{tmp_path}/passwords"')
    service = psutil.Process(one_edge.services[0].pid)
    before = service.memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            other = stack.enter_context(connect(site.port))
            with contextlib.suppress(OSError):
                other.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"x" * 60_000) for n in range(90)))
        assert site.get(Authorization=f"Basic {base64.b64encode(b'prometheus:secret').decode()}")[0] == 200
        assert service.memory_info().rss - before < 20_000_000
    for wrong in (b"# prometheus: not an account", b":", b"prometheus"):
        assert site.get(Authorization=f"Basic {base64.b64encode(wrong).decode()}")[0] == 401


def test_a_service_that_stands_still_says_so(one_edge: Edge, backend: EchoServer):
    """`DEAF_SECONDS` is a minute; here the page and readiness are asked for what they say then."""
    gone = site_of(alive=False)
    assert gone.routes["/healthz"]("")["code"] == gone.routes["/readyz"]("")["code"] == 503
    assert "has not looked since" in gone.routes["/readyz"]("")["body"].decode()
    page = gone.routes["/"]("")["body"].decode()
    assert "<title>Attention" in page
    assert "what follows may be old" in page
    assert "has not looked" not in site_of(alive=True).routes["/"]("")["body"].decode()


def site_of(*, alive: bool) -> view.Site:
    return view.Site(look=lambda: None, usage=lambda: {"processes": {}}, alive=lambda: alive)


def test_a_key_without_a_certificate_is_no_tls_and_said(one_edge: Edge, tmp_path: Path):
    site = served(one_edge, {"version": 1}, f'key = "{tmp_path}/key.pem"')
    with pytest.raises(ConnectionRefusedError):
        site.get()
    assert "metrics.key without metrics.certificate" in one_edge.log


def test_tls_and_passwords(one_edge: Edge, tmp_path: Path):
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    (tmp_path / "passwords").write_text("prometheus:secret\n")
    more = f'certificate = "{tmp_path}/server.pem"\nkey = "{tmp_path}/server.pem"\npasswords = "{tmp_path}/passwords"'
    site = served(one_edge, {"version": 1}, more)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def get(credentials: str | None) -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", site.port, timeout=10, context=context)
        basic = base64.b64encode(credentials.encode()).decode() if credentials is not None else ""
        connection.request("GET", "/metrics", headers={"Authorization": f"Basic {basic}"} if credentials else {})
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    assert [get(one) for one in (None, "", "prometheus:wrong", "prometheus", "prometheus:secret")] == [401] * 4 + [200]
    with connect(site.port) as plain, contextlib.suppress(ConnectionError):
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/1.1 200")


def test_an_address_that_is_taken_costs_the_metrics_not_the_service(one_edge: Edge, backend: EchoServer):
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        one_edge.configure(f'[haproxy]\nbinary = "{one_edge.binary}"\n[metrics]\nlisten = "127.0.0.1:{taken}"')
        one_edge.put(state(backend.address, port))
        one_edge.serve()
        assert first_line(port)[:1] == "a"
    assert f"cannot listen on 127.0.0.1:{taken} for metrics" in one_edge.log


def test_the_service_ends_while_somebody_reads(one_edge: Edge):
    site = served(one_edge, {"version": 1})
    with connect(site.port):
        service = one_edge.services[0]
        service.send_signal(signal.SIGTERM)
        assert service.wait(10) == 0
    assert threading.active_count() < 50
