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
