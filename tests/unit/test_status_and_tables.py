"""status.json and the tables: what people and scripts read."""

from __future__ import annotations

import json

import click
import pytest
from attrs import asdict
from kit.states import state

from agent.desired.state import parse
from agent.errors import Finding, Outcome, Violation
from agent.haproxy.observed import FrontendStats, Observation, Running, ServerStats
from agent.haproxy.plan import Reload, Unchanged
from agent.reconcile.generation import Generation, Hold
from agent.reconcile.report import Report
from agent.view import history, status_table, tables
from agent.view.assemble import assemble
from agent.view.status import AgentStatus, Status, from_json, to_json

AGENT = AgentStatus(version="1.2.3", pid=7, started="1970-01-01T00:00:00Z", command="run")


LIVE = Generation(
    number=3, digest="ab" * 32, config_digest="c", loaded=3, at=60.0, outcome="committed", name="edge", serial=9
)


def seen(*statuses: str, is_open: bool = True) -> Observation:
    servers = [
        ServerStats(backend="a", name=chr(ord("a") + index), status=status, check="L4OK", sessions=index)
        for index, status in enumerate(statuses)
    ]
    frontend = FrontendStats(name="a", open=is_open, sessions=4, connections=9)
    process = Running(pid=99, version="2.8.1", uptime=5, generation=3)
    return Observation(process=process, frontends=(frontend,), servers=tuple(servers))


def status(observation: Observation | None, report: Report | None = None, hold: Hold | None = None) -> Status:
    desired = parse(json.dumps(state(a=2)).encode(), file="d").state
    return assemble(agent=AGENT, report=report, live=LIVE, state=desired, hold=hold, observed=observation, now=120.0)


def document(observation: Observation | None, report: Report | None = None, hold: Hold | None = None):
    return json.loads(to_json(status(observation, report, hold)))


@pytest.mark.parametrize(
    ("statuses", "state_", "up", "total"),
    [
        (("UP", "UP"), "up", 2, 2),
        (("no check", "UP 1/3"), "up", 2, 2),
        (("UP", "DOWN"), "degraded", 1, 2),
        (("UP", "MAINT"), "up", 1, 1),
        (("UP", "DRAIN"), "degraded", 1, 2),
        (("DOWN", "DOWN 1/2"), "down", 0, 2),
        (("MAINT", "MAINT"), "down", 0, 0),
    ],
)
def test_the_state_of_a_frontend(statuses, state_, up, total):
    (found,) = document(seen(*statuses))["frontends"]
    assert (found["state"], found["servers_up"], found["servers_total"], found["sessions"]) == (state_, up, total, 4)
    assert found["binds"] == [{"address": "192.0.2.1:1000", "state": "listening", "reason": ""}]


def test_a_frontend_that_is_not_open_is_down_with_the_reason():
    (found,) = document(seen("UP", "UP", is_open=False))["frontends"]
    assert (found["state"], found["binds"][0]["state"]) == ("down", "closed")
    assert found["binds"][0]["reason"] == "the frontend is stopped in HAProxy"
    (silent,) = document(None)["frontends"]
    assert (silent["state"], silent["binds"][0]["reason"]) == ("down", "HAProxy does not answer")
    assert silent["servers_total"] == 2


def test_the_document_has_all_of_the_contract_and_is_json():
    report = Report(
        outcome=Outcome.INVALID,
        at=60.0,
        file="d.yaml",
        digest="cd" * 32,
        message="m",
        violations=tuple(Violation(("a", 0), "bad", 4) for _ in range(100)),
        violations_total=150,
        findings=(Finding("x", "odd", "mend"),),
        timings=(("load", 0.5),),
    )
    found = json.loads(json.dumps(document(seen("UP", "UP"), report, Hold(digest="d", reason="r", since=0.0))))
    assert {
        "schema",
        "agent",
        "desired",
        "live",
        "outcome",
        "findings",
        "frontends",
        "backends",
        "haproxy",
        "timings",
    } <= set(found)
    assert (found["schema"], found["at"], found["outcome"]) == (1, "1970-01-01T00:02:00Z", "invalid")
    assert (len(found["violations"]), found["violations_total"]) == (100, 150)
    assert found["violations"][0] == {"file": "d.yaml", "line": 4, "path": "a[0]", "message": "bad"}
    assert found["live"] == {
        "generation": 3,
        "digest": "ab" * 32,
        "name": "edge",
        "serial": 9,
        "since": "1970-01-01T00:01:00Z",
        "manager": "",
        "actor": "",
    }
    assert found["held"] == {"digest": "d", "reason": "r", "since": "1970-01-01T00:00:00Z"}
    assert found["backends"][0]["servers"][1] == {
        "name": "b",
        "address": "198.51.100.2:2000",
        "weight": 1,
        "backup": False,
        "drained": "",
        "host_name": "",
        "status": "UP",
        "check": "L4OK",
        "sessions": 1,
        "handshake": None,
    }


