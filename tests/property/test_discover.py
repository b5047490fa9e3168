"""Whatever a cluster says, what comes of it is a valid desired state."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.discover import memory, merge, objects, selector
from agent.discover.desired import Config, desired
from agent.discover.fragments import kept
from agent.discover.objects import Snapshot

NAMES = st.sampled_from(["mail", "web", "a", "0", "x.y", "UPPER", "-", "n" * 63, "smtp"])
PORTS = ["smtp", "imap", "check", ""]
ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "0.0.0.0", "::", "127.0.0.1", "no", ""])
NASTY = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
WORDS = st.sampled_from(
    ["smtp=25", "smtp", "imap=25", "smtp=25, imap=26", "check=routed", "25", "smtp=0", "smtp=25\n  mode http", "=", ","]
)
KEYS = st.sampled_from(
    ["expose", "bind", "bind.smtp", "via", "nodes", "prefix", "application", "application.imap", "proxy-protocol",
     "health-port", "health-port.smtp", "health-port.nope", "exposed"]
)  # fmt: skip
VALUES = st.one_of(
    WORDS, ADDRESSES, NASTY,
    st.sampled_from(["nodeport", "endpoints", "loadbalancer", "clusterip", "v1", "none", "check", "zone=a", "!x"]),
)  # fmt: skip


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    usual = {
        "expose": draw(st.sampled_from(["smtp=25", "smtp=26", "imap=25", "smtp=25, imap=26"])),
        "bind": "192.0.2.1",
    }
    plain = {"expose": draw(WORDS), "bind": draw(ADDRESSES)}
    cluster = usual | {"via": "clusterip"}
    odd = draw(st.dictionaries(KEYS, VALUES, max_size=4))
    said = draw(st.sampled_from([usual, cluster, cluster, cluster | odd, plain | odd]))
    return {
        "metadata": {
            "name": draw(NAMES),
            "namespace": draw(st.sampled_from(["default", "mail"])),
            "uid": "u",
            "creationTimestamp": draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
            "annotations": {f"edgeagent.io/{key}": value for key, value in said.items()},
        },
        "spec": {
            "type": "NodePort",
            "clusterIP": draw(st.sampled_from(["198.18.0.1", "198.18.0.1", "2001:db8:f::1", "None"])),
            "externalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
            "ports": [
                {"name": name, "port": 25 + index, "nodePort": draw(st.sampled_from([30000 + index, None]))}
                for index, name in enumerate(draw(st.sampled_from([PORTS, PORTS[:2], PORTS[::-1]])))
            ],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": draw(ADDRESSES)}]}},
    }


@st.composite
def nodes(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "metadata": {
            "name": draw(st.sampled_from(["n1", "n2", "n3", "N" * 70, "ä"])),
            "labels": {"zone": draw(st.sampled_from("ab"))},
        },
        "spec": {"unschedulable": draw(st.booleans())},
        "status": {
            "addresses": [{"type": "InternalIP", "address": one} for one in draw(st.lists(ADDRESSES, max_size=2))],
            "conditions": [{"type": "Ready", "status": draw(st.sampled_from(["True", "False", "Unknown"]))}],
        },
    }  # fmt: skip


@st.composite
def slices(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "metadata": {
            "name": draw(NAMES),
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": draw(NAMES)},
        },
        "addressType": draw(st.sampled_from(["IPv4", "IPv6", "FQDN"])),
        "ports": [{"name": draw(st.sampled_from(PORTS)), "port": draw(st.sampled_from([25, 99999, None]))}],
        "endpoints": [
            {
                "addresses": [draw(ADDRESSES)],
                "nodeName": "n1",
                "conditions": {"ready": draw(st.sampled_from([True, False, None]))},
            }
            for _ in range(draw(st.integers(0, 3)))
        ],
    }  # fmt: skip


def snapshot(found: tuple[list[Any], list[Any], list[Any]]) -> Snapshot:
    services, nodes, slices = found
    return Snapshot(
        services=list({one.key: one for one in map(objects.service, services)}.values()),
        nodes=list({one.name: one for one in map(objects.node, nodes)}.values()),
        slices=list({one.key: one for one in map(objects.endpoint_slice, slices)}.values()),
    )


CLUSTERS = st.tuples(st.lists(services(), max_size=4), st.lists(nodes(), max_size=4), st.lists(slices(), max_size=3))


def state(config: Config, now: Snapshot) -> DesiredState:
    found = desired(now, config)
    assert found.violations == ()
    state = parse(merge.as_json(found.tree), file="json").state
    assert parse(merge.as_yaml(found.tree, "x"), file="yaml").state == state
    asking = {service.key for service in now.services if service.wants}
    assert asking == found.fragments.keys() | found.mistakes.keys()
    assert not (found.fragments.keys() & found.mistakes.keys())
    return state


@given(CLUSTERS)
def test_any_cluster_makes_a_valid_desired_state_and_each_service_is_in_it_or_told(found):
    state(Config(), snapshot(found))


@given(CLUSTERS, st.randoms(use_true_random=False))
def test_the_order_of_the_objects_is_of_no_account(found, random):
    now = snapshot(found)
    before = state(Config(bind=("192.0.2.9",)), now)
    for part in (now.services, now.nodes, now.slices):
        random.shuffle(part)
    assert state(Config(bind=("192.0.2.9",)), now) == before


@given(CLUSTERS, services())
def test_a_newcomer_takes_nothing_from_who_was_there(found, newcomer):
    newcomer["metadata"] |= {"name": "newcomer", "creationTimestamp": "2026-02-01T00:00:00Z"}
    before = state(Config(), snapshot(found))
    after = state(Config(), snapshot((found[0] + [newcomer], found[1], found[2])))
    assert set(before.frontends) <= set(after.frontends)
    assert {backend.name for backend in before.backends} <= {backend.name for backend in after.backends}


@given(st.one_of(NASTY, st.text(alphabet="ab=!,() innot.", max_size=30)))
def test_a_selector_is_read_or_refused(text):
    try:
        chosen = selector.parse(text)
    except ValueError:
        return
    assert chosen({"a": "b"}) in (True, False)


@given(CLUSTERS)
def test_what_is_live_is_found_again_under_its_owner(found):
    now = snapshot(found)
    made = desired(now, Config())
    read = memory.fragments(json.loads(merge.as_json(made.tree)))
    owners = {service.key: service.owner for service in now.services}
    assert read == {owners[key]: fragment for key, fragment in made.fragments.items()}


@given(CLUSTERS, CLUSTERS)
def test_no_service_that_is_live_and_still_asks_loses_its_frontends(before, after):
    """Whatever becomes wrong with it, its nodes, or anybody else; unless it says so itself."""
    live = memory.fragments(json.loads(merge.as_json(desired(snapshot(before), Config()).tree)))
    now = snapshot(after)
    by_key = {service.key: live[service.owner] for service in now.services if service.owner in live}
    found = desired(now, Config(), live=by_key)
    for service in now.services:
        if service.wants and service.key in by_key:
            assert service.key in found.fragments
            if service.key in found.mistakes:
                assert found.fragments[service.key].frontends == by_key[service.key].frontends
    if not found.violations:
        parse(merge.as_json(found.tree), file="json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NASTY | st.sampled_from(["a/b/c", "group", "192.0.2.1:25"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["nodes", "owner", "bind", "group", "servers", "address", "port"]), inner, max_size=4),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["frontends", "backends", "nodes", "version"]), JSON))
def test_a_document_that_somebody_else_wrote_is_nobodys_or_read(tree):
    found = memory.together([memory.fragments(tree)])
    for fragment in found.values():
        assert kept(fragment, {}, pin=True).backends.keys() == fragment.backends.keys()
        assert fragment.trial[0] == fragment.request
        assert fragment.is_empty in (True, False)
