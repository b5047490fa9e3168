"""What is not YAML, in words: the same from libyaml and from PyYAML's own parser."""

from __future__ import annotations

import pytest
import yaml

from agent.desired import document
from agent.errors import InvalidError

WRONG = {
    "a: 1\n\tb: 2\n": (2, 'a tab: YAML is indented with spaces only (column 1)'),
    "a:\n  b:\n  \t c: 1\n": (3, "a tab: YAML is indented with spaces only (column 3)"),
    "a:\n  - x\n - y\n": (
        3, "this line is indented less than its list (line 2), and more than what is around that (column 2)",
    ),
    "a:\n    b: 1\n  c: 2\n": (
        3, "this line is indented less than its mapping (line 2), and more than what is around that (column 3)",
    ),
    "a: 1\n  b: 2\n": (2, "this line is indented more than the line above it, which has a value already (column 4)"),
    "a\nb: 1\n": (2, "the line above is no `key: value`; a space must follow the colon (column 2)"),
    "a:1\nb: 2\n": (2, "the line above is no `key: value`; a space must follow the colon (column 2)"),
    'a: "x\nb: 1\n': (2, "the quote that opens on line 1 is never closed (column 5)"),
    "a: [1, 2\nb: 3\n": (2, "expected a comma or `]`: the bracket that opens on line 1 is not closed (column 2)"),
    "a: {b: 1\nc: 2\n": (2, "expected a comma or `}`: the bracket that opens on line 1 is not closed (column 2)"),
    "a: b: c\n": (
        1, "a second `: ` in one line; put the value in quotes, or the inner key on a line of its own (column 5)",
    ),
    "a: @x\n": (1, "a value cannot begin with `@`; put it in quotes (column 4)"),
    "a: %x\n": (1, "a value cannot begin with `%`; put it in quotes (column 4)"),
    "a:\n  - b\n  c: 1\n": (3, "expected `- `: the list that begins on line 2 goes on here (column 3)"),
    "a: *\n": (
        1, "`*` and `&` begin the name of an alias or anchor, and none follows; put the value in quotes (column 5)",
    ),
    "a: [": (1, "the text ends inside a bracket that is opened and never closed (column 5)"),
    "a: {b: [1,\n": (1, "the text ends inside a bracket that is opened and never closed (column 11)"),
    "a:\n  b: 1\n  c\n  d: 2\n": (4, "line 3 is no `key: value`: its colon is missing (column 3)"),
    "a: ]\n": (1, "a value is expected here, not `]` (column 4)"),
    "a: 'it's'\n": (1, "text behind the end of a value; quotes inside quotes must be doubled (column 8)"),
}  # fmt: skip


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
@pytest.mark.parametrize("text", WRONG)
def test_what_is_not_yaml_is_said_in_words(text: str, loader: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document, "_YAML_LOADER", loader)
    with pytest.raises(InvalidError) as raised:
        document.read(text.encode(), file="d", max_bytes=1_000)
    line, words = WRONG[text]
    assert str(raised.value) == f"d:{line}: not YAML: {words}"
