"""What the probe makes of servers that behave badly, and how long it lets them."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from kit.edge import Edge
from kit.servers import echo, free_port, parse_header

from agent.desired.addresses import Endpoint
from agent.desired.schema import Application, ProxyProtocol
from agent.host.proxy_probe import ask
from agent.proxy_protocol.certificate import common_name
from agent.proxy_protocol.greetings import Question, Result

SMTP, IMAP, POP3 = Application.SMTP, Application.IMAP, Application.POP3


@contextlib.contextmanager
def server(behave: Callable[[socket.socket], None]) -> Iterator[Endpoint]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.settimeout(10)
                behave(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 256

    with Server(("127.0.0.1", 0), Handler) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield Endpoint(4, "127.0.0.1", one.server_address[1])
        one.shutdown()
        thread.join()


def result(
    address: Endpoint, application: Application, version: ProxyProtocol = ProxyProtocol.V2, seconds: float = 2.0
) -> Result:
    question = Question(key=("b", "s"), address=address, application=application, version=version)
    return ask([question], seconds=seconds)["b", "s"].result


def greets(greeting: bytes, *, header: bool, complaint: bytes = b"") -> Callable[[socket.socket], None]:
    """Takes the header off, or takes it for commands."""

    def behave(one: socket.socket) -> None:
        if header:
            if parse_header(one).command == "none":
                one.recv(1)  # waits, like Postfix
                return
            one.sendall(greeting)
            one.recv(100)
        else:
            one.sendall(greeting)
            if one.recv(1_000):
                one.sendall(complaint)

    return behave


GREETINGS = {
    SMTP: (b"220-mail.example.org\r\n220 ESMTP\r\n", b"500 5.5.2 Error\r\n"),
    IMAP: (b"* OK [CAPABILITY IMAP4rev1] ready\r\n", b"a BAD unknown\r\n"),
    POP3: (b"+OK ready\r\n", b"-ERR unknown\r\n"),
}


@pytest.mark.parametrize("application", GREETINGS)
@pytest.mark.parametrize("version", [ProxyProtocol.V2, ProxyProtocol.V1])
def test_twins_of_every_greeting(application: Application, version: ProxyProtocol):
    greeting, complaint = GREETINGS[application]
    with (
        server(greets(greeting, header=True)) as speaks,
        server(greets(greeting, header=False, complaint=complaint)) as plain,
        server(greets(greeting, header=False)) as hangs_up,
    ):
        assert result(speaks, application, version) is Result.SPEAKS_PROXY
        assert result(plain, application, version) is Result.PLAIN
        assert result(hangs_up, application, version) is Result.PLAIN


def mute(one: socket.socket) -> None:
    while one.recv(10_000):
        pass


def drips(one: socket.socket) -> None:
    for byte in b"220 mail.example.org":
        one.sendall(bytes([byte]))
        time.sleep(0.5)  # the peer's own behaviour: it drips


def floods(one: socket.socket) -> None:
    for _ in range(160):
        one.sendall(b"x" * 65_536)


def resets(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def late(one: socket.socket) -> None:
    parse_header(one)
    time.sleep(0.9)  # the peer's own behaviour: postscreen's greet wait
    one.sendall(b"220 mail.example.org\r\n")
    one.recv(100)


def web(one: socket.socket) -> None:
    parse_header(one)
    one.recv(1_000)
    one.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")


HOSTILE: list[tuple[Callable[[socket.socket], None], Application, set[Result]]] = [
    (mute, SMTP, {Result.SILENT}),
    (mute, Application.TLS, {Result.SILENT}),
    (mute, Application.HTTP, {Result.SILENT}),
    (mute, Application.RAW, {Result.UNKNOWN}),
    (drips, SMTP, {Result.UNKNOWN}),
    (floods, SMTP, {Result.WRONG_PROTOCOL}),
    (floods, Application.TLS, {Result.WRONG_PROTOCOL}),
    (floods, Application.RAW, {Result.UNKNOWN}),
    (resets, SMTP, {Result.SILENT}),
    (late, SMTP, {Result.SPEAKS_PROXY}),
    (web, Application.HTTP, {Result.SPEAKS_PROXY}),
    (web, SMTP, {Result.WRONG_PROTOCOL, Result.SILENT}),
]


def all_at_once(
    cases: Sequence[tuple[Callable[[socket.socket], None], Application, object]], version: ProxyProtocol
) -> list[Result]:
    """What each of these servers is found to be, asked side by side."""
    with contextlib.ExitStack() as stack:
        asked = [
            Question(
                key=("b", str(n)),
                address=stack.enter_context(server(behave)),
                application=application,
                version=version,
            )
            for n, (behave, application, _) in enumerate(cases)
        ]
        found = ask(asked)
    return [found["b", str(n)].result for n in range(len(cases))]


def test_hostile_peers_cost_no_more_than_the_deadline():
    start = time.monotonic()
    found = all_at_once(HOSTILE, ProxyProtocol.V2)
    assert time.monotonic() - start < 5  # with the time that the servers take to be stopped
    for result, (behave, application, expected) in zip(found, HOSTILE, strict=True):
        assert result in expected, (behave.__name__, application)


def says(*words: bytes, pause: float = 0.0, header: bool = True) -> Callable[[socket.socket], None]:
    """Takes the header off (or not), says these, and hangs up."""

    def behave(one: socket.socket) -> None:
        if header:
            parse_header(one)
        for word in words:
            one.sendall(word)
            time.sleep(pause)  # the peer's own behaviour
        one.shutdown(socket.SHUT_WR)

    return behave


def exim(one: socket.socket) -> None:
    """Its synchronization check: who speaks before the greeting is not greeted."""
    one.settimeout(0.1)
    try:
        early = one.recv(100)
    except TimeoutError:
        one.settimeout(10)
        one.sendall(b"220 mail.example.org ESMTP Exim\r\n")
        one.recv(100)
    else:
        one.sendall(b"554 SMTP synchronization error\r\n" if early else b"")


def choosy(one: socket.socket) -> None:
    """Answers 400 to whatever it is asked for."""
    if parse_header(one).command != "none":
        one.recv(1_000)
        one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def slow_to_complain(one: socket.socket) -> None:
    one.sendall(b"220 mail.example.org\r\n")
    if one.recv(1_000):
        time.sleep(0.35)  # the peer's own behaviour
        one.sendall(b"500 what\r\n")


ODD: list[tuple[Callable[[socket.socket], None], Application, Result]] = [
    (says(b"220 mail.example.org\r\n", b"421 4.3.2 shutting down\r\n"), SMTP, Result.UNKNOWN),
    (says(b"421 too many connections\r\n"), SMTP, Result.UNKNOWN),
    (says(b"220-mail.example.org\r\n", b"521 5.7.1 Blocked\r\n"), SMTP, Result.UNKNOWN),
    (says(b"* BYE later\r\n"), IMAP, Result.UNKNOWN),
    (says(), Application.HTTP, Result.SILENT),  # nginx's `return 444`, or a forwarder with nobody behind it
    (says(), Application.TLS, Result.SILENT),  # no certificate for no name
    (says(b"\x15\x03\x03\x00\x02\x02\x46"), Application.TLS, Result.UNKNOWN),  # alert: protocol version
    (choosy, Application.HTTP, Result.UNKNOWN),
    (exim, SMTP, Result.PLAIN),
    (slow_to_complain, SMTP, Result.PLAIN),
    (says(b"220 mail.example.org\r\n", header=False), SMTP, Result.UNKNOWN),  # hangs up on everybody
]


@pytest.mark.parametrize("version", [ProxyProtocol.V2, ProxyProtocol.V1])
def test_a_server_that_may_have_another_reason_is_not_called_plain(version: ProxyProtocol):
    found = all_at_once(ODD, version)
    assert found == [expected for _, _, expected in ODD]


def test_a_greeting_too_late_to_tell_is_not_told():
    def behave(one: socket.socket) -> None:
        parse_header(one)
        time.sleep(0.8)  # the peer's own behaviour
        one.sendall(b"220 mail.example.org\r\n")
        one.recv(100)

    with server(behave) as address:
        assert result(address, SMTP, seconds=1.0) is Result.UNKNOWN
        assert result(address, SMTP) is Result.SPEAKS_PROXY


@pytest.mark.parametrize("application", [Application.HTTP, SMTP])
def test_who_takes_both_and_is_slow_the_first_time_demands_nothing(application: Application):
    met: list[int] = []
    answer = b"HTTP/1.1 200 OK\r\n\r\n" if application is Application.HTTP else b"220 mail.example.org\r\n"

    def behave(one: socket.socket) -> None:
        met.append(1)
        if len(met) == 1:
            time.sleep(1.3)  # the peer's own behaviour: cold
        one.sendall(answer)
        one.recv(1_000)
        one.recv(1_000)

    with server(behave) as address:
        assert result(address, application, ProxyProtocol.NONE) is Result.PLAIN


def test_a_limit_of_files_makes_nobody_unreachable():
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "from agent.host.proxy_probe import ask\n"
        "from agent.proxy_protocol.greetings import Question\n"
        "from agent.desired.addresses import Endpoint\nfrom agent.desired.schema import Application, ProxyProtocol\n"
        "where = Endpoint(4, '127.0.0.1', int(sys.argv[1]))\n"
        "asked = [Question(key=('b', str(n)), address=where, application=Application.SMTP, version=ProxyProtocol.V2)"
        " for n in range(150)]\n"
        "print({seen.result.value for seen in ask(asked).values()})\n"
    )
    with server(greets(GREETINGS[SMTP][0], header=True)) as address:
        done = subprocess.run(
            [sys.executable, "-c", code, str(address.port)], capture_output=True, text=True, check=False
        )
    assert done.stdout == "{'speaks_proxy'}\n", done.stderr


def test_a_hundred_silent_servers_cost_one_deadline_and_delay_nobody():
    with server(mute) as silent, echo("e") as good:

        def smtp(n: int) -> Question:
            return Question(key=("b", str(n)), address=silent, application=SMTP, version=ProxyProtocol.V2)

        many = [smtp(n) for n in range(100)]
        raw = Question(
            key=("b", "raw"),
            address=Endpoint(4, "127.0.0.1", good.port),
            application=Application.RAW,
            version=ProxyProtocol.V2,
        )
        start = time.monotonic()
        found = ask([*many, raw])
        assert time.monotonic() - start < 2.5
        assert {found["b", str(n)].result for n in range(100)} == {Result.SILENT}
        assert "e PROXY 127.0.0.1" in found["b", "raw"].detail


def test_nobody_there_is_refused_or_unreachable():
    assert result(Endpoint(4, "127.0.0.1", free_port()), SMTP) is Result.REFUSED
    assert result(Endpoint(6, "::1", free_port("::1")), SMTP) is Result.REFUSED


def test_tls_twins(tmp_path):
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mail.example.org", common_name="mail.example.org").configure_cert(context)

    def speaks(one: socket.socket) -> None:
        parse_header(one)
        with context.wrap_socket(one, server_side=True) as talk:
            talk.recv(1)

    def plain(one: socket.socket) -> None:
        with context.wrap_socket(one, server_side=True) as talk:
            talk.recv(1)

    with server(speaks) as good, server(plain) as bad:
        question = Question(key=("b", "s"), address=good, application=Application.TLS, version=ProxyProtocol.V2)
        seen = ask([question])["b", "s"]
        assert (seen.result, 'certificate of "mail.example.org"' in seen.detail) == (Result.SPEAKS_PROXY, True), seen
        assert result(bad, Application.TLS) is Result.PLAIN
        assert result(bad, Application.TLS, ProxyProtocol.NONE) is Result.PLAIN


@pytest.mark.parametrize(("name", "expected"), [("mail.example.org", "mail.example.org"), (None, "")])
def test_the_subject_is_the_certificates_own_and_not_its_issuers(name: str | None, expected: str):
    import trustme

    authority = trustme.CA(organization_name="Authority")
    pem = authority.issue_cert("mail.example.org", common_name=name).cert_chain_pems[0].bytes().decode()
    assert common_name(ssl.PEM_cert_to_DER_cert(pem)) == expected
    for length in range(0, 400, 7):
        assert common_name(ssl.PEM_cert_to_DER_cert(pem)[:length]) == ""


def test_the_command_tells_what_each_server_is_and_exits_with_what_is_wrong(one_edge: Edge):
    greeting, complaint = GREETINGS[SMTP]
    with (
        server(greets(greeting, header=True)) as speaks,
        server(greets(greeting, header=False, complaint=complaint)) as plain,
    ):
        pools = {
            "good": {"servers": {"a": {"address": str(speaks)}}},
            "wrong": {"servers": {"a": {"address": str(plain)}, "off": {"address": str(plain), "disabled": True}}},
            "meant": {"servers": {"a": {"address": str(plain)}}, "proxy_protocol": "none"},
            "down": {"servers": {"a": {"address": f"127.0.0.1:{free_port()}"}}},
        }
        one_edge.desired.write_text(
            json.dumps(
                {
                    "version": 1,
                    "frontends": {name: {"bind": [f"127.0.0.1:{free_port()}"], "backend": name} for name in pools},
                    "backends": {name: {"application": "smtp", **pool} for name, pool in pools.items()},
                }
            )
        )
        done = one_edge.agent("probe", "--json")
        assert done.returncode == 4
        assert {(entry["backend"], entry["server"], entry["result"]) for entry in json.loads(done.stdout)} == {
            ("good", "a", "speaks_proxy"),
            ("wrong", "a", "plain"),
            ("meant", "a", "plain"),
            ("down", "a", "refused"),
        }
        done = one_edge.agent("probe", "good", "meant", "down", "--client", "198.51.100.7")
        assert done.returncode == 0, done.stderr
        assert 'greeted, then waited: "220-mail.example.org"' in done.stdout
        assert one_edge.agent("probe", "nobody").returncode == 2
        assert one_edge.agent("probe", "--client", "mail.example.org").returncode == 2
        assert not (one_edge.folder / "state").exists()
