"""Servers that a person has taken out for new clients (`agent drain`). Pure.

A drained server has the weight 0 in haproxy.cfg, whatever the document says: so it stays drained over reloads, a
HAProxy that dies and a reboot, and its sessions go on. A document that changes the server ends it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from attrs import evolve

from agent.desired.identity import Key
from agent.desired.scalars import describe, did_you_mean
from agent.desired.schema import DesiredState, Weight
from agent.errors import Finding, UsageError
from agent.reconcile.generation import Drain


def active(drains: Iterable[Drain], state: DesiredState) -> tuple[Drain, ...]:
    """Those that hold for this document. `state`: as it was written."""
    servers = {
        (backend.name, server.name): (str(server.address), server.weight)
        for backend in state.backends
        for server in backend.servers
    }
    return tuple(drain for drain in drains if servers.get(drain.key) == (drain.address, drain.weight))


def drained(state: DesiredState, keys: Collection[Key]) -> DesiredState:
    """The same state with these servers at weight 0."""
    if not keys:
        return state
    names = {backend for backend, _ in keys}
    backends = tuple(
        evolve(
            backend,
            servers=tuple(
                evolve(server, weight=Weight(0)) if (backend.name, server.name) in keys else server
                for server in backend.servers
            ),
        )
        if backend.name in names
        else backend
        for backend in state.backends
    )
    return evolve(state, backends=backends)


def chosen(state: DesiredState, names: Iterable[str]) -> tuple[Key, ...]:
    """The servers that `backend/server`, or a server's name alone (in every backend), means.

    Raises UsageError for a name that means none.
    """
    keys = [(backend.name, server.name) for backend in state.backends for server in backend.servers]
    found: dict[Key, None] = {}
    for name in names:
        backend, slash, server = name.rpartition("/")
        met = [key for key in keys if key[1] == server and (not slash or key[0] == backend)]
        if not met:
            known = {"/".join(key) for key in keys} if slash else {key[1] for key in keys}
            raise UsageError(
                f"no server {describe(name)} is live{did_you_mean(name, known)}",
                remedy="`agent status` lists the servers; a name alone means that server of every backend",
            )
        found |= dict.fromkeys(met)
    return tuple(found)


def started(state: DesiredState, keys: Collection[Key], *, since: float, by: str) -> tuple[Drain, ...]:
    """Drains of these servers of a document."""
    return tuple(
        Drain(
            backend=backend.name,
            server=server.name,
            address=str(server.address),
            weight=server.weight,
            since=since,
            by=by,
        )
        for backend in state.backends
        for server in backend.servers
        if (backend.name, server.name) in keys
    )


def findings(drains: Iterable[Drain]) -> tuple[Finding, ...]:
    """What people should know of them, while they last."""
    return tuple(
        Finding(
            f"backends.{drain.backend}.servers.{drain.server}",
            f"drained since {datetime.fromtimestamp(drain.since, UTC):%Y-%m-%d %H:%M} UTC"
            + (f" by {drain.by}" if drain.by else "")
            + ": no new clients",
            f"`agent ready {drain.backend}/{drain.server}` ends that",
        )
        for drain in drains
    )
