"""A hint that something happened in a folder. Only a hint: its receiver reads again and compares.

watchdog's events are not to be trusted further than that (facts.md, pfSense 6: on FreeBSD an atomic replace comes as
`deleted`, and the thread can die silently); the resync tick is what guarantees.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from agent.host.file_writes import Writes

_log = logging.getLogger(__name__)
_STOP_SECONDS = 2
_RETRY_SECONDS = 30.0  # between two tries where the folder is there and cannot be watched: each takes descriptors

# Reading the desired file makes events of its own on Linux; they say nothing new.
_OWN_EVENTS = ("opened", "closed_no_write")


class _Handler(FileSystemEventHandler):
    def __init__(self, name: str, hint: Callable[[], None], writes: Writes | None) -> None:
        self._name = name
        self._hint = hint
        self._writes = writes

    def on_any_event(self, event: FileSystemEvent) -> None:
        source, target = str(event.src_path), str(getattr(event, "dest_path", ""))
        if event.event_type in _OWN_EVENTS:
            return
        if event.is_directory or any(self._is(path) for path in (source, target)):
            if self._writes is not None and (target if event.event_type == "moved" else source).endswith(
                f"/{self._name}"
            ):
                self._writes.event(event.event_type)
            self._hint()

    def _is(self, path: str) -> bool:
        return path.endswith((f"/{self._name}", f"/{self._name}.sig"))


class Watch:
    """The watch on the folders of a file, made anew where it has ended.

    On FreeBSD watchdog's thread ends without a word where the folder is gone for a moment: its snapshot raises ENOENT
    (KqueueEmitter.queue_events of watchdog/observers/kqueue.py). On Linux the watch ends with the folder.
    """

    def __init__(self, file: Path, hint: Callable[[], None], writes: Writes | None) -> None:
        self._file, self._hint, self._writes = file, hint, writes
        self._observer: BaseObserver | None = None
        self._folders: Mapping[Path, tuple[int, int]] = {}
        self._retry_at = 0.0
        self.works = True
        """Whether changes are seen before the next resync."""

    def renew(self) -> None:
        """Watch again where the watch has ended, or the folder (or that of a link's target) is another one.

        What happened meanwhile may have been missed, so `hint` is called then.
        """
        folders = _folders(self._file)
        observer = self._observer
        alive = observer is not None and all(thread.is_alive() for thread in (observer, *observer.emitters))
        waits = observer is None and time.monotonic() < self._retry_at
        if folders == self._folders and (alive or waits):
            return
        first = observer is None and self.works
        self.stop()
        worked, self.works = self.works, self._start(folders)
        if not self.works and worked:
            _log.warning("cannot watch %s: changes are seen at each resync only", self._file.parent)
        elif self.works and not first:
            _log.info("watching %s again", self._file.parent)
            self._hint()

    def stop(self) -> None:
        """End the watch. A thread that does not end in time is left behind."""
        observer, self._observer = self._observer, None
        if observer is not None and observer.is_alive():
            observer.stop()
            observer.join(timeout=_STOP_SECONDS)

    def _start(self, folders: Mapping[Path, tuple[int, int]]) -> bool:
        self._folders, self._retry_at = folders, time.monotonic() + _RETRY_SECONDS
        observer = Observer()
        try:
            for path in _names(self._file):  # a link's target changes in its own folder
                observer.schedule(_Handler(path.name, self._hint, self._writes), str(path.parent), recursive=False)
            observer.start()
        except OSError:  # no such folder, or the system's watches are used up: the resync tick remains
            return False
        if self._writes is not None:
            self._writes.reports_closes = "inotify" in type(observer).__module__
        self._observer = observer
        return True


@contextlib.contextmanager
def watching(file: Path, hint: Callable[[], None], writes: Writes | None = None) -> Iterator[Watch]:
    """Call `hint`, from another thread, when `file` may have changed. Yields the watch, to be renewed now and then.

    `writes` learns of each event about the file, before the hint.
    """
    watch = Watch(file, hint, writes)
    watch.renew()
    try:
        yield watch
    finally:
        watch.stop()


def _folders(file: Path) -> dict[Path, tuple[int, int]]:
    """The folders to watch that are there, each with its device and inode."""
    identities = {}
    for folder in {path.parent for path in _names(file)}:
        with contextlib.suppress(OSError):
            about = folder.stat()
            identities[folder] = (about.st_dev, about.st_ino)
    return identities


def _names(file: Path) -> set[Path]:
    try:
        return {file, file.resolve()}
    except (OSError, RuntimeError):  # a link that leads to itself, which may be mended while we watch
        return {file}
