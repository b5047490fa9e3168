"""status.json, schema 1, as a type: what `agent status`, `agent sync` and other people's scripts read.

The JSON is the type, name by name, and is written and read here alone. Times are ISO 8601 in UTC. A reader can do
without a field that has a default: an older agent did not write it, and commands of a newer version read its status.
"""

from __future__ import annotations

import datetime as dt
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from attrs import frozen

SCHEMA = 1
MAX_NAMED = 5  # frontends in the headline

T = TypeVar("T")


@frozen(kw_only=True)
class AgentStatus:
    """Which agent wrote the status, as which command."""

    version: str
    pid: int
    command: str = ""
    started: str = ""


@frozen(kw_only=True)
class DesiredStatus:
    """The document of the last reconcile. `file_id`: inode and modification time (ns) of that very file."""

    digest: str | None
    serial: int | None
    file: str = ""
    name: str = ""
    read: str = ""
    file_id: tuple[int, ...] | None = None


@frozen(kw_only=True)
class LiveStatus:
    """The live generation."""

    generation: int
    digest: str
    name: str
    serial: int | None
    since: str


@frozen(kw_only=True)
class HoldStatus:
    """The document that is not applied again until it changes."""

    digest: str
    reason: str
    since: str


@frozen(kw_only=True)
class NotInSync:
    """Why the desired state is not live. `state`: in one word; `reason`: a sentence, "" where that says all."""

    text: str
    state: str = ""
    reason: str = ""


@frozen(kw_only=True)
class ViolationStatus:
    """A mistake in the document."""

    file: str
    line: int | None
    path: str
    message: str


@frozen(kw_only=True)
class FindingStatus:
    """What people should know."""

    where: str
    message: str
    remedy: str
    line: int | None = None


@frozen(kw_only=True)
class BindStatus:
    """An address of a frontend. `state`: listening, closed or quarantined."""

    address: str
    state: str
    reason: str


@frozen(kw_only=True)
class RouteStatus:
    """Where clients go that send one of these names; none: all others. `backend` None: they are refused."""

    sni: tuple[str, ...]
    backend: str | None


@frozen(kw_only=True)
class CanaryStatus:
    """A canary probe: the address that was used, and the one that the echo reported."""

    address: str
    used: str
    told: str
    preserved: bool | None
    detail: str
    milliseconds: int


@frozen(kw_only=True)
class FrontendStatus:
    """`state`: up, degraded, down or quarantined. `client_ip_preserved` None: not known."""

    name: str
    state: str
    binds: tuple[BindStatus, ...]
    servers_up: int
    servers_total: int
    sessions: int = 0
    backends: tuple[str, ...] = ()
    routes: tuple[RouteStatus, ...] = ()
    client_ip_preserved: bool | None = None
    canary: tuple[CanaryStatus, ...] = ()

    @property
    def why(self) -> str:
        """Why it is not up: its addresses that do not listen, else its servers that are not up."""
        closed = [f"{bind.address}: {bind.reason}" for bind in self.binds if bind.state != "listening"]
        rest = f" and {len(closed) - 2} more" if len(closed) > 2 else ""
        return "; ".join(closed[:2]) + rest or f"{self.servers_up} of {self.servers_total} servers up"


@frozen(kw_only=True)
class HandshakeStatus:
    """What a server was last found to be. `mismatch`: it provably does not take what it is sent."""

    result: str
    mismatch: bool
    detail: str = ""
    subject: str = ""
    milliseconds: int = 0
    at: str = ""


@frozen(kw_only=True)
class ServerStatus:
    """`status`, `check`: HAProxy's own words. `handshake` None: it was not probed as it is now."""

    name: str
    address: str
    status: str
    check: str
    sessions: int
    handshake: HandshakeStatus | None
    weight: int = 1
    backup: bool = False


@frozen(kw_only=True)
class BackendStatus:
    """A backend and its servers."""

    name: str
    servers: tuple[ServerStatus, ...]
    application: str = ""
    proxy_protocol: str = ""
    servers_up: int = 0
    servers_total: int = 0


@frozen(kw_only=True)
class HAProxyStatus:
    """The running process. `uptime`: seconds."""

    pid: int
    version: str
    uptime: int
    generation: int | None = None


@frozen(kw_only=True)
class EventStatus:
    """What happened between changes, `count` times."""

    event: str
    message: str
    count: int
    at: str
    subject: str = ""
    until: str = ""


