"""The text that Prometheus reads, against prometheus_client's own writer; totals over processes."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from kit.states import state
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from agent.desired.state import parse
from agent.haproxy.observed import FrontendStats, Observation, Running
from agent.haproxy.quarantine import Quarantined
from agent.reconcile.generation import Generation
from agent.view.metrics import Facts, Metrics, Totals, written

VALUES = st.one_of(st.floats(), st.integers(-(2**40), 2**40).map(float))
LABELS = st.text(st.sampled_from('ab1-."\\\n é:/[]'), max_size=8)


class Some(Collector):
    """These."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> list[Metric]:
        return self.metrics


@given(st.lists(st.tuples(LABELS, VALUES), max_size=5), VALUES)
def test_it_is_what_the_library_writes(rows: list[tuple[str, float]], value: float):
    gauge = GaugeMetricFamily("a_gauge", "of something", labels=["x", "y"])
    counter = CounterMetricFamily("b", "counted", labels=["x"])
    for label, number in rows:
        gauge.add_metric([label, "z"], number)
        counter.add_metric([label], number)
    info = InfoMetricFamily("c", "what it is")
    info.add_metric([], {"k": rows[0][0] if rows else ""})
    some = [gauge, counter, info, GaugeMetricFamily("d", "alone", value=value)]
    registry = CollectorRegistry()
    registry.register(Some(some))
    if rows:
        assert written(some) == generate_latest(registry)


def samples(text: str) -> list[object]:
    return [
        (one.name, sorted(one.labels.items()), one.value)
        for family in text_string_to_metric_families(text)
        for one in family.samples
    ]


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def test_all_of_ours_is_what_the_library_writes():
    made = Metrics(lambda: Facts(version="1"), lambda: None)
    ours, theirs = written(made.registry.collect()).decode(), generate_latest(made.registry).decode()
    assert samples(ours) == samples(theirs)  # but for the order of labels
    assert set(comments(ours)) <= set(comments(theirs))
    assert b"edgeagent_haproxy_up 0.0" in made.text(open_metrics=False)[1]


def look(pid: int, count: int) -> Observation:
    frontend = FrontendStats(name="f", open=True, sessions=0, connections=count, bytes_in=10 * count, bytes_out=0)
    return Observation(process=Running(pid=pid, version="3", uptime=1, generation=1), frontends=(frontend,), servers=())


def test_totals_never_go_backwards():
    totals = Totals()
    seen = []
    for pid, count in ((1, 0), (1, 5), (1, 4), (2, 0), (2, 3), (1, 6), (3, 1)):
        totals.seen(look(pid, count))
        seen.append(totals.of("f")[0])
    assert seen == [0, 5, 5, 5, 8, 8, 9]
    assert totals.of("nobody") == (0, 0, 0, 0)
    adopted = Totals()  # by an agent that was started anew
    for count in (900, 901):
        adopted.seen(look(2, count))
    assert adopted.of("f")[0] == 1
    assert not math.isnan(totals.of("f")[1])


def test_the_name_of_who_holds_an_address_is_plain_and_short():
    desired = parse(json.dumps(state(a=1)).encode(), file="d").state
    aside = Quarantined(frontend="a", address="192.0.2.1:25", reason="in_use", holder='x"\n{é}' * 50)
    live = Generation(
        number=1, digest="d", config_digest="c", loaded=1, at=1.0, outcome="committed", quarantined=(aside,)
    )
    facts = Facts(version="1", live=live, state=desired)
    text = Metrics(lambda: facts, lambda: None).text(open_metrics=False)[1].decode()
    (line,) = [one for one in text.splitlines() if one.startswith("edgeagent_frontend_quarantined{")]
    assert line.endswith(',reason="in_use by ' + ("x_____" * 50)[:48] + '"} 1.0')
