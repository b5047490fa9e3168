"""What one process knew of its servers, for the next one (`show servers state` to server-state-file).

Without it dead servers get traffic after a reload until their first check (facts.md, HAProxy 5). But only what is
still the same server may be carried over: HAProxy matches by name alone, so a line of a server that has moved
would call the new address up because the old one was. A server that has not answered gets a line of its own, by
which HAProxy starts it as down.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from agent.desired.identity import Key
from agent.desired.schema import Backend, DesiredState, HealthType, Server

EMPTY = "1\n"
"""A server-state file that knows nothing (its format's version; without a file HAProxy 2.6 warns)."""

_BACKEND, _NAME, _ADDRESS, _OPERATIONAL, _WEIGHT, _INITIAL_WEIGHT = 1, 3, 4, 5, 7, 8
_CHECK_STATUS, _CHECK_RESULT, _PORT, _CHECK_PORT = 10, 11, 18, 21
_RUNNING = "2"
_NOT_YET, _UNKNOWN = "1", "0"  # of a check: its status (HCHK_STATUS_INI) and its result (HAProxy, check-t.h)

Pair = tuple[Backend, Server]


def carried(
    dump: str,
    before: DesiredState | None,
    after: DesiredState,
    *,
    down: Collection[Key] = frozenset(),
    reached: Collection[Key] = frozenset(),
    dirty: Collection[Key] = frozenset(),
) -> str:
    """The lines of `dump` that hold for `after`, and one for each server that is `down`.

    `before`: the state the dump was made of, None if unknown. `down`: servers that must start as down. `reached`:
    those that have answered just now. `dirty`: those that an interrupted step has left draining or in maintenance.
    """
    old, new = _pairs(before), _pairs(after)
    lines = [_down(key, new[key][1]) for key in sorted(down) if key in new]
    for fields in (line.split(" ") for line in dump.splitlines() if not line.startswith("#")):
        key = (fields[_BACKEND], fields[_NAME]) if len(fields) > _INITIAL_WEIGHT else None
        if key is not None and key in old and key in new and key not in down and key not in dirty:
            lines += _kept(fields, old[key], new[key], answered=key in reached)
    return EMPTY + "".join(f"{line}\n" for line in lines)


def _pairs(state: DesiredState | None) -> dict[Key, Pair]:
    return (
        {}
        if state is None
        else {
            (backend.name, server.name): (backend, server) for backend in state.backends for server in backend.servers
        }
    )


def _kept(fields: list[str], before: Pair, after: Pair, *, answered: bool) -> Iterator[str]:
    (old_pool, old), (new_pool, new) = before, after
    if old.address != new.address or old.disabled or new.disabled:
        return
    # HAProxy takes the weight from here where the initial one is that of the file: one that was set by hand stays, one
    # that the old document said does not.
    fields = [*fields]
    fields[_INITIAL_WEIGHT] = str(new.weight)
    if old.weight != new.weight:
        fields[_WEIGHT] = str(new.weight)
    if len(fields) > _CHECK_PORT:
        if (fields[_ADDRESS], fields[_PORT]) != (new.address.host, str(new.address.port)):
            return  # moved by hand; HAProxy would take the address from this line
        # HAProxy restores it where the new file names no port, and would go on checking the old one (M: 2.6, 2.8, 3.0).
        fields[_CHECK_PORT] = "0"
        if (old_pool.health, old_pool.proxy_protocol) != (new_pool.health, new_pool.proxy_protocol):
            # What another check found is no finding of this one; HAProxy would show it as such.
            fields[_CHECK_STATUS], fields[_CHECK_RESULT] = _NOT_YET, _UNKNOWN
    unchecked, was_checked = new_pool.health.type is HealthType.NONE, old_pool.health.type is not HealthType.NONE
    if unchecked and (was_checked or answered):
        # Nothing but this agent brings up a server without a check, and only one that it has taken down itself.
        fields[_OPERATIONAL] = _RUNNING
    yield " ".join(fields)


def _down(key: Key, server: Server) -> str:
    """All 25 words: HAProxy reads a line whole or not at all (its manual, `show servers state`; M: 2.6, 2.8, 3.0)."""
    backend, name = key
    address, weight = server.address, server.weight
    health = f"0 {_NOT_YET} {_UNKNOWN} 0 0 0 0 0"
    return f"1 {backend} 1 {name} {address.host} 0 0 {weight} {weight} {health} - {address.port} - 0 0 - - 0"
