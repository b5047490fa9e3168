"""The desired state: every key, every rule, every violation at once and with its place."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest
from kit.states import FIVE_MISTAKES, state
from kit.wrong import SMUGGLED, WRONG, changed, put

from agent.desired.addresses import Endpoint
from agent.desired.schema import (
    Application,
    Balance,
    DesiredState,
    HealthType,
    OnDown,
    ProxyProtocol,
    RateLimit,
    Timeouts,
)
from agent.desired.state import Limits, Parsed, parse
from agent.errors import InvalidError

UNBOUNDED = Limits()


def of(text: str, **more: Any) -> Parsed:
    return parse(textwrap.dedent(text).encode(), file="desired.yaml", **more)


def violations(document: object) -> list[str]:
    data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    with pytest.raises(InvalidError) as caught:
        parse(data, file="d")
    return [f"{'.'.join(map(str, violation.path))}: {violation.message}" for violation in caught.value.violations]


def findings(document: object, limits: Limits = UNBOUNDED) -> list[str]:
    found = parse(json.dumps(document).encode(), file="d", limits=limits).findings
    return [f"{one.where}: {one.message}" for one in found]


def test_five_separate_mistakes_are_named_at_once_with_their_lines():
    with pytest.raises(InvalidError) as caught:
        parse(FIVE_MISTAKES.encode(), file="desired.yaml")
    assert str(caught.value).splitlines() == [
        "desired.yaml:3: nodes.workers.node1: duplicate key (first on line 3)",
        (
            "desired.yaml:6: frontends.smtp.bind[1]: 0.0.0.0:25 overlaps 192.0.2.1:25, which is bound already, "
            "by frontends.smtp.bind[0]"
        ),
        'desired.yaml:7: frontends.smtp.backend: there is no backend "smpt"; did you mean "smtp"?',
        'desired.yaml:8: frontends.smtp.maxcon: unknown key; did you mean "maxconn"?',
        'desired.yaml:12: backends.smtp.port: expected a whole number from 1 to 65,535, got the text "30125"',
    ]


def test_every_key_of_the_schema_comes_through():
    found = of(
        """\
        version: 1
        name: home-edge
        serial: 42
        defaults: {maxconn: 100, timeouts: {connect: 1s, client: 2m, server: 3h}}
        nodes: {workers: {n1: 192.0.2.101, n2: {address: "2001:DB8::0:2", weight: 0}}}
        manager: cluster-1
        frontends:
          smtp:
            bind: ["192.0.2.1:25", "[2001:DB8:1:0::2]:25"]
            backend: smtp
            maxconn: 50
            owner: mail/smtp/1
            timeouts: {client: 5m}
            accept_proxy: [192.0.2.8, "2001:db8:8::/48"]
            allow: [203.0.113.0/24, "2001:db8::/32", 192.0.2.7/32]
            deny: [203.0.113.9]
            rate_limit: {connections: 30, period: 10s, concurrent: 20, exempt: [203.0.113.9/32]}
            routes:
              - {sni: [A.example.org, "*.B.example.org"], backend: other}
              - {sni: ["*"], backend: smtp}
        backends:
          smtp:
            application: smtp
            proxy_protocol: v1
            balance: leastconn
            nodes: workers
            port: 30125
            servers:
              spare: {address: "192.0.2.9:2525", weight: 10, backup: true, disabled: true}
            timeouts: {connect: 2s, server: 1h}
            on_down: close
            owner: mail/pool/2
            health: {type: http, port: 80, interval: 1s, timeout: 2s, rise: 3, fall: 4, send_proxy: true,
                     path: /x, host: Health.example.org, status: "200-399", tls: true, verify: true}
          other:
            servers: {a: {address: "192.0.2.10:1"}}
        """
    ).state
    assert (found.name, found.serial, found.defaults.maxconn) == ("home-edge", 42, 100)
    assert found.defaults.timeouts == Timeouts(connect=1_000, client=120_000, server=10_800_000)
    (smtp,) = found.frontends
    assert smtp.bind == (Endpoint(4, "192.0.2.1", 25), Endpoint(6, "2001:db8:1::2", 25))
    assert (found.manager, smtp.owner, found.backends[1].owner) == ("cluster-1", "mail/smtp/1", "mail/pool/2")
    limit = RateLimit(connections=30, period=10_000, concurrent=20, exempt=("203.0.113.9",))
    assert (smtp.maxconn, smtp.timeouts.client, smtp.rate_limit) == (50, 300_000, limit)
    assert smtp.accept_proxy == ("192.0.2.8", "2001:db8:8::/48")
    assert smtp.allow == ("203.0.113.0/24", "2001:db8::/32", "192.0.2.7")
    assert smtp.deny == ("203.0.113.9",)
    assert [(route.sni, route.backend) for route in smtp.routes] == [
        (("a.example.org", "*.b.example.org"), "other"),
        (("*",), "smtp"),
    ]
    assert smtp.backends == ("other", "smtp")
    other, pool = found.backends
    assert (pool.application, pool.proxy_protocol, pool.balance) == (
        Application.SMTP,
        ProxyProtocol.V1,
        Balance.LEASTCONN,
    )
    assert (pool.timeouts.connect, pool.timeouts.server, pool.on_down) == (2_000, 3_600_000, OnDown.CLOSE)
    assert (other.timeouts.connect, other.timeouts.server, other.on_down) == (None, None, OnDown.KEEP)
    assert [
        (server.name, str(server.address), server.weight, server.backup, server.disabled) for server in pool.servers
    ] == [
        ("n1", "192.0.2.101:30125", 1, False, False),
        ("n2", "[2001:db8::2]:30125", 0, False, False),
        ("spare", "192.0.2.9:2525", 10, True, True),
    ]
    health = pool.health
    assert (health.type, health.port, health.interval, health.timeout) == (HealthType.HTTP, 80, 1_000, 2_000)
    assert (health.rise, health.fall, health.send_proxy, health.path) == (3, 4, True, "/x")
    assert (health.host, health.status, health.tls, health.verify) == ("health.example.org", "200-399", True, True)
    assert (other.application, other.proxy_protocol) == (Application.RAW, ProxyProtocol.V2)
    assert (other.balance, other.health.type, other.health.interval) == (Balance.ROUNDROBIN, HealthType.TCP, 5_000)
    assert (other.health.rise, other.health.fall, other.health.timeout) == (2, 3, 3_000)


def test_the_order_of_the_file_changes_nothing():
    one = state(smtp=1, imap=2)
    other = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in one.items()}
    assert list(one["frontends"]) != list(other["frontends"])
    assert _state(one) == _state(other)


def _state(document: object) -> DesiredState:
    return parse(json.dumps(document).encode(), file="d").state


def test_an_empty_state_is_valid_and_warned_of():
    assert findings({"version": 1}) == [": no frontend: nothing will be served"]


@pytest.mark.parametrize("text", SMUGGLED)
@pytest.mark.parametrize(
    "path",
    [
        "name",
        "frontends/smtp/backend",
        "frontends/smtp/bind",
        "frontends/smtp/allow",
        "frontends/smtp/routes",
        "backends/smtp/servers/a/address",
        "backends/smtp/nodes",
        "backends/smtp/application",
        "backends/smtp/health/interval",
        "backends/smtp/health/host",
        "backends/smtp/health/path",
        "defaults/timeouts/connect",
    ],
)
def test_no_text_can_smuggle_anything_into_haproxy_cfg(path, text):
    value: object = text
    if path.endswith(("bind", "allow")):
        value = [text]
    if path.endswith("routes"):
        value = [{"sni": [text], "backend": "smtp"}]
    document = changed(path, value)
    if "health" in path:
        document["backends"]["smtp"]["health"]["type"] = "http"
    found = violations(document)
    assert found
    assert all(one.isprintable() for one in found)


@pytest.mark.parametrize("name", [*SMUGGLED, "", "A", "-a", "a-", "a" * 64, "..", "a/b"])
@pytest.mark.parametrize("path", ["frontends", "backends", "nodes", "backends/smtp/servers", "nodes/group"])
def test_names_are_narrow(path, name):
    value = {"bind": ["192.0.2.1:1"], "backend": "smtp"} if path == "frontends" else {"address": "192.0.2.1:1"}
    if path == "backends":
        value = {"servers": {"a": {"address": "192.0.2.1:1"}}}
    if path == "nodes":
        value = {}
    if path == "nodes/group":
        value = "192.0.2.1"
    found = violations(put(path.split("/"), name, value))
    assert any("a name: at most 63 of" in one for one in found)


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_each_wrong_value_has_its_own_message(path, value, message):
    if path == "nodes/empty":
        document = changed(path, value)
        document["backends"]["smtp"] = {"nodes": "empty", "port": 25}
        assert violations(document) == [
            "backends.smtp: a backend without a server; give it `servers`, or `nodes` and `port`"
        ]
        return
    found = violations(changed(path, value))
    assert len(found) == 1
    if message is not None:
        assert found == [message]
    else:
        assert (
            "did you mean" in found[0]
            or "such as" in found[0]
            or "write 192.0.2.0/24" in found[0]
            or "known here" in found[0]
        )


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1", "192.0.2.1:025", "192.0.2.01:25", "mail.example.org:25", ":25",
        "2001:db8::1:25", "[192.0.2.1]:25", "[2001:db8::1]", "[fe80::1%eth0]:25", "[fe80::1%\n]:25", "*:25",
        "[::ffff:192.0.2.1]:25", "224.0.0.1:25", "192.0.2.1:25 ", "192.0.2.1:25\n", "256.0.0.1:25", "١٩٢.0.2.1:25",
    ],
)  # fmt: skip
def test_addresses_are_ip_literals_with_a_port(text):
    (found,) = violations(changed("frontends/smtp/bind", [text]))
    assert found.startswith("frontends.smtp.bind.0: ")


@pytest.mark.parametrize(
    ("first", "second", "met"),
    [
        ("192.0.2.1:25", "192.0.2.1:25", True),
        ("192.0.2.1:25", "0.0.0.0:25", True),
        ("0.0.0.0:25", "192.0.2.1:25", True),
        ("[::]:25", "[2001:db8::1]:25", True),
        ("[2001:db8::1]:25", "[2001:DB8:0::1]:25", True),
        ("0.0.0.0:25", "[::]:25", False),
        ("0.0.0.0:25", "192.0.2.1:26", False),
        ("192.0.2.1:25", "192.0.2.2:25", False),
    ],
)
def test_an_address_is_bound_once_over_all_frontends_wildcards_counted(first, second, met):
    document = changed("frontends/smtp/bind", [first])
    document["frontends"]["other"] = {"bind": [second], "backend": "smtp"}
    if met:
        (found,) = violations(document)
        assert "bound already, by frontends.smtp.bind[0]" in found
    else:
        parse(json.dumps(document).encode(), file="d")


@pytest.mark.parametrize(
    ("earlier", "later", "never"),
    [
        (["*"], ["a.example.org"], True),
        (["*"], ["*"], True),
        (["*.example.org"], ["a.example.org"], True),
        (["*.example.org"], ["a.b.example.org", "*.b.example.org"], True),
        (["*.example.org"], ["example.org"], False),
        (["*.example.org"], ["aexample.org"], False),
        (["*.b.example.org"], ["*.example.org"], False),
        (["a.example.org"], ["a.example.org", "b.example.org"], False),
    ],
)
def test_a_route_that_can_never_match_is_refused(earlier, later, never):
    routes = [{"sni": earlier, "backend": "smtp"}, {"sni": later, "backend": "smtp"}]
    document = changed("frontends/smtp/routes", routes)
    if never:
        (found,) = violations(document)
        assert found.startswith("frontends.smtp.routes.1: can never match: earlier routes take it all")
    else:
        parse(json.dumps(document).encode(), file="d")


def test_a_name_that_an_earlier_route_takes_is_a_warning():
    routes = [{"sni": ["a.example.org"], "backend": "smtp"}, {"sni": ["a.example.org", "b.org"], "backend": "smtp"}]
    assert findings(changed("frontends/smtp/routes", routes)) == [
        'frontends.smtp.routes[1].sni[0]: "a.example.org" never comes here: an earlier route has "a.example.org"'
    ]


def test_what_one_mistake_brings_about_is_not_told_as_another():
    """A backend that is wrong is not also called unknown; a bind that is wrong is not also called missing."""
    document = state(smtp=1)
    document["backends"]["smtp"]["servers"] = "none"
    document["frontends"]["smtp"]["bind"] = ["nonsense"]
    assert [violation.split(":")[0] for violation in violations(document)] == [
        "backends.smtp.servers",
        "frontends.smtp.bind.0",
    ]


def test_places_stay_right_behind_a_list_item_that_is_wrong():
    document = changed("frontends/smtp/bind", ["nonsense", "192.0.2.1:25", "192.0.2.1:25"])
    assert [violation.split(":")[0] for violation in violations(document)] == [
        "frontends.smtp.bind.0",
        "frontends.smtp.bind.2",
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            changed("nodes/workers", {f"n{i}": "192.0.2.1" for i in range(1_001)}),
            "1,001 nodes in one group; at most 1,000",
        ),
        (
            changed("backends/smtp/servers", {f"s{i}": {"address": "192.0.2.1:1"} for i in range(1_001)}),
            "at most 1,000",
        ),
        (changed("frontends/smtp/bind", ["192.0.2.1:1"] * 300), "300 addresses of one frontend; at most 256"),
        (changed("frontends", {f"f{i}": {} for i in range(5_001)}), "5,001 frontends; at most 5,000"),
    ],
)
def test_limits_of_number_are_named_in_one_line(document, message):
    (found,) = violations(document)
    assert message in found


def test_a_hundred_thousand_servers_in_a_group_are_one_violation():
    data = json.dumps(changed("nodes/workers", {f"n{i}": "192.0.2.1" for i in range(100_000)})).encode()
    with pytest.raises(InvalidError, match="100,000 nodes in one group; at most 1,000 are taken"):
        parse(data, file="d", max_bytes=10_000_000)
    with pytest.raises(InvalidError, match="at most 1,048,576 bytes are read"):
        parse(data, file="d")


def test_a_canary_needs_an_echo_that_can_answer():
    document = state(smtp=1)
    document["frontends"]["smtp"] |= {"canary": True, "routes": [{"sni": ["*"], "backend": "smtp"}]}
    document["backends"]["smtp"]["proxy_protocol"] = "v1"
    assert violations(document) == [
        'frontends.smtp.canary: the echo behind a canary demands PROXY v2; backend "smtp" has proxy_protocol: v1',
        "frontends.smtp.canary: a canary asks for no name: it cannot be tried through routes",
    ]
    del document["frontends"]["smtp"]["routes"], document["backends"]["smtp"]["proxy_protocol"]
    assert findings(document) == []


def test_lists_that_any_client_can_pass_by_forging_a_header_are_a_warning():
    document = state(smtp=1)
    document["frontends"]["smtp"] |= {"accept_proxy": True, "allow": ["192.0.2.0/24"], "rate_limit": {"concurrent": 9}}
    (found,) = findings(document)
    assert "can send a PROXY header that names another address, and so pass allow and rate_limit" in found
    document["frontends"]["smtp"]["accept_proxy"] = ["192.0.2.9"]
    assert findings(document) == []


def test_sessions_of_servers_that_nobody_checks_never_end():
    document = state(smtp=1)
    document["backends"]["smtp"] |= {"on_down": "close", "health": {"type": "none"}}
    (found,) = findings(document)
    assert "no server is ever found down" in found


def test_what_is_valid_but_unwise_is_a_warning():
    document = state(smtp=1, imap=1)
    document["defaults"] = {"maxconn": 9_000}
    document["nodes"] = {"unused": {"n": "192.0.2.1"}}
    del document["frontends"]["imap"]
    document["frontends"]["smtp"]["maxconn"] = 8_000
    document["backends"]["smtp"]["health"] = {"send_proxy": False}
    document["backends"]["smtp"]["servers"]["b"] = {"address": document["frontends"]["smtp"]["bind"][0]}
    document["backends"]["imap"]["servers"] = {
        "a": {"address": "192.0.2.8:1", "disabled": True},
    }
    address = document["frontends"]["smtp"]["bind"][0]
    assert findings(document, Limits(process_maxconn=4_000, file_limit=1_024)) == [
        "backends.imap: no frontend uses it",
        "nodes.unused: no backend uses this group",
        "backends.imap.servers: every server is disabled: nobody will be served",
        (
            "backends.smtp.health.send_proxy: the servers expect a PROXY header, but the check sends none to the same "
            "port: it will find them dead"
        ),
        f"backends.smtp.servers.b: {address} is an address this firewall binds: a loop",
        "frontends.smtp.maxconn: 8,000 connections, but all of HAProxy takes 4,000",
        "defaults.maxconn: 9,000 connections, but all of HAProxy takes 4,000",
        ": haproxy.maxconn 4,000 takes 8,000 files; the limit is 1,024",
    ]


def test_a_check_on_a_plain_port_without_a_header_is_wise():
    assert findings(changed("backends/smtp/health", {"port": 30145, "send_proxy": False})) == []


def test_servers_that_nobody_checks_are_a_warning():
    document = state(smtp=2)
    document["backends"]["smtp"]["health"] = {"type": "none"}
    assert findings(document) == [
        "backends.smtp.health: not checked: a dead server goes on getting its share of clients"
    ]


def test_a_group_must_be_there_and_needs_a_port():
    assert violations(changed("backends/smtp/nodes", "x")) == [
        'backends.smtp.nodes: there is no group of nodes "x"',
        "backends.smtp.nodes: a group of nodes needs the `port` its servers listen on",
    ]


def test_servers_of_a_group_and_servers_one_by_one_need_names_of_their_own():
    document = state(smtp=1)
    document["nodes"] = {"g": {"a": "192.0.2.77"}}
    document["backends"]["smtp"] |= {"nodes": "g", "port": 25}
    assert violations(document) == [
        'backends.smtp.servers.a: the group "g" has a node of this name; servers need names of their own'
    ]
