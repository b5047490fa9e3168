"""What the probe makes of the real servers, each with its plain twin (FACTS, the table)."""

from __future__ import annotations

import pytest
from kit.edge import until
from kit.mail import MailHost

from agent.host.handshake import ask
from agent.model.handshake import Question, Result
from agent.model.schema import Application, Endpoint, ProxyProtocol

SMTP, TLS = Application.SMTP, Application.TLS
TWINS = [
    ("smtp", SMTP, Result.SPEAKS_PROXY),
    ("submission", SMTP, Result.SPEAKS_PROXY),
    ("smtps", TLS, Result.SPEAKS_PROXY),
    ("imaps", TLS, Result.SPEAKS_PROXY),
    ("screen_plain", SMTP, Result.PLAIN),
    ("smtp_plain", SMTP, Result.PLAIN),
    ("submission_plain", SMTP, Result.PLAIN),
    ("imaps_plain", TLS, Result.PLAIN),
]


def questions(mail: MailHost, version: ProxyProtocol) -> list[Question]:
    return [
        Question(key=("b", name), address=Endpoint(4, "127.0.0.1", mail.ports[name]), application=app, version=version)
        for name, app, _ in TWINS
    ]


@pytest.mark.parametrize("version", [ProxyProtocol.V2, ProxyProtocol.V1])
def test_the_twins_are_told_apart_twenty_times(mail: MailHost, version: ProxyProtocol):
    for _ in range(20):
        found = {key[1]: seen for key, seen in ask(questions(mail, version)).items()}
        assert {name: seen.result for name, seen in found.items()} == {name: result for name, _, result in TWINS}, found
    assert "certificate of" in found["imaps"].detail


def test_without_a_header_the_plain_ones_greet_and_the_others_are_silent(mail: MailHost):
    found = {key[1]: seen.result for key, seen in ask(questions(mail, ProxyProtocol.NONE)).items()}
    for name, application, with_header in TWINS:
        if with_header is Result.SPEAKS_PROXY:
            # 2 s of the 5 or 3 that they wait; where TLS begins at once, it is taken for a broken header.
            assert found[name] in ((Result.SILENT,) if application is SMTP else (Result.WRONG_PROTOCOL, Result.PLAIN))
        else:
            assert found[name] is Result.PLAIN, name  # answers as a plain one should


def test_the_client_that_is_named_stands_in_the_log(mail: MailHost):
    named = Endpoint(4, "198.51.100.7", 4711)
    question = Question(
        key=("b", "smtp"),
        address=Endpoint(4, "127.0.0.1", mail.ports["smtp"]),
        application=SMTP,
        version=ProxyProtocol.V2,
        client=named,
        destination=Endpoint(4, "192.0.2.1", 25),
    )
    seen = ask([question])["b", "smtp"]
    # Whom postscreen does not know it tests for six seconds: in two there is only the first half of its greeting.
    assert (seen.result, seen.detail) == (
        Result.UNKNOWN,
        'no whole greeting in time: "220-mail.example.org ESMTP Postfix"',
    )
    until(lambda: "CONNECT from [198.51.100.7]:4711 to [192.0.2.1]:25" in mail.postfix_log, "postscreen names it")


def test_no_probe_leaves_an_error_in_postfix_log(mail: MailHost):
    start = len(mail.postfix_log)
    speaking = [one for one in questions(mail, ProxyProtocol.V2) if one.key[1] in ("smtp", "submission", "smtps")]
    ask(speaking)
    until(lambda: mail.postfix_log[start:].count("disconnect from") >= 1, "the probes are over")
    assert not [line for line in mail.postfix_log[start:].splitlines() if " error: " in line or " fatal: " in line]
