"""What becomes of clients: those that vanish, that match nothing, that forge a header, that come too often."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.edge import Edge, Load, connect, first_line, until
from kit.servers import echo, free_port

from agent.desired.addresses import Endpoint
from agent.desired.schema import ProxyProtocol
from agent.host.stats_socket import StatsSocket
from agent.proxy_protocol.header import header


def edge_of(port: int, *servers: Any, frontend: dict[str, Any] | None = None, **backend: Any) -> dict[str, Any]:
    made = {server.name: {"address": server.address} for server in servers}
    return {
        "version": 1,
        "frontends": {"f": {"bind": [f"127.0.0.1:{port}"], "backend": "b", **(frontend or {})}},
        "backends": {"b": {"servers": made, **backend}},
    }


def ask(edge: Edge, command: str) -> str:
    return StatsSocket(edge.folder / "run/haproxy.sock").ask(command)


def test_both_sides_of_a_session_are_kept_alive(edge: Edge):
    port = free_port()
    with echo("a") as server:
        edge.live(edge_of(port, server))
        with connect(port) as session:
            assert session.recv(100)
            # Of the kernel itself: which timer runs on HAProxy's ends of both connections.
            sockets = subprocess.run(["ss", "-Htnop"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in sockets.splitlines() if f"pid={edge.pid}," in line]
    to_client = [line for line in ours if re.search(rf"127\.0\.0\.1:{port}\s+127", line)]
    to_server = [line for line in ours if re.search(rf"127\.0\.0\.1:{server.port}\s+users", line)]
    assert len(to_client) == len(to_server) == 1, ours
    for line in (*to_client, *to_server):
        assert re.search(r"timer:\(keepalive,3min\d+sec,0\)", line), line


@contextlib.contextmanager
def holding_server() -> Iterator[socket.socket]:
    """Greets, and never hangs up of its own accord."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_session_that_one_side_has_closed_does_not_wait_for_an_hour(edge: Edge, side: str):
    port = free_port()
    with holding_server() as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        state = edge_of(port, proxy_protocol="none", health={"type": "none"})
        state["backends"]["b"]["servers"] = {"a": {"address": address}}
        edge.live(state)
        with connect(port) as session:
            session.sendall(b"hello")
            with _client_of(listener) as accepted:
                until(lambda: _expires(edge) > 3_000, "the timer of the connect has given way to the client's")
                closing, other = (session, accepted) if side == "client" else (accepted, session)
                closing.shutdown(socket.SHUT_WR)
                assert other.recv(100) == b""  # HAProxy has passed it on
                until(lambda: _expires(edge) <= 60, "it ends within a minute")


def _client_of(listener: socket.socket) -> socket.socket:
    """The connection that says hello: the agent's own preflight connects too, and says nothing."""
    while True:
        accepted = listener.accept()[0]
        with contextlib.suppress(ConnectionResetError):
            if accepted.recv(100) == b"hello":
                return accepted
        accepted.close()


def _expires(edge: Edge) -> int:
    """In how many seconds HAProxy ends the only session of our frontend (`show sess`)."""
    line = next(line for line in ask(edge, "show sess").splitlines() if " fe=fe:f " in line)
    found = re.search(r" exp=(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", line)
    assert found is not None, line
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def test_timeouts_of_one_frontend_and_of_one_backend(edge: Edge):
    short, long, slow = free_port(), free_port(), free_port()
    with echo("a") as server, holding_server() as listener:
        state = edge_of(long, server)
        state["frontends"]["short"] = {"bind": [f"127.0.0.1:{short}"], "backend": "b", "timeouts": {"client": "300ms"}}
        state["frontends"]["slow"] = {"bind": [f"127.0.0.1:{slow}"], "backend": "slow"}
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        state["backends"]["slow"] = {
            "servers": {"a": {"address": address}},
            "proxy_protocol": "none",
            "health": {"type": "none"},
            "timeouts": {"server": "300ms"},
        }
        edge.live(state)
        with connect(long) as patient, connect(short) as hasty, connect(slow) as waiting:
            assert patient.recv(100)
            assert hasty.recv(100)
            assert (hasty.recv(100), waiting.recv(100)) == (b"", b"")
            patient.sendall(b"still here")
            assert patient.recv(100) == b"still here"


