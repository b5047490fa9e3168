"""What the store keeps, as values: generations, the journal of a switch, a hold, what servers were found to be.

They are read back from files that a crash or a person may have left in any shape, so each checks its own types;
ValueError or TypeError where they are not.
"""

from __future__ import annotations

from attrs import Attribute, field, frozen
from attrs.validators import and_, deep_iterable, ge, in_, instance_of, le, optional

from agent.model.handshake import Result

_LATEST = 253_402_300_799.0  # the last second datetime can name


def _seconds(_: object, attribute: Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LATEST:
        raise ValueError(f"{attribute.name}: {value!r} is no number of seconds")


_number = and_(instance_of(int), ge(0), le(10**12))
_text = instance_of(str)


@frozen(kw_only=True)
class Quarantined:
    """An address that is left out because it cannot be bound: `reason` in one word, `detail` for people.

    `holder`: the names of the programs that hold it, "" where nobody knows.
    """

    frontend: str = field(validator=_text)
    address: str = field(validator=_text)
    reason: str = field(validator=_text)
    detail: str = field(default="", validator=_text)
    holder: str = field(default="", validator=_text)


def _quarantines(found: object) -> tuple[Quarantined, ...]:
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"quarantined: {found!r} is no list")
    return tuple(one if isinstance(one, Quarantined) else Quarantined(**one) for one in found)


def _texts(found: object) -> tuple[str, ...]:
    """A tuple out of a list that JSON has made of one. Raises TypeError."""
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
        raise TypeError(f"{found!r} is no list of texts")
    return tuple(found)


Asked = tuple[str, str, str, str, str]
"""A question as a key: backend, server, address, application, version."""


@frozen(kw_only=True)
class Handshake:
    """What a server was found to be when it was asked as `version` and `application` say, for which document.

    `result`, `detail`, `subject`, `milliseconds`: see `agent.model.handshake.Seen`. `at`: seconds since the epoch.
    """

    backend: str = field(validator=_text)
    server: str = field(validator=_text)
    address: str = field(validator=_text)
    application: str = field(validator=_text)
    version: str = field(validator=_text)
    result: str = field(validator=in_([one.value for one in Result]))
    detail: str = field(validator=_text)
    subject: str = field(validator=_text)
    milliseconds: int = field(validator=_number)
    at: float = field(validator=_seconds)
    digest: str = field(validator=_text)

    @property
    def key(self) -> tuple[str, str]:
        """Backend and server."""
        return (self.backend, self.server)

    @property
    def asked(self) -> Asked:
        """What was asked: of which server, where, and how."""
        return (self.backend, self.server, self.address, self.application, self.version)


def handshakes(found: object) -> tuple[Handshake, ...]:
    """Handshakes out of values or of JSON objects. Raises TypeError, ValueError."""
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"handshakes: {found!r} is no list")
    return tuple(one if isinstance(one, Handshake) else Handshake(**one) for one in found)


@frozen(kw_only=True)
class Generation:
    """One state that was live. `at`: seconds since the epoch; `loaded`: whose process carried it at first.

    `digest` and `config_digest`: SHA-256 (hex) of the document and of haproxy.cfg. `template`: that of the
    template, the settings and the agent by which it was rendered, "" of an older agent. `restores`: the earlier
    generation that a rollback put back with it. `unserved`: frontends that were new in it, of which no server answered.
    """

    number: int = field(validator=_number)
    digest: str = field(validator=_text)
    config_digest: str = field(validator=_text)
    loaded: int = field(validator=_number)
    at: float = field(validator=_seconds)
    outcome: str = field(validator=_text)
    name: str = field(default="", validator=_text)
    serial: int | None = field(default=None, validator=optional(instance_of(int)))
    reasons: tuple[str, ...] = field(default=(), validator=deep_iterable(_text, instance_of(tuple)))
    seconds: float = field(default=0.0, validator=_seconds)
    quarantined: tuple[Quarantined, ...] = field(default=(), converter=_quarantines)
    restores: int | None = field(default=None, validator=optional(instance_of(int)))
    template: str = field(default="", validator=_text)
    unserved: tuple[str, ...] = field(default=(), converter=_texts)


def _keys(found: object) -> tuple[tuple[str, str], ...]:
    """Servers, each by backend and name, out of values or of JSON. Raises TypeError."""
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"{found!r} is no list of servers")
    pairs = tuple(_texts(pair) for pair in found)
    if any(len(pair) != 2 for pair in pairs):
        raise TypeError(f"{found!r} is no list of servers")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _stakes(found: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    pairs = found if isinstance(found, (list, tuple)) else ()
    if pairs is not found or any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise TypeError(f"{found!r} is no list of frontends and their backends")
    return tuple((str(pair[0]), _texts(pair[1])) for pair in pairs)


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

    digest: str = field(validator=_text)
    reason: str = field(validator=_text)
    since: float = field(validator=_seconds)


@frozen(kw_only=True)
class Request:
    """How the document with this digest is to be treated at the next look, once.

    `force`: although a serving frontend would be left without a reached server. `retry`: although it is held.
    """

    digest: str = field(validator=_text)
    force: bool = field(default=False, validator=instance_of(bool))
    retry: bool = field(default=False, validator=instance_of(bool))
