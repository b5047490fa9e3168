"""The watch on the desired file's folder: made anew where it has ended, and where the folder is another one."""

from __future__ import annotations

import errno
import logging
import os
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from kit.edge import until
from watchdog.events import DirModifiedEvent
from watchdog.observers.api import BaseObserver, EventEmitter
from watchdog.utils.dirsnapshot import DirectorySnapshot

from agent.host import file_watcher
from agent.host.file_watcher import watching


class KqueueLike(EventEmitter):
    """As KqueueEmitter.queue_events (watchdog 6 and 7, observers/kqueue.py): a snapshot of the folder at each turn.

    The snapshot raises OSError where the folder is gone; all but EBADF is raised on, which ends the thread.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._snapshot = DirectorySnapshot(str(self.watch.path), recursive=False)

    def queue_events(self, timeout: float) -> None:
        threading.Event().wait(0.01)  # the time of one turn of kqueue
        try:
            fresh = DirectorySnapshot(str(self.watch.path), recursive=False)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return
        before, self._snapshot = self._snapshot, fresh
        if (fresh - before).files_created or (fresh - before).files_modified:
            self.queue_event(DirModifiedEvent(str(self.watch.path)))


@pytest.fixture(params=["this system's", "kqueue's"])
def observer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "kqueue's":
        monkeypatch.setattr(file_watcher, "Observer", lambda: BaseObserver(KqueueLike, timeout=0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    one = tmp_path / "etc"
    one.mkdir()
    return one


def ended(watch: file_watcher.Watch) -> bool:
    assert watch._observer is not None
    return not all(emitter.is_alive() for emitter in watch._observer.emitters)


# kqueue's thread dies of its exception, as on FreeBSD.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("observer")
@pytest.mark.parametrize("how", ["for a moment", "for long"])
def test_a_folder_that_was_gone_is_watched_again(folder: Path, caplog: pytest.LogCaptureFixture, how: str):
    caplog.set_level(logging.INFO)
    hints: queue.SimpleQueue[None] = queue.SimpleQueue()
    with watching(folder / "desired.yaml", lambda: hints.put(None)) as one:
        (folder / "desired.yaml").write_text("1")
        hints.get(timeout=10)
        shutil.rmtree(folder)
        until(lambda: ended(one), "watchdog has noticed")
        if how == "for long":
            one.renew()
            assert not one.works
            one.renew()
            assert [record.levelname for record in caplog.records] == ["WARNING"]
        folder.mkdir()
        while not hints.empty():
            hints.get()
        one.renew()
        assert one.works
        hints.get(timeout=10)  # what happened meanwhile was missed
        assert "watching" in caplog.records[-1].message
        (folder / "desired.yaml").write_text("2")
        hints.get(timeout=10)
        one.renew()  # it lives: nothing to do
        assert len([record for record in caplog.records if record.levelname == "INFO"]) == 1


@pytest.mark.usefixtures("observer")
def test_another_folder_of_the_same_name_is_watched(folder: Path):
    hints: queue.SimpleQueue[None] = queue.SimpleQueue()
    with watching(folder / "desired.yaml", lambda: hints.put(None)) as one:
        folder.rename(folder.with_name("old"))
        folder.mkdir()
        one.renew()
        while not hints.empty():
            hints.get()
        (folder / "desired.yaml").write_text("1")
        hints.get(timeout=10)


def test_a_link_that_leads_elsewhere_now_is_followed(folder: Path, tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "desired.yaml").write_text(name)
    (folder / "desired.yaml").symlink_to(tmp_path / "first/desired.yaml")
    hints: queue.SimpleQueue[None] = queue.SimpleQueue()
    with watching(folder / "desired.yaml", lambda: hints.put(None)) as one:
        (folder / "fresh").symlink_to(tmp_path / "second/desired.yaml")
        (folder / "fresh").replace(folder / "desired.yaml")
        hints.get(timeout=10)
        one.renew()
        while not hints.empty():
            hints.get()
        (tmp_path / "second/desired.yaml").write_text("more")
        hints.get(timeout=10)


def test_where_nothing_can_be_watched_it_is_tried_again_now_and_then(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """`fs.inotify.max_user_watches` used up: each try takes descriptors."""
    tries = []

    class Without(BaseObserver):
        def start(self) -> None:
            tries.append(os.getpid())
            raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(file_watcher, "Observer", lambda: Without(KqueueLike))
    with watching(folder / "desired.yaml", lambda: None) as one:
        for _ in range(3):
            one.renew()
        assert (one.works, len(tries)) == (False, 1)
        monkeypatch.setattr(file_watcher.time, "monotonic", lambda: 1e9)
        one.renew()
        assert len(tries) == 2
