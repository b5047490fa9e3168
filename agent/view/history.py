"""The history as people and programs read it: generations, and what happened between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import asdict

from agent.reconcile.event import Event
from agent.reconcile.generation import Generation
from agent.view.status import as_json, event_status, when
from agent.view.status_table import table


def text(generations: Sequence[Generation], events: Sequence[Event] = ()) -> str:
    """What was live and when, and what happened meanwhile, newest first."""
    newest = generations[-1].number if generations else None
    rows: list[tuple[float, tuple[object, ...]]] = [
        (
            generation.at,
            (
                f"{generation.number}{' *' if generation.number == newest else ''}",
                when(generation.at),
                generation.outcome if generation.restores is None else "rollback",
                "-" if generation.serial is None else generation.serial,
                generation.digest[:12],
                f"{generation.seconds * 1000:.0f} ms",
                generation.actor or "-",
                _why(generation),
            ),
        )
        for generation in generations
    ]
    rows += [
        (
            event.at,
            (
                "-",
                when(event.at),
                event.kind,
                "-",
                "-",
                f"x{event.count}" if event.count > 1 else "-",
                event.actor or "-",
                event.message,
            ),
        )
        for event in events
    ]
    return table(
        ("GENERATION", "SINCE", "OUTCOME", "SERIAL", "SHA256", "TOOK", "BY", "WHY"),
        (row for _, row in sorted(rows, key=lambda entry: entry[0], reverse=True)),
    )


def _why(generation: Generation) -> str:
    why = _reasons(generation.reasons)
    return why if generation.restores is None else f"generation {generation.restores} was put back: {why}"


def document(generations: Sequence[Generation], events: Sequence[Event]) -> list[dict[str, Any]]:
    """The same for programs, oldest first."""
    entries = [
        (generation.at, {"kind": "generation", **asdict(generation), "at": when(generation.at)})
        for generation in generations
    ]
    entries += [(event.at, {"kind": "event", **as_json(event_status(event))}) for event in events]
    return [entry for _, entry in sorted(entries, key=lambda entry: entry[0])]


def _reasons(reasons: Sequence[str]) -> str:
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
