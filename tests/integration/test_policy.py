"""Slips that must not end service: an empty document, an old one, on every path in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit.edge import Edge, first_line, until
from kit.servers import EchoServer, echo, free_port
from kit.ssh import state

EMPTY = {"version": 1, "serial": 2}
OLD = {"version": 1, "serial": 0, "allow_empty": True}


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as server:
        yield server


def by_file(edge: Edge, document: dict[str, Any]) -> tuple[int, str]:
    service = edge.serve()
    edge.put(document)
    until(lambda: edge.status()["outcome"] == "refused", "the service refuses the file")
    status = edge.status()
    service.terminate()
    service.wait()
    return status["exit_code"], f"{status['message']} ({status['remedy']})"


def by_apply(edge: Edge, document: dict[str, Any]) -> tuple[int, str]:
    before = edge.desired.read_bytes()
    done = edge.agent("apply", edge.file(document))
    assert edge.desired.read_bytes() == before
    return done.returncode, done.stderr


def by_apply_of_the_file(edge: Edge, document: dict[str, Any]) -> tuple[int, str]:
    edge.put(document)
    done = edge.agent("apply")
    return done.returncode, done.stderr


def by_plan(edge: Edge, document: dict[str, Any]) -> tuple[int, str]:
    done = edge.agent("plan", edge.file(document))
    return done.returncode, done.stderr


def by_sync(edge: Edge, document: dict[str, Any]) -> tuple[int, str]:
    service = edge.serve()
    done = edge.agent("sync", edge.file(document))
    service.terminate()
    service.wait()
    return done.returncode, done.stderr


def by_dry_run(edge: Edge, document: dict[str, Any]) -> tuple[int, str]:
    done = edge.agent("sync", "--dry-run", edge.file(document))
    return done.returncode, done.stderr


PATHS = [by_file, by_apply, by_apply_of_the_file, by_plan, by_sync, by_dry_run]


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_document_ends_no_service(
    one_edge: Edge, backend: EchoServer, path: Callable[[Edge, dict[str, Any]], tuple[int, str]]
):
    port = free_port()
    one_edge.live(state(backend.address, port))
    code, said = path(one_edge, EMPTY)
    assert (code, "all service would end" in said, "`allow_empty: true`" in said) == (9, True, True), said
    assert first_line(port).startswith("a")


@pytest.mark.parametrize("path", PATHS)
def test_a_serial_lower_than_the_live_one_is_refused(
    one_edge: Edge, backend: EchoServer, path: Callable[[Edge, dict[str, Any]], tuple[int, str]]
):
    port = free_port()
    one_edge.live(state(backend.address, port))
    code, said = path(one_edge, OLD)
    assert (code, "serial 0 is lower than serial 1, which is live" in said) == (9, True), said
    assert first_line(port).startswith("a")


@pytest.mark.parametrize("path", PATHS)
def test_a_document_of_another_manager_is_refused(
    one_edge: Edge, backend: EchoServer, path: Callable[[Edge, dict[str, Any]], tuple[int, str]]
):
    port = free_port()
    one_edge.live(state(backend.address, port) | {"manager": "cluster-a"})
    code, said = path(one_edge, state(backend.address, free_port(), serial=2) | {"manager": "cluster-b"})
    expected = "manager cluster-b writes this document, and cluster-a the one that is live"
    assert (code, expected in said, "--force" in said) == (9, True, True), said
    assert first_line(port).startswith("a")


@pytest.mark.parametrize("command", ["apply", "sync"])
def test_another_manager_takes_over_where_that_is_forced(one_edge: Edge, backend: EchoServer, command: str):
    one_edge.live(state(backend.address, port := free_port()) | {"manager": "cluster-a"})
    one_edge.put(state(backend.address, port) | {"manager": "cluster-a"})
    one_edge.serve()
    # A person who names no manager may change it, and the manager goes on.
    assert one_edge.agent(command, one_edge.file(state(backend.address, port, serial=2))).returncode == 0
    again = state(backend.address, port, serial=3) | {"manager": "cluster-a"}
    assert one_edge.agent(command, one_edge.file(again)).returncode == 0
    document = state(backend.address, port, serial=4) | {"manager": "cluster-b"}
    assert one_edge.agent(command, one_edge.file(document)).returncode == 9
    done = one_edge.agent(command, one_edge.file(document), "--force")
    assert (done.returncode, one_edge.status()["live"]["manager"]) == (0, "cluster-b"), done.stderr


def test_the_live_document_and_an_earlier_one_are_shown_byte_for_byte(one_edge: Edge, backend: EchoServer):
    done = one_edge.agent("show")
    assert (done.returncode, done.stdout, "nothing is live yet" in done.stderr) == (2, "", True)
    documents = [json.dumps(state(backend.address, serial=serial)) + "  \r\n# end" for serial in (1, 2)]
    for text in documents:
        file = one_edge.folder / "new.yaml"
        file.write_bytes(text.encode())
        assert one_edge.agent("apply", file).returncode == 0

    def shown(*words: str) -> str:
        return one_edge.agent("show", *words).stdout

    assert (shown(), shown("1")) == (documents[1], documents[0])
    assert "there is no generation 9" in one_edge.agent("show", "9").stderr


def test_a_node_of_weight_0_takes_no_new_clients_in_any_backend(one_edge: Edge):
    """At runtime, and whose each frontend is, is shown."""
    with echo("a") as first, echo("b", host="127.0.0.2", port=first.port):
        ports = {"one": free_port(), "two": free_port()}
        document: dict[str, Any] = {
            "version": 1,
            "nodes": {"workers": {"n1": "127.0.0.1", "n2": "127.0.0.2"}},
            "frontends": {
                name: {"bind": [f"127.0.0.1:{port}"], "backend": name, "owner": f"mail/{name}/1"}
                for name, port in ports.items()
            },
            "backends": {name: {"nodes": "workers", "port": first.port} for name in ports},
        }
        one_edge.live(document)
        served = {first_line(ports["one"])[0] for _ in range(8)}
        assert served == {"a", "b"}
        document["nodes"]["workers"]["n1"] = {"address": "127.0.0.1", "weight": 0}
        done = one_edge.apply(document)
        assert (done.returncode, "without a reload" in done.stdout) == (0, True), done.stdout
        assert {first_line(port)[0] for port in ports.values() for _ in range(8)} == {"b"}
        assert {frontend["owner"] for frontend in one_edge.status()["frontends"]} == {"mail/one/1", "mail/two/1"}
        assert "mail/two/1" in one_edge.agent("status").stdout


def test_programs_read_what_check_apply_and_plan_say(one_edge: Edge, backend: EchoServer):
    document = state(backend.address, free_port())
    file = one_edge.file(document)
    checked = one_edge.agent("check", file, "--json")
    assert (checked.returncode, json.loads(checked.stdout)["valid"]) == (0, True)
    assert one_edge.agent("plan", file, "--detailed-exitcode").returncode == 10
    done = one_edge.agent("apply", file, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["result"], answer["report"]["live"]["generation"]) == (0, "committed", 1)
    assert one_edge.agent("plan", file, "--detailed-exitcode").returncode == 0
    assert json.loads(one_edge.agent("apply", "--json").stdout)["result"] == "unchanged"
    broken = one_edge.file(document | {"nonsense": 1})
    for command, key in (("check", "violations"), ("apply", "report")):
        done = one_edge.agent(command, broken, "--json")
        answer = json.loads(done.stdout)
        violations = answer[key] if key == "violations" else answer[key]["violations"]
        assert (done.returncode, answer["exit_code"]) == (3, 3), done.stderr
        assert "unknown key" in violations[0]["message"]
    assert one_edge.agent("plan", broken, "--detailed-exitcode").returncode == 3


def test_a_document_may_end_all_service_where_it_says_so(one_edge: Edge, backend: EchoServer):
    one_edge.live(state(backend.address))
    assert one_edge.apply(EMPTY | {"allow_empty": True}).returncode == 0


def test_an_empty_document_is_taken_where_nothing_is_live(one_edge: Edge):
    assert one_edge.apply({"version": 1}).returncode == 0


def test_a_rollback_goes_back_in_serials_but_never_by_itself_to_nothing(one_edge: Edge, backend: EchoServer):
    port = free_port()
    one_edge.live({"version": 1})
    one_edge.live(state(backend.address, port))
    done = one_edge.agent("rollback")
    assert (done.returncode, "there is no earlier generation" in done.stderr) == (2, True), done.stderr
    one_edge.live(state(backend.address, port, serial=2) | {"name": "later"})
    one_edge.live(state(backend.address, port, serial=3) | {"defaults": {"maxconn": 7}})
    assert one_edge.agent("rollback").returncode == 0
    assert json.loads(one_edge.desired.read_bytes())["serial"] == 3
    assert one_edge.status()["live"]["serial"] == 2
    assert first_line(port).startswith("a")
