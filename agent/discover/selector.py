"""Label selectors, as `kubectl -l` takes them: `zone=a, tier in (edge, mail), !spot`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from agent.desired.scalars import describe

Labels = Mapping[str, str]
Selector = Callable[[Labels], bool]

_KEY = r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?"
_TERM = re.compile(
    rf"(?P<absent>! *)?(?P<key>{_KEY})"
    rf"(?: *(?P<op>==|=|!=) *(?P<value>{_VALUE})| +(?P<set>in|notin) *\((?P<values>[^()]*)\))?"
)
_WORD = re.compile(_VALUE)


def parse(text: str) -> Selector:
    """A selector; every term must hold. Raises ValueError that names what cannot be read."""
    terms = [_term(one.strip(" ")) for one in re.split(r",(?![^()]*\))", text)]
    return lambda labels: all(term(labels) for term in terms)


def _term(text: str) -> Selector:
    found = _TERM.fullmatch(text)
    if found is None or (found["absent"] and (found["op"] or found["set"])):
        raise ValueError(f"a label selector, such as `zone=a, !spot`, is expected; {describe(text)} is none")
    key, value = found["key"], found["value"]
    if found["absent"]:
        return lambda labels: key not in labels
    if found["set"]:
        words = frozenset(one.strip(" ") for one in found["values"].split(","))
        if not all(_WORD.fullmatch(word) for word in words):
            raise ValueError(f"values of a label are expected in {describe(text)}")
        wanted = found["set"] == "in"
        # As Kubernetes has it: what has no such label is not in the set, so `notin` and `!=` hold.
        return lambda labels: (labels.get(key) in words) is wanted
    if found["op"] == "!=":
        return lambda labels: labels.get(key) != value
    if found["op"]:
        return lambda labels: labels.get(key) == value
    return lambda labels: key in labels
