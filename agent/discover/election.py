"""Who pushes, where several replicas run: whoever holds the Lease.

As client-go's leader election does it: a holder that was not seen to renew for the Lease's whole duration, by our own
clock, has lost it; every write names the version it was decided on, so of two only one succeeds. The official
client's election reads the wall clock, waits for ever for a server that hangs, and gives no Lease back when it ends.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.discover.api import Api, ApiError
from agent.remote.push import printable

LEASE_SECONDS = 15
RENEW_SECONDS = 10.0  # who could not renew for so long has ended, before anybody else may begin
RETRY_SECONDS = 2.0
NAME = "edgeagent-discover"

_NOT_FOUND, _CONFLICT = 404, 409
_log = logging.getLogger("agent.discover")


class Election:
    """Holds a Lease while it can, until `end`, and gives it back then: whoever does something by it must have ended.

    `changed` is called, from its thread, when that begins or ends; `term` counts how often it has begun.
    """

    def __init__(
        self, api: Api, *, namespace: str, identity: str, changed: Callable[[], None], end: threading.Event
    ) -> None:
        self._api, self._identity, self._changed, self._end = api, identity, changed, end
        self._namespace = namespace
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._until = 0.0
        self._seen: tuple[object, float] = (None, 0.0)  # the holder's last word, and when we first saw it
        self._led, self._said = False, ""
        self.term = 0
        self.thread = threading.Thread(target=self._run, name="election", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether nobody else can have it now."""
        return time.monotonic() < self._until

    def _run(self) -> None:
        while not self._end.is_set():
            self._round()
            self._end.wait(RETRY_SECONDS)
        if self.leads:
            self._release()

    def _round(self) -> None:
        begin = time.monotonic()
        try:
            holder = self._try(begin)
        except ApiError as error:  # it is kept for as long as it was promised
            self._tell(str(error), warn=True)
            return
        ours = holder == self._identity
        if ours and not self.leads:
            self.term += 1
        self._until = begin + RENEW_SECONDS if ours else 0.0
        self._tell("it is ours" if ours else f"{printable(holder, 100)} has it")

    def _try(self, now: float) -> str:
        """Take or renew it; whose it is then."""
        try:
            found = self._api.get(f"{self._folder}/{NAME}")
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
            return self._write({}, {"leaseTransitions": 0, **self._ours(acquired=True)})
        spec = found.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        word = (holder, spec.get("renewTime"))
        if self._seen[0] != word:
            self._seen = (word, now)
        if holder not in ("", self._identity):
            seconds = spec.get("leaseDurationSeconds") or LEASE_SECONDS
            if now - self._seen[1] < seconds:
                return holder
        mine = holder == self._identity
        turns = int(spec.get("leaseTransitions") or 0) + (not mine)
        return self._write(found, {**spec, **self._ours(acquired=not mine), "leaseTransitions": turns})

    def _ours(self, *, acquired: bool) -> dict[str, Any]:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # MicroTime
        words = {"holderIdentity": self._identity, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        return words | ({"acquireTime": now} if acquired else {})

    def _write(self, found: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
        """The version in its metadata is that of the decision."""
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": found.get("metadata") or {"name": NAME, "namespace": self._namespace},
            "spec": dict(spec),
        }
        try:
            if found:
                self._api.put(f"{self._folder}/{NAME}", body)
            else:
                self._api.post(self._folder, body)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            return "somebody else"  # who was faster; the next look tells
        return str(spec["holderIdentity"])

    def _release(self) -> None:
        """Nobody has to wait for it to run out."""
        try:
            found = self._api.get(f"{self._folder}/{NAME}")
            if (found.get("spec") or {}).get("holderIdentity") == self._identity:
                self._write(found, {**found["spec"], "holderIdentity": "", "leaseDurationSeconds": 1})
        except ApiError as error:  # then it runs out
            _log.info("lease not given back: %s", error)
        self._until = 0.0

    def _tell(self, said: str, *, warn: bool = False) -> None:
        if said != self._said:
            _log.log(logging.WARNING if warn else logging.INFO, "lease %s/%s: %s", self._namespace, NAME, said)
            self._said = said
        if self.leads != self._led:
            self._led = self.leads
            self._changed()
