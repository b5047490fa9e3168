"""Two hosts of the test's own: network namespaces, joined by a cable. As root on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kit.left_out import leave_out

CLONE_NEWNET = 0x40000000  # linux/sched.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts(near_address: str = "10.99.0.1", far_address: str = "10.99.0.2") -> Iterator[tuple[str, str]]:
    """The names of two namespaces, the near one and the far one, with these addresses of one /24 network."""
    near, far = f"edge-near-{os.getpid()}", f"edge-far-{os.getpid()}"
    with contextlib.ExitStack() as undo:
        for name in (near, far):
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError):
                leave_out("no network namespace can be made here (root, iproute2)")
            undo.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
        for name, address in ((near, f"{near_address}/24"), (far, f"{far_address}/24")):
            ip("-n", name, "address", "add", address, "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield near, far


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, and whatever it starts, is on that host."""
    # Not os.setns: Python has it from 3.12 on.
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
        assert _LIBC.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _LIBC.setns(home.fileno(), CLONE_NEWNET) == 0


def swallow(far: str) -> None:
    """From now on the far host's answers to the near one are lost: it has gone silent, it refuses nothing."""
    ip("-n", far, "route", "add", "blackhole", "10.99.0.1/32")
