"""What befalls a cluster and its controller, with connections counted: the second table of docs/reliability.md."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import pytest
from kit.discover import Controller, endpoints, node, node_servers, service, told
from kit.edge import connect, until
from kit.fault_table import TABLES
from kit.servers import free_port
from kit.site import Mute, Site, pools, reached, reloads
from kit.witness import Row, Witness

ALL = bool(os.environ.get("EDGEAGENT_ALL_VERSIONS"))
API_SECONDS, FIREWALL_SECONDS = (30, 60) if ALL else (5, 8)
"""How long either is away."""
GAP_SECONDS = 5
RECOVERY_SECONDS = 10.0
"""Beyond the time without a pod, the longest that clients are out."""


@contextlib.contextmanager
def fault(
    site: Site, port: int, name: str, *, lossless: bool = True, ends: bool = False
) -> Iterator[tuple[Callable[[str], None], Row]]:
    """The load goes on while the fault is played; call what is yielded with what is live afterwards.

    `ends`: nothing serves there afterwards.
    """
    row = Row(fault=name, version=site.wall.edge.status()["haproxy"]["version"].rpartition(".")[0])
    with Witness(port, 1, host=site.bind) as witness:

        def after(text: str) -> None:
            row.after = text

        yield after, row
        if not ends:
            served = len(witness.greetings)
            until(lambda: len(witness.greetings) > served + 5, "clients are served again")
        row.fill(witness)
    TABLES["cluster faults"].rows.append(row)
    assert row.after, "every fault says what is live afterwards"
    if lossless:
        assert (row.failed, row.outage_ms) == (0, 0), witness.failures[:5]


@contextlib.contextmanager
def served(site: Site) -> Iterator[tuple[Controller, int]]:
    """`mail` on two of four nodes that have a server, a third node that is known, and the firewall's port."""
    with node_servers(site.hosts, 30025):
        site.nodes("node1", "node2", "node3")
        port = site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            yield control, port


def weights(site: Site) -> dict[str, int]:
    return {name: weight for name, (_, weight) in pools(site.wall)["smtp"].items()}


def test_a_node_is_added(site: Site):
    with served(site) as (_, port), fault(site, port, "a node added") as (after, _):
        before = reloads(site.wall)
        site.kube.create(node("node4", site.hosts[3]))
        until(lambda: weights(site).get("node4") == 1, "it serves")
        assert reloads(site.wall) == before
        after("with it, without a reload")


@pytest.mark.parametrize("how", ["cordoned", "NotReady"])
def test_a_node_drains(site: Site, how: str):
    with served(site) as (_, port), fault(site, port, f"a node {how}, and back") as (after, _):
        before = reloads(site.wall)

        def put(*, on: bool) -> None:
            if how == "cordoned":
                site.kube.patch("Node", "node1", {"spec": {"unschedulable": on}})
            else:
                conditions = [{"type": "Ready", "status": "Unknown" if on else "True"}]
                site.kube.patch("Node", "node1", {"status": {"conditions": conditions}}, status=True)

        with connect(port, host=site.bind) as session, session.makefile("rw") as stream:
            stream.readline()
            put(on=True)
            until(lambda: weights(site)["node1"] == 0, "it drains")
            stream.write("still here\n")
            stream.flush()
            assert stream.readline() == "still here\n"
        put(on=False)
        until(lambda: weights(site)["node1"] == 1, "it serves again")
        assert reloads(site.wall) == before
        after("drained, its sessions went on, then as before; without a reload")


def test_a_node_is_deleted(site: Site):
    with served(site) as (_, port), fault(site, port, "a node deleted") as (after, _):
        before = reloads(site.wall)
        site.kube.delete("Node", "node1")
        until(lambda: "node1" not in pools(site.wall)["smtp"], "it is gone")
        assert reloads(site.wall) == before
        after("without it, without a reload")


def test_the_history_is_gone_and_the_api_server_is_away(site: Site):
    name = f"the API server away for {API_SECONDS} s, and its history gone (410)"
    with served(site) as (control, port), fault(site, port, name) as (after, _):
        site.kube.stop()
        control.wait("does not answer")
        time.sleep(API_SECONDS)  # an outage lasts
        site.kube.start()
        site.kube.patch("Node", "node1", {"metadata": {"labels": {"beat": "1"}}})
        site.kube.forget_history()
        site.kube.patch("Node", "node2", {"spec": {"unschedulable": True}})
        until(lambda: weights(site)["node2"] == 0, "it goes on", 60)
        after("what was live, then the change")


def test_the_firewall_is_away(site: Site):
    name = f"the firewall not reachable for {FIREWALL_SECONDS} s"
    with served(site) as (control, port), fault(site, port, name) as (after, _):
        site.wall.sshd.kill()
        site.kube.patch("Node", "node1", {"spec": {"unschedulable": True}})
        site.told(control, "mail", "waiting")
        time.sleep(FIREWALL_SECONDS)  # an outage lasts
        begin = time.monotonic()
        site.wall.sshd.start()
        until(lambda: weights(site)["node1"] == 0, "the change goes live")
        assert time.monotonic() - begin < 10 + 5, "a firewall that is back is noticed within 10 s"
        site.live(control, "mail")
        after("what was live; the change within 10 s of its return")


