"""What became of a Service, reported where its owner looks: conditions, and an Event.

In a thread of its own: the API server may be slow or away, and a push does not wait for words about the last one. Of
several reports about one Service only the last is written.
"""

from __future__ import annotations

import datetime as dt
import logging
import socket
import threading
import time
from typing import Any

from agent.discover import conditions
from agent.discover.api import Api, ApiError
from agent.discover.backoff import Backoff
from agent.discover.conditions import ServiceStatus, State
from agent.discover.objects import PREFIX, STATUS, Key, Service

CONTROLLER = f"{PREFIX}discover"
PACE_SECONDS = 0.02  # between two Services: fifty a second of them is no load for any API server
ECHO_SECONDS = 60.0  # after which what was written should have come back by the watch
SERIES_SECONDS = 360.0  # an Event that comes again within that time is one of a series, as client-go has it
_LONGEST = 1_000  # characters of an Event's message; the API takes 1,024
_GONE, _ANOTHER = 404, 422
_REFUSED, _FAILED = 400, 500

_log = logging.getLogger("agent.discover")


class Reporter:
    """Writes what is new, and nothing twice."""

    def __init__(self, api: Api, *, end: threading.Event) -> None:
        self._instance = socket.gethostname()[:128]  # the pod's name, in a cluster
        self._api, self._end = api, end
        self._lock = threading.Condition()
        self._waiting: dict[Key, tuple[Service, ServiceStatus | None]] = {}
        self._written: dict[str, tuple[ServiceStatus | None, float]] = {}  # by uid, and when
        self._series: dict[tuple[str, str, str], tuple[str, int, float]] = {}  # by uid and words: name, count, when
        self.failures = 0
        self._error = ""
        self.thread = threading.Thread(target=self._run, name="reports", daemon=True)

    def report(self, service: Service, status: ServiceStatus | None) -> None:
        """`status` None: it asks for nothing any more, and its conditions go."""
        with self._lock:
            if service.key in self._waiting and self._waiting[service.key][1] == status:
                return
            written = self._written.get(service.uid)
            if conditions.is_written(service, status) and not service.has_old_status:
                if written is None or written[0] == status:
                    self._waiting.pop(service.key, None)
                    self._written.pop(service.uid, None)
                    return
            elif written is not None and written[0] == status and time.monotonic() - written[1] < ECHO_SECONDS:
                return  # the watch has not brought it back yet
            self._waiting[service.key] = (service, status)
            self._lock.notify()

    def forget(self, uids: set[str]) -> None:
        """Only these Services are there any more."""
        with self._lock:
            for uid in self._written.keys() - uids:
                del self._written[uid]
            self._series = {key: last for key, last in self._series.items() if key[0] in uids}

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
                service, status = self._waiting.pop(key)
            try:
                self._write(service, status)
                backoff.reset()
                self._error = ""
                self._end.wait(PACE_SECONDS)
            except ApiError as error:
                self.failures += 1
                if str(error) != self._error:
                    self._error = str(error)
                    remedy = f" ({error.remedy})" if error.remedy else ""
                    _log.warning("%s: its status cannot be written: %s%s", service.text, error, remedy)
                if error.status == _GONE or (error.status == _ANOTHER and "metadata.uid" in str(error)):
                    continue  # it is not there any more
                with self._lock:
                    self._waiting.setdefault(key, (service, status))  # unless something newer waits
                self._end.wait(backoff.next())

    def _write(self, service: Service, status: ServiceStatus | None) -> None:
        """By way of `services/status`: there a ServiceAccount needs no right to what the Service is."""
        path = f"/api/v1/namespaces/{service.namespace}/services/{service.name}/status"
        with self._lock:
            self._written[service.uid] = (status, time.monotonic())
        if service.has_old_status:
            self._api.patch(path, {"metadata": {"uid": service.uid, "annotations": {STATUS: None}}})
        self._api.apply(path, conditions.body(service, status, now=_now()))
        if status is None:
            return
        try:
            self._event(service, status)
        except ApiError as error:
            if not _REFUSED <= error.status < _FAILED:
                raise
            # Its namespace ends, or takes no more of them: the conditions have said it.
            self.failures += 1
            _log.warning("no Event on %s: %s", service.text, error)

    def _event(self, service: Service, status: ServiceStatus) -> None:
        """A new one, or one more of its series."""
        path = f"/apis/events.k8s.io/v1/namespaces/{service.namespace}/events"
        event = _event(service, status, instance=self._instance)
        key, now = (service.uid, event["reason"], event["note"]), time.monotonic()
        name, count, last = self._series.get(key, ("", 0, -SERIES_SECONDS))
        if name and now - last < SERIES_SECONDS:
            series = {"count": count + 1, "lastObservedTime": event["eventTime"]}
            try:
                self._api.patch(f"{path}/{name}", {"series": series})
            except ApiError as error:
                if error.status != _GONE:
                    raise
            else:
                self._series[key] = (name, count + 1, now)
                return
        self._api.post(path, event)
        self._series[key] = (event["metadata"]["name"], 1, now)


def _event(service: Service, status: ServiceStatus, *, instance: str) -> dict[str, Any]:
    """As events.k8s.io/v1 has it; `kubectl describe` shows it as any other."""
    note = conditions.message(status)
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{service.name[:200]}.{time.time_ns():x}", "namespace": service.namespace},
        "eventTime": f"{_now()[:-1]}.000000Z",
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "action": "Program",
        "reason": str(status.state),
        "type": "Normal" if status.state is State.LIVE else "Warning",
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
