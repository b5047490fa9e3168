"""The rc script under dash, with stand-ins for FreeBSD's base: every verb, twice, and with what can have gone wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.box import Box
from kit.edge import first_line, until
from kit.onefile import PYTHON
from kit.servers import EchoServer, echo, free_port

from agent.view.status import when

RC = "/usr/local/etc/rc.d/edgeagent.sh"
SUPERVISOR, CHILD = "/run/edgeagent-supervisor.pid", "/run/edgeagent.pid"  # /var/run is a link


@pytest.fixture
def backend() -> Iterator[EchoServer]:
    with echo("a") as one:
        yield one


@pytest.fixture
def serving(installed: Box, backend: EchoServer) -> tuple[Box, int]:
    """Started, with one frontend live on a port."""
    port = free_port()
    document = {
        "version": 1,
        "frontends": {"f": {"bind": [f"127.0.0.1:{port}"], "backend": "b"}},
        "backends": {"b": {"servers": {"a": {"address": backend.address}}}},
    }
    installed.put("/usr/local/etc/edgeagent/desired.yaml", json.dumps(document).encode())
    said = verb(installed, "start")
    assert "edgeagent runs (agent " in said
    until(lambda: greets(port), "it is live")
    return installed, port


def greets(port: int) -> bool:
    with contextlib.suppress(OSError):
        return first_line(port) != ""
    return False


def verb(box: Box, word: str, code: int = 0) -> str:
    done = box.run("dash", RC, word)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def pid(box: Box, file: str) -> int:
    """As the box counts."""
    return int(box.path(file).read_text())


def agents(box: Box) -> list[str]:
    return box.sh("pgrep -f '[e]dgeagent-.*pyz.* run' || true").split()


def signalled(box: Box, name: str, number: int) -> None:
    box.sh(f"kill -{name} {number}")


def test_a_process_called_agent_is_no_concern_of_ours(installed: Box):
    """There are many (ssh-agent's own is none of them); rc.subr takes `NAME_program` as the process to look for."""
    other = installed.start("bash", "-c", "exec -a agent sleep 600")
    try:
        until(lambda: "agent 600" in installed.sh("ps -ax -o args="), "it runs")
        for word in ("start", "restart", "reload", "status"):
            verb(installed, word)
        assert len(agents(installed)) == 1
        assert "Stopping" in verb(installed, "stop")
        assert agents(installed) == []
        assert "agent 600" in installed.sh("ps -ax -o args=")
    finally:
        other.kill()
        other.wait()


def test_configtest_exits_as_check_does_and_where_it_is_not_enabled_too(installed: Box):
    installed.put("/usr/local/etc/rc.conf.d/edgeagent", b'edgeagent_enable="NO"\n')
    installed.put("/usr/local/etc/edgeagent/desired.yaml", b"version: 1\nfrontends: {x: 1}\n")
    assert "frontends.x: expected a mapping" in verb(installed, "configtest", 3)
    installed.put("/usr/local/etc/edgeagent/desired.yaml", b"version: 1\n")
    assert "valid: 0 frontends" in verb(installed, "configtest", 0)
    assert "valid: 0 frontends" in verb(installed, "oneconfigtest", 0)


def test_it_never_runs_in_a_service_jail_of_its_own(installed: Box):
    """Where `svcj_all_enable` is on, rc.subr starts every service in a jail (run_rc_command, ${name}_svcj)."""
    installed.put(
        "/root/show", b'svcj_all_enable="YES"\n. /usr/local/etc/rc.d/edgeagent\necho "svcj=$edgeagent_svcj"\n'
    )
    assert "svcj=NO" in installed.sh("set -- rcvar; . /root/show")


def test_the_old_name_of_the_variable_is_still_read(installed: Box):
    installed.sh("cp /usr/local/bin/agent /usr/local/bin/another")
    installed.put(
        "/usr/local/etc/rc.conf.d/edgeagent", b'edgeagent_enable="YES"\nedgeagent_program="/usr/local/bin/another"\n'
    )
    said = verb(installed, "start")
    assert "edgeagent_program is edgeagent_command_file now" in said
    assert len(agents(installed)) == 1
    verb(installed, "stop")


def test_start_twice_is_one_agent_that_looks_again(serving: tuple[Box, int]):
    box, _ = serving
    first = pid(box, SUPERVISOR), pid(box, CHILD)
    said = verb(box, "start")
    assert "runs already" in said
    assert (pid(box, SUPERVISOR), pid(box, CHILD)) == first
    assert agents(box) == [str(first[1])]


def test_two_starts_at_once_are_one_agent(installed: Box):
    both = [installed.start("dash", RC, "start") for _ in range(2)]
    codes = [one.wait(60) for one in both]
    assert codes == [0, 0]
    assert len(agents(installed)) == 1


def test_it_is_not_started_where_it_is_not_enabled(installed: Box):
    installed.put("/usr/local/etc/rc.conf.d/edgeagent", b'edgeagent_enable="NO"\nedgeagent_stop_timeout=5s\n')
    assert "Set edgeagent_enable to YES" in verb(installed, "start")
    assert agents(installed) == []
    assert "is no number of seconds; 20 it is" in verb(installed, "onestart")
    assert len(agents(installed)) == 1
    assert "Stopping" in verb(installed, "stop")  # what is off can be stopped
    assert agents(installed) == []


def test_an_agent_without_its_supervisor_is_replaced(serving: tuple[Box, int]):
    box, port = serving
    orphan = str(pid(box, CHILD))
    signalled(box, "KILL", pid(box, SUPERVISOR))
    assert "Ending an agent without a supervisor" in verb(box, "start")
    assert len(agents(box)) == 1
    assert agents(box) != [orphan]
    assert "running as pid" in verb(box, "status")
    verb(box, "stop")
    assert agents(box) == []
    assert greets(port)


def test_a_start_while_it_stops_leaves_one_or_none_that_can_be_stopped(serving: tuple[Box, int]):
    box, _ = serving
    for _ in range(3):
        stopping, starting = box.start("dash", RC, "stop"), box.start("dash", RC, "start")
        assert (stopping.wait(60), starting.wait(60)) == (0, 0)
        assert len(agents(box)) <= 1
        verb(box, "start")
        assert agents(box) == [str(pid(box, CHILD))]
    verb(box, "stop")
    assert agents(box) == []


def test_who_reads_our_files_is_not_us(installed: Box):
    reader = installed.start("tail", "-f", "/usr/local/etc/edgeagent/agent.toml")
    until(lambda: installed.run("pgrep", "-x", "tail").returncode == 0, "it reads")
    theirs = installed.sh("pgrep -x tail").split()[-1]
    for file in (SUPERVISOR, CHILD):
        installed.put(file, theirs.encode())
    assert "does not run" in verb(installed, "stop")
    verb(installed, "start")
    assert reader.poll() is None
    reader.kill()
    reader.wait()


def test_stop_leaves_haproxy_and_an_open_session(serving: tuple[Box, int]):
    box, port = serving
    with socket.create_connection(("127.0.0.1", port)) as session:
        greeting = session.recv(100)
        said = verb(box, "stop")
        assert "HAProxy goes on serving" in said
        assert agents(box) == []
        session.sendall(b"still\n")
        assert session.recv(100) != b""
        assert first_line(port) == greeting.decode().strip()
    assert "does not run" in verb(box, "stop")
    assert "not running" in verb(box, "status", 1)
    # And a start adopts what runs.
    haproxy = box.sh("pgrep -x edge-haproxy")
    verb(box, "start")
    assert box.sh("pgrep -x edge-haproxy") == haproxy


def test_stopall_ends_haproxy_too(serving: tuple[Box, int]):
    box, port = serving
    assert "goes on serving" not in verb(box, "stopall")
    assert box.run("pgrep", "-x", "edge-haproxy").returncode == 1
    assert not greets(port)
    assert verb(box, "stopall").count("does not run") == 1


def test_restart_and_reload_and_status_and_configtest(serving: tuple[Box, int]):
    box, port = serving
    before = pid(box, CHILD)
    assert "running as pid" in verb(box, "status")
    status = box.path("/run/edgeagent/status.json")
    told = json.loads(status.read_text())["desired"]["read"]
    until(lambda: when(time.time()) > told, "its second is over")
    assert "looks at the desired state now" in verb(box, "reload")
    until(lambda: json.loads(status.read_text())["desired"]["read"] != told, "it has looked again", 10)
    assert pid(box, CHILD) == before
    verb(box, "restart")
    assert pid(box, CHILD) != before
    assert first_line(port)
    assert "valid" in verb(box, "configtest")
    box.put("/usr/local/etc/edgeagent/desired.yaml", b"version: 2\n")
    assert "version" in verb(box, "configtest", 3)
    verb(box, "restart")  # an invalid document keeps no agent from starting: what is live goes on
    assert first_line(port)
    verb(box, "stop")
    assert "does not run" in verb(box, "reload", 1)
    assert "unknown directive" in verb(box, "nonsense", 1)


def test_stale_pid_files_are_nobodys(installed: Box):
    other = installed.start("sleep", "1000")
    # It is nsenter at first, and then itself.
    theirs = until(lambda: installed.run("pgrep", "-x", "sleep").stdout.split(), "it runs")[-1]
    for file in (SUPERVISOR, CHILD):
        installed.put(file, theirs.encode())
    assert "not running" in verb(installed, "status", 1)
    assert "does not run" in verb(installed, "stop")
    for junk in (b"", b"abc\n", b"-1\n", b"999999\n"):
        for file in (SUPERVISOR, CHILD):
            installed.put(file, junk)
        verb(installed, "start")
        assert len(agents(installed)) == 1
        verb(installed, "stop")
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_child_that_is_killed_is_started_again(serving: tuple[Box, int]):
    box, port = serving
    before = pid(box, CHILD)
    signalled(box, "KILL", before)
    until(lambda: "running as pid" in box.run("dash", RC, "status").stdout, "the supervisor has started it again", 20)
    assert pid(box, CHILD) != before
    assert first_line(port)


def test_a_wedged_agent_is_stopped_in_bounded_time(serving: tuple[Box, int]):
    box, port = serving
    wedged = pid(box, CHILD)
    signalled(box, "STOP", wedged)
    said = verb(box, "stop")
    assert "did not end within 5 s: killed" in said
    assert agents(box) == []
    assert "not running" in verb(box, "status", 1)
    assert first_line(port)


DAEMON = (Path(__file__).parent / "base/daemon").read_text()
VINTAGES = ("2023", "2024")


def vintage(box: Box, year: str) -> None:
    """The daemon(8) of that year (tests/freebsd/base/daemon)."""
    box.put("/usr/sbin/daemon", DAEMON.replace("VINTAGE = 2024", f"VINTAGE = {year}").encode(), 0o755)


@pytest.mark.parametrize("year", VINTAGES)
def test_stop_between_two_children_leaves_none(installed: Box, year: str):
    """The child has just died, and its supervisor sleeps before it starts another (daemon_sleep of daemon.c)."""
    vintage(installed, year)
    verb(installed, "start")
    child = pid(installed, CHILD)
    signalled(installed, "KILL", child)
    until(lambda: str(child) not in installed.sh("ps -ax -o pid=").split(), "its supervisor knows of its end")
    assert "Stopping" in verb(installed, "stop")
    assert agents(installed) == []
    assert installed.run("pgrep", "-x", "daemon").returncode == 1


@pytest.mark.parametrize("year", VINTAGES)
@pytest.mark.parametrize("supervisor", ["alive", "killed"])
def test_stop_ends_a_stopped_child(installed: Box, year: str, supervisor: str):
    vintage(installed, year)
    verb(installed, "start")
    signalled(installed, "STOP", pid(installed, CHILD))
    if supervisor == "killed":
        signalled(installed, "KILL", pid(installed, SUPERVISOR))
    assert "did not end within 5 s: killed" in verb(installed, "stop")
    assert agents(installed) == []
    assert installed.run("pgrep", "-x", "daemon").returncode == 1


def wiped(box: Box) -> None:
    """/var/run as a pfSense wipes it under running services.

    Moved away first: the agent that just began writes there, and `rm -rf` alone then ends with "Directory not empty".
    """
    box.sh("mkdir /run/.gone && mv /run/* /run/.gone/ && rm -rf /run/.[!.]*")


@pytest.mark.parametrize("year", VINTAGES)
def test_a_wiped_var_run_hides_no_agent(serving: tuple[Box, int], year: str):
    """daemon(8)'s pid files go, the lock on the state folder does not (facts.md, pfSense 18)."""
    box, port = serving
    verb(box, "stop")
    vintage(box, year)
    verb(box, "start")
    first, supervisor = agents(box), str(pid(box, SUPERVISOR))
    wiped(box)
    assert "runs already" in verb(box, "start")
    assert agents(box) == first
    assert f"running as pid {first[0]}" in verb(box, "status")
    assert "looks at the desired state now" in verb(box, "reload")
    wiped(box)
    assert "Stopping" in verb(box, "stop")
    assert agents(box) == []
    assert supervisor not in box.sh("ps -ax -o pid=").split()
    assert "not running" in verb(box, "status", 1)
    assert greets(port)
    verb(box, "start")
    assert len(agents(box)) == 1


def test_an_agent_that_ends_while_its_parent_is_asked_for_is_gone(installed: Box):
    """Between the lock and ps(1): sh(1) ended the whole verb with 2, since nothing is no arithmetic expression."""
    verb(installed, "start")
    wiped(installed)
    installed.put("/usr/sbin/ps", b'#!/bin/sh\ncase "$*" in *ppid=*) exit 1 ;; esac\nexec /usr/bin/ps "$@"\n', 0o755)
    assert "Stopping" in verb(installed, "stop")
    assert agents(installed) == []


def test_a_stopped_agent_whose_pid_files_are_gone_is_stopped(installed: Box):
    verb(installed, "start")
    signalled(installed, "STOP", pid(installed, CHILD))
    wiped(installed)
    assert "killed" in verb(installed, "stop")
    assert agents(installed) == []


def test_an_agent_started_by_hand_is_seen_and_left_running(installed: Box):
    by_hand = installed.start("/usr/local/bin/agent", "--settings=/usr/local/etc/edgeagent/agent.toml", "run")
    until(lambda: "is running as pid" in installed.run("dash", RC, "status").stdout, "it looks", 20)
    first = agents(installed)
    assert "started by hand" in verb(installed, "start")
    assert agents(installed) == first
    assert "Stopping" in verb(installed, "stop")
    assert agents(installed) == []
    by_hand.wait()


def test_a_start_that_cannot_says_why(installed: Box):
    installed.put("/usr/local/etc/edgeagent/agent.toml", b"[paths]\nnonsense = 1\n")
    said = verb(installed, "start", 1)
    assert "edgeagent was not started: " in said
    assert "nonsense" in said
    assert agents(installed) == []
    installed.path("/usr/local/bin/agent").unlink()
    assert "install it" in verb(installed, "start", 1)


def test_the_haproxy_package_finds_nothing_of_ours_and_kills_nothing_of_ours(serving: tuple[Box, int]):
    box, port = serving
    assert box.run("pgrep", "-x", "haproxy").returncode == 1
    assert box.run("killall", "haproxy").returncode == 1  # no process of that name
    assert first_line(port)
    # Their own, beside ours: each goes on without the other.
    theirs = free_port()
    config = f"""
defaults
    mode tcp
    timeout client 5s
    timeout server 5s
    timeout connect 1s
listen x
    bind 127.0.0.1:{theirs}
    server a 127.0.0.1:{port}
"""
    box.put("/var/theirs.cfg", config.encode())
    box.sh("/usr/local/sbin/haproxy -D -f /var/theirs.cfg -p /var/theirs.pid")
    until(lambda: greets(theirs), "theirs serves through ours")
    verb(box, "stopall")
    assert box.run("pgrep", "-x", "haproxy").returncode == 0
    box.sh("pkill -x haproxy")


def test_the_commands_of_the_one_file(serving: tuple[Box, int]):
    """check, apply, run, sync and doctor, where there is nothing but Python and HAProxy."""
    box, port = serving

    def agent(*words: str) -> subprocess.CompletedProcess[str]:
        return box.run("/usr/local/bin/agent", "--settings", "/usr/local/etc/edgeagent/agent.toml", *words)

    document = json.loads(box.path("/usr/local/etc/edgeagent/desired.yaml").read_text())
    document["frontends"]["f"]["maxconn"] = 77
    box.put("/var/new.yaml", json.dumps(document).encode())
    assert agent("check", "/var/new.yaml").returncode == 0
    done = agent("sync", "/var/new.yaml", "--json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "committed"), done.stderr
    assert agent("apply").returncode == 0
    told = json.loads(agent("doctor", "--json").stdout)
    levels = {one["what"]: one["level"] for one in told["findings"]}
    assert (levels["psutil"], levels["agent"], levels["stats socket"], levels["boot"]) == ("note", "ok", "ok", "ok")
    assert greets(port)


def test_the_smoke_list_of_a_real_box_passes_in_this_one(pfsense: Box):
    """So that who runs it there meets FreeBSD's differences, and none of the script's own."""
    pfsense.put("/usr/local/smoke.sh", (Path(__file__).parent / "smoke.sh").read_bytes())
    pfsense.put("/usr/local/etc/rc.conf.d/edgeagent", b'edgeagent_enable="YES"\n')
    words = ("env", "SMOKE_ROOT=/", f"PYTHON={PYTHON}", "dash", "/usr/local/smoke.sh", "/usr/local/edgeagent.pyz")
    done = pfsense.run(*words, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("pass", "FAIL"))]
    assert len(lines) == 25
    assert done.stdout.endswith("all passed\n")
