"""What the controller decides, against agents that answer what a test wants: no cluster, no ssh, no waiting."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from attrs import evolve
from kit.agents import GOOD, Agent, Judgement, install
from kit.discover import balanced, endpoints, node, service

from agent.desired.identity import digest_of
from agent.discover import conditions, objects
from agent.discover import controller as module
from agent.discover.api import ApiError
from agent.discover.base import Base, base
from agent.discover.conditions import ServiceStatus, State
from agent.discover.controller import Controller
from agent.discover.desired import Config
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewall, Firewalls
from agent.discover.fragments import BaseLayout, group_name
from agent.discover.objects import FINALIZER, Service, Slice, Snapshot
from agent.errors import ExitCode
from agent.remote import push
from agent.view.status import RefusalStatus


class Reporter:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.thread = threading.Thread()
        self.told: dict[str, ServiceStatus | None] = {}

    def report(self, service: Service, status: ServiceStatus | None) -> None:
        self.told[service.name] = status

    def forget(self, uids: set[str]) -> None:
        """Nothing is kept."""


class Api:
    """What the writer of finalizers asks of the API server: written at once, and back as a watch would bring it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.conflicts, self.away, self.written = cluster, 0, False, 0

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.written += 1
        name = path.split("/")[-2]
        if self.away:
            raise ApiError("it does not answer")
        if self.conflicts:
            self.conflicts -= 1
            raise ApiError("409", status=409)
        service = self.cluster.services[name]
        assert body["metadata"]["uid"] == service.uid
        left = tuple(body["metadata"]["finalizers"])
        if service.deleted and not left:
            del self.cluster.services[name]
        else:
            self.cluster.services[name] = evolve(service, finalizers=left)
        return {}


class Cluster:
    """What a test makes of it."""

    informers = ()
    synced = True
    stalled = ()

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.slices: Callable[[], list[Slice]] = list
        self.nodes = {"n1": objects.node(node("n1", "192.0.2.101"))}

    def snapshot(self) -> Snapshot:
        return Snapshot(
            services=list(self.services.values()), nodes=list(self.nodes.values()), slices=list(self.slices())
        )


class Bench:
    """A controller whose turns a test takes itself, and the agent on its one firewall."""

    def __init__(self) -> None:
        self.cluster, self.agent, self.reporter = Cluster(), Agent(), Reporter()
        self.api = Api(self.cluster)
        self.config = Config()
        self.fresh()

    def fresh(self) -> None:
        """As after a restart; what it reported of the Services stands there, as a watch would bring it."""
        for name, status in self.reporter.told.items():
            if name in self.cluster.services:
                self.cluster.services[name] = reported(self.cluster.services[name], status)
        self.firewalls = Firewalls([push.target("fw")], seconds=30, sign=None)
        self.controller = Controller(
            cluster=self.cluster,  # type: ignore[arg-type]
            config=lambda: self.config,
            firewalls=self.firewalls,
            reporter=self.reporter,  # type: ignore[arg-type]
            finalizers=Finalizers(self.api),  # type: ignore[arg-type]
            end=threading.Event(),
        )

    def add(self, *names: str, **annotations: str) -> None:
        for name in names:
            port = 1_000 + len(self.cluster.services)
            said = {"expose": f"x={port}", "bind": "192.0.2.1", "prefix": name} | annotations
            one = objects.service(service(name, {"x": port}, **said))
            self.cluster.services[name] = evolve(one, uid=f"uid-of-{name}")

    def say(self, name: str, **annotations: str) -> None:
        one = self.cluster.services[name]
        self.cluster.services[name] = evolve(one, annotations={**one.annotations, **annotations})

    def turn(self) -> list[set[str]]:
        """What was pushed in it."""
        self.agent.handed.clear()
        self.controller.reconcile()
        return list(self.agent.handed)

    def settle(self) -> int:
        """Turns, until nothing is due any more; how many pushes that took."""
        pushes = 0
        for _ in range(100):
            pushes += len(self.turn())
            if not self.controller.due:
                return pushes
        raise AssertionError("it never settles")

    def look(self) -> None:
        """Where it is time: a turn."""
        if self.controller.due:
            self.controller.reconcile()

    def later(self) -> None:
        """It is time to ask again."""
        self.controller._ask_at = 0.0

    def state(self, name: str) -> str:
        status = self.reporter.told.get(name)
        return status.state.name.lower() if status else ""

    def message(self, name: str) -> str:
        status = self.reporter.told.get(name)
        return status.message if status else ""

    @property
    def serves(self) -> set[str]:
        return {name.removesuffix("-x") for name in self.agent.live.get("backends", {})}


