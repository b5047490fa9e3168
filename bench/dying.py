"""What clients pay while one of two servers dies: with the rendered file, and with the same file without redispatch."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from stage import edge, greeter

from kit.servers import free_port  # isort: skip
from kit.witness import Witness  # isort: skip

LINES = "{% for line in defaults_lines %}"
WITHOUT = '{% for line in defaults_lines if line not in ("option redispatch 1", "retries 3") %}'
SECONDS_BEFORE, SECONDS_AFTER = 1.0, 12.0  # default checks have found it dead by then


def main() -> dict[str, float]:
    """Failed connections and the longest wait, both ways."""
    found: dict[str, float] = {}
    for name, template in (("as rendered", LINES), ("without redispatch", WITHOUT)):
        found |= {f"one of two servers dies, {name}: {what}": value for what, value in _play(template).items()}
    return found


def _play(template: str) -> dict[str, float]:
    built_in = (Path(__file__).parents[1] / "templates/haproxy.cfg.j2").read_text()
    with contextlib.ExitStack() as stack, edge() as one:
        survivor = stack.enter_context(greeter("b"))
        dying = stack.enter_context(contextlib.ExitStack())
        victim = dying.enter_context(greeter("a"))
        (one.folder / "templates/haproxy.cfg.j2").write_text(built_in.replace(LINES, template))
        port = free_port()
        one.live(
            {
                "version": 1,
                "frontends": {"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}},
                "backends": {
                    "back": {
                        "servers": {"a": {"address": victim}, "b": {"address": survivor}},
                    }
                },
            }
        )
        with Witness(port) as clients:
            time.sleep(SECONDS_BEFORE)  # a load for a while is what is measured
            dying.close()
            time.sleep(SECONDS_AFTER)
        return {
            "connections that failed": float(len(clients.failures)),
            "connections served": float(len(clients.greetings)),
            "longest wait (s)": clients.slowest,
        }
