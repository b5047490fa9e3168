"""Checks that read a greeting, on the real servers: they pass, leave politely, and leave no error in any log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.edge import Edge, edge_in_folder, until
from kit.mail import MailHost
from kit.servers import free_port

from agent.host.stats_socket import StatsSocket

CHECKED = {  # what greets: its application, and whether its port demands a header
    "smtp": ("smtp", "v2"),
    "submission": ("smtp", "v2"),
    "screen_plain": ("smtp", "none"),
    "submission_plain": ("smtp", "none"),
    "imap": ("imap", "v2"),
    "imap_plain": ("imap", "none"),
    "pop3": ("pop3", "v2"),
    "pop3_plain": ("pop3", "none"),
}
ERRORS = (" error: ", " fatal: ", " panic: ", " warning: ", "Error:", "Fatal:", "Warning:", "PREGREET", "COMMAND ")


def state(mail: MailHost, **health: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "frontends": {
            name.replace("_", "-"): {"bind": [f"127.0.0.1:{free_port()}"], "backend": name.replace("_", "-")}
            for name in CHECKED
        },
        "backends": {
            name.replace("_", "-"): {
                "application": application,
                "proxy_protocol": version,
                "servers": {"a": {"address": f"127.0.0.1:{mail.ports[name]}"}},
                "health": {"type": "greeting", "interval": "500ms", **health},
            }
            for name, (application, version) in CHECKED.items()
        },
    }


def checks(edge: Edge) -> dict[str, tuple[str, str]]:
    seen = StatsSocket(edge.folder / "run/haproxy.sock").observe()
    # "* " in front: the next check is under way (HAProxy's management guide, 9.1, check_status).
    return {server.backend: (server.status, server.check.removeprefix("* ")) for server in seen.servers}


def test_greetings_of_postfix_and_dovecot_pass_and_leave_no_error_line(mail: MailHost, haproxy_binary: Path):
    with edge_in_folder(haproxy_binary) as edge:
        start = len(mail.postfix_log), len(mail.dovecot_log)
        edge.live(state(mail))
        good = {name.replace("_", "-"): ("UP", "L7OK") for name in CHECKED}
        until(lambda: checks(edge) == good, f"all pass: {checks(edge)}")

        def goodbyes() -> tuple[int, int, int]:
            postfix, dovecot = mail.postfix_log[start[0] :], mail.dovecot_log[start[1] :]
            return postfix.count(" quit=1 commands=1"), dovecot.count("imap-login"), dovecot.count("pop3-login")

        until(lambda: min(goodbyes()) > 10, f"ten checks of each have left: {goodbyes()}")
        assert checks(edge) == good
    logs = mail.postfix_log[start[0] :] + mail.dovecot_log[start[1] :]
    assert [line for line in logs.splitlines() if any(word in line for word in ERRORS)] == []


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_a_check_with_a_header_leaves_postfix_alive(mail: MailHost, haproxy_binary: Path, version: str):
    """With LOCAL an smtpd died (facts.md, mail servers: `fatal: smtpd_peer_hostaddr_to_sockaddr`)."""
    document = state(mail)
    for key in ("frontends", "backends"):
        document[key] = {name: document[key][name] for name in ("smtp", "submission")}
    for pool in document["backends"].values():
        pool |= {"proxy_protocol": version, "health": {"interval": "200ms"}}
    start = len(mail.postfix_log)
    with edge_in_folder(haproxy_binary) as edge:
        edge.live(document)
        until(lambda: mail.postfix_log[start:].count("lost connection after CONNECT") > 10, "ten checks")
        assert {name: status for name, (status, _) in checks(edge).items()} == {"smtp": "UP", "submission": "UP"}
    lines = mail.postfix_log[start:].splitlines()
    assert [line for line in lines if any(word in line for word in (" fatal: ", " error: ", "throttling"))] == []


@pytest.mark.parametrize("name", ["smtp", "imap", "pop3"])
def test_a_server_that_demands_a_header_and_gets_none_is_down(mail: MailHost, any_haproxy: Path, name: str):
    """The check reads a greeting, and is not content with an open port."""
    with edge_in_folder(any_haproxy) as edge:
        edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nprobe = "off"')
        document = state(mail, send_proxy=False)
        document["frontends"] = {name: document["frontends"][name]}
        document["backends"] = {name: document["backends"][name]}
        edge.agent("apply", edge.file(document))
        until(lambda: checks(edge)[name][0] == "DOWN", f"it is down: {checks(edge)}", timeout=30)
