"""The one file, built once, and boxes that look like pfSense and like FreeBSD."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.box import Box, box
from kit.onefile import PYTHON

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pfsense(pyz: Path, any_haproxy: Path) -> Iterator[Box]:
    """A box that says that it is pfSense, with HAProxy where its package puts it, and the one file at /root."""
    with box() as one:
        one.put("/etc/pfSense-rc", b"#!/bin/sh\n", 0o755)  # as in src/etc of github.com/pfsense/pfsense
        one.put("/usr/local/sbin/haproxy", any_haproxy.read_bytes(), 0o755)
        one.put("/usr/local/edgeagent.pyz", pyz.read_bytes())
        one.sh("echo www:x:80: >> /etc/group; echo www:*:80:80::/nonexistent:/bin/false >> /etc/passwd")
        yield one


@pytest.fixture
def installed(pfsense: Box) -> Box:
    """With the agent installed."""
    install(pfsense)
    settings = pfsense.path("/usr/local/etc/edgeagent/agent.toml")
    settings.write_text(settings.read_text() + '\n[metrics]\nlisten = ""\n')
    pfsense.put("/usr/local/etc/rc.conf.d/edgeagent", b'edgeagent_enable="YES"\nedgeagent_stop_timeout=5\n')
    return pfsense


def install(one: Box, *words: str, pyz: str = "/usr/local/edgeagent.pyz") -> subprocess.CompletedProcess[str]:
    done = one.run(PYTHON, "-I", "-S", pyz, "install", "--root", "/", *words)
    assert done.returncode == 0, done.stderr
    return done
