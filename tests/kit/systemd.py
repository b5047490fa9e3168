"""A Linux host of the tests' own, with a real systemd: namespaces, and overlays over its folders.

systemd runs as process 1 there and starts nothing but what a test asks for. The network is the machine's own: loopback
only.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from kit.edge import until
from kit.left_out import leave_out

SYSTEMD = "/lib/systemd/systemd"
FOLDERS = ("/etc", "/usr/local", "/usr/sbin", "/var")
UNITS = "/etc/systemd/system"
# Not one unit of the distribution: they would clean /tmp, load modules and set sysctls of the machine that tests.
_TARGETS = ("sysinit", "basic", "multi-user", "network-online", "shutdown", "umount", "tested")
_ENVIRONMENT = (f"SYSTEMD_UNIT_PATH={UNITS}", "SYSTEMD_GENERATOR_PATH=/nonexistent", "container=tests")


class Systemd:
    """`run` runs a command on it; `path` is where its files are, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scratch = folder / "scratch"
        scratch.mkdir()
        # An upper layer must not itself be on an overlay, as a container's own files are.
        setup = ["set -e", "mount --make-rprivate /", f"mount -t tmpfs scratch {scratch}"]
        for place in FOLDERS:
            upper, work = scratch / f"upper{place}", scratch / f"work{place}"
            setup += [
                f"mkdir -p {upper} {work}",
                f"mount -t overlay overlay -o lowerdir={place},upperdir={upper},workdir={work} {place}",
            ]
        setup += [
            "mount -t tmpfs run /run",
            "mount -t tmpfs tmp /tmp",
            "umount -R /sys/fs/cgroup || true",
            "mount -t cgroup2 none /sys/fs/cgroup",
            f"rm -rf {UNITS}/*",
            *(f"printf '[Unit]\\nDefaultDependencies=no\\n' > {UNITS}/{name}.target" for name in _TARGETS),
            f"exec env {' '.join(_ENVIRONMENT)} {SYSTEMD} --system --unit=tested.target --show-status=no",
        ]
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "\n".join(setup)]
        with (folder / "log").open("wb") as log:
            self.init = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = 0

    def __enter__(self) -> Self:
        def booted() -> bool:
            if self.init.poll() is not None:
                leave_out(f"systemd cannot run in namespaces here: {(self.folder / 'log').read_text()}")
            children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
            self.pid = int(children[0]) if children else 0
            return bool(children) and self.run("systemctl", "is-active", "tested.target").returncode == 0

        until(booted, "systemd is up")
        return self

    def run(self, *words: str | Path, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "--", "env", *_ENVIRONMENT, *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def good(self, *words: str | Path) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Of a file on it, as this process sees it."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def __exit__(self, *_: object) -> None:
        self.init.send_signal(signal.SIGKILL)  # and with it, by --kill-child, all of it
        self.init.wait()


@contextlib.contextmanager
def systemd() -> Iterator[Systemd]:
    """A booted host."""
    if not Path(SYSTEMD).exists() or shutil.which("systemd-analyze") is None:
        leave_out("systemd is not here")
    with tempfile.TemporaryDirectory(prefix="linux-", dir="/var/tmp") as folder, Systemd(Path(folder)) as host:
        yield host
