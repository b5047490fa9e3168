"""Small desired states to start from."""

from __future__ import annotations

from typing import Any

FIVE_MISTAKES = """\
version: 1
nodes:
  workers: {node1: 192.0.2.101, node1: 192.0.2.102}
frontends:
  smtp:
    bind: ["192.0.2.1:25", "0.0.0.0:25"]
    backend: smpt
    maxcon: 500
backends:
  smtp:
    nodes: workers
    port: "30125"
"""


def state(**servers: int) -> dict[str, Any]:
    """A frontend and a backend of each name with so many servers, on documentation addresses."""
    return {
        "version": 1,
        "frontends": {
            name: {"bind": [f"192.0.2.1:{1000 + index}"], "backend": name} for index, name in enumerate(servers)
        },
        "backends": {
            name: {
                "servers": {
                    chr(ord("a") + one): {"address": f"198.51.100.{one + 1}:{2000 + index}"} for one in range(count)
                }
            }
            for index, (name, count) in enumerate(servers.items())
        },
    }