@pytest.mark.parametrize("observation", [None, seen("UP", "DOWN")])
def test_a_status_is_read_as_it_was_written(observation: Observation | None):
    written = status(observation, hold=Hold(digest="d", reason="r", since=0.0))
    read = from_json(json.loads(to_json(written)), Status)
    assert read is not None
    assert asdict(read) == asdict(written)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "1"},
        {"exit_code": True},
        {"frontends": {}},
        {"frontends": [{"name": "a"}]},
        {"haproxy": {"pid": 1, "version": None, "uptime": 1}},
        {"held": []},
        {"at": None},
    ],
)
def test_what_has_not_the_shape_of_a_status_is_none(wrong: dict):
    assert from_json({**document(None), **wrong}, Status) is None
    assert from_json([], Status) is None


def test_an_older_agents_status_is_read_and_further_keys_are_ignored():
    """An agent before 0.2 wrote neither `in_sync` nor `events`."""
    older = {key: value for key, value in document(None).items() if key not in ("in_sync", "not_in_sync", "events")}
    read = from_json({**older, "colour": "red"}, Status)
    assert read is not None
    assert (read.in_sync, read.events) == (True, ())
    assert from_json({key: value for key, value in older.items() if key != "live"}, Status) is None


def test_the_status_table_says_in_one_sentence_what_is_wrong():
    text = click.unstyle(status_table.status(status(seen("UP", "DOWN")), running=True))
    assert text.startswith("0 of 1 frontends are fully serving; a is degraded (1 of 2 servers up).\n")
    assert "a         degraded  1/2      4         192.0.2.1:1000\n" in text
    assert "live:    generation 3, serial 9, sha256 abababababab, since 1970-01-01T00:01:00Z\n" in text
    assert "agent:   1.2.3, pid 7\n" in text
    assert click.unstyle(status_table.status(status(seen("UP", "UP")), running=True)).startswith(
        "The one frontend is serving."
    )
    silent = click.unstyle(status_table.status(status(None), running=False))
    assert "192.0.2.1:1000 (closed: HAProxy does not answer)" in silent
    assert "haproxy: does not answer\n" in silent
    assert "agent:   not running" in silent


def test_history_is_newest_first_and_marks_what_is_live():
    one = Generation(
        number=1,
        digest="a" * 64,
        config_digest="",
        loaded=1,
        at=0.0,
        outcome="committed",
        serial=4,
        seconds=0.25,
        actor="alice",
    )
    two = Generation(
        number=2,
        digest="b" * 64,
        config_digest="",
        loaded=1,
        at=60.0,
        outcome="unchanged",
        reasons=("a", "b", "c", "d"),
        seconds=0.1,
    )
    assert [line.split() for line in history.text([one, two]).splitlines()[1:]] == [
        [
            "2",
            "*",
            "1970-01-01T00:01:00Z",
            "unchanged",
            "-",
            "bbbbbbbbbbbb",
            "100",
            "ms",
            "-",
            "a;",
            "b;",
            "c;",
            "and",
            "1",
            "more",
        ],
        ["1", "1970-01-01T00:00:00Z", "committed", "4", "aaaaaaaaaaaa", "250", "ms", "alice"],
    ]


def test_a_plan_is_told_with_reasons_sessions_and_difference():
    assert tables.plan(Unchanged(new_generation=False), "", 0) == "No change: HAProxy already does what this says.\n"
    text = click.unstyle(tables.plan(Reload(reasons=("server a/b added",)), "+x\n", 12))
    assert "  - server a/b added\n" in text
    assert "12 stay with the old process until they end or hard-stop-after" in text
    assert text.endswith("\n+x\n")
