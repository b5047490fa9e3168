"""All benchmarks: a table, and bench/results.json. Ratios and medians of one run: these are no bounds for a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import beside
import changes
import cluster
import commands
import dying
import paths
import readers
import remote
import scale
import scrape
import startup


def main() -> None:
    """Each prints as it ends; the whole takes a few minutes."""
    results: dict[str, float] = {}
    for part in (startup, commands, paths, changes, dying, beside, remote, cluster, scrape, readers, scale):
        print(f"{part.__name__} ...", file=sys.stderr)
        found = part.main()
        for name, value in found.items():
            print(f"{name:<92}{value:>12.2f}", flush=True)
        results |= found
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
