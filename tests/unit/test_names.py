"""Servers by host name: which answer is used, and what the reconcile makes of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from attrs import evolve
from kit.fakes import Clock, FakeNames, FakeProxy
from kit.reconciler import checks_fail, make_reconciler, prober, told

from agent.desired.addresses import server_endpoint
from agent.desired.state import parse
from agent.errors import InvalidError, Outcome, Violation
from agent.haproxy.observed import Running
from agent.host import resolver
from agent.host.resolver import MAX_THREADS, Resolver, lookup
from agent.proxy_protocol.greetings import Result
from agent.reconcile import names
from agent.reconcile.reconciler import Reconciler


def document(address: str = "mx.example.org:25", **more: object) -> bytes:
    pool = {"application": "smtp", "servers": {"a": {"address": address}}, **more}
    return json.dumps(
        {
            "version": 1,
            "frontends": {"f": {"bind": ["192.0.2.1:25"], "backend": "b"}},
            "backends": {"b": pool},
        }
    ).encode()


def fake_names(reconciler: Reconciler) -> FakeNames:
    assert isinstance(reconciler.environment.names, FakeNames)
    return reconciler.environment.names


@pytest.fixture
def reconciler(tmp_path: Path, proxy: FakeProxy) -> Reconciler:
    made = make_reconciler(tmp_path, proxy)
    fake_names(made).addresses["mx.example.org"] = ("198.51.100.1",)
    return made


# --- what may be written


@pytest.mark.parametrize("text", ["mx1.example.org:25", "MX1.Example.ORG:25", "mailhost:25", "a_b.example.org:65535"])
def test_a_server_may_have_a_name(text: str):
    where = server_endpoint(text)
    assert (str(where), where.name, where.resolved) == (text.lower(), text.lower().rpartition(":")[0], False)


@pytest.mark.parametrize(
    "text",
    ["10.0.20.300:25", "10.0.20:25", "1:25", "mx.example.123:25", "mx..org:25", "-a.org:25", "mx.example.org", "a b:25",
     "mx.example.org:0", "mx.example.org:70000", "mx\n.org:25", "[mx.example.org]:25", f"{'a' * 64}.org:25", "*.org:25",
     f"{'.'.join(['a' * 60] * 5)}:25", "mx.example.org.:25", "ünïcode.org:25"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str):
    with pytest.raises(InvalidError):
        parse(document(text), file="d")


def test_only_servers_have_names():
    bound = json.loads(document())
    bound["frontends"]["f"]["bind"] = ["mx.example.org:25"]
    with pytest.raises(InvalidError, match="names are not looked up"):
        parse(json.dumps(bound).encode(), file="d")


# --- which answer is used


def choose(answers: dict[str, tuple[str, ...]], known: dict[str, str], **more: object) -> names.Resolution:
    return names.choose({"n"}, answers, known, **more)  # type: ignore[arg-type]


def test_the_present_address_stays_while_it_is_among_the_answers():
    assert choose({"n": ("192.0.2.2", "192.0.2.1")}, {"n": "192.0.2.1"}).addresses == {"n": "192.0.2.1"}
    assert choose({"n": ("192.0.2.2", "192.0.2.3")}, {"n": "192.0.2.1"}).addresses == {"n": "192.0.2.2"}


def test_without_an_answer_the_last_address_stays():
    for answers in ({}, {"n": ()}, {"n": ("0.0.0.0", "224.0.0.1", "::", "fe80::1", "fe80::1%eth0", "x")}):
        kept = choose(answers, {"n": "192.0.2.1"})
        assert (kept.addresses, kept.silent) == ({"n": "192.0.2.1"}, {"n"})
        assert choose(answers, {}).addresses == {}


def test_a_mapped_address_is_an_ipv4_address():
    assert choose({"n": ("::ffff:192.0.2.7",)}, {}).addresses == {"n": "192.0.2.7"}


def test_an_answer_that_hurt_is_not_taken_again():
    worse = {("n", "192.0.2.2")}
    kept = choose({"n": ("192.0.2.2",)}, {"n": "192.0.2.1"}, worse=worse)
    assert (kept.addresses, kept.worse, kept.silent) == ({"n": "192.0.2.1"}, worse, frozenset())
    assert choose({"n": ("192.0.2.2", "192.0.2.3")}, {"n": "192.0.2.1"}, worse=worse).addresses == {"n": "192.0.2.3"}


def test_an_answer_that_this_document_binds_is_a_loop(reconciler: Reconciler):
    """A client of HAProxy would be HAProxy, until no connection is left."""
    reconciler.reconcile(document())
    fake_names(reconciler).addresses["mx.example.org"] = ("192.0.2.1",)  # what frontend f binds at port 25
    report = reconciler.reconcile(document())
    assert report.outcome is Outcome.UNCHANGED
    assert "mx.example.org is 192.0.2.1 now, which this document binds itself: a loop; 198.51.100.1 is used" in str(
        report.findings
    )
    # Also where the frontend comes later than the address: it is left out, or another one is taken.
    moved = choose({"n": ("192.0.2.5", "192.0.2.6")}, {"n": "192.0.2.5"}, is_own=lambda pair: pair[1] == "192.0.2.5")
    assert moved.addresses == {"n": "192.0.2.6"}
    assert choose({"n": ("192.0.2.5",)}, {"n": "192.0.2.5"}, is_own=lambda _: True).addresses == {}
    is_own = names.own(parse(document("mx.example.org:2525"), file="d").state, lambda _: True)
    assert not is_own(("mx.example.org", "192.0.2.1"))  # at another port it is none
    wild = json.loads(document())
    wild["frontends"]["f"]["bind"] = ["0.0.0.0:25"]
    is_own = names.own(parse(json.dumps(wild).encode(), file="d").state, {"10.0.20.1", "127.0.0.1"}.__contains__)
    assert is_own(("mx.example.org", "127.0.0.1"))
    assert is_own(("mx.example.org", "10.0.20.1"))  # a wildcard binds each address of this host
    assert not is_own(("mx.example.org", "198.51.100.1"))
    assert not is_own(("mx.example.org", "::1"))  # of another family
    assert [Resolver().is_here(address) for address in ("127.0.0.1", "::1", "192.0.2.77")] == [True, True, False]


# --- the reconcile


def test_a_name_is_an_address_in_haproxy_cfg_and_in_the_generation(reconciler: Reconciler, proxy: FakeProxy):
    report = reconciler.reconcile(document())
    assert report.outcome is Outcome.COMMITTED
    config = reconciler.environment.store.config_of(1).decode()
    assert "server a 198.51.100.1:25 " in config
    assert "mx.example.org" not in config
    live = reconciler.environment.store.live()
    assert live is not None
    assert live.resolved == (("mx.example.org", "198.51.100.1"),)


def test_it_moves_at_runtime_and_the_digest_stays(reconciler: Reconciler, proxy: FakeProxy):
    first = reconciler.reconcile(document())
    proxy.calls.clear()
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.2",)
    report = reconciler.reconcile(document())
    assert (report.outcome, report.plan, report.digest) == (Outcome.COMMITTED, "runtime", first.digest)
    assert report.reasons == ("server b/a moved from 198.51.100.1:25 to 198.51.100.2:25",)
    assert report.actor == "agent"
    assert any("set server b/a addr 198.51.100.2 port 25" in command for command in told(proxy))
    assert ("b", "a") in prober(reconciler).greeted  # asked as any server that has moved
    again = reconciler.reconcile(document())
    assert (again.outcome, again.generation) == (Outcome.UNCHANGED, 2)


def test_a_name_that_hurts_while_the_state_is_held_freezes_nothing_else(reconciler: Reconciler, proxy: FakeProxy):
    checked = document(health={"type": "http"})
    reconciler.reconcile(checked)
    broken = InvalidError("d", (Violation((), "broken"),))
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.2",)
    proxy.fail["observe"] = checks_fail(proxy, ("b", "a"))
    reconciler.reconcile(broken)
    del proxy.fail["observe"]
    proxy.servers["b", "a"] = evolve(proxy.servers["b", "a"], status="UP", check="L7OK")
    assert "198.51.100.1:25" in reconciler.environment.store.config_of(1).decode()
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.3",)
    report = reconciler.reconcile(broken)
    assert (report.outcome, report.generation) == (Outcome.INVALID, 2)
    assert "server a 198.51.100.3:25 " in reconciler.environment.store.config_of(2).decode()


def test_a_name_that_is_silent_keeps_its_address_and_is_a_finding(reconciler: Reconciler):
    reconciler.reconcile(document())
    fake_names(reconciler).addresses.clear()
    report = reconciler.reconcile(document())
    assert (report.outcome, report.silent) == (Outcome.UNCHANGED, {"mx.example.org"})
    assert "mx.example.org does not resolve: its last address 198.51.100.1 stays" in str(report.findings)


def test_a_name_that_never_was_is_left_out_until_it_is(reconciler: Reconciler, proxy: FakeProxy):
    fake_names(reconciler).addresses.clear()
    two = json.loads(document())
    two["backends"]["b"]["servers"]["z"] = {"address": "198.51.100.9:25"}
    report = reconciler.reconcile(json.dumps(two).encode())
    assert report.outcome is Outcome.COMMITTED
    assert "the server is left out until it does" in str(report.findings)
    assert "server a " not in reconciler.environment.store.config_of(1).decode()
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.1",)
    report = reconciler.reconcile(json.dumps(two).encode())
    assert (report.outcome, report.plan, report.reasons) == (Outcome.COMMITTED, "runtime", ("server b/a added",))


def test_a_frontend_that_serves_is_not_left_with_a_name_that_is_none(reconciler: Reconciler):
    reconciler.reconcile(document("198.51.100.9:25"))
    fake_names(reconciler).addresses.clear()
    report = reconciler.reconcile(document())
    assert report.outcome is Outcome.REFUSED
    assert report.generation == 1


def test_names_move_while_the_desired_state_is_held_or_refused(reconciler: Reconciler, proxy: FakeProxy):
    reconciler.reconcile(document())
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.2",)
    report = reconciler.reconcile(InvalidError("d", (Violation((), "broken"),)))
    assert (report.outcome, report.generation) == (Outcome.INVALID, 2)
    assert "server a 198.51.100.2:25 " in reconciler.environment.store.config_of(2).decode()
    fake_names(reconciler).addresses.clear()
    report = reconciler.reconcile(InvalidError("d", (Violation((), "broken"),)))
    assert report.silent == {"mx.example.org"}
    assert "its last address 198.51.100.2 stays" in str(report.findings)
    # Where it may not move, what is live goes on as it is.
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.3",)
    prober(reconciler).odd["198.51.100.3:25"] = Result.PLAIN
    report = reconciler.reconcile(InvalidError("d", (Violation((), "broken"),)))
    assert (report.outcome, report.generation) == (Outcome.INVALID, 2)


def test_the_newest_address_that_is_known_counts(reconciler: Reconciler):
    reconciler.reconcile(document())
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.2",)
    reconciler.reconcile(document())
    reconciler.reconcile(document("198.51.100.9:25"))
    fake_names(reconciler).addresses.clear()
    reconciler.reconcile(document())
    assert "server a 198.51.100.2:25 " in reconciler.environment.store.config_of(4).decode()


def test_a_name_that_moves_back_and_forth_leaves_other_documents_in_the_history(reconciler: Reconciler):
    reconciler.reconcile(document("198.51.100.9:25"))
    for turn in range(50):
        fake_names(reconciler).addresses["mx.example.org"] = (f"198.51.100.{turn % 2 + 1}",)
        reconciler.reconcile(document())
    kept = reconciler.environment.store.generations()
    assert (kept[0].number, kept[-1].number, len(kept) <= 20) == (1, 51, True)
    assert reconciler.rollback(None, None).outcome is Outcome.COMMITTED


def test_it_comes_back_from_an_older_generation(reconciler: Reconciler):
    """Rolled back to a document with a name while the resolver is silent: the address that it had then."""
    reconciler.reconcile(document())
    reconciler.reconcile(document("198.51.100.9:25"))
    fake_names(reconciler).addresses.clear()
    report = reconciler.rollback(1, None)
    assert report.outcome is Outcome.COMMITTED, report.message
    assert "server a 198.51.100.1:25 " in reconciler.environment.store.config_of(3).decode()


def test_a_start_waits_for_no_resolver(reconciler: Reconciler, proxy: FakeProxy):
    reconciler.reconcile(document())
    assert fake_names(reconciler).asked[-1][1] > 0
    proxy.now = None
    fake_names(reconciler).asked.clear()
    report = reconciler.reconcile(document())
    assert report.generation == 1
    assert isinstance(proxy.now, Running)
    # What is live starts with the address that it had; only then the resolver is asked.
    assert proxy.calls[-2:] == [("switch", 1, None), ("wait_until_serving", 1, ["f"])]


def test_an_address_that_hurts_is_rolled_back_and_not_tried_again(reconciler: Reconciler, proxy: FakeProxy):
    checked = document(health={"type": "http"})
    reconciler.reconcile(checked)
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.2",)
    proxy.fail["observe"] = checks_fail(proxy, ("b", "a"))
    report = reconciler.reconcile(checked)
    assert report.outcome is Outcome.ROLLED_BACK
    assert reconciler.environment.store.hold() is None
    del proxy.fail["observe"]
    proxy.servers["b", "a"] = evolve(proxy.servers["b", "a"], status="UP", check="L7OK")
    proxy.calls.clear()
    report = reconciler.reconcile(checked)
    assert report.outcome is Outcome.UNCHANGED, report.message
    assert "198.51.100.2 now, which was tried and rolled back: 198.51.100.1 stays" in str(report.findings)
    clock = reconciler.environment.clock
    assert isinstance(clock, Clock)
    clock.sleep(700)  # it may have become ready since
    report = reconciler.reconcile(checked)
    assert (report.outcome, report.plan) == (Outcome.COMMITTED, "runtime")


def test_a_server_that_moved_where_it_does_not_speak_proxy_is_refused(reconciler: Reconciler):
    reconciler.reconcile(document())
    fake_names(reconciler).addresses["mx.example.org"] = ("198.51.100.2",)
    prober(reconciler).odd["198.51.100.2:25"] = Result.PLAIN
    report = reconciler.reconcile(document())
    assert (report.outcome, report.generation) == (Outcome.REFUSED, 1)
    assert "198.51.100.2:25" in report.message


# --- the resolver


def test_a_silent_resolver_costs_no_more_than_it_may():
    held = threading.Event()
    asking = Resolver(lookup=lambda name: ("192.0.2.1",) if held.wait(30) else ())
    assert asking.answers([f"n{number}" for number in range(50)], seconds=0.05) == {}
    assert sum(thread.name == "resolver" for thread in threading.enumerate()) <= MAX_THREADS
    held.set()
    assert asking.answers(["n0"], seconds=10) == {"n0": ("192.0.2.1",)}


def test_a_late_answer_is_that_of_the_next_look():
    held, lookups = threading.Event(), []

    def late(name: str) -> tuple[str, ...]:
        lookups.append(name)
        held.wait(30)
        return ("192.0.2.1",)

    asking = Resolver(lookup=late)
    assert asking.answers(["n"], seconds=0.01) == {}
    held.set()
    assert asking.answers(["n"], seconds=10) == {"n": ("192.0.2.1",)}
    assert lookups == ["n"]  # not asked twice at once


def test_an_answer_is_believed_for_a_while():
    lookups: list[str] = []
    asking = Resolver(believe_seconds=60, lookup=lambda name: lookups.append(name) or ())  # type: ignore[func-returns-value]
    for _ in range(3):
        assert asking.answers(["n"], seconds=10) == {"n": ()}
    assert lookups == ["n"]
    asking.answers(["other"], seconds=10)  # of another document
    asking.answers(["n"], seconds=10)
    assert lookups == ["n", "other", "n"]


def test_where_any_address_can_be_bound_only_loopback_is_here(monkeypatch: pytest.MonkeyPatch):
    """net.ipv4.ip_nonlocal_bind is common beside keepalived: no name may be taken for a loop because of it."""
    monkeypatch.setattr(resolver, "_can_be_bound", lambda _: True)
    assert [Resolver().is_here(address) for address in ("127.0.0.1", "10.0.20.1")] == [True, False]


def test_the_systems_own():
    assert set(lookup("localhost")) & {"127.0.0.1", "::1"}
    assert lookup("no.such.name.invalid") == ()
    assert lookup("a" * 70) == ()