def local(site: Site, port: int) -> None:
    """A Service of one pod: only the node that holds it serves."""
    made = service("mail", {"smtp": 25}, expose=f"smtp={port}", bind=site.bind)
    made["spec"]["externalTrafficPolicy"] = "Local"
    site.kube.create(made)
    site.kube.create(endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525))


def move(site: Site, *members: tuple[str, str, bool]) -> None:
    site.kube.patch("EndpointSlice", "mail-ipv4", {"endpoints": endpoints("mail", *members, smtp=2525)["endpoints"]})


def test_the_only_pod_of_a_local_service_moves_without_a_gap(site: Site):
    """The new pod is ready before the old one goes."""
    site.nodes("node1", "node2")
    local(site, port := free_port(site.bind))
    old, new = ("198.51.100.1", "node1", True), ("198.51.100.2", "node2", True)
    with site.watched() as control, node_servers(site.hosts[:2], 30025):
        site.live(control, "mail")
        with fault(site, port, "the only pod of a Local Service moves, the new one first") as (after, _):
            before = reloads(site.wall)
            move(site, old, new)
            until(lambda: set(pools(site.wall)["smtp"]) == {"node1", "node2"}, "both serve")
            move(site, new)
            until(lambda: set(pools(site.wall)["smtp"]) == {"node2"}, "the new one serves")
            assert reloads(site.wall) == before
            after("where the pod is, without a reload")


def test_the_only_pod_of_a_local_service_moves_with_a_gap(site: Site):
    """One Postfix with a volume that only one node can have: the old pod is gone before the new one is there."""
    site.nodes("node1", "node2")
    local(site, port := free_port(site.bind))
    with site.watched() as control, contextlib.ExitStack() as old:
        old.enter_context(node_servers(site.hosts[:1], 30025))
        site.live(control, "mail")
        name = f"the only pod of a Local Service moves, with a gap of {GAP_SECONDS} s"
        with fault(site, port, name, lossless=False) as (after, gap):
            old.close()
            move(site)
            time.sleep(GAP_SECONDS)  # the gap itself
            old.enter_context(node_servers(site.hosts[1:2], 30025))
            move(site, ("198.51.100.2", "node2", True))
            until(lambda: reached(site.bind, port).startswith(site.hosts[1]), "clients are served")
            site.live(control, "mail")
            after("where the pod is; out for the gap and a moment")
        assert GAP_SECONDS * 1000 <= gap.outage_ms <= (GAP_SECONDS + RECOVERY_SECONDS) * 1000


def test_twelve_refused_services_and_a_cordon(site: Site):
    refused = {f"bad{number}": 200 + number for number in range(12)}
    with served(site) as (control, port), contextlib.ExitStack() as stack:
        for number in refused.values():
            for host in site.hosts[:3]:
                stack.enter_context(Mute(host, 30_000 + number))
        site.kube.annotate("mail", application="smtp")
        with fault(site, port, "twelve refused Services, and a node cordoned") as (after, _):
            for name, number in refused.items():
                site.smtp(name, number, prefix=name, application="smtp")
            for name in refused:
                site.told(control, name, "refused")
            begin = time.monotonic()
            site.kube.patch("Node", "node1", {"spec": {"unschedulable": True}})
            until(lambda: weights(site)["node1"] == 0, "it drains")
            assert time.monotonic() - begin < 5, "it was a minute: 27 sessions of ssh"
            assert set(pools(site.wall)) == {"smtp"}
            after("the change at once, the twelve held back and named")


def test_the_last_service_is_deleted(site: Site):
    """Its port must not go on: another Service may be given the same NodePort."""
    with served(site) as (_, port):
        with fault(site, port, "the last Service deleted", lossless=False, ends=True) as (after, _):
            site.kube.delete("Service", "mail")
            until(lambda: all(one["metadata"]["name"] != "mail" for one in site.kube.items("Service")), "it is gone")
            after("nothing: its port is closed, and the finalizer gone")
        assert not reached(site.bind, port)


def test_two_controllers_at_once(site: Site):
    with served(site) as (first, port), site.watched(name="second") as second:
        second.wait("begins with")
        with fault(site, port, "two controllers at once, and four changes") as (after, _):
            generation, before = site.wall.edge.status()["live"]["generation"], reloads(site.wall)
            for name, on in (("node1", True), ("node2", True), ("node1", False), ("node2", False)):
                site.kube.patch("Node", name, {"spec": {"unschedulable": on}})
                until(lambda name=name, on=on: weights(site)[name] == int(not on), f"{name} {on}")
            until(lambda: told(site.kube, "mail").get("state") == "live", "both agree")
            assert site.wall.edge.status()["live"]["generation"] == generation + 4, first.said + second.said
            assert reloads(site.wall) == before
            after("each change once, without a reload")
