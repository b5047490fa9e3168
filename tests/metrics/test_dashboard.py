"""Every query of the dashboard, in a real Prometheus that scraped a real agent."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.edge import Edge, edge_in_folder, first_line, until
from kit.left_out import leave_out
from kit.servers import echo, free_port

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/edgeagent.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[int]:
    """Scrapes the agent every 200 ms, by the alert rules that we ship."""
    program = shutil.which("prometheus")
    if program is None:
        leave_out("Prometheus is not here")
    port = free_port()
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}\n"
        f"rule_files: ['{ROOT}/deploy/prometheus/alerts.yaml']\n"
        f"scrape_configs:\n- job_name: edgeagent\n  static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
    )
    words = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *words, f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


def asked(port: int, query: str) -> list[Any]:
    """The samples of a query; nothing while Prometheus is not up yet."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
        return found
    return []


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    from kit.binaries import binaries

    if not binaries():
        leave_out("there is no HAProxy here")
    with edge_in_folder(binaries()[min(binaries())]) as edge, echo("a") as server:
        web, port = free_port(), free_port()
        with prometheus(tmp_path_factory.mktemp("prometheus"), web) as found:
            edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[metrics]\nlisten = "127.0.0.1:{web}"')
            edge.put(document(port, server.address))
            edge.serve()
            until(lambda: asked(found, "edgeagent_in_sync == 1"), "Prometheus has scraped")
            _change(edge, port, server.address)
            yield found


def document(port: int, server: str, **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "frontends": {"smtp": {"bind": [f"127.0.0.1:{port}"], "backend": "mail"}},
        "backends": {"mail": {"application": "smtp", "servers": {"a": {"address": server}}}},
        **more,
    }


def _change(edge: Edge, port: int, server: str) -> None:
    """A reload, and clients."""
    edge.put(document(port, server, defaults={"maxconn": 77}))
    until(lambda: edge.status()["live"]["generation"] == 2, "a second generation")
    for _ in range(3):
        first_line(port)


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_query_returns_data(scraped: int, title: str, query: str):
    found = until(lambda: asked(scraped, query), f"{title}: {query}")
    # A quotient of nothing is a sample too.
    until(lambda: any(one["value"][1] != "NaN" for one in asked(scraped, query)), f"{title} has a value")
    assert found


def test_the_rules_are_taken_and_nothing_fires(scraped: int):
    assert asked(scraped, 'ALERTS{alertstate="firing"}') == []
    until(lambda: asked(scraped, 'up{job="edgeagent"}'), "up")


def test_the_dashboard_holds_what_operators_look_for():
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    assert {"Frontends", "Connections", "Bytes", "Servers", "Applies", "Apply stages", "Processes"} <= titles
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
