"""What a change in a cluster costs until clients meet it: 1,000 Services on 500 nodes, and the mail example beside it.

From the moment the API server has a new node to the first client that is greeted by it: watch, debounce, judging,
ssh, the agent's own plan, commands at HAProxy's socket.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from stage import BINARY, median

from kit.apiserver import recorded  # isort: skip
from kit.crowd import crowd  # isort: skip
from kit.discover import Controller, controller, manifests, node, service, told  # isort: skip
from kit.edge import first_line, until  # isort: skip
from kit.kube import Kube  # isort: skip
from kit.ssh import Client, Firewall, firewall  # isort: skip

ROUNDS = 5
POOL = 5  # nodes that serve one Service
BIND = "127.77.0.1"
FIRST = 20_000  # the firewall's first port


def address(number: int) -> str:
    """Of a node."""
    return f"127.78.{number // 200}.{number % 200 + 1}"


def fill(kube: Kube, services: int, nodes: int) -> None:
    """Services in turn on pools of nodes."""
    for manifest in manifests("namespace", "rbac"):
        kube.create(manifest)
    for number in range(nodes):
        kube.create(node(f"node{number}", address(number), pool=f"p{number // POOL}"))
    for number in range(services):
        said = {"expose": f"web={FIRST + number}", "bind": BIND, "prefix": f"s{number}"}
        kube.create(service(f"s{number}", {"web": 1 + number}, nodes=f"pool=p{number % (nodes // POOL)}", **said))


def places(services: int, nodes: int) -> list[tuple[str, int]]:
    """Every server that there will be."""
    pools = nodes // POOL
    members = {pool: list(range(pool * POOL, pool * POOL + POOL)) for pool in range(pools)}
    for new in range(ROUNDS):
        members[new % pools].append(nodes + new)
    return [(address(one), 30_001 + number) for number in range(services) for one in members[number % pools]]


def new_node(kube: Kube, control: Controller, number: int, pool: int) -> float:
    """Seconds until a client of one Service of the pool is greeted by it."""
    pushes = control.pushes
    begin = time.monotonic()
    kube.create(node(f"node{number}", address(number), pool=f"p{pool}"))
    while first_line(FIRST + pool, host=BIND) != address(number):
        if time.monotonic() > begin + 60:
            raise AssertionError(control.said)
    took = time.monotonic() - begin
    until(lambda: control.pushes > pushes, "its push is told of")
    assert control.pushes == pushes + 1, control.said
    return took


def flips(services: int, nodes: int) -> dict[str, float]:
    """Medians of some nodes that come; each is one push, and no reload."""
    with (
        tempfile.TemporaryDirectory() as folder,
        crowd(places(services, nodes)),
        recorded(Path(folder)) as kube,
    ):
        (Path(folder) / "client").mkdir()
        client = Client(Path(folder) / "client")
        fill(kube, services, nodes)
        base = Path(folder) / "base.json"  # checks are another matter
        quiet = {f"s{number}-web": {"health": {"interval": "10m"}} for number in range(services)}
        base.write_text(json.dumps({"version": 1, "defaults": {"maxconn": 1}, "backends": quiet}))
        with firewall(BINARY, client, Path(folder) / "wall") as wall:
            words = ("--to", wall.to, "--base", str(base), "--timeout", "2m")
            with controller(kube, client, Path(folder), *words) as control:
                until(lambda: " push to " in control.said, "pushed", 180)
                print(control.said, file=sys.stderr)
                until(lambda: told(kube, f"s{services - 1}").get("state") == "live", "told", 120)
                before = reloads(wall)
                times = [new_node(kube, control, nodes + one, one % (nodes // POOL)) for one in range(ROUNDS)]
                timings = wall.edge.status()["timings"]
                assert reloads(wall) == before
        name = f"{services:,} Services on {nodes} nodes"
        size = len((wall.edge.folder / "desired.yaml").read_bytes()) if wall.edge.desired.exists() else 0
        print(name, [round(one, 2) for one in times], timings, size, file=sys.stderr)
        return {f"{name}: seconds from a new node to its first client": median(times)}


def reloads(wall: Firewall) -> int:
    """So far."""
    return int(wall.edge.status()["counters"].get("reloads", 0))


def main() -> dict[str, float]:
    """Both sizes, and what they have to do with each other."""
    if os.geteuid() != 0:
        print("cluster: needs root for an sshd; left out", file=sys.stderr)
        return {}
    small, large = flips(4, 20), flips(1_000, 500)
    ratio = next(iter(large.values())) / next(iter(small.values()))
    return small | large | {"a new node at 1,000 Services, as a multiple of it at 4": ratio}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
