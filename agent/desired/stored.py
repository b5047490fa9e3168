"""Validators for values that are read back from files, which a crash or a person may have left in any shape.

ValueError or TypeError where a value is not as it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import Attribute, fields_dict
from attrs.validators import and_, ge, instance_of, le

T = TypeVar("T")

_LATEST = 253_402_300_799.0  # the last second datetime can name


def is_seconds(_: object, attribute: Attribute[float], value: object) -> None:
    """Seconds since the epoch, or of a duration. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LATEST:
        raise ValueError(f"{attribute.name}: {value!r} is no number of seconds")


is_number = and_(instance_of(int), ge(0), le(10**12))
is_text = instance_of(str)


def texts(value: object) -> tuple[str, ...]:
    """A tuple out of a list that JSON has made of one. Raises TypeError."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(value)


def read_as(kind: type[T], document: object) -> T:
    """A value of an attrs class out of a JSON object. Raises TypeError, ValueError.

    Keys that the class does not know are ignored: a later version wrote them, before it was reverted to this one.
    """
    if not isinstance(document, Mapping):
        raise TypeError(f"{document!r} is no object")
    known: dict[str, Any] = fields_dict(kind)  # type: ignore[arg-type]  # attrs' own type of its classes is internal
    return kind(**{name: value for name, value in document.items() if name in known})
