"""Agents that die at a given moment: a warm process forks, and the child ends itself at its N-th effect.

An effect is whatever Python tells its audit hooks of that leaves a trace: a file opened for writing, renamed or
removed, a folder made, a program started, a socket spoken to. So every instruction between two effects is covered,
without a hook in the agent itself.

As a script: reads lines of JSON {"argv": [...], "kill_at": N} and answers each with the exit status and the count.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

EFFECTS = {
    "edgeagent.command",
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "subprocess.Popen", "socket.connect", "socket.bind",
}  # fmt: skip


def _is_effect(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in EFFECTS


def _child(argv: list[str], kill_at: int, log: str) -> None:
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if _is_effect(event, args):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    from agent.cli import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(descriptor, number)
    sys.addaudithook(hook)
    code = 0
    try:
        main(argv, prog_name="agent")
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    os._exit(code)


def _serve() -> None:
    import agent.reconcile.reconciler
    import agent.service.wiring
    import agent.view.tables  # noqa: F401  # warm

    for line in sys.stdin:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(told["argv"], told["kill_at"], sys.argv[1])
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


class Zygote:
    """Runs agents that die. Exit code -9: it was killed; anything else: it came to its end before."""

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__), self._log.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    @property
    def output(self) -> str:
        """What the last agent wrote to stdout and stderr."""
        return Path(self._log.name).read_text()

    def run(self, *argv: str | Path, kill_at: int) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"argv": [str(word) for word in argv], "kill_at": kill_at}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


if __name__ == "__main__":
    _serve()
