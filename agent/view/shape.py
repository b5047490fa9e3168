"""Whether a status document has the shape that its readers rely on: a crash, a person or another version wrote it."""

from __future__ import annotations

from typing import Any, TypeGuard

_MAYBE_TEXT, _MAYBE_NUMBER = (str, None), (int, None)
_STATUS: dict[str, Any] = {
    "schema": int,
    "at": str,
    "agent": {"version": str, "pid": int},
    "desired": ({"digest": _MAYBE_TEXT, "serial": _MAYBE_NUMBER}, None),
    "live": ({"generation": int, "digest": str, "name": str, "serial": _MAYBE_NUMBER, "since": str}, None),
    "outcome": _MAYBE_TEXT,
    "exit_code": _MAYBE_NUMBER,
    "message": str,
    "remedy": str,
    "held": ({"digest": str, "reason": str, "since": str}, None),
    "findings": [{"where": str, "message": str, "remedy": str}],
    "frontends": [
        {
            "name": str,
            "state": str,
            "servers_up": int,
            "servers_total": int,
            "sessions": int,
            "binds": [{"address": str, "state": str, "reason": str}],
        }
    ],
    "backends": [
        {
            "name": str,
            "servers": [
                {
                    "name": str,
                    "address": str,
                    "status": str,
                    "check": str,
                    "sessions": int,
                    "handshake": ({"result": str, "mismatch": bool}, None),
                }
            ],
        }
    ],
    "haproxy": ({"version": str, "pid": int, "uptime": int}, None),
}
_SINCE: dict[str, Any] = {
    "in_sync": bool,
    "not_in_sync": ({"text": str}, None),
    "events": [{"event": str, "message": str, "count": int, "at": str}],
}
"""Keys that an agent before 0.2 does not write: while it runs, the commands of a newer version read its status."""


def is_status(document: object) -> TypeGuard[dict[str, Any]]:
    """Whether every key that a reader relies on is there, and of its type. Further keys are no concern."""
    if not isinstance(document, dict):
        return False
    return _fits(document, _STATUS | {key: shape for key, shape in _SINCE.items() if key in document})


def _fits(value: object, shape: Any) -> bool:
    """`shape`: a type, a dict of shapes, a list of one shape, or a tuple of which the value may be None."""
    if isinstance(shape, tuple):
        return value is None or _fits(value, shape[0])
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and _fits(value[key], part) for key, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    return type(value) is shape
