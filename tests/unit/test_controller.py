"""What the controller decides, against firewalls that say what a test wants: no cluster, no ssh, no waiting."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from attrs import evolve
from kit.discover import balanced, endpoints, node, service

from agent.discover import controller as module
from agent.discover import merge, objects
from agent.discover.api import ApiError
from agent.discover.controller import Controller
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Verdict
from agent.discover.objects import FINALIZER, Service, Slice
from agent.discover.service_status import ServiceStatus
from agent.discover.state import Config, Snapshot
from agent.errors import ExitCode
from agent.view.status import RefusalStatus

LIVE = Verdict(code=ExitCode.LIVE)


class Firewalls:
    """Takes what `judge` takes. `has`: the desired state; `live`: what serves; `away`: it does not answer."""

    def __init__(self, judge: Callable[[set[str]], Verdict] = lambda _: LIVE) -> None:
        self.judge = judge
        self.has: Mapping[str, Any] | None = None
        self.live: Mapping[str, Any] = {}
        self.handed: list[set[str]] = []
        self.rehearsed: list[set[str]] = []
        self.asked = 0
        self.away = ""
        self._code = LIVE

    @property
    def verdict(self) -> Verdict:
        return Verdict(code=ExitCode.SSH, message=self.away, away=self.away) if self.away else self._code

    def push_all(self, tree: Mapping[str, Any]) -> Verdict:
        names = set(tree.get("backends", {}))
        self.handed.append(names)
        found = self.judge_tree(tree)
        if found.code in (ExitCode.SSH, ExitCode.POLICY):
            return found
        self.has, self._code = tree, found
        if found.live:
            self.live = tree
        return self.verdict

    def judge_tree(self, tree: Mapping[str, Any]) -> Verdict:
        return self.judge(set(tree.get("backends", {})))

    def rehearse(self, tree: Mapping[str, Any]) -> Verdict:
        self.rehearsed.append(set(tree.get("backends", {})))
        found = self.judge_tree(tree)
        return Verdict(code=ExitCode.REFUSED, message=found.message) if found.refused else found

    def have(self, tree: Mapping[str, Any]) -> bool:
        return not self.away and self.has is not None and merge.as_json(self.has) == merge.as_json(tree)

    def outdated(self, tree: Mapping[str, Any]) -> list[str]:
        return [] if self.away or self.have(tree) else ["fw"]

    def knows(self, tree: Mapping[str, Any]) -> None:
        """Nothing is told by digest here."""

    def without(self, names: Any, tree: Mapping[str, Any]) -> str:
        return self.public_away

    @property
    def public_away(self) -> str:
        return "the firewall takes no change now" if self.away else ""

    @property
    def servers(self) -> dict[str, dict[str, Any]] | None:
        """As status.json tells it."""
        if self.away:
            return None
        groups, found = self.live.get("nodes", {}), {}
        for name, one in self.live.get("backends", {}).items():
            group = groups[one["nodes"]] if "nodes" in one else {}
            members = {node: {"address": f"{host}:{one['port']}"} for node, host in group.items()}
            found[name] = members | one.get("servers", {})
        return found

    def ask(self) -> None:
        """The agent over there tries again by itself what it has refused."""
        self.asked += 1
        if self.has is not None and not self.away:
            self._code = self.judge_tree(self.has)
            self.live = self.has if self._code.live else self.live


class Reporter:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.thread = threading.Thread()
        self.told: dict[str, ServiceStatus | None] = {}

    def report(self, service: Service, what: ServiceStatus | None) -> None:
        self.told[service.name] = what

    def forget(self, uids: set[str]) -> None:
        """Nothing is kept."""

    def clear(self) -> None:
        """Likewise."""


class Api:
    """What the writer of finalizers asks of the API server: taken at once, and told as a watch would."""

    def __init__(self, sources: Sources) -> None:
        self.sources, self.conflicts, self.away, self.written = sources, 0, False, 0

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.written += 1
        name = path.split("/")[-2]
        if self.away:
            raise ApiError("it does not answer")
        if self.conflicts:
            self.conflicts -= 1
            raise ApiError("409", status=409)
        service = self.sources.services[name]
        assert body["metadata"]["uid"] == service.uid
        left = tuple(body["metadata"]["finalizers"])
        if service.deleted and not left:
            del self.sources.services[name]
        else:
            self.sources.services[name] = evolve(service, finalizers=left)
        return {}


class Election:
    """As a test says."""

    def __init__(self) -> None:
        self.leads, self.term = True, 1
        self.thread = threading.Thread()


class Sources:
    """A cluster that is what a test makes of it."""

    all = ()
    synced = True
    stalled = ()

    def fresh(self, _: float) -> bool:
        return True

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.slices: Callable[[], list[Slice]] = list
        self.nodes = {"n1": objects.node(node("n1", "192.0.2.101"))}

    def now(self) -> Snapshot:
        return Snapshot(
            services=list(self.services.values()), nodes=list(self.nodes.values()), slices=list(self.slices())
        )


class Bench:
    """A controller whose turns a test takes itself."""

    def __init__(self, judge: Callable[[set[str]], Verdict] = lambda _: LIVE) -> None:
        self.sources, self.firewalls, self.reporter, self.election = Sources(), Firewalls(judge), Reporter(), Election()
        self.api = Api(self.sources)
        self.terms = Config()
        self.fresh()

    def fresh(self) -> None:
        """As after a restart; what it wrote onto the Services is there, as a watch would tell."""
        for name, told in self.reporter.told.items():
            if name in self.sources.services:
                status = told.annotation if told else ""
                self.sources.services[name] = evolve(self.sources.services[name], status=status)
        self.controller = Controller(
            sources=self.sources,  # type: ignore[arg-type]
            terms=lambda: self.terms,
            firewalls=self.firewalls,  # type: ignore[arg-type]
            election=lambda _: self.election,  # type: ignore[arg-type,return-value]
            reporter=self.reporter,  # type: ignore[arg-type]
            finalizers=Finalizers(self.api),  # type: ignore[arg-type]
            end=threading.Event(),
        )

    def add(self, *names: str, **annotations: str) -> None:
        for name in names:
            port = 1_000 + len(self.sources.services)
            said = {"expose": f"x={port}", "bind": "192.0.2.1", "prefix": name} | annotations
            one = objects.service(service(name, {"x": port}, **said))
            self.sources.services[name] = evolve(one, uid=f"uid of {name}")

    def say(self, name: str, **annotations: str) -> None:
        one = self.sources.services[name]
        self.sources.services[name] = evolve(one, annotations={**one.annotations, **annotations})

    def turn(self) -> list[set[str]]:
        """What was handed over in it."""
        self.firewalls.handed.clear()
        self.firewalls.rehearsed.clear()
        self.controller._turn()
        return list(self.firewalls.handed)

    def later(self) -> None:
        """It is time to look again."""
        self.controller._at = 0.0

    def state(self, name: str) -> str:
        told = self.reporter.told.get(name)
        return told.state if told else ""

    @property
    def serves(self) -> set[str]:
        return {name.removesuffix("-x") for name in self.firewalls.live.get("backends", {})}


def refuses(*bad: str, code: ExitCode = ExitCode.REFUSED) -> Callable[[set[str]], Verdict]:
    return lambda names: Verdict(code=code, message="no") if names & {f"{one}-x" for one in bad} else LIVE


def test_nothing_new_is_nothing_pushed():
    bench = Bench()
    bench.add("a", "b")
    assert bench.turn() == [{"a-x", "b-x"}]
    assert bench.turn() == []
    bench.later()
    assert bench.turn() == []
    assert bench.firewalls.asked == 2  # when it began to lead, and now
    bench.fresh()
    assert bench.turn() == []
    assert bench.controller.in_step


@pytest.mark.parametrize("bad", [["s7"], ["s0", "s99"], ["s10", "s11", "s12", "s50"]])
def test_who_is_refused_is_found_by_halves_and_the_others_are_live(bad: list[str]):
    bench = Bench(refuses(*bad))
    names = [f"s{one}" for one in range(100)]
    bench.add(*names)
    handed = bench.turn()
    assert bench.serves == set(names) - set(bad)
    assert len(handed) == 2  # the rest is rehearsed
    assert len(bench.firewalls.rehearsed) <= 1 + len(bad) * 2 * 7  # of a hundred: seven halvings
    assert {name for name in names if bench.state(name) == "refused"} == set(bad)
    assert {name for name in names if bench.state(name) == "live"} == set(names) - set(bad)
    assert bench.firewalls.have(bench.firewalls.live), "what was refused does not stay in the desired file"
    assert bench.turn() == []


def test_a_service_that_was_live_and_is_refused_stays_as_it_was():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    before = bench.firewalls.live["frontends"]["a-x"]

    def judge(tree: Mapping[str, Any]) -> Verdict:
        moved = "192.0.2.9:1000" in tree["frontends"]["a-x"]["bind"]
        return Verdict(code=ExitCode.REFUSED, message="no") if moved else LIVE

    bench.firewalls.judge_tree = judge  # type: ignore[method-assign]
    bench.say("a", bind="192.0.2.9")
    bench.add("c")
    bench.turn()
    assert bench.serves == {"a", "b", "c"}
    assert bench.firewalls.live["frontends"]["a-x"] == before
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, told.good["bind"]) == ("refused", "192.0.2.1")
    assert told.message.endswith("what was live before goes on")
    # Nodes come meanwhile: it gets them; since it would be another document, it is tried once more.
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert len(bench.turn()) == 2
    assert bench.firewalls.live["nodes"]["workers"] == {"n1": "192.0.2.101", "n2": "192.0.2.102"}
    assert bench.firewalls.live["backends"]["a-x"]["nodes"] == "workers"
    # And after a restart it is as it was, again.
    bench.fresh()
    bench.turn()
    assert bench.firewalls.live["frontends"]["a-x"] == before
    assert (bench.serves, bench.state("a")) == ({"a", "b", "c"}, "refused")


def test_a_service_that_is_refused_for_its_servers_keeps_those_it_had_and_the_others_get_theirs():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Verdict:
        one = tree["backends"]["a-x"]
        nodes = set(tree["nodes"][one["nodes"]] if "nodes" in one else ()) | set(one.get("servers", ()))
        return Verdict(code=ExitCode.REFUSED, message="no") if "n2" in nodes else LIVE

    bench.firewalls.judge_tree = judge  # type: ignore[method-assign]
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.turn()
    assert bench.firewalls.live["backends"]["a-x"]["servers"] == {"n1": {"address": "192.0.2.101:31000"}}
    assert set(bench.firewalls.live["nodes"]["workers"]) == {"n1", "n2"}
    assert (bench.state("a"), bench.state("b")) == ("refused", "live")
    # And a node that drains does so where it serves.
    bench.sources.nodes["n2"] = evolve(bench.sources.nodes["n2"], cordoned=True)
    bench.turn()
    assert bench.firewalls.live["backends"]["b-x"]["servers"]["n2"]["weight"] == 0


def test_after_a_rollback_whoever_asked_for_something_new_is_held_until_it_asks_for_something_else():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.add("b", "c")
    bench.firewalls.judge = refuses("b", code=ExitCode.ROLLED_BACK)
    assert bench.turn() == [{"a-x", "b-x", "c-x"}, {"a-x"}]
    assert [bench.state(name) for name in "abc"] == ["live", "rolled_back", "rolled_back"]
    # Neither time nor nodes, nor another leader, are a reason to try again what hurt.
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert bench.turn() == [{"a-x"}]
    bench.later()
    assert bench.turn() == []
    bench.fresh()
    assert bench.turn() == []
    assert bench.state("b") == "rolled_back"
    bench.say("c", application="tls")
    bench.turn()
    assert bench.serves == {"a", "c"}


def test_nodes_that_hurt_one_service_are_not_taken_from_the_others_for_long():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.ROLLED_BACK, message="hurt")
        if len(tree.get("nodes", {}).get("workers", ())) > 1
        else LIVE
    )
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert len(bench.turn()) == 2
    assert (bench.serves, bench.state("a")) == ({"a"}, "rolled_back")
    assert bench.turn() == []


def test_a_held_service_is_tried_again_when_it_changes_or_has_waited_and_rehearsed_first():
    bench = Bench(refuses("b"))
    bench.add("a", "b")
    bench.turn()
    assert bench.turn() == []
    bench.firewalls.judge = refuses()
    assert bench.turn() == []
    bench.say("b", application="smtp")
    bench.turn()
    assert bench.serves == {"a", "b"}
    bench.firewalls.judge = refuses("c")
    bench.add("c")
    bench.turn()
    assert bench.state("c") == "refused"

    def waited() -> None:
        held = bench.controller._held["default", "c"]
        bench.controller._held["default", "c"] = evolve(held, until=time.monotonic() - 1)

    waited()
    assert bench.turn() == []
    assert bench.firewalls.rehearsed
    assert bench.state("c") == "refused"
    bench.firewalls.judge = refuses()
    waited()
    bench.turn()
    assert bench.state("c") == "live"


def test_a_firewall_that_is_not_reached_ends_the_search_and_is_tried_again_later():
    bench = Bench(lambda _: Verdict(code=ExitCode.SSH, message="nobody listens there"))
    bench.add("a", "b")
    assert len(bench.turn()) == 1
    assert [bench.state(name) for name in "ab"] == ["waiting", "waiting"]
    bench.later()
    assert len(bench.turn()) == 1
    answers = iter([Verdict(code=ExitCode.REFUSED), Verdict(code=ExitCode.SSH)])
    bench.firewalls.judge = lambda _: next(answers)
    bench.later()
    bench.turn()
    assert bench.serves == set()
    assert len(bench.firewalls.rehearsed) == 1  # refused as a whole, then cut off: no further halves
    bench.firewalls.judge = refuses("b")
    bench.later()
    bench.turn()
    assert bench.serves == {"a"}


def test_a_lease_that_is_lost_on_the_way_ends_the_pushing():
    bench = Bench()
    bench.add("a", "b")

    def judge(names: set[str]) -> Verdict:
        bench.election.leads = False
        return Verdict(code=ExitCode.REFUSED, message="no")

    bench.firewalls.judge = judge
    assert len(bench.turn()) == 1
    assert bench.firewalls.rehearsed == []


def test_a_lease_that_was_lost_and_had_again_is_a_new_beginning():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.election.term += 1
    bench.firewalls.has = bench.firewalls.live = {"version": 1}  # whoever led in between
    bench.turn()
    assert (bench.firewalls.asked, bench.serves) == (2, {"a"})


def test_mistakes_do_not_survive_their_service():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()
    assert (bench.serves, bench.state("a"), bench.state("b")) == ({"a", "b"}, "mistake", "live")
    bench.fresh()
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "mistake")
    del bench.sources.services["a"]
    bench.turn()
    assert bench.serves == {"b"}


def test_what_is_no_desired_state_is_not_pushed_and_told():
    bench = Bench()
    bench.add("a")
    bench.turn()
    for number in range(500):
        bench.sources.nodes[f"n{number}"] = objects.node(
            node(f"n{number}", f"192.0.{number // 250}.{number % 250 + 1}")
        )
    bench.add(*(f"s{number}" for number in range(201)))
    assert bench.turn() == []
    told = bench.reporter.told["s7"]
    assert told is not None
    assert (told.state, "servers in all" in told.message) == ("waiting", True)
    assert bench.serves == {"a"}
    assert not bench.controller.in_step


def test_what_was_live_goes_on_whatever_makes_it_a_mistake_now():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    before = bench.firewalls.live["frontends"]["a-x"]
    one = bench.sources.services["a"]
    bench.sources.services["a"] = evolve(one, ports=tuple(evolve(port, node=None) for port in one.ports))
    bench.turn()
    assert bench.serves == {"a", "b"}
    assert bench.firewalls.live["frontends"]["a-x"] == before
    assert bench.state("a") == "mistake"
    # And nobody takes its address for it.
    bench.say("b", expose="x=1000")
    bench.turn()
    assert bench.state("b") == "mistake"
    assert bench.firewalls.live["frontends"]["a-x"] == before


def test_an_address_that_one_service_gives_up_is_anothers_with_the_next_turn():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="x=9")
    bench.say("b", expose="x=1000")
    bench.turn()
    assert bench.controller._dirty.is_set()
    bench.turn()
    assert bench.firewalls.live["frontends"]["b-x"]["bind"] == ["192.0.2.1:1000"]
    assert (bench.state("a"), bench.state("b")) == ("live", "live")


def test_a_held_service_keeps_its_name_from_those_that_would_have_it():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    before = bench.firewalls.live["backends"]["a-x"]
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.REFUSED, message="no") if "moved-x" in tree["backends"] else LIVE
    )
    bench.say("a", prefix="moved")
    bench.turn()
    bench.say("b", prefix="a")
    bench.turn()
    assert bench.firewalls.live["backends"]["a-x"] == before
    assert (bench.serves, bench.state("a"), bench.state("b")) == ({"a", "b"}, "refused", "mistake")


def test_a_forged_status_displaces_nobody():
    bench = Bench()
    bench.add("mail", bind="192.0.2.1", expose="x=25", prefix="smtp")
    bench.turn()
    bench.add("forged", bind="192.0.2.1", expose="x=25", prefix="smtp")
    bench.fresh()
    forged = bench.sources.services["forged"]
    good = ServiceStatus(state="live", good=dict(forged.annotations), uid=forged.uid).annotation
    bench.sources.services["forged"] = evolve(forged, status=good, created="2001-01-01T00:00:00Z")
    assert bench.turn() == []
    assert (bench.state("mail"), bench.state("forged")) == ("live", "mistake")


def test_where_no_firewall_tells_nothing_is_pushed_and_it_is_asked_again():
    bench = Bench()
    bench.add("a")
    bench.firewalls.away = "fw: nobody listens there"
    assert bench.turn() == []
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, "nobody listens there" not in told.message) == ("waiting", True)
    bench.add("b")
    bench.turn()
    assert bench.firewalls.asked == 1  # an event is no reason to ask again at once
    bench.firewalls.away = ""
    bench.controller._begin_at = 0.0
    assert bench.turn() == [{"a-x", "b-x"}]


def test_an_empty_cluster_is_not_pushed():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.sources.services.clear()
    assert bench.turn() == []
    assert bench.serves == {"a"}


def names_parts(*bad: str) -> Callable[[set[str]], Verdict]:
    """An agent that says of which servers it refuses a document."""

    def judge(names: set[str]) -> Verdict:
        wrong = sorted(names & {f"{name}-x" for name in bad})
        parts = tuple(RefusalStatus(kind="server", name=name, server="n1", reason=f"{name} is mute") for name in wrong)
        return Verdict(code=ExitCode.REFUSED, message="root@fw: no", parts=parts) if parts else LIVE

    return judge


def test_twelve_refused_services_are_named_and_cost_one_more_push():
    bad = [f"bad{number}" for number in range(12)]
    bench = Bench(names_parts(*bad))
    bench.add("a", *bad)
    assert len(bench.turn()) == 2
    assert (bench.serves, bench.firewalls.rehearsed) == ({"a"}, [])
    told = bench.reporter.told["bad3"]
    assert told is not None
    assert (told.state, told.message) == ("refused", "bad3-x is mute")  # of itself, and of no firewall
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert (len(bench.turn()), bench.firewalls.rehearsed) == (2, [])


def test_what_is_refused_is_tried_again_after_seconds_and_then_less_and_less_often(monkeypatch: pytest.MonkeyPatch):
    now = [1_000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bench = Bench(names_parts("b"))
    bench.add("a", "b")
    bench.controller.look(heard=True)
    tries = []
    for _ in range(1_200):
        now[0] += 1
        bench.firewalls.rehearsed.clear()
        bench.controller.look(heard=False)
        if {"a-x", "b-x"} in bench.firewalls.rehearsed:
            tries.append(now[0] - 1_000)
    waits = [later - earlier for earlier, later in zip([0.0, *tries], tries, strict=False)]
    assert waits[0] <= 6
    assert waits[-1] <= 301
    assert 5 <= len(tries) <= 16
    bench.firewalls.judge = lambda _: LIVE
    now[0] += 301
    bench.controller.look(heard=False)
    assert (bench.serves, bench.state("b")) == ({"a", "b"}, "live")


def test_a_pod_that_is_back_elsewhere_is_tried_at_once():
    """A Local Service between two pods: what was refused is a backend without a server, not the Service."""
    bench = Bench()
    bench.add("a")
    bench.sources.services["a"] = evolve(bench.sources.services["a"], local=True)
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    at = {"n1": "10.0.0.1"}
    bench.sources.slices = lambda: [
        objects.endpoint_slice(endpoints("a", *((ip, where, True) for where, ip in at.items()), x=8080))
    ]
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Verdict:
        return Verdict(code=ExitCode.REFUSED, message="no") if "nobody" in str(tree["backends"]["a-x"]) else LIVE

    bench.firewalls.judge_tree = judge  # type: ignore[method-assign]
    at.clear()
    bench.turn()
    assert (bench.state("a"), list(bench.firewalls.live["backends"]["a-x"]["servers"])) == ("refused", ["n1"])
    assert bench.turn() == []
    at["n2"] = "10.0.0.2"
    assert len(bench.turn()) == 1
    assert (bench.state("a"), list(bench.firewalls.live["backends"]["a-x"]["servers"])) == ("live", ["n2"])


def test_a_service_that_comes_before_its_endpoints_waits_for_them_and_is_never_degraded():
    bench = Bench()
    bench.add("a", "b")
    bench.sources.services["a"] = evolve(bench.sources.services["a"], local=True)
    at: dict[str, str] = {}
    bench.sources.slices = lambda: [
        objects.endpoint_slice(endpoints("a", *((ip, where, True) for where, ip in at.items()), x=8080))
    ]
    assert bench.turn() == [{"b-x"}]
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, told.message) == ("waiting", "no node that takes traffic holds an endpoint of it")
    at["n1"] = "10.0.0.1"
    assert bench.turn() == [{"a-x", "b-x"}]
    assert bench.state("a") == "live"
    at.clear()  # what is live stays, with nobody behind it
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "degraded")


def deleted(bench: Bench, *names: str) -> None:
    for name in names:
        bench.sources.services[name] = evolve(bench.sources.services[name], deleted=True)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("base", [{}, {"frontends": {"own": {"bind": ["192.0.2.9:443"], "backend": "own"}}}])
def test_the_last_service_that_is_deleted_is_let_go(base: dict[str, Any], restart: bool):  # noqa: FBT001
    """It served for ever: nothing was pushed without a frontend, and another Service may be given its NodePort."""
    if base:
        base = {**base, "backends": {"own": {"servers": {"a": {"address": "192.0.2.200:443"}}}}}
    bench = Bench()
    bench.terms = Config(base=merge.Base(tree={"version": 1, **base}))
    bench.fresh()
    bench.add("a")
    bench.turn()
    assert (bench.serves - {"own"}, bench.sources.services["a"].finalizers) == ({"a"}, (FINALIZER,))
    bench.turn()
    deleted(bench, "a")
    if restart:
        bench.fresh()
    (handed,) = bench.turn()
    assert handed == ({"own"} if base else set())
    assert bench.firewalls.live.get("allow_empty", False) is not bool(base)
    assert not bench.sources.services, "its finalizer is gone"
    assert bench.turn() == []
    bench.fresh()
    assert bench.turn() == []


def test_a_deleted_service_stays_until_no_firewall_serves_it():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.firewalls.away = "it is off"
    deleted(bench, "a")
    bench.turn()
    assert "a" in bench.sources.services
    told = bench.reporter.told["a"]
    assert told is not None
    assert "it is deleted once no firewall serves it any more: the firewall takes no change now" in told.message
    bench.firewalls.away = ""
    bench.later()
    bench.turn()
    assert (bench.serves, set(bench.sources.services)) == ({"b"}, {"b"})


def test_a_finalizer_that_came_too_late_is_written_soon(monkeypatch: pytest.MonkeyPatch):
    """Whoever changed the Service meanwhile; its deletion would look like a loss."""
    now = [1_000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bench = Bench()
    bench.add("a")
    bench.api.conflicts = 2  # before the push, and after it
    bench.turn()
    assert (bench.serves, bench.sources.services["a"].finalizers) == ({"a"}, ())
    now[0] += 2
    bench.controller.look(heard=False)
    assert bench.sources.services["a"].finalizers == (FINALIZER,)


def with_own_frontend() -> Config:
    backends = {"own": {"servers": {"a": {"address": "192.0.2.200:443"}}}}
    frontends = {"own": {"bind": ["192.0.2.9:443"], "backend": "own"}}
    return Config(base=merge.Base(tree={"version": 1, "frontends": frontends, "backends": backends}))


@pytest.mark.parametrize("restart", [False, True])
def test_services_that_vanish_are_not_believed_beside_a_base_also_after_a_restart(restart: bool):  # noqa: FBT001
    """A mistyped --namespace always comes with a restart."""
    bench = Bench()
    bench.terms = with_own_frontend()
    bench.fresh()
    bench.add("a", "b")
    bench.turn()
    bench.sources.services.clear()
    if restart:
        bench.fresh()
    assert bench.turn() == []
    assert bench.serves == {"a", "b", "own"}


def test_one_that_is_deleted_takes_nobody_with_it_who_has_vanished_after_a_restart():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    deleted(bench, "a")
    del bench.sources.services["b"]
    bench.fresh()
    assert bench.turn() == []
    assert bench.serves == {"a", "b"}


def balanced_service(name: str, port: int) -> Service:
    return evolve(objects.service(balanced(name, {name: port})), uid=f"uid of {name}")


def test_the_only_service_leaves_its_class_as_documented():
    bench = Bench()
    bench.terms = Config(bind=("192.0.2.1",))
    bench.fresh()
    bench.sources.services["lb"] = balanced_service("lb", 25)
    bench.turn()
    assert bench.serves == {"lb"}
    bench.sources.services["lb"] = evolve(
        bench.sources.services["lb"], balanced=False, kind="NodePort", status=bench.reporter.told["lb"].annotation
    )
    assert bench.turn() == [set()]
    assert bench.sources.services["lb"].finalizers == ()


def test_a_service_of_our_class_that_hurts_is_the_one_that_is_held():
    """What it asks for is its ports; by annotations alone another one was to blame, for ever."""
    bench = Bench()
    bench.terms = Config(bind=("192.0.2.1",))
    bench.fresh()
    bench.add("inno")
    bench.sources.services["lb"] = balanced_service("lb", 1_025)
    bench.turn()
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Verdict:
        hurts = "192.0.2.1:1026" in tree["frontends"]["lb"]["bind"]
        return Verdict(code=ExitCode.ROLLED_BACK, message="fw: hurt", reason="hurt") if hurts else LIVE

    bench.firewalls.judge_tree = judge  # type: ignore[method-assign]
    moved = balanced_service("lb", 1_026)
    bench.sources.services["lb"] = evolve(moved, finalizers=(FINALIZER,))
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert len(bench.turn()) == 2  # one rollback
    assert (bench.state("lb"), bench.state("inno")) == ("rolled_back", "live")
    assert bench.controller._held["default", "lb"].until == math.inf


def test_a_held_service_that_is_due_while_nothing_can_be_pushed_is_no_hot_loop(monkeypatch: pytest.MonkeyPatch):
    now = [1_000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bench = Bench(names_parts("b"))
    bench.terms = Config(max_bytes=600)
    bench.fresh()
    bench.add("a", "b")
    bench.turn()
    assert bench.state("b") == "refused"
    bench.add("c", "d", "e", "f")  # more than the document may have
    now[0] += 400
    asked = bench.firewalls.asked
    for _ in range(20):
        bench.controller.look(heard=False)
    assert bench.firewalls.asked <= asked + 1


def test_a_finalizer_is_written_once_for_a_version():
    """The watch tells of it later; each new Service was a 409, and a round of ssh."""
    bench = Bench()
    bench.add("a", "b")
    stale = dict(bench.sources.services)
    bench.api.sources = Sources()
    bench.api.sources.services = stale  # written there, and not told of here yet
    bench.turn()
    assert bench.api.written == 2
    bench.turn()
    assert bench.api.written == 2


def test_an_api_server_that_does_not_answer_is_asked_once():
    bench = Bench()
    bench.add("a", "b", "c")
    bench.api.away = True
    bench.turn()
    assert (bench.api.written, bench.serves) == (2, {"a", "b", "c"})  # before the push, and after it


def test_one_that_is_deleted_does_not_speak_for_one_that_has_vanished():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    deleted(bench, "a")
    del bench.sources.services["b"]
    assert bench.turn() == []
    assert bench.serves == {"a", "b"}


def test_a_service_that_asks_no_more_has_its_finalizer_taken_off():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.sources.services["a"] = evolve(bench.sources.services["a"], annotations={})
    bench.turn()
    assert (bench.serves, bench.sources.services["a"].finalizers) == ({"b"}, ())


def test_what_a_refused_service_serves_and_nobody_can_write_down_is_not_taken_away():
    """A restart, after its NodePort was changed: nothing on the firewall tells that it is the same Service."""
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    one = bench.sources.services["a"]
    bench.sources.services["a"] = evolve(one, ports=tuple(evolve(port, node=32_000) for port in one.ports))
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.REFUSED, message="no") if tree["backends"].get("a-x", {}).get("port") == 32_000 else LIVE
    )
    bench.fresh()
    bench.turn()
    assert bench.serves == {"a", "b"}


# --- what was found by looking for what takes a frontend away


def test_it_is_asked_again_in_time_although_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    now = [1_000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bench = Bench()
    bench.add("a")

    def idle(seconds: float) -> int:
        """So long nothing is heard; how often the firewalls were asked."""
        before, end = bench.firewalls.asked, now[0] + seconds
        while now[0] < end:
            now[0] += 20
            bench.controller.look(heard=False)
        return bench.firewalls.asked - before

    bench.controller.look(heard=True)
    assert 2 <= idle(1_300) <= 3
    bench.firewalls.has = bench.firewalls.live = {"version": 1}  # somebody has synced something else
    idle(620)
    assert bench.serves == {"a"}
    bench.firewalls.judge = refuses("b")
    bench.add("b")
    bench.controller.look(heard=True)
    bench.firewalls.judge = refuses()
    idle(360)
    assert bench.serves == {"a", "b"}
    bench.firewalls.away = "fw: gone"
    assert idle(200) == 0  # nothing new, nothing to ask
    idle(400)
    bench.add("c")
    bench.controller.look(heard=True)
    assert bench.state("c") == "waiting"
    bench.firewalls.away = ""
    idle(80)
    assert bench.serves == {"a", "b", "c"}


def test_a_search_is_not_repeated_while_nothing_has_changed():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.firewalls.judge = lambda _: Verdict(code=ExitCode.REFUSED, message="the base")
    bench.terms = Config(bind=("192.0.2.77",))
    bench.add("c")
    bench.turn()
    for _ in range(3):
        assert bench.turn() == []
        assert bench.firewalls.rehearsed == []
    assert bench.serves == {"a", "b"}
    assert bench.controller._held == {}  # nobody is to blame for the base


def test_a_firewall_that_is_away_at_the_beginning_costs_no_memory():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()
    bench.fresh()
    bench.firewalls.away = "fw: gone"
    bench.turn()
    bench.fresh()
    bench.firewalls.away = ""
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "mistake")


def test_a_service_whose_ports_are_wrong_goes_on_over_a_restart():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    before = bench.firewalls.live["frontends"]["a-x"]
    one = bench.sources.services["a"]
    bench.sources.services["a"] = evolve(one, ports=())
    bench.turn()
    bench.fresh()
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.turn()
    bench.fresh()
    bench.turn()
    assert (bench.serves, bench.state("a")) == ({"a", "b"}, "mistake")
    assert bench.firewalls.live["frontends"]["a-x"] == before
    assert set(bench.firewalls.live["nodes"]["workers"]) == {"n1", "n2"}


def test_who_waits_for_a_name_does_not_get_it_by_a_restart_after_all_servers_have_changed():
    bench = Bench()
    bench.add("web")
    bench.turn()
    bench.add("old", prefix="web")
    bench.sources.services["old"] = evolve(bench.sources.services["old"], created="2001-01-01T00:00:00Z")
    bench.turn()
    bench.sources.nodes = {"n9": objects.node(node("n9", "192.0.2.109"))}
    bench.fresh()
    bench.turn()
    assert (bench.state("web"), bench.state("old")) == ("live", "mistake")
    assert bench.firewalls.live["frontends"]["web-x"]["bind"] == ["192.0.2.1:1000"]


def test_a_base_that_contradicts_what_is_live_takes_nothing_away():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    base = b'version: 1\nfrontends: {a-x: {bind: ["192.0.2.9:1000"]}}\n'
    bench.terms = Config(base=merge.base(base, "base.yaml", watched=True))
    assert bench.turn() == []
    assert bench.serves == {"a", "b"}
    told = bench.reporter.told["a"]
    assert told is not None
    assert (told.state, "base.yaml:2" in told.message) == ("mistake", True)
    # Unless it says whose the name is.
    bench.terms = Config(base=merge.base(b"version: 1\nowners: {a-x: default/other}\n", "base.yaml", watched=True))
    bench.turn()
    assert bench.serves == {"b"}


def test_a_base_that_hurts_is_put_aside_and_blames_nobody():
    bench = Bench()
    bench.add("a")
    bench.turn()
    hurts = Config(base=merge.base(b"version: 1\ndefaults: {maxconn: 1}\n", "base.yaml", watched=True))
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.ROLLED_BACK, message="hurt") if "defaults" in tree else LIVE
    )
    bench.terms = hurts
    bench.add("b")
    bench.turn()
    assert bench.serves == {"a", "b"}
    assert "defaults" not in bench.firewalls.live
    bench.add("c")
    assert bench.turn() == [{"a-x", "b-x", "c-x"}]


def test_all_services_that_vanish_at_once_are_not_believed_beside_a_base():
    bench = Bench()
    base = b"""version: 1
