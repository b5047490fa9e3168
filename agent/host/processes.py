"""Which processes are ours, by what they were started as: for when our socket cannot tell (wiped, hung).

psutil where it is there; without it /proc or `ps`, which know no listeners. Never by name alone: another HAProxy may
run beside ours, and a pid from a file may belong to another process by now (facts.md, pfSense 3 and 9).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from agent.host.subprocesses import output_of

_PS_SECONDS = 10.0
_PROC = Path("/proc")

# pfSense has it only as a package; what is lost without it is said at each function.
psutil: Any = importlib.import_module("psutil") if importlib.util.find_spec("psutil") else None
_LOST = (OSError,) if psutil is None else (psutil.Error, OSError, AttributeError)
"""What costs a detail and no more: a process that ended just now, a psutil that has no such function.

psutil leaves some errors of /proc as they are (its _pslinux.py, wrap_exceptions: a bare `raise`).
"""


@frozen
class Process:
    """A live process."""

    pid: int
    """process number"""
    started: float
    """seconds since the epoch"""


def started_on(config: Path, *, programs: Path) -> tuple[Process, ...]:
    """All live processes of a program in the folder `programs` that were started on `config`, oldest first.

    The serving one and those draining; not a process that reads the file, `tail -f CONFIG`.
    """
    ours = [
        Process(pid, started)
        for pid, started, arguments in _command_lines()
        if arguments and Path(arguments[0]).parent == programs and ("-f", str(config)) in itertools.pairwise(arguments)
    ]
    return tuple(sorted(ours, key=lambda process: (process.started, process.pid)))


def usage(config: Path) -> dict[str, Any]:
    """What our HAProxy processes take: numbers by role, and bytes and files of all of them where psutil is there."""
    ours = started_on(config, programs=config.parent / "bin")
    measured: dict[str, Any] = {
        "processes": {"serving": min(len(ours), 1), "draining": max(len(ours) - 1, 0)},
        "memory": None,
        "files": None,
        "agent": {},
    }
    if psutil is None:
        return measured
    me = psutil.Process()
    with contextlib.suppress(*_LOST):
        spent = me.cpu_times()
        measured["agent"] = {
            "cpu_seconds_total": spent.user + spent.system,
            "resident_memory_bytes": me.memory_info().rss,
            "open_fds": me.num_fds(),
            "start_time_seconds": me.create_time(),
        }
    memory = files = 0
    for serving in ours:
        with contextlib.suppress(*_LOST):  # ended just now
            process = psutil.Process(serving.pid)
            memory += process.memory_info().rss
            files += process.num_fds()
    return {**measured, "memory": memory, "files": files}


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not reaped does not (without psutil: it counts as running)."""
    if psutil is None:
        known = {listed for listed, _, _ in _command_lines()}
        return pid in known or not known
    with contextlib.suppress(*_LOST):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def sessions(pid: int) -> int | None:
    """About how many clients a process that drains still serves: each has two sockets. None: it cannot be known."""
    if sys.platform == "linux":  # psutil would read every connection of the system for it
        with contextlib.suppress(OSError):
            links = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
            return sum(link.startswith("socket:") for link in links) // 2
    elif psutil is not None:
        with contextlib.suppress(*_LOST):
            process = psutil.Process(pid)
            # Before psutil 6 it was called `connections` (its CHANGELOG, 6.0.0).
            listed = process.net_connections if hasattr(process, "net_connections") else process.connections
            return len(listed(kind="tcp")) // 2
    return None


def _command_lines() -> list[tuple[int, float, list[str]]]:
    if psutil is not None:
        listed = []
        for process in psutil.process_iter():
            with contextlib.suppress(*_LOST):
                listed.append((process.pid, process.create_time(), process.cmdline()))
        return listed
    if (_PROC / "stat").exists():  # Linux, whose base need not have ps(1): Debian's has none
        return list(_of_proc(_PROC))
    # Where there is neither psutil nor ps, nothing is known.
    printed = output_of(["/bin/ps", "-axww", "-o", "pid=", "-o", "etimes=", "-o", "args="], seconds=_PS_SECONDS)
    now = time.time()
    lines = [line.split() for line in printed.splitlines()]
    return [
        (int(columns[0]), now - int(columns[1]), columns[2:])
        for columns in lines
        if len(columns) > 2 and columns[0].isdecimal() and columns[1].isdecimal()
    ]


def _of_proc(proc: Path) -> Iterator[tuple[int, float, list[str]]]:
    """As psutil reads it (proc(5)): the start is in clock ticks since the machine's own, the 22nd field of `stat`."""
    booted = next(
        (float(line.split()[1]) for line in (proc / "stat").read_text().splitlines() if line.startswith("btime ")), 0.0
    )
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):  # ended just now
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            # The second field, its name in brackets, may hold anything, blanks and brackets too.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if arguments and fields[0] != "Z":
                yield int(folder.name), booted + int(fields[19]) / os.sysconf("SC_CLK_TCK"), arguments
