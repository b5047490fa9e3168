"""Files: old or new, never between; what a crash left is passed over, not trusted."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from agent.desired.identity import digest_of
from agent.errors import StoreError
from agent.host.store import Store, write
from agent.reconcile.event import Event, Kind
from agent.reconcile.generation import Generation, Hold, Journal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state", tmp_path / "run", keep=3)
    made.prepare()
    return made


HOLD = b'{"digest": "d", "reason": "r", "since": 1e30}'


def commit(store: Store, text: str = "x") -> int:
    number = store.next_number()
    store.stage(number, desired=text.encode(), config=text.encode())
    store.commit(generation(number, text))
    return number


def generation(number: int, text: str) -> Generation:
    digest = digest_of(text.encode())
    return Generation(
        number=number, digest=digest, config_digest=digest, loaded=number, at=1.5, outcome="committed", reasons=("why",)
    )


def test_a_committed_generation_is_the_live_one_with_its_exact_bytes(store: Store):
    assert (store.live(), store.next_number()) == (None, 1)
    commit(store, "one")
    commit(store, "two\r\n\x00")
    live = store.live()
    assert live == generation(2, "two\r\n\x00")
    assert store.desired_of(2) == store.config_of(2) == b"two\r\n\x00"
    assert [one.number for one in store.generations()] == [1, 2]


def test_only_so_many_generations_are_kept_and_numbers_go_on(store: Store):
    for _ in range(5):
        commit(store)
    assert [one.number for one in store.generations()] == [3, 4, 5]
    assert store.next_number() == 6


@pytest.mark.parametrize("how", ["truncated", "emptied", "removed"])
@pytest.mark.parametrize("name", ["report.json", "desired.yaml", "haproxy.cfg"])
def test_a_generation_that_was_cut_short_is_passed_over_and_its_number_not_used_again(
    store: Store, name: str, how: str
):
    commit(store, "whole")
    cut = store.state / f"generations/{commit(store):06d}" / name
    if how == "removed":
        cut.unlink()
    else:
        cut.write_bytes(cut.read_bytes()[:-1] if how == "truncated" else b"")
    live = store.live()
    assert live is not None
    assert (live.number, store.next_number()) == (1, 3)


@pytest.mark.parametrize("junk", [b"", b"[]", b"{", b'{"digest": 1}', b"\xff", b'{"x": 1}', HOLD, b"[" * 100_000])
def test_junk_in_journal_hold_and_status_reads_as_absent(store: Store, junk: bytes):
    for path in (store.state / "journal.json", store.state / "hold.json"):
        path.write_bytes(junk)
    store.status_file.write_bytes(junk)
    assert store.hold() is None
    assert store.status() == (json.loads(junk) if junk.endswith(b"}") else None)
    commit(store)
    folder = store.state / "generations/000001"
    (folder / "report.json").write_bytes(junk)
    assert store.live() is None


def test_journal_and_hold_come_back_as_they_were(store: Store):
    store.write_journal(Journal(before=None, after=4))
    assert json.loads((store.state / "journal.json").read_text()) == {
        "before": None, "after": 4, "runtime": False, "servers": [], "serving": [], "unproven": [],
    }  # fmt: skip
    full = Journal(
        before=3, after=4, runtime=True, servers=(("b", "s"),), serving=(("f", ("b", "c")),), unproven=(("b", "s"),)
    )
    store.write_journal(full)
    assert store.journal() == full
    store.write_journal(Journal(before=None, after=4))
    store.clear_journal()
    store.clear_journal()
    assert not (store.state / "journal.json").exists()
    hold = Hold(digest="d", reason="it hurt", since=2.0)
    store.write_hold(hold)
    assert store.hold() == hold
    store.write_hold(None)
    assert store.hold() is None


def test_staging_drops_what_was_staged_before(store: Store):
    store.stage(1, desired=b"a", config=b"a")
    store.stage(2, desired=b"b", config=b"b")
    assert (store.staged(1), store.staged(2)) == (None, (b"b", b"b"))
    store.unstage()
    assert (store.staged(2), store.live()) == (None, None)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_bytes_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    path = tmp_path / "file"
    write(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StoreError, match=r"cannot write .*file: No space left on device") as caught:
        write(path, b"new")
    assert "space left" in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path):
    path = tmp_path / "file"
    versions = [bytes([65 + one]) * 200_000 for one in range(4)]
    write(path, versions[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    for round_ in range(100):
        write(path, versions[round_ % 4], durable=False)
    stop.set()
    thread.join()
    assert seen <= set(versions)
    assert seen


def test_the_service_lock_tells_whether_an_agent_is_there(store: Store):
    assert not store.service_running()
    with store.service(waiting=lambda _: None):
        assert store.service_running()
    assert not store.service_running()


def test_whoever_waits_for_the_lock_is_told_once_and_then_gets_it(store: Store):
    told, order = threading.Event(), []
    inside = threading.Event()

    def second() -> None:
        with store.lock(waiting=lambda _: told.set()):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.lock(waiting=lambda _: None):
        thread.start()
        assert told.wait(10)
        order.append("first")
        inside.set()
    thread.join(10)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StoreError, match="cannot make"):
        Store(tmp_path / "state", tmp_path / "run").prepare()


@pytest.mark.parametrize(
    ("key", "value"),
    [("at", "x"), ("at", 1e30), ("at", -1), ("digest", 5), ("reasons", [1]), ("reasons", 1), ("seconds", "x"),
     ("number", "1"), ("loaded", None), ("name", 1), ("serial", "1")],
)  # fmt: skip
def test_a_report_of_other_types_is_passed_over(store: Store, key: str, value: object):
    commit(store)
    path = store.state / "generations/000001/report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert (store.live(), store.generations()) == (None, ())


def test_strange_names_among_the_generations_are_nobody_s_business(store: Store):
    for name in ("\u00b2", "1x", "x", "000001.old"):
        (store.state / "generations" / name).mkdir()
    assert (store.live(), store.next_number()) == (None, 1)


def test_where_nothing_is_to_be_done_nothing_is_asked_of_the_file_system(store: Store, monkeypatch: pytest.MonkeyPatch):
    """A read-only file system refuses even the removal of what is not there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    store.clear_journal()
    store.write_hold(None)
    store.write_config(None)


