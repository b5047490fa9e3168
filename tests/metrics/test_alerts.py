"""Every alert, firing and quiet, by promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from kit.left_out import leave_out

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yaml"
PROMTOOL = Path("/usr/bin/promtool")

# Series that make it fire, and series that do not: each a metric with its values, minute by minute.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "EdgeagentAbsent": (
        {
            'up{job="fw",instance="a"}': "1x2 0x20",
            'edgeagent_build_info{job="fw",instance="a"}': "1x2 stale",
            'edgeagent_build_info{job="fw",instance="b"}': "1x20",
        },
        {
            'up{job="fw",instance="a"}': "1x20",
            'edgeagent_build_info{job="fw",instance="a"}': "1x20",
            'up{job="other",instance="a"}': "0x20",
        },
    ),
    "EdgeagentStalled": (
        {"edgeagent_desired_read_timestamp_seconds": "0x20"},
        {"edgeagent_desired_read_timestamp_seconds": "0+60x20"},
    ),
    "EdgeagentHaproxyDown": (
        {"edgeagent_haproxy_up": "0x20", "edgeagent_live_generation": "7x20"},
        {"edgeagent_haproxy_up": "0x20"},  # nothing is live, so nothing should run
    ),
    "EdgeagentBackendDown": (
        {
            'edgeagent_backend_servers{backend="b",state="up"}': "0x20",
            'edgeagent_backend_servers{backend="b",state="down"}': "2x20",
        },
        {
            'edgeagent_backend_servers{backend="b",state="up"}': "0x20",
            'edgeagent_backend_servers{backend="b",state="down"}': "0x20",
            'edgeagent_backend_servers{backend="b",state="maintenance"}': "2x20",
        },
    ),
    "EdgeagentFrontendNotListening": (
        {'edgeagent_frontend_listening{frontend="f",bind="b"}': "0x20"},
        {
            'edgeagent_frontend_listening{frontend="f",bind="b"}': "0x20",
            'edgeagent_frontend_quarantined{frontend="f",bind="b",reason="in_use"}': "1x20",
        },
    ),
    "EdgeagentFrontendQuarantined": (
        {'edgeagent_frontend_quarantined{frontend="smtp",bind="10.0.20.1:25",reason="in_use"}': "1x20"},
        {'edgeagent_frontend_listening{frontend="f",bind="b"}': "1x20"},
    ),
    "EdgeagentFrontendNoServer": (
        {'edgeagent_frontend_servers_up{frontend="f"}': "0x20", 'edgeagent_frontend_servers{frontend="f"}': "2x20"},
        {'edgeagent_frontend_servers_up{frontend="f"}': "1x20", 'edgeagent_frontend_servers{frontend="f"}': "2x20"},
    ),
    "EdgeagentFrontendDegraded": (
        {'edgeagent_frontend_servers_up{frontend="f"}': "1x20", 'edgeagent_frontend_servers{frontend="f"}': "2x20"},
        {'edgeagent_frontend_servers_up{frontend="f"}': "2x20", 'edgeagent_frontend_servers{frontend="f"}': "2x20"},
    ),
    "EdgeagentNotInSync": ({"edgeagent_in_sync": "0x20"}, {"edgeagent_in_sync": "0x3 1x17"}),
    "EdgeagentHeld": ({"edgeagent_held": "1x20"}, {"edgeagent_held": "0x20"}),
    "EdgeagentRolledBack": ({"edgeagent_rollbacks_total": "0x10 1x10"}, {"edgeagent_rollbacks_total": "5x20"}),
    "EdgeagentHaproxyRestarting": (
        {'edgeagent_drift_corrections_total{kind="process"}': "0+1x20"},
        {
            'edgeagent_drift_corrections_total{kind="process"}': "1x5 2x3 3x12",
            'edgeagent_drift_corrections_total{kind="server"}': "0+1x20",
        },
    ),
    "EdgeagentHandshakeMismatch": (
        {'edgeagent_server_proxy_mismatch{backend="b",server="s"}': "1x20"},
        {'edgeagent_server_proxy_mismatch{backend="b",server="s"}': "0x20"},
    ),
    "EdgeagentClientAddressLost": (
        {'edgeagent_frontend_client_ip_preserved{frontend="f"}': "0x20"},
        {'edgeagent_frontend_client_ip_preserved{frontend="f"}': "1x20"},
    ),
    "EdgeagentDiscoverOutOfStep": ({"edgeagent_discover_in_step": "0x20"}, {"edgeagent_discover_in_step": "0x5 1x15"}),
    "EdgeagentDiscoverBlind": (
        {'edgeagent_discover_failing_seconds{kind="nodes"}': "0+60x20"},
        {'edgeagent_discover_failing_seconds{kind="nodes"}': "0x20"},
    ),
    "EdgeagentDiscoverAbsent": (
        {"edgeagent_discover_in_step": "1x2 stale"},
        {"edgeagent_discover_in_step": "1x20"},
    ),
    "EdgeagentServerUnresolved": (
        {'edgeagent_server_name_resolved{backend="b",server="mx"}': "0x20"},
        {'edgeagent_server_name_resolved{backend="b",server="mx"}': "0x5 1x20"},
    ),
    "EdgeagentDrainingPilesUp": (
        {'edgeagent_haproxy_processes{role="draining"}': "5x90"},
        {'edgeagent_haproxy_processes{role="draining"}': "3x90", 'edgeagent_haproxy_processes{role="serving"}': "9x90"},
    ),
}


def rules() -> dict[str, dict[str, object]]:
    return {one["alert"]: one for one in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}


def fires(alert: str, series: dict[str, str], tmp_path: Path) -> bool:
    """Whether promtool finds it firing at the end."""
    if not PROMTOOL.exists():
        leave_out("promtool is not here")
    at = "85m" if alert == "EdgeagentDrainingPilesUp" else "18m"
    test = tmp_path / "test.yaml"
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": at,
                "exp_samples": [],
            }
        ],
    }
    test.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run([PROMTOOL, "test", "rules", test], capture_output=True, text=True, check=False)
    assert "got: {}" in done.stderr or done.returncode == 0, done.stderr
    return done.returncode != 0


def test_every_alert_has_its_cases_and_its_heading_in_the_runbook():
    headings = {
        re.sub(r"[^a-z0-9]+", "-", line[3:].lower()).strip("-")
        for line in (ROOT / "docs/operations.md").read_text().splitlines()
        if line.startswith("## ")
    }
    assert rules().keys() == CASES.keys()
    for rule in rules().values():
        url, _, heading = rule["annotations"]["runbook_url"].partition("#")  # type: ignore[index]  # YAML of ours
        assert url.endswith("{{ end }}"), rule["alert"]
        assert heading in headings, rule["alert"]


def test_the_runbooks_are_where_the_external_label_says(tmp_path: Path):
    """As Prometheus expands it, with the label and without."""
    if not PROMTOOL.exists():
        leave_out("promtool is not here")
    for labels, start in (
        ({}, "https://docs.example.org/edgeagent/operations.html"),
        ({"runbooks": "https://wiki.example.net/edge"}, "https://wiki.example.net/edge"),
    ):
        rule = rules()["EdgeagentHeld"]
        annotations = {"summary": rule["annotations"]["summary"].replace("{{ $labels.instance }}", "fw1")}  # type: ignore[index]
        case = {
            "interval": "1m",
            "external_labels": labels,
            "input_series": [{"series": 'edgeagent_held{instance="fw1"}', "values": "1x5"}],
            "alert_rule_test": [
                {
                    "eval_time": "4m",
                    "alertname": "EdgeagentHeld",
                    "exp_alerts": [
                        {
                            "exp_labels": {"severity": "warning", "instance": "fw1"},
                            "exp_annotations": annotations | {"runbook_url": f"{start}#held"},
                        }
                    ],
                }
            ],
        }
        test = tmp_path / "test.yaml"
        test.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
        done = subprocess.run([PROMTOOL, "test", "rules", test], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alert", CASES)
def test_it_fires_when_it_must_and_is_quiet_else(alert: str, tmp_path: Path):
    firing, quiet = CASES[alert]
    assert fires(alert, firing, tmp_path)
    assert not fires(alert, quiet, tmp_path)


def test_an_agent_that_is_not_there_at_all_is_absent(tmp_path: Path):
    assert fires("EdgeagentAbsent", {"other": "1x20"}, tmp_path)