def reported(service: Service, status: ServiceStatus | None) -> Service:
    """With its conditions, as the API server would have them."""
    body = conditions.body(service, status, now="2026-11-29T00:00:00Z").get("status") or {}
    return evolve(service, conditions={condition["type"]: condition for condition in body.get("conditions", ())})


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    install(monkeypatch, {"fw": made.agent})
    return made


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, moved by hand."""
    clock = [1_000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


def drain(bench: Bench, name: str) -> None:
    bench.cluster.nodes[name] = evolve(bench.cluster.nodes[name], cordoned=True)


def refuses(*bad: str, code: ExitCode = ExitCode.REFUSED) -> Callable[[set[str]], Judgement]:
    return lambda names: Judgement(code=code, message="no") if names & {f"{one}-x" for one in bad} else GOOD


def test_nothing_new_is_nothing_pushed(bench: Bench):
    bench.add("a", "b")
    assert bench.turn() == [{"a-x", "b-x"}]
    assert bench.turn() == []
    bench.later()
    assert bench.turn() == []
    assert bench.agent.asked == 2  # when it began, and now
    bench.fresh()
    assert bench.turn() == []
    assert bench.controller.in_step


@pytest.mark.parametrize("bad", [["s7"], ["s0", "s99"], ["s10", "s11", "s12", "s50"]])
def test_who_is_refused_is_found_by_halves_and_the_others_are_live(bench: Bench, bad: list[str]):
    """Of a firewall that does not say whose the fault is."""
    bench.agent.judge = refuses(*bad)
    names = [f"s{one}" for one in range(100)]
    bench.add(*names)
    pushes = bench.settle()
    assert bench.serves == set(names) - set(bad)
    assert pushes <= 4 + len(bad) * 2 * 7  # of a hundred: seven halvings
    assert {name for name in names if bench.state(name) == "refused"} == set(bad)
    assert {name for name in names if bench.state(name) == "live"} == set(names) - set(bad)
    assert bench.agent.desired == bench.agent.document, "what was refused does not stay in the desired file"
    assert bench.turn() == []


def test_a_service_that_was_live_and_is_refused_stays_as_it_was(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    before = bench.agent.live["frontends"]["a-x"]

    def judge(tree: Mapping[str, Any]) -> Judgement:
        moved = "192.0.2.9:1000" in tree["frontends"]["a-x"]["bind"]
        return Judgement(code=ExitCode.REFUSED, message="no") if moved else GOOD

    bench.agent.judge_tree = judge  # type: ignore[method-assign]
    bench.say("a", bind="192.0.2.9")
    bench.add("c")
    bench.settle()
    assert bench.serves == {"a", "b", "c"}
    assert bench.agent.live["frontends"]["a-x"] == before
    assert bench.state("a") == "refused"
    assert bench.message("a").endswith("what was live before goes on")
    # A node comes: it is tried once more, and refused. What it has live was not refused for that, and follows.
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.settle()
    assert bench.agent.live["backends"]["a-x"]["nodes"] == bench.agent.live["backends"]["b-x"]["nodes"] == "workers"
    assert set(bench.agent.live["nodes"]["workers"]) == {"n1", "n2"}
    drain(bench, "n1")
    bench.settle()
    assert bench.agent.live["nodes"]["workers"]["n1"] == {"address": "192.0.2.101", "weight": 0}
    # And after a restart it is as it was, again.
    bench.fresh()
    bench.turn()
    assert bench.agent.live["frontends"]["a-x"] == before
    assert (bench.serves, bench.state("a")) == ({"a", "b", "c"}, "refused")


def test_a_service_that_is_refused_for_its_servers_keeps_those_it_had_and_the_others_get_theirs(bench: Bench):
    bench.add("a", "b")
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Judgement:
        one = tree["backends"]["a-x"]
        nodes = set(tree["nodes"][one["nodes"]] if "nodes" in one else ()) | set(one.get("servers", ()))
        return Judgement(code=ExitCode.REFUSED, message="no") if "n2" in nodes else GOOD

    bench.agent.judge_tree = judge  # type: ignore[method-assign]
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.settle()
    assert bench.agent.live["backends"]["a-x"]["servers"] == {"n1": {"address": "192.0.2.101:31000"}}
    assert set(bench.agent.live["nodes"]["workers"]) == {"n1", "n2"}
    assert (bench.state("a"), bench.state("b")) == ("refused", "live")
    # And a node that drains does so where it serves.
    drain(bench, "n2")
    bench.turn()
    assert bench.agent.live["nodes"]["workers"]["n2"]["weight"] == 0


def test_after_a_rollback_whoever_asked_for_something_new_is_held_until_it_asks_for_something_else(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.add("b", "c")
    bench.agent.judge = refuses("b", code=ExitCode.ROLLED_BACK)
    assert bench.turn() == [{"a-x", "b-x", "c-x"}, {"a-x"}]
    assert [bench.state(name) for name in "abc"] == ["live", "rolled_back", "rolled_back"]
    # Neither time nor nodes, nor another leader, are a reason to try again what hurt.
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert bench.turn() == [{"a-x"}]
    bench.later()
    assert bench.turn() == []
    bench.fresh()
    assert bench.turn() == []
    assert bench.state("b") == "rolled_back"
    bench.say("c", application="tls")
    bench.turn()
    assert bench.serves == {"a", "c"}


def test_nodes_that_hurt_one_service_are_not_taken_from_the_others_for_long(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt")
        if len(tree.get("nodes", {}).get("workers", ())) > 1
        else GOOD
    )
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert len(bench.turn()) == 2
    assert (bench.serves, bench.state("a")) == ({"a"}, "rolled_back")
    assert bench.turn() == []


def test_a_held_service_is_tried_again_when_it_changes_or_has_waited(bench: Bench, now: list[float]):
    bench.agent.judge = refuses("b")
    bench.add("a", "b")
    bench.settle()
    assert bench.turn() == []
    bench.agent.judge = refuses()
    assert bench.turn() == []
    bench.say("b", application="smtp")
    bench.turn()
    assert bench.serves == {"a", "b"}
    bench.agent.judge = refuses("c")
    bench.add("c")
    bench.turn()
    assert bench.state("c") == "refused"
    now[0] += 6
    assert bench.turn() == [{"a-x", "b-x", "c-x"}]
    assert bench.state("c") == "refused"
    bench.agent.judge = refuses()
    now[0] += 12
    bench.turn()
    assert bench.state("c") == "live"


def test_a_firewall_that_is_not_reached_is_tried_again_later(bench: Bench):
    bench.agent.judge = lambda _: Judgement(code=ExitCode.SSH, message="nobody listens there")
    bench.add("a", "b")
    assert len(bench.turn()) == 1
    assert [bench.state(name) for name in "ab"] == ["waiting", "waiting"]
    bench.later()
    assert len(bench.turn()) == 1
    answers = iter([Judgement(code=ExitCode.REFUSED), Judgement(code=ExitCode.SSH)])
    bench.agent.judge = lambda _: next(answers)
    bench.later()
    bench.turn()
    assert bench.serves == set()
    bench.agent.judge = refuses("b")
    bench.later()
    bench.settle()
    assert bench.serves == {"a"}


def test_mistakes_do_not_survive_their_service(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()
    assert (bench.serves, bench.state("a"), bench.state("b")) == ({"a", "b"}, "mistake", "live")
    bench.fresh()
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "mistake")
    del bench.cluster.services["a"]
    bench.turn()
    assert bench.serves == {"b"}


def test_what_is_no_desired_state_is_not_pushed_and_told(bench: Bench):
    bench.add("a")
    bench.turn()
    for number in range(500):
        bench.cluster.nodes[f"n{number}"] = objects.node(
            node(f"n{number}", f"192.0.{number // 250}.{number % 250 + 1}")
        )
    bench.add(*(f"s{number}" for number in range(201)))
    assert bench.turn() == []
    told = bench.reporter.told["s7"]
    assert told is not None
    assert (told.state, "servers in all" in told.message) == (State.WAITING, True)
    assert bench.serves == {"a"}
    assert not bench.controller.in_step


def test_what_was_live_goes_on_whatever_makes_it_a_mistake_now(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    before = bench.agent.live["frontends"]["a-x"]
    one = bench.cluster.services["a"]
    bench.cluster.services["a"] = evolve(one, ports=tuple(evolve(port, node=None) for port in one.ports))
    bench.turn()
    assert bench.serves == {"a", "b"}
    assert bench.agent.live["frontends"]["a-x"] == before
    assert bench.state("a") == "mistake"
    # And nobody takes its address for it.
    bench.say("b", expose="x=1000")
    bench.turn()
    assert bench.state("b") == "mistake"
    assert bench.agent.live["frontends"]["a-x"] == before


def test_an_address_that_one_service_gives_up_is_anothers_with_the_next_turn(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="x=9")
    bench.say("b", expose="x=1000")
    bench.turn()
    assert bench.controller._dirty.is_set()
    bench.turn()
    assert bench.agent.live["frontends"]["b-x"]["bind"] == ["192.0.2.1:1000"]
    assert (bench.state("a"), bench.state("b")) == ("live", "live")


def test_a_held_service_keeps_its_name_from_those_that_would_have_it(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    before = bench.agent.live["backends"]["a-x"]
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.REFUSED, message="no") if "moved-x" in tree["backends"] else GOOD
    )
    bench.say("a", prefix="moved")
    bench.turn()
    bench.say("b", prefix="a")
    bench.turn()
    assert bench.agent.live["backends"]["a-x"] == before
    assert (bench.serves, bench.state("a"), bench.state("b")) == ({"a", "b"}, "refused", "mistake")


def test_where_no_firewall_tells_nothing_is_pushed_and_it_is_asked_again(bench: Bench):
    bench.add("a")
    bench.agent.away = "fw: nobody listens there"
    assert bench.turn() == []
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, "nobody listens there" not in told.message) == (State.WAITING, True)
    bench.add("b")
    bench.turn()
    assert bench.agent.asked == 1  # an event is no reason to ask again at once
    bench.agent.away = ""
    bench.later()
    assert bench.turn() == [{"a-x", "b-x"}]


def test_an_empty_cluster_is_not_pushed(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.cluster.services.clear()
    assert bench.turn() == []
    assert bench.serves == {"a"}


def names_parts(*bad: str) -> Callable[[set[str]], Judgement]:
    """An agent that says of which servers it refuses a document."""

    def judge(names: set[str]) -> Judgement:
        wrong = sorted(names & {f"{name}-x" for name in bad})
        parts = tuple(RefusalStatus(kind="server", name=name, server="n1", reason=f"{name} is mute") for name in wrong)
        return Judgement(code=ExitCode.REFUSED, message="root@fw: no", parts=parts) if parts else GOOD

    return judge


def test_twelve_refused_services_are_named_and_cost_one_more_push(bench: Bench):
    bad = [f"bad{number}" for number in range(12)]
    bench.agent.judge = names_parts(*bad)
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.add("a", *bad)
    assert len(bench.turn()) == 2
    assert bench.serves == {"a"}
    told = bench.reporter.told["bad3"]
    assert told is not None
    assert (told.state, told.message) == (State.REFUSED, "bad3-x is mute")  # of itself, and of no firewall
    drain(bench, "n1")
    assert len(bench.turn()) == 1
    bench.cluster.nodes["n3"] = objects.node(node("n3", "192.0.2.103"))
    assert len(bench.turn()) == 2  # they are tried with it


def test_what_is_refused_is_tried_again_after_seconds_and_then_less_and_less_often(bench: Bench, now: list[float]):
    bench.agent.judge = names_parts("b")
    bench.add("a", "b")
    bench.controller.reconcile()
    tries = []
    for _ in range(1_200):
        now[0] += 1
        bench.agent.handed.clear()
        bench.look()
        if {"a-x", "b-x"} in bench.agent.handed:
            tries.append(now[0] - 1_000)
    waits = [later - earlier for earlier, later in zip([0.0, *tries], tries, strict=False)]
    assert waits[0] <= 6
    assert waits[-1] <= 301
    assert 5 <= len(tries) <= 16
    bench.agent.judge = lambda _: GOOD
    now[0] += 301
    bench.look()
    assert (bench.serves, bench.state("b")) == ({"a", "b"}, "live")


def test_a_pod_that_is_back_elsewhere_is_tried_at_once(bench: Bench):
    """A Local Service between two pods: what was refused is a backend without a server, not the Service."""
    bench.add("a")
    bench.cluster.services["a"] = evolve(bench.cluster.services["a"], local=True)
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    at = {"n1": "10.0.0.1"}
    bench.cluster.slices = lambda: [
        objects.endpoint_slice(endpoints("a", *((ip, where, True) for where, ip in at.items()), x=8080))
    ]
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Judgement:
        return Judgement(code=ExitCode.REFUSED, message="no") if "nobody" in str(tree["backends"]["a-x"]) else GOOD

    bench.agent.judge_tree = judge  # type: ignore[method-assign]
    at.clear()
    bench.turn()
    assert (bench.state("a"), list(bench.agent.live["backends"]["a-x"]["servers"])) == ("refused", ["n1"])
    assert bench.turn() == []
    at["n2"] = "10.0.0.2"
    assert len(bench.turn()) == 1
    assert (bench.state("a"), list(bench.agent.live["backends"]["a-x"]["servers"])) == ("live", ["n2"])


def test_a_service_that_comes_before_its_endpoints_waits_for_them_and_is_never_degraded(bench: Bench):
    bench.add("a", "b")
    bench.cluster.services["a"] = evolve(bench.cluster.services["a"], local=True)
    at: dict[str, str] = {}
    bench.cluster.slices = lambda: [
        objects.endpoint_slice(endpoints("a", *((ip, where, True) for where, ip in at.items()), x=8080))
    ]
    assert bench.turn() == [{"b-x"}]
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, told.message) == (State.WAITING, "no node that takes traffic holds an endpoint of it")
    at["n1"] = "10.0.0.1"
    assert bench.turn() == [{"a-x", "b-x"}]
    assert bench.state("a") == "live"
    at.clear()  # what is live stays, with nobody behind it
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "degraded")


def deleted(bench: Bench, *names: str) -> None:
    for name in names:
        bench.cluster.services[name] = evolve(bench.cluster.services[name], deleted=True)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("base", [{}, {"frontends": {"own": {"bind": ["192.0.2.9:443"], "backend": "own"}}}])
def test_the_last_service_that_is_deleted_is_let_go(bench: Bench, base: dict[str, Any], restart: bool):  # noqa: FBT001
    """It served for ever: nothing was pushed without a frontend, and another Service may be given its NodePort."""
    if base:
        base = {**base, "backends": {"own": {"servers": {"a": {"address": "192.0.2.200:443"}}}}}
    bench.config = Config(base=Base(tree={"version": 1, **base}))
    bench.fresh()
    bench.add("a")
    bench.turn()
    assert (bench.serves - {"own"}, bench.cluster.services["a"].finalizers) == ({"a"}, (FINALIZER,))
    bench.turn()
    deleted(bench, "a")
    if restart:
        bench.fresh()
    (handed,) = bench.turn()
    assert handed == ({"own"} if base else set())
    assert bench.agent.live.get("allow_empty", False) is not bool(base)
    assert not bench.cluster.services, "its finalizer is gone"
    assert bench.turn() == []
    bench.fresh()
    assert bench.turn() == []


def test_a_deleted_service_stays_until_no_firewall_serves_it(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.agent.away = "it is off"
    deleted(bench, "a")
    bench.turn()
    assert "a" in bench.cluster.services
    told = bench.reporter.told["a"]
    assert told is not None
    assert "it is deleted once no firewall serves it any more: the firewall takes no change now" in told.message
    bench.agent.away = ""
    bench.later()
    bench.turn()
    assert (bench.serves, set(bench.cluster.services)) == ({"b"}, {"b"})


def test_a_finalizer_that_came_too_late_is_written_soon(bench: Bench, now: list[float]):
    """Whoever changed the Service meanwhile; its deletion would look like a loss."""
    bench.add("a")
    bench.api.conflicts = 2  # before the push, and after it
    bench.turn()
    assert (bench.serves, bench.cluster.services["a"].finalizers) == ({"a"}, ())
    now[0] += 2
    bench.look()
    assert bench.cluster.services["a"].finalizers == (FINALIZER,)


def with_own_frontend() -> Config:
    backends = {"own": {"servers": {"a": {"address": "192.0.2.200:443"}}}}
    frontends = {"own": {"bind": ["192.0.2.9:443"], "backend": "own"}}
    return Config(base=Base(tree={"version": 1, "frontends": frontends, "backends": backends}))


@pytest.mark.parametrize("restart", [False, True])
def test_services_that_vanish_are_not_believed_beside_a_base_also_after_a_restart(bench: Bench, restart: bool):  # noqa: FBT001
    """A mistyped --namespace always comes with a restart."""
    bench.config = with_own_frontend()
    bench.fresh()
    bench.add("a", "b")
    bench.turn()
    bench.cluster.services.clear()
    if restart:
        bench.fresh()
    assert bench.turn() == []
    assert bench.serves == {"a", "b", "own"}


def test_one_that_is_deleted_takes_nobody_with_it_who_has_vanished_after_a_restart(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    deleted(bench, "a")
    del bench.cluster.services["b"]
    bench.fresh()
    assert bench.turn() == []
    assert bench.serves == {"a", "b"}


def balanced_service(name: str, port: int) -> Service:
    return evolve(objects.service(balanced(name, {name: port})), uid=f"uid-of-{name}")


def test_the_only_service_leaves_its_class_as_documented(bench: Bench):
    bench.config = Config(bind=("192.0.2.1",))
    bench.fresh()
    bench.cluster.services["lb"] = balanced_service("lb", 25)
    bench.turn()
    assert bench.serves == {"lb"}
    one = reported(bench.cluster.services["lb"], bench.reporter.told["lb"])
    bench.cluster.services["lb"] = evolve(one, balanced=False, kind="NodePort")
    assert bench.turn() == [set()]
    assert bench.cluster.services["lb"].finalizers == ()


def test_a_service_of_our_class_that_hurts_is_the_one_that_is_held(bench: Bench):
    """What it asks for is its ports; by annotations alone another one was to blame, for ever."""
    bench.config = Config(bind=("192.0.2.1",))
    bench.fresh()
    bench.add("inno")
    bench.cluster.services["lb"] = balanced_service("lb", 1_025)
    bench.turn()
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Judgement:
        hurts = "192.0.2.1:1026" in tree["frontends"]["lb"]["bind"]
        return Judgement(code=ExitCode.ROLLED_BACK, message="hurt") if hurts else GOOD

    bench.agent.judge_tree = judge  # type: ignore[method-assign]
    moved = balanced_service("lb", 1_026)
    bench.cluster.services["lb"] = evolve(moved, finalizers=(FINALIZER,))
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert len(bench.turn()) == 2  # one rollback
    assert (bench.state("lb"), bench.state("inno")) == ("rolled_back", "live")
    assert bench.controller._holds.next_retry == math.inf


def test_a_held_service_that_is_due_while_nothing_can_be_pushed_is_no_hot_loop(bench: Bench, now: list[float]):
    bench.agent.judge = names_parts("b")
    bench.config = Config(max_bytes=600)
    bench.fresh()
    bench.add("a", "b")
    bench.turn()
    assert bench.state("b") == "refused"
    bench.add("c", "d", "e", "f")  # more than the document may have
    now[0] += 400
    asked = bench.agent.asked
    for _ in range(20):
        bench.look()
    assert bench.agent.asked <= asked + 1


def test_a_finalizer_is_written_once_for_a_version(bench: Bench):
    """The watch tells of it later; each new Service was a 409, and a round of ssh."""
    bench.add("a", "b")
    stale = dict(bench.cluster.services)
    bench.api.cluster = Cluster()
    bench.api.cluster.services = stale  # written there, and not told of here yet
    bench.turn()
    assert bench.api.written == 2
    bench.turn()
    assert bench.api.written == 2


def test_an_api_server_that_does_not_answer_is_asked_once(bench: Bench):
    bench.add("a", "b", "c")
    bench.api.away = True
    bench.turn()
    assert (bench.api.written, bench.serves) == (2, {"a", "b", "c"})  # before the push, and after it


def test_one_that_is_deleted_does_not_speak_for_one_that_has_vanished(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    deleted(bench, "a")
    del bench.cluster.services["b"]
    assert bench.turn() == []
    assert bench.serves == {"a", "b"}


def test_a_service_that_asks_no_more_has_its_finalizer_taken_off(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.cluster.services["a"] = evolve(bench.cluster.services["a"], annotations={})
    bench.turn()
    assert (bench.serves, bench.cluster.services["a"].finalizers) == ({"b"}, ())


def test_what_a_refused_service_serves_and_nobody_can_write_down_is_not_taken_away(bench: Bench):
    """A restart, after its NodePort was changed: nothing on the firewall tells that it is the same Service."""
    bench.add("a", "b")
    bench.turn()
    one = bench.cluster.services["a"]
    bench.cluster.services["a"] = evolve(one, ports=tuple(evolve(port, node=32_000) for port in one.ports))
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.REFUSED, message="no")
        if tree["backends"].get("a-x", {}).get("port") == 32_000
        else GOOD
    )
    bench.fresh()
    bench.turn()
    assert bench.serves == {"a", "b"}


# --- what was found by looking for what takes a frontend away


def test_it_is_asked_again_in_time_although_nothing_happens(bench: Bench, now: list[float]):
    bench.add("a")

    def idle(seconds: float) -> int:
        """So long nothing is heard; how often the firewalls were asked."""
        before, end = bench.agent.asked, now[0] + seconds
        while now[0] < end:
            now[0] += 20
            bench.look()
        return bench.agent.asked - before

    bench.controller.reconcile()
    assert 2 <= idle(1_300) <= 3
    bench.agent.synced({"version": 1})  # somebody has, something else
    idle(620)
    assert bench.serves == {"a"}
    bench.agent.judge = refuses("b")
    bench.add("b")
    bench.controller.reconcile()
    bench.agent.judge = refuses()
    idle(360)
    assert bench.serves == {"a", "b"}
    bench.later()
    bench.controller.reconcile()
    bench.agent.away = "fw: gone"
    assert idle(200) == 0  # nothing new, nothing to ask
    idle(400)
    bench.add("c")
    bench.controller.reconcile()
    assert bench.state("c") == "waiting"
    bench.agent.away = ""
    idle(80)
    assert bench.serves == {"a", "b", "c"}


def test_a_search_is_not_repeated_while_nothing_has_changed(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.agent.judge = lambda _: Judgement(code=ExitCode.REFUSED, message="the base")
    bench.config = Config(bind=("192.0.2.77",))
    bench.add("c")
    bench.turn()
    for _ in range(3):
        assert bench.turn() == []
    assert bench.serves == {"a", "b"}


def test_a_firewall_that_is_away_at_the_beginning_costs_no_memory(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()
    bench.fresh()
    bench.agent.away = "fw: gone"
    bench.turn()
    bench.fresh()
    bench.agent.away = ""
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "mistake")


def test_a_service_whose_ports_are_wrong_goes_on_over_a_restart(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    before = bench.agent.live["frontends"]["a-x"]
    one = bench.cluster.services["a"]
    bench.cluster.services["a"] = evolve(one, ports=())
    bench.turn()
    bench.fresh()
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.turn()
    bench.fresh()
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "mistake")
    assert bench.agent.live["frontends"]["a-x"] == before
    assert set(bench.agent.live["nodes"]["workers"]) == {"n1", "n2"}


def test_who_waits_for_a_name_does_not_get_it_by_a_restart_after_all_servers_have_changed(bench: Bench):
    bench.add("web")
    bench.turn()
    bench.add("old", prefix="web")
    bench.cluster.services["old"] = evolve(bench.cluster.services["old"], created="2001-01-01T00:00:00Z")
    bench.turn()
    bench.cluster.nodes = {"n9": objects.node(node("n9", "192.0.2.109"))}
    bench.fresh()
    bench.turn()
    assert (bench.state("web"), bench.state("old")) == ("live", "mistake")
    assert bench.agent.live["frontends"]["web-x"]["bind"] == ["192.0.2.1:1000"]


def test_a_base_that_contradicts_what_is_live_takes_nothing_away(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    text = b'version: 1\nfrontends: {a-x: {bind: ["192.0.2.9:1000"]}}\n'
    bench.config = Config(base=base(text, "base.yaml", watched=True))
    assert bench.turn() == []
    assert bench.serves == {"a", "b"}
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, "base.yaml:2" in told.message) == (State.MISTAKE, True)
    # Unless it says whose the name is.
    bench.config = Config(base=base(b"version: 1\nowners: {a-x: default/other}\n", "base.yaml", watched=True))
    bench.turn()
    assert bench.serves == {"b"}


def test_a_base_that_hurts_is_put_aside_and_blames_nobody(bench: Bench):
    bench.add("a")
    bench.turn()
    hurts = Config(base=base(b"version: 1\ndefaults: {maxconn: 1}\n", "base.yaml", watched=True))
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt") if "defaults" in tree else GOOD
    )
    bench.config = hurts
    bench.add("b")
    bench.turn()
    assert bench.serves == {"a", "b"}
    assert "defaults" not in bench.agent.live
    bench.add("c")
    assert bench.turn() == [{"a-x", "b-x", "c-x"}]


def test_all_services_that_vanish_at_once_are_not_believed_beside_a_base(bench: Bench):
    text = b"""version: 1