def hello(name: str | None) -> bytes:
    """A ClientHello as OpenSSL writes it, with this name or with none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def answer(port: int, data: bytes, *, source: str = "127.0.0.1") -> bytes:
    """What a client hears that sends `data`; b"" where it is hung up on."""
    with connect(port, source=source) as session:
        try:
            session.sendall(data)
            return session.recv(100)
        except ConnectionResetError:
            return b""


def test_who_matches_no_route_is_refused_before_any_server_is_involved(edge: Edge):
    port = free_port()
    routes = [{"sni": ["a.example.org", "*.b.example.org"], "backend": "b"}]
    with echo("a") as server:
        state = edge_of(port, server, frontend={"routes": routes}, health={"type": "none"})
        del state["frontends"]["f"]["backend"]
        edge.live(state)
        start = len(server.seen)
        for data in (
            hello(None),
            hello("other.example.org"),
            hello("b.example.org"),
            b"EHLO x\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
        ):
            assert answer(port, data) == b"", data
        assert len(server.seen) == start
        assert answer(port, hello("A.example.org")).startswith(b"a PROXY")
        assert answer(port, hello("x.b.example.org")).startswith(b"a PROXY")
        (frontend,) = (one for one in StatsSocket(edge.folder / "run/haproxy.sock").observe().frontends)
        assert frontend.denied == 5


def test_a_hello_over_two_records_is_refused_where_names_are_needed(edge: Edge):
    """facts.md, HAProxy 14, and docs/desired-state.md: its name is not read."""
    port = free_port()
    data = hello("a.example.org")
    body = data[5:]
    split = b"".join(
        b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in (body[:40], body[40:])
    )  # RFC 8446, 5.1: a message may be fragmented over records
    with echo("a") as server:
        state = edge_of(port, server, frontend={"routes": [{"sni": ["a.example.org"], "backend": "b"}]})
        del state["frontends"]["f"]["backend"]
        edge.live(state)
        assert answer(port, data).startswith(b"a PROXY")
        assert answer(port, split) == b""


def test_only_known_proxies_may_send_a_header_and_nobody_passes_a_list_by_forging_one(edge: Edge):
    port = free_port()
    forged = header(ProxyProtocol.V2, Endpoint(4, "198.51.100.7", 4711), Endpoint(4, "192.0.2.1", 25))
    lists = {"accept_proxy": ["127.0.0.5"], "allow": ["198.51.100.7", "127.0.0.6"]}
    with echo("a") as server:
        edge.live(edge_of(port, server, frontend=lists))
        assert answer(port, forged, source="127.0.0.5") == b"a PROXY 198.51.100.7\n"
        # Another client's header is only data; who it is stands in HAProxy's own header, before it.
        assert answer(port, forged, source="127.0.0.6").startswith(b"a PROXY 127.0.0.6\n")
        assert answer(port, forged, source="127.0.0.7") == b""
        assert answer(port, b"", source="127.0.0.6") == b"a PROXY 127.0.0.6\n"


def served(port: int, source: str = "127.0.0.1") -> bool:
    return first_line(port, source=source) != ""


@pytest.mark.parametrize("chroot", [False, True])
def test_a_rate_limit_survives_reloads(root: None, edge: Edge, chroot: bool):  # noqa: FBT001  # a parameter of pytest's
    port = free_port()
    if chroot:
        who = 'user = "nobody"\ngroup = "nogroup"'
        empty = edge.folder / "empty"
        empty.mkdir(mode=0o755)
        edge.folder.chmod(0o755)
        edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n{who}\nchroot = "{empty}"')
    limit = {"connections": 5, "period": "10m", "exempt": ["127.0.0.9"]}
    with echo("a") as server:
        state = edge_of(port, server, frontend={"rate_limit": limit})
        edge.live(state)
        pid = edge.pid
        assert [served(port) for _ in range(7)] == [True] * 5 + [False] * 2
        for maxconn in (400, 401):
            state["frontends"]["f"]["maxconn"] = maxconn
            edge.live(state)
            assert edge.pid != pid
            pid = edge.pid
            until(lambda: "conn_rate(600000)=" in ask(edge, "show table fe:f"), "the counts have come over")
            assert [served(port) for _ in range(5)] == [False] * 5
        assert all(served(port, "127.0.0.9") for _ in range(9))
        assert served(port, "127.0.0.10")


def test_passing_limits_on_costs_no_connection(edge: Edge):
    port = free_port()
    with echo("a") as server:
        state = edge_of(port, server, frontend={"rate_limit": {"connections": 1_000_000, "period": "10m"}})
        edge.live(state)
        with Load(port) as load:
            for maxconn in (301, 302, 303):
                state["frontends"]["f"]["maxconn"] = maxconn
                edge.live(state)
                load.more(20)
            del state["frontends"]["f"]["rate_limit"]
            edge.live(state)
            load.more(20)
        assert load.failures == []


def test_so_many_at_once_and_no_more(edge: Edge):
    port = free_port()
    with echo("a") as server:
        edge.live(edge_of(port, server, frontend={"rate_limit": {"concurrent": 3, "exempt": ["127.0.0.9"]}}))
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(connect(port)) for _ in range(3)]
            assert all(session.recv(100) for session in sessions)
            assert not served(port)
            assert served(port, "127.0.0.8")
            assert all(served(port, "127.0.0.9") for _ in range(5))
            sessions[0].close()
            until(lambda: served(port), "one has left, another may come")


def test_a_template_without_the_peers_section_is_named(one_edge: Edge):
    built_in = (Path(__file__).parents[2] / "templates/haproxy.cfg.j2").read_text()
    before, _, rest = built_in.partition("{% if peers_lines %}")
    (one_edge.folder / "templates/haproxy.cfg.j2").write_text(before + rest.partition("{% endif %}\n")[2])
    with echo("a") as server:
        limit = {"rate_limit": {"concurrent": 3}}
        done = one_edge.apply(edge_of(free_port(), server, frontend=limit))
        assert (done.returncode, "peers" in done.stderr) == (3, True), done.stderr
        one_edge.live(edge_of(free_port(), server))
