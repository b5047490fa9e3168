"""A hint that something happened in a folder. Only a hint: whoever gets it reads again and compares.

watchdog's events are not to be trusted further than that (FACTS, pfSense 6: on FreeBSD an atomic replace comes as
`deleted`, and the thread can die silently); the resync tick is what guarantees.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from agent.host.writes import Writes

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


@contextlib.contextmanager
def watching(file: Path, hint: Callable[[], None], writes: Writes | None = None) -> Iterator[bool]:
    """Call `hint`, from another thread, when `file` may have changed. Yields whether watching works at all.

    `writes` learns of each event about the file, before the hint.
    """
    observer = Observer()
    try:
        for path in _names(file):  # a link's target changes in its own folder
            observer.schedule(_Handler(path.name, hint, writes), str(path.parent), recursive=False)
        observer.start()
    except OSError:  # no such folder, or the system's watches are used up: the resync tick remains
        yield False
        return
    if writes is not None:
        writes.reports_closes = "inotify" in type(observer).__module__
    try:
        yield True
    finally:
        observer.stop()
        observer.join(timeout=2)


def _names(file: Path) -> set[Path]:
    try:
        return {file, file.resolve()}
    except (OSError, RuntimeError):  # a link that leads to itself, which may be mended while we watch
        return {file}
