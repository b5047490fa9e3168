"""What a wanted configuration is worth: nothing to do, or a reload and why. Pure.

Small on purpose: the plan is made whole before the first side effect, and printed as it is.
"""

from __future__ import annotations

import difflib

import attrs
from attrs import AttrsInstance, frozen

from agent.model.desired import Backend, DesiredState, Frontend, Server
from agent.model.observed import Running
from agent.model.render import Config


@frozen(kw_only=True)
class Committed:
    """The live generation: its number, whose process may carry it (`loaded`), its digest and exact bytes.

    `state` is None where this version of the agent can no longer read it.
    """

    number: int
    loaded: int
    digest: str
    config: bytes
    state: DesiredState | None


@frozen(kw_only=True)
class Wanted:
    """What shall be live: the document's digest, its state, its configuration."""

    digest: str
    state: DesiredState
    config: Config


@frozen(kw_only=True)
class Unchanged:
    """HAProxy does already what is wanted. `record`: the document is another one all the same."""

    record: bool


@frozen(kw_only=True)
class Reload:
    """A new process takes over (or the first one starts), for these reasons."""

    reasons: tuple[str, ...]


Plan = Unchanged | Reload


def plan(committed: Committed | None, running: Running | None, wanted: Wanted) -> Plan:
    """The smallest step from what is committed and running to what is wanted."""
    reasons = []
    if running is None:
        reasons.append("HAProxy is not running")
    if committed is None:
        reasons.append("nothing is live yet")
        return Reload(reasons=tuple(reasons))
    if running is not None and running.generation not in (committed.number, committed.loaded):
        held = "a file without a generation" if running.generation is None else f"generation {running.generation}"
        reasons.append(f"HAProxy runs {held}; generation {committed.number} is committed")
    if wanted.config.stamped(digest=committed.digest, generation=committed.number) != committed.config:
        reasons += changes(committed.state, wanted.state) or ["the settings or the template changed"]
    if reasons:
        return Reload(reasons=tuple(reasons))
    return Unchanged(record=committed.digest != wanted.digest)


def diff(committed: Committed | None, config: bytes, *, number: int) -> str:
    """A unified diff of haproxy.cfg, from the live one to `config`; empty where nothing is different."""
    before = committed.config.decode(errors="replace").splitlines() if committed else []
    name = f"haproxy.cfg (generation {committed.number})" if committed else "haproxy.cfg (none)"
    after = config.decode(errors="replace").splitlines()
    lines = difflib.unified_diff(before, after, name, f"haproxy.cfg (generation {number})", lineterm="")
    return "".join(f"{line}\n" for line in lines)


def changes(before: DesiredState | None, after: DesiredState) -> list[str]:
    """What is different between two states, a sentence each, in the order of the file."""
    if before is None:
        return ["what is live cannot be read by this version of the agent"]
    found = []
    if (before.maxconn, before.timeouts) != (after.maxconn, after.timeouts):
        found.append("defaults changed")
    found += _named("frontend", {one.name: one for one in before.frontends}, {one.name: one for one in after.frontends})
    old = {one.name: one for one in before.backends}
    new = {one.name: one for one in after.backends}
    for name in sorted(old.keys() | new.keys()):
        if name in old and name in new:
            found += _backend(old[name], new[name])
        else:
            found.append(f"backend {name} {'added' if name in new else 'removed'}")
    return found


def _named(kind: str, old: dict[str, Frontend], new: dict[str, Frontend]) -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            found.append(f"{kind} {name} added")
        elif name not in new:
            found.append(f"{kind} {name} removed")
        elif old[name] != new[name]:
            found.append(f"{kind} {name} changed: {', '.join(_fields(old[name], new[name]))}")
    return found


def _fields(old: AttrsInstance, new: AttrsInstance) -> list[str]:
    names = [attribute.name for attribute in attrs.fields(type(old))]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _backend(old: Backend, new: Backend) -> list[str]:
    found = []
    if fields := [name for name in _fields(old, new) if name != "servers"]:
        found.append(f"backend {new.name} changed: {', '.join(fields)}")
    before = {one.name: one for one in old.servers}
    after = {one.name: one for one in new.servers}
    words = {name: _server(before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())}
    return found + [f"server {new.name}/{name} {word}" for name, word in words.items() if word]


def _server(old: Server | None, new: Server | None) -> str:
    if old is None:
        return "added"
    if new is None:
        return "removed"
    words = [f"moved from {old.address} to {new.address}"] if old.address != new.address else []
    if fields := [name for name in _fields(old, new) if name != "address"]:
        words.append(f"changed: {', '.join(fields)}")
    return ", ".join(words)
