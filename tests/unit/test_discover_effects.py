"""The controller's hands: watching, pushing, reporting; each against something that a test plays."""

from __future__ import annotations

import json
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, fields
from kit.agents import Agent, Judgement, install
from kit.edge import until

from agent.discover import conditions, objects
from agent.discover.api import ApiError
from agent.discover.backoff import Backoff
from agent.discover.conditions import ServiceStatus, State
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewalls
from agent.discover.informer import Informer
from agent.discover.objects import FINALIZER, Node, Service
from agent.discover.reporter import Reporter
from agent.errors import ExitCode
from agent.remote import push
from agent.remote.answer import Answer
from agent.view.status import DesiredStatus, LiveStatus, Status

# --- watching -----------------------------------------------------------------------------------------------------


class Script:
    """An API server: `lists` and `watches` are what it answers next; an exception is raised."""

    def __init__(self, lists: list[Any], watches: list[Any]) -> None:
        self.lists, self.watches = iter(lists), iter(watches)
        self.asked: list[str] = []
        self.over = threading.Event()

    def get(self, path: str, **query: str) -> dict[str, Any]:
        self.asked.append(f"list {path} {query.get('continue', '')}".strip())
        return dict(self._next(self.lists))

    def watch(self, path: str, *, read_seconds: float, **query: str) -> Any:
        self.asked.append(f"watch {path} {query['resourceVersion']}")
        return self._events(self._next(self.watches))

    def _next(self, found: Iterator[Any]) -> Any:
        one = next(found, None)
        if one is None:
            self.over.wait(10)
            raise ApiError("over")
        if isinstance(one, Exception):
            raise one
        return one

    def _events(self, found: list[Any]) -> Any:
        class Events:
            def __iter__(self) -> Iterator[Any]:
                for one in found:
                    if isinstance(one, Exception):
                        raise one
                    yield one

        return Events()


def a_list(*names: str, version: str = "7", more: str = "") -> dict[str, Any]:
    items = [{"metadata": {"name": name, "resourceVersion": version}} for name in names]
    meta = {"resourceVersion": version} | ({"continue": more} if more else {})
    return {"kind": "NodeList", "metadata": meta, "items": items}


def event(word: str, name: str, version: str, **status: Any) -> dict[str, Any]:
    return {"type": word, "object": {"metadata": {"name": name, "resourceVersion": version}, "status": status}}


@pytest.fixture
def watching() -> Iterator[Callable[[Script], Informer[Node]]]:
    end, started = threading.Event(), []

    def start(script: Script) -> Informer[Node]:
        one = Informer[Node](script, "/nodes", objects.node, changed=lambda: None, end=end)  # type: ignore[arg-type]
        one.thread.start()
        started.append((one, script))
        return one

    yield start
    end.set()
    for one, script in started:
        script.over.set()
        one.thread.join(5)
        assert not one.thread.is_alive()


def names(informer: Informer[Node]) -> list[str]:
    return sorted(found.name for found in informer.objects())


def test_pages_are_read_and_events_followed_from_there(watching):
    script = Script(
        [a_list("a", more="p2"), a_list("b", version="9")],
        [[event("ADDED", "c", "10"), event("DELETED", "a", "11"), event("BOOKMARK", "", "20")]],
    )
    one = watching(script)
    until(lambda: len(script.asked) == 4, "watched again")
    assert script.asked == ["list /nodes", "list /nodes p2", "watch /nodes 9", "watch /nodes 20"]
    assert names(one) == ["b", "c"]


def test_what_is_no_list_empties_nothing(watching):
    for wrong in ({}, {"status": "ok"}, {"kind": "Status", "items": []}, {"kind": "NodeList", "items": None},
                  {"kind": "NodeList", "items": [], "metadata": {}}):  # fmt: skip
        gone = [{"type": "ERROR", "object": {"code": 410, "message": "too old"}}]
        script = Script([a_list("a"), wrong, a_list("b")], [gone])
        one = watching(script)
        until(lambda one=one: one.error, "it is said")
        assert "no list" in one.error or "too old" in one.error
        assert names(one) in (["a"], ["b"])
        until(lambda one=one: names(one) == ["b"], "listed anew")


def test_whoever_says_no_at_once_is_not_asked_at_once(watching):
    """A watch that ends as it begins, a history that is gone each time, a list that is refused: none is a hot loop."""
    gone = [{"type": "ERROR", "object": {"code": 410}}]
    for script in (
        Script([a_list("a")], [[] for _ in range(1000)]),
        Script([a_list("a") for _ in range(1000)], [gone for _ in range(1000)]),
        Script([ApiError("403", status=403) for _ in range(1000)], []),
    ):
        watching(script)
        time.sleep(0.4)  # that nothing happens has no event
        assert len(script.asked) < 12, script.asked


