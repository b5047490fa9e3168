"""Bytes to a plain tree that knows its lines: YAML or JSON, nothing coerced, nothing executed.

YAML is read from parser events rather than by a loader, because a loader hides what must be refused here
(duplicate keys, tags, alias bombs, deep nesting) and guesses what must not be guessed (`on` is text, `017` is
text, `1:30` is text). A scalar is a number only where YAML 1.1, YAML 1.2 and JSON all say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import yaml
from attrs import field, frozen, mutable

from agent.desired import yaml_errors
from agent.errors import MOST_VIOLATIONS, InvalidError, Path, Violation

MAX_DEPTH = 32
MAX_NODES = 500_000  # values, aliases unfolded: more than the largest state (`rules`) has
MAX_DIGITS = 18

_YAML_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
# Only what YAML 1.1 takes for a number too: its writers leave a name such as `12e4` without quotes.
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+][0-9]+)?")
_WORDS: dict[str, object] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_HIDDEN_BREAKS = re.compile("[\x85\u2028\u2029]")  # YAML 1.1 breaks lines there; its line numbers would mislead
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


@frozen
class Document:
    """A document as written: plain values, and where each stands."""

    value: object
    """dict, list, str, int, float, bool or None"""
    violations: tuple[Violation, ...]
    """what could be read and must be refused: the first MOST_VIOLATIONS"""
    more: int
    """how many further ones there are"""
    _line_at: Callable[[Path], int | None] = field(eq=False, repr=False)

    def line(self, path: Path) -> int | None:
        """The 1-based line of `path`, or of the nearest thing around it that has one."""
        for length in range(len(path), -1, -1):
            if (line := self._line_at(path[:length])) is not None:
                return line
        return None


def read(data: bytes, *, file: str, max_bytes: int) -> Document:
    """Bytes to a Document.

    Raises InvalidError when nothing of it can be read (too long, not UTF-8, not YAML or JSON, empty). What can be
    read although it must be refused (a duplicate key, a tag) is left in `violations` beside the rest, so that
    every mistake is reported at once.
    """
    if len(data) > max_bytes:
        raise _refusal(file, f"the document is too long; at most {max_bytes:,} bytes are read (sync.max_bytes)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(file, f"not text: byte {error.start} is not UTF-8", line) from None
    if not text.strip():
        raise _refusal(file, "the document is empty; an empty state is written as `version: 1`")
    if text.lstrip()[0] not in "{[":
        return _read_yaml(text, file)
    try:
        return _read_json(text)
    except json.JSONDecodeError as error:
        # YAML too has documents that begin with a brace. What is taken never depends on the file's name.
        try:
            return _read_yaml(text, file)
        except InvalidError:
            if file.endswith(".json"):
                raise _refusal(file, f"not JSON: {error.msg}", error.lineno) from None
            raise
    except (RecursionError, _TooDeepError):
        raise _refusal(file, f"nested more than {MAX_DEPTH} deep") from None
    except _JunkError as error:
        raise _refusal(file, str(error), error.line) from None


def _refusal(file: str, message: str, line: int | None = None) -> InvalidError:
    return InvalidError(file, (Violation((), message, line),))


class _TooDeepError(Exception):
    """A document nested deeper than any desired state can be."""


class _JunkError(Exception):
    """Something a parser takes and no author means (NaN, a number of a thousand digits, two documents in one)."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


# --- JSON -------------------------------------------------------------------------------------------------------


def _read_json(text: str) -> Document:
    duplicated = False

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal duplicated
        mapping = dict(pairs)
        duplicated = duplicated or len(mapping) != len(pairs)
        return mapping

    value = json.loads(text, object_pairs_hook=unique, parse_int=_json_int, parse_constant=_json_constant)
    _check_depth(value)
    places = _JsonPlaces(text)
    duplicates = places.duplicates() if duplicated else []
    return Document(value, tuple(duplicates[:MOST_VIOLATIONS]), max(len(duplicates) - MOST_VIOLATIONS, 0), places.line)


def _json_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _JunkError(f"a number of {len(digits)} digits")
    return int(digits)


def _json_constant(word: str) -> object:
    raise _JunkError(f"{word} is not a value")


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _TooDeepError
    if isinstance(value, dict):
        for item in value.values():
            if isinstance(item, (dict, list)):
                _check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                _check_depth(item, depth + 1)


