"""A haproxy.cfg as sections of lines, each with its place. No meaning yet: that is `translate`'s."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from attrs import define, field, frozen

KINDS = (
    "global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "cache",
    "program", "http-errors", "ring", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile",
)  # fmt: skip


@frozen
class Line:
    """A directive. `words`: its parts, quotes resolved; empty where it could not be split."""

    place: str
    text: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, place: str, text: str) -> Line:
        """As HAProxy splits it; a variable or a quote that does not end splits into nothing."""
        return cls(place, text.strip(), tuple(_words(text)))


@define
class Section:
    """`kind` and `name` ("": it has none) of a section, where it begins, and its lines."""

    kind: str
    name: str
    place: str
    lines: list[Line] = field(factory=list)


def _words(text: str) -> list[str]:
    if '"$' in text or "${" in text:
        return []
    split = shlex.shlex(text, posix=True, punctuation_chars=False)
    split.whitespace_split, split.commenters = True, "#"
    try:
        return list(split)
    except ValueError:
        return []


def read(text: str, file: str) -> list[Section]:
    """In their order. Lines before the first section are in one without a kind."""
    sections = [Section("", "", f"{file}:1")]
    for number, raw in enumerate(text.splitlines(), 1):
        line = Line.of(f"{file}:{number}", raw)
        if line.words and line.words[0] in KINDS:
            sections.append(Section(line.words[0], line.words[1] if len(line.words) > 1 else "", line.place))
        elif line.words or (line.text and not line.text.startswith("#")):
            sections[-1].lines.append(line)
    return sections


def inherited(sections: list[Section]) -> Iterator[tuple[Section, Section | None]]:
    """Each section with the `defaults` that hold for it."""
    defaults = None
    for one in sections:
        if one.kind == "defaults":
            defaults = one
        yield one, defaults
