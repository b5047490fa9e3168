"""`agent discover --watch` against an API server, with an agent behind a real sshd: as an administrator runs it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import yaml
from kit.apiserver import Recorded
from kit.discover import (
    Controller,
    balanced,
    endpoints,
    events,
    manifests,
    node,
    node_servers,
    service,
    told,
)
from kit.edge import connect, first_line, until
from kit.kube import ACCOUNT, STRANGER
from kit.servers import free_port
from kit.site import Mute, Site, pools, reached, reloads
from kit.web import web
from kit.witness import Witness

from agent.discover.holds import RETRY_SECONDS

NODES = ("k8s-node1", "k8s-node2", "k8s-node3", "k8s-node4")


@pytest.fixture
def mail(site: Site) -> Iterator[dict[str, int]]:
    """The Service of `deploy/kubernetes/example-mail.yaml` on four nodes; the firewall's port of each of its ports."""
    found = manifests("example-mail")
    said = found[1]["metadata"]["annotations"]
    ports = {name: free_port(site.bind) for name in ("smtp", "smtps", "submission", "imaps")}
    said["edgeagent.io/expose"] = ", ".join(f"{name}={port}" for name, port in ports.items())
    said["edgeagent.io/bind"] = site.bind
    for one in found:
        site.kube.create(one)
    site.nodes(*NODES)
    with (
        node_servers(site.hosts, *range(30125, 30129)),
        node_servers(site.hosts, *range(30145, 30148), header=False),
    ):
        yield ports


def test_nodes_come_drain_and_go_without_a_reload_or_a_failed_connection(site: Site, mail: dict[str, int]):
    with site.watched() as control:
        site.live(control, "mail", "mail")
        expected = {"smtp": 30125, "smtps": 30126, "submission": 30127, "imaps": 30128}
        assert pools(site.wall) == {
            name: {node: (f"{host}:{port}", 1) for node, host in zip(NODES, site.hosts, strict=True)}
            for name, port in expected.items()
        }
        told = ("Live", "imaps, smtp, smtps, submission: live on the firewall")
        until(lambda: events(site.kube, "mail", "mail") == [told], "an Event")
        before, pid = reloads(site.wall), site.wall.edge.pid
        with Witness(mail["smtp"], host=site.bind) as witness, connect(mail["imaps"], host=site.bind) as session:
            stream = session.makefile("rw")
            at = NODES[site.hosts.index(stream.readline().split(":")[0])]
            site.kube.patch("Node", at, {"spec": {"unschedulable": True}})
            until(lambda: {pool[at][1] for pool in pools(site.wall).values()} == {0}, f"{at} drains")
            stream.write("still here\n")
            stream.flush()
            assert stream.readline() == "still here\n"  # its session goes on
            greeted = {first_line(mail["imaps"], host=site.bind).split(":")[0] for _ in range(12)}
            assert greeted == set(site.hosts) - {site.hosts[NODES.index(at)]}
            site.kube.delete("Node", at)
            until(lambda: not any(at in pool for pool in pools(site.wall).values()), f"{at} is gone")
            site.kube.create(node("k8s-node5", site.hosts[NODES.index(at)]))
            until(lambda: all("k8s-node5" in pool for pool in pools(site.wall).values()), "node 5 serves")
            stream.write("and here\n")
            stream.flush()
            assert stream.readline() == "and here\n"
            stream.close()
        assert witness.failures == []
        assert (reloads(site.wall), site.wall.edge.pid) == (before, pid)
        control.pushed(4)
        assert control.stop() == 0


def test_an_api_server_that_was_away_and_has_forgotten_is_watched_again_and_nothing_is_pushed_for_it(
    site: Site, mail: dict[str, int]
):
    with site.watched() as control:
        site.live(control, "mail", "mail")
        control.pushed(1)
        site.kube.stop()
        control.wait("does not answer")
        time.sleep(4)  # an outage lasts
        assert control.process.poll() is None
        assert first_line(mail["smtp"], host=site.bind)
        # History that the controller has not seen, and cannot see any more.
        site.kube.start()
        for _ in range(3):
            site.kube.patch("Node", NODES[0], {"metadata": {"labels": {"beat": str(_)}}})
        site.kube.forget_history()
        site.kube.stop()
        site.kube.start()
        control.wait("nodes: heard of again", timeout=90)
        control.wait("services: heard of again", timeout=90)
        site.kube.patch("Node", NODES[1], {"spec": {"unschedulable": True}})
        until(lambda: {pool[NODES[1]][1] for pool in pools(site.wall).values()} == {0}, "node 2 drains")
        control.pushed(2)  # the first one, and that


