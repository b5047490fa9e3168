"""A host that has nothing but Debian's base, Python and HAProxy: a root of its own over the unpacked release.

As a container has it; the network is the machine's own: loopback only.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kit.namespaces import Namespaces

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Root(Namespaces):
    """Over the unpacked release `lower`, which stays as it is."""

    enter = ("--root", "--wdns=/", "--", "env", "-i", _PATH, "HOME=/root")

    def __init__(self, folder: Path, lower: Path) -> None:
        top = folder / "scratch"
        top.mkdir()
        setup = [
            f"mount -t tmpfs scratch {top}",
            f"mkdir {top}/upper {top}/work {top}/root",
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={top}/upper,workdir={top}/work {top}/root",
            f"mount -t proc proc {top}/root/proc",
            f"mount -t tmpfs run {top}/root/run",
            f"mount --bind /dev {top}/root/dev",
            f"exec chroot {top}/root sleep infinity",
        ]
        super().__init__(folder, setup)

    def is_up(self) -> bool:
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().startswith(b"sleep\0")


@contextlib.contextmanager
def root(lower: Path) -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="root-", dir="/var/tmp") as folder, Root(Path(folder), lower) as made:
        yield made
