"""What an interrupted or failed step leaves: only a difference between what is and what is wanted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from kit.fakes import FakeProxy
from kit.reconciler import checks_fail, data, files, http, make_reconciler, other, prober, told
from kit.states import state

from agent.errors import NoAnswerError, Outcome, RefusedError, SwitchError
from agent.reconcile.reconciler import Reconciler


class Killed(BaseException):
    """The agent dies here: nothing of it may catch this."""


def at_call(proxy: FakeProxy, step: str, number: int) -> None:
    """Die at the `number`-th call of a step, before it is done."""
    calls = 0

    def die() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed

    proxy.fail[step] = die


def killed(reconcile: Callable[[], object]) -> bool:
    try:
        reconcile()
    except Killed:
        return True
    return False


def restarted(folder: Path, proxy: FakeProxy, before: Reconciler) -> Reconciler:
    """Another agent on the same folders, with the same world around it."""
    proxy.fail.clear()
    proxy.calls.clear()
    reconciler = make_reconciler(folder, proxy)
    prober(reconciler).dead |= prober(before).dead
    return reconciler


# --- the drift correction


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("server", ["answers", "does not answer"])
def test_an_agent_killed_at_each_command_of_a_drift_correction(
    reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path, number: int, server: str
):
    """A server that is gone is added again: `drain` and `health down` come before `ready` where nobody reached it."""
    reached = server == "answers"
    reconciler.reconcile(data(a=2))
    del proxy.servers["a", "b"]
    if not reached:
        prober(reconciler).dead.add("198.51.100.2:2000")
    proxy.calls.clear()
    at_call(proxy, "tell", number)
    came_to_its_end = not killed(lambda: reconciler.reconcile(data(a=2)))
    assert came_to_its_end is (number > (3 if reached else 5))
    reconciler = restarted(tmp_path, proxy, reconciler)
    report = reconciler.reconcile(data(a=2))
    assert report.outcome is Outcome.UNCHANGED
    assert not [finding for finding in report.findings if "by hand" in finding.message]
    assert proxy.servers["a", "b"].status == ("UP" if reached else "DOWN")
    assert ("a", "b") not in proxy.unchecked
    assert not list(Path(reconciler.environment.store.config).parent.glob("journal.json"))
    proxy.calls.clear()
    assert reconciler.reconcile(data(a=2)).drift == ()
    assert told(proxy) == []


def test_what_an_operator_does_by_hand_is_still_told_from_it(reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path):
    reconciler.reconcile(data(a=3))
    del proxy.servers["a", "b"]
    proxy.servers["a", "c"] = evolve(proxy.servers["a", "c"], status="DRAIN")
    at_call(proxy, "tell", 3)
    assert killed(lambda: reconciler.reconcile(data(a=3)))
    reconciler = restarted(tmp_path, proxy, reconciler)
    report = reconciler.reconcile(data(a=3))
    assert [finding.message for finding in report.findings] == ["is draining, by hand"]
    assert proxy.servers["a", "c"].draining
    assert proxy.servers["a", "b"].up


# --- what is not proved is not live


def die_while_waiting(reconciler: Reconciler) -> None:
    def die(_: float) -> None:
        raise Killed

    reconciler.environment.clock.sleep = die


@pytest.mark.parametrize("wish", ["the same document again", "the document that is live"])
def test_a_reload_that_was_not_judged_is_judged_by_the_next_agent(
    reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path, wish: str
):
    """Killed in verify; the only server of the new document then fails its check."""
    reconciler.reconcile(json.dumps(http(2000)).encode())
    worse = json.dumps({**http(2001), "defaults": {"maxconn": 7}}).encode()
    die_while_waiting(reconciler)
    assert killed(lambda: reconciler.reconcile(worse))
    assert proxy.now is not None
    assert proxy.now.generation == 2
    checks_fail(proxy, ("a", "a"))()
    reconciler = restarted(tmp_path, proxy, reconciler)
    report = reconciler.reconcile(worse if wish == "the same document again" else json.dumps(http(2000)).encode())
    live = reconciler.environment.store.live()
    assert live is not None
    assert (live.number, proxy.now.generation) == (1, 1)
    hold = reconciler.environment.store.hold()
    if wish == "the same document again":
        assert report.outcome is Outcome.ROLLED_BACK
        assert "frontend a served before, and now no server of backend a does" in report.message
        assert hold is not None
    else:
        assert report.outcome is Outcome.UNCHANGED
    assert proxy.servers["a", "a"].address == "198.51.100.1:2000"


def test_a_reload_that_was_not_judged_and_is_good_is_committed(
    reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path
):
    reconciler.reconcile(json.dumps(http(2000)).encode())
    better = json.dumps({**http(2001), "name": "better", "serial": 7, "defaults": {"maxconn": 7}}).encode()
    die_while_waiting(reconciler)
    assert killed(lambda: reconciler.reconcile(better))
    proxy.servers["a", "a"] = evolve(proxy.servers["a", "a"], check="L7OK")
    reconciler = restarted(tmp_path, proxy, reconciler)
    assert reconciler.reconcile(better).outcome is Outcome.UNCHANGED
    live = reconciler.environment.store.live()
    assert live is not None
    assert (live.number, live.name, live.serial) == (2, "better", 7)
    assert "switch" not in [call[0] for call in proxy.calls]


def test_commands_that_were_not_judged_are_judged_by_the_next_agent(
    reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path
):
    reconciler.reconcile(json.dumps(http(2000)).encode())
    proxy.servers["a", "a"] = evolve(proxy.servers["a", "a"], check="L7OK")
    before = files(reconciler)
    worse = json.dumps(http(2001)).encode()
    die_while_waiting(reconciler)
    assert killed(lambda: reconciler.reconcile(worse))
    assert proxy.servers["a", "a"].address == "198.51.100.1:2001"
    proxy.servers["a", "a"] = evolve(proxy.servers["a", "a"], status="DOWN", check="L7STS")
    reconciler = restarted(tmp_path, proxy, reconciler)
    report = reconciler.reconcile(worse)
    assert report.outcome in (Outcome.ROLLED_BACK, Outcome.REFUSED)
    assert proxy.servers["a", "a"].address == "198.51.100.1:2000"
    assert {name: text for name, text in files(reconciler).items() if name != "hold.json"} == before


# --- only what the document did holds it


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("switch", SwitchError("HAProxy did not start (exit 1)")),  # the old one killed before `-x`
        ("wait_until_serving", SwitchError("HAProxy started, but its socket does not answer")),  # the run folder wiped
        ("observe", NoAnswerError("silent")),  # the new one killed in verify
    ],
)
def test_what_the_world_did_holds_no_document_and_is_tried_again(
    reconciler: Reconciler, proxy: FakeProxy, step: str, error: Exception
):
    reconciler.reconcile(json.dumps(http(2000)).encode())
    fresh = json.dumps({**http(2001), "defaults": {"maxconn": 7}}).encode()

    def fail() -> None:
        if proxy.now is None or proxy.now.generation != 1 or step == "switch":
            proxy.fail.pop(step)
            raise error

    proxy.fail[step] = fail
    report = reconciler.reconcile(fresh)
    assert report.outcome is Outcome.ROLLED_BACK
    assert "tried again" in report.remedy
    assert reconciler.environment.store.hold() is None
    assert proxy.now is not None
    assert proxy.now.generation == 1
    # At once it is not tried again: each try can cost clients something.
    proxy.calls.clear()
    report = reconciler.reconcile(fresh)
    assert (report.outcome, proxy.calls) == (Outcome.ROLLED_BACK, [])
    assert "in " in report.remedy
    reconciler.environment.clock.sleep(31)
    checks = proxy.servers["a", "a"]
    proxy.servers["a", "a"] = evolve(checks, check="L7OK")
    assert reconciler.reconcile(fresh).outcome is Outcome.COMMITTED


def test_what_fails_again_and_again_is_tried_less_and_less(reconciler: Reconciler, proxy: FakeProxy):
    reconciler.reconcile(data(a=1))

    def fail() -> None:
        raise SwitchError("HAProxy did not start (exit 1)")

    tries = []
    proxy.fail["switch"] = fail
    for _ in range(200):
        before = len([call for call in proxy.calls if call[0] == "switch"])
        reconciler.reconcile(other(7))
        after = len([call for call in proxy.calls if call[0] == "switch"])
        if after > before:
            tries.append(reconciler.environment.clock.monotonic())
        reconciler.environment.clock.sleep(30)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[0] < 70
    assert max(gaps) < 660
    assert gaps[-1] > 500
    assert 5 < len(tries) < 25
    # Another document is tried at once.
    proxy.fail.clear()
    assert reconciler.reconcile(other(8)).outcome is Outcome.COMMITTED


# --- what is wanted of a frontend


@pytest.mark.parametrize("how", ["disabled", "shut down"])
def test_a_frontend_that_was_closed_at_the_socket_is_open_again(reconciler: Reconciler, proxy: FakeProxy, how: str):
    reconciler.reconcile(data(a=1, b=1))
    before = files(reconciler)
    proxy.closed["b"] = how == "shut down"
    proxy.calls.clear()
    report = reconciler.reconcile(data(a=1, b=1))
    assert (report.outcome, report.drift) == (Outcome.UNCHANGED, ("frontend",))
    assert proxy.closed == {}
    assert files(reconciler) == before
    assert report.reasons == (f"frontend b was {how}",)
    expected = ["enable frontend fe:b"] if how == "disabled" else []
    assert told(proxy) == expected
    assert reconciler.reconcile(data(a=1, b=1)).drift == ()


def test_the_address_of_a_closed_frontend_is_not_held(reconciler: Reconciler, proxy: FakeProxy):
    """HAProxy has let go of it: somebody else may have it by now."""
    reconciler.reconcile(data(a=1, b=1))
    proxy.closed["b"] = False
    prober(reconciler).busy["192.0.2.1:1001"] = "in use, by nginx (pid 7)"
    assert reconciler.reconcile(data(a=1, b=1)).outcome is Outcome.DEGRADED
    assert proxy.frontends == ["a"]


# --- a server without a check that was never reached


def unchecked(count: int) -> bytes:
    document = state(a=count)
    document["backends"]["a"]["health"] = {"type": "none"}
    return json.dumps(document).encode()


def test_an_unchecked_server_that_was_never_reached_stays_out_over_haproxys_death(
    reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path
):
    reconciler.reconcile(unchecked(1))
    prober(reconciler).dead.add("198.51.100.2:2000")
    reconciler.reconcile(unchecked(2))
    assert proxy.servers["a", "b"].down
    proxy.now = None  # a reboot
    reconciler = restarted(tmp_path, proxy, reconciler)
    reconciler.reconcile(unchecked(2))
    written = (Path(reconciler.environment.store.config).parent.parent / "run/server-state").read_text()
    assert " b 198.51.100.2 0 " in written  # srv_op_state 0: it starts as down
    assert " a 198.51.100.1 0 " not in written
    # One that answered when it came is believed at a cold start, when the network may not be there yet.
    prober(reconciler).dead.add("198.51.100.1:2000")
    proxy.now = None
    reconciler.reconcile(unchecked(2))
    written = (Path(reconciler.environment.store.config).parent.parent / "run/server-state").read_text()
    assert " a 198.51.100.1 0 " not in written
    prober(reconciler).dead.clear()
    proxy.servers["a", "b"] = evolve(proxy.servers["a", "b"], status="DOWN")  # as the real one reads that file
    reconciler.reconcile(unchecked(2))
    assert proxy.servers["a", "b"].up
    assert reconciler.environment.store.unreachable() == frozenset()


# --- haproxy -c beside the commands


def test_commands_are_undone_where_haproxy_then_refuses_the_file(reconciler: Reconciler, proxy: FakeProxy):
    """The commands go first; what only a template could have broken is seen beside them."""
    reconciler.reconcile(data(a=2))
    before, servers = files(reconciler), dict(proxy.servers)

    def refuse() -> None:
        raise RefusedError("haproxy -c refuses the configuration (exit 1)")

    proxy.fail["check"] = refuse
    report = reconciler.reconcile(data(a=3))
    assert (report.outcome, report.message) == (Outcome.REFUSED, "haproxy -c refuses the configuration (exit 1)")
    assert {name: text for name, text in files(reconciler).items() if ".staged/" not in name} == before
    proxy.fail.clear()
    reconciler.reconcile(data(a=2))  # and the server that was added is deleted
    assert (files(reconciler), proxy.servers) == (before, servers)
    assert [call[0] for call in proxy.calls].count("switch") == 1  # the first start


@pytest.mark.parametrize("number", range(1, 12))
def test_an_agent_killed_while_it_undoes_commands(
    reconciler: Reconciler, proxy: FakeProxy, tmp_path: Path, number: int
):
    reconciler.reconcile(data(a=2))
    before, servers = files(reconciler), dict(proxy.servers)

    def refuse() -> None:
        raise RefusedError("haproxy -c refuses the configuration (exit 1)")

    proxy.fail["check"] = refuse
    at_call(proxy, "tell", number)
    killed(lambda: reconciler.reconcile(data(a=3)))
    for _ in range(2):
        reconciler = restarted(tmp_path, proxy, reconciler)
        reconciler.reconcile(data(a=2))
    assert files(reconciler) == before
    assert proxy.servers == servers


def test_commands_after_haproxy_was_started_anew_take_no_reload(reconciler: Reconciler, proxy: FakeProxy):
    """Generation 2 came by commands; the process that is started with its file carries its number."""
    reconciler.reconcile(data(a=1))
    reconciler.reconcile(data(a=2))
    proxy.now = None
    reconciler.reconcile(data(a=2))
    reconciler.reconcile(data(a=3))
    proxy.calls.clear()
    assert reconciler.reconcile(data(a=3)).outcome is Outcome.UNCHANGED
    assert proxy.calls == []


# --- the order of commands


def test_a_backend_is_never_without_a_server_between_two_commands(reconciler: Reconciler, proxy: FakeProxy):
    """Its only server is disabled, and another comes: the other one first, whatever their names."""
    reconciler.reconcile(data(a=1))
    after = state(a=2)
    after["backends"]["a"]["servers"]["a"]["disabled"] = True
    serving = []
    proxy.fail["tell"] = lambda: serving.append(any(server.up for server in proxy.servers.values()))
    assert reconciler.reconcile(json.dumps(after).encode()).plan == "runtime"
    assert all(serving)
    assert told(proxy)[-1] == "set server a/a state maint"


def test_a_weight_of_zero_comes_last(reconciler: Reconciler, proxy: FakeProxy):
    reconciler.reconcile(data(a=1))
    after = state(a=2)
    after["backends"]["a"]["servers"]["a"]["weight"] = 0
    reconciler.reconcile(json.dumps(after).encode())
    assert told(proxy)[-1] == "set server a/a weight 0"