def test_rbac_as_shipped_is_all_that_is_asked_and_all_that_is_granted(site: Site, mail: dict[str, int]):
    with site.watched() as control:
        site.live(control, "mail", "mail")
        expose = site.kube.get("Service", "mail", "mail")["metadata"]["annotations"]["edgeagent.io/expose"]
        site.kube.annotate("mail", "mail", expose="nothing")
        site.told(control, "mail", "mistake", "mail")
        site.kube.annotate("mail", "mail", expose=expose)  # the same Event again is one of a series
        site.live(control, "mail", "mail")
        until(lambda: ("patch", "events.events.k8s.io") in {one[:2] for one in site.kube.requests()}, "a series")
        site.kube.delete("Service", "mail", "mail")
        until(lambda: not site.kube.items("Service", "mail"), "its finalizer goes")
        control.stop()
    asked = site.kube.requests()
    assert [one for one in asked if one[3] == 403] == []
    used = {(verb, resource, "") for verb, resource, _, _ in asked}
    granted = set()
    for manifest in manifests("rbac"):
        for rule in manifest.get("rules", ()):
            for resource in rule["resources"]:
                for group in rule["apiGroups"]:
                    where = f"{resource}.{group}" if group else resource
                    granted |= {(verb, where, manifest["metadata"].get("namespace", "")) for verb in rule["verbs"]}
    assert used == granted


def test_a_mistake_is_an_event_on_its_service_and_what_was_live_goes_on(site: Site):
    with node_servers(site.hosts[:1], 30025, 30026):
        site.nodes("node1")
        port = site.smtp()
        other = site.smtp("other", 26, prefix="other")
        with site.watched() as control:
            site.live(control, "mail")
            site.kube.annotate("mail", expose="smtp=twenty-five")
            site.told(control, "mail", "mistake")
            message = site.event("mail", "Mistake")
            assert (
                'edgeagent.io/expose: smtp: a port from 1 to 65,535 or `routed` is expected, got the text "twenty-five"'
                in (message)
            )
            assert message.endswith("; what was live before goes on")
            control.stop()
        with site.watched(name="again") as control:  # nothing is remembered but what stands on the Service
            control.wait("begins with")
            site.kube.annotate("other", expose="smtp=" + str(moved := free_port(site.bind)))
            until(lambda: reached(site.bind, moved), "the other goes on to be looked after")
            assert first_line(port, host=site.bind)
            assert not reached(site.bind, other)
            again = free_port(site.bind)
            site.kube.annotate("mail", expose=f"smtp={again}")
            site.live(control, "mail")
            assert first_line(again, host=site.bind)
            assert not reached(site.bind, port)


def test_a_service_that_the_firewall_refuses_is_held_back_and_the_others_go_on(site: Site):
    """Its server does not speak PROXY, which the agent over there proves before it touches anything."""
    host = site.hosts[0]
    with node_servers([host], 30025, 30026, 30028), Mute(host, 30027):
        site.nodes("node1")
        port = site.smtp(application="smtp")
        with site.watched() as control:
            site.live(control, "mail")
            names = {"a": 26, "bad": 27, "z": 28}
            ports = {name: site.smtp(name, number, prefix=name, application="smtp") for name, number in names.items()}
            refused = time.monotonic()
            site.told(control, "bad", "refused")
            site.live(control, "a")
            site.live(control, "z")
            assert [reached(site.bind, ports[name]) != "" for name in names] == [True, False, True]
            assert "bad-smtp" in site.event("bad", "Refused")
            # And it is in nobody's way.
            before = control.pushes
            site.kube.create(node("node2", site.hosts[1]))
            until(lambda: "node2" in pools(site.wall)["smtp"], "the next change goes live")
            assert "bad-smtp" not in pools(site.wall)
            assert first_line(port, host=site.bind)
            # It is not tried again for that; on a slow machine its own time may have come meanwhile.
            due = time.monotonic() - refused > RETRY_SECONDS[0]
            assert control.pushes in (before + 1, *([before + 2] if due else [])), control.said
            assert control.stop() == 0
        with site.watched(name="again") as control:
            control.wait("held back: Service default/bad")
            assert set(pools(site.wall)) == {"smtp", "a-smtp", "z-smtp"}
            site.kube.annotate("bad", proxy_protocol="none")
            site.told(control, "bad", "degraded")  # node 2 has no server of it
            assert reached(site.bind, ports["bad"])


