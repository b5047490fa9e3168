"""List and watch: one kind of object, kept as it is in the cluster, in a thread of its own.

As client-go's reflector does it: a list in pages, then watches from the version that was reached, each of a random
length so that a thousand do not end at once; bookmarks; 410 is a list anew; whatever fails is tried again, later and
later, with jitter. The official client's informer has neither bookmarks nor a pause before it tries again.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from attrs import frozen

from agent.discover.api import Api, ApiError, Watch
from agent.discover.objects import Key
from agent.remote.push import printable

PAGE = "500"  # objects of a list
WATCH_SECONDS = (240, 480)
SILENT_SECONDS = 60.0  # beyond a watch's own end; the server sends a bookmark each minute or so
BRIEF_SECONDS = 1.0  # a watch that ends so soon has not been one
FIRST_SECONDS, MOST_SECONDS = 0.5, 10.0
_GONE = 410
_NOT_FOUND = 404
_NOT_SO = (400, _NOT_FOUND, 500, 504)

_log = logging.getLogger("agent.discover")
T = TypeVar("T")


class Backoff:
    """How long to wait after each failure in a row: twice as long, with jitter, up to a limit; in seconds."""

    def __init__(self, first: float = FIRST_SECONDS, most: float = MOST_SECONDS) -> None:
        self._first, self._most, self._next = first, most, first

    def next(self) -> float:
        """From half of it to all of it: many that failed at once do not come back at once."""
        wait, self._next = self._next, min(self._next * 2, self._most)
        return wait * random.uniform(0.5, 1)  # noqa: S311  # spreads load, guards nothing

    def reset(self) -> None:
        """It went well."""
        self._next = self._first


@frozen
class Kind(Generic[T]):
    """`paths`: where it is served, the newest version first. `read`: the API's JSON to a value; `name`: in metrics."""

    name: str
    paths: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], T]


