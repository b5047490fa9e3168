"""The controller's hands: watching, leading, handing over, reporting; each against something that a test plays."""

from __future__ import annotations

import itertools
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from kit.edge import until

from agent.desired.identity import digest_of
from agent.discover import election as elections
from agent.discover import objects
from agent.discover.api import ApiError
from agent.discover.election import Election
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewalls
from agent.discover.merge import as_json
from agent.discover.objects import FINALIZER, Node, Service
from agent.discover.reflector import Backoff, Kind, Reflector
from agent.discover.reports import Reporter
from agent.discover.service_status import ServiceStatus
from agent.errors import ExitCode
from agent.remote import push

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

            def stop(self) -> None:
                """Nobody reads on."""

        return Events()


def a_list(*names: str, version: str = "7", more: str = "") -> dict[str, Any]:
    items = [{"metadata": {"name": name, "resourceVersion": version}} for name in names]
    meta = {"resourceVersion": version} | ({"continue": more} if more else {})
    return {"kind": "NodeList", "metadata": meta, "items": items}


def event(word: str, name: str, version: str, **status: Any) -> dict[str, Any]:
    return {"type": word, "object": {"metadata": {"name": name, "resourceVersion": version}, "status": status}}


@pytest.fixture
def watching() -> Iterator[Callable[[Script], Reflector[Node]]]:
    end, started = threading.Event(), []

    def start(script: Script, *paths: str) -> Reflector[Node]:
        kind = Kind[Node]("nodes", paths or ("/new",), objects.node)
        one = Reflector(script, kind, changed=lambda: None, end=end)  # type: ignore[arg-type]
        one.thread.start()
        started.append((one, script))
        return one

    yield start
    end.set()
    for one, script in started:
        script.over.set()
        one.thread.join(5)
        assert not one.thread.is_alive()


def names(reflector: Reflector[Node]) -> list[str]:
    return sorted(found.name for found in reflector.objects())


def test_pages_are_read_and_events_followed_from_there(watching):
    script = Script(
        [a_list("a", more="p2"), a_list("b", version="9")],
        [[event("ADDED", "c", "10"), event("DELETED", "a", "11"), event("BOOKMARK", "", "20")]],
    )
    one = watching(script)
    until(lambda: len(script.asked) == 4, "watched again")
    assert script.asked == ["list /new", "list /new p2", "watch /new 9", "watch /new 20"]
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


def test_a_version_of_the_api_that_goes_is_left_for_the_other(watching):
    gone = ApiError("404", status=404)
    script = Script([gone, a_list("a"), a_list("b")], [[], gone])
    one = watching(script, "/new", "/old")
    until(lambda: names(one) == ["b"], "listed by the new one")
    assert script.asked[:3] == ["list /new", "list /old", "watch /old 7"]
    assert script.asked[-2:] == ["list /new", "watch /new 7"]


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


def test_it_is_read_anew_when_it_is_told(watching):
    class Open(Script):
        """A watch that says nothing until it is stopped."""

        def watch(self, path: str, *, read_seconds: float, **query: str) -> Any:
            self.asked.append("watch")
            cut = threading.Event()

            class Events:
                def __iter__(self) -> Iterator[Any]:
                    cut.wait(10)
                    raise ApiError("cut")

                def stop(self) -> None:
                    cut.set()

            return Events()

    script = Open([a_list("a"), a_list("b")], [])
    one = watching(script)
    until(lambda: "watch" in script.asked, "watched")
    assert one.listed_within(10)
    one.relist()
    until(lambda: names(one) == ["b"], "read anew")
    one.relist()
    script.over.set()


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


# --- leading ------------------------------------------------------------------------------------------------------


