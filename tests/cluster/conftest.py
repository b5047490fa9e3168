"""An API server (the recorded one, or what EDGEAGENT_KUBECONFIG names), and a firewall behind sshd."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.apiserver import recorded
from kit.discover import manifests, own_addresses
from kit.kube import Kube, given
from kit.site import Site
from kit.ssh import Client, Firewall, firewall

WHICH = ["given"] if os.environ.get("EDGEAGENT_KUBECONFIG") else ["recorded"]


@pytest.fixture(params=WHICH)
def bare(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """An API server with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="kube-") as folder:
        if request.param == "recorded":
            with recorded(Path(folder)) as one:
                yield one
            return
        with given(Path(folder)) as one:
            yield one


def pytest_report_header() -> list[str]:
    """Which version is tested against."""
    if not os.environ.get("EDGEAGENT_KUBECONFIG"):
        return []
    with tempfile.TemporaryDirectory(prefix="kube-") as folder, given(Path(folder)) as one:
        return [f"Kubernetes: {one.version} at {one.url}"]


@pytest.fixture
def kube(bare: Kube) -> Kube:
    """One with what `deploy/kubernetes` puts there for the controller's account."""
    for manifest in manifests("namespace", "rbac"):
        bare.create(manifest)
    return bare


@pytest.fixture
def wall(any_haproxy: Path, client: Client, tmp_path: Path) -> Iterator[Firewall]:
    """A firewall: an agent with its service, behind a real sshd."""
    with firewall(any_haproxy, client, tmp_path / "wall") as one:
        yield one


@pytest.fixture
def site(kube: Kube, client: Client, wall: Firewall, tmp_path: Path) -> Site:
    bind, *hosts = own_addresses(5)
    return Site(kube, client, wall, tmp_path, bind, hosts)
