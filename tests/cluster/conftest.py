"""An API server (the recorded one; the real one too where EDGEAGENT_CLUSTER=real), and a firewall behind sshd."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.apiserver import recorded
from kit.discover import manifests, own_addresses
from kit.kube import BINARY, Kube, real
from kit.left_out import leave_out
from kit.site import Site
from kit.ssh import Client, Firewall, firewall

WHICH = ["real"] if os.environ.get("EDGEAGENT_CLUSTER") == "real" else ["recorded"]


@pytest.fixture(params=WHICH)
def bare(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """An API server with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="kube-") as folder:
        if request.param == "recorded":
            with recorded(Path(folder)) as one:
                yield one
            return
        if not BINARY.exists():
            leave_out("kube-apiserver is not built (`make test-cluster` does)")
        with real(Path(folder)) as one:
            yield one


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