def test_objects_that_are_none_are_left_out(watching):
    listed = a_list("a")
    listed["items"] += [4, None, {"metadata": 5}, {"metadata": {"name": "bad\nname"}, "spec": {"taints": 7}}]
    events = [{"type": "ADDED", "object": {"metadata": []}}, event("ADDED", "c", "8")]
    one = watching(Script([listed], [events]))
    until(lambda: "c" in names(one), "the rest is read")
    assert "a" in names(one)


def test_the_waits_grow_to_a_limit_and_differ():
    backoff = Backoff(first=1.0, most=8.0)
    waits = [backoff.next() for _ in range(8)]
    limits = [1, 2, 4, 8, 8, 8, 8, 8]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next() <= 1


# --- pushing ------------------------------------------------------------------------------------------------------


TREE = {"version": 1, "frontends": {"a": {"owner": "x/a/1"}}, "backends": {"a": {"owner": "x/a/1"}}}


class Site:
    """Agents `one` and `two`, and what the controller knows of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.one, self.two = Agent(), Agent()
        install(monkeypatch, {"one": self.one, "two": self.two})
        self.firewalls = Firewalls([push.target("one"), push.target("two")], seconds=1, sign=None)
        self.firewalls.refresh()

    def pushed(self, tree: dict[str, Any]) -> tuple[int, int]:
        """To how many."""
        before = len(self.one.handed), len(self.two.handed)
        self.firewalls.push_all(tree)
        return len(self.one.handed) - before[0], len(self.two.handed) - before[1]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_the_agents_played_here_answer_in_the_shapes_of_the_real_ones(site: Site):
    """status.json and the answer of a sync; tests/cluster has real agents."""
    site.one.synced(TREE)
    status = site.one.status()
    assert isinstance(status, dict)
    assert status.keys() <= {field.name for field in fields(Status)}
    for key, kind in (("desired", DesiredStatus), ("live", LiveStatus)):
        assert status[key].keys() <= {field.name for field in fields(kind)}
    payload = push.Payload(data=json.dumps(TREE).encode(), signature=b"", arguments=(), seconds=1)
    answer = site.one.sync(push.target("one"), payload, ()).answer
    assert answer is not None
    assert answer.keys() <= Answer(word="committed", exit_code=ExitCode.LIVE).document().keys()


def test_one_that_is_away_does_not_stop_the_others_and_gets_it_when_it_is_back(site: Site):
    site.two.away = "gone"
    assert site.pushed(TREE) == (1, 1)
    result = site.firewalls.result
    assert (result.live, result.complete, result.away) == (True, False, "two: gone")
    fragment = site.firewalls.live()["x/a/1"]
    assert site.firewalls.lacking("x/a/1", fragment) == "1 of 2 firewalls takes no change now"
    assert site.firewalls.outdated(TREE) == []  # who is away is asked first
    site.two.away = ""
    site.firewalls.refresh()
    assert site.pushed(TREE) == (0, 1)  # who has it is left alone
    assert site.firewalls.result.complete
    assert site.two.live == site.one.live == TREE


def test_one_that_refuses_is_heard_although_another_is_away(site: Site):
    site.one.away = "gone"
    site.two.judge = lambda _: Judgement(code=ExitCode.REFUSED, message="said")
    result = site.firewalls.push_all(TREE)
    assert (result.rejected, result.message, result.away) == (True, "two: said", "one: gone")
    site.two.away = "gone"
    result = site.firewalls.push_all({**TREE, "name": "x"})
    assert (result.rejected, result.live) == (False, False)


def test_what_a_person_holds_is_not_pushed_to(site: Site):
    site.firewalls.push_all(TREE)
    site.one.synced({"version": 1, "serial": 3})
    site.one.desired, site.one.held = json.dumps(TREE).encode(), "generation 3 was put back by hand"
    site.firewalls.refresh()
    assert site.pushed({**TREE, "name": "x"}) == (0, 1)
    assert "was put back by hand" in site.firewalls.result.away
    assert site.firewalls.outdated(TREE) == [site.firewalls.all[1]]
    assert site.firewalls.lacking("x/a/1", site.firewalls.live()["x/a/1"]) == "1 of 2 firewalls takes no change now"


def test_a_serial_is_higher_than_any_that_is_known(site: Site):
    far = 2**40
    site.one.synced({"version": 1, "serial": far})
    site.two.synced({"version": 1, "serial": 4})
    site.firewalls.refresh()
    site.firewalls.push_all(TREE)
    assert {json.loads(agent.document)["serial"] for agent in (site.one, site.two)} == {far + 1}


@pytest.mark.parametrize(
    "odd",
    [
        {"desired": [1]}, {"desired": {"serial": "x"}}, {"held": 7}, {"live": "x"}, {"exit_code": "0"},
        {"frontends": 3}, {"outcome": []}, {"backends": [4]},
    ],
)  # fmt: skip
def test_another_versions_status_ends_nothing(site: Site, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]):
    site.firewalls.push_all(TREE)
    good = site.one.status()
    assert isinstance(good, dict)
    monkeypatch.setattr(site.one, "status", lambda: {**good, **odd})
    site.firewalls.refresh()
    site.firewalls.push_all({**TREE, "name": "x"})
    assert "x/a/1" in site.firewalls.live()


def test_nothing_is_pushed_on_top_of_what_is_not_known(site: Site):
    """Another controller, or a person, was there in between."""
    site.firewalls.push_all(TREE)
    site.one.synced({"version": 1, "name": "theirs"})
    result = site.firewalls.push_all({**TREE, "name": "x"})
    assert site.one.live == {"version": 1, "name": "theirs"}
    assert (result.live, "another document is live" in result.away) == (True, True)
    assert site.firewalls.outdated(TREE) == [site.firewalls.all[1]]
    site.firewalls.refresh()
    assert site.pushed({**TREE, "name": "x"}) == (1, 0)


def test_a_document_that_changes_while_it_is_read_is_read_again(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.one.synced(TREE)
    monkeypatch.setattr(site.one, "show", lambda: b"version: 1")
    site.firewalls.refresh()
    assert "changes just now" in site.firewalls.result.away
    assert site.firewalls.live() == {}
    monkeypatch.undo()


def test_a_broken_desired_file_is_put_right(site: Site):
    """Somebody wrote one there that is refused: what is live is ours, and the file is not."""
    site.firewalls.push_all(TREE)
    site.one.desired = b'{"version": 2}'
    site.firewalls.refresh()
    assert site.pushed(TREE) == (1, 0)
    assert site.one.desired == site.one.document


def test_a_session_of_ssh_ends_with_all_that_it_has_started(monkeypatch, tmp_path: Path):
    """A proxy that ssh has started holds its pipes for longer than it lives."""
    monkeypatch.setattr(push, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(push, "LAST_WORDS_SECONDS", 0.3)
    fake = tmp_path / "ssh"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for script, said in (
        ("sleep 20 & exec sleep 20", "no answer in time"),
        ("sleep 20 >&2 & echo '{\"schema\": 1}'; exit 0", {"schema": 1}),
        ("echo 'Connection refused' >&2; exit 255", "ssh failed: Connection refused"),
    ):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        begin = time.monotonic()
        assert push.status([push.target("fw")], seconds=0.2) == (said,)
        assert time.monotonic() - begin < 5


# --- reporting ----------------------------------------------------------------------------------------------------


class Written:
    """What is written to Services, and what is refused."""

    def __init__(self) -> None:
        self.patches: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.applied: list[dict[str, Any]] = []
        self.tried = 0
        self.refuse: ApiError | None = None
        self.refuse_events: ApiError | None = None

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.tried += 1
        if self.refuse is not None:
            raise self.refuse
        self.patches.append(body)
        return {}

    def apply(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        self.tried += 1
        if self.refuse is not None:
            raise self.refuse
        self.applied.append(body)
        return body

    def post(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_events is not None:
            raise self.refuse_events
        self.events.append(body["reason"])
        return {}


@pytest.fixture
def reporting() -> Iterator[tuple[Reporter, Written]]:
    end, written = threading.Event(), Written()
    one = Reporter(written, end=end)  # type: ignore[arg-type]
    one.thread.start()
    yield one, written
    end.set()
    one.wake()
    one.thread.join(5)
    assert not one.thread.is_alive()


MAIL = Service(namespace="x", name="mail", uid="u")
LIVE = ServiceStatus(state=State.LIVE, frontends=("smtp",))


def reported(service: Service, body: dict[str, Any]) -> Service:
    """As the watch brings it back."""
    status = body.get("status") or {}
    ingress = tuple(entry["ip"] for entry in (status.get("loadBalancer") or {}).get("ingress") or ())
    return evolve(service, conditions={one["type"]: one for one in status.get("conditions") or ()}, ingress=ingress)


def test_the_same_is_written_once_and_again_where_somebody_has_wiped_it(reporting):
    reporter, written = reporting
    for _ in range(3):  # the watch brings it back later
        reporter.report(MAIL, LIVE)
    until(lambda: written.events == ["Live"], "reported")
    found = {entry["type"]: entry["status"] for entry in written.applied[0]["status"]["conditions"]}
    assert found == {
        "edgeagent.io/Accepted": "True", "edgeagent.io/Programmed": "True", "edgeagent.io/Degraded": "False",
    }  # fmt: skip
    back = reported(MAIL, written.applied[0])
    reporter.report(back, LIVE)
    assert len(written.applied) == 1
    reporter.report(MAIL, LIVE)
    until(lambda: len(written.applied) == 2, "written again")
    reporter.report(back, None)
    until(lambda: "status" not in written.applied[-1], "its conditions go")
    until(lambda: not reporter._waiting, "all is written")
    assert written.events == ["Live"]
    series = [body["series"]["count"] for body in written.patches if "series" in body]
    assert series == [2]  # the same words again are one of a series


def test_an_annotation_of_an_earlier_version_goes(reporting):
    reporter, written = reporting
    there = evolve(reported(MAIL, conditions.body(MAIL, LIVE, now="")), has_old_status=True)
    reporter.report(there, LIVE)
    until(lambda: written.patches, "written")
    assert written.patches[0]["metadata"]["annotations"] == {"edgeagent.io/status": None}


def test_what_was_not_written_whole_is_written_again(reporting):
    reporter, written = reporting
    status = evolve(LIVE, addresses=("192.0.2.1",))
    there = reported(MAIL, conditions.body(MAIL, status, now=""))
    reporter.report(there, status)
    assert not reporter._waiting, "all of it stands there"
    stale = {**there.conditions, "edgeagent.io/Programmed": {"status": "False"}}
    for number, service in enumerate((
        evolve(there, uid="u1", conditions={"example.org/Other": {"status": "True"}}),
        evolve(there, uid="u2", conditions=stale),
        evolve(there, uid="u3", balanced=True),
    ), 1):  # fmt: skip
        reporter.report(service, status)
        until(lambda number=number: len(written.applied) == number, "written again")
    assert written.applied[-1]["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1", "ipMode": "Proxy"}]


def test_what_is_so_again_before_the_watch_has_brought_it_is_written_again(reporting):
    reporter, written = reporting
    there = reported(MAIL, conditions.body(MAIL, LIVE, now=""))
    reporter.report(there, ServiceStatus(state=State.WAITING))
    until(lambda: len(written.applied) == 1, "written")
    reporter.report(there, LIVE)  # the watch still says so
    until(lambda: not reporter._waiting, "looked at")
    until(lambda: len(written.applied) == 2, "written again")


def test_an_event_that_is_refused_is_dropped_and_an_api_server_that_is_away_is_waited_for(reporting):
    reporter, written = reporting
    written.refuse_events = ApiError("403: the namespace is being terminated", status=403)
    reporter.report(MAIL, LIVE)
    until(lambda: len(written.applied) == 1, "its conditions")
    until(lambda: reporter.failures == 1, "no Event")
    written.refuse_events, written.refuse = None, ApiError("does not answer")
    reporter.report(MAIL, ServiceStatus(state=State.DEGRADED))
    until(lambda: reporter.failures >= 3, "tried")
    written.refuse = None
    until(lambda: written.events == ["Degraded"], "reported at last")
    assert len(written.applied) == 2


@pytest.mark.parametrize(
    ("status", "again", "away"),
    [
        (404, False, False),
        (409, True, False),
        (422, True, False),
        (403, False, False),
        (0, True, True),
        (503, True, True),
    ],
)
def test_a_finalizer_that_cannot_be_written(status: int, again: bool, away: bool):  # noqa: FBT001  # a table
    """One failed request left a deleted Service for ten minutes. Without the right it is hopeless, and said."""
    written = Written()
    written.refuse = ApiError("no", status=status)
    finalizers = Finalizers(written)  # type: ignore[arg-type]
    two = [evolve(MAIL, name=name, finalizers=(FINALIZER,), version="7") for name in "ab"]
    assert finalizers.remove(two) is not again
    assert written.tried == (1 if away else 2)  # nobody else would be answered either


def test_a_finalizer_is_one_of_several_and_of_the_version_that_was_read():
    bodies = []
    api = types.SimpleNamespace(patch=lambda _, body: bodies.append(body["metadata"]))
    finalizers, service = Finalizers(api), evolve(MAIL, finalizers=("example.org/theirs",), version="7")  # type: ignore[arg-type]
    assert finalizers.add([evolve(service, annotations={"expose": "smtp"})])
    assert finalizers.remove([evolve(service, finalizers=("example.org/theirs", FINALIZER)), service])
    known = {"uid": "u", "resourceVersion": "7"}
    assert bodies == [
        {**known, "finalizers": ["example.org/theirs", FINALIZER]},
        {**known, "finalizers": ["example.org/theirs"]},
    ]
