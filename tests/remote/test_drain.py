"""`agent drain --to`: servers of other hosts, where those allow it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from kit.edge import until
from kit.servers import EchoServer, echo, free_port
from kit.ssh import Cluster, Firewall
from kit.two_frontends import document, served


@pytest.fixture
def servers() -> Iterator[tuple[EchoServer, EchoServer]]:
    with echo("a") as a, echo("b") as b:
        yield a, b


def test_by_ssh_where_the_firewall_allows_it(
    firewall: Firewall, cluster: Cluster, servers: tuple[EchoServer, EchoServer]
):
    edge = firewall.edge
    edge.apply(document(port := free_port(), *servers))
    done = cluster.agent("drain", "a", "--to", firewall.to)
    assert (done.returncode, "drain is not let through here" in done.stdout) == (9, True), done.stdout + done.stderr
    assert served(port) == {"a", "b"}
    edge.settings.write_text(edge.settings.read_text() + "\n[sync]\nallow_drain = true\n")
    done = cluster.agent("drain", "a", "--to", firewall.to)
    assert (done.returncode, done.stdout) == (0, f"{firewall.to}: one/a, two/a: drained; no session is left\n")
    assert served(port) == {"b"}
    done = cluster.agent("ready", "a", "--to", firewall.to, "--json")
    assert (done.returncode, json.loads(done.stdout)["hosts"][0]["exit_code"]) == (0, 0)
    until(lambda: served(port) == {"a", "b"}, "both serve")
    done = cluster.agent("drain", "a;id", "--to", firewall.to)
    assert (done.returncode, "is no name of a server" in done.stderr) == (2, True), done.stderr
