"""The finalizer of a Service that is served: Kubernetes keeps a deleted one until the firewalls have let go of it.

So a deletion is told from an object that has vanished, also after a restart. Written by way of `services/status`, which
needs no right beyond the one to write what became of it (recorded of API servers 1.32 and 1.36).
"""

from __future__ import annotations

import logging

from agent.discover.api import Api, ApiError
from agent.discover.objects import FINALIZER, Service

_GONE, _CHANGED, _NO_RIGHT = 404, (409, 422), (401, 403)

_log = logging.getLogger("agent.discover")


class Finalizers:
    """Of the Services of one cluster."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._error = ""
        self.away = False
        """whether the API server did not answer the last request, or not as it should"""

    def add(self, service: Service) -> bool:
        """Before it is served. False: it is worth another try soon.

        Where it cannot be written (no right, an API server that is away) the Service is served all the same: it is only
        that its deletion looks like a loss then.
        """
        return self._write(service, [*service.finalizers, FINALIZER])

    def remove(self, service: Service) -> bool:
        """Once it is served nowhere any more. False: as above."""
        return self._write(service, [name for name in service.finalizers if name != FINALIZER])

    def _write(self, service: Service, finalizers: list[str]) -> bool:
        path = f"/api/v1/namespaces/{service.namespace}/services/{service.name}/status"
        # Of this very object as it was read: a list is replaced whole, and another one may have the name by now.
        precondition = {"uid": service.uid, "resourceVersion": service.version}
        try:
            self._api.patch(path, {"metadata": {**precondition, "finalizers": finalizers}})
        except ApiError as error:
            self.away = error.status not in (_GONE, *_CHANGED, *_NO_RIGHT)
            if error.status not in (_GONE, *_CHANGED) and str(error) != self._error:
                self._error = str(error)
                _log.warning("the finalizer of %s cannot be written: %s", service.text, error)
            return error.status in (_GONE, *_NO_RIGHT)
        self._error, self.away = "", False
        return True
