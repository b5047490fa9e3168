"""What the readers of sections share: where lines go that are not expressed, and which may turn clients away."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from attrs import frozen

from agent.haproxy.config import HALF_CLOSED, KEEPALIVE_COUNT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, RETRIES
from agent.tools.importer.conditions import number
from agent.tools.importer.haproxycfg import Line, Section
from agent.tools.importer.timing import Timing

_LOGS = "logging: haproxy.log in agent.toml"
# Rules that leave every client what it is; each other one may turn some away, or be about what it made of them.
_HARMLESS = re.compile(
    r"tcp-(?:request|response)\s+(?:inspect-delay|(?:connection|session|content)\s+"
    r"(?:track-sc\d|capture|set-log-level|set-nice|set-tos|set-mark|set-priority|set-var|unset-var|sc-))"
)
_REFUSING = ("deny", "tarpit", "reject", "silent-drop", "return", "auth")
OF_BACKENDS = tuple(
    (word,) for word in ("balance", "server", "default-server", "option", "http-check", "tcp-check", "hash-type")
)
OF_BACKENDS += (("timeout",),)


@frozen
class SkippedLine:
    """A line that is not in the desired state."""

    place: str
    """file and line"""
    text: str
    """as written"""
    why: str
    """a sentence"""

    def __str__(self) -> str:
        return f"{self.place}: {self.text}: {self.why}"

    @property
    def file(self) -> str:
        """Its file."""
        return self.place.rpartition(":")[0]

    @property
    def number(self) -> int:
        """Of the line."""
        return int(self.place.rpartition(":")[2])


class Work(Protocol):
    """What a section is translated into, as far as one section needs it."""

    frontends: dict[str, dict[str, Any]]
    backends: dict[str, dict[str, Any]]
    refusing: set[str]
    lost: list[tuple[str, str]]
    unusable: set[str]
    resolve: Callable[[str], str | None] | None
    heads_of_pools: dict[str, Line]
    timings: dict[tuple[str, str], Timing]

    def skip(self, line: Line, why: str) -> None:
        """It is not expressed, or not whole."""

    def name(self, kind: str, name: str, line: Line) -> str:
        """As a desired state may have it."""

    def fresh(self, kind: str, name: str, line: Line) -> str:
        """One that nobody else has."""

    def frontend(self, name: str, frontend: dict[str, Any], head: Line, inherits: int) -> None:
        """One more."""


_KEEPALIVE = {"idle": KEEPALIVE_IDLE, "intvl": KEEPALIVE_INTERVAL, "cnt": str(KEEPALIVE_COUNT)}
_OWN = {
    "retries": str(RETRIES),
    "timeout client-fin": HALF_CLOSED,
    "timeout server-fin": HALF_CLOSED,
    **{f"{side}tcpka-{key}": value for side in ("cli", "srv") for key, value in _KEEPALIVE.items()},
}
_OWN_OPTIONS = ("redispatch", "tcpka", "clitcpka", "srvtcpka")


_HTTP_ONLY = re.compile(
    r"(?:no )?option (?:forwardfor|originalto|httpclose|forceclose|http-\S+|abortonclose)\b"
    r"|timeout (?:http-request|http-keep-alive)\b|cookie\b|http-reuse\b|errorfile\b|compression\b"
)


def http_only(line: Line) -> bool:
    """Whether a line means something in mode http alone, and so nothing in what is imported (HAProxy's manual, 4.1)."""
    return _HTTP_ONLY.match(" ".join(line.words)) is not None


def own(line: Line) -> str | None:
    """What the agent writes by itself into every configuration: "" where that is what `line` says, else the difference.

    None for any other line.
    """
    words = line.words[1:] if line.words[:1] == ("no",) else line.words
    if words[:1] == ("option",) and words[1:2] and words[1] in _OWN_OPTIONS:
        return f"option {words[1]} holds for all here" if words is not line.words else ""
    key, value = " ".join(words[:-1]), words[-1] if words else ""
    if key not in _OWN:
        return None
    return "" if value == _OWN[key] else f"{key} {_OWN[key]} for all here"


def restricts_clients(line: Line) -> bool:
    """Whether a line that is not expressed may turn clients away."""
    first = (line.text.split() or [""])[0]
    if first.startswith("tcp-request"):
        return _HARMLESS.match(line.text) is None
    if first in ("http-request", "<a_actionitems>", "<a_acl>"):
        return first != "http-request" or not line.words or bool({*line.words} & {*_REFUSING})
    return first == "disabled"


def inherited_rules(section: Section, defaults: Section | None) -> list[Line]:
    """Rules of a defaults section, which hold for each frontend and backend; `enabled` takes `disabled` back."""
    enabled = any(line.words == ("enabled",) for line in section.lines)
    rules = [line for line in (defaults.lines if defaults else ()) if restricts_clients(line)]
    return [line for line in rules if not (enabled and line.words == ("disabled",))]


def why(line: Line) -> str:
    """The text about a line that nothing here knows."""
    if line.words[:1] == ("log",) or "log" in line.text.partition(" ")[2] or line.text.startswith(("<dontlog", "<log")):
        return _LOGS
    return "cannot be expressed here"


def is_maxconn(line: Line) -> bool:
    """A maxconn that is a number."""
    return line.words[:1] == ("maxconn",) and len(line.words) == 2 and number(line.words[1]) is not None


def of_backend(line: Line) -> bool:
    """In a listen section: the other half's to read."""
    return line.words[:1] in OF_BACKENDS and line.words[:2] != ("timeout", "client")


def most(values: list[Any]) -> Any:
    """The most frequent of them, None of none."""
    return Counter(values).most_common(1)[0][0] if values else None