frontends: {z: {bind: ["192.0.2.1:1"], backend: z}}
backends: {z: {servers: {z: {address: "192.0.2.5:1"}}}}
"""
    bench.terms = Config(base=merge.base(base, "base.yaml", watched=True))
    bench.add("a")
    bench.turn()
    gone = dict(bench.sources.services)
    bench.sources.services.clear()
    assert bench.turn() == []
    bench.sources.services.update(gone)
    bench.sources.nodes.clear()
    assert bench.turn() == []
    assert bench.firewalls.live["nodes"] == {"workers": {"n1": "192.0.2.101"}}


def test_a_new_service_of_an_old_name_that_is_refused_stops_nobody():
    bench = Bench()
    bench.add("v1", prefix="same")
    bench.add("o")
    bench.turn()
    del bench.sources.services["v1"]
    bench.add("v2", prefix="same", expose="x=1500")
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.REFUSED, message="no")
        if tree["frontends"].get("same-x", {}).get("bind") == ["192.0.2.1:1500"]
        else LIVE
    )
    bench.turn()
    assert bench.state("v2") == "refused"
    bench.add("n", expose="x=1600")
    bench.turn()
    assert bench.serves == {"o", "n"}


def test_a_mistaken_service_that_is_refused_as_it_was_stops_nobody():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()

    def judge(tree: Mapping[str, Any]) -> Verdict:
        one = tree["backends"]["a-x"]
        nodes = set(tree["nodes"][one["nodes"]] if "nodes" in one else ()) | set(one.get("servers", ()))
        return Verdict(code=ExitCode.REFUSED, message="no") if "n2" in nodes else LIVE

    bench.firewalls.judge_tree = judge  # type: ignore[method-assign]
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.turn()
    assert set(bench.firewalls.live["nodes"]["workers"]) == {"n1", "n2"}
    assert list(bench.firewalls.live["backends"]["a-x"]["servers"]) == ["n1"]
    assert bench.turn() == []


def test_a_firewall_that_is_away_is_asked_although_others_are_pushed_to(monkeypatch: pytest.MonkeyPatch):
    now = [1_000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bench = Bench()
    bench.add("a")
    bench.controller.look(heard=True)
    partly = Verdict(code=ExitCode.LIVE, away="two: gone")
    bench.firewalls.judge = lambda _: partly
    before = bench.firewalls.asked
    for number in range(40):
        now[0] += 5
        bench.sources.nodes["n1"] = objects.node(node("n1", f"192.0.2.{number}"))
        bench.controller.look(heard=True)
    assert bench.firewalls.asked - before >= 3


def test_it_waits_while_it_may_lead_and_cannot():
    bench = Bench()
    for synced in (False, True):
        bench.sources.synced = synced
        bench.sources.fresh = lambda _: False  # type: ignore[method-assign]
        begin, turns = time.monotonic(), 0
        while time.monotonic() - begin < 0.3:
            threading.Timer(0.3, bench.controller.wake).start()
            bench.controller.look(heard=bench.controller._wait())
            turns += 1
        assert turns < 10


def test_a_base_that_hurts_alone_is_put_aside_and_what_hurt_before_stays_held():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.firewalls.judge = refuses("b", code=ExitCode.ROLLED_BACK)
    bench.add("b")
    bench.turn()
    bench.terms = Config(base=merge.base(b"version: 1\nname: harmless\n", "base.yaml", watched=True))
    assert bench.turn() == [{"a-x"}]
    assert (bench.firewalls.live["name"], bench.state("b")) == ("harmless", "rolled_back")
    good = bench.firewalls.judge_tree
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.ROLLED_BACK, message="hurt") if tree["name"] == "hurts" else good(tree)
    )
    bench.terms = Config(base=merge.base(b"version: 1\nname: hurts\n", "base.yaml", watched=True))
    assert bench.turn() == [{"a-x"}, {"a-x"}]
    assert bench.firewalls.live["name"] == "harmless"
    assert not bench.controller.in_step
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert bench.turn() == [{"a-x"}]


def test_what_hurts_after_a_restart_blames_nobody_and_is_not_pushed_again_for_nodes():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.fresh()
    bench.firewalls.judge = lambda _: Verdict(code=ExitCode.ROLLED_BACK, message="hurt")
    bench.add("b")
    assert len(bench.turn()) == 1
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    assert bench.turn() == []
    bench.firewalls.judge = refuses()
    bench.say("b", application="tls")
    bench.turn()
    assert bench.serves == {"a", "b"}


def test_nodes_that_hurt_are_not_tried_at_once_by_the_next_leader():
    bench = Bench()
    bench.add("a")
    bench.turn()
    bench.firewalls.judge_tree = lambda tree: (  # type: ignore[method-assign]
        Verdict(code=ExitCode.ROLLED_BACK, message="hurt")
        if len(tree.get("nodes", {}).get("workers", ())) > 1
        else LIVE
    )
    bench.sources.nodes["n2"] = objects.node(node("n2", "192.0.2.102"))
    bench.turn()
    bench.fresh()
    assert bench.turn() == []
    assert bench.state("a") == "rolled_back"


def test_nonsense_in_a_status_stops_nobody():
    bench = Bench()
    bench.add("a", "b")
    bench.turn()
    bench.say("a", expose="nothing")
    bench.turn()
    bench.fresh()
    one = bench.sources.services["a"]
    live = {
        "frontends": {"a-x": {"backend": "a-x", "bind": ["192.0.2.1:1000"]}},
        "backends": {"a-x": {"application": "?"}},
    }
    bench.sources.services["a"] = evolve(one, status=ServiceStatus(state="live", live=live, uid=one.uid).annotation)
    bench.add("c")
    bench.turn()
    assert {"b", "c"} <= bench.serves
