"""pfSense's config.xml: read safely; what an earlier version put into it is taken out without touching another byte.

XML comes from backups and mail: a document type (and with it every entity) is refused. Changed as pfSense's own
viconfig does it: the file is replaced, and the cache of it is dropped.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from xml.parsers import expat

from attrs import define, field, frozen

from agent.errors import InvalidError, UsageError, Violation
from agent.host.store import write

CACHE = "tmp/config.cache"
_DEEPEST, _MOST = 64, 64 << 20  # of elements, in bytes


@define
class Element:
    """An element of XML."""

    tag: str
    """its name"""
    line: int
    """1-based"""
    start: int
    """first byte of its start tag"""
    text: str = ""
    """of it, without that of its children"""
    pieces: list[str] = field(factory=list)
    """the text as the parser reports it"""
    children: list[Element] = field(factory=list)
    """in order"""
    inner_end: int = 0
    """first byte of its end tag"""
    end: int = 0
    """the byte after its end tag"""
    empty: bool = False
    """it is written `<tag/>`, and has no end tag"""

    def all(self, *path: str) -> list[Element]:
        """Every element that a path of tags leads to."""
        elements = [self]
        for tag in path:
            elements = [child for element in elements for child in element.children if child.tag == tag]
        return elements

    def first(self, *path: str) -> Element | None:
        """The first of them."""
        return next(iter(self.all(*path)), None)

    def value(self, tag: str) -> str:
        """Its text without space around it, "" where there is none."""
        element = self.first(tag)
        return element.text.strip() if element is not None else ""


def read(data: bytes, file: str) -> Element:
    """The root element. Raises InvalidError with the line of what is wrong."""
    parser, stack, roots = expat.ParserCreate(), [Element("", 0, 0)], []

    def refuse(*_: object) -> None:
        raise _RefusedError("a document type and entities are not taken")

    def start(tag: str, _: object) -> None:
        if len(stack) > _DEEPEST:
            raise _RefusedError(f"nested deeper than {_DEEPEST}")
        element = Element(tag, parser.CurrentLineNumber, parser.CurrentByteIndex)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_: str) -> None:
        element = stack.pop()
        element.text = "".join(element.pieces)
        element.inner_end = parser.CurrentByteIndex
        # expat reports an end for <tag/> too; nothing else ends in /> and has neither text nor children.
        before = data[element.inner_end - 2 : element.inner_end]
        element.empty = before == b"/>" and not element.children and not element.pieces
        element.end = element.inner_end if element.empty else data.find(b">", element.inner_end) + 1
        if len(stack) == 1:
            roots.append(element)

    def text(piece: str) -> None:
        stack[-1].pieces.append(piece)

    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # what is put in is ASCII
        raise InvalidError(file, (Violation((), "UTF-16 is not taken"),))
    if len(data) > _MOST:
        raise InvalidError(file, (Violation((), f"larger than {_MOST >> 20} MiB"),))
    try:
        parser.Parse(data, True)  # noqa: FBT003  # its own signature: the last piece
    except _RefusedError as error:
        raise InvalidError(file, (Violation((), str(error), parser.CurrentLineNumber),)) from None
    except (LookupError, ValueError) as error:  # an encoding that is none, or not expat's
        raise InvalidError(file, (Violation((), str(error)),)) from None
    except expat.ExpatError as error:
        raise InvalidError(file, (Violation((), expat.ErrorString(error.code), error.lineno),)) from None
    return roots[0]


class _RefusedError(ValueError):
    """XML that is well-formed and not taken."""


@frozen(kw_only=True)
class Entry:
    """Something that an earlier version put into config.xml."""

    section: str
    """its section"""
    tag: str
    """its element"""
    what: str
    """for messages"""
    known: tuple[str, str]
    """the child that names it and its text; without a child, its own text"""

    def is_it(self, element: Element) -> bool:
        """Whether an element is ours."""
        tag, text = self.known
        return element.tag == self.tag and (element.value(tag) if tag else element.text.strip()) == text


SERVICE = Entry(section="installedpackages", tag="service", what="the service entry", known=("name", "edgeagent"))
SHELLCMD = Entry(
    section="system", tag="shellcmd", what="the shellcmd", known=("", "/usr/local/etc/rc.d/edgeagent.sh start")
)


def remove(file: Path, entry: Entry) -> bool:
    """Take it out where it is. Whether it was there."""
    if not file.exists():
        return False
    data = old = _bytes(file)
    entries = [
        child for root in read(data, str(file)).all(entry.section) for child in root.children if entry.is_it(child)
    ]
    for child in reversed(entries):
        data = data[: child.start] + data[child.end :].removeprefix(b"\n\t")
        data = data[: child.start].removesuffix(b"\t") + data[child.start :]
    if entries:
        _replace(file, data, old)
    return bool(entries)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _replace(file: Path, data: bytes, old: bytes) -> None:
    """What would not be read again is not written."""
    read(data, str(file))
    mode = file.stat().st_mode & 0o777
    if _bytes(file) != old:
        raise UsageError(f"{file} was changed by another program just now", remedy="run it again")
    write(file, data, mode=mode)
    with contextlib.suppress(OSError):
        file.parents[2].joinpath(CACHE).unlink(missing_ok=True)
