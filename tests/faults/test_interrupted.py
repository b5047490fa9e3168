"""A step that is interrupted before its verdict: nothing goes live for good that was not judged."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kit.edge import first_line, until
from kit.onefile import AGENT
from kit.servers import echo, free_port
from kit.web import page, web

from agent.host.store import Store
from tests.faults.conftest import Scene


def http(scene: Scene, port: int, address: str, **pool: Any) -> dict[str, Any]:
    """A frontend with one server, which is checked by HTTP."""
    health = {"type": "http", "interval": "500ms", "fall": 2}
    made = {"proxy_protocol": "none", "health": health, "servers": {"only": {"address": address}}, **pool}
    return scene.state({"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}}, {"back": made})


def checked(scene: Scene) -> None:
    """Until a check has passed: what is not up is at stake for nobody, and a change would go live without a verdict."""

    def so() -> bool:
        servers = [server for server in scene.edge.haproxy.observe().servers if server.backend == "back"]
        return bool(servers) and all(server.up and server.check.startswith("L7OK") for server in servers)

    until(so, "its check passes")


def applying(scene: Scene, document: dict[str, Any]) -> subprocess.Popen[str]:
    words = [*AGENT, "--settings", scene.edge.settings, "apply", scene.edge.file(document)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(gone: Callable[[], bool], command: subprocess.Popen[str]) -> None:
    """Until it is switched. Where it is not, what the command says is shown, and it is no part of the next test."""

    def so() -> str:
        return "switched" if gone() else "ended" if command.poll() is not None else ""

    try:
        how = until(so, "it is switched")
    except AssertionError as error:
        command.kill()
        raise AssertionError(f"{error}: {command.communicate()}") from None
    assert how == "switched", command.communicate()


def switched(scene: Scene, before: int) -> Callable[[], bool]:
    """Whether another process serves, or another server in the same one."""

    def so() -> bool:
        running = scene.edge.haproxy.running()
        journal = Store(scene.edge.folder / "state", scene.edge.folder / "run").journal()
        return journal is not None and running is not None and (running.pid != before or journal.runtime)

    return so


@pytest.mark.parametrize("how", ["runtime", "reload"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_change_that_hurts_and_is_interrupted_does_not_go_live_for_good(
    scene: Scene, how: str, number: signal.Signals
):
    """Found by attack: Ctrl-C half a second after the switch committed a generation whose only server fails."""
    edge, port = scene.edge, free_port()
    judged = threading.Event()  # until then no check of the new server ends
    with web("good", ready=True) as good, web("bad", ready=False, answers=judged) as bad:
        edge.live(http(scene, port, good))
        checked(scene)
        worse = http(scene, port, bad, **({"balance": "first"} if how == "reload" else {}))
        with scene.fault(f"a change that hurts, interrupted before its verdict by {number.name}, {how}") as after:
            gone = switched(scene, edge.pid)
            command = applying(scene, worse)
            wait_for(gone, command)
            command.send_signal(number)
            if number == signal.SIGKILL:
                command.wait()
            judged.set()
            _, stderr = command.communicate(timeout=60)
            if number == signal.SIGKILL:
                # The next look, whoever it is by: the same document is wanted.
                done = edge.agent("apply")
                assert done.returncode in (4, 5), done.stdout + done.stderr
            else:
                assert command.returncode == 5, stderr
                assert "interrupted: it ends when this step is done and judged" in stderr
            until(lambda: page(port) == "good", "the old server serves", 10)
            live = Store(edge.folder / "state", edge.folder / "run").live()
            assert live is not None
            assert live.number == 1
            after("the old state; a verdict was reached first")


def test_a_change_that_is_good_and_interrupted_is_live(scene: Scene):
    edge, port = scene.edge, free_port()
    judged = threading.Event()
    with web("good", ready=True) as good, web("better", ready=True, answers=judged) as better:
        edge.live(http(scene, port, good))
        checked(scene)
        with scene.fault("a change that is good, the agent killed before its verdict") as after:
            gone = switched(scene, edge.pid)
            command = applying(scene, http(scene, port, better, balance="first"))
            wait_for(gone, command)
            command.kill()
            command.communicate()
            judged.set()
            pid = edge.pid
            assert edge.agent("apply").returncode == 0
            assert (page(port), edge.pid) == ("better", pid)
            after("the new state, judged by the next agent; no second reload")


@pytest.mark.parametrize("what", ["the run folder wiped", "the new HAProxy killed"])
def test_what_the_world_does_to_a_reload_holds_no_document(scene: Scene, what: str):
    edge, port = scene.edge, free_port()
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1s"')
    judged = threading.Event()
    with web("good", ready=True) as good, web("better", ready=True, answers=judged) as better:
        edge.live(http(scene, port, good))
        checked(scene)
        with scene.fault(f"during a reload {what}", lossless=False) as after:
            gone = switched(scene, edge.pid)
            command = applying(scene, http(scene, port, better, balance="first"))
            wait_for(gone, command)
            if what == "the run folder wiped":
                for path in (edge.folder / "run").iterdir():
                    if path.is_socket():
                        path.unlink()
            else:
                os.kill(edge.pid, signal.SIGKILL)
            judged.set()
            command.communicate(timeout=60)
            assert not (edge.folder / "state/hold.json").exists()
            assert edge.agent("apply").returncode == 0
            until(lambda: page(port) == "better", "the new state serves", 10)
            after("the new state, at the next try")


@pytest.mark.parametrize("how", ["disable", "shutdown"])
def test_a_frontend_that_is_closed_at_the_socket_is_opened_again(scene: Scene, how: str):
    edge, port = scene.edge, free_port()
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "200ms"')
    with echo("a") as a:
        edge.live(scene.with_pool(port, a))
        edge.serve()
        pid = edge.pid
        with scene.fault(f"`{how} frontend` at the socket") as after:
            assert edge.haproxy.socket.ask(f"{how} frontend fe:front").strip() == ""
            until(lambda: edge.status()["counters"].get("drift_corrections.frontend"), "it is counted")
            until(lambda: first_line(port), "it serves again")
            assert (edge.pid == pid) is (how == "disable")
            assert len(list((edge.folder / "state/generations").iterdir())) == 1
            after("open again; counted")


def test_an_unchecked_server_that_never_answered_gets_nobody_over_haproxys_death(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as a:
        state = scene.with_pool(port, a, health={"type": "none"})
        state["backends"]["back"]["servers"]["dead"] = {"address": f"127.0.0.1:{free_port()}"}
        edge.live(state)
        with scene.fault("HAProxy killed, beside an unchecked server that never answered", lossless=False) as after:
            os.kill(edge.pid, signal.SIGKILL)
            until(lambda: edge.haproxy.running() is None, "it is gone")
            assert edge.agent("apply").returncode == 0
            assert {first_line(port)[:1] for _ in range(20)} == {"a"}
            after("the live generation; nobody is sent there")


def test_a_trial_start_that_an_agent_has_left_is_ended_at_the_next_look(scene: Scene):
    edge = scene.edge
    edge.live(scene.state())
    folder = edge.folder / "run/r"
    folder.mkdir()
    (folder / "c").write_text(f"global\n  stats socket {folder}/s\n")
    left = subprocess.Popen(
        [edge.folder / "state/bin/edge-haproxy", "-db", "-f", folder / "c"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with scene.fault("a trial start left by a killed agent") as after:
        until(lambda: (folder / "s").exists(), "it runs")
        assert edge.agent("apply").returncode == 0
        assert left.wait(10) == -signal.SIGKILL
        assert not folder.exists()
        after("the live generation; it is ended")
