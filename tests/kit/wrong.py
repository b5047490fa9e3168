"""One wrong value each, in an otherwise valid document, and what `agent check` says of it.

None: any message with a hint (`did you mean`, `such as`, ...).
"""

from __future__ import annotations

from typing import Any

from kit.states import state


def changed(path: str, value: object) -> dict[str, Any]:
    """A valid state with one thing put to `value` (... removes it)."""
    *steps, last = path.split("/")
    return put(steps, last, value)


def put(steps: list[str], last: str, value: object) -> dict[str, Any]:
    document = state(smtp=1)
    at: Any = document
    for step in steps:
        at = at.setdefault(step, {})
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return document


SMUGGLED = ["x\ny", "x y", "x#y", "x'y", 'x"y', "${HOME}", "x\\y", "x\ty", "x\x00y", "x\u2028y", "é", "x;y"]

WRONG: list[tuple[str, object, str | None]] = [
    ("version", ..., ": the key `version` is missing"),
    ("version", 2, "version: this agent reads version 1 of the desired state, got 2"),
    ("version", "1", 'version: this agent reads version 1 of the desired state, got the text "1"'),
    ("version", True, "version: this agent reads version 1 of the desired state, got true"),
    ("serial", -1, "serial: expected a whole number from 0 to 9,007,199,254,740,991, got -1"),
    ("frontends", [], "frontends: expected a mapping, got a list"),
    ("frontends/smtp", None, "frontends.smtp: expected a mapping, got nothing"),
    ("frontends/smtp/bind", "192.0.2.1:25", 'frontends.smtp.bind: expected a list, got the text "192.0.2.1:25"'),
    ("frontends/smtp/bind", [], "frontends.smtp.bind: a frontend without an address serves nobody"),
    ("frontends/smtp/bind", ..., "frontends.smtp: the key `bind` is missing"),
    (
        "frontends/smtp/backend",
        ...,
        "frontends.smtp: the key `backend` is missing; only a frontend with `routes` can do without",
    ),
    (
        "frontends/smtp/maxconn",
        True,
        "frontends.smtp.maxconn: expected a whole number from 1 to 10,000,000, got true",
    ),
    (
        "frontends/smtp/maxconn",
        1.0,
        "frontends.smtp.maxconn: expected a whole number from 1 to 10,000,000, got 1.0",
    ),
    (
        "frontends/smtp/maxconn",
        None,
        "frontends.smtp.maxconn: expected a whole number from 1 to 10,000,000, got nothing",
    ),
    (
        "frontends/smtp/accept_proxy",
        "yes",
        'frontends.smtp.accept_proxy: expected true, false or a list, got the text "yes"',
    ),
    ("backends/smtp/balance", "round-robin", None),
    (
        "backends/smtp/application",
        5,
        "backends.smtp.application: expected one of smtp, imap, pop3, tls, http, raw, got 5",
    ),
    (
        "backends/smtp/servers/a/weight",
        257,
        "backends.smtp.servers.a.weight: expected a whole number from 0 to 256, got 257",
    ),
    (
        "backends/smtp/servers",
        {},
        "backends.smtp: a backend without a server; give it `servers`, or `nodes` and `port`",
    ),
    (
        "backends/smtp/port",
        25,
        "backends.smtp.port: only servers of a group take their port from here; `nodes` is missing",
    ),
    (
        "backends/smtp/health/path",
        "/",
        "backends.smtp.health.path: means nothing to a check of type tcp; it belongs to http",
    ),
    ("backends/smtp/health/interval", "5", None),
    (
        "backends/smtp/health/interval",
        "0s",
        'backends.smtp.health.interval: must be from 1ms to 596h, got the text "0s"',
    ),
    (
        "backends/smtp/health/interval",
        "700h",
        'backends.smtp.health.interval: must be from 1ms to 596h, got the text "700h"',
    ),
    (
        "backends/smtp/servers/a/address",
        "0.0.0.0:25",
        "backends.smtp.servers.a.address: 0.0.0.0 is no address of a server",
    ),
    ("frontends/smtp/allow", ["192.0.2.9/24"], None),
    (
        "frontends/smtp/routes",
        [{"sni": [], "backend": "smtp"}],
        "frontends.smtp.routes.0.sni: a route without a name can never match",
    ),
    (
        "frontends/smtp/rate_limit",
        {"connections": 0, "period": "1s"},
        "frontends.smtp.rate_limit.connections: expected a whole number from 1 to 10,000,000, got 0",
    ),
    (
        "frontends/smtp/rate_limit",
        {"connections": 5},
        "frontends.smtp.rate_limit: the key `period` is missing: a rate is so many `connections` in a `period`",
    ),
    (
        "frontends/smtp/rate_limit",
        {"exempt": ["192.0.2.1"]},
        "frontends.smtp.rate_limit: limits nothing; give it `connections` and `period`, or `concurrent`",
    ),
    ("frontends/smtp/accept_proxy", ["192.0.2.9/24"], None),
    ("backends/smtp/timeouts", {"client": "5m"}, None),
    (
        "backends/smtp/health",
        {"type": "http", "status": "399-200"},
        (
            'backends.smtp.health.status: expected a status from 100 to 599, or a range such as "200-399", '
            'got the text "399-200"'
        ),
    ),
    (
        "backends/smtp/health",
        {"type": "http", "status": "200"},
        (
            'backends.smtp.health.status: expected a status from 100 to 599, or a range such as "200-399", '
            'got the text "200"'
        ),
    ),
    (
        "backends/smtp/health",
        {"type": "greeting"},
        "backends.smtp.health.type: only smtp, imap and pop3 greet first; this backend has application: raw",
    ),
    ("nodes/empty", {}, None),
    (
        "nodes/group",
        {"n1": {"address": "192.0.2.1:25"}},
        'nodes.group.n1.address: expected an IP address (names are not looked up), got the text "192.0.2.1:25"',
    ),
    ("nodes/group", {"n1": {"weight": 0}}, "nodes.group.n1: the key `address` is missing"),
    ("nodes/group", {"n1": ["192.0.2.1"]}, "nodes.group.n1: expected an IP address, got a list"),
    (
        "frontends/smtp/owner",
        "mail uid",
        'frontends.smtp.owner: expected 1 to 400 printable ASCII characters without a space, got the text "mail uid"',
    ),
    (
        "backends/smtp/owner",
        "",
        'backends.smtp.owner: expected 1 to 400 printable ASCII characters without a space, got the text ""',
    ),
    (
        "manager",
        5,
        "manager: expected 1 to 400 printable ASCII characters without a space, got 5",
    ),
]
