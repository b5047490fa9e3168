"""The composition root: this host's parts put together from the settings, and what a command does with all of them.

Only `cli` imports this; it is here so that a command's import is paid by the commands that need it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.converge import Story
from agent.errors import InvalidError, LaterError, NoAnswerError, Outcome, StoreError, UsageError, Violation
from agent.host import templates
from agent.host.eventlog import EventLog
from agent.host.haproxy import HAProxy, file_limit, find_ca_file, peers_socket
from agent.host.lock import ServiceLock
from agent.host.notice import Notices
from agent.host.prober import HostProber
from agent.host.processes import usage
from agent.host.runtime import StatsSocket
from agent.host.store import Identity, Store
from agent.host.writes import Writes
from agent.intake import Intake
from agent.model import canary
from agent.model.canary import Arrival
from agent.model.desired import Limits, Parsed, digest_of
from agent.model.event import Event, Kind
from agent.model.generation import Generation
from agent.model.observed import Observation
from agent.model.render import CONFIG_TEMPLATE, Process
from agent.model.report import Report
from agent.model.schema import endpoint
from agent.ports import Ports
from agent.settings import Settings
from agent.survey import Proposal, Survey
from agent.view import news
from agent.view import status as view
from agent.view.insync import NotInSync, not_in_sync
from agent.view.shape import is_status

WRITING_SECONDS = 0.5  # until the next look at a file that is being written when the service starts
BUSY_SECONDS = 0.1  # until the next try where another process has the lock
SHOWN_EVENTS = 20  # in status.json
SCRAPE_SECONDS = 1.0  # what a scrape waits for HAProxy
DEAF_SECONDS = 60.0  # a service that has not looked for so long is not alive
CANARY_SECONDS = 1.0  # that long a change may have to wait at a resync where an echo is away
BELIEVE_SECONDS = 300.0  # a probe is a line in a mail server's log
STATUS_SECONDS = 5.0
GLANCE_SECONDS = 0.9  # each health tick, where a glance is cheap
STATUS_SHARE = 200  # a status that takes 100 ms to make is made every 20 s: half a percent of a core

if TYPE_CHECKING:  # half of the start of a command that serves no metrics
    from agent.view.metrics import Facts
    from agent.view.site import Site

_log = logging.getLogger("agent")


class SystemClock:
    """The host's own clocks."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds, for durations."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait where nothing else can be waited for."""
        time.sleep(seconds)  # each caller has its reason beside it


