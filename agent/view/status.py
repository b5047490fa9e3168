"""status.json, schema 1, as a type: what `agent status`, `agent sync` and other people's scripts read.

The JSON is the type, name by name, and is written and read here alone. Times are ISO 8601 in UTC. A reader can do
without a field that has a default: an older agent did not write it, and commands of a newer version read its status.

The classes have neither `==` nor a repr of their own: attrs would compile both for each at every start of a command.
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

from agent.reconcile.event import Event

SCHEMA = 1
MAX_NAMED = 5  # frontends in the headline

T = TypeVar("T")


@frozen(kw_only=True, eq=False, repr=False)
class AgentStatus:
    """Which agent wrote the status, as which command."""

    version: str
    """of the agent"""
    pid: int
    """of the process"""
    command: str = ""
    """the command that wrote the status: `run`, `apply`, ..."""
    started: str = ""
    """when that process began"""


@frozen(kw_only=True, eq=False, repr=False)
class DesiredStatus:
    """The document of the last reconcile. `file_id`: inode and modification time (ns) of that very file."""

    digest: str | None
    """SHA-256 of the document, hex; null: there is no file"""
    serial: int | None
    """its `serial`"""
    file: str = ""
    """its path"""
    name: str = ""
    """its `name`"""
    read: str = ""
    """when it was read"""
    file_id: tuple[int, ...] | None = None
    """identity of that very file: inode and modification time (ns)"""
    actor: str = ""
    """who handed it over: a user, an ssh key and its address, a signer, or `file`"""


@frozen(kw_only=True, eq=False, repr=False)
class LiveStatus:
    """The live generation."""

    generation: int
    """its number"""
    digest: str
    """SHA-256 of its document, hex"""
    name: str
    """its `name`"""
    serial: int | None
    """its `serial`"""
    since: str
    """when it was committed"""
    manager: str = ""
    """its `manager`"""
    actor: str = ""
    """who made the change: a user, an ssh key and its address, a signer, `file`, or `agent`"""


@frozen(kw_only=True, eq=False, repr=False)
class HoldStatus:
    """The document that is not applied again until it changes."""

    digest: str
    """SHA-256 of the document that is held"""
    reason: str
    """what got worse, or who rolled it back"""
    since: str
    """when"""


@frozen(kw_only=True, eq=False, repr=False)
class NotInSync:
    """Why the desired state is not live. `state`: in one word; `reason`: a sentence, "" where that says all."""

    text: str
    """the whole reason, as part of a sentence"""
    state: str = ""
    """the reason in one word: missing, invalid, refused, held, rolled_back, pending, other"""
    reason: str = ""
    """details; empty where `state` says all"""


@frozen(kw_only=True, eq=False, repr=False)
class ViolationStatus:
    """A mistake in the document."""

    file: str
    """the document"""
    line: int | None
    """1-based; null: not known"""
    path: str
    """where in the document: `frontends.smtp.bind[0]`"""
    message: str
    """what is wrong"""


@frozen(kw_only=True, eq=False, repr=False)
class RefusalStatus:
    """A part of the document for which the whole of it is refused."""

    kind: str
    """`frontend`, `backend` or `server`"""
    name: str
    """of the frontend, or of the backend"""
    server: str
    """of `kind: server`: its name in the backend; else empty"""
    reason: str
    """why, in a sentence"""


@frozen(kw_only=True, eq=False, repr=False)
class FindingStatus:
    """What people should know."""

    where: str
    """the path in the document, or what it is about"""
    message: str
    """what was found"""
    remedy: str
    """what to do"""
    line: int | None = None
    """1-based; null: not about a line"""


@frozen(kw_only=True, eq=False, repr=False)
class BindStatus:
    """An address of a frontend. `state`: listening, closed or quarantined."""

    address: str
    """address and port"""
    state: str
    """`listening`, `closed` or `quarantined`"""
    reason: str
    """why it does not listen"""


@frozen(kw_only=True, eq=False, repr=False)
class RouteStatus:
    """Where clients go that send one of these names; none: all others. `backend` None: they are refused."""

    sni: tuple[str, ...]
    """the names; empty: all other connections"""
    backend: str | None
    """null: such connections are refused"""


@frozen(kw_only=True, eq=False, repr=False)
class CanaryStatus:
    """A canary probe: the address that was used, and the one that the echo reported."""

    address: str
    """the address of the frontend that was connected to"""
    used: str
    """the source address that the probe used"""
    told: str
    """the client address that the echo reported"""
    preserved: bool | None
    """whether the two are the same; null: not known"""
    detail: str
    """what failed"""
    milliseconds: int
    """duration"""


@frozen(kw_only=True, eq=False, repr=False)
class FrontendStatus:
    """`state`: up, degraded, down or quarantined. `client_ip_preserved` None: not known."""

    name: str
    """its name"""
    state: str
    """`up`, `degraded`, `down` or `quarantined`"""
    binds: tuple[BindStatus, ...]
    """its addresses"""
    servers_up: int
    """servers that receive its clients"""
    servers_total: int
    """servers that should"""
    sessions: int = 0
    """current sessions"""
    backends: tuple[str, ...] = ()
    """backends that a connection can get to"""
    routes: tuple[RouteStatus, ...] = ()
    """its routes"""
    client_ip_preserved: bool | None = None
    """whether the canary arrived with its own address; null: not known"""
    canary: tuple[CanaryStatus, ...] = ()
    """the canary probes"""
    owner: str = ""
    """its `owner`"""

    @property
    def why(self) -> str:
        """Why it is not up: its addresses that do not listen, else its servers that are not up."""
        closed = [f"{bind.address}: {bind.reason}" for bind in self.binds if bind.state != "listening"]
        rest = f" and {len(closed) - 2} more" if len(closed) > 2 else ""
        return "; ".join(closed[:2]) + rest or f"{self.servers_up} of {self.servers_total} servers up"


@frozen(kw_only=True, eq=False, repr=False)
class HandshakeStatus:
    """What a server was last found to be. `mismatch`: it provably does not take what it is sent."""

    result: str
    """`speaks_proxy`, `plain`, `silent`, `refused`, `unreachable`, `wrong_protocol` or `unknown`"""
    mismatch: bool
    """the server provably does not take what it is sent"""
    detail: str = ""
    """what it answered"""
    subject: str = ""
    """name in its certificate"""
    milliseconds: int = 0
    """duration"""
    at: str = ""
    """when it was probed"""


@frozen(kw_only=True, eq=False, repr=False)
class ServerStatus:
    """`status`, `check`: HAProxy's own words. `handshake` None: it was not probed as it is now."""

    name: str
    """its name"""
    address: str
    """address and port"""
    status: str
    """HAProxy's status: UP, DOWN, MAINT, DRAIN, no check"""
    check: str
    """result of the last check, in HAProxy's words"""
    sessions: int
    """current sessions"""
    handshake: HandshakeStatus | None
    """result of the last PROXY probe; null: not probed with this address and protocol"""
    weight: int = 1
    """its weight"""
    backup: bool = False
    """whether it is a backup"""
    drained: str = ""
    """since when a person has drained it (`agent drain`); empty: it is not drained"""
    host_name: str = ""
    """the host name that the document has for it, at `address` now; empty: the document has the address"""


