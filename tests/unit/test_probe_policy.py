"""Whom to ask whether it speaks PROXY, when, and what is made of the answers."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from attrs import evolve
from kit.fakes import Clock, FakeNames, FakeProber, FakeProxy

from agent.desired.state import Limits
from agent.errors import Outcome, StoreError
from agent.haproxy.config import CONFIG_TEMPLATE, Process
from agent.host import templates
from agent.host.store import Store
from agent.proxy_protocol.greetings import Result
from agent.reconcile.assessor import Assessor
from agent.reconcile.ports import Environment
from agent.reconcile.reconciler import Reconciler
from agent.reconcile.report import Report
from agent.settings import ProbeMode


class Stage:
    """A story on fakes. Servers `sN` are at 192.0.2.1:N."""

    def __init__(self, folder: Path) -> None:
        self.proxy, self.prober, self.clock = FakeProxy(), FakeProber(), Clock()
        self.store = Store(folder / "state", folder / "run")
        self.store.prepare()
        self.mode, self.believe = ProbeMode.MISMATCH, 0.0

    @property
    def reconciler(self) -> Reconciler:
        environment = Environment(
            proxy=self.proxy, store=self.store, prober=self.prober, clock=self.clock, names=FakeNames()
        )
        process = Process(
            socket=PurePosixPath("/s"), server_state=PurePosixPath("/st"), maxconn=10, hard_stop_after=1_000
        )
        assessor = Assessor(
            file=Path("desired.yaml"),
            max_bytes=100_000,
            limits=Limits(),
            process=process,
            template=lambda: templates.load(CONFIG_TEMPLATE, ""),
            environment=environment,
            probe=self.mode,
            believe_seconds=self.believe,
        )
        return Reconciler(assessor=assessor, environment=environment)

    def live(self, document: bytes) -> None:
        report = self.reconciler.reconcile(document)
        assert report.outcome in (Outcome.COMMITTED, Outcome.UNCHANGED), report

    def asked(self) -> list[str]:
        """Names of the servers that were asked since the last look."""
        found = [server for _, server in self.prober.greeted]
        self.prober.greeted.clear()
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def mail(*environment: int, application: str = "smtp", serial: int = 1, **pool: Any) -> bytes:
    servers = {f"s{port}": {"address": f"192.0.2.1:{port}"} for port in environment}
    return json.dumps(
        {
            "version": 1,
            "serial": serial,
            "frontends": {"smtp": {"bind": ["127.0.0.1:25"], "backend": "smtp"}},
            "backends": {"smtp": {"application": application, "servers": servers, **pool}},
        }
    ).encode()


def test_each_new_or_changed_server_is_asked_once_and_nobody_else(stage: Stage):
    stage.live(mail(1, 2))
    assert stage.asked() == ["s1", "s2"]
    stage.live(mail(1, 2))
    assert stage.asked() == []
    stage.live(mail(1, 2, 3))
    assert stage.asked() == ["s3"]
    stage.live(mail(1, 3))
    assert stage.asked() == []
    stage.live(mail(1, 3, application="imap"))
    assert stage.asked() == ["s1", "s3"]
    stage.live(mail(1, 3, application="imap", proxy_protocol="v1"))
    assert stage.asked() == ["s1", "s3"]
    stage.live(mail(1, 3, application="imap", proxy_protocol="v1", health={"interval": "9s"}))
    assert stage.asked() == []
    moved = {"s1": {"address": "192.0.2.1:7"}, "s3": {"address": "192.0.2.1:3"}}
    stage.live(mail(application="imap", proxy_protocol="v1", health={"interval": "9s"}, servers=moved))
    assert stage.asked() == ["s1"]


@pytest.mark.parametrize(("mode", "application"), [(ProbeMode.OFF, "smtp"), (ProbeMode.MISMATCH, "raw")])
def test_nobody_is_asked_in_vain(stage: Stage, mode: ProbeMode, application: str):
    stage.mode = mode
    stage.live(mail(1, application=application))
    assert stage.asked() == []


@pytest.mark.parametrize(
    ("version", "result", "words"),
    [
        ("v2", Result.PLAIN, "is sent a PROXY v2 header and does not take it: as told"),
        ("v1", Result.PLAIN, "is sent a PROXY v1 header and does not take it: as told"),
        ("none", Result.SPEAKS_PROXY, "demands a PROXY header and is sent none: as told"),
    ],
)
def test_a_mismatch_is_refused_with_its_name_and_nothing_is_touched(
    stage: Stage, version: str, result: Result, words: str
):
    stage.live(mail(1, proxy_protocol=version))
    stage.proxy.calls.clear()
    stage.prober.odd["192.0.2.1:2"] = result
    report = stage.reconciler.reconcile(mail(1, 2, proxy_protocol=version))
    assert (report.outcome, report.generation) == (Outcome.REFUSED, 1)
    assert report.message == f"server s2 of backend smtp (192.0.2.1:2) {words}"
    assert "nothing was touched" in report.remedy
    assert [(handshake.server, handshake.result) for handshake in report.handshakes] == [("s2", result.value)]
    assert stage.proxy.calls == []
    # The same document is still somebody's wish: it goes live by itself once the server is as it should be.
    stage.prober.odd.clear()
    stage.live(mail(1, 2, proxy_protocol=version))


@pytest.mark.parametrize("result", [one for one in Result if one is not Result.PLAIN])
def test_what_is_not_proven_is_no_mismatch(stage: Stage, result: Result):
    stage.prober.odd["192.0.2.1:1"] = result
    report = stage.reconciler.reconcile(mail(1))
    away = result in (Result.REFUSED, Result.UNREACHABLE)  # then its frontend, which is new, serves nobody
    assert report.outcome is (Outcome.DEGRADED if away else Outcome.COMMITTED)

    def about(report: Report) -> list[str]:
        return [finding.message for finding in report.findings if finding.where == "backends.smtp.servers.s1"]

    silent = "does not answer: no client is sent there before it does"
    assert (silent in about(report)) is away
    assert bool(about(report)) is (result is not Result.SPEAKS_PROXY)
    again = stage.reconciler.reconcile(mail(1))  # what is wrong is said for as long as it is
    assert about(again) == [message for message in about(report) if message != silent]


def test_many_mismatches_are_told_shortly(stage: Stage):
    stage.prober.odd = {f"192.0.2.1:{port}": Result.PLAIN for port in range(1, 9)}
    report = stage.reconciler.reconcile(mail(*range(1, 9)))
    assert report.message.count("server s") == 5
    assert report.message.endswith("; and 3 more")


def test_where_proof_is_required_one_server_of_each_new_backend_must_give_it(stage: Stage):
    stage.mode = ProbeMode.REQUIRE
    stage.prober.odd["192.0.2.1:1"] = Result.SILENT
    report = stage.reconciler.reconcile(mail(1))
    assert report.outcome is Outcome.REFUSED
    assert report.message == "no server of the new backend smtp was seen to speak PROXY: s1 is silent (as told)"
    stage.live(mail(1, 2))
    stage.prober.odd["192.0.2.1:3"] = Result.SILENT
    stage.live(mail(1, 2, 3))  # the backend has given its proof
    raw = stage.reconciler.reconcile(mail(1, application="raw", proxy_protocol="v1"))
    assert raw.message.endswith("application: raw cannot be probed; say what it speaks")
    stage.live(mail(1, application="raw", proxy_protocol="none"))


def test_the_service_asks_a_refused_server_again_only_after_five_minutes_or_for_another_document(stage: Stage):
    stage.believe = 300.0
    stage.prober.odd = {"192.0.2.1:1": Result.PLAIN, "192.0.2.1:2": Result.REFUSED}

    def refused(document: bytes) -> list[str]:
        assert stage.reconciler.reconcile(document).outcome is Outcome.REFUSED
        return stage.asked()

    assert refused(mail(1, 2)) == ["s1", "s2"]
    assert refused(mail(1, 2)) == ["s2"]  # who did not answer may answer now
    stage.clock.sleep(301)
    assert refused(mail(1, 2)) == ["s1", "s2"]
    assert refused(mail(1, 2, serial=2)) == ["s1", "s2"]
    stage.believe = 0.0  # a person
    assert refused(mail(1, 2, serial=2)) == ["s1", "s2"]


def test_who_was_away_is_asked_when_it_is_up(stage: Stage):
    stage.believe = 300.0
    stage.prober.odd["192.0.2.1:2"] = Result.REFUSED
    stage.live(mail(1, 2))
    assert stage.asked() == ["s1", "s2"]
    away = stage.proxy.servers["smtp", "s2"]
    stage.proxy.servers["smtp", "s2"] = evolve(away, status="DOWN")
    stage.clock.sleep(61)
    stage.live(mail(1, 2))
    assert stage.asked() == []
    stage.proxy.servers["smtp", "s2"] = evolve(away, status="UP")
    stage.prober.odd["192.0.2.1:2"] = Result.PLAIN
    report = stage.reconciler.reconcile(mail(1, 2))
    assert stage.asked() == ["s2"]
    assert [finding.message for finding in report.findings if finding.where.endswith("s2")] == [
        "is sent a PROXY v2 header and does not take it: as told"
    ]


@pytest.mark.parametrize("result", [Result.SILENT, Result.UNKNOWN, Result.WRONG_PROTOCOL])
def test_a_finding_ends_when_the_server_is_as_it_should_be(stage: Stage, result: Result):
    stage.believe = 300.0

    def probe_warnings() -> int:
        report = stage.reconciler.reconcile(mail(1))
        assert report.outcome in (Outcome.COMMITTED, Outcome.UNCHANGED)
        return sum(finding.where.endswith("s1") for finding in report.findings)

    stage.prober.odd["192.0.2.1:1"] = result
    assert probe_warnings() == 1
    stage.prober.odd.clear()
    assert probe_warnings() == 1
    assert stage.asked() == ["s1"]
    stage.clock.sleep(301)
    assert probe_warnings() == 0
    assert stage.asked() == ["s1"]
    stage.clock.sleep(301)
    assert probe_warnings() == 0
    assert stage.asked() == []
    stage.prober.odd["192.0.2.1:2"] = result
    stage.live(mail(1, 2))
    stage.prober.odd.clear()
    stage.believe = 0.0  # a person applies
    stage.live(mail(1, 2))
    assert stage.asked() == ["s2", "s2"]
    assert {handshake.result for handshake in stage.store.handshakes()} == {"speaks_proxy"}


def test_a_clock_that_was_set_back_keeps_nobody_from_being_asked(stage: Stage):
    stage.believe = 300.0
    stage.clock.sleep(10_000)
    stage.prober.odd["192.0.2.1:1"] = Result.PLAIN
    assert stage.reconciler.reconcile(mail(1)).outcome is Outcome.REFUSED
    stage.clock.sleep(-10_000)
    stage.prober.odd.clear()
    stage.live(mail(1))


def test_a_refused_document_leaves_what_is_known_of_live_servers(stage: Stage):
    stage.live(mail(1))
    stage.prober.odd["192.0.2.1:1"] = Result.PLAIN
    assert stage.reconciler.reconcile(mail(1, proxy_protocol="v1")).outcome is Outcome.REFUSED
    assert {(handshake.version, handshake.result) for handshake in stage.store.handshakes()} == {
        ("v2", "speaks_proxy"),
        ("v1", "plain"),
    }


def test_a_refused_server_is_not_knocked_at_while_it_is_believed(stage: Stage):
    stage.believe = 300.0
    stage.prober.odd["192.0.2.1:1"] = Result.PLAIN
    stage.reconciler.reconcile(mail(1))
    stage.prober.probed_open.clear()
    stage.reconciler.reconcile(mail(1))
    assert stage.prober.probed_open == []


def test_a_rollback_is_not_put_to_the_proof(stage: Stage):
    stage.mode = ProbeMode.REQUIRE
    stage.live(mail(1))
    stage.live(mail(2, application="imap"))
    stage.prober.odd["192.0.2.1:1"] = Result.PLAIN
    report = stage.reconciler.rollback(1, None)
    assert report.outcome is Outcome.COMMITTED
    assert any("does not take it" in finding.message for finding in report.findings)


def test_where_nobody_is_asked_nobody_is_doubted(stage: Stage):
    stage.prober.odd["192.0.2.1:1"] = Result.SILENT
    stage.live(mail(1))
    stage.mode = ProbeMode.OFF
    assert not [finding for finding in stage.reconciler.reconcile(mail(1)).findings if finding.where.endswith("s1")]


def test_a_server_that_refuses_a_handshake_starts_as_down(stage: Stage):
    stage.live(mail(1))
    stage.prober.odd["192.0.2.1:2"] = Result.REFUSED
    stage.live(mail(1, 2))
    assert ("tell", "set server smtp/s2 health down") in stage.proxy.calls


def test_whom_a_handshake_has_reached_is_knocked_at_only_where_its_check_knocks(stage: Stage):
    stage.live(mail(1, health={"port": 99}))
    assert stage.prober.probed_open == ["192.0.2.1:99"]


def test_what_was_found_is_kept_for_servers_that_are_there(stage: Stage):
    stage.live(mail(1, 2))
    stage.live(mail(2, 3))
    assert [handshake.server for handshake in stage.store.handshakes()] == ["s1", "s2", "s3"]  # s1 may be put back
    stage.live(mail(2, 3, 4))
    assert [handshake.server for handshake in stage.store.handshakes()] == ["s2", "s3", "s4"]
    generation = json.loads((stage.store.state / "generations/000003/handshakes.json").read_bytes())
    assert [one["server"] for one in generation] == ["s4"]


ODD = json.dumps(
    [
        {
            **dict.fromkeys(("backend", "server", "address", "application", "version", "detail", "subject"), "x"),
            "digest": "d",
            "milliseconds": 1,
            "at": 1,
            "result": "of_a_later_version",
        }
    ]
).encode()


@pytest.mark.parametrize("junk", [b"", b"{", b"{}", b"[1]", b'[{"backend": "smtp"}]', ODD, b"\xff", b"[" * 100_000])
def test_a_broken_memory_is_an_empty_one(stage: Stage, junk: bytes):
    stage.live(mail(1))
    (stage.store.state / "handshakes.json").write_bytes(junk)
    assert stage.store.handshakes() == ()
    assert stage.reconciler.reconcile(mail(1)).outcome is Outcome.UNCHANGED


def test_a_memory_that_cannot_be_written_costs_no_change(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(Store, "set_handshakes", full)
    stage.live(mail(1))
    assert stage.store.handshakes() == ()


def test_a_preview_tells_what_was_found_and_that_it_would_be_refused(stage: Stage):
    stage.prober.odd["192.0.2.1:1"] = Result.PLAIN
    preview = stage.reconciler.assessor.preview(mail(1, 2))
    assert [handshake.result for handshake in preview.handshakes] == ["plain", "speaks_proxy"]
    assert "does not take it" in preview.objections[0]
    assert stage.store.handshakes() == ()
