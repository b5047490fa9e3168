"""A Linux host of the tests' own, with a real systemd: namespaces, and overlays over its folders.

systemd runs as process 1 there and starts nothing but what a test asks for. The network is the machine's own: loopback
only.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kit.left_out import leave_out
from kit.namespaces import Namespaces

SYSTEMD = "/lib/systemd/systemd"
FOLDERS = ("/etc", "/usr/local", "/usr/sbin", "/var")
UNITS = "/etc/systemd/system"
# Not one unit of the distribution: they would clean /tmp, load modules and set sysctls of the machine that tests.
_TARGETS = ("sysinit", "basic", "multi-user", "network-online", "shutdown", "umount", "tested")
_ENVIRONMENT = (f"SYSTEMD_UNIT_PATH={UNITS}", "SYSTEMD_GENERATOR_PATH=/nonexistent", "container=tests")


class Systemd(Namespaces):
    """Booted: process 1 is systemd, and its only target is reached."""

    enter = ("--", "env", *_ENVIRONMENT)

    def __init__(self, folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        # An upper layer must not itself be on an overlay, as a container's own files are.
        setup = [f"mount -t tmpfs scratch {scratch}"]
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
        super().__init__(folder, setup)

    def is_up(self) -> bool:
        return self.run("systemctl", "is-active", "tested.target").returncode == 0


@contextlib.contextmanager
def systemd() -> Iterator[Systemd]:
    if not Path(SYSTEMD).exists() or shutil.which("systemd-analyze") is None:
        leave_out("systemd is not here")
    with tempfile.TemporaryDirectory(prefix="linux-", dir="/var/tmp") as folder, Systemd(Path(folder)) as host:
        yield host
