"""`agent drain` and `agent ready`: no new clients, sessions go on, whatever happens meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from kit.edge import Edge, connect, first_line, until
from kit.onefile import AGENT
from kit.servers import EchoServer, echo, free_port
from kit.two_frontends import document, served


@pytest.fixture
def servers() -> Iterator[tuple[EchoServer, EchoServer]]:
    with echo("a") as a, echo("b") as b:
        yield a, b


def test_a_drained_server_gets_no_new_clients_and_its_sessions_go_on(
    one_edge: Edge, servers: tuple[EchoServer, EchoServer]
):
    one_edge.live(document(port := free_port(), *servers))
    with connect(port) as session, session.makefile("rw") as stream:
        name = stream.readline()[:1]
        other = ({"a", "b"} - {name}).pop()
        done = one_edge.agent("drain", f"one/{name}")
        assert (done.returncode, done.stdout) == (0, f"one/{name}: drained; 1 sessions go on\n"), done.stderr
        assert served(port) == {other}
        stream.write("still here\n")
        stream.flush()
        assert stream.readline() == "still here\n"
        # It is shown, with who did it.
        assert "UP, drained" in one_edge.agent("status").stdout
        one_edge.put(document(port, *servers))
        one_edge.serve()
        (shown,) = [server for server in one_edge.status()["backends"][0]["servers"] if server["name"] == name]
        assert shown["drained"]
        (finding,) = [one for one in one_edge.status()["findings"] if "drained since" in one["message"]]
        assert (" by root" in finding["message"], finding["remedy"]) == (True, f"`agent ready one/{name}` ends that")
        # Waiting for the last session, with words on the way.
        words = [*AGENT, "--settings", one_edge.settings, "drain", f"one/{name}", "--wait"]
        waiting = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "1 sessions\n" in iter(waiting.stderr.readline, "")
    out, _ = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (0, f"one/{name}: drained; no session is left\n")
    done = one_edge.agent("ready", f"one/{name}")
    assert (done.returncode, done.stdout) == (0, f"one/{name}: ready\n"), done.stderr
    until(lambda: served(port) == {"a", "b"}, "both serve")
    assert not any("drained" in one["message"] for one in one_edge.status()["findings"])


def test_a_session_that_does_not_end_is_exit_7_after_the_time(one_edge: Edge, servers: tuple[EchoServer, EchoServer]):
    one_edge.live(document(port := free_port(), *servers))
    with connect(port) as session, session.makefile("r") as stream:
        name = stream.readline()[:1]
        done = one_edge.agent("drain", name, "--wait", "--timeout", "500ms", "--json")
        assert (done.returncode, json.loads(done.stdout)["servers"]) == (7, [f"one/{name}", f"two/{name}"])


def test_a_name_alone_is_that_server_of_every_backend(one_edge: Edge, servers: tuple[EchoServer, EchoServer]):
    one_edge.live(document(port := free_port(), *servers))
    assert one_edge.agent("drain", "a").returncode == 0
    config = (one_edge.folder / "state/haproxy.cfg").read_text()
    assert config.count("weight 0") == 2
    assert served(port) == {"b"}
    done = one_edge.agent("drain", "nobody")
    assert (done.returncode, 'no server the text "nobody" is live' in done.stderr) == (2, True), done.stderr
    done = one_edge.agent("drain", "ome/a")
    assert 'did you mean "one/a"?' in done.stderr


def test_the_last_server_of_a_frontend_is_not_drained_unless_forced(
    one_edge: Edge, servers: tuple[EchoServer, EchoServer]
):
    one_edge.live(document(port := free_port(), *servers))
    assert one_edge.agent("drain", "a").returncode == 0
    done = one_edge.agent("drain", "b")
    assert (done.returncode, "no server of backend one would be in use" in done.stderr) == (4, True), done.stderr
    assert served(port) == {"b"}
    # One that a killed command has left refuses no later document.
    drains = one_edge.folder / "state/drains.json"
    left = json.loads(drains.read_text())
    left["drains"] += [entry | {"server": "b", "address": servers[1].address} for entry in left["drains"]]
    drains.write_text(json.dumps(left))
    assert one_edge.apply(document(port, *servers) | {"name": "later"}).returncode == 4
    assert one_edge.apply(document(port, *servers) | {"name": "later"}).returncode == 0
    assert served(port) == {"b"}
    assert one_edge.agent("drain", "b", "--force").returncode == 0
    with pytest.raises((OSError, AssertionError)):
        assert first_line(port)
    assert one_edge.agent("ready", "a", "b").returncode == 0
    # A server whose weight was 0 enters the round robin late: the first few clients may all be one's (M: 2.6).
    until(lambda: served(port) == {"a", "b"}, "both serve")


def test_a_document_that_changes_the_server_ends_it_and_any_other_does_not(
    one_edge: Edge, servers: tuple[EchoServer, EchoServer]
):
    one_edge.live(document(port := free_port(), *servers))
    assert one_edge.agent("drain", "one/a").returncode == 0
    changed = document(port, *servers, balance="leastconn")  # by a reload
    assert one_edge.apply(changed).returncode == 0
    assert served(port) == {"b"}
    changed["backends"]["one"]["servers"]["a"]["weight"] = 3
    assert one_edge.apply(changed).returncode == 0
    until(lambda: served(port) == {"a", "b"}, "both serve")
    assert not (one_edge.folder / "state/drains.json").exists()


def test_a_drain_works_while_the_desired_file_is_broken(one_edge: Edge, servers: tuple[EchoServer, EchoServer]):
    one_edge.live(document(port := free_port(), *servers))
    one_edge.desired.write_text("version: 2\n")
    done = one_edge.agent("drain", "a")
    assert (done.returncode, served(port)) == (0, {"b"}), done.stderr
    assert one_edge.agent("ready", "a").returncode == 0
    until(lambda: served(port) == {"a", "b"}, "both serve")