class Leases:
    """A Lease, as an API server keeps it."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.version = itertools.count(1)
        self.fails = False

    def get(self, _: str) -> dict[str, Any]:
        self._is_leader()
        if self.found is None:
            raise ApiError("no lease", status=404)
        return {**self.found, "metadata": dict(self.found["metadata"]), "spec": dict(self.found["spec"])}

    def post(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        self._is_leader()
        if self.found is not None:
            raise ApiError("exists", status=409)
        return self._put(body)

    def put(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        self._is_leader()
        assert self.found is not None
        if body["metadata"]["resourceVersion"] != self.found["metadata"]["resourceVersion"]:
            raise ApiError("conflict", status=409)
        return self._put(body)

    def _put(self, body: dict[str, Any]) -> dict[str, Any]:
        self.found = {**body, "metadata": {**body["metadata"], "resourceVersion": str(next(self.version))}}
        return self.found

    def _is_leader(self) -> None:
        if self.fails:
            raise ApiError("does not answer")


def candidate(leases: Leases, name: str) -> Election:
    return Election(leases, namespace="x", identity=name, changed=lambda: None, end=threading.Event())  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1_000.0]
    monkeypatch.setattr(elections.time, "monotonic", lambda: now[0])
    return now


def test_one_leads_and_the_next_only_when_the_first_was_silent_for_the_whole_time(clock):
    leases = Leases()
    one, two = candidate(leases, "one"), candidate(leases, "two")
    one._round()
    two._round()
    assert (one.leads, two.leads) == (True, False)
    for _ in range(20):
        clock[0] += 2
        one._round()
        two._round()
        assert (one.leads, two.leads) == (True, False)
    for _ in range(7):
        clock[0] += 2
        two._round()
        assert not two.leads
    assert not one.leads  # it knew before anybody else could begin
    clock[0] += 2
    two._round()
    assert (two.leads, two.term, leases.found["spec"]["leaseTransitions"]) == (True, 1, 1)
    one._round()
    assert not one.leads


def test_a_leader_that_cannot_renew_ends_before_its_time_and_counts_anew(clock):
    leases = Leases()
    one = candidate(leases, "one")
    one._round()
    leases.fails = True
    clock[0] += 9
    one._round()
    assert one.leads
    clock[0] += 2
    one._round()
    assert not one.leads
    leases.fails = False
    one._round()
    assert (one.leads, one.term) == (True, 2)


def test_of_two_that_take_it_at_once_one_has_it(clock):
    leases = Leases()
    one, two = candidate(leases, "one"), candidate(leases, "two")
    one._round()
    clock[0] += 60
    seen = leases.get("")
    two._seen = ((seen["spec"]["holderIdentity"], seen["spec"]["renewTime"]), 0.0)
    get = leases.get
    leases.get = lambda path: (leases.__dict__.pop("get"), one._round(), seen)[2]  # type: ignore[method-assign]
    two._round()
    assert get is not None
    assert (one.leads, two.leads) == (True, False)


def test_it_is_given_back_and_nobody_waits(clock):
    leases = Leases()
    one, two = candidate(leases, "one"), candidate(leases, "two")
    one._round()
    two._round()
    one._release()
    two._round()
    assert (one.leads, two.leads) == (False, True)


# --- handing over -------------------------------------------------------------------------------------------------


def have(firewalls: Firewalls, tree: dict[str, Any]) -> bool:
    """Whether it is what all have as their desired state."""
    return all(firewalls._has(one, tree) for one in firewalls.all)


TREE = {"version": 1, "frontends": {"a": {}}}


def result(target: push.Target, code: ExitCode, message: str = "said") -> push.Result:
    return push.Result(target=target, exit_code=code, message=message, answer={"report": {}})


class Ssh:
    """What is sent, and what each says to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.codes = dict.fromkeys(names, ExitCode.LIVE)
        self.statuses: dict[str, Any] = dict.fromkeys(names, "nobody listens there")
        self.more: list[dict[str, tuple[str, ...]]] = []
        self.sent: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        monkeypatch.setattr(push, "push", self._push)
        monkeypatch.setattr(push, "status", lambda to, seconds: tuple(self.statuses[one.text] for one in to))
        self.firewalls = Firewalls([push.target(name) for name in names], seconds=1, sign=None)

    def _push(self, to: Any, payload: push.Payload, more: Any, **_: Any) -> tuple[push.Result, ...]:
        self.more.append(dict(more))
        self.sent.append((tuple(one.text for one in to), payload.arguments))
        return tuple(result(one, self.codes[one.text]) for one in to)


def status(tree: dict[str, Any], serial: int, **more: Any) -> dict[str, Any]:
    digest = digest_of(as_json(tree, serial))
    found = {"schema": 1, "desired": {"digest": digest, "serial": serial}, "live": {"serial": serial}, "held": None,
             "outcome": "committed", "exit_code": 0, "message": "", "frontends": [], "backends": []}  # fmt: skip
    return found | more


def test_one_that_is_away_does_not_stop_the_others_and_gets_it_when_it_is_back(monkeypatch):
    ssh = Ssh(monkeypatch, "one", "two")
    ssh.codes["two"] = ExitCode.SSH
    verdict = ssh.firewalls.push_all(TREE)
    assert (verdict.live, verdict.complete, verdict.away) == (True, False, "two: said")
    assert not have(ssh.firewalls, TREE)
    assert ssh.firewalls.without(["a"], TREE) == "1 of 2 firewalls takes no change now"
    assert ssh.firewalls.outdated(TREE) == []  # who is away is asked first
    ssh.codes["two"] = ExitCode.LIVE
    ssh.statuses = {"one": status(TREE, ssh.firewalls.all[0].serial), "two": status({}, 4)}
    ssh.firewalls.ask()
    assert ssh.firewalls.push_all(TREE).complete
    assert [to for to, _ in ssh.sent] == [("one", "two"), ("two",)]  # who has it is left alone
    assert have(ssh.firewalls, TREE)


