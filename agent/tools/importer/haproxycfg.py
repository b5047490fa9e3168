"""A haproxy.cfg as sections of lines, each with its place. No meaning yet: that is `translate`'s."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from attrs import define, evolve, field, frozen

KINDS = (
    "global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "cache",
    "program", "http-errors", "ring", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme",
)  # fmt: skip


@frozen
class Line:
    """A directive."""

    place: str
    """file and line"""
    text: str
    """as written"""
    words: tuple[str, ...]
    """its parts, quotes resolved; empty where it could not be split"""

    @classmethod
    def of(cls, place: str, text: str) -> Line:
        """As HAProxy splits it; a variable or a quote that does not end splits into nothing."""
        return cls(place, text.strip(), tuple(_words(text)))


@define
class Section:
    """A section."""

    kind: str
    """frontend, backend, listen, defaults, ..."""
    name: str
    """empty: it has none"""
    place: str
    """where it begins"""
    lines: list[Line] = field(factory=list)
    """its directives"""
    parent: str = ""
    """the defaults section that it names"""
    lost: bool = False
    """its head cannot be read, so nothing in it can be relied on"""


def _words(text: str) -> list[str]:
    if '"$' in text or "${" in text:
        return []
    split = shlex.shlex(text, posix=True, punctuation_chars=False)
    split.whitespace_split, split.commenters = True, "#"
    split.whitespace += "\v\f"
    try:
        return list(split)
    except ValueError:
        return []


def lines(text: str) -> Iterator[str]:
    """As HAProxy cuts them: at line feeds, and nowhere else."""
    for raw in text.split("\n"):
        yield raw.removesuffix("\r")


def read(text: str, file: str) -> list[Section]:
    """In their order. Lines before the first section are in one without a kind.

    What stands in an `.if` block may hold or not: its lines are kept as text alone, and a section that begins there is
    lost.
    """
    sections = [Section("", "", f"{file}:1")]
    depth = 0
    for number, raw in enumerate(lines(text), 1):
        line = Line.of(f"{file}:{number}", raw)
        first = (line.text.split() or [""])[0]
        if first in (".if", ".endif"):
            depth = max(depth + (1 if first == ".if" else -1), 0)
        if first.startswith("."):
            sections[-1].lines.append(Line(line.place, line.text, ()))
        elif depth and first not in KINDS:
            if line.words:
                sections[-1].lines.append(Line(line.place, line.text, ()))
        elif first in KINDS:
            words = line.words
            if first == "defaults" and words[1:2] == ("from",) and words[3:4] != ("from",):
                words = ("defaults", "", *words[1:])
            name = words[1] if len(words) > 1 else ""
            parent = words[3] if words[2:3] == ("from",) and len(words) > 3 else ""
            sections.append(Section(first, name, line.place, parent=parent, lost=not line.words or depth > 0))
            if len(words) > 2 and words[2] != "from" and first in ("listen", "frontend"):  # as HAProxy 1.4 had it
                sections[-1].lines.append(Line.of(line.place, " ".join(["bind", *words[2:]])))
        elif line.words or (line.text and not line.text.startswith("#")):
            sections[-1].lines.append(line)
    return sections


def inherited(sections: list[Section]) -> Iterator[tuple[Section, Section | None]]:
    """Each section with the `defaults` that hold for it, those that they are `from` included.

    One that names a defaults section which is not there is lost.
    """
    last: Section | None = None
    named: dict[str, Section] = {}
    for section in sections:
        base = named.get(section.parent) if section.parent else last
        section.lost = section.lost or bool(section.parent and section.parent not in named) or bool(base and base.lost)
        if section.kind == "defaults":
            own = named.get(section.parent)
            last = evolve(
                section,
                lines=[*(own.lines if own else ()), *section.lines],
                lost=section.lost or bool(own and own.lost),
            )
            if section.name:
                named[section.name] = last
        yield section, base
