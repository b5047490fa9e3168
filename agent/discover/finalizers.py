"""The finalizer of a Service that is served: Kubernetes keeps a deleted one until the firewalls have let go of it.

So a deletion is told from an object that has vanished, also after a restart. Written by way of `services/status`, which
needs no right beyond the one to write what became of it (recorded of API servers 1.32 and 1.36).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from agent.discover.api import Api, ApiError
from agent.discover.objects import FINALIZER, Service

_GONE, _CHANGED, _NO_RIGHT = 404, (409, 422), (401, 403)

_log = logging.getLogger("agent.discover")


class Finalizers:
    """Of the Services of one cluster."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._error = ""
        self._unanswered = False  # whether the API server failed to answer the last request
        self._added: dict[str, str] = {}  # the version of each Service, by uid, that it was added to

    def add(self, services: Iterable[Service]) -> bool:
        """To those that lack it, before they are served. Returns whether none is worth another try soon.

        Where it cannot be written (no right, an API server that is away) the Service is served all the same: it is only
        that its deletion looks like a loss then.
        """
        settled = True
        for service in services:
            if not service.wants or FINALIZER in service.finalizers:
                self._added.pop(service.uid, None)
            elif self._added.get(service.uid) != service.version:  # else the watch has not told of it yet
                written = self._write(service, [*service.finalizers, FINALIZER])
                settled = settled and written
                if written:
                    self._added[service.uid] = service.version
                if self._unanswered:  # nor would the others be, and each takes its time
                    break
        return settled

    def remove(self, services: Iterable[Service]) -> bool:
        """From those that have it and ask for nothing any more. Returns as `add` does."""
        settled = True
        for service in services:
            if service.released:
                left = [name for name in service.finalizers if name != FINALIZER]
                settled = self._write(service, left) and settled
                if self._unanswered:
                    break
        return settled

    def _write(self, service: Service, finalizers: list[str]) -> bool:
        """False: it is worth another try soon."""
        path = f"/api/v1/namespaces/{service.namespace}/services/{service.name}/status"
        # Of this very object as it was read: a list is replaced whole, and another one may have the name by now.
        precondition = {"uid": service.uid, "resourceVersion": service.version}
        try:
            self._api.patch(path, {"metadata": {**precondition, "finalizers": finalizers}})
        except ApiError as error:
            self._unanswered = error.status not in (_GONE, *_CHANGED, *_NO_RIGHT)
            if error.status not in (_GONE, *_CHANGED) and str(error) != self._error:
                self._error = str(error)
                _log.warning("the finalizer of %s cannot be written: %s", service.text, error)
            return error.status in (_GONE, *_NO_RIGHT)
        self._error, self._unanswered = "", False
        return True
