"""The scene of every fault: an agent, a healthy frontend under load, and the table of what each fault cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kit.binaries import VERSIONS
from kit.edge import Edge
from kit.fault_table import TABLES
from kit.servers import EchoServer, echo, free_port
from kit.witness import Row, Witness


class Scene:
    """`healthy`: a frontend that no fault is about. `state(...)`: it, and whatever a test adds."""

    def __init__(self, edge: Edge, healthy: EchoServer, version: str) -> None:
        self.edge = edge
        self.version = version
        self.port = free_port()
        self._healthy = healthy
        self.served_by_dead: list[str] = []

    def state(
        self, frontends: dict[str, Any] | None = None, backends: dict[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        return {
            "version": 1,
            "frontends": {"healthy": {"bind": [f"127.0.0.1:{self.port}"], "backend": "healthy"}, **(frontends or {})},
            "backends": {
                "healthy": {"servers": {"w": {"address": self._healthy.address}}, "health": {"interval": "200ms"}},
                **(backends or {}),
            },
            **more,
        }

    def with_pool(self, port: int, *servers: EchoServer, **pool: Any) -> dict[str, Any]:
        """Beside the healthy frontend: `front` on `port`, with these servers behind it."""
        made = {server.name: {"address": server.address} for server in servers}
        return self.state(
            {"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}},
            {"back": {"servers": made, "health": {"interval": "100ms"}, **pool}},
        )

    @contextmanager
    def fault(self, name: str, *, lossless: bool = True) -> Iterator[Callable[[str], None]]:
        """The load goes on while the fault is played; call what is yielded with what is live afterwards."""
        row = Row(fault=name, version=self.version)
        with Witness(self.port) as witness:

            def after(text: str) -> None:
                row.after = text

            yield after
            witness.more(10)
        row.fill(witness)
        TABLES["faults"].rows.append(row)
        assert row.after, "every fault says what is live afterwards"
        if lossless:
            assert (row.failed, row.outage_ms) == (0, 0), witness.failures[:5]


@pytest.fixture
def scene(edge: Edge, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """On each HAProxy in turn."""
    version = next(one for one in VERSIONS if f"[{one}" in request.node.name or f"-{one}]" in request.node.name)
    with echo("w") as healthy:
        yield Scene(edge, healthy, version)
