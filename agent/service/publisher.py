"""What becomes known of the agent: status.json, metrics and the page, events, canaries."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import evolve

from agent import __version__
from agent.desired.addresses import endpoint
from agent.desired.identity import digest_of
from agent.errors import NoAnswerError, Outcome, StoreError, UsageError
from agent.haproxy.observed import Observation
from agent.host.desired_file import Intake
from agent.host.event_log import EventLog
from agent.host.haproxy_process import HAProxy
from agent.host.processes import usage
from agent.host.stats_socket import StatsSocket
from agent.host.store import Identity, Store
from agent.proxy_protocol import canary
from agent.proxy_protocol.canary import CanaryResult
from agent.reconcile.assessor import Assessor
from agent.reconcile.event import Event, Kind, repeats
from agent.reconcile.report import Report
from agent.settings import Settings
from agent.view import events
from agent.view.assemble import assemble
from agent.view.in_sync import not_in_sync
from agent.view.status import AgentStatus, NotInSync, Status, to_json, when

if TYPE_CHECKING:  # half of the start of a command that serves no metrics
    from agent.view.metrics import Facts
    from agent.view.routes import Site

MAX_SHOWN_EVENTS = 20  # in status.json
SCRAPE_SECONDS = 1.0  # what a scrape waits for HAProxy
STALLED_SECONDS = 60.0  # a service that has not looked for so long is not alive
CANARY_SECONDS = 1.0  # that long a change may have to wait at a resync where an echo is away
STATUS_SECONDS = 5.0
BRIEF_SECONDS = 0.9  # each health tick, where a brief observation is cheap
STATUS_SHARE = 200  # a status that takes 100 ms to make is made every 20 s: half a percent of a core

_OUTCOMES = (Kind.REFUSED, Kind.ROLLED_BACK)
_log = logging.getLogger("agent")


class Publisher:
    """Of one agent. `last`: the report of the last reconcile. `unread`: why the desired file is not read now.

    `waiting`: why it was read and is not applied yet.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        command: str,
        store: Store,
        intake: Intake,
        proxy: HAProxy,
        assessor: Assessor,
        events: EventLog | None,
    ) -> None:
        self._settings, self._command, self._store, self._intake = settings, command, store, intake
        self._proxy, self._assessor, self._events = proxy, assessor, events
        self.last: Report | None = None
        self.unread = ""
        self.waiting = ""
        self._started = time.time()
        self._counters: Counter[str] = Counter()
        self._canary_results: tuple[CanaryResult, ...] = ()
        self._haproxy = ""  # its version, as it reported itself
        self._digest: str | None = None  # of the document that is reconciled
        self._file_id: Identity | None = None  # of the very file that the last report is about
        self._busy = False  # a reconcile is under way, which readers must not slow down
        self._site: Site | None = None
        self._ticked = time.monotonic()
        self._publish_at = self._brief_at = 0.0
        self._backends_up: frozenset[str] | None = None  # at the last brief observation
        self._trouble = ""  # the last error of writing status.json

    # --- what happened

    @contextlib.contextmanager
    def changing(self, digest: str | None, files: tuple[Identity | None, Identity | None] | None) -> Iterator[None]:
        """While the document with this digest, of these files, is reconciled."""
        self._digest, self._file_id, self._busy = digest, files[0] if files else None, True
        try:
            yield
        finally:
            self._busy = False

    def progress(self, stage: str) -> None:
        """A stage has begun."""
        with contextlib.suppress(StoreError):  # a full run folder costs the progress
            self._store.write_progress(self._digest, stage)

    def note(self, report: Report) -> None:
        """Count, record and publish what became of a document."""
        before, self.last, self.waiting = self.last, evolve(report, observed=None), ""
        switched = report.outcome in (Outcome.COMMITTED, Outcome.DEGRADED, Outcome.ROLLED_BACK) and report.switched
        self._counters["reloads"] += switched and report.plan == "reload"
        self._counters["runtime_updates"] += switched and report.plan == "runtime"
        self._counters["rollbacks"] += report.outcome is Outcome.ROLLED_BACK and report.switched
        for kind in report.drift:
            self._counters[f"drift_corrections.{kind}"] += 1
        happened = events.events_of(report)
        refusal = events.refusal_of(report)
        repeated = before is not None and (before.digest, before.outcome) == (report.digest, report.outcome)
        if refusal is not None and not repeated and not repeats(refusal, self._store.events()):
            happened.append(refusal)
        if happened:
            self._record(happened, report)
        if self._site is not None and (report.switched or events.is_news(before, report)):
            self._site.metrics.note(report)
        self.publish(report.observed)

    def _record(self, happened: list[Event], report: Report) -> None:
        """The service also sends them; what was refused or rolled back is sent as its outcome."""
        if self._events is None:
            with contextlib.suppress(StoreError):  # the outcome counts, not the record of it
                self._store.add_events(happened)
            return
        self._events.take([event for event in happened if event.kind not in _OUTCOMES], report.at)
        with contextlib.suppress(StoreError):
            self._store.add_events([event for event in happened if event.kind in _OUTCOMES])
            self._events.write()

    def write_events(self) -> None:
        """Keep what was sent meanwhile. The caller holds the lock."""
        if self._events is not None:
            self._events.write()

    def try_canaries(self) -> None:
        """Whether clients' addresses get through: tried at every resync, and after every change."""
        live = self._assessor.live_state()
        state = live[1] if live else None
        names = canary.canaries(state) if state else ()
        if live is None or state is None or not names:
            self._canary_results = ()
            return
        from agent.host import canary_probe

        left_out = [bind.address for bind in live[0].quarantined]
        canary_results = canary_probe.go(canary.canary_probes(state, names, without=left_out), seconds=CANARY_SECONDS)
        before = {(arrival.address, arrival.preserved) for arrival in self._canary_results}
        for finding in canary.findings(new for new in canary_results if (new.address, new.preserved) not in before):
            _log.warning("%s: %s", finding.where, finding.message)
        self._canary_results = canary_results
        self.publish()

    # --- status.json

    def tick(self) -> None:
        """The service is alive."""
        self._ticked = time.monotonic()

    def refresh(self) -> bool:
        """Renew the status where it is due, large ones less often. Whether HAProxy answers.

        A whole status is made every few seconds; a backend that is down, or up again, is noticed within one.
        """
        start = time.monotonic()
        if start >= self._publish_at:
            return self.publish()
        if start < self._brief_at:
            return self._proxy.running() is not None
        try:
            up = self._proxy.backends_up()
        except NoAnswerError:
            return False
        self._brief_at = start + max(BRIEF_SECONDS, (time.monotonic() - start) * STATUS_SHARE)
        before, self._backends_up = self._backends_up, up
        return True if before == up else self.publish()

    def publish(self, observed: Observation | None = None) -> bool:
        """Write the status. Whether HAProxy answered. A full run folder is logged once, and ends nothing.

        `observed`: HAProxy just now, None where it has to be asked.
        """
        start = time.monotonic()
        status = self.status(observed)
        if self._site is not None:
            self._show(self._site, status)
        if self._events is not None:
            self._events.look(events.unserved(status), time.time())
        trouble = ""
        try:
            self._store.prepare()
            self._store.write_status(to_json(status))
        except StoreError as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            _log.error("%s", trouble)
        self._trouble = trouble
        self._publish_at = start + max(STATUS_SECONDS, (time.monotonic() - start) * STATUS_SHARE)
        return status.haproxy is not None

    def status(self, observed: Observation | None = None) -> Status:
        """The status as of now."""
        live = self._assessor.live_state()
        with contextlib.suppress(NoAnswerError):  # said in the status: "haproxy": null
            observed = observed or self._proxy.observe()
            self._haproxy = observed.process.version
            if self._site is not None:
                self._site.metrics.totals.seen(observed)
        return assemble(
            agent=AgentStatus(version=__version__, pid=os.getpid(), command=self._command, started=when(self._started)),
            report=self.last,
            live=live[0] if live else None,
            state=live[1] if live else None,
            hold=self._store.hold(),
            trouble=self._not_in_sync(),
            events=self._store.events()[-MAX_SHOWN_EVENTS:],
            observed=observed,
            handshakes=self._assessor.remembered(),
            canary_results=self._canary_results,
            file_id=self._file_id,
            counters=dict(self._counters),
            drains=self._store.drains(),
            now=time.time(),
        )

    def _not_in_sync(self) -> NotInSync | None:
        live, hold, report = self._store.live(), self._store.hold(), self.last
        wanted = report.digest if report is not None else None
        if self._command in ("status", "rollback"):  # they read another document than the desired one, or none
            data = self._intake.desired()
            wanted = digest_of(data) if isinstance(data, bytes) else None
        return not_in_sync(
            report=report,
            wanted=wanted,
            live=live,
            hold=hold,
            pending=self.unread or self.waiting,
            missing=not self._intake.file.exists() and not self._intake.file.is_symlink(),
        )

    # --- over HTTP

    @contextlib.contextmanager
    def web(self) -> Iterator[None]:
        """Metrics and the status page, where the settings say so. An address that is taken costs only them."""
        chosen = self._settings.metrics
        if not chosen.listen:
            yield
            return
        from agent.host import http_server
        from agent.view.routes import Site

        try:
            listen = http_server.Listen(
                address=endpoint(chosen.listen),
                certificate=chosen.certificate,
                key=chosen.key,
                passwords=chosen.passwords,
            )
        except ValueError as error:
            raise UsageError(f"metrics.listen: {error}") from error
        site = self._site = Site(
            look=self._scrape,
            usage=lambda: usage(self._store.config),
            alive=lambda: time.monotonic() - self._ticked < STALLED_SECONDS,
            busy=lambda: self._busy,
            docs=chosen.docs,
        )
        self._show(site, self.status())
        routes = {
            path: lambda accept, make=make: http_server.Answer(**make(accept)) for path, make in site.routes.items()
        }
        with contextlib.ExitStack() as serving:
            try:
                where = serving.enter_context(http_server.serving(listen, routes))
            except UsageError as error:
                _log.error("%s (%s)", error, error.remedy or "look at metrics in agent.toml")
            else:
                _log.info("metrics and status at http%s://%s/", "s" * bool(chosen.certificate), where)
            yield

    def _show(self, site: Site, status: Status) -> None:
        """What is answered over HTTP from here on. The history is read where there is a new generation."""
        site.facts, site.status = self._facts(in_sync=status.in_sync), status
        number = site.facts.live.number if site.facts.live else None
        if not site.history or site.history[-1].number != number:
            site.history = self._store.generations()

    def _scrape(self) -> Observation | None:
        """HAProxy now, in a second at most; for another thread than the service's own."""
        with contextlib.suppress(NoAnswerError, UsageError):
            return StatsSocket(self._store.run / "haproxy.sock", SCRAPE_SECONDS).observe()
        return None

    def _facts(self, *, in_sync: bool) -> Facts:
        from agent.view.metrics import Facts

        live = self._assessor.live_state()
        return Facts(
            version=__version__,
            haproxy=self._haproxy,
            live=live[0] if live else None,
            state=live[1] if live else None,
            hold=self._store.hold(),
            in_sync=in_sync,
            silent=self.last.silent if self.last else frozenset(),
            read=self.last.at if self.last else None,
            counters=dict(self._counters),
            handshakes=self._assessor.remembered(),
            canary_results=self._canary_results,
        )
