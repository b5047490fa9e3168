"""One of two servers goes: no client pays for it, as far as HAProxy can know (facts.md, HAProxy 11)."""

from __future__ import annotations

from typing import Any

import pytest
from kit.edge import connect, until
from kit.netns import inside, swallow, two_hosts
from kit.servers import EchoServer, echo, free_port

from tests.faults.conftest import Scene


def pair(scene: Scene, port: int, *servers: EchoServer, **pool: Any) -> dict[str, Any]:
    """A frontend with both servers, and the load on it. Checks notice nothing while the load goes on."""
    state = scene.with_pool(port, *servers, **{"health": {"interval": "20s"}, **pool})
    scene.port = port
    return state


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "source", "first", "random"])
def test_one_of_two_servers_is_killed(scene: Scene, balance: str):
    port = free_port()
    with echo("b") as b:
        with echo("a") as a:
            scene.edge.live(pair(scene, port, a, b, balance=balance))
        # Nothing listens there any more; HAProxy believes it does until three checks have failed.
        with scene.fault(f"one of two servers killed (its port refuses), {balance}") as after:
            after("the other server has the clients")


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "source", "first", "random"])
def test_one_of_two_servers_goes_silent(root: None, scene: Scene, balance: str):
    port = free_port()
    with two_hosts() as (near, far):
        with inside(far):
            far_server = echo("a", host="10.99.0.2")
            a = far_server.__enter__()
        try:
            with inside(near), echo("b") as b, echo("w") as healthy:
                scene._healthy = healthy
                state = pair(scene, port, a, b, balance=balance, timeouts={"connect": "500ms"})
                scene.edge.live(state)
                # Before the load: what has begun on a server that goes silent waits for it, whatever HAProxy does.
                swallow(far)
                with scene.fault(f"one of two servers silent (packets dropped), connect 500ms, {balance}") as after:
                    after("the other server has the clients, some after one `timeouts.connect`")
                scene.edge.close()
        finally:
            far_server.__exit__(None, None, None)


def test_the_sessions_of_a_server_that_goes_down_end_where_that_is_wanted(scene: Scene):
    edge, keep, close = scene.edge, free_port(), free_port()
    state = scene.state(
        {
            "keep": {"bind": [f"127.0.0.1:{keep}"], "backend": "keep"},
            "close": {"bind": [f"127.0.0.1:{close}"], "backend": "close"},
        }
    )
    check = {"interval": "100ms", "fall": 1}
    with echo("a") as server:
        for name in ("keep", "close"):
            state["backends"][name] = {"servers": {"a": {"address": server.address}}, "health": check, "on_down": name}
        edge.live(state)
        kept, closed = connect(keep), connect(close)
        assert kept.recv(100)
        assert closed.recv(100)
    with kept, closed:  # the listener is gone, its sessions go on
        assert closed.recv(100) == b""
        until(lambda: edge.agent("status").stdout.count("DOWN") >= 2, "both servers are down")
        kept.sendall(b"still here")
        assert kept.recv(100) == b"still here"
