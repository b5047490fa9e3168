"""What the controller answers over HTTP: its own metrics, whether it lives, whether it is of use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from agent import __version__
from agent.discover.cluster import Cluster
from agent.discover.controller import Controller
from agent.discover.firewalls import Firewalls
from agent.discover.reporter import Reporter
from agent.host.http_server import Answer
from agent.remote.push import GRACE_SECONDS


class Site(Collector):
    """`/metrics`, `/healthz` (503: start it anew), `/readyz` (503: it has not read the cluster yet)."""

    def __init__(self, controller: Controller, cluster: Cluster, firewalls: Firewalls, reporter: Reporter) -> None:
        self._controller, self._cluster, self._firewalls, self._reporter = controller, cluster, firewalls, reporter
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
        failing = GaugeMetricFamily(
            f"{prefix}failing_seconds", "Since when the API server does not answer; 0 where it does.", labels=["kind"]
        )
        for kind in sorted({informer.kind for informer in self._cluster.informers}):
            same = [informer for informer in self._cluster.informers if informer.kind == kind]
            objects.add_metric([kind], sum(len(informer.objects()) for informer in same))
            lists.add_metric([kind], sum(informer.lists for informer in same))
            failures.add_metric([kind], sum(informer.failures for informer in same))
            failing.add_metric([kind], max(informer.failing_seconds() for informer in same))
        yield from (objects, lists, failures, failing)

    def _metrics(self, _accept: str) -> Answer:
        return Answer(code=200, kind=CONTENT_TYPE_LATEST, body=generate_latest(self._registry))

    def _health(self, _accept: str) -> Answer:
        # Three sessions of ssh, one after the other, are the longest that a turn is silent.
        still = time.monotonic() - self._controller.last_loop > 60 + 3 * (self._firewalls.seconds + GRACE_SECONDS)
        return _plain([f"{thread.name} has ended" for thread in self._controller.dead] + ["it stands still"] * still)

    def _ready(self, _accept: str) -> Answer:
        return _plain(
            [
                f"{informer.kind}: {informer.error or 'not read yet'}"
                for informer in self._cluster.informers
                if not informer.synced.is_set()
            ]
        )


def _plain(reasons: list[str]) -> Answer:
    body = "\n".join(reasons or ["ok"]) + "\n"
    return Answer(code=503 if reasons else 200, kind="text/plain; charset=utf-8", body=body.encode())
