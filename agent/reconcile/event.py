"""What happens between changes and is worth reporting: HAProxy died, a frontend lost its last server or has one again.

Also what a change left behind: a document that was tried and put back, drift that was put right. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, evolve, field, frozen
from attrs.validators import in_, instance_of

from agent.errors import Violation

REPEAT_SECONDS = 600.0  # within which a refusal of the same document is no news
LONGEST = 1_000  # characters of a sentence: a notice fits into a pipe
WINDOW_SECONDS = 60.0
"""Changes of one subject within this time are one event with a count."""


class Kind(enum.StrEnum):
    """What happened."""

    HAPROXY_RESTARTED = "haproxy_restarted"
    """HAProxy was not running, and was started again"""
    HAPROXY_STOPPED = "haproxy_stopped"
    """HAProxy was ended by `agent stop-haproxy`; in the history only"""
    FRONTEND_DOWN = "frontend_down"
    """a frontend has lost all its servers, or its addresses"""
    FRONTEND_UP = "frontend_up"
    """it serves again"""
    REFUSED = "refused"
    """a document was refused before anything was touched, invalid ones included; in the history only, likewise"""
    ROLLED_BACK = "rolled_back"
    """a document was tried and rolled back; in the history only, `notify.command` receives the outcome"""
    DRIFT_CORRECTED = "drift_corrected"
    """something was changed by hand, and was corrected"""


@frozen(kw_only=True)
class Event:
    """One thing that happened, or several of one subject within a minute."""

    kind: str = field(validator=in_([kind.value for kind in Kind]))
    subject: str = field(validator=instance_of(str))
    """A frontend's name, or `haproxy`, or the first digits of a document's SHA-256."""
    message: str = field(validator=instance_of(str))
    at: float = field(converter=float)
    """When it began, in seconds since the epoch."""
    until: float = field(converter=float)
    """When the last of `count` changes happened, in seconds since the epoch."""
    count: int = field(default=1, validator=instance_of(int))
    actor: str = field(default="", validator=instance_of(str))
    """Who had asked for it; empty: nobody."""

    @property
    def about(self) -> str:
        """What it is about: a frontend may be called `haproxy`."""
        return f"frontend {self.subject}" if self.kind.startswith("frontend_") else self.subject

    @property
    def key(self) -> tuple[str, float]:
        """What an event with a higher count replaces."""
        return self.about, self.at


@define
class _Window:
    """The changes of one subject since the first one that was reported."""

    first: Event
    last: Event
    count: int = 1


def refusal(digest: str, why: str, *, actor: str, at: float) -> Event:
    """A document that was refused. `digest`: SHA-256, hex; `at`: seconds since the epoch."""
    subject = digest[:12]
    message = f"refused: sha256 {subject}: {why}"[:LONGEST]
    return Event(kind=Kind.REFUSED.value, subject=subject, message=message, at=at, until=at, actor=actor)


def invalid_in_words(violations: Sequence[Violation], total: int) -> str:
    """`invalid: line 4: unknown key, and 2 more`"""
    line = f"line {violations[0].line}: " if violations[0].line is not None else ""
    more = f", and {total - 1} more" if total > 1 else ""
    return f"invalid: {line}{violations[0].message}{more}"


def repeats(refused: Event, before: Iterable[Event]) -> bool:
    """Whether the same actor had the same document refused a moment ago, whatever else was refused meanwhile."""
    return any(
        (event.kind, event.subject, event.actor) == (refused.kind, refused.subject, refused.actor)
        and abs(refused.at - event.at) < REPEAT_SECONDS
        for event in before
    )


class Damper:
    """Reports the first change of a subject at once, and the others within WINDOW_SECONDS together, as one event."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def take(self, changes: Iterable[Event], now: float) -> list[Event]:
        """Returns what is to be reported at `now` (seconds since the epoch): firsts, and windows that have ended."""
        due = []
        for change in changes:
            window = self._windows.get(change.about)
            if window is None:
                self._windows[change.about] = _Window(change, change)
                due.append(change)
            else:
                window.last, window.count = change, window.count + 1
        for subject, window in list(self._windows.items()):
            if now - window.first.at >= WINDOW_SECONDS or now < window.first.at:  # or the clock was set back
                del self._windows[subject]
                if window.count > 1:
                    due.append(_together(window))
        return due

    def flush(self) -> list[Event]:
        """What was not reported yet: at the end of the service."""
        due = [_together(window) for window in self._windows.values() if window.count > 1]
        self._windows.clear()
        return due


def _together(window: _Window) -> Event:
    last = window.last
    message = f"changed {window.count} times within {WINDOW_SECONDS:.0f} s; now: {last.message}"
    return evolve(last, at=window.first.at, until=last.at, count=window.count, message=message)


def frontend_changes(before: Mapping[str, str], now: Mapping[str, str], *, at: float) -> list[Event]:
    """Frontends that no longer serve since `before`, or serve again. By name: why it does not serve, "" where it does.

    A frontend that is only in one of the two has come or gone by a change, which is reported as such.
    """
    changes = []
    for name, why in now.items():
        if name in before and bool(before[name]) != bool(why):
            kind = Kind.FRONTEND_DOWN if why else Kind.FRONTEND_UP
            message = f"frontend {name} {f'serves nobody: {why}' if why else 'serves again'}"
            changes.append(Event(kind=kind.value, subject=name, message=message, at=at, until=at))
    return changes


def recorded(events: Iterable[Event], new: Iterable[Event], *, most: int) -> tuple[Event, ...]:
    """Events oldest first, with new ones added or in the place of those that they count on; the last `most`."""
    kept = {event.key: event for event in events}
    for event in new:
        kept[event.key] = event
    return tuple(sorted(kept.values(), key=lambda event: event.at))[-most:]
