"""What is written onto a Service: `edgeagent.io/status`. Pure; it is all that the controller remembers."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


@frozen(kw_only=True)
class ServiceStatus:
    """`state`: live, degraded, waiting, mistake, refused or rolled_back. `good`: the annotations that are live.

    `live`: what is live but its servers (`fragments.skeleton`). `uid`: of the Service it is about: a copy of one has
    the annotation too. `tried`: annotations that hurt, and are not tried again.
    """

    state: str
    message: str = ""
    frontends: tuple[str, ...] = ()
    good: Mapping[str, str] = field(factory=dict)
    tried: Mapping[str, str] = field(factory=dict)
    live: Mapping[str, Any] = field(factory=dict)
    uid: str = ""
    addresses: tuple[str, ...] = field(default=(), eq=False)
    """of the firewall, where its live frontends are bound; told by `live`"""

    @property
    def annotation(self) -> str:
        """One line of JSON, with the moment it began."""
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = {"state": self.state, "message": self.message, "since": now, "frontends": list(self.frontends)}
        more = {"good": dict(self.good), "tried": dict(self.tried), "live": dict(self.live), "uid": self.uid}
        return json.dumps(found | {key: value for key, value in more.items() if value})


def told(annotation: str, uid: str) -> ServiceStatus | None:
    """What was told last of the Service with this uid; None where that is nothing, or no work of ours."""
    try:
        found = json.loads(annotation)
        if (found.get("uid") or "") != uid:
            return None
        return ServiceStatus(
            uid=uid,
            state=str(found["state"]),
            message=str(found["message"]),
            frontends=tuple(map(str, found["frontends"])),
            good={str(key): str(value) for key, value in (found.get("good") or {}).items()},
            live=found["live"] if isinstance(found.get("live"), dict) else {},
            tried={str(key): str(value) for key, value in (found.get("tried") or {}).items()},
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
