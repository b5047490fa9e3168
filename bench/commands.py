"""Processor time of short commands on a live edge, against that of `python -c 'import click'`."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from stage import edge, greeter, put, state

ROUNDS = 15
EXAMPLE = Path(__file__).parents[1] / "examples/mail-edge.yaml"


def processor_time(*argv: str | Path, **environment: str) -> float:
    """Seconds of a command, whatever its exit code: the median of ROUNDS."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environ = os.environ | environment
        subprocess.run(argv, check=False, capture_output=True, env=environ)  # noqa: S603  # our own words
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return statistics.median(once() for _ in range(ROUNDS))


def main() -> dict[str, float]:
    """Ratios, and a second run of the base as a control."""
    with greeter("g") as server, edge() as host:
        put(host, state(5, [server]))
        host.serve()
        agent = (sys.executable, "-m", "agent", "--settings", host.settings)
        base = processor_time(sys.executable, "-c", "import click")
        ratios = {
            "the same again, as a control": processor_time(sys.executable, "-c", "import click"),
            "agent --version": processor_time(*agent, "--version"),
            "agent status (target 1.8)": processor_time(*agent, "status"),
            "agent history (target 1.8)": processor_time(*agent, "history"),
            "a refused gate call (target 1.8)": processor_time(*agent, "gate", SSH_ORIGINAL_COMMAND="rm -rf /"),
            "agent check of the example (target 3)": processor_time(*agent, "check", EXAMPLE),
            "agent plan of the example, on a live edge (target 4.5)": processor_time(*agent, "plan", EXAMPLE),
        }
        return {f"processor time over `import click`: {name}": value / base for name, value in ratios.items()}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<92}{value:>12.2f}")
