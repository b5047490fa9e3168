"""The reason for all this: a real Postfix and a real Dovecot are told who is calling."""

from __future__ import annotations

import imaplib
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.edge import Edge, connect, edge_in_folder, until
from kit.mail import PASSWORD, MailHost
from kit.servers import free_port

CLIENTS = [("127.0.0.77", "127.0.0.1"), ("::1", "::1")]
SERVICES = ("smtp", "smtps", "submission", "imaps")


@pytest.fixture
def ports(mail: MailHost, haproxy_binary: Path) -> Iterator[dict[str, int]]:
    """The four mail services through the agent's HAProxy, on 127.0.0.1 and ::1; checks go to the plain twins."""
    ports = {name: free_port("127.0.0.1", "::1") for name in SERVICES}
    checks = {
        "smtp": "smtp_plain",
        "smtps": "submission_plain",
        "submission": "submission_plain",
        "imaps": "imaps_plain",
    }
    state = {
        "version": 1,
        "nodes": {"workers": {"node1": "127.0.0.1"}},
        "frontends": {
            name: {"bind": [f"127.0.0.1:{port}", f"[::1]:{port}"], "backend": name} for name, port in ports.items()
        },
        "backends": {
            name: {
                "application": "smtp" if name in ("smtp", "submission") else "tls",
                "nodes": "workers",
                "port": mail.ports[name],
                "health": {"port": mail.ports[checks[name]], "interval": "500ms"},
            }
            for name in SERVICES
        },
    }
    with edge_in_folder(haproxy_binary) as edge:
        edge.live(state)
        _all_up(edge)
        yield ports


def _all_up(edge: Edge) -> None:
    until(lambda: {server.check for server in edge.haproxy.observe().servers} == {"L4OK"}, "checks on the plain twins")


def context(mail: MailHost) -> ssl.SSLContext:
    made = ssl.create_default_context()
    mail.authority.configure_trust(made)
    return made


def names_client(log: str, service: str, client: str) -> bool:
    return re.search(rf"{service}\[\d+\]: connect from \S*\[{re.escape(client)}\]", log) is not None


@pytest.mark.parametrize(("client", "host"), CLIENTS)
def test_postscreen_and_the_smtpd_behind_it_name_the_client(
    mail: MailHost, ports: dict[str, int], client: str, host: str
):
    start = len(mail.postfix_log)
    with smtplib.SMTP(host, ports["smtp"], timeout=10, source_address=(client, 0)) as smtp:
        assert smtp.noop()[0] == 250
    until(lambda: names_client(mail.postfix_log[start:], "postfix/smtpd", client), "smtpd naming the client")
    assert re.search(rf"postscreen\[\d+\]: CONNECT from \[{client}\]:\d+ to \[{host}\]:", mail.postfix_log[start:])


@pytest.mark.parametrize(("client", "host"), CLIENTS)
def test_smtps_names_the_client(mail: MailHost, ports: dict[str, int], client: str, host: str):
    start = len(mail.postfix_log)
    with smtplib.SMTP_SSL(host, ports["smtps"], timeout=10, source_address=(client, 0), context=context(mail)) as smtp:
        assert smtp.noop()[0] == 250
    until(lambda: names_client(mail.postfix_log[start:], "postfix/smtps/smtpd", client), "smtps naming the client")


@pytest.mark.parametrize(("client", "host"), CLIENTS)
def test_submission_with_starttls_names_the_client(mail: MailHost, ports: dict[str, int], client: str, host: str):
    start = len(mail.postfix_log)
    with smtplib.SMTP(host, ports["submission"], timeout=10, source_address=(client, 0)) as smtp:
        smtp.starttls(context=context(mail))
        assert smtp.noop()[0] == 250
    until(lambda: names_client(mail.postfix_log[start:], "postfix/submission/smtpd", client), "submission")


class Imap(imaplib.IMAP4_SSL):
    """imaplib cannot be told where to connect from."""

    def __init__(self, host: str, port: int, client: str, tls: ssl.SSLContext) -> None:
        self._client = client
        super().__init__(host, port, ssl_context=tls, timeout=10)

    def _create_socket(self, timeout: float | None) -> ssl.SSLSocket:
        plain = socket.create_connection((self.host, self.port), timeout, source_address=(self._client, 0))
        return self.ssl_context.wrap_socket(plain, server_hostname=self.host)


@pytest.mark.parametrize(("client", "host"), CLIENTS)
def test_a_mail_is_sent_and_fetched_and_dovecot_names_the_client(
    mail: MailHost, ports: dict[str, int], client: str, host: str
):
    start = len(mail.dovecot_log)
    subject = f"from {client} at {time.monotonic_ns()}"
    with smtplib.SMTP(host, ports["smtp"], timeout=10, source_address=(client, 0)) as smtp:
        smtp.sendmail("alice@example.com", ["bob@example.org"], f"Subject: {subject}\r\n\r\nHello\r\n")
    box = Imap(host, ports["imaps"], client, context(mail))
    try:
        box.login("bob", PASSWORD)

        def arrived() -> bytes | None:
            box.select("INBOX")
            found = box.search(None, "SUBJECT", f'"{subject}"')[1][0]
            return box.fetch(found.split()[-1], "(RFC822)")[1][0][1] if found else None

        message = until(arrived, "the mail")
    finally:
        box.logout()
    # Postfix writes into the mail itself whom it came from.
    assert f"[{client if ':' not in client else 'IPv6:' + client}]" in message.decode()
    until(lambda: f"rip={client}," in mail.dovecot_log[start:], "Dovecot naming the client")


@pytest.mark.parametrize(
    ("service", "seconds", "last"),
    [("smtp", 5.0, b"421 "), ("submission", 5.0, b"421 "), ("imaps", 3.0, b"")],
)
def test_without_the_header_the_known_silence(mail: MailHost, service: str, seconds: float, last: bytes):
    """facts.md, mail servers: silent, `421` after 5.0 s; silent, closed after 3.0 s."""
    start = time.monotonic()
    with connect(mail.ports[service]) as one:
        said = one.recv(100)
    took = time.monotonic() - start
    assert said.startswith(last)
    assert bool(said) == bool(last)
    assert seconds - 0.5 < took < seconds + 3
