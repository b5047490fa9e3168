"""Two frontends with the same servers behind them, as nodes are behind many; and who serves the clients of one."""

from __future__ import annotations

from typing import Any

from kit.edge import first_line
from kit.servers import EchoServer, free_port

OTHER = free_port()


def document(port: int, *servers: EchoServer, **more: Any) -> dict[str, Any]:
    """`one` on `port`, with `more` in its backend; `two` on another one."""
    pool = {"servers": {server.name: {"address": server.address} for server in servers}}
    return {
        "version": 1,
        "frontends": {
            "one": {"bind": [f"127.0.0.1:{port}"], "backend": "one"},
            "two": {"bind": [f"127.0.0.1:{OTHER}"], "backend": "two"},
        },
        "backends": {"one": {**pool, **more}, "two": pool},
    }


def served(port: int) -> set[str]:
    """The names of the servers that eight clients in a row meet; "" for a client that nobody serves."""
    names = set()
    for _ in range(8):
        try:
            names.add(first_line(port)[:1])
        except OSError:
            names.add("")
    return names
