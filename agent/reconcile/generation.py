"""What the store keeps, as values: generations, the journal of a step, a hold.

They are read back from files that a crash or a person may have left in any shape, so each checks its own types;
ValueError or TypeError where they are not.
"""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import deep_iterable, instance_of, optional

from agent.desired.stored import is_number, is_seconds, is_text, texts
from agent.haproxy.quarantine import Quarantined


def _quarantines(value: object) -> tuple[Quarantined, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"quarantined: {value!r} is no list")
    return tuple(item if isinstance(item, Quarantined) else Quarantined(**item) for item in value)


@frozen(kw_only=True)
class Generation:
    """One state that was live. `at`: seconds since the epoch; `loaded`: whose process carried it at first.

    `digest` and `config_digest`: SHA-256 (hex) of the document and of haproxy.cfg. `template`: that of the
    template, the settings and the agent by which it was rendered, "" of an older agent. `restores`: the earlier
    generation that a rollback put back with it. `unserved`: frontends that were new in it, of which no server answered.
    """

    number: int = field(validator=is_number)
    digest: str = field(validator=is_text)
    config_digest: str = field(validator=is_text)
    loaded: int = field(validator=is_number)
    at: float = field(validator=is_seconds)
    outcome: str = field(validator=is_text)
    name: str = field(default="", validator=is_text)
    serial: int | None = field(default=None, validator=optional(instance_of(int)))
    reasons: tuple[str, ...] = field(default=(), validator=deep_iterable(is_text, instance_of(tuple)))
    seconds: float = field(default=0.0, validator=is_seconds)
    quarantined: tuple[Quarantined, ...] = field(default=(), converter=_quarantines)
    restores: int | None = field(default=None, validator=optional(instance_of(int)))
    template: str = field(default="", validator=is_text)
    unserved: tuple[str, ...] = field(default=(), converter=texts)


def _keys(value: object) -> tuple[tuple[str, str], ...]:
    """Servers, each by backend and name, out of values or of JSON. Raises TypeError."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no list of servers")
    pairs = tuple(texts(pair) for pair in value)
    if any(len(pair) != 2 for pair in pairs):
        raise TypeError(f"{value!r} is no list of servers")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _stakes(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    pairs = value if isinstance(value, (list, tuple)) else ()
    if pairs is not value or any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise TypeError(f"{value!r} is no list of frontends and their backends")
    return tuple((str(pair[0]), texts(pair[1])) for pair in pairs)


@frozen(kw_only=True)
class Journal:
    """A step that is under way: from which generation (None: nothing was live) to which.

    While it stands, no verdict was reached. `runtime`: by commands to the running process, which may have taken some of
    them. `servers`: those that the commands change. `serving`: each frontend that served before, with the backends of
    which one must serve it after. `unproven`: servers that are new or changed, and judged by their checks.
    """

    before: int | None = field(validator=optional(instance_of(int)))
    after: int = field(validator=instance_of(int))
    runtime: bool = field(default=False, validator=instance_of(bool))
    servers: tuple[tuple[str, str], ...] = field(default=(), converter=_keys)
    serving: tuple[tuple[str, tuple[str, ...]], ...] = field(default=(), converter=_stakes)
    unproven: tuple[tuple[str, str], ...] = field(default=(), converter=_keys)


@frozen(kw_only=True)
class Hold:
    """A document that hurt and is not applied again: its digest, why, since when (seconds since the epoch)."""

    digest: str = field(validator=is_text)
    reason: str = field(validator=is_text)
    since: float = field(validator=is_seconds)


@frozen(kw_only=True)
class Request:
    """How the document with this digest is to be treated at the next look, once.

    `force`: although a serving frontend would be left without a reached server. `retry`: although it is held.
    """

    digest: str = field(validator=is_text)
    force: bool = field(default=False, validator=instance_of(bool))
    retry: bool = field(default=False, validator=instance_of(bool))
