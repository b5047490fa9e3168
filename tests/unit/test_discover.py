"""A cluster's objects to a desired state: pure, on the API's own JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import evolve
from kit.discover import balanced, endpoints, manifests, node, service

from agent.desired.state import parse
from agent.discover import conditions, memory, merge, objects, selector
from agent.discover.base import Base, base
from agent.discover.conditions import ServiceStatus, State
from agent.discover.desired import Config, Desired, desired
from agent.discover.objects import Snapshot
from agent.errors import InvalidError

ROOT = Path(__file__).parents[2]
BIND = "192.0.2.1"


def snapshot(*found: dict[str, Any]) -> Snapshot:
    def of(kind: str) -> list[dict[str, Any]]:
        return [one for one in found if one["kind"] == kind]

    return Snapshot(
        services=[objects.service(one) for one in of("Service")],
        nodes=[objects.node(one) for one in of("Node")],
        slices=[objects.endpoint_slice(one) for one in of("EndpointSlice")],
    )


def discovered(
    *found: dict[str, Any], text: str = "", bind: str = "", live: dict[str, Any] | None = None
) -> tuple[Desired, dict[str, Any]]:
    """What is desired, which is valid where there is no violation; and its tree without the owners.

    `text`: the base; `live`: the tree that a firewall has.
    """
    under = base(text.encode(), "base.yaml", watched=False) if text else Base()
    config, snap = Config(base=under, bind=(bind,) if bind else ()), snapshot(*found)
    known = memory.fragments(live or {})
    by_key = {one.key: known[one.owner] for one in snap.services if one.owner in known}
    result = desired(snap, config, live=by_key)
    tree: dict[str, Any] = json.loads(json.dumps(result.tree))
    if not result.violations:
        assert parse(merge.as_yaml(tree, "x"), file="x").state == parse(merge.as_json(tree), file="x").state
    for kind in ("frontends", "backends"):
        for part in tree.get(kind, {}).values():
            part.pop("owner", None)
    return result, tree


def mistakes(result: Desired, name: str = "mail", namespace: str = "default") -> list[str]:
    return [one.text for one in result.mistakes.get((namespace, name), ())]


def changed(found: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {**found, "spec": {**found["spec"], **spec}}


NODES = [node("node1", "192.0.2.101"), node("node2", "192.0.2.102")]
MAIL = service("mail", {"smtp": 25, "smtp-check": 145}, expose="smtp", bind=BIND)


def test_the_example_is_the_worked_deployment():
    nodes = [node(f"k8s-node{one}", f"192.0.2.10{one}") for one in range(1, 5)]
    _, tree = discovered(*manifests("example-mail"), *nodes)
    deployment = yaml.safe_load((ROOT / "examples/mail-edge.yaml").read_bytes())
    for name in ("smtp", "smtps", "submission", "imaps"):
        ours, theirs = tree["backends"][name], deployment["backends"][name]
        assert ours == {**theirs, "nodes": "workers"}, name
        assert tree["frontends"][name]["bind"] == deployment["frontends"][name]["bind"]
    assert tree["nodes"] == deployment["nodes"]


def test_a_service_of_our_class_needs_no_annotation():
    """All its ports at their own numbers, but the one that is checked; its source ranges are who may connect."""
    mail = balanced("mail", {"smtp": 25, "imaps": 993, "check": 8080}, loadBalancerSourceRanges=["203.0.113.0/24"])
    mail["metadata"]["annotations"] = {
        "edgeagent.io/health-port.smtp": "check",
        "edgeagent.io/application.smtp": "smtp",
    }
    result, tree = discovered(node("n1", "10.0.0.1"), mail, bind=BIND)
    assert not result.mistakes
    assert tree["frontends"] == {
        "imaps": {"backend": "imaps", "allow": ["203.0.113.0/24"], "bind": [f"{BIND}:993"]},
        "smtp": {"backend": "smtp", "allow": ["203.0.113.0/24"], "bind": [f"{BIND}:25"]},
    }
    assert tree["backends"]["smtp"] == {
        "application": "smtp", "health": {"port": 38_080}, "nodes": "workers", "port": 30_025,
    }  # fmt: skip


def test_a_local_service_of_our_class_is_checked_where_kube_proxy_tells_of_its_endpoints():
    mail = balanced("mail", {"smtp": 25}, externalTrafficPolicy="Local", healthCheckNodePort=30_937)
    pods = endpoints("mail", ("10.1.0.1", "n1", True), smtp=2525)
    _, tree = discovered(node("n1", "10.0.0.1"), node("n2", "10.0.0.2"), mail, pods, bind=BIND)
    health = {"type": "http", "port": 30_937, "path": "/healthz"}
    assert tree["backends"]["smtp"] == {"health": health, "servers": {"n1": {"address": "10.0.0.1:30025"}}}


@pytest.mark.parametrize(
    ("spec", "annotations", "words"),
    [
        ({"allocateLoadBalancerNodePorts": False}, {}, "allocateLoadBalancerNodePorts must not be false"),
        ({}, {"via": "loadbalancer"}, "its load balancer is the firewall itself"),
        ({"loadBalancerSourceRanges": ["203.0.113.7/24"]}, {}, "bits behind its mask"),
        ({"ports": [{"name": "dns", "port": 53, "nodePort": 30_053, "protocol": "UDP"}]}, {}, "is not TCP"),
    ],
)
def test_mistakes_of_a_service_of_our_class(spec: dict[str, Any], annotations: dict[str, str], words: str):
    mail = changed(balanced("mail", {"smtp": 25}), **spec)
    if "allocateLoadBalancerNodePorts" in spec:
        del mail["spec"]["ports"][0]["nodePort"]
    mail["metadata"]["annotations"] = {f"edgeagent.io/{key}": value for key, value in annotations.items()}
    result, _ = discovered(node("n1", "10.0.0.1"), mail, bind=BIND)
    (text,) = mistakes(result)
    assert words in text


def test_another_class_is_not_ours():
    other = balanced("mail", {"smtp": 25}, loadBalancerClass="example.org/other")
    assert discovered(node("n1", "10.0.0.1"), other, bind=BIND)[0].fragments == {}


def test_one_typo_is_one_complaint():
    """The annotations of the port that was meant are right; they were complained of as well."""
    wrong, _ = discovered(
        service("mail", {"smtp": 25}, expose="smpt=25", bind=BIND, application__smtp="smtp", health_port__smtp="smtp")
    )
    assert len(mistakes(wrong)) == 1


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"expose": "smtp=25, smtpp=26"}, ['the Service has no port smtpp; did you mean "smtp"?']),
        ({"expose": "smtp=0"}, ["a port from 1 to 65,535"]),
        ({"expose": "smtp=70000"}, ["a port from 1 to 65,535"]),
        ({"expose": "smtp=25;reboot"}, ["a port from 1 to 65,535"]),
        ({"expose": "smtp, smtp"}, ["port smtp is named twice"]),
        ({"expose": ""}, ["ports are expected"]),
        ({"expose": "smtp="}, ["ports are expected"]),
        ({"expose": None}, ["edgeagent.io/expose: is missing"]),
        ({"bind": "mail.example.org"}, ["addresses are expected"]),
        ({"bind": "192.0.2.1:25"}, ["addresses are expected"]),
        ({"bind": ""}, ["edgeagent.io/bind: is missing"]),
        ({"bnid": "192.0.2.1"}, ['edgeagent.io/bnid: unknown annotation; did you mean "bind"?']),
        ({"via": "nodeprt"}, ['did you mean "nodeport"?']),
        ({"via": "toString"}, ["expected one of nodeport"]),
        ({"application": "smpt"}, ['did you mean "smtp"?']),
        ({"proxy_protocol": "v3"}, ["expected one of v2, v1, none"]),
        ({"health_port__smtp": "smtp-chek"}, ['did you mean "smtp-check"?']),
        ({"health_port__imap": "smtp-check"}, ["port imap is not exposed"]),
        ({"nodes": "zone in (a"}, ["a label selector"]),
        ({"nodes": "zone=a", "via": "endpoints"}, ["nodes are chosen for `via: nodeport`"]),
        ({"via": "loadbalancer"}, ["the Service is of type NodePort, nobody gives it an address"]),
        ({"expose": "25", "health_port__25": "nope"}, ["the Service has no port nope"]),
        ({"expose": "smtp\nwarning: all is well"}, ['the Service has no port the text "smtp\\nwarning: all is well"']),
        (
            {"nodes": "zone=\x1b[31mred"},
            ['a label selector, such as `zone=a, !spot`, is expected; the text "zone=\\u001b'],
        ),
        ({"bind": "224.0.0.1"}, ["addresses are expected"]),
        ({"bind": "fe80::1%eth0"}, ["addresses are expected"]),
        ({"bind": "::ffff:192.0.2.1"}, ["addresses are expected"]),
        ({"bind": "::"}, [":: is every address of the firewall; that is the base's to say"]),
        ({"prefix": "A b"}, ["is no name of a frontend"]),
    ],
)
def test_a_mistake_is_named_with_its_annotation_and_leaves_the_others_alone(annotations, said):
    given = {"expose": "smtp", "bind": BIND} | annotations
    bad = service(
        "mail", {"smtp": 25, "smtp-check": 145}, **{key: one for key, one in given.items() if one is not None}
    )
    good = service("web", {"https": 443}, expose="https", bind=BIND)
    result, tree = discovered(bad, good, *NODES)
    found = mistakes(result)
    assert len(found) == len(said), found
    for text, words in zip(found, said, strict=True):
        assert words in text
        assert text.startswith("edgeagent.io/")
    assert list(tree["frontends"]) == ["https"]


def test_every_mistake_of_a_service_is_told_at_once():
    bad = service("mail", {"smtp": 25}, expose="smtp=99999, imap", bind="nowhere", via="pigeon", colour="red")
    result, _ = discovered(bad, *NODES)
    assert len(mistakes(result)) == 4


def test_ports_are_exposed_at_their_own_number_or_another():
    one = service("mail", {"smtp": 25, "smtps": 465}, expose=" smtp = 2525 ,465", bind=f"{BIND}, 2001:db8::1")
    _, tree = discovered(one, *NODES)
    assert tree["frontends"]["smtp"]["bind"] == ["192.0.2.1:2525", "[2001:db8::1]:2525"]
    assert tree["frontends"]["smtps"]["bind"] == ["192.0.2.1:465", "[2001:db8::1]:465"]
    assert tree["backends"]["smtps"]["port"] == 30465


def test_a_port_without_a_name_is_called_as_its_service():
    one = service("web", {"": 443}, expose="443", bind=BIND)
    _, tree = discovered(one, *NODES)
    assert (list(tree["frontends"]), list(tree["backends"])) == (["web"], ["web"])


def test_an_annotation_of_one_port_wins_over_that_of_all():
    one = service(
        "mail", {"smtp": 25, "imaps": 993}, expose="smtp, imaps", bind=BIND, bind__imaps="192.0.2.9",
        application="smtp", application__imaps="tls", proxy_protocol="v1", proxy_protocol__imaps="none",
    )  # fmt: skip
    _, tree = discovered(one, *NODES)
    smtp, imaps = tree["backends"]["smtp"], tree["backends"]["imaps"]
    assert (smtp["application"], smtp["proxy_protocol"]) == ("smtp", "v1")
    assert (imaps["application"], imaps["proxy_protocol"]) == ("tls", "none")
    assert tree["frontends"]["imaps"]["bind"] == ["192.0.2.9:993"]


def test_udp_is_not_forwarded():
    one = service("dns", {"dns": 53}, expose="dns", bind=BIND)
    one["spec"]["ports"][0]["protocol"] = "UDP"
    assert "not TCP" in mistakes(discovered(one, *NODES)[0], "dns")[0]


def test_a_service_without_nodeports_says_how_else_it_is_reached():
    one = service("web", {"https": 443}, kind="ClusterIP", expose="https", bind=BIND)
    assert (
        "has no NodePort: make the Service one of type NodePort, or say `via`"
        in mistakes(discovered(one, *NODES)[0], "web")[0]
    )


# --- nodes


def test_a_node_that_is_cordoned_or_not_ready_is_drained_and_one_that_is_excluded_is_gone():
    out = node("node9", "192.0.2.109")
    out["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] = ""
    nodes = [*NODES, node("node3", "192.0.2.103", cordoned=True), node("node4", "192.0.2.104", ready=False), out]
    _, tree = discovered(MAIL, *nodes)
    assert tree["nodes"]["workers"] == {
        "node1": "192.0.2.101",
        "node2": "192.0.2.102",
        "node3": {"address": "192.0.2.103", "weight": 0},
        "node4": {"address": "192.0.2.104", "weight": 0},
    }
    assert "servers" not in tree["backends"]["smtp"]


def test_where_no_node_is_as_it_should_be_all_serve():
    nodes = [node("node1", "192.0.2.101", ready=False), node("node2", "192.0.2.102", cordoned=True)]
    result, tree = discovered(MAIL, *nodes)
    assert tree["nodes"]["workers"] == {"node1": "192.0.2.101", "node2": "192.0.2.102"}
    assert "all serve" in result.fragments["default", "mail"].remarks[0]


def test_a_node_that_never_said_that_it_is_ready_is_not():
    bare = node("node3", "192.0.2.103")
    bare["status"]["conditions"] = []
    _, tree = discovered(MAIL, *NODES, bare)
    assert tree["nodes"]["workers"]["node3"] == {"address": "192.0.2.103", "weight": 0}


def test_nodes_are_chosen_by_their_labels():
    nodes = [node("node1", "192.0.2.101", zone="a"), node("node2", "192.0.2.102", zone="b", spot="yes")]
    one = service("mail", {"smtp": 25}, expose="smtp", bind=BIND, nodes="zone=a")
    two = service("web", {"https": 443}, expose="https", bind=BIND, nodes="zone in (a, b), !spot")
    _, tree = discovered(one, two, *nodes)
    names = {tree["backends"][name]["nodes"] for name in ("smtp", "https")}
    assert len(names) == 2
    assert "workers-zone-a" in names
    assert all(tree["nodes"][name] == {"node1": "192.0.2.101"} for name in names)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("zone=a", True), ("zone==a", True), ("zone = a", True), ("zone!=a", False), ("none!=a", True), ("zone", True),
        ("!zone", False), ("!none", True), ("zone in (a,b)", True), ("zone in (b)", False), ("zone notin (b)", True),
        ("none notin (a)", True), ("zone=a,tier", False), ("a.io/x=1,zone in (c, a),!tier", True), ("a.io/x=", False),
    ],
)  # fmt: skip
def test_selectors_are_as_kubectl_has_them(text, fits):
    assert selector.parse(text)({"zone": "a", "a.io/x": "1"}) is fits


@pytest.mark.parametrize("text", ["", "=a", "a in b", "a in (b", "a=b=c", "a,,b", "!a=b", "a b", "a in (b/c)", "a\nb"])
def test_what_is_no_selector_is_refused(text):
    with pytest.raises(ValueError, match=r"label selector|values"):
        selector.parse(text)


def test_a_dual_stack_service_prefers_the_family_it_names_first():
    nodes = [node("node1", "192.0.2.101", "2001:db8::101"), node("node2", "2001:db8::102")]
    one = changed(MAIL, ipFamilies=["IPv6", "IPv4"], clusterIPs=["2001:db8:f::1", "198.18.0.1"])
    _, tree = discovered(one, *nodes)
    assert tree["nodes"] == {"workers-v6-dual": {"node1": "2001:db8::101", "node2": "2001:db8::102"}}
    _, tree = discovered(changed(MAIL, clusterIP="198.18.0.1"), *nodes)  # as 1.20 says it
    assert tree["nodes"] == {"workers": {"node1": "192.0.2.101"}}
    _, tree = discovered(changed(MAIL, clusterIP="2001:db8:f::1"), *nodes)
    assert tree["nodes"] == {"workers-v6": {"node1": "2001:db8::101", "node2": "2001:db8::102"}}


def test_with_the_local_policy_only_nodes_that_hold_a_ready_endpoint_serve():
    local = changed(MAIL, externalTrafficPolicy="Local")
    members = [("198.51.100.1", "node1", False), ("198.51.100.2", "node2", True)]
    _, tree = discovered(local, *NODES, endpoints("mail", *members, smtp=2525))
    assert tree["backends"]["smtp"]["servers"] == {"node2": {"address": "192.0.2.102:30025"}}
    result, tree = discovered(local, *NODES, endpoints("mail", members[0], smtp=2525))
    assert tree["backends"]["smtp"]["servers"] == {"node1": {"address": "192.0.2.101:30025"}}
    assert "no endpoint is ready" in result.fragments["default", "mail"].remarks[0]


def test_where_there_is_no_endpoint_a_disabled_server_keeps_the_frontend():
    result, tree = discovered(changed(MAIL, externalTrafficPolicy="Local"), *NODES)
    assert tree["backends"]["smtp"]["servers"] == {"nobody": {"address": "127.0.0.1:30025", "disabled": True}}
    assert tree["frontends"]["smtp"]["bind"] == ["192.0.2.1:25"]
    assert result.fragments["default", "mail"].remarks == ("no node that takes traffic holds an endpoint of it",)


def test_a_long_name_of_a_node_is_shortened_and_two_of_them_stay_apart():
    long = "a" * 60 + ".eu-west-1.compute.internal"
    _, tree = discovered(MAIL, node(long, "192.0.2.101"), node(f"{long}2", "192.0.2.102"))
    assert len(tree["nodes"]["workers"]) == 2


def test_two_nodes_of_one_address_are_one_server():
    _, tree = discovered(MAIL, node("node1", "192.0.2.101"), node("node2", "192.0.2.101"))
    assert tree["nodes"]["workers"] == {"node1": "192.0.2.101"}


def test_whatever_becomes_of_the_nodes_no_frontend_goes():
    for nodes in ([], [node("node1", "fe80::1%eth0")], [node("node1", "::ffff:192.0.2.2")], [node("n", "2001:db8::1")]):
        result, tree = discovered(MAIL, *nodes)
        assert list(tree["backends"]["smtp"]["servers"]) == ["nobody"]
        assert result.fragments["default", "mail"].remarks[0].startswith("no node")
    _, tree = discovered(service("mail", {"smtp": 25}, expose="smtp", bind=BIND, nodes="zone=gone"), *NODES)
    assert list(tree["backends"]["smtp"]["servers"]) == ["nobody"]


def test_an_address_that_nobody_could_use_is_one_node_less():
    _, tree = discovered(MAIL, *NODES, node("node3", "fe80::1%eth0"), node("node4", "0.0.0.0"), node("node5", "x"))
    assert list(tree["nodes"]["workers"]) == ["node1", "node2"]


def test_a_node_that_was_set_up_anew_serves_under_its_new_name():
    _, tree = discovered(MAIL, node("a-old", "192.0.2.101", ready=False), node("b-new", "192.0.2.101"), NODES[1])
    assert tree["nodes"]["workers"] == {"b-new": "192.0.2.101", "node2": "192.0.2.102"}
    assert "servers" not in tree["backends"]["smtp"]


def test_a_node_that_is_about_to_be_deleted_is_drained():
    going, tainted = node("node3", "192.0.2.103"), node("node4", "192.0.2.104")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    tainted["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    _, tree = discovered(MAIL, *NODES, going, tainted)
    assert {one["weight"] for one in tree["nodes"]["workers"].values() if isinstance(one, dict)} == {0}


def test_a_node_with_an_external_address_alone_is_reached_there():
    one = node("node3", "192.0.2.103")
    one["status"]["addresses"][0]["type"] = "ExternalIP"
    _, tree = discovered(MAIL, *NODES, one)
    assert "node3" in tree["nodes"]["workers"]


def test_with_the_local_policy_a_pod_without_the_port_is_none():
    local = changed(MAIL, externalTrafficPolicy="Local")
    one = endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525)
    other = endpoints("mail", ("198.51.100.2", "node2", True), imap=1143)
    other["metadata"]["name"] = "mail-other"
    _, tree = discovered(local, *NODES, one, other)
    assert list(tree["backends"]["smtp"]["servers"]) == ["node1"]


def test_an_affinity_that_sees_the_firewall_alone_is_said():
    result, _ = discovered(changed(MAIL, sessionAffinity="ClientIP"), *NODES)
    assert "sessionAffinity" in result.fragments["default", "mail"].remarks[0]


def test_long_selectors_do_not_share_a_group():
    zones = ["topology=eu" + "0" * 30 + end for end in "ab"]
    nodes = [node(f"n{index}", f"192.0.2.{index + 1}", topology=zone[9:]) for index, zone in enumerate(zones)]
    services = [
        service(f"s{index}", {"web": 80}, expose=f"web={index + 1}", bind=BIND, prefix=f"s{index}", nodes=zone)
        for index, zone in enumerate(zones)
    ]
    _, tree = discovered(*services, *nodes)
    assert sorted(map(len, tree["nodes"].values())) == [1, 1]


# --- other ways in


def test_via_endpoints_are_the_pods_themselves_at_their_own_ports():
    one = service("mail", {"smtp": 25, "check": 145}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints",
                  health_port="check")  # fmt: skip
    members = [("198.51.100.1", "node1", True), ("198.51.100.2", "node2", False)]
    _, tree = discovered(one, *NODES, endpoints("mail", *members, smtp=2525, check=2526))
    assert tree["backends"]["smtp"] == {
        "health": {"port": 2526},
        "servers": {"mail-0": {"address": "198.51.100.1:2525"}},
    }


def test_pods_that_come_and_go_do_not_change_what_is_checked():
    one = service("mail", {"smtp": 25, "check": 145}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints",
                  health_port="check")  # fmt: skip
    one["spec"]["ports"][1]["targetPort"] = 2526
    _, none = discovered(one)
    _, some = discovered(one, endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525, check=2526))
    assert none["backends"]["smtp"]["health"] == some["backends"]["smtp"]["health"] == {"port": 2526}


def test_a_rolling_update_that_moves_the_checked_port_takes_nothing_away():
    one = service("mail", {"smtp": 25, "check": 145}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints",
                  health_port="check")  # fmt: skip
    old = endpoints("mail", ("198.51.100.1", "node1", True), ("198.51.100.2", "node1", True), smtp=2525, check=2526)
    new = endpoints("mail", ("198.51.100.3", "node1", True), smtp=2525, check=2527)
    new["metadata"]["name"], new["endpoints"][0]["targetRef"]["name"] = "mail-new", "mail-9"
    result, tree = discovered(one, old, new)
    assert (len(tree["backends"]["smtp"]["servers"]), tree["backends"]["smtp"]["health"]) == (3, {"port": 2526})
    assert "2526 is checked" in result.fragments["default", "mail"].remarks[0]


def test_an_old_address_of_a_pod_does_not_hide_its_new_one():
    one = service("mail", {"smtp": 25}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints")
    old = endpoints("mail", ("198.51.100.1", "node1", False), smtp=2525)
    new = endpoints("mail", ("198.51.100.2", "node2", True), smtp=2525)
    new["metadata"]["name"] = "mail-z"
    _, tree = discovered(one, old, new)
    assert tree["backends"]["smtp"]["servers"] == {"mail-0": {"address": "198.51.100.2:2525"}}


def test_a_hand_made_slice_does_not_lead_to_the_firewall_itself():
    one = service("mail", {"smtp": 25}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints")
    for address in ("127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"):
        _, tree = discovered(one, endpoints("mail", (address, "node1", True), smtp=22))
        assert list(tree["backends"]["smtp"]["servers"]) == ["nobody"], address


def test_a_pod_of_both_families_is_one_server():
    one = changed(service("mail", {"smtp": 25}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints"),
                  ipFamilies=["IPv6", "IPv4"])  # fmt: skip
    four = endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525)
    six = endpoints("mail", ("2001:db8::7", "node1", True), smtp=2525)
    _, tree = discovered(one, four, six)
    assert tree["backends"]["smtp"]["servers"] == {"mail-0": {"address": "[2001:db8::7]:2525"}}


def test_endpoints_are_ready_serving_or_neither():
    new = endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525)
    for states, rank in (
        ({"ready": True, "serving": True, "terminating": False}, 0),
        ({}, 0),
        ({"ready": False, "serving": True}, 1),
        ({"ready": False, "serving": False}, 2),
    ):
        new["endpoints"][0]["conditions"] = states
        assert objects.endpoint_slice(new).members[0].rank == rank


def test_via_loadbalancer_is_the_address_that_it_was_given():
    one = service("web", {"https": 443}, kind="LoadBalancer", expose="https", bind=BIND, via="loadbalancer")
    result, tree = discovered(one)
    assert tree["backends"]["https"]["servers"]["nobody"]["disabled"]
    assert "no address that can be used" in result.fragments["default", "web"].remarks[0]
    given = {**one, "status": {"loadBalancer": {"ingress": [{"hostname": "x.example.org"}, {"ip": "192.0.2.203"}]}}}
    _, tree = discovered(given)
    assert tree["backends"]["https"]["servers"] == {"loadbalancer": {"address": "192.0.2.203:443"}}


def test_via_clusterip_is_the_address_in_the_cluster():
    one = service("web", {"https": 443}, kind="ClusterIP", expose="https", bind=BIND, via="clusterip")
    _, tree = discovered(changed(one, clusterIP="198.18.0.9"))
    assert tree["backends"]["https"]["servers"] == {"cluster": {"address": "198.18.0.9:443"}}
    assert "headless" in mistakes(discovered(changed(one, clusterIP="None"))[0], "web")[0]


# --- who may


def aged(found: dict[str, Any], day: int, **annotations: str) -> dict[str, Any]:
    meta = found["metadata"]
    return {**found, "metadata": {**meta, "creationTimestamp": f"2026-01-{day:02}T00:00:00Z"}}


def test_names_and_addresses_belong_to_the_older_service():
    old = aged(service("old", {"smtp": 25}, expose="smtp", bind=BIND), 1)
    name = aged(service("a-name", {"smtp": 26}, expose="smtp", bind=BIND), 2)
    address = aged(service("an-address", {"mx": 25}, expose="mx", bind=BIND), 3)
    beside = aged(service("beside", {"smtp": 26}, expose="smtp", bind=BIND, prefix="beside"), 4)
    result, tree = discovered(beside, address, name, old, *NODES)
    assert sorted(tree["frontends"]) == ["beside-smtp", "smtp"]
    assert "smtp is Service default/old's already" in mistakes(result, "a-name")[0]
    assert "192.0.2.1:25 is Service default/old's already" in mistakes(result, "an-address")[0]


def test_what_is_live_is_not_displaced_by_what_says_it_is_older():
    live = aged(service("live", {"smtp": 25}, expose="smtp", bind=BIND), 9)
    older = aged(service("older", {"smtp": 25}, expose="smtp", bind=BIND), 1)
    now = discovered(live, *NODES)[0].tree
    result, _ = discovered(older, live, *NODES, live=dict(now))
    assert list(result.mistakes) == [("default", "older")]
    # Nor by what is live itself, and asks for more than it has.
    other = aged(service("other", {"mx": 26}, expose="mx", bind=BIND), 1)
    now = discovered(live, other, *NODES)[0].tree
    other["metadata"]["annotations"]["edgeagent.io/expose"] = "mx=25"
    result, tree = discovered(other, live, *NODES, live=dict(now))
    assert list(result.mistakes) == [("default", "other")]
    assert tree["frontends"]["mx"]["bind"] == ["192.0.2.1:26"]


def test_everything_of_a_service_carries_its_owner_by_which_it_is_found_again():
    mail = service("mail", {"smtp": 25}, expose="smtp", bind=BIND)
    mail["metadata"]["uid"] = "u-1"
    tree = discovered(mail, *NODES)[0].tree
    assert tree["frontends"]["smtp"]["owner"] == tree["backends"]["smtp"]["owner"] == "default/mail/u-1"
    found = memory.fragments(json.loads(merge.as_json(tree)))
    assert found == {"default/mail/u-1": discovered(mail, *NODES)[0].fragments["default", "mail"]}


@pytest.mark.parametrize(
    "part",
    [None, 4, {"owner": 4}, {"owner": "a/b"}, {"owner": "a/b/c", "bind": ["x"]}, {"owner": "a/b/c", "bind": 7}],
)
def test_what_nobody_could_have_written_is_nobodys(part: Any):
    assert memory.fragments({"frontends": {"x": part}, "backends": []}) == {}


def test_of_two_firewalls_the_newer_memory_counts_and_nothing_meets_itself():
    mail, web = service("mail", {"smtp": 25}, expose="smtp", bind=BIND), service("web", {"x": 80}, expose="x=25")
    web["metadata"]["annotations"]["edgeagent.io/bind"] = BIND
    newer, older = (memory.fragments(discovered(one, *NODES)[0].tree) for one in (mail, web))
    assert memory.together([newer, older]) == newer  # both have 192.0.2.1:25


def test_what_is_live_goes_on_where_the_annotations_are_mistaken_and_follows_its_nodes():
    mail = service("mail", {"smtp": 25}, expose="smtp=2525", bind=BIND)
    live = dict(discovered(mail, *NODES)[0].tree)
    broken = service("mail", {"smtp": 25}, expose="smtp=twenty", bind=BIND)
    result, tree = discovered(broken, NODES[0], node("node2", "192.0.2.102", cordoned=True), live=live)
    assert result.kept == {("default", "mail")}
    assert tree["frontends"]["smtp"]["bind"] == ["192.0.2.1:2525"]
    assert tree["nodes"]["workers"]["node2"] == {"address": "192.0.2.102", "weight": 0}
    assert "smtp: a port from 1 to 65,535" in mistakes(result)[0]


def test_more_nodes_than_a_backend_takes_are_cut_and_said():
    many = service("many", {f"p{one}": 1000 + one for one in range(3)}, expose="p0,p1,p2", bind=BIND)
    crowd = [node(f"n{one}", f"192.0.{one // 200}.{one % 200 + 1}") for one in range(1001)]
    few = service("few", {"smtp": 25}, expose="smtp", bind=BIND, nodes="zone=a")
    result, tree = discovered(many, few, *crowd, node("n", "198.51.100.1", zone="a"))
    assert result.fragments["default", "many"].remarks == (
        "1,002 nodes; the first 1,000 serve (edgeagent.io/nodes chooses)",
    )
    assert len(tree["nodes"]["workers"]) == 1_000
    assert sorted(tree["backends"]) == ["p0", "p1", "p2", "smtp"]


def test_more_servers_than_any_firewall_takes_are_no_services_mistake_but_nothing_is_made_of_them():
    crowd = [node(f"n{one}", f"192.0.{one // 200}.{one % 200 + 1}") for one in range(500)]
    many = [
        service(f"s{one}", {"web": 80}, expose=f"web={1000 + one}", bind=BIND, prefix=f"s{one}") for one in range(201)
    ]
    result, _ = discovered(*many, *crowd)
    assert "100,500 servers in all" in result.violations[0]
    assert "edgeagent.io/nodes" in result.violations[1]


def test_the_order_in_which_the_cluster_tells_changes_nothing():
    found = [MAIL, service("web", {"https": 443}, expose="https", bind=BIND), *NODES]
    _, one = discovered(*found)
    _, other = discovered(*reversed(found))
    assert merge.as_json(one) == merge.as_json(other)


# --- the base

BASE = """\
version: 1
name: home-edge
owners: {smtp: default/mail}
frontends:
  smtp:
    maxconn: 500
    bind: ["192.0.2.1:25"]
  https:
    bind: ["192.0.2.1:443"]
    routes:
      - {sni: ["*"], backend: websecure}
    backend: webgui
