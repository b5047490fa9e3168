"""What a scrape answers; totals over processes."""

from __future__ import annotations

import json
import math

from kit.states import state

from agent.desired.state import parse
from agent.haproxy.observed import FrontendStats, Observation, Running
from agent.haproxy.quarantine import Quarantined
from agent.reconcile.generation import Generation
from agent.view.metrics import Facts, Metrics, Totals


def test_haproxy_is_not_up_where_it_does_not_answer():
    made = Metrics(lambda: Facts(version="1"), lambda: None)
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


def test_the_name_of_who_holds_an_address_is_no_label():
    desired = parse(json.dumps(state(a=1)).encode(), file="d").state
    aside = Quarantined(frontend="a", address="192.0.2.1:25", reason="in_use", holder='x"\n{é}' * 50)
    live = Generation(
        number=1, digest="d", config_digest="c", loaded=1, at=1.0, outcome="committed", quarantined=(aside,)
    )
    facts = Facts(version="1", live=live, state=desired)
    text = Metrics(lambda: facts, lambda: None).text(open_metrics=False)[1].decode()
    (line,) = [line for line in text.splitlines() if line.startswith("edgeagent_frontend_quarantined{")]
    assert line.endswith(',reason="in_use"} 1.0')
