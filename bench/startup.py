"""What the command costs to start, and what a large state costs before anything is touched."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from agent.desired.state import parse
from agent.haproxy.config import CONFIG_TEMPLATE, Process, render
from agent.haproxy.observed import Running, ServerStats
from agent.haproxy.plan import LiveGeneration, Target, plan
from agent.host import templates

ROUNDS = 15
AGENT = Path(sys.executable).parent / "agent"


def wall(*argv: str | Path) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # our own words
    return time.perf_counter() - start


def timed(what: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def median(what: Callable[[], float]) -> float:
    """Of ROUNDS rounds."""
    return statistics.median(what() for _ in range(ROUNDS))


def large_state(frontends: int, servers: int) -> bytes:
    """A JSON state of so many frontends, each with a backend of so many servers."""
    state = {
        "version": 1,
        "frontends": {
            f"f{one}": {"bind": [f"192.0.{one // 250}.{one % 250 + 1}:25"], "backend": f"b{one}"}
            for one in range(frontends)
        },
        "backends": {
            f"b{one}": {
                "servers": {
                    f"s{n}": {"address": f"198.51.{one // 250}.{one % 250 + 1}:{3000 + n}"} for n in range(servers)
                }
            }
            for one in range(frontends)
        },
    }
    return json.dumps(state).encode()


def load_plan_render(data: bytes) -> None:
    """What a converge does before it touches anything."""
    process = Process(socket=PurePosixPath("/s"), server_state=PurePosixPath("/t"), maxconn=100, hard_stop_after=1_000)
    parsed = parse(data, file="large.json")
    config = render(parsed.state, process, templates.load(CONFIG_TEMPLATE, ""))
    before = LiveGeneration(
        number=1,
        loaded=1,
        digest="old",
        config=config.stamped(digest="old", generation=1),
        state=parsed.state,
        is_current=True,
    )
    plan(
        before,
        Running(pid=1, version="", uptime=0, generation=1),
        Target(digest="x", state=parsed.state, config=config),
        servers=[
            ServerStats(
                backend=pool.name, name=server.name, status="UP", check="", sessions=0, address=str(server.address)
            )
            for pool in parsed.state.backends
            for server in pool.servers
        ],
    )


def main() -> dict[str, float]:
    """Against `import click`, and a second run of that as a control."""
    control = median(lambda: wall(sys.executable, "-c", "import click"))
    again = median(lambda: wall(sys.executable, "-c", "import click"))
    version = median(lambda: wall(AGENT, "--version"))
    (one_file,) = (Path(__file__).parents[1] / "dist").glob("edgeagent-*.pyz")
    bare = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]  # noqa: SLF001  # not the environment's
    carried = median(lambda: wall(bare, "-I", "-S", one_file, "--version"))
    data = large_state(1_000, 4)
    load_plan_render(data)  # imports, once
    large = median(lambda: timed(lambda: load_plan_render(data)))
    return {
        "python -c 'import click' (s)": control,
        "the same again, as a control (ratio)": again / control,
        "agent --version (ratio to import click; target 3)": version / control,
        "the one file --version (ratio to import click; target 3)": carried / control,
        "1,000 frontends of 4 servers, JSON: load, plan, render (s; target 1)": large,
    }
