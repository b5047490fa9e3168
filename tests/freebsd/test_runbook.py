"""docs/pfsense.md and the tutorial, executed: their commands, in their order, in a box that is no firewall."""

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


def commands(page: str) -> list[str]:
    """A line each; a here-document is one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced if not language]  # `text` is to be read, or another test's
    found = []
    for block in blocks:
        if "<<EOF" in block:
            found.append(block)
        else:
            found += [line.partition("#")[0].strip() for line in block.splitlines() if line.strip()]
    return found


def played(pfsense: Box, page: str) -> list[str]:
    """Run them; the first two words of each. An exit code that is not expected fails."""
    pfsense.sh(f"mkdir -p /usr/local/bin; ln -s {PYTHON} /usr/local/bin/python3.11")
    run = []
    for command in commands(page):
        if command.startswith(ELSEWHERE):
            continue
        # A Linux kernel is no FreeBSD, and finds its settings elsewhere.
        here = command.replace("/root/edgeagent.pyz", "/usr/local/edgeagent.pyz").replace("192.0.2.", "127.0.2.")
        here = here.replace(" install", " install --root /").replace(" uninstall", " uninstall --root /")
        settings = "EDGEAGENT_SETTINGS=/usr/local/etc/edgeagent/agent.toml"
        path = "PATH=/usr/local/bin:/usr/local/sbin:/sbin:/bin:/usr/sbin:/usr/bin"
        done = pfsense.run("env", path, *([] if "install" in here else [settings]), "sh", "-c", here)
        expected = next((code for start, code in EXPECTED.items() if command.startswith(start)), 0)
        assert done.returncode == expected, (command, done.stdout, done.stderr)
        run.append(" ".join(command.split()[:2]))
    return run


def test_the_runbook(pfsense: Box):
    # The worked deployment, on loopback: nothing here may speak to anybody else's address.
    config = (ROOT / "tests/golden/pfsense.xml").read_text().replace(">10.0.", ">127.0.")
    pfsense.put("/cf/conf/config.xml", config.encode())
    run = played(pfsense, "docs/pfsense.md")
    assert run == [
        "python3.11 /root/edgeagent.pyz", "agent import", "agent check", "agent doctor", "agent plan",
        "/usr/local/etc/rc.d/edgeagent.sh start", "agent status", "agent uninstall", "python3.11 /root/edgeagent.pyz",
    ]  # fmt: skip
    assert not pfsense.path("/usr/local/libexec/edgeagent").exists()
    assert pfsense.run("pgrep", "-x", "edge-haproxy").returncode == 1


def test_the_tutorial(pfsense: Box):
    """Nobody answers at its nodes here, and the plan says so."""
    assert played(pfsense, "docs/tutorials/pfsense.md") == [
        "python3.11 /root/edgeagent.pyz", "cat >", "agent check", "agent plan",
        "cp /root/new.yaml", "agent doctor", "/usr/local/etc/rc.d/edgeagent.sh start", "agent status",
    ]  # fmt: skip
