"""Who changed it: every generation, refusal and rollback names its actor, wherever it is shown."""

from __future__ import annotations

import getpass
import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from kit.edge import Edge, until
from kit.servers import EchoServer, echo, free_port
from kit.ssh import state

USER = getpass.getuser()
BEHIND = "alice (sudo)" if USER == "root" else USER


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as server:
        yield server


def history(edge: Edge) -> list[tuple[str, str]]:
    """What happened and by whom, oldest first."""
    entries = json.loads(edge.agent("history", "--json").stdout)
    return [(entry["event"] if entry["kind"] == "event" else "generation", entry["actor"]) for entry in entries]


def notes(edge: Edge) -> list[dict[str, Any]]:
    """What the operator's program was notified of."""
    file = edge.folder / "notes"
    return [json.loads(line) for line in file.read_text().splitlines() if line] if file.exists() else []


def test_in_history_status_page_and_notification(one_edge: Edge, backend: EchoServer, monkeypatch: pytest.MonkeyPatch):
    edge, web, port = one_edge, free_port(), free_port()
    notify = edge.folder / "notify"
    notify.write_text(f"#!/bin/sh\ncat >> {edge.folder}/notes\necho >> {edge.folder}/notes\n")
    notify.chmod(0o755)
    edge.configure(
        f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[metrics]\nlisten = "127.0.0.1:{web}"\n'
        f'[notify]\ncommand = "{notify}"\n[apply]\nresync = "1s"'
    )
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    edge.live(state(backend.address, port, serial=1))
    edge.serve()

    edge.put(state(backend.address, port, free_port(), serial=2))
    until(lambda: edge.status()["live"]["serial"] == 2, "the file is live")
    assert edge.status()["live"]["actor"] == "file"

    monkeypatch.setenv("SUDO_USER", "alice")
    assert edge.agent("sync", edge.file(state(backend.address, port, serial=3))).returncode == 0
    assert edge.status()["live"]["actor"] == BEHIND

    # Looked at again at every resync: one line in the history, with the one who handed it over.
    assert edge.apply(state(f"127.0.0.1:{free_port()}", port, serial=4)).returncode == 4
    read = edge.status()["desired"]["read"]
    until(lambda: edge.status()["desired"]["read"] > read, "the service has looked at it")
    assert edge.status()["desired"]["actor"] == BEHIND
    assert f", by {BEHIND}\n" in edge.agent("status").stdout
    assert f"by {BEHIND}," in edge.log

    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22")
    assert edge.agent("rollback", "1").returncode == 0
    away = f"{BEHIND} from 192.0.2.7"
    assert edge.status()["live"]["actor"] == away
    assert history(edge) == [
        ("generation", USER),
        ("generation", "file"),
        ("generation", BEHIND),
        ("refused", BEHIND),
        ("generation", away),
    ]
    assert f"  {away}  " in edge.agent("history").stdout

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/", timeout=10) as answer:
            return str(answer.read().decode())

    until(lambda: f", by {away}" in page(), "the page says it")
    until(lambda: [note for note in notes(edge) if note.get("outcome") == "refused"], "it was notified")
    assert next(note for note in notes(edge) if note.get("outcome") == "refused")["actor"] == BEHIND


def test_a_try_that_was_never_stored_is_in_the_history_too(one_edge: Edge, backend: EchoServer):
    edge, port = one_edge, free_port()
    edge.live(state(backend.address, port, serial=5))
    older = edge.file(state(backend.address, port, serial=4))
    for _ in range(2):  # the same again is no news
        assert edge.agent("sync", older).returncode == 9
    assert edge.agent("apply", older).returncode == 9
    assert edge.agent("sync", edge.file(b"version: 1\nfrontend: 1\n")).returncode == 3
    entries = json.loads(edge.agent("history", "--json").stdout)[1:]
    assert [(entry["event"], entry["actor"]) for entry in entries] == [("refused", USER)] * 2
    assert "serial 4 is lower than" in entries[0]["message"]
    assert "invalid: line 2: unknown key" in entries[1]["message"]


def test_what_only_the_world_has_changed_is_by_the_agent(one_edge: Edge, backend: EchoServer):
    """An address that is free again: nobody has changed the document."""
    port = free_port()
    other = socket.create_server(("127.0.0.1", port))
    edge = one_edge
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1s"')
    document = state(backend.address, port, free_port())
    assert edge.apply(document).returncode == 6
    edge.serve()
    other.close()
    until(lambda: edge.status()["live"]["generation"] == 2, "it serves on both")
    assert [actor for kind, actor in history(edge) if kind == "generation"] == [USER, "agent"]
    assert edge.status()["desired"]["actor"] == USER