def test_a_burst_of_changes_is_one_push_or_two(site: Site):
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            for index in range(30):
                site.kube.create(node(f"more{index:02}", site.hosts[0].rsplit(".", 1)[0] + f".{100 + index}"))
            until(lambda: len(pools(site.wall)["smtp"]) == 31, "all 31")
            site.told(control, "mail", "degraded")  # nobody answers there
            # The firewall is live before ssh has brought the answer back: the last push is over once the log has it.
            control.wait(f"generation {site.wall.edge.status()['live']['generation']} is live")
            before = control.pushes
            assert before <= 1 + 3  # a second at most passes unheard
            for _ in range(20):  # heartbeats
                site.kube.patch("Node", "node1", {"status": {"phase": f"{_}"}}, status=True)
            control_idle(control)
            assert control.pushes == before


def control_idle(control: Controller) -> None:
    """Nothing more comes of what has happened; half a second is five times as long as it waits for quiet."""
    seen = control.said
    time.sleep(0.5)  # that nothing happens has no event
    assert control.said == seen


def test_a_firewall_that_is_not_reached_is_told_and_tried_until_it_is(site: Site):
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        site.wall.sshd.kill()
        port = site.smtp()
        with site.watched() as control:
            site.told(control, "mail", "waiting")
            assert told(site.kube, "mail")["message"] == "the firewall takes no change now"  # no address, no user
            control.wait("Connection refused")
            assert site.event("mail", "Waiting")
            site.wall.sshd.start()
            site.live(control, "mail")
            assert first_line(port, host=site.bind)


def test_a_base_that_changes_is_read_again_and_a_broken_one_is_not(site: Site):
    base = site.folder / "base.yaml"
    at = free_port(site.bind)
    text = {"version": 1, "name": "edge", "frontends": {"smtp": {"bind": [f"{site.bind}:{at}"]}}}
    base.write_text(yaml.safe_dump(text))
    with node_servers(site.hosts[:2], 30025):
        site.nodes("node1")
        site.kube.create(service("mail", {"smtp": 25}, expose="smtp"))
        with site.watched("--base", str(base)) as control:
            site.live(control, "mail")
            assert site.wall.edge.status()["live"]["name"] == "edge"
            base.write_text("version: [1\n")
            site.kube.patch("Node", "node1", {"spec": {"unschedulable": True}})  # wakes it
            control.wait("the base stays as it was: ")
            moved = free_port(site.bind)
            text["frontends"]["smtp"]["bind"] = [f"{site.bind}:{moved}"]
            base.write_text(yaml.safe_dump(text))
            site.kube.patch("Node", "node1", {"spec": {"unschedulable": False}})
            until(lambda: reached(site.bind, moved), "the new address")


def test_pods_that_come_and_go_take_the_frontend_with_them_never(site: Site):
    """`externalTrafficPolicy: Local`: scaled to nothing and back, without a reload."""
    with node_servers(site.hosts[:2], 30025):
        site.nodes("node1", "node2")
        local = service("mail", {"smtp": 25}, expose=f"smtp={(port := free_port(site.bind))}", bind=site.bind)
        local["spec"]["externalTrafficPolicy"] = "Local"
        site.kube.create(local)
        site.kube.create(endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525))
        with site.watched() as control:
            site.live(control, "mail")
            assert list(pools(site.wall)["smtp"]) == ["node1"]
            before = reloads(site.wall)
            moved = endpoints("mail", ("198.51.100.2", "node2", True), smtp=2525)
            site.kube.patch("EndpointSlice", "mail-ipv4", {"endpoints": moved["endpoints"]})
            until(lambda: list(pools(site.wall)["smtp"]) == ["node2"], "node 2 has it")
            assert first_line(port, host=site.bind).startswith(site.hosts[1])
            assert reloads(site.wall) == before


def test_what_somebody_else_has_synced_is_put_right_by_whoever_leads_next(site: Site):
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        port = site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            control.stop()
        other = site.wall.edge.file(
            {"version": 1, "serial": 2**40, "allow_empty": True, "frontends": {}, "backends": {}}
        )
        assert site.wall.edge.agent("sync", other).returncode == 0
        assert not reached(site.bind, port)
        with site.watched(name="again") as control:
            until(lambda: reached(site.bind, port), "it serves again")
            control.pushed(1)
        assert site.wall.edge.status()["live"]["serial"] == 2**40 + 1


