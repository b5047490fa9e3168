"""List and watch: the objects of one path of the API, kept as they are in the cluster, in a thread of its own.

As client-go's reflector does it: a list in pages, then watches from the version that was reached, with bookmarks; 410
is a list anew; whatever fails is tried again, later and later, with jitter. Not over the official client's `Watch`:
with `deserialize=False` its 37.0 answers an ERROR event (410 Gone) with KeyError, "raw_object".
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from agent.discover.api import Api, ApiError
from agent.discover.backoff import Backoff
from agent.discover.objects import Key
from agent.remote.push import printable

PAGE = "500"  # objects of a list
WATCH_SECONDS = (240, 480)  # a random length, so that a thousand watches do not end at once
SILENT_SECONDS = 60.0  # beyond a watch's own end; the server sends a bookmark each minute or so
BRIEF_SECONDS = 1.0  # a watch that ends so soon has not been one
_GONE = 410
_LIST_AGAIN = (400, 404, 410, 500, 504)  # the version is not known, or not served, any more

_log = logging.getLogger("agent.discover")
T = TypeVar("T")


class Informer(Generic[T]):
    """All objects of a path. `changed` is called, from its thread, after each difference that matters.

    `read`: the API's JSON to a value; an object that cannot be read is left as it was, and logged: the others go on.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        read: Callable[[Mapping[str, Any]], T],
        *,
        changed: Callable[[], None],
        end: threading.Event,
    ) -> None:
        self._api, self._path, self._read, self._changed, self._end = api, path, read, changed, end
        self.kind = path.rsplit("/", 1)[-1]
        self._objects: dict[Key, T] = {}
        self._lock = threading.Lock()  # of the objects
        self.synced = threading.Event()
        self.lists = self.failures = 0
        self.error = ""
        self._failing_since = math.inf
        self.thread = threading.Thread(target=self._run, name=f"watch {self.kind}", daemon=True)

    def objects(self) -> Sequence[T]:
        """As of now."""
        with self._lock:
            return list(self._objects.values())

    def failing_seconds(self) -> float:
        """Since when the API server has not answered; 0 where it does."""
        return max(0.0, time.monotonic() - self._failing_since)

    def list(self) -> str:
        """Read all of it, here and now, and return the version that was reached. Raises ApiError."""
        found: dict[Key, T] = {}
        query = {"limit": PAGE}
        while True:
            page = self._api.get(self._path, **query)
            items, meta = page.get("items"), page.get("metadata")
            if not isinstance(items, list) or not isinstance(meta, dict) or not meta.get("resourceVersion"):
                raise ApiError(f"{self._path}: what answers there is no list")
            for item in items:
                self._take(found, item)
            if not meta.get("continue"):
                break
            query = {"limit": PAGE, "continue": str(meta["continue"])}
        self.lists += 1
        with self._lock:
            self._objects = found
        self.synced.set()
        self._changed()
        return str(meta["resourceVersion"])

    def _run(self) -> None:
        backoff, version = Backoff(), ""
        while not self._end.is_set():
            begin = time.monotonic()
            try:
                version = version or self.list()
                for reached in self._watch(version):
                    version = reached
            except ApiError as error:
                if error.status in _LIST_AGAIN:
                    version = ""
                if error.status != _GONE or time.monotonic() - begin < BRIEF_SECONDS:
                    self._failed(error)
                    self._end.wait(backoff.next())
                continue
            if time.monotonic() - begin < BRIEF_SECONDS:  # who ends each watch at once is not asked at once
                self._end.wait(backoff.next())
            else:
                backoff.reset()

    def _watch(self, version: str) -> Iterator[str]:
        """The version after each event. Raises ApiError."""
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311  # spreads load, guards nothing
        events = self._api.watch(
            self._path,
            read_seconds=seconds + SILENT_SECONDS,
            resourceVersion=version,
            allowWatchBookmarks="true",
            timeoutSeconds=str(seconds),
        )
        if self.error:
            _log.info("%s: heard of again", self.kind)
        self.error, self._failing_since = "", math.inf
        for event in events:
            word, found = event.get("type"), event.get("object")
            if word == "ERROR" or not isinstance(found, Mapping):
                status = found if isinstance(found, Mapping) else {}
                code = status.get("code") if isinstance(status.get("code"), int) else 0
                message = printable(status.get("message") or str(word), 300)
                raise ApiError(f"the watch ended: {code} {message}", status=int(code or 0))
            if word != "BOOKMARK" and self._event(word, found):
                self._changed()
            yield str((found.get("metadata") or {}).get("resourceVersion") or version)

    def _failed(self, error: ApiError) -> None:
        self.failures += 1
        self._failing_since = min(self._failing_since, time.monotonic())
        if str(error) != self.error:
            _log.warning("%s: %s%s", self.kind, error, f" ({error.remedy})" if error.remedy else "")
        self.error = str(error)

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

    def _take(self, into: dict[Key, T], found: object) -> None:
        if not isinstance(found, Mapping):
            return
        key = _key(found)
        try:
            into[key] = self._read(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # of a newer API, or of nobody's
            _log.warning("%s %s cannot be read: %r", self.kind, printable("/".join(key), 400), error)
            if key in self._objects:
                into[key] = self._objects[key]


def _key(found: Mapping[str, Any]) -> Key:
    meta = found.get("metadata")
    if not isinstance(meta, Mapping):
        return ("", "")
    return (str(meta.get("namespace") or ""), str(meta.get("name") or ""))
