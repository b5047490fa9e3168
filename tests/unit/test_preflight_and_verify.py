"""What a switch may cost: preflight, verdict, pace and the rehearsed configuration, value by value."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from attrs import evolve
from kit.states import state

from agent.desired.addresses import Endpoint
from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.haproxy import server_state
from agent.haproxy.observed import FrontendStats, Observation, Running, ServerStats
from agent.haproxy.trial_config import trial_config
from agent.reconcile import preflight
from agent.reconcile.pace import EVERY, Pace
from agent.reconcile.preflight import BindFailure, Checks, ServingBackend
from agent.reconcile.verify import Judgement, judge


def of(document: object) -> DesiredState:
    return parse(json.dumps(document).encode(), file="d").state


def seen(*servers: str, check: str = "", closed: tuple[str, ...] = (), **status: str) -> Observation:
    """Servers `pool/name`, up but for those in `status` (by name), and a frontend for each pool."""
    made = []
    for server in servers:
        pool, name = server.split("/")
        number = ord(name) - ord("a") + 1
        index = "abc".index(pool)
        made.append(
            ServerStats(
                backend=pool,
                name=name,
                status=status.get(name, "UP"),
                check=check,
                sessions=0,
                address=f"198.51.100.{number}:{2000 + index}",
            )
        )
    pools = sorted({one.backend for one in made})
    fronts = tuple(FrontendStats(name=name, open=name not in closed, sessions=0, connections=0) for name in pools)
    process = Running(pid=1, version="2.8", uptime=1, generation=1)
    return Observation(process=process, frontends=fronts, servers=tuple(made))


def ask(before: object | None, after: object, now: Observation | None) -> dict[str, list[str]]:
    asked = preflight.checks(of(after), live=of(before) if before else None, observed=now, held=lambda _: True)
    return {"/".join(key): [str(end) for end in ends] for key, ends in asked.servers.items()}


# --- who is asked


def test_only_new_and_changed_servers_are_asked():
    before, after = state(a=3), state(a=4)
    after["backends"]["a"]["servers"]["b"]["address"] = "198.51.100.77:1"
    after["backends"]["a"]["servers"]["c"]["weight"] = 9
    assert ask(before, after, seen("a/a", "a/b", "a/c")) == {
        "a/b": ["198.51.100.77:1"],
        "a/d": ["198.51.100.4:2000"],
    }


def test_a_disabled_server_is_asked_when_it_is_enabled():
    before = state(a=1)
    before["backends"]["a"]["servers"]["a"]["disabled"] = True
    assert ask(before, before, seen("a/a", a="MAINT")) == {}
    assert list(ask(before, state(a=1), seen("a/a", a="MAINT"))) == ["a/a"]


def test_a_server_whose_check_is_another_is_asked_where_the_check_knocks_too():
    after = state(a=1)
    after["backends"]["a"]["health"] = {"port": 99}
    assert ask(state(a=1), after, seen("a/a")) == {"a/a": ["198.51.100.1:2000", "198.51.100.1:99"]}
    after["backends"]["a"]["health"] = {"port": 99, "type": "http"}  # an open door says little there
    assert ask(state(a=1), after, seen("a/a")) == {"a/a": ["198.51.100.1:2000"]}


def test_a_cold_start_asks_all_but_those_that_answered_once_and_have_no_check():
    unchecked = state(a=1, b=1)
    unchecked["backends"]["b"]["health"] = {"type": "none"}
    assert list(ask(unchecked, unchecked, None)) == ["a/a"]
    assert list(ask(None, unchecked, None)) == ["a/a", "b/a"]


def test_what_somebody_changed_at_the_socket_and_what_has_no_check_but_is_down_is_asked_again():
    unchecked = state(a=2)
    unchecked["backends"]["a"]["health"] = {"type": "none"}
    assert list(ask(unchecked, unchecked, seen("a/a", "a/b", b="DOWN"))) == ["a/b"]
    assert list(ask(state(a=2), state(a=2), seen("a/a", "a/b", b="DOWN"))) == []
    assert list(ask(state(a=2), state(a=2), seen("a/a"))) == ["a/b"]


def test_addresses_that_are_held_already_are_never_tried():
    asked = preflight.checks(
        of(state(a=1, b=1)), live=None, observed=None, held=lambda endpoint: endpoint == Endpoint(4, "192.0.2.1", 1000)
    )
    assert asked.binds == (Endpoint(4, "192.0.2.1", 1001),)


# --- quarantine


def test_what_cannot_be_bound_is_left_out_and_a_frontend_without_an_address_is_left_out_whole():
    document = state(a=1, b=1)
    document["frontends"]["a"]["bind"].append("[2001:db8::1]:25")
    whole = of(document)
    busy = {Endpoint(4, "192.0.2.1", port): BindFailure(reason="in_use", detail="by nginx") for port in (1000, 1001)}
    found = preflight.quarantine(whole, busy)
    assert [(one.frontend, one.address, one.reason) for one in found] == [
        ("a", "192.0.2.1:1000", "in_use"),
        ("b", "192.0.2.1:1001", "in_use"),
    ]
    left = preflight.without(whole, found)
    assert [(frontend.name, [str(bind) for bind in frontend.bind]) for frontend in left.frontends] == [
        ("a", ["[2001:db8::1]:25"])
    ]
    assert left.backends == whole.backends
    assert preflight.without(whole, ()) is whole


# --- what is at stake


def test_a_frontend_that_serves_must_not_lose_its_last_server():
    before, after = state(a=1, b=1), state(a=1, b=1)
    for name in "ab":
        after["backends"][name]["servers"]["a"]["address"] = f"198.51.100.{90 + ord(name) % 2}:1"
    now = seen("a/a", "b/a")
    serving = preflight.serving_backends(of(before), now, of(after))
    assert serving == (ServingBackend(frontend="a", backends=("a",)), ServingBackend(frontend="b", backends=("b",)))
    asked = preflight.checks(of(after), live=of(before), observed=now, held=lambda _: True)
    assert preflight.outages(serving, of(after), now, asked, frozenset({("a", "a"), ("b", "a")})) == {}
    assert preflight.outages(serving, of(after), now, asked, frozenset({("a", "a")})) == {
        ServingBackend(frontend="b", backends=("b",)): "no server of backend b answers"
    }


def test_what_did_not_serve_blocks_nothing_and_a_new_frontend_neither():
    before, after = state(a=1), state(a=1, b=1)
    assert preflight.serving_backends(of(before), seen("a/a", a="DOWN"), of(after)) == ()
    assert preflight.serving_backends(of(before), seen("a/a", closed=("a",)), of(after)) == ()
    assert [backend.frontend for backend in preflight.serving_backends(of(before), seen("a/a"), of(after))] == ["a"]
    idle = evolve(seen("a/a"), servers=tuple(evolve(server, weight=0) for server in seen("a/a").servers))
    assert preflight.serving_backends(of(before), idle, of(after)) == ()  # nobody is sent to weight 0
    assert preflight.serving_backends(None, None, of(after)) == ()


def test_disabling_the_last_server_is_a_loss_and_so_is_weight_0():
    for more in ({"disabled": True}, {"weight": 0}):
        before, after = state(a=1), state(a=1)
        after["backends"]["a"]["servers"]["a"] |= more
        now = seen("a/a")
        asked = Checks(binds=())
        serving = preflight.serving_backends(of(before), now, of(after))
        (lost,) = preflight.outages(serving, of(after), now, asked, frozenset()).values()
        assert lost == "no server of backend a would be in use"


def test_a_frontend_that_is_routed_elsewhere_needs_a_server_there():
    before, after = state(a=1, b=1), state(a=1, b=1)
    after["frontends"]["a"]["backend"] = "b"
    now = seen("a/a", "b/a")
    assert preflight.serving_backends(of(before), now, of(after))[0] == ServingBackend(frontend="a", backends=("b",))
    now = evolve_down(now, "b")
    assert preflight.serving_backends(of(before), now, of(after)) == (ServingBackend(frontend="a", backends=("b",)),)


def evolve_down(now: Observation, pool: str) -> Observation:
    servers = tuple(evolve(server, status="DOWN") if server.backend == pool else server for server in now.servers)
    return evolve(now, servers=servers)


# --- verdict

STAKE = (ServingBackend(frontend="a", backends=("a",)),)
NEW = frozenset({("a", "a")})


@pytest.mark.parametrize(
    ("after", "unproven", "probed_open", "stale", "word"),
    [
        (seen("a/a"), frozenset(), {}, frozenset(), Judgement.OK),
        (seen("a/a", "a/b", a="DOWN"), frozenset(), {}, frozenset(), Judgement.OK),
        (seen("a/a", a="DOWN"), frozenset(), {}, frozenset(), Judgement.REGRESSED),
        (seen("a/a", a="MAINT"), frozenset(), {}, frozenset(), Judgement.REGRESSED),
        (seen("a/a", closed=("a",)), frozenset(), {}, frozenset(), Judgement.REGRESSED),
        (seen("a/a"), NEW, {}, frozenset(), Judgement.PENDING),
        (seen("a/a", check="INI"), NEW, {}, frozenset(), Judgement.PENDING),
        (seen("a/a", check="L7OK"), NEW, {}, frozenset(), Judgement.OK),
        (seen("a/a", check="* L4OK"), NEW, {}, frozenset(), Judgement.OK),
        (seen("a/a", check="L7STS", a="UP 2/3"), NEW, {}, frozenset(), Judgement.REGRESSED),
        (seen("a/a", check="L4OK"), NEW, {}, NEW, Judgement.PENDING),  # a check of the address it had before
        (seen("a/a", check="L4CON"), NEW, {}, NEW, Judgement.PENDING),
        (seen("a/a"), NEW, {("a", "a"): True}, frozenset(), Judgement.OK),
        (seen("a/a"), NEW, {("a", "a"): False}, frozenset(), Judgement.REGRESSED),
        (seen("a/a", "a/b", check="L7STS"), NEW, {}, frozenset(), Judgement.OK),  # b is as it was
    ],
)
def test_the_verdict(after, unproven, probed_open, stale, word):
    judged = judge(STAKE, after, state=of(state(a=2)), unproven=unproven, probed_open=probed_open, stale=stale)
    assert judged.judgement is word
    assert bool(judged.reasons) is (word is not Judgement.OK)


def test_a_server_without_weight_serves_nobody():
    document = state(a=1)
    document["backends"]["a"]["servers"]["a"]["weight"] = 0
    judged = judge(STAKE, seen("a/a"), state=of(document), unproven=frozenset(), probed_open={})
    assert judged.judgement is Judgement.REGRESSED


# --- pace


def test_reloads_are_free_up_to_the_burst_and_paced_after_it():
    pace = Pace(2)
    assert pace.wait(100.0) == 0
    pace.spend(100.0)
    pace.spend(100.0)
    assert pace.wait(100.0) == EVERY
    assert pace.wait(100.0 + EVERY / 2) == pytest.approx(EVERY / 2)
    assert pace.wait(100.0 + EVERY) == 0
    pace.spend(100.0 + EVERY)
    assert pace.wait(100.0 + EVERY) == EVERY
    assert pace.wait(1e6) == 0
    pace.spend(1e6)
    pace.spend(1e6)
    assert pace.wait(1e6) > 0  # however long it rested, no more than the burst


# --- rehearsal


def test_a_rehearsal_reaches_nobody_and_is_reached_by_nobody():
    config = b"""\