def test_it_tells_prometheus_and_the_kubelet_how_it_is(site: Site):
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        site.smtp()
        bad = service("bad", {"x": 80}, expose="y", bind=site.bind)
        site.kube.create(bad)
        at = f"127.0.0.1:{free_port()}"
        with site.watched("--listen", at) as control:
            site.live(control, "mail")
            site.told(control, "bad", "mistake")

            def ask(path: str) -> tuple[int, str]:
                try:
                    with urllib.request.urlopen(f"http://{at}{path}", timeout=5) as answer:
                        return answer.status, answer.read().decode()
                except urllib.error.HTTPError as error:
                    return error.code, error.read().decode()

            assert ask("/healthz") == (200, "ok\n")
            assert ask("/readyz") == (200, "ok\n")
            code, text = ask("/metrics")
            for line in (
                "edgeagent_discover_in_step 0.0",
                'edgeagent_discover_pushes_total{result="live"} 1.0',
                'edgeagent_discover_services{state="live"} 1.0',
                'edgeagent_discover_services{state="mistake"} 1.0',
                'edgeagent_discover_objects{kind="nodes"} 1.0',
                'edgeagent_discover_lists_total{kind="endpointslices"} 1.0',
            ):
                assert line in text, text
            assert code == 200


def test_without_rights_it_says_what_is_missing_and_waits_for_them(site: Site):
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        site.smtp()
        control = Controller(site.kube, site.client, ("--to", site.wall.to), site.folder / "log", STRANGER)
        control.start()
        try:
            control.wait("cannot list resource")
            control.wait("deploy/kubernetes/rbac.yaml has what is needed")
            assert control.process.poll() is None
            assert control.pushes == 0
        finally:
            control.close()


def test_an_empty_cluster_takes_nothing_away(site: Site):
    """Whoever deletes every annotation by mistake has not meant to end all service."""
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        port = site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            site.kube.annotate("mail", expose=None, bind=None)
            control.wait("no frontend is left, and all service would end: nothing is pushed")
            assert first_line(port, host=site.bind)


def test_it_says_who_it_is(site: Site):
    """In an audit log and in managedFields; both said OpenAPI-Generator."""
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            site.event("mail", "Live")
    if not isinstance(site.kube, Recorded):  # of a real one its own record tells
        fields = site.kube.get("Service", "mail")["metadata"]["managedFields"]
        assert "edgeagent" in {entry["manager"] for entry in fields}
        return
    assert all(program.startswith("edgeagent/") for program in site.kube.programs[ACCOUNT])
    written = [
        call for call, user, _ in site.kube.calls if user == ACCOUNT and call.verb in ("create", "update", "patch")
    ]
    assert {call.query.get("fieldManager") for call in written} == {"edgeagent"}


def condition(site: Site, name: str, kind: str) -> dict[str, str]:
    """As `kubectl wait --for=condition=edgeagent.io/KIND` reads it; {} where there is none."""
    status = site.kube.get("Service", name)["status"]
    by_type = {entry["type"]: entry for entry in status.get("conditions") or ()}
    return by_type.get(f"edgeagent.io/{kind}", {})


def programmed(site: Site, name: str, status: str = "True") -> dict[str, str]:
    until(lambda: condition(site, name, "Programmed").get("status") == status, f"{name}: Programmed is {status}")
    return condition(site, name, "Programmed")


