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

# Reading the desired file makes events of its own on Linux; they say nothing new.
_OWN_EVENTS = ("opened", "closed_no_write")


class _Handler(FileSystemEventHandler):
    def __init__(self, name: str, hint: Callable[[], None]) -> None:
        self._name = name
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = (str(event.src_path), str(getattr(event, "dest_path", "")))
        if event.event_type not in _OWN_EVENTS and (
            event.is_directory or any(path.endswith((f"/{self._name}", f"/{self._name}.sig")) for path in paths)
        ):
            self._hint()


@contextlib.contextmanager
def watching(file: Path, hint: Callable[[], None]) -> Iterator[bool]:
    """Call `hint`, from another thread, when `file` may have changed. Yields whether watching works at all."""
    observer = Observer()
    try:
        for path in {file, file.resolve()}:  # a link's target changes in its own folder
            observer.schedule(_Handler(path.name, hint), str(path.parent), recursive=False)
        observer.start()
    except OSError:  # no such folder, or the system's watches are used up: the resync tick remains
        yield False
        return
    try:
        yield True
    finally:
        observer.stop()
        observer.join(timeout=2)
