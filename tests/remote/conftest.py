"""Agents behind real sshds, and a client with a key of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import ssh
from kit.servers import EchoServer, echo
from kit.ssh import Client, Cluster, Firewall


@pytest.fixture
def cluster(client: Client) -> Cluster:
    return Cluster(client, client.folder)


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as one:
        yield one


@pytest.fixture
def firewall(any_haproxy: Path, client: Client, tmp_path: Path) -> Iterator[Firewall]:
    with ssh.firewall(any_haproxy, client, tmp_path / "a") as found:
        yield found


@pytest.fixture
def pair(any_haproxy: Path, client: Client, tmp_path: Path) -> Iterator[tuple[Firewall, Firewall]]:
    with ssh.firewall(any_haproxy, client, tmp_path / "a") as a, ssh.firewall(any_haproxy, client, tmp_path / "b") as b:
        yield a, b
