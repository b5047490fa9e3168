"""What is written into the status of a Service: conditions, and the addresses of its load balancer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.discover.objects import PREFIX, Service
from agent.discover.service_status import ServiceStatus

PROGRAMMED, ACCEPTED, DEGRADED = (f"{PREFIX}{name}" for name in ("Programmed", "Accepted", "Degraded"))
"""`kubectl wait --for=condition=edgeagent.io/Programmed service/mail`"""
REASONS: Mapping[str, str] = {
    "live": "Live", "degraded": "Degraded", "waiting": "Waiting", "mistake": "Mistake", "refused": "Refused",
    "rolled_back": "RolledBack",
}  # fmt: skip
_LIVE = ("live", "degraded")


def status(service: Service, what: ServiceStatus | None, *, now: str) -> dict[str, Any]:
    """An object for server-side apply; `what` None: nothing of it is ours any more. `now`: RFC 3339.

    Of a Service of our class: the addresses that clients reach it at, with `ipMode: Proxy`. Without that kube-proxy
    would lead clients in the cluster past HAProxy, and past its header (KEP-1860).
    """
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": service.namespace, "uid": service.uid},
    }
    if what is None:
        return made
    made["status"] = {"conditions": [_condition(service, *row, now=now) for row in _conditions(what)]}
    if service.balanced and what.addresses:
        made["status"]["loadBalancer"] = {"ingress": [{"ip": ip, "ipMode": "Proxy"} for ip in what.addresses]}
    return made


def has_any(service: Service) -> bool:
    """Whether a condition of ours stands there."""
    return any(kind in service.conditions for kind in (PROGRAMMED, ACCEPTED, DEGRADED))


def is_written(service: Service, what: ServiceStatus | None) -> bool:
    """Whether the status of the Service says that already."""
    if what is None:
        return not has_any(service)
    if service.balanced and service.ingress != what.addresses:
        return False
    return all(service.conditions.get(kind, {}).get("status") == _word(so) for kind, so, _, _ in _conditions(what))


def message(what: ServiceStatus) -> str:
    """In a sentence, for people."""
    return what.message or f"{', '.join(what.frontends)}: live on the firewall"


def _conditions(what: ServiceStatus) -> tuple[tuple[str, bool, str, str], ...]:
    """Type, status, reason and message of each."""
    reason, text = REASONS.get(what.state, what.state), message(what)
    accepted = what.state != "mistake"
    degraded = what.state == "degraded"
    return (
        (ACCEPTED, accepted, "Accepted" if accepted else reason, "" if accepted else text),
        (PROGRAMMED, what.state in _LIVE, "Live" if degraded else reason, text),
        (DEGRADED, degraded, reason if degraded else "AsAsked", text if degraded else ""),
    )


def _word(so: bool) -> str:  # noqa: FBT001  # the one thing it is about
    return "True" if so else "False"


def _condition(service: Service, kind: str, so: bool, reason: str, text: str, *, now: str) -> dict[str, str]:  # noqa: FBT001  # a row of the table above
    word = _word(so)
    before = service.conditions.get(kind, {})
    since = before.get("lastTransitionTime") if before.get("status") == word else None
    return {"type": kind, "status": word, "reason": reason, "message": text, "lastTransitionTime": since or now}
