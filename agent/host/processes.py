"""Which processes are ours, by what they were started as: for when our socket cannot tell (wiped, hung).

psutil where it is there; without it `ps`, which knows no listeners. Never by name alone: another HAProxy may run
beside ours, and a pid from a file may belong to somebody else by now (FACTS, pfSense 3 and 9).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import subprocess
from pathlib import Path
from typing import Any

# pfSense has it only as a package; what is lost without it is said at each function.
psutil: Any = importlib.import_module("psutil") if importlib.util.find_spec("psutil") else None


def started_on(config: Path) -> frozenset[int]:
    """The pids of all live processes whose command line says `-f CONFIG`: the serving one and those draining."""
    found = set()
    for pid, words in _command_lines():
        follows = list(itertools.pairwise(words))
        if ("-f", str(config)) in follows and "-D" in words:
            found.add(pid)
    return frozenset(found)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not reaped does not (without psutil: it counts as running)."""
    if psutil is None:
        return pid in {found for found, _ in _command_lines()}
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def listens(pid: int) -> bool:
    """Whether a process still has a listening TCP socket. Without psutil it cannot be known: False."""
    if psutil is None:
        return False
    with contextlib.suppress(psutil.Error):
        sockets = psutil.Process(pid).net_connections(kind="tcp")
        return any(one.status == psutil.CONN_LISTEN for one in sockets)
    return False


def _command_lines() -> list[tuple[int, list[str]]]:
    if psutil is not None:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                found.append((process.pid, process.cmdline()))
        return found
    done = subprocess.run(  # fixed words
        ["/bin/ps", "-axww", "-o", "pid=", "-o", "args="],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=10,
        check=False,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(int(words[0]), words[1:]) for words in lines if words and words[0].isdecimal()]
