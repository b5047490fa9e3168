"""The probe on real servers that people put behind a PROXY header: each as one that demands it and as a plain twin."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP as SmtpServer  # noqa: N811  # a class that is written like a constant
from kit.edge import until
from kit.left_out import leave_out
from kit.servers import free_port

from agent.desired.addresses import Endpoint
from agent.desired.schema import Application, ProxyProtocol
from agent.host.proxy_probe import ask
from agent.proxy_protocol.greetings import ProbeResult, Question, Result

ROUNDS = 3


def found(port: int, application: Application, version: ProxyProtocol) -> ProbeResult:
    question = Question(
        key=("b", "s"), address=Endpoint(4, "127.0.0.1", port), application=application, version=version
    )
    return ask([question])["b", "s"]


def told_apart(application: Application, demanding: int, plain: int, *, without: Result = Result.SPEAKS_PROXY) -> None:
    """`without`: what the demanding one is where no header would be sent; the probe finds out that it takes one."""
    for version in (ProxyProtocol.V2, ProxyProtocol.V1):
        for _ in range(ROUNDS):
            seen = found(demanding, application, version)
            assert seen.result is Result.SPEAKS_PROXY, seen
            seen = found(plain, application, version)
            assert seen.result is Result.PLAIN, seen
    assert found(plain, application, ProxyProtocol.NONE).result is Result.PLAIN
    seen = found(demanding, application, ProxyProtocol.NONE)
    assert seen.result is without, seen


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def running(*words: str | Path, ports: tuple[int, ...], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        until(lambda: all(map(answers, ports)) or process.poll() is not None, f"{words[0]} listens")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    made = trustme.CA().issue_cert("www.example.org", "127.0.0.1", common_name="www.example.org")
    made.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return folder / "server.pem"


def test_haproxy_with_accept_proxy(haproxy_binary: Path, certificate: Path, tmp_path: Path):
    http, plain_http, tls, plain_tls = (free_port() for _ in range(4))
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend f
    bind 127.0.0.1:{http} accept-proxy
    bind 127.0.0.1:{plain_http}
    bind 127.0.0.1:{tls} accept-proxy ssl crt {certificate}
    bind 127.0.0.1:{plain_tls} ssl crt {certificate}
    http-request return status 404
""")
    with running(haproxy_binary, "-db", "-f", config, ports=(http, tls), log=tmp_path / "log"):
        told_apart(Application.HTTP, http, plain_http)
        told_apart(Application.TLS, tls, plain_tls)


def test_nginx_with_proxy_protocol(certificate: Path, tmp_path: Path):
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if nginx is None:
        leave_out("nginx is not here")
    http, plain_http, tls, plain_tls = (free_port() for _ in range(4))
    tls_lines = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    config = tmp_path / "nginx.conf"
    config.write_text(f"""
daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f;
    uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
    server {{ listen 127.0.0.1:{http} proxy_protocol; return 204; }}
    server {{ listen 127.0.0.1:{plain_http}; return 204; }}
    server {{ listen 127.0.0.1:{tls} ssl proxy_protocol; {tls_lines} return 204; }}
    server {{ listen 127.0.0.1:{plain_tls} ssl; {tls_lines} return 204; }}
}}
""")
    words = (nginx, "-c", config, "-e", tmp_path / "error.log", "-p", tmp_path)
    with running(*words, ports=(http, tls), log=tmp_path / "log"):
        told_apart(Application.HTTP, http, plain_http)
        told_apart(Application.TLS, tls, plain_tls)


def test_caddy_with_the_proxy_protocol_wrapper(certificate: Path, tmp_path: Path):
    caddy = Path(sys.executable).parent / "caddy"
    if not caddy.exists():
        leave_out("Caddy is not here")
    http, plain_http, tls, plain_tls = (free_port() for _ in range(4))
    wrap = "listener_wrappers {\n proxy_protocol {\n timeout 5s\n allow 127.0.0.0/8\n }\n tls\n }"
    config = tmp_path / "Caddyfile"
    config.write_text(f"""{{
    admin off
    auto_https off
    persist_config off
    default_sni www.example.org
    servers 127.0.0.1:{http} {{
        {wrap}
    }}
    servers 127.0.0.1:{tls} {{
        {wrap}
    }}
}}
http://:{http}, http://:{plain_http} {{
    bind 127.0.0.1
    respond 404
}}
https://:{tls}, https://:{plain_tls} {{
    bind 127.0.0.1
    tls {certificate} {certificate}
    respond 404
}}
""")
    words = (caddy, "run", "--config", config, "--adapter", "caddyfile")
    with running(*words, ports=(http, plain_http, tls, plain_tls), log=tmp_path / "log"):
        # Caddy takes clients without a header too, whatever they are.
        told_apart(Application.HTTP, http, plain_http, without=Result.PLAIN)
        told_apart(Application.TLS, tls, plain_tls, without=Result.PLAIN)


def test_aiosmtpd_with_its_proxy_timeout():
    sessions: list[SmtpServer] = []

    class Mail:
        async def handle_PROXY(self, *_: object) -> bool:  # noqa: N802  # aiosmtpd's own name
            return True

    class Counting(Controller):
        def factory(self) -> SmtpServer:
            sessions.append(super().factory())
            return sessions[-1]

    class Plain(Counting):
        def factory(self) -> SmtpServer:
            sessions.append(SmtpServer(self.handler))
            return sessions[-1]

    demanding = Counting(Mail(), hostname="127.0.0.1", port=free_port(), proxy_protocol_timeout=5.0)
    plain = Plain(object(), hostname="127.0.0.1", port=free_port())
    with contextlib.ExitStack() as undo:
        for one in (demanding, plain):
            one.start()
            undo.callback(one.stop)
        told_apart(Application.SMTP, demanding.port, plain.port)
        # aiosmtpd stops its loop under whatever is still open.
        until(lambda: all(session.transport is None for session in sessions), "the servers have seen the probes end")
