"""A server in a process of its own, so that it takes no time of the one measured: reads a PROXY header, greets."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.servers import echo

if __name__ == "__main__":
    with echo(sys.argv[1]) as server:
        print(server.port, flush=True)
        sys.stdin.read()  # until whoever started it closes the pipe