class _JsonPlaces:
    """Lines and duplicate keys of a text that is known to be JSON.

    Only walked when there is something to say, and no further than that takes: 100,000 servers too many are refused
    for a line that stands at the top.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        self._duplicates: list[Violation] = []
        self._walk = self._places(text)

    def line(self, path: Path) -> int | None:
        """Where `path` stands first; None where it does not."""
        while path not in self._lines and next(self._walk, None):
            pass
        return self._lines.get(path)

    def duplicates(self) -> list[Violation]:
        """Each key that its object has already."""
        for _ in self._walk:
            pass
        return self._duplicates

    def _places(self, text: str) -> Iterator[bool]:
        """Take one token after the other. Yields True at each that has a place."""
        stack: list[tuple[Path, set[str] | None]] = []  # each open container, and for an object the keys seen
        path: Path = ()
        line, at, expect_key = 1, 0, False
        for token in _JSON_TOKEN.finditer(text):
            line += text.count("\n", at, token.start())
            at, word = token.start(), token.group()
            if word in "}]":
                path = stack.pop()[0]
            elif word == ":":
                expect_key = False
            elif word == ",":
                container, keys = stack[-1]
                expect_key = keys is not None
                if keys is None:
                    path = (*container, int(path[-1]) + 1)
            elif expect_key:
                container, keys = stack[-1]
                key = json.loads(word, strict=False)
                path = (*container, key)
                if keys is not None and key in keys:
                    message = f"duplicate key (first on line {self._lines[path]})"
                    self._duplicates.append(Violation(path, message, line))
                elif keys is not None:
                    keys.add(key)
                self._lines.setdefault(path, line)
                yield True
            else:
                self._lines.setdefault(path, line)
                if word in "{[":
                    stack.append((path, set() if word == "{" else None))
                    expect_key = word == "{"
                    path = path if expect_key else (*path, 0)
                yield True


# --- YAML -------------------------------------------------------------------------------------------------------


def _read_yaml(text: str, file: str) -> Document:
    if hidden := _HIDDEN_BREAKS.search(text):
        line = text.count("\n", 0, hidden.start()) + 1
        raise _refusal(file, f"a line break that editors do not show: U+{ord(hidden[0]):04X}", line)
    builder = _Builder()
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        if "maximum nesting depth" in str(error.problem):  # libyaml's own bound, 1,000
            raise _refusal(file, f"nested more than {MAX_DEPTH} deep") from None
        sentence, at = yaml_errors.describe(error, text)
        raise _refusal(file, f"not YAML: {sentence}", at) from None
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else None
        raise _refusal(file, "not YAML: a character that no text file holds", at) from None
    except _TooDeepError:
        raise _refusal(file, f"nested more than {MAX_DEPTH} deep") from None
    except _JunkError as error:
        raise _refusal(file, str(error), error.line) from None
    if builder.root is None:
        raise _refusal(file, "the document is empty; an empty state is written as `version: 1`")
    return Document(builder.root.value, tuple(builder.violations), builder.more, builder.lines.get)


def _events(text: str) -> Iterator[yaml.Event]:
    loader = _YAML_LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()  # type: ignore[no-untyped-call]  # untyped in types-PyYAML alone
    finally:
        loader.dispose()


@mutable
class _Built:
    """A finished value, and how many nodes it stands for once its aliases are followed."""

    value: object
    nodes: int


@mutable
class _Frame:
    """A container that is still open."""

    value: dict[str, object] | list[object]
    path: Path
    anchor: str | None
    nodes: int = 1
    key: str | None = None  # of a mapping: the key whose value comes next
    skip: bool = False  # that value is dropped: its key was refused


class _Builder:
    """Takes parser events, one by one, and builds the tree. Never recurses, so depth costs nothing."""

    def __init__(self) -> None:
        self.root: _Built | None = None
        self.lines: dict[Path, int] = {}
        self.violations: list[Violation] = []
        self.more = 0  # violations that are only counted
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Built] = {}
        self._total = 0

    def take(self, event: yaml.Event) -> None:
        """One event of yaml.parse."""
        if isinstance(event, yaml.DocumentStartEvent):
            if self.root is not None:
                raise _JunkError("a second YAML document begins here; one file is one state", _line(event))
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event)
            self._scalar(event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._refuse_tag(event)
            self._open(event)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            frame = self._stack.pop()
            self._finish(_Built(frame.value, frame.nodes), frame.anchor, event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise _TooDeepError
        if self._wants_key():
            raise _JunkError("a key must be text, not a list or a mapping", _line(event))
        path = self._path()
        self.lines.setdefault(path, _line(event))
        empty: dict[str, object] | list[object] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Frame(empty, path, event.anchor))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        value = _resolve(event.value) if event.implicit[0] else event.value
        if self._wants_key():
            self._key(value, event)
            return
        self.lines.setdefault(self._path(), _line(event))
        self._finish(_Built(value, 1), event.anchor, event)

    def _key(self, value: object, event: yaml.ScalarEvent) -> None:
        frame = self._stack[-1]
        assert isinstance(frame.value, dict)
        key = event.value
        path = (*frame.path, key)
        frame.key, frame.skip = key, True
        if key == "<<" and event.implicit[0]:
            self._violate(path, "merge keys are not read: write the keys out", event)
        elif not isinstance(value, str):
            self._violate(path, f"a key must be text: write {json.dumps(key[:64])} in quotes", event)
        elif key in frame.value:
            self._violate(path, f"duplicate key (first on line {self.lines[path]})", event)
        else:
            frame.skip = False
            self.lines[path] = _line(event)

    def _alias(self, event: yaml.AliasEvent) -> None:
        built = self._anchors.get(event.anchor or "")
        if built is None or self._wants_key():
            raise _JunkError(f"the alias {(event.anchor or '')[:64]!a} cannot stand here", _line(event))
        self._finish(built, None, event)

    def _finish(self, built: _Built, anchor: str | None, event: yaml.Event) -> None:
        if anchor is not None:
            self._anchors[anchor] = built
        if not self._stack:
            self.root = built
            return
        frame = self._stack[-1]
        frame.nodes += built.nodes
        if frame.nodes > MAX_NODES:
            raise _JunkError(f"more than {MAX_NODES:,} values, aliases unfolded", _line(event))
        if isinstance(frame.value, list):
            frame.value.append(built.value)
            return
        assert frame.key is not None
        if not frame.skip:
            frame.value[frame.key] = built.value
        frame.key, frame.skip = None, False

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None

    def _path(self) -> Path:
        if not self._stack:
            return ()
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            return (*frame.path, len(frame.value))
        assert frame.key is not None
        return (*frame.path, frame.key)

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            path = self._stack[-1].path if self._wants_key() else self._path()
            self._violate(path, f"YAML tags are not read: remove {event.tag[:64]!a}", event)

    def _violate(self, path: Path, message: str, event: yaml.Event) -> None:
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append(Violation(path, message, _line(event)))
        else:
            self.more += 1


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return int(event.start_mark.line) + 1


def _resolve(text: str) -> object:
    """A plain scalar's value. What YAML 1.1 would guess at (`on`, `017`, `1:30`, dates) stays text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return _json_int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
