"""A cluster's objects to a desired state: pure, on the API's own JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.discover import endpoints, manifests, node, service

from agent.errors import InvalidError
from agent.model.desired import parse
from agent.remote.cluster import merge, objects, selector
from agent.remote.cluster.merge import Base
from agent.remote.cluster.reports import Told, told
from agent.remote.cluster.state import Snapshot, Terms, Wanted, document, wanted

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


def discovered(*found: dict[str, Any], base: str = "", bind: str = "", good: Any = None) -> tuple[Wanted, dict]:
    """What is wanted, and the desired state, which is valid where there is no violation."""
    under = merge.base(base.encode(), "base.yaml", watched=False) if base else Base()
    terms = Terms(base=under, bind=(bind,) if bind else ())
    result = wanted(snapshot(*found), terms, good or {})
    tree = document(terms, result.fragments)
    if not result.violations:
        assert parse(merge.as_yaml(tree, "x"), file="x").state == parse(merge.as_json(tree), file="x").state
    return result, tree


def mistakes(result: Wanted, name: str = "mail", namespace: str = "default") -> list[str]:
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
        ({"nodes": "zone=a", "via": "loadbalancer"}, ["nodes are chosen for `via: nodeport`"]),
        ({"nodes": "zone=nowhere"}, ["no node with the labels `zone=nowhere` takes traffic"]),
        ({"prefix": "A b"}, ["is no name of a frontend"]),
        ({"bind": "0.0.0.0, 192.0.2.7"}, ["192.0.2.7:25 is named twice"]),
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
    assert tree["nodes"]["workers"] == {"node1": "192.0.2.101", "node2": "192.0.2.102"}
    assert tree["backends"]["smtp"]["servers"] == {
        "node3": {"address": "192.0.2.103:30025", "weight": 0},
        "node4": {"address": "192.0.2.104:30025", "weight": 0},
    }


def test_where_no_node_is_as_it_should_be_all_serve():
    nodes = [node("node1", "192.0.2.101", ready=False), node("node2", "192.0.2.102", cordoned=True)]
    result, tree = discovered(MAIL, *nodes)
    assert tree["nodes"]["workers"] == {"node1": "192.0.2.101", "node2": "192.0.2.102"}
    assert "all serve" in result.fragments["default", "mail"].remarks[0]


def test_a_node_that_never_said_that_it_is_ready_is_not():
    bare = node("node3", "192.0.2.103")
    bare["status"]["conditions"] = []
    _, tree = discovered(MAIL, *NODES, bare)
    assert tree["backends"]["smtp"]["servers"]["node3"]["weight"] == 0


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
    assert result.fragments["default", "mail"].remarks == ("no node holds an endpoint of it",)


def test_a_long_name_of_a_node_is_shortened_and_two_of_them_stay_apart():
    long = "a" * 60 + ".eu-west-1.compute.internal"
    _, tree = discovered(MAIL, node(long, "192.0.2.101"), node(f"{long}2", "192.0.2.102"))
    assert len(tree["nodes"]["workers"]) == 2


def test_two_nodes_of_one_address_are_one_server():
    _, tree = discovered(MAIL, node("node1", "192.0.2.101"), node("node2", "192.0.2.101"))
    assert tree["nodes"]["workers"] == {"node1": "192.0.2.101"}


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


def test_a_pod_of_both_families_is_one_server():
    one = changed(service("mail", {"smtp": 25}, kind="ClusterIP", expose="smtp", bind=BIND, via="endpoints"),
                  ipFamilies=["IPv6", "IPv4"])  # fmt: skip
    four = endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525)
    six = endpoints("mail", ("2001:db8::7", "node1", True), smtp=2525)
    _, tree = discovered(one, four, six)
    assert tree["backends"]["smtp"]["servers"] == {"mail-0": {"address": "[2001:db8::7]:2525"}}


def test_slices_of_v1_and_of_v1beta1_are_read_alike():
    old = endpoints("mail", ("198.51.100.1", "node1", True), smtp=2525)
    new = json.loads(json.dumps(old))
    new["apiVersion"] = "discovery.k8s.io/v1"
    for one in new["endpoints"]:
        one["nodeName"] = one.pop("topology")["kubernetes.io/hostname"]
        one["conditions"] = {"ready": True, "serving": True, "terminating": False}
    assert objects.endpoint_slice(old) == objects.endpoint_slice(new)
    new["endpoints"][0]["conditions"] = {}
    assert objects.endpoint_slice(new).members[0].ready


def test_via_loadbalancer_is_the_address_that_it_was_given():
    one = service("web", {"https": 443}, kind="LoadBalancer", expose="https", bind=BIND, via="loadbalancer")
    result, tree = discovered(one)
    assert tree["backends"]["https"]["servers"]["nobody"]["disabled"]
    assert "no address yet" in result.fragments["default", "web"].remarks[0]
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
    address = aged(service("an-address", {"mx": 25}, expose="mx", bind="0.0.0.0"), 3)
    beside = aged(service("beside", {"smtp": 26}, expose="smtp", bind=BIND, prefix="beside"), 4)
    result, tree = discovered(beside, address, name, old, *NODES)
    assert sorted(tree["frontends"]) == ["beside-smtp", "smtp"]
    assert "smtp is Service default/old's already" in mistakes(result, "a-name")[0]
    assert "0.0.0.0:25 is Service default/old's already (192.0.2.1:25)" in mistakes(result, "an-address")[0]


def test_what_is_live_is_not_displaced_by_what_says_it_is_older():
    live = aged(service("live", {"smtp": 25}, expose="smtp", bind=BIND), 9)
    older = aged(service("older", {"smtp": 25}, expose="smtp", bind=BIND), 1)
    good = {("default", "live"): {"expose": "smtp", "bind": BIND}}
    result, _ = discovered(older, live, *NODES, good=good)
    assert list(result.mistakes) == [("default", "older")]


def test_annotations_that_were_live_go_on_where_the_new_ones_are_mistaken():
    broken = service("mail", {"smtp": 25}, expose="smtp=twenty", bind=BIND)
    good = {("default", "mail"): {"expose": "smtp=2525", "bind": BIND}}
    result, tree = discovered(broken, *NODES, good=good)
    assert result.stands == {("default", "mail")}
    assert tree["frontends"]["smtp"]["bind"] == ["192.0.2.1:2525"]
    assert "smtp: a port from 1 to 65,535" in mistakes(result)[0]


def test_what_only_the_whole_shows_is_its_services_mistake_too():
    """The agent's own rules, of which the annotations know nothing."""
    many = service("many", {f"p{one}": 1000 + one for one in range(3)}, expose="p0,p1,p2", bind=BIND)
    crowd = [node(f"n{one}", f"192.0.{one // 200}.{one % 200 + 1}") for one in range(1001)]
    few = service("few", {"smtp": 25}, expose="smtp", bind=BIND, nodes="zone=a")
    result, tree = discovered(many, few, *crowd, node("n", "198.51.100.1", zone="a"))
    assert mistakes(result, "many") == ["nodes.workers: 1,002 nodes in one group; at most 1,000 are taken"]
    assert list(tree["backends"]) == ["smtp"]


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
    result, tree = discovered(mail, web, *NODES, base=BASE)
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
    result, _ = discovered(mail, web, *NODES, base=BASE)
    assert mistakes(result) == [
        'frontends.smtp.bind: the Service makes it ["192.0.2.7:25"], base.yaml:6 says ["192.0.2.1:25"]'
    ]
    assert mistakes(result, "web") == [
        'frontends.https.backend: the Service makes it the text "https", base.yaml:11 says the text "webgui"'
    ]
    assert all(one.conflict for found in result.mistakes.values() for one in found)


