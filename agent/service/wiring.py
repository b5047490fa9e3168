"""The composition root: this host's parts, put together from the settings.

Only commands import this, each where it needs it: so `agent --version` does not pay for it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.haproxy.config import CONFIG_TEMPLATE
from agent.host import templates
from agent.host.desired_file import Intake
from agent.host.event_log import EventLog
from agent.host.file_writes import Writes
from agent.host.global_section import process_of
from agent.host.haproxy_process import HAProxy
from agent.host.limits import limits_of
from agent.host.notifier import Notices
from agent.host.probes import HostProber
from agent.host.resolver import Resolver
from agent.host.store import Store
from agent.reconcile.assessor import Assessor, Preview
from agent.reconcile.ports import Environment
from agent.reconcile.reconciler import Reconciler
from agent.service.live_backup import LiveBackup
from agent.service.loop import Loop
from agent.service.publisher import Publisher
from agent.settings import Settings
from agent.view import events
from agent.view.status import Status, from_json

RESYNC_SHARE = 0.6  # of the time between two resyncs an answer of the resolver is believed
BELIEVE_SECONDS = 300.0  # a PROXY probe is a line in a mail server's log


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
    """The parts of this host. `command`: which of the agent's commands; `file`: how messages name the document."""

    def __init__(
        self,
        settings: Settings,
        *,
        command: str,
        file: Path | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:
        is_service = command == "run"
        self.settings: Settings = settings
        self.store: Store = Store(settings.state, settings.run, keep=settings.apply.keep_generations)
        self.intake: Intake = Intake(settings, self.store)
        self.backup: LiveBackup = LiveBackup(self.store, self.intake)
        self.proxy: HAProxy = HAProxy(
            binary=settings.haproxy.binary,
            process_name=settings.haproxy.process_name,
            state=settings.state,
            run=settings.run,
            start_timeout=settings.apply.verify_timeout / 1000,
            max_draining=settings.haproxy.max_draining,
        )
        prober = HostProber(self.store.config)
        # As with probes: a person who applies wants it asked now. The service asks at each resync, not at each change.
        names = Resolver(believe_seconds=settings.apply.resync / 1000 * RESYNC_SHARE if is_service else 0.0)
        environment = Environment(proxy=self.proxy, store=self.store, prober=prober, clock=SystemClock(), names=names)
        self.assessor: Assessor = Assessor(
            file=file or settings.desired,
            max_bytes=settings.sync.max_bytes,
            limits=limits_of(settings),
            process=process_of(settings),
            template=lambda: templates.load(CONFIG_TEMPLATE, settings.paths.templates),
            environment=environment,
            probe=settings.apply.probe,
            # A person who applies wants everything asked now; the service reads a refused file every 30 seconds.
            believe_seconds=BELIEVE_SECONDS if is_service else 0.0,
        )
        notices = Notices(settings.notify.command) if is_service else None
        self.events: EventLog | None = None
        if is_service:
            self.events = EventLog(self.store, notices, document=events.event_document)
            before = from_json(self.store.status(), Status)
            self.events.start(events.unserved(before) if before else None)
        self.publisher: Publisher = Publisher(
            settings,
            command=command,
            store=self.store,
            intake=self.intake,
            proxy=self.proxy,
            assessor=self.assessor,
            events=self.events,
        )
        reconciler = Reconciler(
            assessor=self.assessor,
            environment=environment,
            verify_seconds=settings.apply.verify_timeout / 1000,
            # A person who applies by hand is not made to wait; a file that is changed without end is.
            burst=settings.haproxy.max_draining if is_service else sys.maxsize,
            on_stage=on_stage or (self.publisher.progress if is_service else lambda _: None),
            verify=self.intake.verify,
            admit=self.backup.admit,
        )
        self.loop: Loop = Loop(
            store=self.store,
            intake=self.intake,
            backup=self.backup,
            assessor=self.assessor,
            reconciler=reconciler,
            publisher=self.publisher,
            writes=Writes(settings.desired),
            notices=notices,
        )

    def preview(self, data: bytes) -> Preview:
        """What `data` would do here, as far as HAProxy accepts it. Raises InvalidError, RefusedError, PolicyError."""
        preview = self.assessor.preview(data, admit=self.backup.admit)
        with tempfile.TemporaryDirectory(prefix="edgeagent-plan-") as folder:
            staged = Path(folder) / "haproxy.cfg"
            staged.write_bytes(preview.config)
            self.proxy.check_aside(staged)
        return preview
