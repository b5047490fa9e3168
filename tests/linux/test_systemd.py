"""On a Linux host: `agent install`, a real systemd, and an HAProxy that outlives its agent."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.edge import connect, first_line, until
from kit.onefile import PYTHON
from kit.servers import EchoServer, echo, free_port
from kit.ssh import state
from kit.systemd import Systemd, systemd

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/edgeagent.service"


@pytest.fixture
def host(pyz: Path, any_haproxy: Path) -> Iterator[Systemd]:
    """With HAProxy where Debian puts it, and the one file at /root."""
    with systemd() as machine:
        machine.path("/usr/sbin/haproxy").write_bytes(any_haproxy.read_bytes())
        machine.path("/usr/sbin/haproxy").chmod(0o755)
        machine.path("/usr/local/edgeagent.pyz").write_bytes(pyz.read_bytes())
        passwd = machine.path("/etc/passwd")
        if "haproxy:" not in passwd.read_text():
            passwd.write_text(f"{passwd.read_text()}haproxy:x:990:990::/nonexistent:/bin/false\n")
            group = machine.path("/etc/group")
            group.write_text(f"{group.read_text()}haproxy:x:990:\n")
        drop_in = machine.path("/etc/systemd/system/edgeagent.service.d")
        drop_in.mkdir(parents=True)  # no journal runs there
        (drop_in / "log.conf").write_text("[Service]\nStandardError=append:/var/log/edgeagent.log\n")
        yield machine


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as server:
        yield server


def test_the_unit_is_one_and_leaves_little_open():
    """Both are systemd's own judgement; its man page calls 5.0 medium."""
    done = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True, check=False)
    complaints = [
        line for line in done.stderr.splitlines() if "is not executable" not in line and "Command 'man" not in line
    ]
    assert complaints == []
    subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=40", UNIT], check=True, capture_output=True
    )


def test_without_haproxys_package_its_account_is_one_that_is_there(pyz: Path, tmp_path: Path):
    """Debian has a user nobody and no group of that name (its base-passwd)."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    one_file = [PYTHON, "-I", "-S", pyz]
    subprocess.run([*one_file, "install", "--root", tmp_path, "--platform", "linux"], check=True, capture_output=True)
    text = (tmp_path / "etc/edgeagent/agent.toml").read_text()
    assert 'user = "nobody"\ngroup = "nogroup"\n' in text
    subprocess.run([*one_file, "uninstall", "--root", tmp_path, "--purge"], check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"etc/passwd", "etc/group"}


def log(host: Systemd) -> str:
    return host.path("/var/log/edgeagent.log").read_text()


def main_pid(host: Systemd) -> str:
    return host.good("systemctl", "show", "--property=MainPID", "--value", "edgeagent").strip()


def haproxy_pid(host: Systemd) -> int:
    return int(json.loads(host.good("agent", "status", "--json"))["haproxy"]["pid"])


def test_install_serve_upgrade_and_remove(host: Systemd, backend: EchoServer):
    listed = host.good(PYTHON, "-I", "-S", "/usr/local/edgeagent.pyz", "install")
    assert "wrote /etc/systemd/system/edgeagent.service" in listed
    assert "systemctl enable --now edgeagent" in listed
    settings = host.path("/etc/edgeagent/agent.toml")
    assert 'user = "haproxy"' in settings.read_text()
    settings.write_text(settings.read_text() + '\n[metrics]\nlisten = ""\n')
    port = free_port()
    document = state(backend.address, port)
    next(iter(document["frontends"].values()))["rate_limit"] = {"connections": 1000, "period": "10s"}
    host.path("/etc/edgeagent/desired.yaml").write_text(json.dumps(document))

    host.good("systemctl", "enable", "--now", "edgeagent")  # returns once the agent has looked
    assert "The one frontend is serving" in host.run("agent", "status").stdout, log(host)
    assert first_line(port).startswith("a ")
    assert "/etc/systemd/system/edgeagent.service; enabled" in host.run("systemctl", "status", "edgeagent").stdout
    # Its folder can be written below a /usr that cannot: counts of rate limits go over a socket there, at each reload.
    assert "\npeers " in host.path("/var/lib/edgeagent/haproxy.cfg").read_text()
    assert "No change" in host.good("agent", "plan")  # outside of the unit's bounds it is the same
    agent, serving = main_pid(host), haproxy_pid(host)
    uid = re.search(r"^Uid:\s+(\d+)", host.path(f"/proc/{serving}/status").read_text(), re.MULTILINE)
    assert uid is not None
    assert uid[1] != "0"  # it has given root up, under the unit's own limits

    with connect(port) as session:
        assert session.recv(100).startswith(b"a ")
        new = host.path("/etc/edgeagent/new.json")
        new.write_text(json.dumps(state(backend.address, port, free_port(), serial=2)))
        done = host.run("agent", "sync", "/etc/edgeagent/new.json")  # a reload, inside the sandbox
        assert done.returncode == 0, done.stdout + done.stderr
        serving = haproxy_pid(host)

        host.good("systemctl", "reload", "edgeagent")
        assert main_pid(host) == agent
        host.good("systemctl", "kill", "--signal=KILL", "--kill-who=main", "edgeagent")
        until(lambda: main_pid(host) not in (agent, "0"), "it is started again")
        host.good("systemctl", "restart", "edgeagent")
        assert haproxy_pid(host) == serving
        host.good("systemctl", "stop", "edgeagent")
        assert first_line(port).startswith("a ")  # HAProxy goes on, and so does who was there
        session.sendall(b"still here")
        assert session.recv(100) == b"still here"

    host.good("systemctl", "start", "edgeagent")
    host.good("agent", "uninstall")
    assert first_line(port).startswith("a ")
    assert not host.path("/etc/systemd/system/edgeagent.service").exists()
    assert host.run("systemctl", "cat", "edgeagent").returncode != 0
    host.good(PYTHON, "-I", "-S", "/usr/local/edgeagent.pyz", "uninstall", "--purge")
    for path in ("/etc/edgeagent", "/var/lib/edgeagent", "/run/edgeagent", "/usr/local/libexec/edgeagent"):
        assert not host.path(path).exists(), path


def test_a_service_that_cannot_start_says_why(host: Systemd):
    host.good(PYTHON, "-I", "-S", "/usr/local/edgeagent.pyz", "install")
    settings = host.path("/etc/edgeagent/agent.toml")
    settings.write_text(settings.read_text() + "\n[paths]\nodd = 1\n")
    done = host.run("systemctl", "start", "edgeagent")
    assert done.returncode != 0
    assert "agent.toml" in host.run("agent", "status").stderr