global
    maxconn 100
    stats socket '/run/a b/haproxy.sock' mode 600 level admin expose-fd listeners
    log 127.0.0.1:514 daemon
    user www
defaults
    log global
frontend f
    maxconn 7
    bind 192.0.2.1:25
    bind 192.0.2.1:26
    bind [2001:db8::1]:25 v6only accept-proxy
backend b
    server a 192.0.2.2:25 weight 1 send-proxy-v2 check inter 5s
resolvers r
    nameserver x 127.0.0.1:53
"""
    text = trial_config(config, PurePosixPath("/run/r")).decode()
    wanted = """\
global
    maxconn 102
    stats socket /run/r/s mode 600 level admin
    user www
defaults
    log global
resolvers r
    nameserver x 127.0.0.1:53
"""
    assert text == wanted


# --- server state


def test_a_server_that_did_not_answer_starts_as_down():
    after = of(state(a=2))
    text = server_state.carried("", None, after, down={("a", "b"), ("gone", "x")})
    assert text == "1\n1 a 1 b 198.51.100.2 0 0 1 1 0 1 0 0 0 0 0 0 - 2000 - 0 0 - - 0\n"
    assert len(text.splitlines()[1].split()) == 25


def test_a_server_that_was_moved_by_hand_is_not_carried_over():
    words = "3 a 1 a 198.51.100.66 2 0 1 1 9 6 3 4 6 0 0 0 - 2000 - 0 0 - - 0"
    assert server_state.carried(words, of(state(a=1)), of(state(a=1))) == "1\n"
    right = words.replace("198.51.100.66", "198.51.100.1")
    assert server_state.carried(right, of(state(a=1)), of(state(a=1))) == f"1\n{right}\n"


def test_what_another_check_found_is_forgotten():
    words = "3 a 1 a 198.51.100.1 2 0 1 1 9 6 3 4 6 0 0 0 - 2000 - 0 0 - - 0"
    after = state(a=1)
    after["backends"]["a"]["health"] = {"type": "http"}
    assert " 2 0 1 1 9 1 0 4 6 " in server_state.carried(words, of(state(a=1)), of(after))


def test_what_many_frontends_share_is_told_once():
    serving_backends = [ServingBackend(frontend=f"f{n}", backends=("b",)) for n in range(8)]
    told = preflight.sentences(
        [(backend, "no server of backend b answers") for backend in serving_backends],
        singular="serves now",
        plural="serve now",
    )
    assert told == ("frontends f0, f1, f2, f3, f4 and 3 more serve now, and no server of backend b answers",)
    told = preflight.sentences(
        [(serving_backends[0], "x"), (serving_backends[1], "y")], singular="serves now", plural="serve now"
    )
    assert told == ("frontend f0 serves now, and x", "frontend f1 serves now, and y")


@pytest.mark.parametrize(
    ("bind", "serving"),
    [
        ("192.0.2.1:1000", True),
        ("0.0.0.0:1000", True),
        ("192.0.2.2:1000", False),
        ("192.0.2.1:1001", False),
        ("[::]:1000", False),
    ],
)
def test_what_is_served_belongs_to_the_address_and_not_to_the_name(bind: str, *, serving: bool):
    before, after = state(a=1), state(a=1)
    after["frontends"] = {"renamed": {"bind": [bind], "backend": "renamed"}}
    after["backends"] = {"renamed": after["backends"]["a"]}
    expected = (ServingBackend(frontend="renamed", backends=("renamed",)),) if serving else ()
    assert preflight.serving_backends(of(before), seen("a/a"), of(after)) == expected
