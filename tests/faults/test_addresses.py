"""facts.md, HAProxy 1 and 2: one address that cannot be bound costs that address, and nothing else."""

from __future__ import annotations

import os
import socket

import pytest
from kit.edge import first_line, until
from kit.servers import echo, free_port

from tests.faults.conftest import Scene

LACKING = {"IPv4": "203.0.113.77:2525", "IPv6": "[2001:db8::77]:2525"}


def pool(scene: Scene, server, *binds: str):
    return scene.state(
        {"front": {"bind": list(binds), "backend": "back"}},
        {"back": {"servers": {server.name: {"address": server.address}}, "health": {"interval": "100ms"}}},
    )


@pytest.mark.parametrize("start", ["hot", "cold"])
def test_a_busy_port_is_quarantined_and_its_holder_named(scene: Scene, start: str):
    edge, good = scene.edge, free_port()
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "200ms"')
    with echo("a") as a, socket.create_server(("127.0.0.1", free_port())) as holder:
        busy = holder.getsockname()[1]
        if start == "hot":
            edge.live(scene.state())
        else:
            edge.live(pool(scene, a, f"127.0.0.1:{good}"))  # so that a cold start has something to start with
            edge.haproxy.stop()
            edge.put(pool(scene, a, f"127.0.0.1:{good}", f"127.0.0.1:{busy}"))
        if start == "cold":
            done = edge.agent("apply")
        with scene.fault(f"a busy port, {start}, and freed later") as after:
            if start == "hot":
                done = edge.apply(pool(scene, a, f"127.0.0.1:{good}", f"127.0.0.1:{busy}"))
            assert done.returncode == 6, done.stderr
            assert f"127.0.0.1:{busy} is quarantined: the address is in use, by " in done.stderr
            assert f"(pid {os.getpid()})" in done.stderr
            assert first_line(good).startswith("a PROXY")
            edge.serve()
            status = edge.wait("degraded")
            (front,) = [one for one in status["frontends"] if one["name"] == "front"]
            assert front["state"] == "degraded"
            assert [bind["state"] for bind in front["binds"]] == ["listening", "quarantined"]
            assert f"(pid {os.getpid()})" in front["binds"][1]["reason"]
            shown = edge.agent("status")
            assert shown.returncode == 6
            assert f"127.0.0.1:{busy} (quarantined: the address is in use, by" in shown.stdout
            # Nothing is reloaded as long as it stays busy.
            generation = status["live"]["generation"]
            edge.services[0].send_signal(1)
            assert edge.wait("degraded")["live"]["generation"] == generation
            holder.close()
            until(lambda: served(busy), "the freed port is served")
            edge.wait("committed")
            after("everything else at once; the port by itself once it is free")
        assert edge.agent("status").returncode == 0


def served(port: int) -> bool:
    try:
        return first_line(port).startswith("a PROXY")
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("start", ["hot", "cold"])
def test_an_address_that_this_host_lacks_is_quarantined(scene: Scene, start: str, family: str):
    """A CARP VIP that is not here yet."""
    edge, good = scene.edge, free_port()
    with echo("a") as a:
        state = pool(scene, a, f"127.0.0.1:{good}", LACKING[family])
        state["frontends"]["other"] = {"bind": [LACKING[family].replace("2525", "2526")], "backend": "back"}
        if start == "hot":
            edge.live(scene.state())
        else:
            assert edge.apply(state).returncode == 6
            edge.haproxy.stop()
            assert edge.agent("apply").returncode == 6
        with scene.fault(f"an {family} address this host lacks, {start}") as after:
            done = edge.apply(state)
            assert done.returncode == 6, done.stderr
            assert f"{LACKING[family]} is quarantined: this host does not have the address" in done.stderr
            assert first_line(good).startswith("a PROXY")
            after("everything but that address")
        states = {one["name"]: one["state"] for one in edge.status()["frontends"]}
        assert states == {"front": "degraded", "healthy": "up", "other": "quarantined"}


def test_our_own_overlapping_addresses_are_no_foreign_ones(scene: Scene):
    """127.0.0.1:P to *:P and back: a test-bind fails against our own socket, HAProxy's reload does not."""
    edge = scene.edge
    with echo("a") as a:
        port = free_port("0.0.0.0")
        edge.live(pool(scene, a, f"127.0.0.1:{port}"))
        with scene.fault("one address becomes all addresses, and back") as after:
            done = edge.apply(pool(scene, a, f"0.0.0.0:{port}"))
            assert done.returncode == 0, done.stderr
            assert first_line(port, host="127.0.0.5").startswith("a PROXY")
            done = edge.apply(pool(scene, a, f"127.0.0.1:{port}"))
            assert done.returncode == 0, done.stderr
            with pytest.raises(ConnectionRefusedError):
                first_line(port, host="127.0.0.5")
            assert first_line(port).startswith("a PROXY")
            after("the new state")


def test_an_address_that_is_shared_silently_is_a_finding(scene: Scene):
    """facts.md, HAProxy 2: with SO_REUSEPORT a foreign process takes a share of the clients, and nobody is told."""
    edge = scene.edge
    with echo("a") as a:
        port = free_port()
        edge.live(pool(scene, a, f"127.0.0.1:{port}"))
        with socket.socket() as foreign, scene.fault("a foreign process on the same address") as after:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            foreign.bind(("127.0.0.1", port))
            foreign.listen()
            done = edge.agent("apply")
            assert done.returncode == 0
            assert f"127.0.0.1:{port} is also listened on by" in done.stderr
            assert f"(pid {os.getpid()})" in done.stderr
            after("the same; it is named as a finding")
        # New, it would be quarantined: the test-bind has no SO_REUSEPORT.
        assert edge.agent("apply").stderr == ""
