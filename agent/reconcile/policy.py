"""Which documents are taken at all, however valid. Pure; an objection is a sentence, "" where there is none."""

from __future__ import annotations

from attrs import frozen

from agent.desired.state import Parsed
from agent.reconcile.generation import Generation

SHORTEST_DIGEST = 12
"""Of a digest, that many hex digits name a document."""


@frozen(kw_only=True)
class Newest:
    """A document that a later one is compared with."""

    digest: str
    """of the document"""
    serial: int | None
    """its serial"""
    how: str = "is live"
    """how it counts: is live, waits to be applied, was accepted before"""


def newest(live: Generation | None) -> Newest | None:
    """What is live, as a document that counts."""
    return Newest(digest=live.digest, serial=live.serial) if live else None


def lower(parsed: Parsed, live: Generation | None) -> str:
    """A serial lower than the live one: an old file that was put back by accident, a backup, a slow copy."""
    serial = parsed.state.serial
    if live is None or live.serial is None or serial is None or serial >= live.serial or live.digest == parsed.digest:
        return ""
    return f"serial {serial} is lower than serial {live.serial}, which is live"


def stale(parsed: Parsed, newest: Newest | None) -> str:
    """The rule for what is handed in or signed: a serial only grows, and names one document.

    An older document, or another one of the same number, is stale.
    """
    if newest is None or newest.serial is None or newest.digest == parsed.digest:
        return ""
    serial, how = parsed.state.serial, newest.how
    if serial is None:
        return f"this document has no serial, and serial {newest.serial} {how}"
    if serial < newest.serial:
        return f"serial {serial} is lower than serial {newest.serial}, which {how}"
    if serial == newest.serial:
        return f"serial {serial} {how} with other content (sha256 {newest.digest[:SHORTEST_DIGEST]})"
    return ""


def moved_on(expected: str, live: Generation | None) -> str:
    """Compare and swap: another change was faster."""
    if live is None:
        return f"nothing is live, not sha256 {expected[:SHORTEST_DIGEST]}"
    if not live.digest.startswith(expected):
        return f"sha256 {live.digest[:SHORTEST_DIGEST]} is live, not {expected[:SHORTEST_DIGEST]}"
    return ""


def another_manager(parsed: Parsed, live: Generation | None) -> str:
    """Two clusters that both write this document would take turns, and each would end the other's service."""
    manager = parsed.state.manager
    if live is None or not live.manager or manager in ("", live.manager) or live.digest == parsed.digest:
        return ""
    return f"manager {manager} writes this document, and {live.manager} the one that is live"


def empty(parsed: Parsed, live: Generation | None) -> str:
    """A document without a frontend ends all service; a tool that found nothing writes just such a document."""
    state = parsed.state
    if state.frontends or state.allow_empty or live is None or live.digest == parsed.digest:
        return ""
    return "the document has no frontend: all service would end"
