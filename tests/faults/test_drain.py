"""A drained server stays drained, whatever happens to HAProxy and to the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from kit.edge import until
from kit.onefile import AGENT
from kit.servers import echo, free_port
from kit.two_frontends import served

from tests.faults.conftest import Scene


def test_a_drain_lasts_over_a_reload(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b:
        document: dict[str, Any] = scene.with_pool(port, a, b)
        edge.live(document)
        with scene.fault("a server drained, then a reload") as after:
            assert edge.agent("drain", "back/a").returncode == 0
            assert served(port) == {"b"}
            before = edge.pid
            edge.live({**document, "defaults": {"maxconn": 77}})
            assert edge.pid != before
            assert served(port) == {"b"}
            after("the server drained still")


def test_a_drain_lasts_where_haproxy_is_killed(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b:
        edge.live(scene.with_pool(port, a, b))
        edge.put(scene.with_pool(port, a, b))
        edge.serve()
        with scene.fault("a server drained, then HAProxy killed", lossless=False) as after:
            assert edge.agent("drain", "back/a").returncode == 0
            before = edge.haproxy.running()
            assert before is not None
            os.kill(before.pid, signal.SIGKILL)
            until(lambda: (now := edge.haproxy.running()) is not None and now.pid != before.pid, "it is started anew")
            until(lambda: served(port) == {"b"}, "it serves")
            after("the server drained still")


def test_a_drain_whose_command_is_killed_is_done_or_not_begun(scene: Scene):
    edge, port = scene.edge, free_port()
    edge.settings.write_text(edge.settings.read_text() + '\n[apply]\nresync = "1s"\n')
    with echo("a") as a, echo("b") as b:
        edge.live(scene.with_pool(port, a, b))
        edge.put(scene.with_pool(port, a, b))
        edge.serve()
        drains = edge.folder / "state/drains.json"
        with scene.fault("the command that drains a server killed half way") as after:
            command = subprocess.Popen([*AGENT, "--settings", edge.settings, "drain", "back/a"])
            until(lambda: drains.exists() or command.poll() is not None, "it has begun")
            command.kill()
            command.wait()
            wanted = {"b"} if drains.exists() and json.loads(drains.read_text())["drains"] else {"a", "b"}
            until(lambda: served(port) == wanted, "the agent has made it so")
            after("drained: the next look of the agent ends what was begun")
