"""What Prometheus reads: every metric of the agent, made at each scrape out of facts and one look at HAProxy.

Labels are names of the desired state, which are bounded and checked; nothing that came from the network is one. Totals
of frontends go on over reloads: a new process counts from zero, and what the one before it had counted is added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from attrs import field, frozen
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from agent.desired.schema import DesiredState
from agent.errors import Outcome
from agent.haproxy.observed import FrontendStats, Observation
from agent.proxy_protocol import canary
from agent.proxy_protocol.canary import CanaryResult
from agent.proxy_protocol.greetings import mismatch
from agent.proxy_protocol.record import Asked, Handshake
from agent.reconcile.generation import Generation, Hold
from agent.reconcile.report import Report
from agent.reconcile.stages import STAGES
from agent.view.assemble import Index, frontend_state

PREFIX = "edgeagent_"
BUCKETS = (0.05, 0.5, 5)  # seconds
_TIMED = STAGES[1:]  # what a crash left is no part of a change
_BACKEND_STATES = ("up", "down", "maintenance", "draining")


@frozen(kw_only=True)
class Usage:
    """What processes use. None where it cannot be known (no psutil)."""

    processes: Mapping[str, int]
    """how many HAProxy processes there are, by role: serving, draining"""
    memory: int | None = None
    """bytes of all of them"""
    files: int | None = None
    """open files of all of them"""
    agent: Mapping[str, float] = field(factory=dict)
    """of the agent's own process, by the names of the Prometheus clients"""


@frozen(kw_only=True)
class Facts:
    """All that metrics are made of, but for the look at HAProxy. Times in seconds since the epoch."""

    version: str
    """of the agent"""
    haproxy: str = ""
    """version of HAProxy"""
    live: Generation | None = None
    """the live generation"""
    state: DesiredState | None = None
    """what it serves"""
    hold: Hold | None = None
    """the document that is held"""
    silent: frozenset[str] = frozenset()
    """host names of servers that do not resolve"""
    in_sync: bool = False
    """whether the desired state is what is live"""
    read: float | None = None
    """when the desired state was read last"""
    counters: Mapping[str, int] = field(factory=dict)
    """by name"""
    handshakes: Mapping[Asked, Handshake] = field(factory=dict)
    """what servers were found to be"""
    canary_results: tuple[CanaryResult, ...] = ()
    """the last canary probes"""
    usage: Usage | None = None
    """of processes"""


class Totals:
    """Counts of frontends that go on when a new process begins at zero."""

    def __init__(self) -> None:
        self._process: tuple[int, int | None] | None = None
        self._gone: set[tuple[int, int | None]] = set()
        self._base: dict[str, tuple[int, int, int, int]] = {}
        self._last: dict[str, tuple[int, int, int, int]] = {}
        self._lock = threading.Lock()

    def seen(self, look: Observation) -> None:
        """Take note of a look; each but the newest process's last one is added to what follows.

        A look at a process that was replaced since, by another thread, comes too late: it is counted already.
        """
        process = (look.process.pid, look.process.generation)
        with self._lock:
            if process in self._gone:
                return
            if self._process is None:  # what it counted before this agent began is no increase
                self._base = {frontend.name: _minus(_counts(frontend)) for frontend in look.frontends}
            if process != self._process:
                for name, last in self._last.items():
                    self._base[name] = _plus(self._base.get(name), last)
                if self._process is not None:
                    self._gone.add(self._process)
                self._process, self._last = process, {}
            for frontend in look.frontends:
                now = _counts(frontend)
                before = self._last.get(frontend.name, now)
                self._last[frontend.name] = max(now, before, key=sum)  # two looks may come in the wrong order

    def of(self, name: str) -> tuple[int, int, int, int]:
        """Connections, denied ones, bytes in and out, since this agent began to look."""
        with self._lock:
            return _plus(self._base.get(name), self._last.get(name))


def _counts(frontend: FrontendStats) -> tuple[int, int, int, int]:
    return (frontend.connections, frontend.denied, frontend.bytes_in, frontend.bytes_out)