def test_a_service_whose_load_balancer_is_the_firewall(site: Site):
    """No annotation: the class says it. Created, waited for, connected to, deleted; as any load balancer's."""
    port, health = free_port(site.bind), 30_937
    node1 = site.hosts[0]
    with node_servers([node1], 30025), web("kube-proxy", ready=True, host=node1, port=health):
        site.nodes("node1", "node2")
        mail = balanced("mail", {"smtp": 25}, externalTrafficPolicy="Local", healthCheckNodePort=health)
        mail["spec"]["loadBalancerSourceRanges"] = ["127.0.0.0/8"]
        mail["spec"]["ports"][0] |= {"port": port, "nodePort": 30025}
        site.kube.create(mail)
        site.kube.create(endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525))
        with site.watched("--bind", site.bind) as control:
            assert programmed(site, "mail")["reason"] == "Live"
            assert first_line(port, host=site.bind).startswith(node1)
            found = site.kube.get("Service", "mail")
            assert found["status"]["loadBalancer"] == {"ingress": [{"ip": site.bind, "ipMode": "Proxy"}]}
            since = condition(site, "mail", "Accepted")["lastTransitionTime"]
            # The firewall asks kube-proxy whether the node holds an endpoint.
            config = (site.wall.edge.folder / "state/haproxy.cfg").read_text()
            assert f"port {health}" in config
            assert "uri /healthz" in config
            # Who may connect.
            site.kube.patch("Service", "mail", {"spec": {"loadBalancerSourceRanges": ["203.0.113.0/24"]}})
            until(lambda: not reached(site.bind, port), "nobody here may connect any more")
            # A mistake takes nothing away, and is told.
            site.kube.patch("Service", "mail", {"spec": {"loadBalancerSourceRanges": ["203.0.113.7/24"]}})
            until(lambda: condition(site, "mail", "Accepted").get("status") == "False", "a mistake")
            assert programmed(site, "mail", "False")["reason"] == "Mistake"
            assert condition(site, "mail", "Accepted")["lastTransitionTime"] >= since
            site.kube.delete("Service", "mail")
            until(lambda: gone(site, "mail"), "its finalizer goes")
            assert not reached(site.bind, port)
            assert control.stop() == 0


def gone(site: Site, name: str) -> bool:
    return all(service["metadata"]["name"] != name for service in site.kube.items("Service"))


@pytest.mark.parametrize("where", ["while it watches", "while it is away", "while the firewall is away"])
def test_the_last_service_that_is_deleted_leaves_the_firewall(site: Site, where: str):
    """Else another Service, given the same NodePort, would be led to although it never asked for that."""
    with node_servers(site.hosts[:1], 30025):
        site.nodes("node1")
        port = site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            assert site.kube.get("Service", "mail")["metadata"]["finalizers"] == ["edgeagent.io/edge"]
            if where == "while the firewall is away":
                site.wall.sshd.kill()
            if where == "while it is away":
                assert control.stop() == 0
            site.kube.delete("Service", "mail")
            if where == "while it watches":
                until(lambda: gone(site, "mail"), "its finalizer goes")
        if where == "while it watches":
            assert not reached(site.bind, port)
            return
        assert first_line(port, host=site.bind)
        assert not gone(site, "mail")
        if where == "while the firewall is away":
            site.wall.sshd.start()
        with site.watched(name="again"):
            until(lambda: gone(site, "mail"), "its finalizer goes")
            assert not reached(site.bind, port)


def test_a_service_that_asks_no_more_loses_what_was_written_there(site: Site):
    with node_servers(site.hosts[:1], 30025, 30026):
        site.nodes("node1")
        site.smtp()
        port = site.smtp("other", 26, prefix="other")
        with site.watched() as control:
            site.live(control, "other")
            site.kube.annotate("other", expose=None, bind=None, prefix=None)
            until(lambda: told(site.kube, "other") == {}, "its conditions are gone")
            assert not reached(site.bind, port)


def test_what_a_person_has_put_back_on_the_firewall_stays_until_that_person_ends_it(site: Site):
    with node_servers(site.hosts[:2], 30025, 30026):
        site.nodes("node1")
        port = site.smtp()
        with site.watched() as control:
            site.live(control, "mail")
            moved = free_port(site.bind)
            site.kube.annotate("mail", expose=f"smtp={moved}")
            until(lambda: reached(site.bind, moved), "moved")
            control.pushed(2)
            done = site.wall.edge.agent("rollback")
            assert done.returncode == 0, done.stderr
            assert reached(site.bind, port)
            assert control.stop() == 0
        with site.watched(name="again") as control:
            control.wait("begins with")
            site.smtp("other", 26, prefix="other")
            site.told(control, "other", "waiting")
            assert "takes no change now" in told(site.kube, "other")["message"]
            control.wait("was put back by hand")
            assert control.pushes == 0
            assert reached(site.bind, port)
            done = site.wall.edge.agent("rollback", "2")
            assert done.returncode == 0, done.stderr + done.stdout
            until(lambda: told(site.kube, "other").get("state") == "live", "it goes on\n" + control.said, 90)
            assert reached(site.bind, moved)
