"""What this host allows a process of ours: connections by agent.toml, open files by the system."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from agent.desired.state import Limits
from agent.settings import Settings

_CAP_SYS_RESOURCE = 24  # linux/capability.h


def limits_of(settings: Settings) -> Limits:
    """The limits that a document is checked against."""
    return Limits(process_maxconn=settings.haproxy.maxconn, file_limit=file_limit())


def file_limit() -> int | None:
    """How many files a process of ours may open at most; None where that is not known to be a bound.

    A process with CAP_SYS_RESOURCE raises its own limit, up to the kernel's; root without it (a container) cannot. On
    FreeBSD root can, and the kernel's own bound is not looked at here.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if effective is not None and int(effective[1], 16) >> _CAP_SYS_RESOURCE & 1:
            return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        if os.geteuid() == 0:
            return None
    return None if hard == resource.RLIM_INFINITY else hard