@frozen(kw_only=True, eq=False, repr=False)
class BackendStatus:
    """A backend and its servers."""

    name: str
    """its name"""
    servers: tuple[ServerStatus, ...]
    """its servers"""
    application: str = ""
    """its `application`"""
    proxy_protocol: str = ""
    """its `proxy_protocol`"""
    servers_up: int = 0
    """servers that receive clients"""
    servers_total: int = 0
    """servers that should"""
    owner: str = ""
    """its `owner`"""


@frozen(kw_only=True, eq=False, repr=False)
class HAProxyStatus:
    """The running process. `uptime`: seconds."""

    pid: int
    """of the serving process"""
    version: str
    """of HAProxy"""
    uptime: int
    """seconds"""
    generation: int | None = None
    """the generation that the process runs; null: not ours"""


@frozen(kw_only=True, eq=False, repr=False)
class EventStatus:
    """What happened between changes, `count` times."""

    event: str
    """`haproxy_restarted`, `haproxy_stopped`, `frontend_down`, `frontend_up`, `drift_corrected`, `refused`,
    `rolled_back`"""
    message: str
    """a sentence"""
    count: int
    """how many times within the minute"""
    at: str
    """when it happened first"""
    subject: str = ""
    """what it is about: a frontend, a digest"""
    until: str = ""
    """when it happened last"""
    actor: str = ""
    """who had asked for it; empty: nobody"""


@frozen(kw_only=True, eq=False, repr=False)
class Status:
    """All of status.json. `desired` and `outcome` None: nothing was reconciled yet. `haproxy` None: no answer."""

    schema: int
    """of this file: 1"""
    at: str
    """when it was written"""
    agent: AgentStatus
    """who wrote it"""
    desired: DesiredStatus | None
    """the document of the last reconcile; null: none was read yet"""
    live: LiveStatus | None
    """the live generation; null: nothing is live"""
    outcome: str | None
    """of the last reconcile: `unchanged`, `committed`, `degraded`, `invalid`, `refused`, `rolled_back`"""
    exit_code: int | None
    """the exit code of that outcome"""
    message: str
    """what went wrong"""
    remedy: str
    """what to do"""
    held: HoldStatus | None
    """the document that is held; null: none"""
    findings: tuple[FindingStatus, ...]
    """warnings"""
    frontends: tuple[FrontendStatus, ...]
    """every frontend of what is live"""
    backends: tuple[BackendStatus, ...]
    """every backend of what is live"""
    haproxy: HAProxyStatus | None
    """the serving process; null: it does not answer"""
    in_sync: bool = True
    """whether the desired state is what is live"""
    not_in_sync: NotInSync | None = None
    """why it is not"""
    violations: tuple[ViolationStatus, ...] = ()
    """the first 100 mistakes in the document"""
    violations_total: int = 0
    """how many there are"""
    refused: tuple[RefusalStatus, ...] = ()
    """the first 100 parts of the document for which it is refused, where it is for parts of it"""
    timings: Mapping[str, float] = attrs.field(factory=dict)
    """seconds of each stage of the last reconcile"""
    plan: str | None = None
    """`unchanged`, `runtime` or `reload`"""
    reasons: tuple[str, ...] = ()
    """why"""
    counters: Mapping[str, int] = attrs.field(factory=dict)
    """since this agent started: reloads, runtime_updates, rollbacks, drift_corrections.KIND"""
    events: tuple[EventStatus, ...] = ()
    """the newest events, at most 20"""

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


def event_status(event: Event) -> EventStatus:
    """An event as it is published: in status.json, to `notify.command`, in `agent history --json`."""
    return EventStatus(
        event=event.kind,
        subject=event.subject,
        message=event.message,
        count=event.count,
        at=when(event.at),
        until=when(event.until),
        actor=event.actor,
    )


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
    values = {}
    for name, read, required in _shape(kind):
        if name in value:
            values[name] = read(value[name])
        elif required:
            raise KeyError(name)
    return kind(**values)


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
        return lambda value: tuple(item(part) for part in _of(list, value))
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
