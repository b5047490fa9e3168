"""1,000 Services on 500 nodes: a node flips, and that is one push, one plan, a few commands."""

from __future__ import annotations

import json
from pathlib import Path

from kit.crowd import crowd
from kit.discover import controller, node, own_addresses, service, told
from kit.edge import first_line, until
from kit.kube import Kube
from kit.ssh import Client, Firewall

SERVICES, NODES, POOL = 1_000, 500, 5
FIRST = 20_000  # the firewall's ports: nobody else is at its address


def test_a_node_that_flips_is_one_push_and_no_reload(kube: Kube, client: Client, wall: Firewall, tmp_path: Path):
    bind, base = own_addresses(2)
    net = base.rsplit(".", 2)[0]
    hosts = [f"{net}.{200 + one // 250}.{one % 250 + 1}" for one in range(NODES)]
    pools = NODES // POOL
    places = [
        (hosts[number % pools * POOL + one], 30_001 + number) for number in range(SERVICES) for one in range(POOL)
    ]
    for number, host in enumerate(hosts):
        kube.create(node(f"node{number}", host, pool=f"p{number // POOL}"))
    for number in range(SERVICES):
        said = {"expose": f"web={FIRST + number}", "bind": bind, "prefix": f"s{number}"}
        kube.create(service(f"s{number}", {"web": 1 + number}, nodes=f"pool=p{number % pools}", **said))
    quiet = {f"s{number}-web": {"health": {"interval": "10m"}} for number in range(SERVICES)}
    (tmp_path / "base.json").write_text(json.dumps({"version": 1, "defaults": {"maxconn": 1}, "backends": quiet}))
    words = ("--to", wall.to, "--base", str(tmp_path / "base.json"), "--timeout", "2m")
    with crowd(places), controller(kube, client, tmp_path, *words) as control:
        control.wait(" push to ", timeout=180)
        for number in (0, SERVICES - 1):
            assert first_line(FIRST + number, host=bind) in hosts
        until(lambda: told(kube, f"s{SERVICES - 1}").get("state") == "live", "each is told", 120)
        before, pid = wall.edge.status(), wall.edge.pid
        for unschedulable, weight in ((True, 0), (False, 1)):
            pushes = control.pushes
            kube.patch("Node", "node7", {"spec": {"unschedulable": unschedulable}})
            control.wait(" push to ", count=pushes + 1, timeout=60)
            status = wall.edge.status()
            flipped = [
                one["name"]
                for one in status["backends"]
                for server in one["servers"]
                if server["name"] == "node7" and server["weight"] == weight
            ]
            assert len(flipped) == SERVICES // pools
            assert (status["plan"], status["outcome"]) == ("runtime", "committed")
            assert control.pushes == pushes + 1
        after = wall.edge.status()
        assert after["counters"].get("reloads") == before["counters"].get("reloads")
        assert after["live"]["generation"] == before["live"]["generation"] + 2
        assert wall.edge.pid == pid
        # Nothing of it was news to any Service.
        assert {told(kube, f"s{number}")["state"] for number in range(0, SERVICES, 100)} == {"live"}