def test_one_that_refuses_is_heard_although_another_is_away(monkeypatch):
    ssh = Ssh(monkeypatch, "one", "two")
    ssh.codes |= {"one": ExitCode.SSH, "two": ExitCode.REFUSED}
    verdict = ssh.firewalls.push_all(TREE)
    assert (verdict.refused, verdict.message, verdict.away) == (True, "two: said", "one: said")
    ssh.codes["two"] = ExitCode.SSH
    verdict = ssh.firewalls.push_all({**TREE, "name": "x"})
    assert (verdict.refused, verdict.live) == (False, False)


def test_what_a_person_holds_is_not_pushed_to(monkeypatch):
    ssh = Ssh(monkeypatch, "one", "two")
    held = {"digest": "ab", "reason": "generation 3 was put back by hand", "since": ""}
    ssh.statuses = {"one": status(TREE, 9, held=held), "two": status({}, 4)}
    ssh.firewalls.ask()
    verdict = ssh.firewalls.push_all(TREE)
    assert [to for to, _ in ssh.sent] == [("two",)]
    assert "was put back by hand" in verdict.away
    assert ssh.firewalls.outdated(TREE) == []
    assert "takes no change now" in ssh.firewalls.without(["a"], TREE)
    assert "was put back by hand" in ssh.firewalls.away


def test_a_serial_is_higher_than_any_that_is_known(monkeypatch):
    ssh = Ssh(monkeypatch, "one", "two")
    far = 2**40
    ssh.statuses = {"one": status({}, far), "two": status({}, 4)}
    ssh.firewalls.ask()
    ssh.firewalls.push_all(TREE)
    assert {one.serial for one in ssh.firewalls.all} == {far + 1}
    ssh.statuses["one"] = status(TREE, far + 1)
    ssh.firewalls.ask()
    assert ssh.firewalls.all[0].digest == digest_of(as_json(TREE, far + 1))


@pytest.mark.parametrize(
    "odd",
    [
        {"desired": [1]}, {"desired": {"serial": "x"}}, {"backends": None}, {"backends": [4]}, {"held": 7},
        {"live": "x"}, {"backends": [{"name": "a"}]}, {"exit_code": "0"}, {"frontends": 3}, {"outcome": []},
    ],
)  # fmt: skip
def test_another_versions_status_ends_nothing(monkeypatch, odd):
    ssh = Ssh(monkeypatch, "one")
    ssh.statuses = {"one": {**status(TREE, 9), **odd}}
    ssh.firewalls.ask()
    ssh.firewalls.push_all(TREE)


def test_nothing_is_pushed_on_top_of_what_is_not_known(monkeypatch):
    ssh = Ssh(monkeypatch, "one")
    ssh.statuses = {"one": status({"version": 1}, 4, live={"digest": "ab" * 32, "serial": 4})}
    ssh.firewalls.ask()
    ssh.codes["one"] = ExitCode.POLICY  # somebody was there in between
    verdict = ssh.firewalls.push_all(TREE)
    assert ssh.more == [{"one": ("--if-live", "ab" * 32)}]
    assert (verdict.live, verdict.refused, ssh.firewalls.outdated(TREE)) == (False, False, [])


def test_one_that_was_put_back_by_hand_has_not_what_it_had(monkeypatch):
    ssh = Ssh(monkeypatch, "one")
    ssh.firewalls.push_all(TREE)
    serial = ssh.firewalls.all[0].serial
    held = {"digest": digest_of(as_json(TREE, serial)), "reason": "generation 1 was put back by hand", "since": ""}
    ssh.statuses = {"one": status({"version": 1}, 3, held=held, live={"digest": "cd" * 32, "serial": 3})}
    ssh.firewalls.ask()
    assert "takes no change now" in ssh.firewalls.without(["a"], TREE)
    assert "was put back by hand" in ssh.firewalls.away


def test_a_group_that_has_other_nodes_is_another_backend(monkeypatch):
    ssh = Ssh(monkeypatch, "one")
    tree = {"version": 1, "nodes": {"w": {"n1": "192.0.2.1"}}, "backends": {"a": {"nodes": "w", "port": 1}}}
    ssh.firewalls.push_all(tree)
    ssh.firewalls.ask()  # it does not answer
    assert ssh.firewalls.without(["a"], tree) == ""
    assert ssh.firewalls.without(["a"], {**tree, "nodes": {"w": {"n2": "192.0.2.2"}}})


