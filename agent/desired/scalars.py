"""Types of single values: what each may be, what an error says of it, and the same as JSON Schema.

Nothing is converted on the way: "25" is no number, 1 is not true. Apart from `structure`, which needs cattrs: commands
that read only agent.toml must start fast.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

_MANY = 100
_COUNTLESS = 10**12
_LONGEST_WORD = 100  # characters of a word that a similar one is looked for; the search takes the square of it

Hook = Callable[[object], object]
"""A scalar's hook: takes the plain value, returns the typed one, raises ValueError saying what was expected."""


@frozen
class Scalar:
    """A type of single values."""

    hook: Hook
    label: str
    """What the reference page calls it."""
    json_schema: Mapping[str, object]
    """JSON Schema (2020-12) of the values as they are written."""


def name_key(kind: object) -> dict[str, object]:
    """Metadata of the field that is the key of a value in its mapping, of this scalar type; it is no key of its own."""
    return {"name_key": kind}


def about(text: str, *, example: object = None, line: str = "") -> dict[str, object]:
    """Metadata of a key: what it is for, a value as it is written, and what of it is then in haproxy.cfg."""
    return {"about": text, "example": example, "line": line}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean "backend"?)`, or the known words, or nothing where they are too many to list."""
    import difflib  # only for messages

    candidates = sorted(known) if len(word) <= _LONGEST_WORD else []
    if len(candidates) > _MANY:  # difflib looks at every pair of letters; of many words only likely ones are worth it
        candidates = [
            candidate for candidate in candidates if candidate[:1] == word[:1] and abs(len(candidate) - len(word)) <= 2
        ][:_MANY]
    if close := difflib.get_close_matches(word, candidates, n=1, cutoff=0.6):
        return f'; did you mean "{close[0]}"?'
    return f"; known here: {', '.join(candidates)}" if 0 < len(candidates) <= 14 else ""


def describe(value: object) -> str:
    """A plain value as an error message names it, short and on one line whatever it holds."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value)
    if len(text) > 60:
        text = text[:56] + '..."' if isinstance(value, str) else text[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text


def expected(what: str, value: object) -> ValueError:
    """`expected a list, got the text "x"`"""
    return ValueError(f"expected {what}, got {describe(value)}")


def text(value: object) -> str:
    """A text of one printable line, so that it can stand in a log, a label or a file as it is."""
    if not isinstance(value, str):
        raise expected("text", value)
    if not value.isprintable():
        raise ValueError(f"must be one line of printable characters, got {describe(value)}")
    return value


def boolean(value: object) -> bool:
    """True or false; never "yes", never 1."""
    if not isinstance(value, bool):
        raise expected("true or false", value)
    return value


TEXT = Scalar(text, "text", {"type": "string"})
BOOLEAN = Scalar(boolean, "true or false", {"type": "boolean"})


def int_between(low: int, high: int) -> Scalar:
    """Whole numbers from `low` to `high`."""

    def hook(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise expected(f"a whole number from {low:,} to {high:,}", value)
        return value

    label = f"{low:,} to {high:,}" if high < _COUNTLESS else f"whole number from {low}"
    return Scalar(hook, label, {"type": "integer", "minimum": low, "maximum": high})


def matching(pattern: str, what: str, *, label: str) -> Scalar:
    """Texts that match `pattern` from end to end (no newline can hide behind `$`)."""
    compiled = re.compile(pattern)

    def hook(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise expected(what, value)
        return value

    return Scalar(hook, label, {"type": "string", "pattern": f"^{pattern}$"})


_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)")
MAX_MILLISECONDS = 2**31 - 1
"""HAProxy keeps its timers in 32 bits: "timer overflow" above 24.8 days (its manual, 2.5, Time format)."""


def milliseconds(value: object) -> int:
    """`25ms`, `5s`, `10m`, `1h` to milliseconds; at least 1, at most what HAProxy's timers hold."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise expected('a duration with its unit (ms, s, m, h), such as "5s"', value)
    amount = int(match[1]) * _UNITS[match[2]]
    if not 1 <= amount <= MAX_MILLISECONDS:
        raise ValueError(f"must be from 1ms to 596h, got {describe(value)}")
    return amount


DURATION = Scalar(
    milliseconds, "duration", {"type": "string", "pattern": "^(?=[0-9]{1,9}[a-z])0*[1-9][0-9]*(ms|s|m|h)$"}
)


def duration(amount: int) -> str:
    """Milliseconds in the largest unit that says them exactly: 3600000 is `1h`."""
    for unit in ("h", "m", "s"):
        if amount % _UNITS[unit] == 0:
            return f"{amount // _UNITS[unit]}{unit}"
    return f"{amount}ms"


def member(value: object, kind: type[enum.StrEnum]) -> enum.StrEnum:
    """A member of a choice, by its value. Raises ValueError."""
    members = {choice.value: choice for choice in kind}
    if isinstance(value, str) and value in members:
        return members[value]
    close = did_you_mean(value, members) if isinstance(value, str) else ""
    hint = close if close.startswith("; did you mean") else ""
    raise ValueError(f"expected one of {', '.join(members)}, got {describe(value)}{hint}")