backends:
  smtp:
    health: {interval: 10s}
    servers:
      spare: {address: "192.0.2.9:2525", backup: true}
  webgui:
    proxy_protocol: none
    servers: {webgui: {address: "127.0.0.1:8443"}}
"""


def test_the_base_is_put_underneath():
    mail = service("mail", {"smtp": 25, "check": 145}, expose="smtp", health_port="check")
    web = service("traefik", {"websecure": 443}, expose="websecure=routed", application="tls")
    result, tree = discovered(mail, web, *NODES, text=BASE)
    assert (dict(result.mistakes), result.violations) == ({}, ())
    assert tree["frontends"]["smtp"] == {"maxconn": 500, "bind": ["192.0.2.1:25"], "backend": "smtp"}
    assert tree["frontends"]["https"]["routes"] == [{"sni": ["*"], "backend": "websecure"}]
    smtp = tree["backends"]["smtp"]
    assert smtp["health"] == {"interval": "10s", "port": 30145}
    assert (list(smtp["servers"]), smtp["nodes"]) == (["spare"], "workers")
    assert "websecure" not in tree["frontends"]


def test_a_conflict_names_both_places():
    mail = service("mail", {"smtp": 25}, expose="smtp", bind="192.0.2.7")
    web = service("web", {"https": 443}, expose="https")
    result, _ = discovered(mail, web, *NODES, text=BASE)
    assert mistakes(result) == [
        'frontends.smtp.bind: the Service makes it ["192.0.2.7:25"], base.yaml:7 says ["192.0.2.1:25"]'
    ]
    assert mistakes(result, "web") == [
        'frontends.https.backend: the Service makes it the text "https", base.yaml:12 says the text "webgui"'
    ]
    assert all(one.conflict for found in result.mistakes.values() for one in found)


def test_an_address_of_the_base_is_not_a_services():
    one = service("web", {"web": 443}, expose="web", bind=BIND)
    mail = service("mail", {"smtp": 25}, expose="smtp")
    result, _ = discovered(one, mail, *NODES, text=BASE)
    assert "192.0.2.1:443 is base.yaml:9's already (192.0.2.1:443)" in mistakes(result, "web")[0]


def test_what_is_wrong_with_the_base_is_told_with_its_line():
    web = service("traefik", {"websecure": 443}, expose="websecure=routed")
    mail = service("mail", {"smtp": 25}, expose="smtp")
    wrong = BASE.replace("maxconn: 500", "maxconn: many")
    result, _ = discovered(mail, web, *NODES, text=wrong)
    assert "(base.yaml:6)" in mistakes(result)[0]
    # Nothing that is live is taken away for it: nothing is pushed.
    live = dict(discovered(mail, web, *NODES, text=BASE)[0].tree)
    result, _tree = discovered(mail, web, *NODES, text=wrong, live=live)
    assert "Service default/mail cannot go on as it is: frontends.smtp.maxconn" in result.violations[0]
    result, _ = discovered(mail, web, *NODES, text=BASE.replace("backend: webgui", "backend: webgui\n    maxcon: 5"))
    assert [
        violation
        for violation in result.violations
        if violation.startswith("base.yaml:13: frontends.https.maxcon: unknown key")
    ]


def test_what_the_base_says_of_a_service_that_is_not_there_is_in_nobodys_way():
    web = service("web", {"web": 80}, expose="web", bind=BIND)
    base_text = "version: 1\nfrontends: {smtp: {maxconn: 5}}\nbackends: {smtp: {health: {interval: 10s}}}\n"
    result, tree = discovered(web, *NODES, text=base_text)
    assert (list(tree["frontends"]), list(tree["backends"]), result.violations) == (["web"], ["web"], ())
    assert "base.yaml:2: frontends.smtp waits for a Service that makes the rest of it" in result.remarks
    mistaken = service("mail", {"smtp": 25}, expose="smtp", bind=BIND, application="smpt")
    result, tree = discovered(web, mistaken, *NODES, text=base_text)
    assert list(tree["frontends"]) == ["web"]


def test_clients_of_a_route_whose_service_is_gone_are_turned_away_and_come_nowhere_else():
    mail = service("mail", {"smtp": 25}, expose="smtp")
    result, tree = discovered(mail, *NODES, text=BASE)
    assert result.violations == ()
    assert tree["backends"]["websecure"] == {"servers": {"nobody": {"address": "127.0.0.1:9", "disabled": True}}}
    assert "base.yaml:11: backend websecure is made by no Service: its clients are turned away" in result.remarks


def test_what_a_service_makes_wrong_of_a_line_of_the_base_is_the_services():
    base_text = "version: 1\nbackends: {smtp: {health: {send_proxy: true}}}\n"
    mail = service("mail", {"smtp": 25}, expose="smtp", bind=BIND, proxy_protocol="none")
    web = service("web", {"web": 80}, expose="web", bind=BIND)
    result, tree = discovered(mail, web, *NODES, text=base_text)
    assert (list(tree["frontends"]), result.violations) == (["web"], ())
    assert "(base.yaml:2)" in mistakes(result)[0]


def test_a_name_of_the_base_is_kept_for_its_owner():
    mine = service("mail", {"smtp": 25}, expose="smtp")
    other = service("other", {"smtp": 25}, namespace="tenant", expose="smtp")
    evil = service("evil", {"webgui": 1}, namespace="tenant", expose="webgui=routed")
    web = service("traefik", {"websecure": 443}, expose="websecure=routed")
    result, tree = discovered(aged(other, 1), evil, web, aged(mine, 2), *NODES, text=BASE)
    assert mistakes(result, "other", "tenant") == [
        "edgeagent.io/expose: base.yaml:3 keeps smtp for Service default/mail"
    ]
    assert "webgui; `owners` there lets one join" in mistakes(result, "evil", "tenant")[0]
    assert list(tree["backends"]["webgui"]["servers"]) == ["webgui"]
    assert "owners" not in tree


def test_what_base_and_service_say_alike_is_no_conflict():
    base_text = 'version: 1\nfrontends:\n  smtp: {bind: ["[2001:DB8::1]:25", "192.0.2.1:25"]}\n'
    mail = service("mail", {"smtp": 25}, expose="smtp", bind="192.0.2.1, 2001:db8::1")
    result, tree = discovered(mail, *NODES, text=base_text)
    assert (dict(result.mistakes), list(tree["frontends"])) == ({}, ["smtp"])


def test_a_port_that_is_said_is_not_ignored_for_the_bases():
    base_text = 'version: 1\nfrontends:\n  smtp: {bind: ["192.0.2.1:25"]}\n'
    result, _ = discovered(service("mail", {"smtp": 25}, expose="smtp=2525"), *NODES, text=base_text)
    assert mistakes(result) == ["edgeagent.io/expose: smtp shall listen at 2525, base.yaml:3 has it at 25"]
    result, _ = discovered(service("mail", {"smtp": 2525}, expose="smtp"), *NODES, text=base_text)
    assert mistakes(result) == []


def test_a_group_of_the_base_is_not_ours():
    base_text = "version: 1\nnodes: {workers: {node2: 192.0.2.9}}\n"
    _, tree = discovered(MAIL, NODES[0], node("node2", "192.0.2.102", cordoned=True), text=base_text)
    cluster = {"node1": "192.0.2.101", "node2": {"address": "192.0.2.102", "weight": 0}}
    assert tree["nodes"] == {"workers": {"node2": "192.0.2.9"}, "cluster-workers": cluster}
    assert tree["backends"]["smtp"]["nodes"] == "cluster-workers"


def test_a_base_that_cannot_be_read_is_refused():
    for text in ("[1, 2]", "a: b\na: c", "\tx", ""):
        with pytest.raises(InvalidError):
            base(text.encode(), "base.yaml", watched=False)
    with pytest.raises(InvalidError, match=r"base.yaml:2: serial: not in a base that is watched"):
        base(b"version: 1\nserial: 4\n", "base.yaml", watched=True)


def test_bind_of_the_command_is_for_who_names_none():
    own = service("own", {"smtp": 25}, expose="smtp", bind="192.0.2.9")
    none = service("none", {"imaps": 993}, expose="imaps")
    _, tree = discovered(own, none, *NODES, bind=BIND)
    assert tree["frontends"]["smtp"]["bind"] == ["192.0.2.9:25"]
    assert tree["frontends"]["imaps"]["bind"] == ["192.0.2.1:993"]


# --- conditions


def test_what_was_rolled_back_is_known_by_what_was_asked_for():
    mail = objects.service(service("mail", {"smtp": 25}, expose="smtp", bind=BIND))
    digest = conditions.request_digest(mail)
    status = ServiceStatus(state=State.ROLLED_BACK, message=f"it hurt (request {digest})")
    body = conditions.body(mail, status, now="2026-11-29T00:00:00Z")
    told = evolve(mail, conditions={one["type"]: one for one in body["status"]["conditions"]})
    assert conditions.was_rolled_back(told) == status.message
    assert conditions.was_rolled_back(evolve(told, annotations={"expose": "smtp=26"})) == ""
    assert conditions.was_rolled_back(mail) == ""


def test_why_a_service_is_accepted_tells_a_class_from_an_annotation():
    for found, by_class in ((balanced("mail", {"smtp": 25}), True), (MAIL, False)):
        one = objects.service(found)
        body = conditions.body(one, ServiceStatus(state=State.LIVE), now="2026-11-29T00:00:00Z")
        told = evolve(one, conditions={entry["type"]: entry for entry in body["status"]["conditions"]})
        assert conditions.was_by_class(told) is by_class