frontends: {z: {bind: ["192.0.2.1:1"], backend: z}}
backends: {z: {servers: {z: {address: "192.0.2.5:1"}}}}
"""
    bench.config = Config(base=base(text, "base.yaml", watched=True))
    bench.add("a")
    bench.turn()
    gone = dict(bench.cluster.services)
    bench.cluster.services.clear()
    assert bench.turn() == []
    bench.cluster.services.update(gone)
    bench.cluster.nodes.clear()
    assert bench.turn() == []
    assert bench.agent.live["nodes"] == {"workers": {"n1": "192.0.2.101"}}


def test_a_new_service_of_an_old_name_that_is_refused_stops_nobody(bench: Bench):
    bench.add("v1", prefix="same")
    bench.add("o")
    bench.turn()
    del bench.cluster.services["v1"]
    bench.add("v2", prefix="same", expose="x=1500")
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.REFUSED, message="no")
        if tree["frontends"].get("same-x", {}).get("bind") == ["192.0.2.1:1500"]
        else GOOD
    )
    bench.turn()
    assert bench.state("v2") == "refused"
    bench.add("n", expose="x=1600")
    bench.turn()
    assert bench.serves == {"o", "n"}


def test_a_mistaken_service_that_is_refused_as_it_was_stops_nobody(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Judgement:
        one = tree["backends"]["a-x"]
        nodes = set(tree["nodes"][one["nodes"]] if "nodes" in one else ()) | set(one.get("servers", ()))
        return Judgement(code=ExitCode.REFUSED, message="no") if "n2" in nodes else GOOD

    bench.agent.judge_tree = judge  # type: ignore[method-assign]
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.settle()
    assert set(bench.agent.live["nodes"]["workers"]) == {"n1", "n2"}
    assert list(bench.agent.live["backends"]["a-x"]["servers"]) == ["n1"]
    assert bench.turn() == []


def test_a_firewall_that_is_away_is_asked_although_others_are_pushed_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, now: list[float]
):
    other = Agent()
    other.away = "gone"
    install(monkeypatch, {"fw": bench.agent, "two": other})
    bench.firewalls.all.append(Firewall(push.target("two")))
    bench.add("a")
    bench.controller.reconcile()
    before = other.asked
    for number in range(40):
        now[0] += 5
        bench.cluster.nodes["n1"] = objects.node(node("n1", f"192.0.2.{number + 1}"))
        bench.controller.reconcile()
    assert bench.serves == {"a"}
    assert other.asked - before >= 3
    assert bench.message("a") == "1 of 2 firewalls takes no change now; live on the others"
    other.away = ""
    now[0] += 11
    bench.look()
    assert other.live == bench.agent.live


def test_a_base_that_hurts_alone_is_put_aside_and_what_hurt_before_stays_held(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.agent.judge = refuses("b", code=ExitCode.ROLLED_BACK)
    bench.add("b")
    bench.turn()
    bench.config = Config(base=base(b"version: 1\nname: harmless\n", "base.yaml", watched=True))
    assert bench.turn() == [{"a-x"}]
    assert (bench.agent.live["name"], bench.state("b")) == ("harmless", "rolled_back")
    good = bench.agent.judge_tree
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt") if tree["name"] == "hurts" else good(tree)
    )
    bench.config = Config(base=base(b"version: 1\nname: hurts\n", "base.yaml", watched=True))
    assert bench.turn() == [{"a-x"}, {"a-x"}]
    assert bench.agent.live["name"] == "harmless"
    assert not bench.controller.in_step
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert bench.turn() == [{"a-x"}]


def test_what_hurts_after_a_restart_is_found_by_what_is_live(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.fresh()
    bench.agent.judge = refuses("b", code=ExitCode.ROLLED_BACK)
    bench.add("b")
    assert len(bench.turn()) == 2
    assert (bench.state("a"), bench.state("b")) == ("live", "rolled_back")
    bench.fresh()
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert bench.turn() == [{"a-x"}]
    bench.agent.judge = refuses()
    bench.say("b", application="tls")
    bench.turn()
    assert bench.serves == {"a", "b"}


def test_a_base_that_hurts_is_put_aside_after_a_restart_too(bench: Bench):
    """What of the live document is no Service's is the last good one."""
    bench.add("a")
    bench.turn()
    bench.config = Config(base=base(b"version: 1\nname: hurts\n", "base.yaml", watched=True))
    bench.fresh()
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt") if tree.get("name") == "hurts" else GOOD
    )
    assert len(bench.turn()) == 2
    bench.cluster.nodes = {"n9": objects.node(node("n9", "192.0.2.109"))}
    bench.turn()
    assert bench.agent.live["nodes"]["workers"] == {"n9": "192.0.2.109"}
    assert not bench.controller.in_step
    bench.config = Config(base=base(b"version: 1\nname: mended\n", "base.yaml", watched=True))
    bench.turn()
    assert bench.agent.live["name"] == "mended"


