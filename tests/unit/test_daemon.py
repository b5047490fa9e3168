"""When to converge: hints are gathered, signals are obeyed, a failing host does not end the service."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.service.daemon import DEBOUNCE_CEILING, HINT, LOOK, STOP, Service
from agent.settings import Apply, Milliseconds, Paths, Settings


def service(folder: Path, reconcile, healthy=lambda: True, *, debounce: int = 25, resync: int = 3_600_000) -> Service:
    settings = Settings(
        paths=Paths(desired=f"{folder}/desired.yaml"),
        apply=Apply(debounce=Milliseconds(debounce), resync=Milliseconds(resync)),
    )
    known = [_content(settings.desired)]

    def look() -> float:
        known[0] = _content(settings.desired)
        return 0.1 if reconcile() is False else 0.0

    return Service(
        settings=settings, reconcile=look, changed=lambda: _content(settings.desired) != known[0], healthy=healthy
    )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def test_hints_that_go_on_coming_are_looked_at_after_the_ceiling(tmp_path: Path):
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.002):
            mailbox.put(HINT)

    thread = threading.Thread(target=chatter)
    thread.start()
    start = time.monotonic()
    word = service(tmp_path, lambda: None)._settle(mailbox, HINT)
    took = time.monotonic() - start
    stop.set()
    thread.join()
    assert word == HINT
    assert 0.025 <= took < 0.025 * DEBOUNCE_CEILING * 4


def test_a_stop_among_the_hints_is_obeyed_at_once(tmp_path: Path):
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    for word in (LOOK, STOP, LOOK):
        mailbox.put(word)
    assert service(tmp_path, lambda: None)._settle(mailbox, HINT) == STOP


def test_a_signal_among_the_hints_is_a_look_whatever_the_file_says(tmp_path: Path):
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    for word in (HINT, LOOK, HINT):
        mailbox.put(word)
    assert service(tmp_path, lambda: None)._settle(mailbox, HINT) == LOOK


def run_until(folder: Path, steps: list, **more) -> int:
    """Run the service in this, the main, thread; each converge takes the next step; the last is SIGTERM."""
    done = 0

    def reconcile() -> None:
        nonlocal done
        done += 1
        if done <= len(steps):
            steps[done - 1]()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    service(folder, reconcile, **more).run()
    return done


def test_each_new_file_is_looked_at_and_sigterm_ends_after_the_step(tmp_path: Path):
    def rename() -> None:
        (tmp_path / "fresh").write_text("x")
        (tmp_path / "fresh").rename(tmp_path / "desired.yaml")

    def rewrite() -> None:
        (tmp_path / "desired.yaml").write_text("y")

    assert run_until(tmp_path, [rename, rewrite, rename]) == 4


def test_other_files_in_the_folder_are_no_news(tmp_path: Path):
    def other() -> None:
        (tmp_path / "other").write_text("x")
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGTERM)).start()

    assert run_until(tmp_path, [other]) == 1


def test_sighup_looks_now(tmp_path: Path):
    assert run_until(tmp_path, [lambda: os.kill(os.getpid(), signal.SIGHUP)]) == 2


def test_the_resync_tick_looks_without_a_hint(tmp_path: Path):
    assert run_until(tmp_path, [lambda: None, lambda: None], resync=50) == 3


def test_a_haproxy_that_does_not_answer_is_looked_after(tmp_path: Path):
    answers = iter([False, True, True])
    assert run_until(tmp_path, [lambda: None], healthy=lambda: next(answers)) == 2


def test_a_host_that_fails_does_not_end_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def fail() -> None:
        raise StoreError("no space left", remedy="make some")

    with caplog.at_level(logging.ERROR):
        assert run_until(tmp_path, [fail, fail], resync=50) == 3
    assert "no space left (make some)" in caplog.text


def test_a_folder_that_is_not_there_is_said_and_the_tick_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert run_until(tmp_path / "absent", [lambda: None], resync=50) == 2
    assert "changes are seen at each resync only" in caplog.text


def test_signal_handlers_are_given_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    run_until(tmp_path, [])
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_another_has_the_lock_it_is_tried_again_soon_and_signals_are_heard(tmp_path: Path):
    looks = []

    def busy() -> bool:
        looks.append(time.monotonic())
        if len(looks) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    service(tmp_path, busy).run()
    assert len(looks) == 4
