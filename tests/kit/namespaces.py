"""Processes and mounts of a test's own, in Linux namespaces; whatever runs in them ends with them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from kit.edge import until
from kit.left_out import leave_out


class Namespaces:
    """`setup`: lines of sh, of which the last one becomes their first process. `enter`: words before a command."""

    enter: tuple[str, ...] = ()

    def __init__(self, folder: Path, setup: Sequence[str]) -> None:
        script = "\n".join(["set -e", "mount --make-rprivate /", *setup])
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._init = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.pid = 0

    def is_up(self) -> bool:
        """Whether the first process is what it shall be."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        def up() -> bool:
            if self._init.poll() is not None:
                leave_out(f"namespaces with mounts of their own cannot be made here: {self._log.read_text()}")
            children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
            self.pid = int(children[0]) if children else 0
            return bool(children) and self.is_up()

        until(up, "they are set up")
        return self

    def __exit__(self, *_: object) -> None:
        self._init.kill()  # and with it, by --kill-child, all of them
        self._init.wait()

    def words(self, *command: str | Path) -> list[str | Path]:
        """A command in them, as this process runs it."""
        return ["nsenter", "-t", str(self.pid), "-m", "-p", *self.enter, *command]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False
        )

    def good(self, *command: str | Path) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Of a file in them, as this process sees it."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")
