"""What the controller answers over HTTP: its own metrics, whether it lives, whether it is of use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from agent import __version__
from agent.discover.controller import Controller
from agent.discover.firewalls import Firewalls
from agent.discover.reports import Reporter
from agent.discover.sources import Sources
from agent.host.http_server import Answer
from agent.remote.push import GRACE_SECONDS


class Site(Collector):
    """`/metrics`, `/healthz` (503: start it anew), `/readyz` (503: it has not read the cluster yet)."""

    def __init__(self, controller: Controller, sources: Sources, firewalls: Firewalls, reporter: Reporter) -> None:
        self._controller, self._sources, self._firewalls, self._reporter = controller, sources, firewalls, reporter
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def routes(self) -> dict[str, Callable[[str], Answer]]:
        """By path: what answers a GET."""
        return {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._ready}

    def describe(self) -> Iterator[Metric]:
        """Nothing: it is collected when it is asked for."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        control, firewalls = self._controller, self._firewalls
        prefix = "edgeagent_discover_"
        yield InfoMetricFamily(f"{prefix}build", "Version of edgeagent.", value={"version": __version__})
        yield GaugeMetricFamily(f"{prefix}leader", "1 while this replica pushes.", value=int(control.election.leads))
        yield GaugeMetricFamily(
            f"{prefix}in_step",
            "1 while all is live everywhere as it is asked for.",
            value=int(control.in_step),
        )
        yield GaugeMetricFamily(
            f"{prefix}last_push_seconds", "How long the last push took.", value=firewalls.last_seconds
        )
        pushes = CounterMetricFamily(f"{prefix}pushes", "Documents handed to a firewall, by result.", labels=["result"])
        for result, count in sorted(firewalls.pushes.items()):
            pushes.add_metric([result], count)
        yield pushes
        services = GaugeMetricFamily(f"{prefix}services", "Services that ask to be served, by state.", labels=["state"])
        for state, count in sorted(control.states.items()):
            services.add_metric([state], count)
        yield services
        yield CounterMetricFamily(
            f"{prefix}report_failures",
            "Reports that could not be written.",
            value=self._reporter.failures,
        )
        objects = GaugeMetricFamily(f"{prefix}objects", "Objects of the cluster that are known.", labels=["kind"])
        lists = CounterMetricFamily(f"{prefix}lists", "How often a kind was listed anew.", labels=["kind"])
        failures = CounterMetricFamily(f"{prefix}watch_failures", "Failed requests to list or watch.", labels=["kind"])
        heard = GaugeMetricFamily(f"{prefix}heard_seconds", "Since the API server was last heard of.", labels=["kind"])
        for kind in sorted({one.kind for one in self._sources.all}):
            same = [one for one in self._sources.all if one.kind == kind]
            objects.add_metric([kind], sum(len(one.objects()) for one in same))
            lists.add_metric([kind], sum(one.lists for one in same))
            failures.add_metric([kind], sum(one.failures for one in same))
            heard.add_metric([kind], time.monotonic() - min(one.heard for one in same))
        yield from (objects, lists, failures, heard)

    def _metrics(self, _accept: str) -> Answer:
        return Answer(code=200, kind=CONTENT_TYPE_LATEST, body=generate_latest(self._registry))

    def _health(self, _accept: str) -> Answer:
        # Three sessions of ssh, one after the other, are the longest that a turn is silent.
        still = time.monotonic() - self._controller.last_loop > 60 + 3 * (self._firewalls.seconds + GRACE_SECONDS)
        return _plain([f"{one.name} has ended" for one in self._controller.dead] + ["it stands still"] * still)

    def _ready(self, _accept: str) -> Answer:
        return _plain(
            [f"{one.kind}: {one.error or 'not read yet'}" for one in self._sources.all if not one.synced.is_set()]
        )


def _plain(reasons: list[str]) -> Answer:
    body = "\n".join(reasons or ["ok"]) + "\n"
    return Answer(code=503 if reasons else 200, kind="text/plain; charset=utf-8", body=body.encode())
