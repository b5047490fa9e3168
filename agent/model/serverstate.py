"""What one process knew of its servers, for the next one (`show servers state` to server-state-file).

Without it dead servers get traffic after a reload until their first check (FACTS, HAProxy 5). But only what is
still the same server may be carried over: HAProxy matches by name alone, so a line of a server that has moved
would call the new address up because the old one was.
"""

from __future__ import annotations

from agent.model.desired import Backend, DesiredState, Server
from agent.model.schema import HealthType

EMPTY = "1\n"
"""A server-state file that knows nothing (its format's version; without a file HAProxy 2.6 warns)."""

_BACKEND, _NAME, _OPERATIONAL, _ADMIN, _CHECK_PORT = 1, 3, 5, 6, 21
_FORCED = 0x01 | 0x08  # maintenance or drain set by an operator at the socket (HAProxy, server-t.h: FMAINT, FDRAIN)
_RUNNING = "2"


def carried(dump: str, before: DesiredState | None, after: DesiredState) -> str:
    """The lines of `dump` that hold for `after`. `before`: the state the dump was made of, None if unknown."""
    if before is None:
        return EMPTY
    old = {(backend.name, server.name): (backend, server) for backend in before.backends for server in backend.servers}
    new = {(backend.name, server.name): (backend, server) for backend in after.backends for server in backend.servers}
    lines = []
    for line in dump.splitlines():
        words = line.split(" ")
        if line.startswith("#"):
            lines.append(line)
        elif len(words) > _ADMIN:
            key = (words[_BACKEND], words[_NAME])
            if key in old and key in new and (kept := _kept(words, *old[key], *new[key])) is not None:
                lines.append(kept)
    return EMPTY + "".join(f"{line}\n" for line in lines)


def _kept(words: list[str], old_pool: Backend, old: Server, new_pool: Backend, new: Server) -> str | None:
    if old.address != new.address or old.disabled or new.disabled:
        return None
    if len(words) > _CHECK_PORT:
        # HAProxy restores it where the new file names no port, and would go on checking the old one (M: 2.6, 2.8, 3.0).
        words = [*words[:_CHECK_PORT], "0", *words[_CHECK_PORT + 1 :]]
    if new_pool.health.type is not HealthType.NONE and old_pool.health.type is not HealthType.NONE:
        return " ".join(words)
    # Without checks nothing would ever bring up a server that is carried over as down.
    if int(words[_ADMIN]) & _FORCED:
        return " ".join([*words[:_OPERATIONAL], _RUNNING, *words[_ADMIN:]])
    return None
