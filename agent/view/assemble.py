"""The status, out of the last report, the live generation and an observation of HAProxy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import frozen

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key
from agent.desired.schema import Backend, DesiredState, Frontend, Server
from agent.errors import Finding, Refusal, dotted
from agent.haproxy.observed import FrontendStats, Observation, ServerStats
from agent.haproxy.quarantine import Quarantined
from agent.proxy_protocol import canary
from agent.proxy_protocol.canary import CanaryResult
from agent.proxy_protocol.greetings import mismatch
from agent.proxy_protocol.record import Asked, Handshake
from agent.reconcile.event import Event
from agent.reconcile.generation import Drain, Generation, Hold
from agent.reconcile.report import Report
from agent.view.status import (
    SCHEMA,
    AgentStatus,
    BackendStatus,
    BindStatus,
    CanaryStatus,
    DesiredStatus,
    FindingStatus,
    FrontendStatus,
    HandshakeStatus,
    HAProxyStatus,
    HoldStatus,
    LiveStatus,
    NotInSync,
    RefusalStatus,
    RouteStatus,
    ServerStatus,
    Status,
    ViolationStatus,
    event_status,
    when,
)

MAX_LISTED = 100  # violations and findings; a junk file can have as many as it has lines


def assemble(
    *,
    agent: AgentStatus,
    report: Report | None,
    live: Generation | None,
    state: DesiredState | None,
    hold: Hold | None,
    observed: Observation | None,
    now: float,
    handshakes: Mapping[Asked, Handshake] | None = None,
    canary_results: Sequence[CanaryResult] = (),
    file_id: tuple[int, int] | None = None,
    counters: Mapping[str, int] | None = None,
    trouble: NotInSync | None = None,
    events: Sequence[Event] = (),
    drains: Iterable[Drain] = (),
) -> Status:
    """`report`: of the last reconcile, None before the first. `state`: the live one, None where it cannot be read.

    `observed` None: HAProxy does not answer. `trouble`: why the desired state is not live, None where it is. `events`:
    what happened lately, oldest first. `drains`: what a person has drained. `now`: seconds since the epoch.
    """
    index = Index.of(observed)
    quarantined = {(bind.frontend, bind.address): bind for bind in live.quarantined} if live else {}
    backends = {backend.name: backend for backend in state.backends} if state else {}
    findings = (*(report.findings if report else ())[:MAX_LISTED], *canary.findings(canary_results)[:MAX_LISTED])
    frontends = state.frontends if state else ()
    return Status(
        schema=SCHEMA,
        at=when(now),
        agent=agent,
        desired=_desired(report, file_id) if report else None,
        live=_live(live) if live else None,
        outcome=report.outcome.value if report else None,
        exit_code=int(report.exit_code) if report else None,
        message=report.message if report else "",
        remedy=report.remedy if report else "",
        in_sync=trouble is None,
        not_in_sync=trouble,
        held=HoldStatus(digest=hold.digest, reason=hold.reason, since=when(hold.since)) if hold else None,
        violations=_violations(report) if report else (),
        violations_total=report.violations_total if report else 0,
        refused=tuple(refusal_status(refusal) for refusal in report.refused[:MAX_LISTED]) if report else (),
        findings=tuple(_finding(finding) for finding in findings),
        frontends=tuple(_frontend(frontend, backends, index, quarantined, canary_results) for frontend in frontends),
        backends=tuple(
            _backend(backend, index, handshakes or {}, {drain.key: drain for drain in drains})
            for backend in backends.values()
        ),
        haproxy=_haproxy(observed) if observed else None,
        timings=dict(report.timings) if report else {},
        plan=report.plan if report else None,
        reasons=report.reasons[:MAX_LISTED] if report else (),
        counters=counters or {},
        events=tuple(event_status(event) for event in events),
    )


def _desired(report: Report, file_id: tuple[int, int] | None) -> DesiredStatus:
    return DesiredStatus(
        file=report.file,
        digest=report.digest,
        name=report.name,
        serial=report.serial,
        read=when(report.at),
        file_id=file_id,
        actor=report.author,
    )


def _live(live: Generation) -> LiveStatus:
    return LiveStatus(
        generation=live.number,
        digest=live.digest,
        name=live.name,
        serial=live.serial,
        since=when(live.at),
        manager=live.manager,
        actor=live.actor,
    )


def _violations(report: Report) -> tuple[ViolationStatus, ...]:
    return tuple(
        ViolationStatus(file=report.file, line=violation.line, path=dotted(violation.path), message=violation.message)
        for violation in report.violations[:MAX_LISTED]
    )


def refusal_status(refusal: Refusal) -> RefusalStatus:
    """As status.json and answers have it."""
    return RefusalStatus(kind=refusal.kind, name=refusal.name, server=refusal.server, reason=refusal.reason)


def _finding(finding: Finding) -> FindingStatus:
    return FindingStatus(where=finding.where, line=finding.line, message=finding.message, remedy=finding.remedy)


def _haproxy(observed: Observation) -> HAProxyStatus:
    process = observed.process
    return HAProxyStatus(pid=process.pid, version=process.version, uptime=process.uptime, generation=process.generation)


# --- frontends


@frozen(kw_only=True)
class Index:
    """An observation by name."""

    answered: bool
    """whether there was one"""
    frontends: dict[str, FrontendStats]
    """by name"""
    servers: dict[str, dict[str, ServerStats]]
    """by backend and name"""

    @classmethod
    def of(cls, observed: Observation | None) -> Index:
        """Of one look at HAProxy, or of none."""
        servers: dict[str, dict[str, ServerStats]] = {}
        for server in observed.servers if observed else ():
            servers.setdefault(server.backend, {})[server.name] = server
        frontends = {frontend.name: frontend for frontend in observed.frontends} if observed else {}
        return cls(answered=observed is not None, frontends=frontends, servers=servers)

    def count(self, backend: Backend) -> tuple[int, int]:
        """Servers that get clients, and servers that should: those taken out on purpose count in neither."""
        if not self.answered:
            return 0, sum(not server.disabled for server in backend.servers)
        wanted = [server for server in self.servers.get(backend.name, {}).values() if server.wanted]
        return sum(server.up for server in wanted), len(wanted)


def _frontend(
    frontend: Frontend,
    backends: Mapping[str, Backend],
    index: Index,
    quarantined: Mapping[tuple[str, str], Quarantined],
    canary_results: Sequence[CanaryResult],
) -> FrontendStatus:
    stats = index.frontends.get(frontend.name)
    counts = [index.count(backends[name]) for name in frontend.backends]
    gone = [endpoint for endpoint in frontend.bind if (frontend.name, str(endpoint)) in quarantined]
    # Clients that send no name, or match no route.
    otherwise = RouteStatus(sni=(), backend=frontend.backend)
    canaries = [arrival for arrival in canary_results if arrival.frontend == frontend.name] if canary_results else ()
    return FrontendStatus(
        name=frontend.name,
        state=frontend_state(frontend, gone, counts, is_open=stats is not None and stats.open),
        binds=tuple(
            _bind(address, quarantined.get((frontend.name, address)), stats, index)
            for address in map(str, frontend.bind)
        ),
        backends=frontend.backends,
        routes=(*(RouteStatus(sni=route.sni, backend=route.backend) for route in frontend.routes), otherwise),
        servers_up=sum(up for up, _ in counts),
        servers_total=sum(total for _, total in counts),
        sessions=stats.sessions if stats else 0,
        client_ip_preserved=canary.preserved(canary_results, frontend.name) if canaries else None,
        canary=tuple(canary_status(arrival) for arrival in canaries),
        owner=frontend.owner,
    )


def canary_status(arrival: CanaryResult) -> CanaryStatus:
    """What came of one canary probe."""
    return CanaryStatus(
        address=arrival.address,
        used=arrival.used,
        told=arrival.reported,
        preserved=arrival.preserved,
        detail=arrival.detail,
        milliseconds=arrival.milliseconds,
    )


def _bind(address: str, quarantined: Quarantined | None, stats: FrontendStats | None, index: Index) -> BindStatus:
    if quarantined is not None:
        return BindStatus(address=address, state="quarantined", reason=quarantined.detail)
    if stats is not None and stats.open:
        return BindStatus(address=address, state="listening", reason="")
    return BindStatus(address=address, state="closed", reason=_why_closed(stats, index))


def _why_closed(stats: FrontendStats | None, index: Index) -> str:
    if not index.answered:
        return "HAProxy does not answer"
    return "not in the running HAProxy" if stats is None else "the frontend is stopped in HAProxy"


def frontend_state(
    frontend: Frontend, gone: Collection[Endpoint], counts: Sequence[tuple[int, int]], *, is_open: bool
) -> str:
    """`up`, `degraded`, `down` or `quarantined`. `gone`: its addresses that are; `counts`: see Index.count."""
    if len(gone) == len(frontend.bind):
        return "quarantined"
    if not is_open or not any(up for up, _ in counts):
        return "down"
    return "degraded" if gone or any(up != total for up, total in counts) else "up"


# --- backends


def _backend(
    backend: Backend, index: Index, handshakes: Mapping[Asked, Handshake], drains: Mapping[Key, Drain]
) -> BackendStatus:
    stats, (up, total) = index.servers.get(backend.name, {}), index.count(backend)
    return BackendStatus(
        name=backend.name,
        application=backend.application.value,
        proxy_protocol=backend.proxy_protocol.value,
        servers_up=up,
        servers_total=total,
        servers=tuple(
            _server(backend, server, stats.get(server.name), handshakes, drains.get((backend.name, server.name)))
            for server in backend.servers
        ),
        owner=backend.owner,
    )


def _server(
    backend: Backend,
    server: Server,
    stats: ServerStats | None,
    handshakes: Mapping[Asked, Handshake],
    drain: Drain | None,
) -> ServerStatus:
    address = str(server.address)
    key = (backend.name, server.name, address, backend.application.value, backend.proxy_protocol.value)
    handshake = handshakes.get(key)
    return ServerStatus(
        name=server.name,
        address=address,
        weight=server.weight,
        backup=server.backup,
        status=_status_of(server, stats),
        check=stats.check if stats else "",
        sessions=stats.sessions if stats else 0,
        handshake=handshake_status(handshake) if handshake else None,
        drained=when(drain.since) if drain else "",
        host_name=server.address.name,
    )


def _status_of(server: Server, stats: ServerStats | None) -> str:
    if not server.address.resolved:
        return "unresolved"
    return stats.status if stats else "unknown"


def handshake_status(handshake: Handshake) -> HandshakeStatus:
    """What a server was found to be."""
    return HandshakeStatus(
        result=handshake.result,
        mismatch=mismatch(handshake.version, handshake.result),
        detail=handshake.detail,
        subject=handshake.subject,
        milliseconds=handshake.milliseconds,
        at=when(handshake.at),
    )
