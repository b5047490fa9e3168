"""Plain trees to frozen attrs classes: by cattrs, without coercion, every fault with its path.

Used for the desired state and for agent.toml alike. cattrs builds the classes and gathers the faults; the hooks
here see to it that nothing is converted on the way (cattrs by itself takes "25" and True for an int and a text
for a list).
"""

from __future__ import annotations

import difflib
import enum
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar, get_args, get_origin

import attrs
from attrs import field, frozen
from cattrs import (
    BaseValidationError,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from agent.errors import MOST_VIOLATIONS, Path

T = TypeVar("T")

_MANY = 100
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


_ROUNDS = 6  # of cutting out what is wrong; each round can only uncover a parent that lost a required key


@frozen
class Fault:
    """One thing that does not fit."""

    path: Path
    """where"""
    message: str
    """what is wrong"""
    cut: Path
    """what must go so that the rest can be looked at"""


@frozen
class Structured(Generic[T]):
    """What became of a tree."""

    value: T | None
    """None: nothing could be built"""
    faults: tuple[Fault, ...]
    """everything that does not fit, at most MOST_VIOLATIONS"""
    cut: frozenset[Path]
    """the paths that were left out"""
    kept: dict[Path, list[int]]
    """of each shortened list, the indexes that its items have in the document"""
    more: int = 0
    """how many further faults there are; nothing is built then"""
    _around_cuts: frozenset[Path] = field(init=False)

    @_around_cuts.default
    def _index(self) -> frozenset[Path]:
        return frozenset(path[:length] for path in self.cut for length in range(len(path)))

    def at(self, path: Path) -> Path:
        """A path in `value` as the path it has in the document."""
        return original(path, self.kept)

    def whole(self, path: Path) -> bool:
        """Whether nothing at, above or below `path` was cut out."""
        return path not in self._around_cuts and not any(path[:length] in self.cut for length in range(len(path) + 1))


def structure(converter: Converter, tree: object, into: type[T]) -> Structured[T]:
    """Structure `tree`; where parts do not fit, name each fault, cut those parts out and build the rest.

    The rest (not looked at where there are more than MOST_VIOLATIONS) is what lets
    cross checks (an unknown backend, an address bound twice) run in the same pass, so that
    one run names every mistake. Faults are those of the whole tree; what only comes of the cutting is not reported.
    """
    gone: set[Path] = set()
    faults: tuple[Fault, ...] = ()
    kept: dict[Path, list[int]] = {}
    for attempt in range(_ROUNDS):
        kept.clear()
        try:
            value = converter.structure(_without(tree, gone, (), kept), into)
        except (BaseValidationError, ValueError) as error:
            if attempt == 0 and (total := _count(error)) > MOST_VIOLATIONS:
                listed = tuple(itertools.islice(_faults(error, ()), MOST_VIOLATIONS))
                return Structured(None, listed, frozenset({()}), {}, total - len(listed))
            current = tuple(_faults(error, ()))
            if attempt == 0:
                faults = current
            cuts = {original(fault.cut, kept) for fault in current}
            if () in cuts:
                break
            gone |= cuts
        else:
            return Structured(value, faults, frozenset(gone), dict(kept))
    return Structured(None, faults, frozenset({()}), {})


def original(path: Path, kept: Mapping[Path, list[int]]) -> Path:
    """A path in the cut tree as the path it has in the document: cut list items count again."""
    place: Path = ()
    for step in path:
        indexes = kept.get(place)
        place = (*place, indexes[step] if indexes is not None and isinstance(step, int) else step)
    return place


def _without(tree: object, gone: set[Path], path: Path, kept: dict[Path, list[int]]) -> object:
    if not gone:
        return tree
    if isinstance(tree, dict):
        return {
            key: _without(value, gone, (*path, key), kept) for key, value in tree.items() if (*path, key) not in gone
        }
    if isinstance(tree, list):
        indexes = [index for index in range(len(tree)) if (*path, index) not in gone]
        if len(indexes) != len(tree):
            kept[path] = indexes
        return [_without(tree[index], gone, (*path, index), kept) for index in indexes]
    return tree


def _faults(error: BaseException, path: Path) -> Iterable[Fault]:
    """Flatten cattrs' tree of exceptions into faults, outermost path first."""
    if isinstance(error, ClassValidationError):
        located, others = error.group_exceptions()
        for inner, note in located:
            if isinstance(inner, KeyError):
                yield Fault(path, f"the key `{note.name}` is missing", path)
            else:
                yield from _faults(inner, (*path, note.name))
        for other in others:
            yield from _faults(other, path)
    elif isinstance(error, IterableValidationError):
        located_items, others = error.group_exceptions()
        for inner, item in located_items:
            yield from _faults(inner, (*path, item.index))
        for other in others:
            yield from _faults(other, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in keys_of(error.cl)]
        for key in sorted(error.extra_fields):
            yield Fault((*path, key), f"unknown key{did_you_mean(key, known)}", (*path, key))
    else:
        yield Fault(path, str(error), path)


def keys_of(cls: type) -> list[attrs.Attribute[Any]]:
    """The keys of a class as it is written in a document."""
    return [attribute for attribute in attrs.fields(cls) if not attribute.metadata.get("name_key")]


def is_named(kind: Any) -> bool:
    """Whether values of this class stand in a mapping, by their name."""
    return attrs.has(kind) and any(attribute.metadata.get("name_key") for attribute in attrs.fields(kind))


def _count(error: BaseException) -> int:
    """How many faults there are in cattrs' tree of exceptions, and among those that were not kept."""
    if isinstance(error, ForbiddenExtraKeysError):
        return len(error.extra_fields)
    if isinstance(error, BaseValidationError):
        return sum(_count(inner) for inner in error.exceptions) + getattr(error, "dropped", 0)
    return 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean "backend"?)`, or the known words, or nothing where they are too many to list."""
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


# --- hooks ------------------------------------------------------------------------------------------------------


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

    return Scalar(hook, f"{low:,} to {high:,}", {"type": "integer", "minimum": low, "maximum": high})


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


def converter(scalars: Mapping[Any, Scalar]) -> Converter:
    """A cattrs converter that never coerces; `scalars` maps types (NewTypes too) to their hooks."""
    made = Converter(detailed_validation=True, forbid_extra_keys=True)
    made.register_structure_hook_factory(attrs.has, lambda cls: _class(cls, made))
    made.register_structure_hook_factory(_is_optional, lambda kind: _optional(kind, made))
    made.register_structure_hook_factory(_is_switch_or_list, lambda kind: _switch_or_list(kind, made))
    made.register_structure_hook_factory(partial(_originates, tuple), lambda kind: _tuple(kind, made))
    made.register_structure_hook_factory(partial(_originates, dict), lambda kind: _dict(kind, made))
    for kind, scalar in {str: TEXT, bool: BOOLEAN, **scalars}.items():
        made.register_structure_hook(kind, _scalar(scalar.hook))
    # Named, or the hook of str would take every StrEnum for a text.
    made.register_structure_hook(enum.StrEnum, _enum)
    return made


def _scalar(hook: Hook) -> Callable[[object, Any], object]:
    return lambda value, _: hook(value)


def _originates(origin: Any, kind: Any) -> bool:
    return get_origin(kind) is origin


def _is_optional(kind: Any) -> bool:
    return type(None) in get_args(kind)


def _optional(kind: Any, made: Converter) -> Callable[[object, Any], object]:
    """`T | None` is a key that may be left out; a key without a value is a mistake all the same."""
    (inner,) = (part for part in get_args(kind) if part is not type(None))
    hook = made.get_structure_hook(inner)
    return lambda value, _: hook(value, inner)


def _is_switch_or_list(kind: Any) -> bool:
    return bool in get_args(kind) and any(get_origin(part) is tuple for part in get_args(kind))


def _switch_or_list(kind: Any, made: Converter) -> Callable[[object, Any], object]:
    """`bool | tuple[T, ...]`: true, false or a list."""
    (listed,) = (part for part in get_args(kind) if part is not bool)
    hook = made.get_structure_hook(listed)

    def structured(value: object, _: Any) -> object:
        if isinstance(value, bool):
            return value
        if not isinstance(value, list):
            raise expected("true, false or a list", value)
        return hook(value, listed)

    return structured


def _enum(value: object, kind: type[enum.StrEnum]) -> enum.StrEnum:
    members = {member.value: member for member in kind}
    if isinstance(value, str) and value in members:
        return members[value]
    short = isinstance(value, str) and len(value) <= _LONGEST_WORD
    close = difflib.get_close_matches(str(value), members, n=1, cutoff=0.6) if short else []
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise ValueError(f"expected one of {', '.join(members)}, got {describe(value)}{hint}")


def _class(cls: type[T], made: Converter) -> Callable[[object, Any], T]:
    keyless: dict[str, Any] = {"name": override(omit=True)} if is_named(cls) else {}
    build = make_dict_structure_fn(
        cls, made, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **keyless
    )

    def hook(value: object, kind: Any) -> T:
        if not isinstance(value, dict):
            raise expected("a mapping", value)
        return build(value, kind)

    return hook


def _items(
    made: Converter, kind: Any, item: Any, pairs: Iterable[tuple[Any, object]], name: str
) -> list[tuple[Any, Any]]:
    """Structure each value of `pairs`, gathering the faults the way cattrs does."""
    hook = made.get_structure_hook(item)
    built: list[tuple[Any, Any]] = []
    errors: list[Exception] = []
    dropped = 0
    for index, value in pairs:
        try:
            built.append((index, hook(value, item)))
        except (ValueError, BaseValidationError) as error:
            if len(errors) >= MOST_VIOLATIONS:  # counted, not kept: an exception takes a kilobyte
                dropped += _count(error)
                continue
            error.add_note(IterableValidationNote(name, index, item))
            errors.append(error)
    if errors:
        raise _grouped(name, errors, kind, dropped)
    return built


def _grouped(name: str, errors: list[Exception], kind: Any, dropped: int) -> IterableValidationError:
    group = IterableValidationError(name, errors, kind)
    group.dropped = dropped  # type: ignore[attr-defined]  # ours; see _count
    return group


def _tuple(kind: Any, made: Converter) -> Callable[[object, Any], object]:
    item = get_args(kind)[0]
    if is_named(item):
        return _by_name(item, made)

    def hook(value: object, _: Any) -> object:
        if not isinstance(value, list):
            raise expected("a list", value)
        return tuple(built for _, built in _items(made, tuple, item, enumerate(value), "list"))

    return hook


def _by_name(item: Any, made: Converter) -> Callable[[object, Any], object]:
    """A mapping by name to a tuple of named values, in the order of the document."""
    (name,) = filter(None, (attribute.metadata.get("name_key") for attribute in attrs.fields(item)))
    mapping = _dict(dict[name, item], made)  # type: ignore[valid-type]  # made of what the class says

    def hook(value: object, kind: Any) -> object:
        built: dict[str, Any] = mapping(value, kind)  # type: ignore[assignment]  # what _dict makes
        for key, named in built.items():
            object.__setattr__(named, "name", key)  # fresh, not seen by others yet; `evolve` costs a tenth of a load
        return tuple(built.values())

    return hook


def _dict(kind: Any, made: Converter) -> Callable[[object, Any], object]:
    key_type, item = get_args(kind)

    def hook(value: object, _: Any) -> object:
        if not isinstance(value, dict):
            raise expected("a mapping", value)
        key_hook = made.get_structure_hook(key_type)
        errors: list[Exception] = []
        dropped = 0
        for key in value:
            try:
                key_hook(key, key_type)
            except ValueError as error:
                if len(errors) >= MOST_VIOLATIONS:
                    dropped += 1
                    continue
                error.add_note(IterableValidationNote("mapping", key, key_type))
                errors.append(error)
        if errors:
            raise _grouped("mapping", errors, dict, dropped)
        return dict(_items(made, dict, item, value.items(), "mapping"))

    return hook
