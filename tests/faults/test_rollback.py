"""What hurt goes back: to the previous bytes, and the document is held."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kit.edge import first_line
from kit.servers import echo, free_port
from kit.web import page, web

from agent.desired.identity import digest_of
from tests.faults.conftest import Scene

TRAP = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    client, _ = server.accept()
client.recv(1)  # until the agent hangs up
"""


@contextlib.contextmanager
def answers_once() -> Iterator[int]:
    """A server that takes one connection (the agent's, before the switch) and is dead from then on.

    In a process of its own: it must be dead before the switch, whatever the load does here.
    """
    with subprocess.Popen([sys.executable, "-c", TRAP], stdout=subprocess.PIPE, text=True) as trap:
        assert trap.stdout is not None
        yield int(trap.stdout.readline())
        trap.kill()


@pytest.mark.parametrize("how", ["runtime", "reload"])
def test_servers_that_die_at_the_switch_bring_the_old_state_back(scene: Scene, how: str):
    edge, port = scene.edge, free_port()
    with echo("old") as old, answers_once() as trap:
        edge.live(scene.with_pool(port, old))
        config = (edge.folder / "state/haproxy.cfg").read_bytes()
        state = scene.with_pool(port, old)
        state["backends"]["back"]["servers"] = {"old": {"address": f"127.0.0.1:{trap}"}}
        if how == "reload":
            state["defaults"] = {"maxconn": 99}
        with scene.fault(f"all servers of a backend die at the switch, by {how}") as after:
            done = edge.apply(state)
            assert (done.returncode, done.stdout.split(":")[0]) == (5, "rolled_back"), done.stderr
            assert "frontend front served before, and now no server of backend back does" in done.stderr
            assert (edge.folder / "state/haproxy.cfg").read_bytes() == config
            assert {first_line(port) for _ in range(10)} == {"old PROXY 127.0.0.1"}
            after("the old state, the file held")


@pytest.mark.parametrize("how", ["runtime", "reload"])
def test_servers_that_answer_but_whose_checks_fail_are_rolled_back_and_the_file_is_held(scene: Scene, how: str):
    edge, port = scene.edge, free_port()
    with web("good", ready=True) as good, web("bad", ready=False) as bad:

        def state(address: str, **more: object) -> dict:
            pool = {
                "proxy_protocol": "none",
                "health": {"type": "http", "interval": "100ms"},
                "servers": {"only": {"address": address}},
                **more,
            }
            return scene.state({"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}}, {"back": pool})

        edge.live(state(good))
        edge.serve()
        with scene.fault(f"servers that answer but whose checks fail, by {how}") as after:
            edge.put(state(bad, **({"balance": "first"} if how == "reload" else {})))
            digest = digest_of(edge.desired.read_bytes())
            status = edge.wait("rolled_back", digest)
            assert status["plan"] == how
            assert (status["held"]["digest"], status["live"]["generation"]) == (digest, 1)
            assert page(port) == "good"
            assert "held:    sha256" in edge.agent("status").stdout
            # Touching the file without changing it re-applies nothing.
            pid = edge.pid
            edge.put(edge.desired.read_bytes())
            edge.services[0].send_signal(signal.SIGHUP)
            again = edge.agent("apply")
            assert again.returncode == 5
            assert "held: frontend front served before" in again.stderr
            assert (edge.status()["live"]["generation"], edge.pid, page(port)) == (1, pid, "good")
            after("the old state, the file held until it changes")
        edge.put(state(good, balance="leastconn"))
        edge.wait("committed", digest_of(edge.desired.read_bytes()))


def test_a_generation_is_put_back_by_hand(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("old") as old, echo("new") as new:
        edge.live(scene.with_pool(port, old))
        edge.live(scene.with_pool(port, new, balance="first"))
        edge.serve()
        with scene.fault("`agent rollback`") as after:
            done = edge.agent("rollback")
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("committed: generation 3 is live")
            assert first_line(port).startswith("old PROXY")
            edge.services[0].send_signal(signal.SIGHUP)
            status = edge.wait("rolled_back")
            assert status["held"]["reason"] == "generation 1 was put back by hand"
            assert first_line(port).startswith("old PROXY")
            after("the generation that was named, the present file held")
        assert edge.agent("rollback", "99").returncode == 2
