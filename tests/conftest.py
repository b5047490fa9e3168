"""Fixtures for all tiers, and the word on what was left out: in CI nothing may be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from kit import fault_table, onefile
from kit.binaries import VERSIONS, binaries
from kit.edge import Edge, edge_in_folder
from kit.left_out import leave_out, left_out
from kit.ssh import Client

# CI must say the same of the same tree each time. Everywhere else hypothesis looks in new places at every run, and
# `make fuzz` for as long as it takes.
# How long an example takes to make says how busy the machine is, and nothing of what is tested.
BUSY = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("default", deadline=None, suppress_health_check=BUSY)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=BUSY)
hypothesis.settings.register_profile(
    "again", deadline=None, derandomize=True, max_examples=25, suppress_health_check=BUSY
)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=BUSY)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "default")
)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of tests that run beside each other, one process tells for all."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(left_out)
    fault_table.finish(session)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for what, count in getattr(node, "workeroutput", {}).get("left_out", {}).items():
        left_out[what] = left_out.get(what, 0) + count
    fault_table.gather(node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    fault_table.summary(terminalreporter)
    if left_out:
        terminalreporter.section("LEFT OUT", sep="!", red=True, bold=True)
        for what, count in left_out.items():
            terminalreporter.write_line(f"{count} tests: {what}", red=True)


@pytest.fixture(params=VERSIONS)
def haproxy_binary(request: pytest.FixtureRequest) -> Path:
    """Each HAProxy in turn."""
    found = binaries().get(request.param)
    if found is None:
        leave_out(f"there is no HAProxy {request.param} here (`make system` as root on Debian gets it)")
    return found


@pytest.fixture
def any_haproxy() -> Path:
    """One HAProxy, where its version is not the point."""
    found = binaries()
    if not found:
        leave_out("there is no HAProxy here")
    return found[min(found)]


@pytest.fixture(scope="session")
def pyz() -> Path:
    """The one file, built once for each process of tests."""
    return onefile.build()


@pytest.fixture(scope="session")
def root() -> None:
    """For what only root can show."""
    if os.geteuid() != 0:
        leave_out("this needs root")


@pytest.fixture
def edge(haproxy_binary: Path) -> Iterator[Edge]:
    """An agent on each HAProxy in turn."""
    with edge_in_folder(haproxy_binary) as one:
        yield one


@pytest.fixture
def one_edge(any_haproxy: Path) -> Iterator[Edge]:
    """An agent on one HAProxy."""
    with edge_in_folder(any_haproxy) as one:
        yield one


@pytest.fixture
def client(tmp_path: Path, root: None) -> Client:
    """Somebody with an ssh of their own, who syncs."""
    folder = tmp_path / "client"
    folder.mkdir()
    return Client(folder)
