"""Two crashes in a row, at every pair of effects of a change: the third agent finds what the first two have left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from kit.fakes import FakeProxy
from kit.reconciler import make_reconciler
from kit.states import state

from agent.errors import CommandError, Outcome
from agent.host.store import Store
from agent.reconcile.reconciler import Reconciler

WRITES = (
    "write_hold",
    "stage",
    "describe",
    "write_journal",
    "write_config",
    "write_server_state",
    "commit",
    "clear_journal",
    "unstage",
    "set_unreachable",
)
MOST = 30  # effects of one change


class Killed(BaseException):
    """The agent dies here."""


class Effects:
    """Counts what leaves a trace, and dies before the one with a given number."""

    def __init__(self) -> None:
        self.left = 0

    def arm(self, number: int) -> None:
        self.left = number

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch) -> Effects:
    count = Effects()

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count()
            return method(*arguments, **options)

        return call

    for name in WRITES:
        monkeypatch.setattr(Store, name, counted(getattr(Store, name)))
    monkeypatch.setattr(FakeProxy, "_do", counted(FakeProxy._do))
    return count


def documents(how: str) -> tuple[bytes, bytes]:
    before, after = state(a=2), state(a=3)
    after["backends"]["a"]["servers"]["a"]["weight"] = 9
    after["backends"]["a"]["servers"]["b"]["disabled"] = True
    if how == "put back":
        for document in (before, after):
            document["backends"]["a"]["health"] = {"type": "http"}
        after["backends"]["a"]["servers"] = {"a": {"address": "198.51.100.9:9", "weight": 9}}
    if how == "reload":
        after["defaults"] = {"maxconn": 7}
    return json.dumps(before).encode(), json.dumps(after).encode()


def refusing(proxy: FakeProxy) -> None:
    """A HAProxy that does not do one of the commands: everything falls back to a reload."""

    def refuse() -> None:
        if proxy.calls[-1][1].startswith("set server a/b"):
            raise CommandError("no")

    proxy.fail["tell"] = refuse


def failing(proxy: FakeProxy) -> None:
    """At its new address the check of the only server fails: the step is judged, and put back."""

    def fail() -> None:
        server = proxy.servers["a", "a"]
        moved = server.address == "198.51.100.9:9"
        proxy.servers["a", "a"] = evolve(server, check="L7STS" if moved else "L7OK")

    proxy.fail["observe"] = fail


def dies(reconciler: Reconciler, document: bytes, effects: Effects, number: int) -> bool:
    effects.arm(number)
    try:
        reconciler.reconcile(document)
    except Killed:
        return True
    effects.arm(0)
    return False


def consistent(reconciler: Reconciler, proxy: FakeProxy, document: bytes) -> None:
    store = reconciler.environment.store
    live = store.live()
    assert live is not None
    assert store.desired_of(live.number) == document
    assert store.read_config() == store.config_of(live.number)
    assert store.journal() is None
    assert not list(Path(store.config).parent.glob("generations/*.staged"))
    assert proxy.now is not None
    assert proxy.now.generation in (live.number, live.loaded)
    wanted = json.loads(document)["backends"]["a"]["servers"]
    seen = {name: server for (_, name), server in proxy.servers.items()}
    assert {name: (seen[name].address, seen[name].weight, seen[name].maintenance) for name in wanted} == {
        name: (server["address"], server.get("weight", 1), server.get("disabled", False))
        for name, server in wanted.items()
    }
    assert all(seen[name].maintenance for name in seen.keys() - wanted.keys())
    assert not [name for name in wanted if seen[name].draining]
    assert not {name for _, name in proxy.unchecked if name in wanted}


@pytest.mark.parametrize(
    ("how", "wish"),
    [
        *(
            (how, wish)
            for how in ("runtime", "reload", "fallback")
            for wish in ("the new document", "the old document")
        ),
        ("put back", "the old document"),
    ],
)
def test_every_pair(tmp_path: Path, effects: Effects, how: str, wish: str):
    before, after = documents(how)
    pairs = 0
    for first in range(1, MOST):
        came_to_its_end = False
        for second in range(1, MOST):
            folder = tmp_path / f"{first}-{second}"
            proxy = FakeProxy()
            make_reconciler(folder, proxy).reconcile(before)
            if how == "fallback":
                refusing(proxy)
            if how == "put back":
                failing(proxy)
            if not dies(make_reconciler(folder, proxy), after, effects, first):
                came_to_its_end = True
                break
            wanted = after if wish == "the new document" else before
            if not dies(make_reconciler(folder, proxy), wanted, effects, second):
                consistent(make_reconciler(folder, proxy), proxy, wanted)
                break
            third = make_reconciler(folder, proxy)
            report = third.reconcile(wanted)
            assert report.outcome in (Outcome.UNCHANGED, Outcome.COMMITTED), (first, second, report.message)
            third.reconcile(wanted)  # what had to wait for its last session is deleted
            consistent(third, proxy, wanted)
            pairs += 1
        if came_to_its_end:
            break
    assert pairs > 50
