"""What the probe makes of the real servers, each with its plain twin (facts.md, mail servers)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kit.edge import Load, edge_in_folder, until
from kit.mail import MailHost
from kit.servers import free_port

from agent.desired.addresses import Endpoint
from agent.desired.schema import Application, ProxyProtocol
from agent.host.proxy_probe import ask
from agent.proxy_protocol.greetings import Question, Result

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


@pytest.mark.parametrize(("version", "rounds"), [(ProxyProtocol.V2, 20), (ProxyProtocol.V1, 5)])
def test_the_twins_are_told_apart_every_time(mail: MailHost, version: ProxyProtocol, rounds: int):
    for _ in range(rounds):
        found = {key[1]: seen for key, seen in ask(questions(mail, version)).items()}
        assert {name: seen.result for name, seen in found.items()} == {name: result for name, _, result in TWINS}, found
    assert {found[name].subject for name in ("imaps", "smtps")} == {"mail.example.org"}


def test_without_a_header_those_that_demand_one_are_found_out_by_a_second_connection(mail: MailHost):
    for _ in range(3):
        found = {key[1]: seen for key, seen in ask(questions(mail, ProxyProtocol.NONE)).items()}
        assert {name: seen.result for name, seen in found.items()} == {name: result for name, _, result in TWINS}, found
        assert "without a header, " in found["smtp"].detail


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
    speaking = [
        question for question in questions(mail, ProxyProtocol.V2) if question.key[1] in ("smtp", "submission", "smtps")
    ]
    ask(speaking)
    until(lambda: mail.postfix_log[start:].count("disconnect from") >= 1, "the probes are over")
    assert not [line for line in mail.postfix_log[start:].splitlines() if " error: " in line or " fatal: " in line]


def mail_edge(front: int, server: int, check: int) -> dict[str, Any]:
    """One Postfix, checked at a plain port."""
    pool = {"servers": {"postfix": {"address": f"127.0.0.1:{server}"}}, "health": {"port": check}}
    return {
        "version": 1,
        "frontends": {"smtp": {"bind": [f"127.0.0.1:{front}"], "backend": "smtp"}},
        "backends": {"smtp": {"application": "smtp", **pool}},
    }


def test_a_backend_moved_to_a_plain_postfix_is_refused_and_costs_nobody_a_connection(
    mail: MailHost, haproxy_binary: Path
):
    front, check = free_port(), mail.ports["smtp_plain"]
    with edge_in_folder(haproxy_binary) as edge:
        edge.live(mail_edge(front, mail.ports["submission"], check))
        with Load(front) as load:
            done = edge.apply(mail_edge(front, mail.ports["submission_plain"], check))
            load.more(20)
        assert (done.returncode, load.failures) == (4, [])
        plain = f"127.0.0.1:{mail.ports['submission_plain']}"
        assert f"server postfix of backend smtp ({plain}) is sent a PROXY v2 header and does not take it" in done.stderr
        assert "nothing was touched" in done.stderr
        assert "500 5.5.2" in done.stderr or "hung up" in done.stderr
        done = edge.agent("plan", edge.file(mail_edge(front, mail.ports["smtp_plain"], check)), "--json")
        assert done.returncode == 4
        assert [one["result"] for one in json.loads(done.stdout)["handshakes"]] == ["plain"]
        done = edge.apply(mail_edge(front, mail.ports["smtp"], check))
        assert done.returncode == 0, done.stderr
        server = json.loads(edge.agent("status", "--json").stdout)["backends"][0]["servers"][0]
        assert (server["handshake"]["result"], server["handshake"]["mismatch"]) == ("speaks_proxy", False)


def test_as_many_probes_as_servers_that_changed_and_no_error_in_the_log(mail: MailHost, haproxy_binary: Path):
    front, start = free_port(), len(mail.postfix_log)
    state = mail_edge(front, mail.ports["submission"], mail.ports["smtp_plain"])
    pool = state["backends"]["smtp"]
    pool["health"] = {"type": "none"}

    def probes() -> int:
        return len(re.findall(r"submission/smtpd\[\d+\]: connect from", mail.postfix_log[start:]))

    with edge_in_folder(haproxy_binary) as edge:
        edge.live(state)
        until(lambda: probes() == 1, "one probe of one new server")
        pool["servers"]["second"] = {"address": f"127.0.0.2:{mail.ports['submission']}", "weight": 3}
        pool["servers"]["postfix"]["weight"] = 2
        edge.apply(state)
        edge.agent("apply")
        pool["proxy_protocol"] = "v1"
        del pool["servers"]["second"]
        edge.live(state)
        until(lambda: probes() >= 2, "one more for the server that is told otherwise now")
        ends = r"submission/smtpd\[\d+\]: disconnect from"
        until(lambda: len(re.findall(ends, mail.postfix_log[start:])) >= 2, "both probes are over")
    assert probes() == 2
    assert not [line for line in mail.postfix_log[start:].splitlines() if " error: " in line or " fatal: " in line]
