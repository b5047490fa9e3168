"""What the store keeps, as values: generations, the journal of a step, a hold.

They are read back from files that a crash or a person may have left in any shape, so each checks its own types;
ValueError or TypeError where they are not.
"""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import deep_iterable, instance_of, optional

from agent.desired.identity import Key
from agent.desired.stored import is_number, is_seconds, is_text, read_as, texts
from agent.haproxy.quarantine import Quarantined


def _quarantines(value: object) -> tuple[Quarantined, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"quarantined: {value!r} is no list")
    return tuple(item if isinstance(item, Quarantined) else read_as(Quarantined, item) for item in value)


def _keys(value: object) -> tuple[tuple[str, str], ...]:
    """Servers, each by backend and name, out of values or of JSON. Raises TypeError."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no list of servers")
    pairs = tuple(texts(pair) for pair in value)
    if any(len(pair) != 2 for pair in pairs):
        raise TypeError(f"{value!r} is no list of servers")
    return tuple((pair[0], pair[1]) for pair in pairs)


@frozen(kw_only=True)
class Generation:
    """One state that was live."""

    number: int = field(validator=is_number)
    """counted from 1"""
    digest: str = field(validator=is_text)
    """SHA-256 of its document, hex"""
    config_digest: str = field(validator=is_text)
    """SHA-256 of its haproxy.cfg, hex"""
    loaded: int = field(validator=is_number)
    """the generation whose process carried it at first"""
    at: float = field(validator=is_seconds)
    """when it was committed, in seconds since the epoch"""
    outcome: str = field(validator=is_text)
    """an `Outcome`"""
    name: str = field(default="", validator=is_text)
    """the document's label"""
    serial: int | None = field(default=None, validator=optional(instance_of(int)))
    """the document's serial"""
    manager: str = field(default="", validator=is_text)
    """the document's manager"""
    reasons: tuple[str, ...] = field(default=(), validator=deep_iterable(is_text, instance_of(tuple)))
    """why it came, a sentence each"""
    seconds: float = field(default=0.0, validator=is_seconds)
    """duration of the change"""
    quarantined: tuple[Quarantined, ...] = field(default=(), converter=_quarantines)
    """addresses that were left out"""
    restores: int | None = field(default=None, validator=optional(instance_of(int)))
    """the earlier generation that a rollback put back with it"""
    template: str = field(default="", validator=is_text)
    """digest of the template, the settings and the agent that rendered it; empty: of an older agent"""
    unserved: tuple[str, ...] = field(default=(), converter=texts)
    """frontends that were new in it, without a server that answered"""
    drained: tuple[tuple[str, str], ...] = field(default=(), converter=_keys)
    """servers that a person had drained"""
    actor: str = field(default="", validator=is_text)
    """who made the change; empty: of an older agent"""
    resolved: tuple[tuple[str, str], ...] = field(default=(), converter=_keys)
    """host names of servers, each with the address that was used for it"""


def _stakes(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    pairs = value if isinstance(value, (list, tuple)) else ()
    if pairs is not value or any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise TypeError(f"{value!r} is no list of frontends and their backends")
    return tuple((str(pair[0]), texts(pair[1])) for pair in pairs)


@frozen(kw_only=True)
class Journal:
    """A step that is under way. While it stands, no verdict was reached."""

    before: int | None = field(validator=optional(instance_of(int)))
    """the generation that was live; None: nothing was"""
    after: int = field(validator=instance_of(int))
    """the generation that shall be live"""
    runtime: bool = field(default=False, validator=instance_of(bool))
    """by commands to the running process, which may have executed some of them"""
    servers: tuple[tuple[str, str], ...] = field(default=(), converter=_keys)
    """those that the step changes"""
    serving: tuple[tuple[str, tuple[str, ...]], ...] = field(default=(), converter=_stakes)
    """each frontend that served before, with the backends of which one must serve it after"""
    unproven: tuple[tuple[str, str], ...] = field(default=(), converter=_keys)
    """servers that are new or changed, and judged by their checks"""


@frozen(kw_only=True)
class Hold:
    """A document that served worse and is not applied again."""

    digest: str = field(validator=is_text)
    """of the document"""
    reason: str = field(validator=is_text)
    """what got worse, or that it was rolled back by hand"""
    since: float = field(validator=is_seconds)
    """seconds since the epoch"""


@frozen(kw_only=True)
class Drain:
    """A server that a person has taken out for new clients, as the document has it: another one there ends that."""

    backend: str = field(validator=is_text)
    """its backend"""
    server: str = field(validator=is_text)
    """its name"""
    address: str = field(validator=is_text)
    """address and port"""
    weight: int = field(validator=is_number)
    """its weight in the document"""
    since: float = field(validator=is_seconds)
    """seconds since the epoch"""
    by: str = field(default="", validator=is_text)
    """who did it"""

    @property
    def key(self) -> Key:
        """Backend and name."""
        return (self.backend, self.server)


@frozen(kw_only=True)
class Request:
    """Who handed a document over, and how it is to be treated at the next look, once."""

    digest: str = field(validator=is_text)
    """of the document"""
    force: bool = field(default=False, validator=instance_of(bool))
    """although a serving frontend would be left without a server that answers"""
    retry: bool = field(default=False, validator=instance_of(bool))
    """although it is held"""
    actor: str = field(default="", validator=is_text)
    """who handed it over; it stays until another document stands in the desired file"""
