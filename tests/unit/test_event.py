"""Events: what is one, what is told at once, and what is told together."""

from __future__ import annotations

from pathlib import Path

from agent.host.store import MOST_EVENTS, Store
from agent.reconcile.event import WINDOW_SECONDS, Damper, Event, Kind, frontend_changes, recorded


def change(name: str, at: float, *, serves: bool) -> list[Event]:
    words = ("", "0 of 1 servers up")
    return frontend_changes({name: words[serves]}, {name: words[not serves]}, at=at)


def test_only_a_frontend_that_was_there_before_can_lose_its_servers_or_get_one_back():
    before, now = {"a": "", "b": "x", "c": "", "gone": ""}, {"a": "0 of 1 servers up", "b": "", "c": "", "new": "x"}
    assert [(event.kind, event.subject) for event in frontend_changes(before, now, at=1.0)] == [
        (Kind.FRONTEND_DOWN, "a"),
        (Kind.FRONTEND_UP, "b"),
    ]


def test_one_change_is_told_at_once_and_only_once():
    damper = Damper()
    assert len(damper.take(change("a", 0.0, serves=False), 0.0)) == 1
    assert damper.take([], WINDOW_SECONDS) == []
    (back,) = damper.take(change("a", WINDOW_SECONDS + 1, serves=True), WINDOW_SECONDS + 1)
    assert (back.kind, back.count) == (Kind.FRONTEND_UP, 1)


def test_ten_changes_in_a_minute_are_one_event_with_a_count():
    damper, told = Damper(), []
    for number in range(10):
        told += damper.take(change("a", number * 5.0, serves=number % 2 == 1), number * 5.0)
    told += damper.take([], WINDOW_SECONDS)
    first, together = told
    assert (first.count, together.count, together.kind) == (1, 10, Kind.FRONTEND_UP)
    assert together.message == "changed 10 times within 60 s; now: frontend a serves again"
    assert (together.at, together.until) == (0.0, 45.0)
    assert recorded([first], [together], most=10) == (together,)


def test_subjects_are_damped_apart_and_a_clock_set_back_ends_a_window():
    damper = Damper()
    damper.take(change("a", 1_000.0, serves=False), 1_000.0)
    assert [event.subject for event in damper.take(change("b", 1_001.0, serves=False), 1_001.0)] == ["b"]
    assert damper.take(change("a", 1_002.0, serves=True), 1_002.0) == []
    assert [event.count for event in damper.take([], 5.0)] == [2]


def test_the_record_is_bounded_and_a_damaged_one_is_empty(tmp_path: Path):
    store = Store(tmp_path / "state", tmp_path / "run")
    store.prepare()
    for at in range(MOST_EVENTS + 5):
        store.add_events(change("a", float(at), serves=False))
    assert len(store.events()) == MOST_EVENTS
    assert store.events()[-1].at == MOST_EVENTS + 4
    (store.state / "events.json").write_text('[{"kind": "no such kind"}]')
    assert store.events() == ()
    store.add_events(change("a", 1.0, serves=False))
    assert len(store.events()) == 1
