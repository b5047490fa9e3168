"""What is said is so: each way in which the desired state is not live is in headline, exit code, page and /readyz."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit.edge import Edge, first_line, until
from kit.servers import EchoServer, echo, free_port
from kit.ssh import state

NOTE = "#!/bin/sh\ncat >> {folder}/notes\necho >> {folder}/notes\n"


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as server:
        yield server


class Site:
    """A served edge with a page, and a program that keeps what it is notified of."""

    def __init__(self, edge: Edge, backend: EchoServer) -> None:
        self.edge, self.web, self.port = edge, free_port(), free_port()
        notify = edge.folder / "notify"
        notify.write_text(NOTE.format(folder=edge.folder))
        notify.chmod(0o755)
        self.document = state(backend.address, self.port) | {
            "backends": {"pool": {"servers": {"a": {"address": backend.address}}, "health": {"interval": "100ms"}}}
        }
        edge.configure(
            f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[metrics]\nlisten = "127.0.0.1:{self.web}"\n'
            f'[notify]\ncommand = "{notify}"\n[apply]\nresync = "1s"'
        )
        edge.live(self.document)
        edge.serve()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def notes(self, event: str) -> list[dict[str, Any]]:
        """What the program was notified of, by its `event`."""
        file = self.edge.folder / "notes"
        lines = file.read_text().splitlines() if file.exists() else []
        return [note for line in lines if (note := json.loads(line or "{}")).get("event") == event]


@pytest.fixture
def site(one_edge: Edge, backend: EchoServer) -> Site:
    return Site(one_edge, backend)


def missing(site: Site) -> None:
    site.edge.desired.unlink()


def invalid(site: Site) -> None:
    site.edge.put(b"version: 1\nfrontends: {x: 1}\n")


def refused(site: Site) -> None:
    """Its only server does not answer."""
    pool = {"servers": {"a": {"address": f"127.0.0.1:{free_port()}"}}}
    site.edge.put(site.document | {"serial": 2, "backends": {"pool": pool}})


def rejected(site: Site) -> None:
    site.edge.put(site.document | {"serial": 0})


def rolled_back(site: Site) -> None:
    """Its server takes a TCP connection, and its check asks for HTTP, which it does not speak."""
    pool = site.document["backends"]["pool"]
    health = {"type": "http", "interval": "100ms", "timeout": "100ms", "fall": 1}
    site.edge.put(site.document | {"serial": 2, "backends": {"pool": {**pool, "health": health}}})


def held(site: Site) -> None:
    site.edge.live(site.document | {"serial": 2, "defaults": {"maxconn": 7}})
    done = site.edge.agent("rollback")
    assert done.returncode == 0, done.stderr
    assert "is held: the agent does not apply it" in done.stderr
    assert "--retry" in done.stderr


@pytest.mark.parametrize(
    ("break_it", "state_word", "text"),
    [
        (missing, "missing", "the file is missing"),
        (invalid, "invalid", "it is invalid: "),
        (refused, "refused", "it is refused: "),
        (rejected, "refused", "serial 0 is lower than serial 1, which is live"),
        (rolled_back, "", "rolled back: "),
        (held, "held", "it is held: generation 1 was put back by hand"),
    ],
)
def test_each_way_in_which_the_desired_state_is_not_live_is_said_everywhere(
    site: Site, break_it: Callable[[Site], None], state_word: str, text: str
):
    edge = site.edge
    until(lambda: edge.agent("status").returncode == 0, "all is well")
    assert site.get("/readyz")[0] == 200
    assert "<title>OK" in site.get("/")[1]
    break_it(site)
    until(lambda: edge.status()["in_sync"] is False and edge.status()["agent"]["command"] == "run", "it is seen")
    if state_word:
        until(lambda: edge.status()["not_in_sync"]["state"] == state_word, state_word)
    until(lambda: edge.status()["frontends"][0]["state"] == "up", "what is live serves")
    done = edge.agent("status")
    assert done.returncode == 6
    first = done.stdout.splitlines()[0]
    assert first.startswith("The desired state is not live: ")
    assert text in first or state_word == ""
    generation = edge.status()["live"]["generation"]
    assert f"Generation {generation} is live: The one frontend is serving." in first
    until(lambda: site.get("/readyz")[0] == 503, "not ready")
    reasons = json.loads(site.get("/readyz")[1])["reasons"]
    assert any("the desired state is not what is live: " in reason for reason in reasons)
    until(lambda: "<title>Attention" in site.get("/")[1], "the page says so")
    assert "The desired state is not live: " in site.get("/")[1]
    assert "\nedgeagent_in_sync 0.0\n" in site.get("/metrics")[1]
    assert first_line(site.port).startswith("a")
    edge.put(site.document | {"serial": 9})
    until(lambda: edge.status()["in_sync"], "all is well again")


def test_a_held_document_is_tried_again_with_retry_and_with_nothing_less(site: Site):
    edge = site.edge
    held(site)
    done = edge.agent("apply")
    assert (done.returncode, "--retry" in done.stderr) == (5, True), done.stderr
    done = edge.agent("sync", edge.desired)
    assert (done.returncode, "--retry" in done.stderr) == (5, True), done.stderr
    done = edge.agent("sync", "--retry", edge.desired)
    assert done.returncode == 0, done.stderr
    assert edge.status()["live"]["serial"] == 2
    assert edge.agent("rollback").returncode == 0
    assert edge.agent("apply", "--retry").returncode == 0
    assert edge.status()["held"] is None


def test_history_shows_rollbacks_and_what_was_tried_and_put_back(site: Site):
    edge = site.edge
    rolled_back(site)
    edge.wait("rolled_back")
    held(site)
    lines = edge.agent("history").stdout.splitlines()
    assert any(" rollback " in line and "generation 1 was put back: " in line for line in lines)
    assert any(" rolled_back " in line and "tried and put back: sha256 " in line for line in lines)
    entries = json.loads(edge.agent("history", "--json").stdout)
    assert {entry["kind"] for entry in entries} == {"generation", "event"}
    assert [entry["restores"] for entry in entries if entry["kind"] == "generation"][-1] == 1


def test_haproxy_killed_is_told_to_everybody_and_not_again_by_the_next_agent(site: Site):
    edge = site.edge
    first = edge.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: (running := edge.haproxy.running()) is not None and running.pid != first, "it is started again")
    until(lambda: site.notes("haproxy_restarted"), "the program is notified")
    (note,) = site.notes("haproxy_restarted")
    assert (note["subject"], note["count"], "started again" in note["message"]) == ("haproxy", 1, True)
    assert "HAProxy was not running; it was started again" in edge.log
    assert "haproxy_restarted" in edge.agent("history").stdout
    until(lambda: "HAProxy was not running; it was started again" in site.get("/")[1], "the page has a row")
    edge.services[0].terminate()
    edge.services[0].wait()
    edge.serve()
    until(lambda: edge.status()["events"], "the next agent knows of it")
    assert len(site.notes("haproxy_restarted")) == 1


def test_a_frontend_that_loses_all_its_servers_is_told_and_its_return_too(
    one_edge: Edge,
):
    with echo("b") as backend:
        site = Site(one_edge, backend)
        until(lambda: one_edge.status()["frontends"][0]["state"] == "up", "it serves")
    (down,) = until(lambda: site.notes("frontend_down"), "the loss is told")
    assert (down["subject"], down["count"]) == (f"f{site.port}", 1)
    one_edge.services[0].terminate()
    one_edge.services[0].wait()
    one_edge.serve()
    with echo("b", port=backend.port):
        until(lambda: site.notes("frontend_up"), "its return is told, by the next agent")
    assert len(site.notes("frontend_down")) == 1
    assert "frontend_down" in one_edge.agent("history").stdout


def test_an_outage_between_two_statuses_is_told(one_edge: Edge):
    """Three seconds each, where a whole status is made every five, and the file is looked at once an hour."""
    with echo("b") as backend:
        site = Site(one_edge, backend)
        one_edge.services[0].terminate()
        one_edge.services[0].wait()
        one_edge.settings.write_text(one_edge.settings.read_text().replace('resync = "1s"', 'resync = "1h"'))
        one_edge.serve()
        until(lambda: one_edge.status()["frontends"][0]["state"] == "up", "it serves")
        port = backend.port
    until(lambda: site.notes("frontend_down"), "the outage is told", 3)
    with echo("b", port=port):
        until(lambda: one_edge.status()["frontends"][0]["state"] == "up", "its end is seen", 3)


def test_a_rollback_by_hand_is_on_the_page_before_the_service_looks_at_the_file_again(
    one_edge: Edge, backend: EchoServer
):
    site = Site(one_edge, backend)
    one_edge.live(site.document | {"serial": 2, "defaults": {"maxconn": 7}})
    one_edge.services[0].terminate()
    one_edge.services[0].wait()
    settings = one_edge.settings.read_text().replace('resync = "1s"', 'resync = "1h"')
    one_edge.settings.write_text(settings)
    one_edge.serve()
    until(lambda: site.get("/readyz")[0] == 200, "all is well")
    assert one_edge.agent("rollback").returncode == 0
    until(lambda: site.get("/readyz")[0] == 503, "not ready", 4)
    assert "it is held: generation 1 was put back by hand" in site.get("/readyz")[1]


def test_a_plan_of_a_held_document_says_so(site: Site):
    held(site)
    done = site.edge.agent("plan")
    assert "this document is held: generation 1 was put back by hand" in done.stderr
    assert "--retry" in done.stderr


def test_a_document_that_means_to_serve_nothing_is_no_reason_for_alarm(site: Site):
    site.edge.put({"version": 1, "serial": 2, "allow_empty": True})
    until(lambda: site.edge.status()["live"]["serial"] == 2, "nothing is served")
    assert site.edge.agent("status").returncode == 0
    until(lambda: "<title>OK" in site.get("/")[1], "the page says so too")
    assert site.get("/readyz")[0] == 200
