"""What people and their tools do by accident, while clients connect."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any

import pytest
import yaml
from kit.edge import Load, first_line, until
from kit.servers import echo, free_port

from agent.desired.identity import digest_of
from tests.faults.conftest import Scene


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("a document that is `version: 1` alone", {"version": 1, "serial": 8}, "`allow_empty: true`"),
        ("a serial lower than the live one", {"version": 1, "serial": 6, "allow_empty": True}, "lower than serial 7"),
    ],
)
def test_a_document_that_policy_rejects(scene: Scene, name: str, document: dict[str, Any], said: str):
    edge = scene.edge
    edge.live(scene.state(serial=7))
    edge.serve()
    with scene.fault(name) as after:
        edge.put(document)
        status = edge.wait("refused")
        assert said in status["message"] + status["remedy"]
        after("what was live; refused (exit 9)")


def test_a_frontend_with_another_name_and_dead_servers_on_the_same_address(scene: Scene):
    edge, port, dead = scene.edge, free_port(), free_port()
    with echo("a") as server:
        edge.live(scene.with_pool(port, server))
        renamed = scene.state(
            {"renamed": {"bind": [f"127.0.0.1:{port}"], "backend": "other"}},
            {"other": {"servers": {"a": {"address": f"127.0.0.1:{dead}"}}}},
        )
        with scene.fault("a serving frontend renamed, with dead servers") as after:
            done = edge.apply(renamed)
            assert (done.returncode, "no server of backend other answers" in done.stderr) == (4, True), done.stderr
            assert first_line(port).startswith("a")
            after("the old state")


def test_a_document_that_is_written_in_place_and_stalls_half_way(scene: Scene):
    """The second half of its frontends comes 0.6 s later, by a writer that has the file open all the time."""
    edge, port = scene.edge, free_port()
    with echo("a") as server:
        document = scene.with_pool(port, server)
        whole = yaml.safe_dump({**document, "name": "later"}, sort_keys=False).encode()
        cut = whole.index(b"  front:")
        half = {"version": 1, "frontends": {"healthy": document["frontends"]["healthy"]}}
        assert yaml.safe_load(whole[:cut]) == half
        tail = yaml.safe_dump({"backends": document["backends"], "name": "later"}, sort_keys=False).encode()
        edge.live(document)
        edge.put(document)
        edge.serve()
        generation = edge.status()["live"]["generation"]
        with scene.fault("a document written in place that stalls half way") as after, Load(port) as clients:
            with edge.desired.open("wb") as writer:
                writer.write(tail + whole[:cut])
                writer.flush()
                until(lambda: "is being written" in edge.log, "the service sees the writer")
                time.sleep(0.6)  # the stall itself
                assert edge.status()["live"]["generation"] == generation, edge.log
                writer.write(whole[cut : whole.index(b"backends:")])
            until(lambda: (edge.status()["live"] or {}).get("name") == "later", "the whole document is live")
            clients.more(5)
            assert not clients.failures
            after("what was live until the writer has closed the file, then the new state")


def test_a_copy_that_is_cut_off_and_done_again(scene: Scene):
    """The first copy ends half way, and what there is of it is valid; the whole one comes a second later."""
    edge, port = scene.edge, free_port()
    with echo("a") as server:
        document = scene.with_pool(port, server)
        half = scene.state()
        edge.live(document)
        edge.put(document)
        edge.serve()
        with scene.fault("a copy that is cut off half way, and done again") as after, Load(port) as clients:
            edge.desired.write_text(json.dumps(half))
            until(lambda: "takes frontends away (front)" in edge.log, "the service sees what it would take")
            edge.desired.write_text(json.dumps({**document, "name": "again"}))
            until(lambda: (edge.status()["live"] or {}).get("name") == "again", "the whole document is live")
            clients.more(5)
            assert not clients.failures
            after("what was live, then the new state")


def test_frontends_can_be_taken_away_in_place(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as server:
        edge.live(scene.with_pool(port, server))
        edge.serve()
        edge.desired.write_text(json.dumps(scene.state()))
        until(lambda: len(edge.status()["frontends"]) == 1, "it counts after a while")


def test_the_state_folder_is_deleted_under_a_running_agent(scene: Scene):
    """What serves goes on; the agent takes the new folder before a second one can, and writes back what was live.

    So neither an older document nor an empty one is the first one there, and a HAProxy that dies is started again.
    """
    edge = scene.edge
    edge.put(scene.state(serial=7))
    edge.serve()
    edge.wait("committed")
    with scene.fault("the state folder deleted under a running agent") as after:
        shutil.rmtree(edge.folder / "state")
        until(lambda: "is made anew" in edge.log, "the agent notices")
        second = edge.run()
        until(lambda: "waiting for pid" in edge.log, "the second agent waits")
        assert f"pid {edge.services[0].pid} (" in edge.log
        until(lambda: (edge.folder / "state/generations/000001/report.json").exists(), "what was live is there again")
        assert edge.agent("status").returncode == 0
        assert second.poll() is None
        for document in ({"version": 1, "serial": 9}, scene.state(serial=6)):
            shutil.rmtree(edge.folder / "state")
            edge.put(document)
            edge.wait("refused", digest_of(edge.desired.read_bytes()))
        after("what was live, recorded anew")
    shutil.rmtree(edge.folder / "state")
    until(lambda: (edge.folder / "state/generations/000001/report.json").exists(), "what was live is there again")
    pid = edge.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: (running := edge.haproxy.running()) is not None and running.pid != pid, "it is started again", 10)


def test_the_generations_are_deleted_under_a_running_agent(scene: Scene):
    """Half of a deleted state folder: its lock is there, what was live is not. No older document becomes the first."""
    edge = scene.edge
    edge.put(scene.state(serial=7))
    edge.serve()
    edge.wait("committed")
    with scene.fault("the generations deleted under a running agent") as after:
        shutil.rmtree(edge.folder / "state/generations")
        edge.put(scene.state(serial=6))
        edge.wait("refused", digest_of(edge.desired.read_bytes()))
        assert edge.status()["live"]["serial"] == 7
        assert (edge.folder / "state/generations/000001/report.json").exists()
        after("what was live, recorded anew")


def test_the_desired_file_linked_to_itself_while_haproxy_dies(scene: Scene):
    edge = scene.edge
    edge.put(scene.state())
    edge.serve()
    edge.wait("committed")
    with scene.fault("the desired file linked to itself, then HAProxy killed", lossless=False) as after:
        edge.desired.unlink()
        edge.desired.symlink_to(edge.desired.name)
        edge.wait("invalid")
        pid = edge.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: (running := edge.haproxy.running()) is not None and running.pid != pid, "it is started again")
        after("what was live")
    assert edge.services[0].poll() is None


def test_another_local_user_who_wants_the_lock(scene: Scene, root: None):
    """The folder was made wide by an earlier version, or by hand: the first command tightens it."""
    edge = scene.edge
    edge.folder.chmod(0o755)
    edge.live(scene.state())
    (edge.folder / "state").chmod(0o755)
    edge.put(scene.state())
    edge.serve()
    with scene.fault("another local user tries to hold the agent's lock") as after:
        hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", hold, edge.folder / "state"],
            capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=[],
        )  # fmt: skip
        assert "PermissionError" in done.stderr
        after("the same; permission denied")


def test_a_service_that_starts_while_the_file_is_being_written_keeps_what_is_live_and_what_is_held(scene: Scene):
    edge = scene.edge
    edge.live(scene.state())
    edge.live(scene.state(name="hurts"))
    assert edge.agent("rollback", "1").returncode == 0
    hold = edge.status()["held"]
    with edge.desired.open("r+b") as writer:  # open, and written just now: nobody can tell whether that is all
        writer.write(edge.desired.read_bytes())
        writer.flush()
        edge.serve()
        status = edge.status()
        assert (status["live"]["generation"], status["held"]) == (3, hold)
        assert "ERROR" not in edge.log
    until(lambda: (edge.status()["not_in_sync"] or {}).get("state") == "held", "the file is read, and is held")


def test_a_stalled_writer_is_waited_for_whoever_else_touches_the_file(scene: Scene):
    """A `touch` closes the file after writing too; an agent that is started in the middle knows of no event at all."""
    edge, port = scene.edge, free_port()
    with echo("a") as server:
        edge.live(scene.with_pool(port, server))
        edge.put(scene.with_pool(port, server))
        edge.serve()
        with edge.desired.open("wb") as copy:
            copy.write(json.dumps(scene.state(name="half")).encode())
            copy.flush()
            until(lambda: "is not read yet" in edge.log, "the service sees the writer")
            edge.desired.touch()
            done = edge.agent("apply")
            assert (done.returncode, f"is being written by pid {os.getpid()} " in done.stderr) == (2, True), done.stderr
            edge.services[0].terminate()
            edge.services[0].wait()
            edge.serve()
            time.sleep(4)  # longer than a file must be left alone where nobody has it open
            assert edge.status()["live"]["name"] == ""
            assert first_line(port).startswith("a")
        until(lambda: edge.status()["live"]["name"] == "half", "it counts once it is closed and left alone")
