"""Folding the commands of a plan over what runs gives what is wanted, and then there is nothing left to do."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.fakes import apply, servers_of

from agent.desired.identity import Key
from agent.desired.state import parse
from agent.haproxy.config import CONFIG_TEMPLATE, Process, render
from agent.haproxy.observed import Running, ServerStats
from agent.haproxy.plan import LiveGeneration, Reload, Runtime, Target, Unchanged, plan
from agent.host import templates

PROCESS = Process(socket=PurePosixPath("/s"), server_state=PurePosixPath("/t"), maxconn=10, hard_stop_after=1_000)
BUILT_IN = templates.load(CONFIG_TEMPLATE, "")
PLAIN = settings(max_examples=max(400, settings.default.max_examples), deadline=None)

POOLS = {"checked": {}, "unchecked": {"health": {"type": "none"}}, "plain": {"health": {"port": 9, "type": "tcp"}}}
NAMES = st.sampled_from("abcd")
ADDRESSES = st.sampled_from([f"{host}:{port}" for host in ("192.0.2.1", "[2001:db8::1]") for port in (1, 2)])
SERVER = st.fixed_dictionaries(
    {"address": ADDRESSES}, optional={"weight": st.sampled_from([0, 1, 7]), "disabled": st.booleans()}
)
SERVERS = st.dictionaries(NAMES, SERVER, min_size=1, max_size=4)
STATES = st.fixed_dictionaries(dict.fromkeys(POOLS, SERVERS))


def document(servers: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": 1,
        "frontends": {name: {"bind": [f"192.0.2.9:{port}"], "backend": name} for port, name in enumerate(POOLS, 1)},
        "backends": {name: {**more, "servers": servers[name]} for name, more in POOLS.items()},
    }


def wanted(servers: dict[str, Any]) -> Target:
    parsed = parse(json.dumps(document(servers)).encode(), file="d")
    return Target(digest=parsed.digest, state=parsed.state, config=render(parsed.state, PROCESS, BUILT_IN))


def committed(target: Target, *, loaded: int = 1, number: int = 1) -> LiveGeneration:
    config = target.config.stamped(digest=target.digest, generation=number)
    return LiveGeneration(
        number=number, loaded=loaded, digest=target.digest, config=config, state=target.state, is_current=True
    )


def as_wanted(servers: dict[Key, ServerStats], target: Target) -> None:
    shall = {(pool.name, one.name): one for pool in target.state.backends for one in pool.servers}
    for key, server in shall.items():
        now = servers[key]
        assert (now.address, now.maintenance) == (str(server.address), server.disabled), key
        assert now.weight == server.weight, key
        assert not now.draining, key
    assert all(servers[key].maintenance for key in servers.keys() - shall.keys())


def make(before: LiveGeneration, target: Target, servers: dict[Key, ServerStats], reached: frozenset[Key]) -> None:
    """Plan, have it done, and plan again."""
    process = Running(pid=1, version="2.8", uptime=1, generation=before.loaded)
    step = plan(before, process, target, servers=servers.values(), reachable=reached)
    assert not isinstance(step, Reload), step.reasons
    old = set(servers)
    for command in step.commands if isinstance(step, Runtime) else ():
        apply(servers, command)
    as_wanted(servers, target)
    for key in servers.keys() - old - reached:  # nobody is sent to a server that nobody has reached
        assert servers[key].down or servers[key].maintenance, key
    again = plan(committed(target), process, target, servers=servers.values(), reachable=frozenset())
    assert isinstance(again, Unchanged), again
    assert (again.new_generation, again.operator_overrides) == (False, ())
    for command in again.pending_deletes:
        apply(servers, command)
    assert servers.keys() == {(pool.name, server.name) for pool in target.state.backends for server in pool.servers}


@PLAIN
@given(STATES, STATES, st.frozensets(st.tuples(st.sampled_from(sorted(POOLS)), NAMES)))
def test_the_commands_lead_from_one_state_to_the_other(before: Any, after: Any, reached: frozenset[Key]):
    old, target = wanted(before), wanted(after)
    make(committed(old), target, servers_of(committed(old).config.decode()), reached)


@PLAIN
@given(STATES, STATES, STATES)
def test_leftovers_of_earlier_changes_come_back_or_stay_out(first: Any, second: Any, third: Any):
    """A removed server waits for its last session; another state may name it again, even at another address."""
    one, two, three = wanted(first), wanted(second), wanted(third)
    process = Running(pid=1, version="2.8", uptime=1, generation=1)
    servers = servers_of(committed(one).config.decode())
    for old, target in ((one, two), (two, three)):
        step = plan(committed(old), process, target, servers=servers.values(), reachable=frozenset(servers))
        if isinstance(step, Reload):  # its words are not known at another address
            assert step.reasons[-1].endswith("cannot be changed in the running HAProxy")
            return
        for command in step.commands if isinstance(step, Runtime) else ():
            apply(servers, command)
        as_wanted(servers, target)


@PLAIN
@given(STATES, st.data())
def test_whatever_was_changed_at_the_socket_is_put_right_or_left_to_who_did_it(state: Any, data: st.DataObject):
    target = wanted(state)
    servers = servers_of(committed(target).config.decode())
    by_hand = set()
    for key in sorted(servers):
        match data.draw(st.sampled_from(["", "gone", "moved", "maint", "weight"])):
            case "gone":
                del servers[key]
            case "moved":
                servers[key] = evolve(servers[key], address="192.0.2.77:7")
            case "maint":
                servers[key] = evolve(servers[key], status="MAINT")
                by_hand.add(key)
            case "weight":
                servers[key] = evolve(servers[key], weight=99)
                by_hand.add(key)
    process = Running(pid=1, version="2.8", uptime=1, generation=1)
    step = plan(committed(target), process, target, servers=servers.values(), reachable=frozenset())
    assert not isinstance(step, Reload)
    for command in step.commands if isinstance(step, Runtime) else ():
        apply(servers, command)
    shall = {(pool.name, one.name): one for pool in target.state.backends for one in pool.servers}
    for key, server in shall.items():
        assert servers[key].address == str(server.address)
        if key not in by_hand:
            assert servers[key].maintenance == server.disabled
    assert not isinstance(step, Runtime) or not step.new_generation