def test_an_address_of_the_base_is_not_a_services():
    one = service("web", {"web": 443}, expose="web", bind="0.0.0.0")
    mail = service("mail", {"smtp": 25}, expose="smtp")
    result, _ = discovered(one, mail, *NODES, base=BASE)
    assert "0.0.0.0:443 is base.yaml:8's already (192.0.2.1:443)" in mistakes(result, "web")[0]


def test_what_is_wrong_with_the_base_is_told_with_its_line():
    web = service("traefik", {"websecure": 443}, expose="websecure=routed")
    mail = service("mail", {"smtp": 25}, expose="smtp")
    result, _ = discovered(mail, web, *NODES, base=BASE.replace("webgui\nbackends", "webgiu\nbackends"))
    assert [one for one in result.violations if one.startswith("base.yaml:11: frontends.https.backend")]
    result, _ = discovered(mail, *NODES, base=BASE)  # nobody makes what its route leads to
    assert [one for one in result.violations if one.startswith("base.yaml:10: frontends.https.routes[0].backend")]


def test_a_base_that_cannot_be_read_is_refused():
    for text in ("[1, 2]", "a: b\na: c", "\tx", ""):
        with pytest.raises(InvalidError):
            merge.base(text.encode(), "base.yaml", watched=False)
    with pytest.raises(InvalidError, match=r"base.yaml:2: serial: not in a base that is watched"):
        merge.base(b"version: 1\nserial: 4\n", "base.yaml", watched=True)


def test_bind_of_the_command_is_for_who_names_none():
    own = service("own", {"smtp": 25}, expose="smtp", bind="192.0.2.9")
    none = service("none", {"imaps": 993}, expose="imaps")
    _, tree = discovered(own, none, *NODES, bind=BIND)
    assert tree["frontends"]["smtp"]["bind"] == ["192.0.2.9:25"]
    assert tree["frontends"]["imaps"]["bind"] == ["192.0.2.1:993"]


# --- told


def test_what_was_told_is_read_again_and_what_is_no_work_of_ours_is_nothing():
    one = Told(state="mistake", message="x", frontends=("smtp",), good={"expose": "smtp"})
    assert told(one.annotation) == one
    for text in ("", "live", "[]", '{"state": 1}', '{"state": "live", "message": "", "frontends": 4}', "[" * 9999):
        assert told(text) is None
    assert told('{"state": "live", "message": "", "frontends": [], "good": [1]}') is None
