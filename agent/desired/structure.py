"""Plain trees to frozen attrs classes: by cattrs, without coercion, every fault with its path.

Used for the desired state and for agent.toml alike. cattrs builds the classes and gathers the faults; the hooks
here see to it that nothing is converted on the way (cattrs by itself takes "25" and True for an int and a text
for a list).
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

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

from agent.desired.scalars import BOOLEAN, TEXT, Hook, Scalar, did_you_mean, expected, member
from agent.errors import MOST_VIOLATIONS, Path

T = TypeVar("T")

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


def converter(scalars: Mapping[Any, Scalar]) -> Converter:
    """A cattrs converter that never coerces; `scalars` maps types (NewTypes too) to their hooks."""
    made = Converter(detailed_validation=True, forbid_extra_keys=True)
    made.register_structure_hook_factory(attrs.has, lambda cls: _class(cls, made))
    made.register_structure_hook_factory(_is_optional, lambda kind: _optional(kind, made))
    made.register_structure_hook_factory(_is_switch_or_list, lambda kind: _switch_or_list(kind, made))
    made.register_structure_hook_factory(_is_short_or_class, lambda kind: _short_or_class(kind, made))
    made.register_structure_hook_factory(partial(_originates, tuple), lambda kind: _tuple(kind, made))
    made.register_structure_hook_factory(partial(_originates, dict), lambda kind: _dict(kind, made))
    for kind, scalar in {str: TEXT, bool: BOOLEAN, **scalars}.items():
        made.register_structure_hook(kind, _scalar(scalar.hook))
    # Named, or the hook of str would take every StrEnum for a text.
    made.register_structure_hook(enum.StrEnum, member)
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


def _is_short_or_class(kind: Any) -> bool:
    return get_origin(kind) is Union and attrs.has(get_args(kind)[1])


def _short_or_class(kind: Any, made: Converter) -> Callable[[object, Any], object]:
    """`Scalar | Class`: a mapping, or its most important key alone."""
    short, whole = get_args(kind)
    short_hook, whole_hook = made.get_structure_hook(short), made.get_structure_hook(whole)
    return lambda value, _: whole_hook(value, whole) if isinstance(value, dict) else short_hook(value, short)


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
