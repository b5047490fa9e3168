"""Timeouts of frontends and backends: their own, those of their defaults section, and what becomes of them here.

Only what an imported frontend reaches counts. In TCP mode `timeout tunnel` of a backend replaces the timeouts of client
and server once data flows (facts.md, HAProxy 12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import asdict, define, field

from agent.desired.scalars import duration
from agent.desired.schema import Timeouts
from agent.tools.importer.conditions import milliseconds
from agent.tools.importer.haproxycfg import Line, Section

DEFAULTS = asdict(Timeouts())  # what holds where a desired state names none, in milliseconds
KINDS = {"frontend": ("client",), "backend": ("connect", "server", "tunnel")}
LONGEST = 596 * 3_600_000
"""The longest duration that a desired state can say, in milliseconds: HAProxy's timers end at 24.8 days."""
Skip = Callable[[Line, str], None]


@define
class Timing:
    """The timeouts of one frontend or backend, in milliseconds, with their lines."""

    own: dict[str, tuple[int, Line]] = field(factory=dict)
    """by name"""
    inherited: dict[str, tuple[int, Line]] = field(factory=dict)
    """by name, from defaults"""

    @classmethod
    def of(cls, defaults: Section | None) -> Timing:
        """What a section inherits."""
        made = cls()
        for line in defaults.lines if defaults else ():
            length = read(line, (*DEFAULTS, "tunnel"))
            if length is not None:
                made.inherited[line.words[1]] = (length, line)
        return made

    def take(self, line: Line, kind: str) -> bool:
        """Whether `line` sets a timeout of this kind of section."""
        length = read(line, KINDS[kind])
        if length is None:
            return False
        self.own[line.words[1]] = (length, line)
        return True

    def get(self, name: str) -> tuple[int, Line] | None:
        """The timeout that holds, None: none does, which is for ever."""
        return self.own.get(name) or self.inherited.get(name)


def read(line: Line, names: tuple[str, ...]) -> int | None:
    """The length in milliseconds of a timeout with one of these names; None for anything else, and for none at all."""
    if line.words[:1] != ("timeout",) or len(line.words) != 3 or line.words[1] not in names:
        return None
    return milliseconds(line.words[2]) or None


def settle(
    frontends: Mapping[str, dict[str, Any]],
    backends: Mapping[str, dict[str, Any]],
    timings: Mapping[tuple[str, str], Timing],
    targets: Mapping[str, list[str]],
    heads: Mapping[str, Line],
    skip: Skip,
) -> dict[str, str]:
    """Give each frontend and backend the timeouts that differ from the shared ones, which are returned.

    `targets`: the backends of each frontend. `heads`: the line where each frontend begins.
    """
    shared: dict[str, int] = {}
    lengths = _Lengths(skip)
    for name, kind, members in (
        ("connect", "backend", backends),
        ("client", "frontend", frontends),
        ("server", "backend", backends),
    ):
        timing = {key: timings[kind, key] for key in members if (kind, key) in timings}
        inherited = [lengths.of(times.inherited[name]) for times in timing.values() if name in times.inherited]
        own = [lengths.of(times.own[name]) for times in timing.values() if name in times.own]
        if common := inherited or own:
            shared[name] = max(sorted(set(common)), key=common.count)
        effective = shared.get(name, DEFAULTS[name])
        for key, times in timing.items():
            written = times.get(name)
            length = effective if written is None else lengths.of(written)
            if (name in times.own and inherited) or length != effective:
                members[key].setdefault("timeouts", {})[name] = duration(length)
        if heads and any(times.get(name) is None for times in timing.values()):
            head = next(iter(heads.values()))
            skip(head, f"no timeout {name} there, which is for ever; {duration(effective)} here")
    _tunnels(frontends, backends, timings, targets, lengths)
    return {name: duration(length) for name, length in shared.items()}


def _tunnels(
    frontends: Mapping[str, dict[str, Any]],
    backends: Mapping[str, dict[str, Any]],
    timings: Mapping[tuple[str, str], Timing],
    targets: Mapping[str, list[str]],
    lengths: _Lengths,
) -> None:
    tunnels = {
        name: tunnel
        for name in backends
        if ("backend", name) in timings and (tunnel := timings["backend", name].get("tunnel")) is not None
    }
    for name, tunnel in tunnels.items():
        backends[name].setdefault("timeouts", {})["server"] = duration(lengths.of(tunnel))
    for name, reached in targets.items():
        found_there = [tunnels[target] for target in reached if target in tunnels]
        if not found_there or name not in frontends:
            continue
        longest = max(lengths.of(tunnel) for tunnel in found_there)
        frontends[name].setdefault("timeouts", {})["client"] = duration(longest)
        for length, line in found_there:
            if min(length, LONGEST) != longest:
                lengths.skip(line, f"the clients of frontend {name} have one timeout here: {duration(longest)}")


@define
class _Lengths:
    """Caps what a desired state cannot say, and reports each such line once."""

    skip: Skip
    _reported: set[str] = field(factory=set)

    def of(self, written: tuple[int, Line]) -> int:
        length, line = written
        if length > LONGEST and line.place not in self._reported:
            self._reported.add(line.place)
            self.skip(line, f"longer than a desired state can say; {duration(LONGEST)} here")
        return min(length, LONGEST)
