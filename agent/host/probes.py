"""Asks this host and the servers before anything is touched: the Prober of the reconcile."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from agent.desired.addresses import Endpoint
from agent.desired.identity import Key
from agent.host import listeners, processes, tcp_probe
from agent.host.listener import Listener
from agent.proxy_protocol.greetings import ProbeResult, Question
from agent.reconcile.preflight import BindFailure

KERNEL_ALLOWS_OVERLAP = sys.platform != "linux"
"""Whether bind(2) with SO_REUSEADDR succeeds beside a listener on the wildcard, or the wildcard beside a listener.

Linux refuses it; FreeBSD's in_pcbbind_setup() (sys/netinet/in_pcb.c) looks for the very same address only.
"""


@frozen
class HostProber:
    """The Prober of this host."""

    config: Path
    """the file by which our own HAProxy processes are known"""

    def unbound(self, endpoints: Collection[Endpoint]) -> Mapping[Endpoint, BindFailure]:
        """Those that cannot be bound, and why, with the name of their holder where the system shows it.

        A test-bind also fails against our own overlapping sockets, where a reload succeeds (facts.md, HAProxy 1). On
        FreeBSD it succeeds beside a foreign listener that overlaps, from which it would take that address.
        """
        refused = {end: why for end in endpoints if (why := listeners.unbound(end)) is not None}
        bindable = [end for end in endpoints if end not in refused] if KERNEL_ALLOWS_OVERLAP else []
        if not bindable and not any(why.reason == "in_use" for why in refused.values()):
            return refused
        ours = self._ours()  # first: one of ours that ends meanwhile is not taken for a foreign one
        everyone = listeners.listeners()
        failures = {}
        for endpoint, why in refused.items():
            holding = listeners.holders(endpoint, everyone) if why.reason == "in_use" else ()
            foreign = [end for end in holding if end.pid not in ours]
            if foreign:
                failures[endpoint] = _held(endpoint, why, foreign)
            elif not holding:
                failures[endpoint] = why
        # One without a process may have been closed while sockstat looked.
        named = [end for end in everyone if end.pid is not None and end.pid not in ours]
        for endpoint in bindable:
            if foreign := list(listeners.holders(endpoint, named)):
                failures[endpoint] = _held(endpoint, listeners.IN_USE, foreign)
        return failures

    def shared(self, endpoints: Collection[Endpoint]) -> Iterator[tuple[Endpoint, str]]:
        """Addresses of ours on which a foreign process listens as well (facts.md, HAProxy 2), and which.

        One that listens on all addresses is no finding where we name one: the kernel prefers the nearer match.
        """
        wanted = {(end.family, end.port) for end in endpoints}
        near = [
            listener
            for listener in listeners.listeners()
            if (listener.endpoint.family, listener.endpoint.port) in wanted
        ]
        ours = self._ours() if near else frozenset()
        foreign = [end for end in near if end.pid not in ours]
        for endpoint in endpoints if foreign else ():
            for holder in listeners.holders(endpoint, foreign):
                if endpoint.wildcard or not holder.endpoint.wildcard:
                    yield endpoint, str(holder)

    def reachable(self, servers: Mapping[Key, Iterable[Endpoint]], *, timeout: float) -> frozenset[Key]:
        """Those servers that answer within `timeout` seconds."""
        return tcp_probe.reachable(servers, timeout=timeout)

    def handshakes(self, questions: Collection[Question]) -> Mapping[Key, ProbeResult]:
        """What each server is found to be. It is not asked for more than two seconds."""
        from agent.host import proxy_probe  # asyncio and ssl: a fifth of the start of a command that probes nothing

        return proxy_probe.ask(questions)

    def _ours(self) -> frozenset[int | None]:
        return frozenset(
            process.pid for process in processes.started_on(self.config, programs=self.config.parent / "bin")
        )


def _held(endpoint: Endpoint, why: BindFailure, foreign: Iterable[Listener]) -> BindFailure:
    """`why`, with the names of the holders."""
    names = ", ".join(
        sorted({f"{listener}" + f" at {listener.endpoint}" * (listener.endpoint != endpoint) for listener in foreign})
    )
    names_of_programs = ", ".join(sorted({listener.program for listener in foreign if listener.program}))
    return BindFailure(reason=why.reason, detail=f"{why.detail}, by {names}", holder=names_of_programs)