def test_the_lock_is_tried_without_waiting(store: Store):
    with store.try_lock() as first, store.try_lock() as second:
        assert (first, second) == (True, False)
    with store.try_lock() as again:
        assert again


def test_the_service_lock_outlives_a_wiped_run_folder(store: Store):
    with store.service(waiting=lambda _: None):
        for path in store.run.iterdir():
            path.unlink()
        store.run.rmdir()
        assert store.service_running()


def test_what_a_later_version_has_written_is_read_but_for_its_new_keys(store: Store):
    """`install --revert`: history, hold and journal must not vanish with a key that this version does not know."""
    number = commit(store)
    store.write_hold(Hold(digest="d", reason="r", since=1.0))
    store.write_journal(Journal(before=number, after=number + 1, runtime=True, servers=(("b", "s"),)))
    store.add_events([Event(kind=Kind.FRONTEND_DOWN.value, subject="f", message="m", at=1.0, until=1.0)])
    before = (store.live(), store.hold(), store.journal(), store.events())
    assert all(before)
    for file in (store.state / f"generations/{number:06d}/report.json", store.state / "hold.json",
                 store.state / "journal.json"):  # fmt: skip
        file.write_text(json.dumps({**json.loads(file.read_text()), "later": {"x": 1}}))
    events = store.state / "events.json"
    events.write_text(json.dumps([{**entry, "later": 1} for entry in json.loads(events.read_text())]))
    assert (store.live(), store.hold(), store.journal(), store.events()) == before
