"""What is wrong with a text that is not YAML, in words and with line and column.

The parsers (PyYAML's own and libyaml, which say it differently) name what they expected; people need to know what to
change. The same text gives the same words with both.
"""

from __future__ import annotations

import yaml

_TAB = "a tab: YAML is indented with spaces only"
_UNQUOTED = "%@`"  # YAML 1.2, 5.3: indicators that cannot begin a plain scalar
_CLOSING = {"sequence": "]", "mapping": "}"}


def describe(error: yaml.MarkedYAMLError, text: str) -> tuple[str, int | None]:
    """The sentence, and the 1-based line where to look; None where the parser names none."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return str(error.problem or error.context), None
    lines = text.splitlines() or [""]
    last = len(lines) - 1  # libyaml marks the end one line too far
    at, column = (mark.line, mark.column) if mark.line <= last else (last, len(lines[last]))
    line = lines[at]
    sentence = _sentence(error, line, at, column, lines)
    return f"{sentence} (column {column + 1})", at + 1


def _sentence(error: yaml.MarkedYAMLError, line: str, at: int, column: int, lines: list[str]) -> str:
    problem, context = str(error.problem or ""), str(error.context or "")
    start = error.context_mark
    if "tab character" in problem:
        return _TAB
    if "cannot start any token" in problem:
        return _character(line, column)
    if "quoted scalar" in context and "end of stream" in problem and start is not None:
        return f"the quote that opens on line {start.line + 1} is never closed"
    if "escape character" in problem:
        return "an unknown escape in double quotes; write a backslash twice, or use single quotes"
    if "expected ':'" in problem and "simple key" in context and start is not None:
        return f"line {start.line + 1} is no `key: value`: its colon is missing"
    if "flow node" in context:
        return "the text ends inside a bracket that is opened and never closed"
    if "flow" in context and start is not None and "expected" in problem:
        kind = "mapping" if "mapping" in context else "sequence"
        return f"expected a comma or `{_CLOSING[kind]}`: the bracket that opens on line {start.line + 1} is not closed"
    if "mapping values are not allowed" in problem:
        return _colon(line, at, column, lines)
    if "block" in context and start is not None and "expected" in problem and "node content" not in problem:
        return _indentation(context, line, at, column, start, lines)
    if "alias" in context or "anchor" in context:
        return "`*` and `&` begin the name of an alias or anchor, and none follows; put the value in quotes"
    if "node content" in problem:
        return f"a value is expected here, not `{line[column : column + 1]}`"
    return " ".join(part for part in (context, problem) if part)


def _character(line: str, column: int) -> str:
    if "\t" in (line[: column + 1]):
        return _TAB
    character = line[column : column + 1]
    if character in _UNQUOTED:
        return f"a value cannot begin with `{character}`; put it in quotes"
    return f"the character {character!a} cannot stand here; put the value in quotes"


def _colon(line: str, at: int, column: int, lines: list[str]) -> str:
    """A colon where no key can be: a second one in a line, or one that is indented under a finished value."""
    before = line[:column]
    if ": " in before:
        return "a second `: ` in one line; put the value in quotes, or the inner key on a line of its own"
    above = next((other for other in reversed(lines[:at]) if other.strip()), "")
    if _indent(line) > _indent(above) and ":" in above:
        return "this line is indented more than the line above it, which has a value already"
    return "the line above is no `key: value`; a space must follow the colon"


def _indentation(context: str, line: str, at: int, column: int, start: yaml.Mark, lines: list[str]) -> str:
    is_list = "collection" in context or "sequence" in context
    what, first = "list" if is_list else "mapping", start.line + 1
    if column == start.column and is_list:
        return f"expected `- `: the list that begins on line {first} goes on here"
    if line[:column].strip():
        return "text behind the end of a value; quotes inside quotes must be doubled"
    above = next((number for number in range(at - 1, -1, -1) if lines[number].strip()), start.line)
    if column > start.column and column < _indent(lines[above]):
        what, first = "list" if lines[above].lstrip().startswith("- ") else "mapping", above + 1
    return f"this line is indented less than its {what} (line {first}), and more than what is around that"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