def _minus(counts: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (-counts[0], -counts[1], -counts[2], -counts[3])


def _plus(
    counts: tuple[int, int, int, int] | None, other: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int]:
    a, b = counts or (0, 0, 0, 0), other or (0, 0, 0, 0)
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


class Metrics:
    """A registry of its own. `facts`: the newest; `look`: HAProxy now, None where it does not answer in time."""

    def __init__(self, facts: Callable[[], Facts], look: Callable[[], Observation | None]) -> None:
        # A time beside each count, in a format that few read.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # has no types
        self.totals = Totals()
        self.registry = CollectorRegistry(auto_describe=False)
        self._applies = Counter(
            f"{PREFIX}applies", "Reconciles that changed something or were asked for, by outcome", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        for outcome in Outcome:
            self._applies.labels(outcome.value)
        self._durations = Histogram(
            f"{PREFIX}apply_duration_seconds", "Duration of each stage of a change", ["stage"], buckets=BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        for stage in _TIMED:
            self._durations.labels(stage)
        self.registry.register(_Now(facts, look, self.totals))

    def note(self, report: Report) -> None:
        """A reconcile that counts: it changed something, or was asked for."""
        self._applies.labels(report.outcome.value).inc()
        if report.switched:
            for stage, seconds in report.timings:
                if stage in _TIMED:
                    self._durations.labels(stage).observe(seconds)

    def text(self, *, open_metrics: bool) -> tuple[str, bytes]:
        """Content type and body."""
        if open_metrics:
            return openmetrics.CONTENT_TYPE_LATEST, bytes(openmetrics.generate_latest(self.registry))  # type: ignore[no-untyped-call]
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)


class _Now(Collector):
    """Everything that is true at the moment of a scrape."""

    def __init__(self, facts: Callable[[], Facts], look: Callable[[], Observation | None], totals: Totals) -> None:
        self._facts, self._look, self._totals = facts, look, totals
        self._known: Observation | None = None

    def collect(self) -> Iterator[Metric]:
        """Never raises for HAProxy's sake: what is not known now is as it was last, and haproxy_up says so."""
        facts, look = self._facts(), self._look()
        if look is not None:
            self._known = look
            self._totals.seen(look)
        observed = self._known
        yield _gauge("haproxy_up", "Whether HAProxy answered this scrape", look is not None)
        yield from _agent(facts)
        if facts.state is not None:
            yield from _frontends(facts, facts.state, observed, self._totals)
            yield from _backends(facts, facts.state, observed)


def _gauge(name: str, help_text: str, value: float, unit: str = "") -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", help_text, value=float(value), unit=unit)


def _labelled(
    name: str, help_text: str, labels: list[str], rows: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}{name}", help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, float(value))
    return family


def _counted(
    name: str, help_text: str, labels: list[str], rows: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}{name}", help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, float(value))
    return family


def _agent(facts: Facts) -> Iterator[Metric]:
    counters = facts.counters
    kinds = ("file", "frontend", "process", "server")
    drift = {kind: counters.get(f"drift_corrections.{kind}", 0) for kind in kinds}
    yield _counted("reloads", "Hot reloads of HAProxy", [], [((), counters.get("reloads", 0))])
    yield _counted(
        "runtime_updates",
        "Changes applied at runtime, without a reload",
        [],
        [((), counters.get("runtime_updates", 0))],
    )
    yield _counted(
        "rollbacks",
        "Changes that made a frontend unhealthy and were rolled back",
        [],
        [((), counters.get("rollbacks", 0))],
    )
    yield _counted(
        "drift_corrections", "Differences from the live state that were corrected", ["kind"],
        (((kind,), count) for kind, count in drift.items()),
    )  # fmt: skip
    yield _gauge("in_sync", "Whether the desired state is what is live", facts.in_sync)
    yield _gauge("held", "Whether a document is held: it is not applied again until it changes", facts.hold is not None)
    live = facts.live
    if live is not None:
        yield _gauge("live_generation", "Number of the live generation", live.number)
        yield _gauge("live_timestamp_seconds", "When the live generation was committed", live.at)
    if facts.read is not None:
        yield _gauge("desired_read_timestamp_seconds", "When the desired state was read last", facts.read)
    info = InfoMetricFamily(f"{PREFIX}live", "The live document")
    serial = "" if live is None or live.serial is None else str(live.serial)
    about = {"digest": live.digest if live else "", "serial": serial, "name": live.name if live else ""}
    info.add_metric([], about)
    yield info
    build = InfoMetricFamily(f"{PREFIX}build", "Version of the agent and of HAProxy")
    build.add_metric([], {"version": facts.version, "haproxy": facts.haproxy})
    yield build
    if (usage := facts.usage) is not None:
        yield _labelled(
            "haproxy_processes", "HAProxy processes by role: serving or draining", ["role"],
            (((role,), count) for role, count in usage.processes.items()),
        )  # fmt: skip
        if usage.memory is not None:
            yield _gauge("haproxy_resident_memory_bytes", "Resident memory of all HAProxy processes", usage.memory)
        if usage.files is not None:
            yield _gauge("haproxy_open_fds", "Open files of all HAProxy processes", usage.files)
        for name, value in usage.agent.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"process_{name.removesuffix('_total')}", "Of the agent's own process")
            family.add_metric([], float(value))
            yield family


def _frontends(facts: Facts, state: DesiredState, observed: Observation | None, totals: Totals) -> Iterator[Metric]:
    index = Index.of(observed)
    pools = {backend.name: backend for backend in state.backends}
    quarantined_binds = facts.live.quarantined if facts.live else ()
    aside = {(left_out.frontend, left_out.address) for left_out in quarantined_binds}
    label = ["frontend"]
    up = _labelled("frontend_up", "Whether a frontend serves: it listens, and a server receives its clients", label, ())
    listening = _labelled("frontend_listening", "Whether an address accepts connections", ["frontend", "bind"], ())
    sessions = _labelled("frontend_current_sessions", "Current sessions", label, ())
    servers_up = _labelled("frontend_servers_up", "Servers that receive the frontend's clients", label, ())
    servers = _labelled("frontend_servers", "Servers that should receive the frontend's clients", label, ())
    preserved = _labelled("frontend_client_ip_preserved", "Whether the canary arrived with its own address", label, ())
    counts = (
        _counted("frontend_sessions", "Sessions since the agent started", label, ()),
        _counted("frontend_connections_denied", "Connections refused by a rule", label, ()),
        _counted("frontend_bytes_in", "Bytes from clients", label, ()),
        _counted("frontend_bytes_out", "Bytes to clients", label, ()),
    )
    for frontend in state.frontends:
        stats = index.frontends.get(frontend.name)
        numbers = [index.count(pools[name]) for name in frontend.backends]
        gone = [bind for bind in frontend.bind if (frontend.name, str(bind)) in aside]
        word = frontend_state(frontend, gone, numbers, is_open=stats is not None and stats.open)
        key = (frontend.name,)
        up.add_metric(key, float(word in ("up", "degraded")))
        for bind in frontend.bind:
            listens = stats is not None and stats.open and bind not in gone
            listening.add_metric((frontend.name, str(bind)), float(listens))
        sessions.add_metric(key, float(stats.sessions if stats is not None else 0))
        servers_up.add_metric(key, float(sum(count for count, _ in numbers)))
        servers.add_metric(key, float(sum(count for _, count in numbers)))
        for family, count in zip(counts, totals.of(frontend.name), strict=True):
            family.add_metric(key, float(count))
        if frontend.canary and (kept := canary.preserved(facts.canary_results, frontend.name)) is not None:
            preserved.add_metric(key, float(kept))
    quarantined = _labelled(
        "frontend_quarantined", "Addresses left out because they cannot be bound", ["frontend", "bind", "reason"],
        (((left_out.frontend, left_out.address, left_out.reason), 1.0) for left_out in quarantined_binds),
    )  # fmt: skip
    yield from (up, listening, quarantined, sessions, servers_up, servers, preserved, *counts)


def _backends(facts: Facts, state: DesiredState, observed: Observation | None) -> Iterator[Metric]:
    stats = {server_stats.key: server_stats for server_stats in observed.servers} if observed else {}
    both = ["backend", "server"]
    states = _labelled("backend_servers", "Servers of a backend by state", ["backend", "state"], ())
    up = _labelled("server_up", "Whether new clients are sent to a server", both, ())
    sessions = _labelled("server_current_sessions", "Current sessions", both, ())
    checks = _labelled("server_check_duration_seconds", "Duration of the last health check", both, ())
    handshakes = _labelled("server_proxy_handshake", "Result of the last PROXY probe", [*both, "result"], ())
    wrong = _labelled(
        "server_proxy_mismatch",
        "Whether the server provably does not take the PROXY header that it is sent, or demands one",
        both,
        (),
    )
    named = _labelled("server_name_resolved", "Whether the host name of a server has an address now", both, ())
    for pool in state.backends:
        counts = dict.fromkeys(_BACKEND_STATES, 0)
        kind = (pool.application.value, pool.proxy_protocol.value)
        for server in pool.servers:
            key, server_stats = (pool.name, server.name), stats.get((pool.name, server.name))
            if server_stats is not None:
                word = (
                    "maintenance"
                    if server_stats.maintenance
                    else "draining"
                    if server_stats.draining
                    else "up"
                    if server_stats.up
                    else "down"
                )
                counts[word] += 1
                sessions.add_metric(key, float(server_stats.sessions))
                if server_stats.check_milliseconds is not None:
                    checks.add_metric(key, server_stats.check_milliseconds / 1_000)
            up.add_metric(key, float(server_stats is not None and server_stats.up))
            if server.address.name:
                named.add_metric(key, float(server.address.name not in facts.silent))
            met = facts.handshakes.get((*key, str(server.address), *kind)) if facts.handshakes else None
            if met is not None:
                handshakes.add_metric((*key, met.result), 1.0)
                wrong.add_metric(key, float(mismatch(met.version, met.result)))
        for word, count in counts.items():
            states.add_metric((pool.name, word), float(count))
    yield from (states, up, sessions, checks, handshakes, wrong, named)
