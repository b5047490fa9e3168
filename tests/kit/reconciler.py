"""The reconcile on a real store and a HAProxy that does as it is told, for unit tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from attrs import evolve

from agent.desired.state import Limits
from agent.haproxy.config import CONFIG_TEMPLATE, Process
from agent.host import templates
from agent.host.store import Store
from agent.reconcile.assessor import Assessor
from agent.reconcile.ports import Environment
from agent.reconcile.reconciler import Reconciler
from kit.fakes import Clock, FakeNames, FakeProber, FakeProxy
from kit.states import state


def make_reconciler(folder: Path, proxy: FakeProxy) -> Reconciler:
    """As an agent that has just started in `folder`."""
    store = Store(folder / "state", folder / "run")
    store.prepare()
    environment = Environment(proxy=proxy, store=store, prober=FakeProber(), clock=Clock(), names=FakeNames())
    assessor = Assessor(
        file=Path("desired.yaml"),
        max_bytes=100_000,
        limits=Limits(),
        process=Process(
            socket=PurePosixPath("/s"), server_state=PurePosixPath("/st"), maxconn=10, hard_stop_after=1_000
        ),
        template=lambda: templates.load(CONFIG_TEMPLATE, ""),
        environment=environment,
    )
    return Reconciler(assessor=assessor, environment=environment)


def data(**servers: int) -> bytes:
    return json.dumps(state(**servers)).encode()


def other(maxconn: int) -> bytes:
    """A state that takes a new process."""
    return json.dumps({**state(a=1), "defaults": {"maxconn": maxconn}}).encode()


def files(reconciler: Reconciler) -> dict[str, bytes]:
    root = Path(reconciler.environment.store.config).parent
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def raising(error: BaseException, times: int = 1_000) -> Callable[[], None]:
    left = [times]

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise error

    return fail


def prober(reconciler: Reconciler) -> FakeProber:
    assert isinstance(reconciler.environment.prober, FakeProber)
    return reconciler.environment.prober


def told(proxy: FakeProxy) -> list[str]:
    return [call[1] for call in proxy.calls if call[0] == "tell"]


def checks_fail(proxy: FakeProxy, key: tuple[str, str]) -> Callable[[], None]:
    def fail() -> None:
        proxy.servers[key] = evolve(proxy.servers[key], status="UP 2/3", check="L7STS")

    return fail


def http(port: int) -> dict:
    document = state(a=1)
    document["backends"]["a"]["health"] = {"type": "http"}
    document["backends"]["a"]["servers"]["a"]["address"] = f"198.51.100.1:{port}"
    return document
