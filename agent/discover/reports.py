"""What became of a Service, told where its owner looks: conditions, an Event, and the annotation `edgeagent.io/status`.

In a thread of its own: the API server may be slow or away, and a push does not wait for words about the last one. Of
several things to be told of one Service only the last is.
"""

from __future__ import annotations

import datetime as dt
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from agent.discover import conditions
from agent.discover.api import Api, ApiError
from agent.discover.objects import PREFIX, STATUS, Key, Service
from agent.discover.reflector import Backoff
from agent.discover.service_status import ServiceStatus, told

CONTROLLER = f"{PREFIX}discover"
PACE_SECONDS = 0.02  # between two Services: fifty a second of them is no load for any API server
ECHO_SECONDS = 60.0  # after which what was written should have come back by the watch
_LONGEST = 1_000  # characters of an Event's message; the API takes 1,024
_GONE, _ANOTHER = 404, 422
_REFUSED, _FAILED = 400, 500

_log = logging.getLogger("agent.discover")


class Reporter:
    """Tells what is new, and nothing twice. `is_leader`: whether it is ours to tell, still."""

    def __init__(self, api: Api, *, is_leader: Callable[[], bool], end: threading.Event) -> None:
        self._is_leader = is_leader
        self._instance = socket.gethostname()[:128]  # the pod's name, in a cluster
        self._api, self._end = api, end
        self._lock = threading.Condition()
        self._waiting: dict[Key, tuple[Service, ServiceStatus | None]] = {}
        self._written: dict[str, tuple[ServiceStatus | None, float]] = {}  # by uid, and when
        self.failures = 0
        self._kept = True  # whether the server keeps conditions of a Service: before 1.24 it drops them
        self._error = ""
        self.thread = threading.Thread(target=self._run, name="reports", daemon=True)

    def report(self, service: Service, what: ServiceStatus | None) -> None:
        """`what` None: it asks for nothing any more, and its annotation goes."""
        uid, there = service.uid, told(service.status, service.uid)
        with self._lock:
            written = self._written.get(uid)
            if service.key in self._waiting and self._waiting[service.key][1] == what:
                return
            kept = conditions.is_written(service, what) or not self._kept
            whole = bool(service.status) == (what is not None) and kept
            if what == there and whole and (not written or written[0] == what):
                self._waiting.pop(service.key, None)
                self._written.pop(uid, None)
                return
            if written is not None and written[0] == what and time.monotonic() - written[1] < ECHO_SECONDS:
                return  # the watch has not told of it yet
            self._waiting[service.key] = (service, what)
            self._lock.notify()

    def forget(self, uids: set[str]) -> None:
        """Only these Services are there any more."""
        with self._lock:
            for uid in self._written.keys() - uids:
                del self._written[uid]

    def clear(self) -> None:
        """It is somebody else's to tell now, or was."""
        with self._lock:
            self._waiting.clear()
            self._written.clear()

    def wake(self) -> None:
        """To see that the end has come."""
        with self._lock:
            self._lock.notify()

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            with self._lock:
                while not self._waiting and not self._end.is_set():
                    self._lock.wait()
                if self._end.is_set():
                    return
                key = next(iter(self._waiting))
                service, what = self._waiting.pop(key)
            if not self._is_leader():
                continue
            try:
                self._tell(service, what)
                backoff.reset()
                self._error = ""
                self._end.wait(PACE_SECONDS)
            except ApiError as error:
                self.failures += 1
                if str(error) != self._error:
                    self._error = str(error)
                    _log.warning("%s cannot be told of: %s%s", service.text, error, _in_brackets(error.remedy))
                if error.status == _GONE or (error.status == _ANOTHER and "metadata.uid" in str(error)):
                    continue  # it is not there any more
                with self._lock:
                    self._waiting.setdefault(key, (service, what))  # unless something newer waits
                self._end.wait(backoff.next())

    def _tell(self, service: Service, what: ServiceStatus | None) -> None:
        """The annotation by way of `status`: there a ServiceAccount needs no right to what the Service is."""
        path = f"/api/v1/namespaces/{service.namespace}/services/{service.name}/status"
        with self._lock:
            self._written[service.uid] = (what, time.monotonic())
        # Of this very Service: another one may have its name by now. A wrong uid is refused (recorded of 1.32, 1.36).
        annotations = {STATUS: what.annotation if what else None}
        # The annotation last: where it stands, the rest does.
        answer = self._api.apply(path, conditions.status(service, what, now=_now()))
        if what is not None:
            self._kept = bool((answer.get("status") or {}).get("conditions"))
        self._api.patch(path, {"metadata": {"uid": service.uid, "annotations": annotations}})
        if what is None:
            return
        try:
            path = f"/apis/events.k8s.io/v1/namespaces/{service.namespace}/events"
            self._api.post(path, _event(service, what, instance=self._instance))
        except ApiError as error:
            if not _REFUSED <= error.status < _FAILED:
                raise
            # Its namespace ends, or takes no more of them: the annotation has said it.
            self.failures += 1
            _log.warning("no Event on %s: %s", service.text, error)


def _event(service: Service, what: ServiceStatus, *, instance: str) -> dict[str, Any]:
    """As events.k8s.io/v1 has it; `kubectl describe` shows it as any other."""
    note = conditions.message(what)
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{service.name[:200]}.{time.time_ns():x}", "namespace": service.namespace},
        "eventTime": f"{_now()[:-1]}.000000Z",
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "action": "Program",
        "reason": conditions.REASONS.get(what.state, what.state),
        "type": "Normal" if what.state == "live" else "Warning",
        "note": note if len(note) <= _LONGEST else f"{note[: _LONGEST - 3]}...",
        "regarding": {
            "apiVersion": "v1",
            "kind": "Service",
            "name": service.name,
            "namespace": service.namespace,
            "uid": service.uid,
        },
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
