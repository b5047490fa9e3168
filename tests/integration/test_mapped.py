"""Who is denied, allowed, exempt or counted, by every form in which an outer proxy can name a client.

What is expected is worked out by Python's ipaddress: an IPv4-mapped address (RFC 4291, 2.5.5.2) is the IPv4 address.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct

import pytest
from kit.edge import Edge
from kit.servers import SIGNATURE, echo, free_port

CLIENTS = [
    "203.0.113.7",
    "198.51.100.7",
    "::ffff:203.0.113.7",
    "::ffff:198.51.100.7",
    "2001:db8::7",
    "2002:cb00:7107::1",  # the 6to4 twin of 203.0.113.7
    "::203.0.113.7",  # IPv4-compatible (deprecated): an IPv6 address
    "::ffff:0:cb00:7107",  # IPv4-translated (RFC 2765): likewise
]
RULES = ["203.0.113.0/24", "203.0.113.7", "0.0.0.0/0", "::/0", "2001:db8::/32", "2002::/16", "::/64"]


def v1(client: str) -> bytes:
    family, target = ("TCP6", "2001:db8::1") if ":" in client else ("TCP4", "192.0.2.1")
    return f"PROXY {family} {client} {target} 40000 25\r\n".encode()


def v2(client: str) -> bytes:
    family, kind, target = (
        (socket.AF_INET6, 0x21, "2001:db8::1") if ":" in client else (socket.AF_INET, 0x11, "192.0.2.1")
    )
    body = socket.inet_pton(family, client) + socket.inet_pton(family, target) + struct.pack("!HH", 40_000, 25)
    return SIGNATURE + struct.pack("!BBH", 0x21, kind, len(body)) + body


def served(port: int, header: bytes) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(header)
            return connection.recv(100) != b""
        except ConnectionResetError:
            return False


def within(client: str, rule: str) -> bool:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(client)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address in ipaddress.ip_network(rule)


@pytest.mark.parametrize("header", [v1, v2])
def test_a_client_is_the_same_in_every_form_and_to_every_rule(edge: Edge, header: type[v1]):
    frontends = {}
    ports = {(kind, rule): free_port() for kind in ("deny", "allow", "exempt") for rule in RULES}
    for (kind, rule), port in ports.items():
        front: dict[str, object] = {"bind": [f"127.0.0.1:{port}"], "backend": "b", "accept_proxy": True}
        front |= {kind: [rule]} if kind != "exempt" else {
            "rate_limit": {"connections": 1, "period": "1h", "exempt": [rule]}
        }  # fmt: skip
        frontends[f"f{port}"] = front
    with echo("a") as server:
        edge.live({
            "version": 1,
            "frontends": frontends,
            "backends": {"b": {"servers": {"a": {"address": server.address}}, "health": {"type": "none"}}},
        })  # fmt: skip
        wrong = []
        for (kind, rule), client in itertools.product(ports, CLIENTS):
            matches, port = within(client, rule), ports[kind, rule]
            if kind == "exempt":
                continue
            if served(port, header(client)) != (matches if kind == "allow" else not matches):
                wrong.append((kind, rule, client))
        # Counted in one table: who is not exempt has one connection, whichever form it comes in.
        for rule in RULES:
            for pair in (("203.0.113.7", "::ffff:203.0.113.7"), ("2001:db8::7", "2001:db8::7")):
                got = [served(ports["exempt", rule], header(client)) for client in pair]
                if got != [True, within(pair[0], rule)]:
                    wrong.append(("exempt", rule, *pair))
        assert not wrong


@pytest.mark.parametrize("rule", ["::ffff:203.0.113.0/120", "::ffff:203.0.113.7"])
def test_a_rule_in_ipv6_clothes_is_refused_with_what_to_write(one_edge: Edge, rule: str):
    front = {"bind": ["127.0.0.1:2525"], "backend": "b", "deny": [rule]}
    backends = {"b": {"servers": {"a": {"address": "192.0.2.1:25"}}}}
    done = one_edge.agent("check", one_edge.file({"version": 1, "frontends": {"f": front}, "backends": backends}))
    assert (done.returncode, "write 203.0.113." in done.stderr) == (3, True), done.stderr