@frozen(kw_only=True)
class Status:
    """All of status.json. `desired` and `outcome` None: nothing was reconciled yet. `haproxy` None: no answer."""

    schema: int
    at: str
    agent: AgentStatus
    desired: DesiredStatus | None
    live: LiveStatus | None
    outcome: str | None
    exit_code: int | None
    message: str
    remedy: str
    held: HoldStatus | None
    findings: tuple[FindingStatus, ...]
    frontends: tuple[FrontendStatus, ...]
    backends: tuple[BackendStatus, ...]
    haproxy: HAProxyStatus | None
    in_sync: bool = True
    not_in_sync: NotInSync | None = None
    violations: tuple[ViolationStatus, ...] = ()
    violations_total: int = 0
    timings: Mapping[str, float] = attrs.field(factory=dict)
    plan: str | None = None
    reasons: tuple[str, ...] = ()
    counters: Mapping[str, int] = attrs.field(factory=dict)
    events: tuple[EventStatus, ...] = ()

    @property
    def not_up(self) -> tuple[FrontendStatus, ...]:
        """The frontends that do not serve fully."""
        return tuple(frontend for frontend in self.frontends if frontend.state != "up")

    @property
    def headline(self) -> str:
        """What is wrong with the desired state, if anything, and what serves: all frontends, or which do not."""
        if self.not_in_sync is None:
            return self._serving
        if self.live is None:
            return f"The desired state is not live: {self.not_in_sync.text}. Nothing is live."
        return (
            f"The desired state is not live: {self.not_in_sync.text}. "
            f"Generation {self.live.generation} is live: {self._serving}"
        )

    @property
    def _serving(self) -> str:
        """One sentence: all are serving, or which is not."""
        total, bad = len(self.frontends), self.not_up
        if not total:
            return "Nothing is live." if self.live is None else "What is live has no frontend."
        if not bad:
            return f"All {total} frontends are serving." if total > 1 else "The one frontend is serving."
        names = ", ".join(f"{frontend.name} is {frontend.state} ({frontend.why})" for frontend in bad[:MAX_NAMED])
        rest = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        return f"{total - len(bad)} of {total} frontends are fully serving; {names}{rest}."


def when(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC: `2026-11-24T03:44:52Z`."""
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> float:
    """The reverse of `when`. Raises ValueError."""
    return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC).timestamp()


# --- JSON


def to_json(value: object, *, indent: int | None = None) -> str:
    """A value of these types, as JSON."""
    return json.dumps(value, default=_fields, indent=indent)


def as_json(value: object) -> Any:
    """The same as dicts and lists."""
    return json.loads(to_json(value))


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name, _, _ in _shape(type(value))}


def from_json(document: object, kind: type[T]) -> T | None:
    """A value of `kind` out of JSON; None where that has not this shape: a crash, a person or another version wrote it.

    Every key that a reader relies on is there, and of its type. Further keys are ignored.
    """
    try:
        return _read(kind, document)
    except (TypeError, KeyError):
        return None


def _read(kind: type[T], value: object) -> T:
    """Raises TypeError, KeyError."""
    if not isinstance(value, dict):
        raise TypeError(kind)
    found = {}
    for name, read, required in _shape(kind):
        if name in value:
            found[name] = read(value[name])
        elif required:
            raise KeyError(name)
    return kind(**found)


_SHAPES: dict[Any, tuple[tuple[str, Callable[[Any], Any], bool], ...]] = {}


def _shape(kind: Any) -> tuple[tuple[str, Callable[[Any], Any], bool], ...]:
    """Of each field: its name, what reads its value (raises TypeError, KeyError), whether it must be there."""
    if kind not in _SHAPES:
        hints = typing.get_type_hints(kind)
        _SHAPES[kind] = tuple(
            (field.name, _reader(hints[field.name]), field.default is attrs.NOTHING) for field in attrs.fields(kind)
        )
    return _SHAPES[kind]


def _reader(hint: Any) -> Callable[[Any], Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # with None, always
        inner = _reader(arguments[0])
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        item = _reader(arguments[0])
        return lambda value: tuple(item(one) for one in _of(list, value))
    if origin is Mapping or origin is typing.get_origin(Mapping[str, float]):
        return lambda value: _of(dict, value)
    if attrs.has(hint):
        return lambda value: _read(hint, value)
    return lambda value: _of(hint, value)


def _of(kind: type[T], value: object) -> T:
    """A boolean is no number. Raises TypeError."""
    if type(value) is not kind:
        raise TypeError(value)
    return value
