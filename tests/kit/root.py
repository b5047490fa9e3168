"""A host that has nothing but Debian's base, Python and HAProxy: a root of its own over the unpacked release.

Namespaces of processes and mounts, as a container has them; the network is the machine's own: loopback only.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from kit.edge import until
from kit.left_out import leave_out


class Root:
    """`run` runs a command in it; `path` is where its files are, seen from outside."""

    def __init__(self, folder: Path, lower: Path) -> None:
        self.folder = folder
        top = folder / "scratch"
        top.mkdir()
        setup = [
            "set -e",
            "mount --make-rprivate /",
            f"mount -t tmpfs scratch {top}",
            f"mkdir {top}/upper {top}/work {top}/root",
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={top}/upper,workdir={top}/work {top}/root",
            f"mount -t proc proc {top}/root/proc",
            f"mount -t tmpfs run {top}/root/run",
            f"mount --bind /dev {top}/root/dev",
            f"exec chroot {top}/root sleep infinity",
        ]
        self.log = folder / "log"
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(setup)]
        with self.log.open("wb") as log:
            self.init = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = 0

    def __enter__(self) -> Self:
        def up() -> bool:
            if self.init.poll() is not None:
                leave_out(f"no root of its own can be made here: {self.log.read_text()}")
            children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
            self.pid = int(children[0]) if children else 0
            return bool(children) and Path(f"/proc/{self.pid}/cmdline").read_bytes().startswith(b"sleep\0")

        until(up, "the root is there")
        return self

    def words(self, *command: str) -> list[str]:
        """As this process runs it."""
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "--root", "--wdns=/", "--", *clean, *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False
        )

    def good(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Of a file in it, as this process sees it."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def __exit__(self, *_: object) -> None:
        self.init.kill()  # and with it, by --kill-child, all of it
        self.init.wait()


@contextlib.contextmanager
def root(lower: Path) -> Iterator[Root]:
    """Over the unpacked release `lower`, which stays as it is."""
    with tempfile.TemporaryDirectory(prefix="root-", dir="/var/tmp") as folder, Root(Path(folder), lower) as made:
        yield made