class Host:
    """The parts of this host, put together from the settings."""

    def __init__(
        self,
        settings: Settings,
        *,
        command: str,
        file: Path | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:

        # A large state is half a million objects that live on; collecting among them costs a tenth of each converge.
        gc.set_threshold(100_000, 20, 20)
        self._settings = settings
        self._notices = Notices(settings.notify.command) if command == "run" else None
        self._command = command
        self._started = time.time()
        self._last: Report | None = None
        self._counters: Counter[str] = Counter()
        self._site: Site | None = None
        self._ticked = time.monotonic()
        self._haproxy = ""  # its version, as it said itself
        self.writes: Writes = Writes(settings.desired)
        self._data: bytes | InvalidError | None = None  # what was read of the desired file last
        self._pending = ""  # why the desired file is not read now
        self._delayed = ""  # why it was read and is not applied yet
        self._looked_at: tuple[Identity | None, Identity | None] | None = None
        self._digest: str | None = None  # of the document that is looked at
        self._changing = False  # a look is under way, which readers must not slow down
        self._trouble = ""  # the last thing said of status.json
        self._publish_at = 0.0
        self._glance_at = 0.0
        self._backends_up: frozenset[str] | None = None  # at the last glance
        self._looked: tuple[Identity | None, ...] | None = None  # generations and hold, after the last look
        self._kept: tuple[Generation, bytes, bytes] | None = None  # what is live: record, document, haproxy.cfg
        self._arrivals: tuple[Arrival, ...] = ()
        self.store: Store = Store(settings.state, settings.run, keep=settings.apply.keep_generations)
        self.intake: Intake = Intake(settings, self.store)
        self.events: EventLog | None = None
        if command == "run":
            self.events = EventLog(self.store, self._notices, document=news.event_document)
            before = self.store.status()
            self.events.start(news.unserved(before) if is_status(before) else None)
        self.proxy: HAProxy = HAProxy(
            binary=settings.haproxy.binary,
            process_name=settings.haproxy.process_name,
            state=settings.state,
            run=settings.run,
            start_timeout=settings.apply.verify_timeout / 1000,
            max_draining=settings.haproxy.max_draining,
        )
        ports = Ports(proxy=self.proxy, store=self.store, prober=HostProber(self.store.config), clock=SystemClock())
        self.survey: Survey = Survey(
            file=file or settings.desired,
            max_bytes=settings.sync.max_bytes,
            limits=Limits(process_maxconn=settings.haproxy.maxconn, file_limit=file_limit()),
            process=process_of(settings),
            template=lambda: templates.load(CONFIG_TEMPLATE, settings.paths.templates),
            ports=ports,
            probe=settings.apply.probe,
            # A person who applies wants everything asked now; the service looks at a refused file every 30 seconds.
            believe_seconds=BELIEVE_SECONDS if command == "run" else 0.0,
        )
        self.story: Story = Story(
            survey=self.survey,
            ports=ports,
            verify_seconds=settings.apply.verify_timeout / 1000,
            # A person who applies by hand is not made to wait; a file that never rests is.
            burst=settings.haproxy.max_draining if command == "run" else sys.maxsize,
            on_stage=on_stage or (self._progress if command == "run" else lambda _: None),
            verify=self.intake.verify,
            admit=self.admit,
        )

    @contextlib.contextmanager
    def web(self) -> Iterator[None]:
        """Metrics and the status page, where the settings say so. An address that is taken costs only them."""
        chosen = self._settings.metrics
        if not chosen.listen:
            yield
            return
        from agent.host import web
        from agent.view.site import Site

        try:
            listen = web.Listen(
                address=endpoint(chosen.listen),
                certificate=chosen.certificate,
                key=chosen.key,
                passwords=chosen.passwords,
            )
        except ValueError as error:
            raise UsageError(f"metrics.listen: {error}") from error
        self._site = Site(
            look=self._scrape, usage=lambda: usage(self.store.config), alive=self._alive, busy=lambda: self._changing
        )
        self._show(self._site, self.status(self._last))
        routes = {
            path: lambda accept, make=make: web.Answer(**make(accept)) for path, make in self._site.routes.items()
        }
        with contextlib.ExitStack() as open_for:
            try:
                where = open_for.enter_context(web.serving(listen, routes))
            except UsageError as error:
                _log.error("%s (%s)", error, error.remedy or "look at metrics in agent.toml")
            else:
                _log.info("metrics and status at http%s://%s/", "s" * bool(chosen.certificate), where)
            yield

    def _show(self, site: Site, document: dict[str, Any]) -> None:
        """What whoever asks over HTTP is told from here on. The history is read where there is a new one."""
        site.facts, site.document = self._facts(in_sync=document["in_sync"]), document
        if not site.history or site.history[-1].number != site.facts.generation:
            site.history = self.store.generations()

    def _scrape(self) -> Observation | None:
        """HAProxy now, in a second at most; for another thread than the service's own."""
        with contextlib.suppress(NoAnswerError, UsageError):
            return StatsSocket(self.store.run / "haproxy.sock", SCRAPE_SECONDS).observe()
        return None

    def _alive(self) -> bool:
        return time.monotonic() - self._ticked < DEAF_SECONDS

    def _facts(self, *, in_sync: bool) -> Facts:
        from agent.view.metrics import Facts

        live, report = self.survey.live(), self._last
        return Facts(
            version=__version__,
            haproxy=self._haproxy,
            state=live[1] if live else None,
            generation=live[0].number if live else None,
            digest=live[0].digest if live else "",
            name=live[0].name if live else "",
            serial=live[0].serial if live else None,
            since=live[0].at if live else None,
            quarantined=live[0].quarantined if live else (),
            held=self.store.hold() is not None,
            in_sync=in_sync,
            read=report.at if report else None,
            counters=dict(self._counters),
            handshakes=self.survey.remembered(),
            arrivals=self._arrivals,
        )

    @property
    def version(self) -> str:
        """For the log; a package that is being replaced is no reason not to serve."""
        try:
            return self.proxy.version()
        except UsageError as error:
            return f"({error})"

    def converge(self, *, force: bool = False, retry: bool = False) -> Report:
        """One converge of the desired file as it is now, and the status of it. The caller holds the lock."""
        if self._pending:  # the file is left alone; what was read of it before is wanted until it is whole
            data = self._data or self._live_document() or self._unread()
            request = self._data is not None
        else:
            self._looked_at = self.intake.identities()
            data = self._data = self.intake.desired()
            request = True
        asked = self.store.request()
        self._digest = digest_of(data) if isinstance(data, bytes) else None
        meant = asked is not None and asked.digest == self._digest
        force = force or (meant and asked is not None and asked.force)
        retry = retry or (meant and asked is not None and asked.retry)
        self._changing = True
        try:
            report = self.story.converge(data, force=force, retry=retry, request=request)
        finally:
            self._changing = False
        if asked is not None:
            with contextlib.suppress(StoreError):  # told already, where it matters
                self.store.set_request(None)
        self._told(report)
        if report.digest is not None and report.outcome not in (Outcome.INVALID, Outcome.REFUSED):
            self.intake.took(report.digest, report.serial)
        return report

    def _progress(self, stage: str) -> None:
        with contextlib.suppress(StoreError):  # a full run folder costs the progress
            self.store.write_progress(self._digest, stage)

    def propose(self, data: bytes) -> Proposal:
        """What `data` would do here, as far as HAProxy takes it. Raises InvalidError, RefusedError, PolicyError."""
        proposal = self.survey.propose(data, admit=self.admit)
        with tempfile.TemporaryDirectory(prefix="edgeagent-plan-") as folder:
            staged = Path(folder) / "haproxy.cfg"
            staged.write_bytes(proposal.config)
            self.proxy.check_aside(staged)
        return proposal

    def rollback(self, generation: int | None) -> Report:
        """Put a generation's document back, and hold the present file. The caller holds the lock."""
        present, self._looked_at = self.intake.desired(), None  # it is not the file that is looked at
        return self._told(self.story.rollback(generation, present if isinstance(present, bytes) else None))

    def _told(self, report: Report) -> Report:
        before, self._last = self._last, report
        self._delayed = ""
        self._count(report)
        if events := news.events_of(report):
            self._note(events, report)
        if self._site is not None and (report.switched or news.is_news(before, report)):
            self._site.metrics.note(report)
        self._publish()
        return report

    def _note(self, events: list[Event], report: Report) -> None:
        """Record what a look has found. The service tells it as well; what was put back is told by its outcome."""
        if self.events is None:
            with contextlib.suppress(StoreError):  # the outcome counts, not the record of it
                self.store.add_events(events)
            return
        told = [event for event in events if event.kind != Kind.ROLLED_BACK]
        self.events.take(told, report.at)
        with contextlib.suppress(StoreError):
            self.store.add_events([event for event in events if event.kind == Kind.ROLLED_BACK])
            self.events.write()

    def _count(self, report: Report) -> None:
        """What has happened since this agent started, for the status; the metrics are made from it."""
        switched = report.outcome in (Outcome.COMMITTED, Outcome.DEGRADED, Outcome.ROLLED_BACK) and report.switched
        self._counters["reloads"] += switched and report.plan == "reload"
        self._counters["runtime_updates"] += switched and report.plan == "runtime"
        self._counters["rollbacks"] += report.outcome is Outcome.ROLLED_BACK and report.switched
        for kind in report.drift:
            self._counters[f"drift_corrections.{kind}"] += 1

    def changed(self) -> bool:
        """Whether the desired file is another one than at the last converge: an event alone says nothing.

        One that was put in its place again, the very same bytes, is somebody's wish to have it looked at.
        """
        if self.intake.identities() != self._looked_at:
            return True
        data = self.intake.desired()
        return self._last is None or self._last.digest != (digest_of(data) if isinstance(data, bytes) else None)

    def keep_lock(self, lock: ServiceLock) -> bool:
        """Two agents never run on the same folders: take a folder that was made anew, or raise LockLostError.

        What was live is written back then: without it the next document would be the first one, whatever it ends.
        Returns whether to look at once.
        """
        try:
            anew = lock.keep(self.store.prepare)
            if anew:
                _log.warning("%s was removed; it is made anew, with what was live", self.store.state)
                with self.store.try_lock() as ours:
                    if ours:
                        self._write_back()
        except StoreError as error:  # a full disk, say: told by whatever needs the folder next
            _log.error("%s", error)
            return False
        return anew

    def _write_back(self) -> None:
        """Record the live generation once more, from memory. The caller holds the lock. Raises StoreError."""
        if self._kept is None or self.store.live() is not None:
            return
        generation, desired, config = self._kept
        self.store.prepare()
        self.store.stage(generation.number, desired=desired, config=config)
        self.store.commit(generation)
        self.store.swap(config)
        self.intake.took(generation.digest, generation.serial)

    def admit(self, parsed: Parsed) -> None:
        """Check a document against what is live. Raises PolicyError, StoreError.

        While somebody deletes the state folder, what is live is what this service remembers.
        """
        live = self.store.live()
        if live is None and self._kept is not None:
            live = self._kept[0]
            self._write_back()
        self.intake.admit(parsed, live)

    def _keep(self) -> None:
        """Remember what is live, for the case that the state folder is lost."""
        live = self.store.live()
        if live is not None and (self._kept is None or self._kept[0] != live):
            with contextlib.suppress(StoreError):
                self._kept = live, self.store.desired_of(live.number), self.store.config_of(live.number)

    def _live_document(self) -> bytes | None:
        """What is live, which goes on while a service that starts cannot read the desired file yet."""
        live = self.store.live()
        return None if live is None else self.store.desired_of(live.number)

    def _unread(self) -> InvalidError:
        return InvalidError(str(self.intake.file), (Violation((), self._pending),))

    def writing(self) -> float:
        """For how many seconds more the desired file must not be read; 0.0: it can be read.

        It is being written, or it takes frontends away and was written in place just now.
        """
        wait, why = self.writes.unfinished(), "it is being written"
        if not wait and (unconfirmed := self.writes.unconfirmed()) and (gone := self._taken_away()):
            names = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
            wait = unconfirmed
            why = f"it was written in place and takes frontends away ({names}); it counts once it is left unchanged"
        before, self._pending = self._pending, why if wait else ""
        if self._pending and self._pending != before:
            _log.info("%s is not read yet: %s", self.intake.file, why)
            if self._last is not None:  # else the first look is about to say more
                self._publish()
        return wait

    def _taken_away(self) -> list[str]:
        """The frontends that are live and not in the desired file as it is now."""
        live, data = self.survey.live(), self.intake.desired()
        if live is None or live[1] is None or not isinstance(data, bytes) or digest_of(data) == live[0].digest:
            return []
        with contextlib.suppress(InvalidError):
            wanted = {one.name for one in self.survey.read(data).state.frontends}
            return [one.name for one in live[1].frontends if one.name not in wanted]
        return []

    def converge_and_log(self) -> float:
        """What the service does at each look: converge, and log what is new.

        Returns in how many seconds to look again because it could not be done now; 0.0 where it was.
        """
        before = self._last
        wait = self.writing()
        if wait and self._data is None and self.store.live() is None:
            return min(wait, WRITING_SECONDS)  # nothing was read yet, and nothing serves that must be kept
        self.store.prepare()  # pfSense wipes /var/run while we run
        with self.store.try_lock() as ours:
            if not ours:
                return BUSY_SECONDS
            try:
                report = self.converge()
                self._looked = self.store.marks()
                self._keep()
                if self.events is not None:
                    self.events.write()  # what was told on the way, under this lock
            except LaterError as later:
                _log.info("%s", later)
                self._delayed, self._looked = str(later), self.store.marks()
                self._publish()
                return later.seconds
        self._try_canaries()
        if news.is_news(before, report):
            news.log(_log, report)
            if self._notices is not None:
                self._notices.tell(news.notice(before, report))
        return wait

    def _try_canaries(self) -> None:
        """Whether clients' addresses get through: tried at every resync, and after every change."""
        live = self.survey.live()
        names = canary.canaries(live[1]) if live else ()
        if not live or live[1] is None or not names:
            self._arrivals = ()
            return
        from agent.host import passage

        aside = [one.address for one in live[0].quarantined]
        found = passage.go(canary.passages(live[1], names, without=aside), seconds=CANARY_SECONDS)
        before = {(one.address, one.preserved) for one in self._arrivals}
        for finding in canary.findings(one for one in found if (one.address, one.preserved) not in before):
            _log.warning("%s: %s", finding.where, finding.message)
        self._arrivals = found
        self._publish()

    def healthy(self) -> bool:
        """Whether HAProxy answers; the status is renewed on the way, large ones less often."""
        self._ticked = time.monotonic()
        if self.store.live() is None:
            return True  # nothing to keep alive yet
        if self._looked is not None and self.store.marks() != self._looked:
            self._publish()
            return False  # a command of another process has put a generation or a hold in place: look at it
        if time.monotonic() >= self._publish_at:
            return self._publish()
        if time.monotonic() < self._glance_at:
            return self.proxy.running() is not None
        return self._glance()

    def _glance(self) -> bool:
        """A whole status is made every few seconds; a backend that has gone or is back is seen within one."""
        start = time.monotonic()
        try:
            up = self.proxy.backends_up()
        except NoAnswerError:
            return False
        self._glance_at = start + max(GLANCE_SECONDS, (time.monotonic() - start) * STATUS_SHARE)
        before, self._backends_up = self._backends_up, up
        return True if before == up else self._publish()

    def _publish(self) -> bool:
        """Write the status. Whether HAProxy answered. A full run folder is told once, and ends nothing."""
        start = time.monotonic()
        document = self.status(self._last)
        if self._site is not None:
            self._show(self._site, document)
        if self.events is not None:
            self.events.look(news.unserved(document), time.time())
        trouble = ""
        try:
            self.store.prepare()
            self.store.write_status(document)
        except StoreError as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            _log.error("%s", trouble)
        self._trouble = trouble
        took = time.monotonic() - start
        self._publish_at = start + max(STATUS_SECONDS, took * STATUS_SHARE)
        return document["haproxy"] is not None

    def status(self, report: Report | None) -> dict[str, Any]:
        """The status document as of now."""
        live, hold = self.survey.live(), self.store.hold()
        seen = None
        with contextlib.suppress(NoAnswerError):  # said in the document: "haproxy": null
            seen = self.proxy.observe()
            self._haproxy = seen.process.version
            if self._site is not None:
                self._site.metrics.totals.seen(seen)
        return view.document(
            agent=view.Agent(version=__version__, pid=os.getpid(), started=self._started, command=self._command),
            report=report,
            live=None
            if live is None
            else view.Live(
                generation=live[0].number,
                digest=live[0].digest,
                name=live[0].name,
                serial=live[0].serial,
                since=live[0].at,
                state=live[1],
                quarantined=live[0].quarantined,
            ),
            held=None if hold is None else view.Held(digest=hold.digest, reason=hold.reason, since=hold.since),
            trouble=self._not_in_sync(report),
            events=[news.event_document(event) for event in self.store.events()[-SHOWN_EVENTS:]],
            seen=seen,
            handshakes=self.survey.remembered(),
            arrivals=self._arrivals,
            file_id=self._looked_at[0] if report is self._last and self._looked_at else None,
            counters=dict(self._counters),
            now=time.time(),
        )

    def _not_in_sync(self, report: Report | None) -> NotInSync | None:
        live, hold = self.store.live(), self.store.hold()
        wanted = report.digest if report is not None else None
        if self._command in ("status", "rollback"):  # they look at another document than the desired one, or at none
            data = self.intake.desired()
            wanted = digest_of(data) if isinstance(data, bytes) else None
        return not_in_sync(
            report=report,
            wanted=wanted,
            live=live.digest if live else None,
            live_since=live.at if live else 0.0,
            held=(hold.digest, hold.reason) if hold else None,
            pending=self._pending or self._delayed,
            missing=not self.intake.file.exists() and not self.intake.file.is_symlink(),
        )


def process_of(settings: Settings) -> Process:
    """What haproxy.cfg says of the process itself."""
    chosen = settings.haproxy
    return Process(
        socket=PurePosixPath(settings.run / "haproxy.sock"),
        server_state=PurePosixPath(settings.run / "server-state"),
        maxconn=chosen.maxconn,
        hard_stop_after=chosen.hard_stop_after,
        user=chosen.user,
        group=chosen.group,
        chroot=chosen.chroot,
        log=chosen.log,
        ca_file=chosen.ca_file or find_ca_file(),
        peers=peers_socket(settings.run, chosen.chroot),
    )