def test_nodes_that_hurt_are_not_tried_at_once_by_the_next_leader(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt")
        if len(tree.get("nodes", {}).get("workers", ())) > 1
        else GOOD
    )
    bench.cluster.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.turn()
    bench.fresh()
    assert bench.turn() == []
    assert bench.state("a") == "rolled_back"


# --- several firewalls, busy clusters, and what a review found


def second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Another firewall."""
    other = Agent()
    install(monkeypatch, {"fw": bench.agent, "two": other})
    bench.firewalls.all.append(Firewall(push.target("two")))
    return other


def serves(agent: Agent) -> set[str]:
    return {name.removesuffix("-x") for name in agent.live.get("backends", {})}


def replaced_nodes(bench: Bench) -> None:
    bench.cluster.nodes = {"n9": objects.node(node("n9", "192.0.2.109"))}


@pytest.mark.parametrize("at_start", [False, True])
def test_what_happens_in_the_cluster_does_not_put_off_asking(bench: Bench, now: list[float], at_start: bool):  # noqa: FBT001
    """An event every few seconds, and a firewall that was away was never asked again."""
    bench.add("a")
    bench.agent.away = "gone" if at_start else ""
    bench.turn()
    bench.agent.away = "gone"
    bench.add("b")
    for number in range(50):
        now[0] += 4
        bench.agent.away = "gone" if number < 20 else ""
        bench.cluster.nodes["n1"] = objects.node(node("n1", f"192.0.2.{number + 1}"))
        bench.controller.reconcile()
    assert bench.serves == {"a", "b"}


@pytest.mark.parametrize("code", [ExitCode.REFUSED, ExitCode.ROLLED_BACK])
def test_what_one_of_two_firewalls_does_not_accept_is_held_back_on_both(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, now: list[float], code: ExitCode
):
    """What the other has accepted counted as live, and so stood in each document that the first one refused."""
    other = second(bench, monkeypatch)
    bench.add("a", "b")
    bench.settle()
    other.judge = names_parts("x") if code is ExitCode.REFUSED else refuses("x", code=code)
    bench.add("x")
    other.handed.clear()
    bench.turn()
    assert sum("x-x" in names for names in other.handed) == 1
    bench.add("c")
    replaced_nodes(bench)
    deleted(bench, "b")
    for _ in range(3):
        now[0] += 2
        bench.controller.reconcile()
    assert serves(other) == bench.serves == {"a", "c"}
    assert set(other.live["nodes"]["workers"]) == {"n9"}
    assert "b" not in bench.cluster.services
    assert (bench.state("a"), bench.state("x")) == ("live", code.name.lower())


def test_another_clusters_document_on_one_firewall_takes_nothing_from_the_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    other = second(bench, monkeypatch)
    bench.add("a", "b")
    bench.settle()
    theirs = {"bind": ["192.0.2.1:1000"], "backend": "a-x", "owner": "x/theirs/1"}
    other.synced(
        {"version": 1, "serial": 2**40, "frontends": {"a-x": theirs}, "backends": {"a-x": {"owner": "x/theirs/1"}}}
    )
    bench.say("a", expose="nothing")
    bench.later()
    bench.turn()
    assert bench.serves == {"a", "b"}


def test_a_mistake_is_no_hot_loop_while_two_firewalls_differ(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    other = second(bench, monkeypatch)
    bench.add("a", "m")
    bench.settle()
    bench.say("m", expose="nothing")
    edited = json.loads(other.document)
    edited["frontends"]["a-x"]["bind"] = ["192.0.2.7:1000"]
    other.synced({**edited, "serial": 2**40})
    bench.later()
    other.judge_tree = lambda _: Judgement(code=ExitCode.SSH, message="gone")  # type: ignore[method-assign]
    bench.turn()
    bench.controller._dirty.clear()
    bench.turn()
    assert not bench.controller._dirty.is_set()


def test_a_service_that_hurt_by_its_request_follows_its_nodes(bench: Bench):
    bench.add("a", "b")
    bench.turn()
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt")
        if tree["backends"]["a-x"].get("application") == "tls"
        else GOOD
    )
    bench.say("a", application="tls")
    bench.turn()
    assert bench.state("a") == "rolled_back"
    replaced_nodes(bench)
    bench.turn()
    assert set(bench.agent.live["nodes"][bench.agent.live["backends"]["a-x"]["nodes"]]) == {"n9"}


def test_a_mistaken_service_follows_the_nodes_that_it_chose_before(bench: Bench):
    for name, host in (("n1", "192.0.2.101"), ("n2", "192.0.2.102")):
        bench.cluster.nodes[name] = objects.node(node(name, host, zone="a"))
    bench.add("a", nodes="zone=a")
    bench.turn()
    bench.say("a", nodes="zone=b", expose="nothing")
    bench.turn()
    del bench.cluster.nodes["n1"]
    bench.turn()
    assert set(bench.agent.live["nodes"]["workers-zone-a"]) == {"n2"}


@pytest.mark.parametrize("mistaken", [False, True])
def test_the_last_service_leaves_its_class_also_after_a_blip_and_a_mistake(bench: Bench, mistaken: bool):  # noqa: FBT001
    bench.config = Config(bind=("192.0.2.1",))
    bench.fresh()
    bench.cluster.services["lb"] = balanced_service("lb", 25)
    bench.turn()
    if mistaken:
        bench.cluster.services["lb"] = evolve(bench.cluster.services["lb"], ranges=("nonsense",))
        bench.turn()
        assert bench.state("lb") == "mistake"
    one = reported(bench.cluster.services["lb"], bench.reporter.told["lb"])
    bench.cluster.services["lb"] = evolve(one, balanced=False, kind="NodePort", ranges=())
    bench.agent.away = "a blip"
    bench.later()
    bench.turn()
    bench.cluster.services["lb"] = reported(bench.cluster.services["lb"], bench.reporter.told["lb"])
    bench.agent.away = ""
    bench.later()
    bench.turn()
    assert (bench.serves, bench.cluster.services["lb"].finalizers) == (set(), ())


def test_a_harmless_base_is_not_put_aside_for_a_service_that_is_refused_anyway(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.agent.judge = refuses("b")
    bench.add("b")
    bench.settle()
    bench.config = Config(base=base(b"version: 1\nname: harmless\n", "base.yaml", watched=True))
    bench.settle()
    assert (bench.agent.live["name"], bench.state("b")) == ("harmless", "refused")


def test_a_base_that_hurts_at_the_beginning_blames_no_service(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt") if tree.get("name") == "hurts" else GOOD
    )
    bench.config = Config(base=base(b"version: 1\nname: hurts\n", "base.yaml", watched=True))
    bench.add("b")
    bench.fresh()
    bench.turn()
    assert (bench.serves, bench.state("b")) == ({"a", "b"}, "live")


def test_a_service_without_endpoints_keeps_what_an_older_version_has_made_live(bench: Bench):
    """Without owners: at the first start after the update."""
    bench.add("a", "b")
    bench.turn()
    tree = json.loads(bench.agent.document)
    for kind in ("frontends", "backends"):
        for part in tree[kind].values():
            del part["owner"]
    bench.agent.synced(tree)
    bench.cluster.services["a"] = evolve(bench.cluster.services["a"], local=True)  # and no slice
    bench.fresh()
    bench.turn()
    assert bench.serves == {"a", "b"}


@pytest.mark.parametrize("data", [b"\n", b"\xff\xfe", b"[" * 5000, b"version: 1\na: [", b"7"])
def test_a_damaged_document_on_a_firewall_ends_nothing(bench: Bench, data: bytes, monkeypatch: pytest.MonkeyPatch):
    bench.add("a")
    status = {"schema": 1, "desired": None, "live": {"digest": digest_of(data)}, "held": None, "exit_code": 0}
    monkeypatch.setattr(bench.agent, "status", lambda: status)
    monkeypatch.setattr(bench.agent, "show", lambda: data)
    bench.turn()


def test_groups_of_two_selectors_are_two_and_the_base_may_have_its_own(bench: Bench):
    digest = hashlib.sha256(b"x").hexdigest()[:6]
    layout = BaseLayout()
    a, b = (
        group_name(labels, bench_service, layout)
        for labels, bench_service in (("x", balanced_service("a", 25)), (f"x={digest}", balanced_service("b", 26)))
    )
    assert a != b
    bench.add("a")
    bench.turn()
    bench.say("a", expose="nothing")
    text = (
        b"version: 1\nnodes: {workers: {own: 192.0.2.200}}\nfrontends: {z: {bind: ['192.0.2.9:9'], backend: z}}\n"
        b"backends: {z: {nodes: workers, port: 9}}\n"
    )
    bench.config = Config(base=base(text, "base.yaml", watched=True))
    bench.turn()
    assert bench.agent.live["nodes"]["workers"] == {"own": "192.0.2.200"}
    assert bench.agent.live["backends"]["a-x"]["servers"] == {"n1": {"address": "192.0.2.101:31000"}}


def test_a_message_of_many_mistakes_fits_into_a_condition(bench: Bench):
    bench.add("a", expose=",".join(f"p{number}=0" for number in range(5_000)))
    bench.turn()
    status = bench.reporter.told["a"]
    assert status is not None
    assert len(conditions.message(status)) == conditions.LONGEST


def test_a_base_and_a_service_that_both_hurt_freeze_nobody(bench: Bench):
    bench.add("a")
    bench.turn()
    bench.agent.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Judgement(code=ExitCode.ROLLED_BACK, message="hurt")
        if tree.get("name") == "hurts" or "b-x" in tree["backends"]
        else GOOD
    )
    bench.config = Config(base=base(b"version: 1\nname: hurts\n", "base.yaml", watched=True))
    bench.add("b")
    bench.settle()
    replaced_nodes(bench)
    bench.settle()
    assert set(bench.agent.live["nodes"]["workers"]) == {"n9"}
    assert (bench.serves, bench.state("b")) == ({"a"}, "rolled_back")
    handed = len(bench.agent.handed)
    bench.later()
    bench.turn()
    assert len(bench.agent.handed) <= handed, "what hurts is not tried again"
