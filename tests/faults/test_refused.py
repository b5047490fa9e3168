"""What would break HAProxy never reaches it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.edge import first_line, until
from kit.servers import echo, free_port

from agent.host.limits import file_limit
from tests.faults.conftest import Scene

TEMPLATE = (Path(__file__).parents[2] / "templates/haproxy.cfg.j2").read_text()


@contextlib.contextmanager
def live(scene: Scene, state: dict[str, Any]) -> Iterator[None]:
    """Live before the load begins."""
    scene.edge.live(state)
    yield


def touched(scene: Scene) -> tuple[int, bytes]:
    return scene.edge.pid, (scene.edge.folder / "state/haproxy.cfg").read_bytes()


@pytest.mark.parametrize(
    ("name", "template", "code", "said"),
    [
        ("syntax that HAProxy refuses", TEMPLATE.replace("global\n", "global\n    nonsense 1\n", 1), 4, "nonsense"),
        ("an unknown user", TEMPLATE.replace("global\n", "global\n    user no-such-user\n", 1), 4, "no-such-user"),
        ("a missing chroot", TEMPLATE.replace("global\n", "global\n    chroot /no/such\n", 1), 4, "/no/such"),
        (
            "maxconn over the file limit",
            TEMPLATE.replace("global\n", f"global\n    maxconn {file_limit()}\n", 1),  # each takes two
            4,
            "Cannot raise FD limit",
        ),
        (
            "a template that renders nonsense",
            "{% for a in frontends %}{{ a.name * 3 }}\n{% endfor %}",
            3,
            "description",
        ),
        ("a template that is broken", "{% for %}", 3, "haproxy.cfg.j2:1"),
    ],
)
def test_a_configuration_that_cannot_run_touches_nothing(
    root: None, scene: Scene, name: str, template: str, code: int, said: str
):
    edge = scene.edge
    edge.live(scene.state())
    before = touched(scene)
    (edge.folder / "templates/haproxy.cfg.j2").write_text(template)
    with scene.fault(name) as after:
        done = edge.apply(scene.state(defaults={"maxconn": 77}))
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert touched(scene) == before
        after("the old state")
    assert not (edge.folder / "state/hold.json").exists()
    assert len(edge.processes()) == 1


def test_checks_that_are_one_too_many_for_the_file_limit_are_found_out_before(scene: Scene):
    """HAProxy counts a socket for each check; 28 are its own (M: 2.6, 2.8, 3.0)."""
    edge, limit = scene.edge, file_limit()
    assert limit is not None
    edge.live(scene.state())
    before = touched(scene)
    (edge.folder / "templates/haproxy.cfg.j2").write_text(
        TEMPLATE.replace("global\n", f"global\n    maxconn {(limit - 28 - 100) // 2}\n", 1)
    )
    many = {f"s{n}": {"address": f"127.0.0.1:{scene.port}"} for n in range(200)}
    state = scene.state(backends={"more": {"servers": many, "health": {"interval": "1h"}}})
    with scene.fault("checks over the file limit") as after:
        done = edge.apply(state)
        assert done.returncode == 4, done.stderr
        assert "Cannot raise FD limit" in done.stderr
        assert touched(scene) == before
        after("the old state")


def test_a_state_in_which_no_server_answers_is_refused_until_one_does(scene: Scene):
    edge = scene.edge
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "200ms"')
    port, dead = free_port(), free_port()
    with (
        echo("old") as old,
        live(scene, scene.with_pool(port, old)),
        scene.fault("all servers of the new state unreachable") as after,
    ):
        before = touched(scene)
        moved = scene.with_pool(port, old)
        moved["backends"]["back"]["servers"] = {"new": {"address": f"127.0.0.1:{dead}"}}
        done = edge.apply(moved)
        assert done.returncode == 4, done.stdout
        assert "frontend front serves now, and no server of backend back answers" in done.stderr
        assert touched(scene) == before
        assert first_line(port).startswith("old PROXY")
        edge.serve()
        assert edge.wait("refused")["live"]["generation"] == 1
        with echo("new", port=dead):
            edge.wait("committed")
            assert first_line(port).startswith("new PROXY")
        after("the old state; the new one by itself once a server answers")


def test_force_does_it_anyway(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("old") as old, live(scene, scene.with_pool(port, old)), scene.fault("the same with --force") as after:
        moved = scene.with_pool(port, old)
        moved["backends"]["back"]["servers"] = {"new": {"address": f"127.0.0.1:{free_port()}"}}
        done = edge.agent("apply", "--force", edge.file(moved))
        assert done.returncode == 0, done.stderr
        after("the new state, its frontend down")
    (front,) = [server for server in edge.haproxy.observe().servers if server.backend == "back"]
    assert (front.name, front.down) == ("new", True)


def test_a_new_frontend_whose_servers_are_all_dead_goes_live_as_down(scene: Scene):
    edge = scene.edge
    edge.live(scene.state())
    with scene.fault("a new frontend with dead servers") as after:
        state = scene.state(
            {"front": {"bind": [f"127.0.0.1:{free_port()}"], "backend": "back"}},
            {"back": {"servers": {"dead": {"address": f"127.0.0.1:{free_port()}"}}}},
        )
        done = edge.apply(state)
        assert done.returncode == 6, done.stderr
        assert "backends.back.servers.dead: does not answer" in done.stderr
        assert "frontends.front: none of its servers answers: it serves nobody yet" in done.stderr
        states = {one["name"]: one["state"] for one in edge.status()["frontends"]}
        assert states == {"front": "down", "healthy": "up"}
        assert edge.agent("apply").returncode == 6, "and as long as it serves nobody"
        after("the new state, that frontend `down`")


@pytest.mark.parametrize("how", ["runtime", "reload"])
def test_no_client_is_sent_to_a_server_that_nobody_reached(scene: Scene, how: str):
    """Its checks are an hour apart: only the agent can know."""
    edge, port = scene.edge, free_port()
    with echo("good") as good, socket.create_server(("127.0.0.1", 0)) as full:
        # A server that takes no connection at all, as behind a firewall: its queue is full.
        full.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)  # noqa: FBT003  # the library's own signature
                filler.connect_ex(full.getsockname())
            edge.live(scene.with_pool(port, good, health={"interval": "1h"}))
            pid = edge.pid
            state = scene.with_pool(port, good, health={"interval": "1h"})
            state["backends"]["back"]["servers"] |= {
                "dead": {"address": f"127.0.0.1:{free_port()}"},
                "silent": {"address": f"127.0.0.1:{full.getsockname()[1]}"},
            }
            if how == "reload":
                state["defaults"] = {"maxconn": 99}
            with scene.fault(f"new servers that are dead, by {how}") as after:
                done = edge.apply(state)
                assert done.returncode == 0, done.stderr
                assert (edge.pid == pid) is (how == "runtime")
                start = time.monotonic()
                assert {first_line(port) for _ in range(20)} == {"good PROXY 127.0.0.1"}
                assert time.monotonic() - start < 2  # nobody waited for a dead one first
                after("the new state, the dead servers down")


def test_servers_that_come_up_later_are_brought_in_by_their_checks(scene: Scene):
    edge, port, late = scene.edge, free_port(), free_port()
    with (
        echo("good") as good,
        live(scene, state := scene.with_pool(port, good)),
        scene.fault("a new server that starts late") as after,
    ):
        state["backends"]["back"]["servers"]["late"] = {"address": f"127.0.0.1:{late}"}
        edge.live(state)
        with echo("late", port=late):
            until(lambda: first_line(port).startswith("late"), "the late server has clients")
        after("the new state, the server once a check passes")


def test_an_unchecked_server_that_comes_up_later_is_brought_in_by_the_agent(scene: Scene):
    edge, port, late = scene.edge, free_port(), free_port()
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "200ms"')
    with (
        echo("good") as good,
        live(scene, state := scene.with_pool(port, good, health={"type": "none"})),
        scene.fault("a new server without a check that starts late") as after,
    ):
        edge.serve()
        pid = edge.pid
        state["backends"]["back"]["servers"]["late"] = {"address": f"127.0.0.1:{late}"}
        edge.put(state)
        until(lambda: edge.status()["live"]["generation"] == 2, "generation 2")
        assert {first_line(port) for _ in range(10)} == {"good PROXY 127.0.0.1"}
        with echo("late", port=late):
            until(lambda: first_line(port).startswith("late"), "the late server has clients")
        assert edge.pid == pid
        after("the new state, the server once it answers at a resync")