def test_a_rehearsal_touches_nothing_and_is_not_asked_of_who_is_away(monkeypatch):
    ssh = Ssh(monkeypatch, "one", "two")
    ssh.codes["two"] = ExitCode.SSH
    ssh.firewalls.push_all({})
    ssh.codes["one"] = ExitCode.REFUSED
    assert ssh.firewalls.rehearse(TREE).refused
    to, words = ssh.sent[-1]
    assert (to, words[0]) == (("one",), "--dry-run")
    assert not have(ssh.firewalls, TREE)


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
        self.patches: list[str | None] = []
        self.events: list[str] = []
        self.applied: list[dict[str, Any]] = []
        self.tried = 0
        self.refuse: ApiError | None = None
        self.refuse_events: ApiError | None = None

    def patch(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        self.tried += 1
        if self.refuse is not None:
            raise self.refuse
        self.patches.append(body["metadata"]["annotations"]["edgeagent.io/status"])
        return {}

    def apply(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
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
    one = Reporter(written, is_leader=lambda: True, end=end)  # type: ignore[arg-type]
    one.thread.start()
    yield one, written
    end.set()
    one.wake()
    one.thread.join(5)
    assert not one.thread.is_alive()


MAIL = Service(namespace="x", name="mail", uid="u")


def test_the_same_is_told_once_and_again_where_somebody_has_wiped_it(reporting):
    reporter, written = reporting
    what = ServiceStatus(state="live", frontends=("smtp",), uid="u")
    for _ in range(3):  # the watch tells of it later
        reporter.report(MAIL, what)
    until(lambda: written.events == ["Live"], "told")
    conditions = {entry["type"]: entry for entry in written.applied[0]["status"]["conditions"]}
    assert {kind: entry["status"] for kind, entry in conditions.items()} == {
        "edgeagent.io/Accepted": "True", "edgeagent.io/Programmed": "True", "edgeagent.io/Degraded": "False",
    }  # fmt: skip
    back = evolve(MAIL, status=written.patches[0], conditions=conditions)
    reporter.report(back, what)
    assert len(written.patches) == 1
    reporter.report(MAIL, what)
    until(lambda: len(written.patches) == 2, "told again")
    reporter.report(back, None)
    until(lambda: written.patches[-1] is None, "taken away")
    until(lambda: "status" not in written.applied[-1], "its conditions too")
    assert written.events == ["Live", "Live"]


def test_what_was_not_written_whole_is_written_again(reporting):
    """An ended leader, an upgrade, a Service that became one of our class: the annotation alone tells nothing."""
    reporter, written = reporting
    what = ServiceStatus(state="live", frontends=("smtp",), uid="u", addresses=("192.0.2.1",))
    ours = {
        "edgeagent.io/Accepted": {"status": "True"}, "edgeagent.io/Programmed": {"status": "True"},
        "edgeagent.io/Degraded": {"status": "False"},
    }  # fmt: skip
    there = evolve(MAIL, status=what.annotation, conditions=ours)
    reporter.report(there, what)
    assert not reporter._waiting, "all of it stands there"
    stale = ours | {"edgeagent.io/Programmed": {"status": "False"}}
    for service in (
        evolve(there, conditions={"example.org/Other": {"status": "True"}}),
        evolve(there, conditions=stale),
        evolve(there, balanced=True),
    ):
        before = len(written.applied)
        reporter.clear()
        reporter.report(service, what)
        until(lambda before=before: len(written.applied) > before, "written again")
    assert written.applied[-1]["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1", "ipMode": "Proxy"}]


def test_what_is_so_again_before_the_watch_has_told_is_told_again(reporting):
    reporter, written = reporting
    one, other = ServiceStatus(state="live", uid="u"), ServiceStatus(state="waiting", uid="u")
    there = evolve(MAIL, status=one.annotation)
    reporter.report(there, other)
    until(lambda: len(written.patches) == 1, "told")
    reporter.report(there, one)  # the watch still says so
    until(lambda: len(written.patches) == 2, "told again")


def test_an_event_that_is_refused_is_dropped_and_an_api_server_that_is_away_is_waited_for(reporting):
    reporter, written = reporting
    written.refuse_events = ApiError("403: the namespace is being terminated", status=403)
    reporter.report(MAIL, ServiceStatus(state="live", uid="u"))
    until(lambda: len(written.patches) == 1, "its annotation")
    written.refuse_events, written.refuse = None, ApiError("does not answer")
    reporter.report(MAIL, ServiceStatus(state="degraded", uid="u"))
    until(lambda: reporter.failures >= 2, "tried")
    written.refuse = None
    until(lambda: written.events == ["Degraded"], "told at last")
    assert len(written.patches) == 2


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


def test_what_is_somebody_elses_to_tell_is_not_told():
    end, written = threading.Event(), Written()
    reporter = Reporter(written, is_leader=lambda: False, end=end)  # type: ignore[arg-type]
    reporter.report(MAIL, ServiceStatus(state="live", uid="u"))
    reporter.thread.start()
    until(lambda: not reporter._waiting, "looked at")
    assert written.patches == []
    end.set()
    reporter.wake()
    reporter.thread.join(5)
