"""`agent sync` on the firewall itself: what is taken, what is told, and when."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.edge import Edge, first_line, until
from kit.servers import EchoServer, free_port
from kit.ssh import state

from agent import settings
from agent.desired.identity import digest_of
from agent.remote.outcome import wait
from agent.remote.submit import SyncRequest, destination, submit


def sync(edge: Edge, content: Any, *words: str, name: str = "new.yaml") -> tuple[int, dict[str, Any]]:
    done = edge.agent("sync", edge.file(content, name), "--json", *words)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def served(one_edge: Edge) -> Edge:
    one_edge.serve()
    return one_edge


def test_a_document_is_live_when_sync_returns(served: Edge, backend: EchoServer):
    port = free_port()
    done = served.agent("sync", served.file(state(backend.address, port)))
    assert (done.returncode, first_line(port)[:1]) == (0, "a"), done.stderr
    assert done.stdout.startswith("committed: generation 1 is live, serial 1, sha256 ")
    assert done.stderr.startswith("stage: ")
    code, answer = sync(served, state(backend.address, port))
    assert (code, answer["result"], answer["report"]["live"]["generation"]) == (0, "unchanged", 1)


@pytest.mark.parametrize(
    "data",
    [
        b"version: 1\r\nfrontends: {}\r\n",
        b"\xef\xbb\xbfversion: 1\nfrontends: {}",
        b"version: 1",
        b"version: 1\n#" + b"x" * (1_048_576 - 12),
        "# größer\nversion: 1\n".encode(),
    ],
    ids=["crlf", "bom", "no last newline", "1 MiB", "umlauts"],
)
def test_it_arrives_to_the_byte(served: Edge, data: bytes):
    code, answer = sync(served, data)
    assert (code, answer["digest"]) == (0, digest_of(data))
    assert served.desired.read_bytes() == data


def test_what_is_invalid_touches_nothing(served: Edge, backend: EchoServer):
    sync(served, state(backend.address))
    before = served.desired.read_bytes()
    code, answer = sync(served, b"version: 1\nfrontends: {x: 1}\n")
    assert (code, answer["result"]) == (3, "invalid")
    assert answer["report"]["violations"][0]["line"] == 2
    assert served.desired.read_bytes() == before
    done = served.agent("sync", served.file(b"version: 1\nfrontends: {x: 1}\n"))
    assert (done.returncode, "new.yaml:2: frontends.x" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("serial", "words"),
    [
        (41, "serial 41 is lower than serial 42, which is live"),
        (42, "serial 42 is live with other content"),
        (None, "has no serial"),
    ],
)
def test_a_serial_only_grows(served: Edge, backend: EchoServer, serial: int | None, words: str):
    assert sync(served, state(backend.address, serial=42))[0] == 0
    before = served.desired.read_bytes()
    code, answer = sync(served, state(backend.address, serial=serial))
    assert (code, answer["result"]) == (9, "policy")
    assert words in answer["message"]
    assert served.desired.read_bytes() == before
    assert sync(served, state(backend.address, serial=43))[0] == 0


def test_compare_and_swap(served: Edge, backend: EchoServer):
    first, second = state(backend.address), state(backend.address, serial=2)
    code, answer = sync(served, first, "--if-live", "0" * 64)
    assert (code, answer["message"]) == (9, "nothing is live, not sha256 000000000000")
    digest = sync(served, first)[1]["digest"]
    assert sync(served, second, "--if-live", "ab" * 32)[0] == 9
    assert sync(served, second, "--if-live", digest[:12])[0] == 0
    assert sync(served, state(backend.address, serial=3), "--if-live", digest)[0] == 9
    assert served.agent("sync", "--if-live", "xyz").returncode == 2


def test_an_empty_state_must_be_meant(served: Edge, backend: EchoServer):
    port = free_port()
    sync(served, state(backend.address, port))
    code, answer = sync(served, {"version": 1, "serial": 2})
    assert (code, first_line(port)[:1]) == (9, "a")
    assert answer["remedy"] == "if this is intended, write `allow_empty: true` at the top level of the document"
    assert sync(served, {"version": 1, "serial": 2, "allow_empty": True})[0] == 0


def test_a_dry_run_is_the_plan_and_touches_nothing(served: Edge, backend: EchoServer):
    sync(served, state(backend.address))
    before = served.desired.read_bytes()
    code, answer = sync(served, state(backend.address, serial=2), "--dry-run")
    assert (code, answer["result"], answer["report"]["plan"]["plan"]) == (0, "planned", "reload")
    assert "+frontend" in answer["report"]["plan"]["diff"]
    assert sync(served, state(backend.address, serial=0), "--dry-run")[0] == 9
    loss = json.loads(before) | {"serial": 2}
    loss["backends"]["pool"]["servers"]["a"]["address"] = f"127.0.0.1:{free_port()}"
    code, answer = sync(served, loss, "--dry-run")
    assert (code, answer["result"]) == (4, "would be refused")
    assert "no server of backend pool answers" in answer["message"]
    (frontend,) = loss["frontends"]
    reason = "it serves now, and no server of backend pool answers"
    assert answer["report"]["refused"] == [{"kind": "frontend", "name": frontend, "server": "", "reason": reason}]
    code, answer = sync(served, loss, "--dry-run", "--force")
    assert (code, answer["report"]["refused"]) == (0, [])
    planned = json.loads(served.agent("plan", served.file(loss), "--json").stdout)
    assert [(part["kind"], part["name"]) for part in planned["refused"]] == [("frontend", frontend)]
    assert served.desired.read_bytes() == before


def test_what_is_refused_names_its_parts_and_is_withdrawn_where_the_caller_says_so(served: Edge, backend: EchoServer):
    document = state(backend.address)
    sync(served, document)
    before = served.desired.read_bytes()
    (frontend,) = document["frontends"]
    lost = {"servers": {"a": {"address": f"127.0.0.1:{free_port()}"}}, "health": {"type": "none"}}
    loss = document | {"serial": 2, "backends": {"pool": lost}}
    code, answer = sync(served, loss, "--withdraw")
    assert (code, answer["result"], answer["message"].endswith("the desired file is what it was before")) == (
        4, "refused", True,
    )  # fmt: skip
    assert [(part["kind"], part["name"]) for part in answer["report"]["refused"]] == [("frontend", frontend)]
    assert served.desired.read_bytes() == before
    served.wait("unchanged", digest_of(before))
    assert served.agent("status").returncode == 0  # all is live
    code, answer = sync(served, loss)
    assert (code, served.desired.read_bytes() == before) == (4, False)
    assert served.status()["refused"] == answer["report"]["refused"]


def test_what_was_held_before_a_document_that_is_withdrawn_is_held_again(served: Edge, backend: EchoServer):
    """Each document that is handed over ends the hold of another one; withdrawn, it has ended nothing."""
    port = free_port()
    first, second = state(backend.address, port), state(backend.address, port, serial=2, name="second")
    assert [sync(served, document)[0] for document in (first, second)] == [0, 0]
    assert served.agent("rollback").returncode == 0
    held = digest_of(served.desired.read_bytes())
    assert served.status()["held"]["digest"] == held
    lost = {"servers": {"a": {"address": f"127.0.0.1:{free_port()}"}}, "health": {"type": "none"}}
    code, _ = sync(served, first | {"serial": 3, "backends": {"pool": lost}}, "--withdraw")
    assert (code, digest_of(served.desired.read_bytes())) == (4, held)
    until(lambda: (served.status()["held"] or {}).get("digest") == held, "it is held again")
    live = served.status()["live"]
    assert served.agent("apply").returncode == 5  # held
    assert served.status()["live"] == live
    assert served.agent("sync", served.desired, "--withdraw", "--no-wait").returncode == 2


def test_force_goes_past_what_is_forceable_and_only_for_this_document(served: Edge, backend: EchoServer):
    port = free_port()
    sync(served, state(backend.address, port))
    loss = state(f"127.0.0.1:{free_port()}", port, serial=2)
    code, answer = sync(served, loss)
    assert (code, answer["result"]) == (4, "refused")
    assert "no server of backend pool answers" in answer["message"]
    code, answer = sync(served, loss, "--force")
    assert (code, answer["result"]) == (0, "committed")
    assert json.loads((served.folder / "state/request.json").read_bytes())["force"] is False


def test_no_wait_does_not_wait(served: Edge, backend: EchoServer):
    code, answer = sync(served, state(backend.address), "--no-wait")
    assert (code, answer["result"]) == (0, "stored")
    served.wait("committed", answer["digest"])


def test_without_an_agent_it_is_stored_and_said(one_edge: Edge, backend: EchoServer):
    start = time.monotonic()
    done = one_edge.agent("sync", one_edge.file(state(backend.address)), "--timeout", "1m")
    assert (done.returncode, time.monotonic() - start < 60) == (7, True)
    assert "no agent runs here; the document is stored" in done.stderr
    assert one_edge.agent("sync", one_edge.folder / "new.yaml", "--no-wait").returncode == 7
    one_edge.serve()
    assert one_edge.status()["outcome"] == "committed"


def test_an_agent_that_does_not_answer_in_time(served: Edge, backend: EchoServer):
    (service,) = served.services
    service.send_signal(signal.SIGSTOP)
    try:
        code, answer = sync(served, state(backend.address), "--timeout", "1s")
        assert (code, answer["result"]) == (7, "no_answer")
        assert "no answer within 1 s; the document is stored" in answer["message"]
    finally:
        service.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def waiting_for_a_stopped_agent(
    served: Edge, document: Any
) -> Iterator[tuple[subprocess.Popen[bytes], concurrent.futures.Future[tuple[int, dict[str, Any]]]]]:
    """The service, which hears nothing, and a sync whose document is in its place."""
    (service,) = served.services
    service.send_signal(signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(sync, served, document, name="first.yaml")
        until(served.desired.exists, "the document is there")
        yield service, waiting


def test_an_agent_that_dies_meanwhile(served: Edge, backend: EchoServer):
    with waiting_for_a_stopped_agent(served, state(backend.address)) as (service, waiting):
        service.kill()
        code, answer = waiting.result(30)
    assert (code, answer["result"]) == (7, "no_answer")
    assert "no agent runs here" in answer["message"]


def test_an_agent_that_is_started_anew_answers(served: Edge, backend: EchoServer):
    with waiting_for_a_stopped_agent(served, state(backend.address)) as (service, waiting):
        service.kill()
        service.wait()
        served.run()
        code, answer = waiting.result(30)
    assert (code, answer["result"]) == (0, "committed")


def test_degraded_refused_and_rolled_back_are_told_whole(served: Edge, backend: EchoServer):
    port, taken = free_port(), free_port()
    with socket.create_server(("127.0.0.1", taken)):
        code, answer = sync(served, state(backend.address, port, taken))
        assert (code, answer["result"]) == (6, "degraded")
        (sad,) = answer["report"]["frontends"]
        assert (sad["name"], sad["state"]) == (f"f{taken}", "quarantined")
    worse = state(backend.address, port, serial=2)
    worse["backends"]["pool"]["health"] = {"type": "http", "interval": "100ms", "fall": 1}
    code, answer = sync(served, worse)
    assert (code, answer["result"]) == (5, "rolled_back")
    assert answer["report"]["held"]["digest"] == answer["digest"]
    code, again = sync(served, worse)  # the very same: it is held, and said so at once
    assert (code, again["message"].startswith("held: ")) == (5, True)
    assert first_line(port)[:1] == "a"


def test_twenty_at_once_are_each_told_the_truth(served: Edge, backend: EchoServer):
    port = free_port()
    documents = [state(backend.address, port, serial=serial) for serial in range(1, 21)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: sync(served, one, name=f"{one['serial']}.yaml"), documents))
    history = json.loads(served.agent("history", "--json").stdout)
    live = [entry["digest"] for entry in history if entry["kind"] == "generation"]
    for document, (code, answer) in zip(documents, answers, strict=True):
        assert answer["digest"] == digest_of(json.dumps(document, indent=1).encode())
        if code == 0:
            assert answer["digest"] in live, answer
        else:
            assert (code, answer["result"]) in ((9, "overtaken"), (9, "policy")), answer
            assert answer["digest"] not in live
            assert "sha256" in answer["message"] or "serial" in answer["message"]
    assert [entry["serial"] for entry in history if entry["kind"] == "generation"][-1] == 20
    assert answers[-1][0] == 0


def test_the_same_document_many_times_at_once_is_one_truth(served: Edge, backend: EchoServer):
    document = state(backend.address, free_port())
    assert sync(served, document)[0] == 0
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(lambda n: sync(served, document, name=f"{n}.yaml"), range(6)))
    assert {(code, answer["result"]) for code, answer in ends} == {(0, "unchanged")}


def test_the_one_that_was_overtaken_is_told_by_what(served: Edge, backend: EchoServer):
    first = state(backend.address, serial=1)
    with (
        waiting_for_a_stopped_agent(served, first) as (service, waiting),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        second = pool.submit(sync, served, state(backend.address, serial=2), name="2.yaml")
        until(lambda: json.loads(served.desired.read_bytes())["serial"] == 2, "the second one is there")
        service.send_signal(signal.SIGCONT)
        (code, answer), (other, winner) = waiting.result(30), second.result(30)
    assert (other, winner["result"]) == (0, "committed")
    assert (code, answer["result"]) == (9, "overtaken")
    assert f"sha256 {winner['digest'][:12]}, serial 2 (committed)" in answer["message"]


def test_a_file_that_is_taken_away_is_said(served: Edge, backend: EchoServer):
    with waiting_for_a_stopped_agent(served, state(backend.address)) as (service, waiting):
        served.desired.unlink()
        service.send_signal(signal.SIGCONT)
        code, answer = waiting.result(30)
    assert (code, answer["result"]) == (9, "overtaken")
    assert "was taken away" in answer["message"]


def test_a_file_that_is_taken_away_at_once_is_said(served: Edge, backend: EchoServer, monkeypatch: pytest.MonkeyPatch):
    """Between the rename and the next look at it: it was waited for until the time was over."""
    to = destination(settings.load(served.settings), served.desired)
    put = type(to.intake).put

    def taken(intake: Any, *arguments: Any) -> Any:
        result = put(intake, *arguments)
        intake.file.unlink()
        return result

    monkeypatch.setattr(type(to.intake), "put", taken)
    (service,) = served.services
    service.send_signal(signal.SIGSTOP)
    try:
        request = SyncRequest(data=json.dumps(state(backend.address)).encode())
        deadline = time.monotonic() + 20
        submission = submit(to, request, deadline=deadline)
        answer = wait(to, submission, deadline=deadline, timeout=20, on_stage=lambda _: None)
    finally:
        service.send_signal(signal.SIGCONT)
    assert (answer.word, "was taken away" in answer.message) == ("overtaken", True)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_takes_the_words_not_the_outcome(served: Edge, backend: EchoServer, stream: str):
    with Path("/dev/full").open("wb") as full:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full}
        words = [sys.executable, "-m", "agent", "--settings", served.settings, "sync"]
        done = subprocess.run([*words, served.file(state(backend.address))], check=False, **streams)  # type: ignore[call-overload]  # streams by name
    assert done.returncode == 0
    assert served.status()["outcome"] == "committed"


def test_a_link_that_leads_to_itself_is_said(served: Edge, backend: EchoServer):
    served.desired.symlink_to(served.desired)
    done = served.agent("sync", served.file(state(backend.address)))
    assert (done.returncode, "cannot write" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_half_a_document_is_not_taken(served: Edge, backend: EchoServer):
    data = json.dumps(state(backend.address)).encode()
    done = served.agent("sync", "-", "--digest", digest_of(data), "--json", data=data[:-1])
    assert (done.returncode, "not the document that was announced" in done.stdout) == (9, True)
    assert not served.desired.exists()
    assert served.agent("sync", "-", "--digest", digest_of(data), data=data).returncode == 0


def test_what_is_too_large_is_refused_as_that(served: Edge):
    data = b"version: 1\n#" + b"x" * 1_500_000
    code, answer = sync(served, data, "--digest", digest_of(data))
    assert (code, "at most 1,048,576 bytes" in answer["message"]) == (3, True)


def test_an_answer_of_another_look_is_none(served: Edge, backend: EchoServer):
    """After a rollback the service's own last report is of the same document, and was good: it is no answer."""
    port = free_port()
    first, second = state(backend.address, port), state(backend.address, port, serial=2)
    assert sync(served, first)[0] == sync(served, second)[0] == 0
    for _ in range(5):
        assert served.agent("rollback", "1").returncode == 0
        code, answer = sync(served, second)
        assert (code, answer["result"]) == (5, "rolled_back")
        assert answer["report"]["live"]["serial"] == 1


def test_who_is_asked_for_nothing_says_so(one_edge: Edge):
    assert one_edge.agent("sync", "--ordered", one_edge.file({"version": 1})).returncode == 2
    assert one_edge.agent("sync", "--timeout", "5").returncode == 2
    done: subprocess.CompletedProcess[str] = one_edge.agent("sync", one_edge.folder / "nobody.yaml")
    assert (done.returncode, "there is no such file" in done.stderr) == (2, True)
