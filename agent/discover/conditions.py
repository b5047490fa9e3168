"""What is written into the status of a Service: conditions, and the addresses of its load balancer. Pure."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from agent.discover.objects import PREFIX, Service

PROGRAMMED, ACCEPTED, DEGRADED = (f"{PREFIX}{name}" for name in ("Programmed", "Accepted", "Degraded"))
"""`kubectl wait --for=condition=edgeagent.io/Programmed service/mail`"""
BY_CLASS, BY_ANNOTATION = "LoadBalancerClass", "Annotated"
"""Why a Service is accepted: the reason of the condition Accepted; of one that is not, with INVALID before it."""
INVALID = "Invalid"
LONGEST = 2_000
"""Characters of a message: an annotation may have a quarter of a million, and each may be a mistake."""


class State(enum.StrEnum):
    """What became of a Service; the value is the reason of its conditions."""

    LIVE = "Live"
    DEGRADED = "Degraded"
    WAITING = "Waiting"
    MISTAKE = "Mistake"
    REFUSED = "Refused"
    ROLLED_BACK = "RolledBack"


@frozen(kw_only=True)
class ServiceStatus:
    """What is reported of a Service."""

    state: State
    message: str = ""
    frontends: tuple[str, ...] = ()
    """its live frontends"""
    addresses: tuple[str, ...] = field(default=(), eq=False)
    """of the firewall, where those are bound"""


def request_digest(service: Service) -> str:
    """Of all that a Service asks for. In the message of a rollback, it tells that this was tried already."""
    return hashlib.sha256(json.dumps(service.requests, default=str, sort_keys=True).encode()).hexdigest()[:8]


def was_rolled_back(service: Service) -> str:
    """The message of its rollback, where it asks for the same as then; "" where nothing like that was reported."""
    condition = service.conditions.get(PROGRAMMED, {})
    message = condition.get("message", "")
    tried = condition.get("reason") == State.ROLLED_BACK and f"(request {request_digest(service)}" in message
    return message if tried else ""


def was_by_class(service: Service) -> bool:
    """Whether it was accepted for its class, not for an annotation that somebody may have wiped by mistake."""
    return service.conditions.get(ACCEPTED, {}).get("reason") in (BY_CLASS, f"{INVALID}{BY_CLASS}")


def body(service: Service, status: ServiceStatus | None, *, now: str) -> dict[str, Any]:
    """An object for server-side apply; `status` None: nothing of it is ours any more. `now`: RFC 3339.

    Of a Service of our class: the addresses that clients reach it at, with `ipMode: Proxy`. Without that kube-proxy
    would lead clients in the cluster past HAProxy, and past its header (KEP-1860).
    """
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        # Of this very Service: another one may have its name by now. A wrong uid is refused (recorded of 1.32, 1.36).
        "metadata": {"name": service.name, "namespace": service.namespace, "uid": service.uid},
    }
    if status is None:
        return made
    made["status"] = {"conditions": [_condition(service, row, now) for row in _rows(service, status)]}
    if service.balanced and status.addresses:
        made["status"]["loadBalancer"] = {"ingress": [{"ip": ip, "ipMode": "Proxy"} for ip in status.addresses]}
    return made


def has_any(service: Service) -> bool:
    """Whether a condition of ours stands there."""
    return any(kind in service.conditions for kind in (PROGRAMMED, ACCEPTED, DEGRADED))


def is_written(service: Service, status: ServiceStatus | None) -> bool:
    """Whether that stands in the status of the Service already."""
    if status is None:
        return not has_any(service)
    if service.balanced and service.ingress != status.addresses:
        return False
    return all(
        (before := service.conditions.get(row.kind)) is not None
        and (before.get("status"), before.get("reason"), before.get("message")) == (row.status, row.reason, row.message)
        for row in _rows(service, status)
    )


def message(status: ServiceStatus) -> str:
    """In a sentence, for people."""
    text = status.message or f"{', '.join(status.frontends)}: live on the firewall"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


@frozen
class _Row:
    kind: str
    holds: bool
    reason: str
    message: str

    @property
    def status(self) -> str:
        return "True" if self.holds else "False"


def _rows(service: Service, status: ServiceStatus) -> tuple[_Row, ...]:
    state, text = status.state, message(status)
    accepted, degraded = state is not State.MISTAKE, state is State.DEGRADED
    # One that asks for nothing any more is as it was accepted: see `was_by_class`.
    by_class = service.balanced or (not service.wants and was_by_class(service))
    how = BY_CLASS if by_class else BY_ANNOTATION
    return (
        _Row(ACCEPTED, accepted, how if accepted else f"{INVALID}{how}", "" if accepted else text),
        _Row(PROGRAMMED, state in (State.LIVE, State.DEGRADED), State.LIVE if degraded else state, text),
        _Row(DEGRADED, degraded, state if degraded else "AsRequested", text if degraded else ""),
    )


def _condition(service: Service, row: _Row, now: str) -> dict[str, str]:
    before: Mapping[str, str] = service.conditions.get(row.kind, {})
    since = before.get("lastTransitionTime") if before.get("status") == row.status else None
    return {
        "type": row.kind,
        "status": row.status,
        "reason": str(row.reason),
        "message": row.message,
        "lastTransitionTime": since or now,
    }
