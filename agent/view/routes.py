"""What the agent answers over HTTP: metrics, health, readiness, the status page. Text out of facts; no socket here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from agent.haproxy.observed import Observation
from agent.reconcile.generation import Generation
from agent.view import page
from agent.view.metrics import Facts, Metrics, Usage
from agent.view.status import Status

FRESH_SECONDS = 0.25  # fifty scrapers at once get the same answer
PAGE_SECONDS = 1.0  # the page is made at most so often, for all readers
PAGE_SHARE = 20  # and a page that takes 200 ms to make is made every 4 s: readers cost 5 % of a core at most
BUSY_SECONDS = 30.0  # so old may be what is served while a change is under way, which must not wait for readers
USAGE_SECONDS = 10.0  # looking through all processes costs milliseconds
REFRESH = 10  # seconds after which a browser asks again

_HTML = "text/html; charset=utf-8"
_STRICT = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Refresh": str(REFRESH),
}


class Site:
    """`facts`, `status` and `history` are replaced whole by the service; all else happens in the threads that answer.

    `look`: HAProxy now, None where it does not answer in time. `usage`: what its processes take. `alive`: whether the
    service still looks. `busy`: whether a change is under way: what was made before is served then. `docs`: where the
    documents are.
    """

    def __init__(
        self,
        *,
        look: Callable[[], Observation | None],
        usage: Callable[[], dict[str, Any]],
        alive: Callable[[], bool],
        busy: Callable[[], bool] = lambda: False,
        docs: str = "",
    ) -> None:
        self.facts: Facts = Facts(version="")
        self.status: Status | None = None
        self.history: tuple[Generation, ...] = ()
        self._look, self._usage, self._alive, self._busy = look, usage, alive, busy
        self._docs = docs
        self._page_lock = threading.Lock()
        self._page_made: tuple[float, float, bytes] | None = None  # until when it is fresh, when it was made, the page
        self._lock = threading.Lock()
        self._made: dict[bool, tuple[float, tuple[str, bytes]]] = {}
        self._used: tuple[float, Usage] | None = None
        self.metrics = Metrics(lambda: self._now(), look)

    @property
    def routes(self) -> dict[str, Callable[[str], dict[str, Any]]]:
        """By path: what answers a GET, given its Accept header."""
        return {"/": self._page, "/metrics": self._metrics, "/healthz": self._health, "/readyz": self._ready}

    def _now(self) -> Facts:
        from attrs import evolve

        moment = time.monotonic()
        if self._used is None or moment - self._used[0] > USAGE_SECONDS:
            self._used = (moment, Usage(**self._usage()))
        return evolve(self.facts, usage=self._used[1])

    def _metrics(self, accept: str) -> dict[str, Any]:
        """One observation of HAProxy for all scrapes of one moment: a frozen one costs them a second together."""
        wanted, arrived = "application/openmetrics-text" in accept, time.monotonic()
        with self._lock:
            made = self._made.get(wanted)
            fresh = BUSY_SECONDS if self._busy() else FRESH_SECONDS
            if made is None or made[0] < arrived - fresh:
                begin = time.monotonic()
                text = self.metrics.text(open_metrics=wanted)
                # What took a second is as old as its end: the scrapes that waited for it share it.
                made = self._made[wanted] = (max(begin, time.monotonic() - FRESH_SECONDS / 2), text)
        kind, body = made[1]
        return {"code": 200, "kind": kind, "body": body}

    def _health(self, _accept: str) -> dict[str, Any]:
        alive = self._alive()
        return {"code": 200 if alive else 503, "kind": "text/plain", "body": b"ok\n" if alive else b"stalled\n"}

    def _ready(self, _accept: str) -> dict[str, Any]:
        reasons = [*self._stalled(), *_unready(self.status)]
        body = json.dumps({"ready": not reasons, "reasons": reasons}).encode() + b"\n"
        return {"code": 503 if reasons else 200, "kind": "application/json", "body": body}

    def _stalled(self) -> list[str]:
        """Every answer is old where the service is stalled."""
        return (
            []
            if self._alive()
            else [f"the agent has not looked since {self.status.at if self.status else 'its start'}"]
        )

    def _page(self, _accept: str) -> dict[str, Any]:
        """Made for all readers together, by the first of them: it costs the service's own processor time."""
        with self._page_lock:
            now = time.monotonic()
            made = self._page_made
            kept = made is not None and (now < made[0] or (self._busy() and now < made[1] + BUSY_SECONDS))
            if made is None or not kept:
                body = page.render(self.status, self.history, trouble=self._stalled(), docs=self._docs).encode()
                end = time.monotonic()
                made = self._page_made = (end + max(PAGE_SECONDS, (end - now) * PAGE_SHARE), end, body)
        return {"code": 200, "kind": _HTML, "body": made[2], "headers": _STRICT}


def _unready(status: Status | None) -> Iterator[str]:
    """Why not everything is as it should be, one sentence each."""
    if status is None:
        yield "the agent has not looked yet"
        return
    if status.haproxy is None:
        yield "HAProxy does not answer"
    if status.not_in_sync is not None:
        yield f"the desired state is not what is live: {status.not_in_sync.text}"
    for frontend in status.not_up:
        yield f"frontend {frontend.name} is {frontend.state} ({frontend.why})"