class Reflector(Generic[T]):
    """All objects of a kind. `changed` is called, from its thread, after each difference that matters.

    An object that cannot be read is left as it was, and said: the others go on.
    """

    def __init__(self, api: Api, kind: Kind[T], *, changed: Callable[[], None], end: threading.Event) -> None:
        self._api, self._kind, self._changed, self._end = api, kind, changed, end
        self._lock = threading.Lock()
        self._objects: dict[Key, T] = {}
        self._path = 0
        self._version, self._told, self._stopped = "", False, False
        self.synced = threading.Event()
        self.lists = self.failures = 0
        self.error = ""
        self._listed = -math.inf
        self._failing = math.inf
        self._watching: Watch | None = None
        self.heard = time.monotonic()
        self.thread = threading.Thread(target=self._run, name=f"watch {kind.name}", daemon=True)

    @property
    def kind(self) -> str:
        """In metrics and logs."""
        return self._kind.name

    def objects(self) -> Sequence[T]:
        """As of now."""
        with self._lock:
            return list(self._objects.values())

    def listed_within(self, seconds: float) -> bool:
        """Whether all of it was read within so many seconds."""
        return time.monotonic() - self._listed < seconds

    def failing_for(self) -> float:
        """Seconds since when it has not been heard of; 0 where it is."""
        return max(0.0, time.monotonic() - self._failing)

    def relist(self) -> None:
        """From another thread: list it again, soon, whatever is known."""
        self._told = True
        if (watching := self._watching) is not None:
            self._stopped = True
            watching.stop()

    def read(self) -> None:
        """Once, here and now. Raises ApiError."""
        self._list()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._end.is_set():
            try:
                if self._told or not self._version:
                    self._told = False
                    self._list()
                begin = time.monotonic()
                self._watch()
                self._watching, self._stopped = None, False
                if time.monotonic() - begin < BRIEF_SECONDS:  # who ends each watch at once is not asked at once
                    self._end.wait(backoff.next())
                else:
                    backoff.reset()
            except ApiError as error:
                watched, self._watching = self._watching is not None, None
                if self._stopped:  # that was us
                    self._stopped = False
                    continue
                if error.status == _GONE:
                    _log.info("%s: history is gone, listing anew", self.kind)
                    self._version = ""
                    # Else it says so of what it has just told, or of the list itself.
                    if watched and time.monotonic() - self._listed > BRIEF_SECONDS:
                        continue
                if error.status in _NOT_SO:
                    # Of a version that is not served any more, or that the server does not know: a list tells.
                    self._version, self._path = "", 0
                self._failed(error)
                self._end.wait(backoff.next())

    def _failed(self, error: ApiError) -> None:
        self.failures += 1
        self._failing = min(self._failing, time.monotonic())
        if str(error) != self.error:
            _log.warning("%s: %s%s", self.kind, error, f" ({error.remedy})" if error.remedy else "")
        self.error = str(error)

    def _fine(self) -> None:
        if self.error:
            _log.info("%s: heard of again", self.kind)
        self.error, self._failing = "", math.inf

    def _list(self) -> None:
        found: dict[Key, T] = {}
        query = {"limit": PAGE}
        while True:
            page = self._get(query)
            items, meta = page.get("items"), page.get("metadata")
            if not isinstance(items, list) or not isinstance(meta, dict) or not meta.get("resourceVersion"):
                raise ApiError(f"{self._kind.paths[self._path]}: what answers there is no list")
            for item in items:
                self._take(found, item)
            if not meta.get("continue"):
                break
            query = {"limit": PAGE, "continue": str(meta["continue"])}
        self.lists += 1
        self._listed = time.monotonic()
        self._reached(meta)
        with self._lock:
            self._objects = found
        self.synced.set()
        self._changed()  # also where nothing is different: somebody may wait for it

    def _get(self, query: Mapping[str, str]) -> dict[str, Any]:
        while True:
            try:
                return self._api.get(self._kind.paths[self._path], **query)
            except ApiError as error:
                if error.status != _NOT_FOUND or self._path + 1 == len(self._kind.paths):
                    self._path = 0
                    raise
                self._path += 1

    def _take(self, into: dict[Key, T], found: object) -> None:
        if not isinstance(found, Mapping):
            _log.warning("%s: an object that is none", self.kind)
            return
        key = _key(found)
        try:
            into[key] = self._kind.read(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("%s %s cannot be read: %r", self.kind, printable("/".join(key), 400), error)
            if key in self._objects:
                into[key] = self._objects[key]

    def _reached(self, meta: object) -> None:
        if isinstance(meta, Mapping) and meta.get("resourceVersion"):
            self._version = str(meta["resourceVersion"])
        self.heard = time.monotonic()

    def _watch(self) -> None:
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311  # spreads load, guards nothing
        events = self._api.watch(
            self._kind.paths[self._path],
            read_seconds=seconds + SILENT_SECONDS,
            resourceVersion=self._version,
            allowWatchBookmarks="true",
            timeoutSeconds=str(seconds),
        )
        self._watching = events
        self._fine()
        for event in events:
            if self._end.is_set() or self._told:
                return
            word, found = event.get("type"), event.get("object")
            if word == "ERROR" or not isinstance(found, Mapping):
                said = found if isinstance(found, Mapping) else {}
                code = said.get("code") if isinstance(said.get("code"), int) else 0
                told = printable(said.get("message") or str(word), 300)
                raise ApiError(f"the watch ended: {code} {told}", status=int(code or 0))
            if word != "BOOKMARK" and self._event(word, found):
                self._changed()
            self._reached(found.get("metadata"))

    def _event(self, word: object, found: Mapping[str, Any]) -> bool:
        """Whether it made a difference: most changes of a Node are its heartbeat."""
        key = _key(found)
        with self._lock:
            before = self._objects.get(key)
            if word == "DELETED":
                self._objects.pop(key, None)
            else:
                self._take(self._objects, found)
            return self._objects.get(key) != before


def _key(found: Mapping[str, Any]) -> Key:
    meta = found.get("metadata")
    if not isinstance(meta, Mapping):
        return ("", "")
    return (str(meta.get("namespace") or ""), str(meta.get("name") or ""))
