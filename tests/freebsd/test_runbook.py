"""docs/pfsense.md, executed: its commands, in its order, in a box. Said where the box is not a firewall."""

from __future__ import annotations

import re
from pathlib import Path

from kit.box import Box
from kit.onefile import PYTHON

ROOT = Path(__file__).parents[2]
# What ends with another code than 0, and why: frontends without servers, addresses that are not here.
EXPECTED = {"agent import": 6, "agent doctor": 6, "agent status": 6}
# Done by other tests: building and copying, keys, ssh; the newer version is test_install's.
ELSEWHERE = (
    "make pyz",
    "scp ",
    "agent gate",
    "agent sync",
    "python3.11 /root/edgeagent-NEW.pyz",
    "agent install --revert",
)


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs/pfsense.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_runbook(pfsense: Box):
    # The worked deployment, on loopback: nothing here may speak to anybody else's address.
    config = (ROOT / "tests/golden/pfsense.xml").read_text().replace(">10.0.", ">127.0.")
    pfsense.put("/cf/conf/config.xml", config.encode())
    pfsense.sh(f"mkdir -p /usr/local/bin; ln -s {PYTHON} /usr/local/bin/python3.11")
    run = []
    for command in commands():
        if command.startswith(ELSEWHERE):
            continue
        # A Linux kernel is no FreeBSD, and finds its settings elsewhere.
        here = command.replace("/root/edgeagent.pyz", "/usr/local/edgeagent.pyz")
        here = here.replace(" install", " install --root /").replace(" uninstall", " uninstall --root /")
        settings = "EDGEAGENT_SETTINGS=/usr/local/etc/edgeagent/agent.toml"
        path = "PATH=/usr/local/bin:/usr/local/sbin:/sbin:/bin:/usr/sbin:/usr/bin"
        done = pfsense.run("env", path, *([] if "install" in here else [settings]), "sh", "-c", here)
        expected = next((code for start, code in EXPECTED.items() if command.startswith(start)), 0)
        assert done.returncode == expected, (command, done.stdout, done.stderr)
        run.append(" ".join(command.split()[:2]))
    assert run == [
        "python3.11 /root/edgeagent.pyz", "agent import", "agent check", "agent doctor", "agent plan",
        "/usr/local/etc/rc.d/edgeagent.sh start", "agent status", "agent uninstall", "python3.11 /root/edgeagent.pyz",
    ]  # fmt: skip
    assert not pfsense.path("/usr/local/libexec/edgeagent").exists()
    assert pfsense.run("pgrep", "-x", "edge-haproxy").returncode == 1
