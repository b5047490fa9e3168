"""Whatever is killed, and whatever is left behind: the old generation or the new one, and never nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from kit.binaries import VERSIONS
from kit.edge import first_line, until
from kit.servers import echo, free_port
from kit.web import page, web
from kit.zygote import Zygote

from agent.desired.identity import digest_of
from agent.host.store import Store
from agent.reconcile.generation import Journal
from tests.faults.conftest import Scene

TEMPLATE = (Path(__file__).parents[2] / "templates/haproxy.cfg.j2").read_text()
STATIC = TEMPLATE.replace("{{ line }}", '{{ line | replace("balance roundrobin", "balance static-rr") }}')

NEVER = 10**9
KILLED = -signal.SIGKILL
FIFO_WAITS = ("wait_for_partner", "fifo_open")  # fs/pipe.c


def consistent(scene: Scene) -> None:
    """The files say one thing: HAProxy is started with the live generation's haproxy.cfg, and nothing is half done."""
    state = scene.edge.folder / "state"
    live = Store(state, scene.edge.folder / "run").live()
    assert live is not None
    assert (state / "haproxy.cfg").read_bytes() == (state / f"generations/{live.number:06d}/haproxy.cfg").read_bytes()
    assert not (state / "journal.json").exists()
    assert not list((state / "generations").glob("*.staged"))
    assert live.digest == digest_of(scene.edge.desired.read_bytes())
    running = scene.edge.haproxy.running()
    assert running is not None
    assert running.generation in (live.number, live.loaded)


def as_desired(scene: Scene) -> None:
    """HAProxy's servers are those of the desired file, to the weight."""
    desired = json.loads(scene.edge.desired.read_bytes())["backends"]["back"]["servers"]
    seen = {server.name: server for server in scene.edge.haproxy.observe().servers if server.backend == "back"}
    assert {name: (seen[name].address, seen[name].weight, seen[name].maintenance) for name in desired} == {
        name: (one["address"], one.get("weight", 1), one.get("disabled", False)) for name, one in desired.items()
    }
    assert all(seen[name].maintenance for name in seen.keys() - desired.keys())


@pytest.mark.parametrize("how", ["runtime", "reload", "fallback"])
def test_an_agent_that_is_killed_at_any_effect_of_a_change(scene: Scene, how: str):
    """Every effect there is, each on one of the HAProxys: what is left is the old state or the new one.

    Of what was killed every other one is looked at again with the old file in its place: then all of it must be gone.

    The fallback from commands to a reload is the template's doing: with `balance static-rr` HAProxy does not take every
    command ("Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.", src/server.c).
    """
    edge, port = scene.edge, free_port()
    if how == "fallback":
        (edge.folder / "templates/haproxy.cfg.j2").write_text(STATIC)
    share = VERSIONS.index(scene.version)
    with echo("a") as a, echo("b") as b, echo("c") as c, Zygote() as agents:
        states = [
            scene.with_pool(port, a, c, **({"balance": "leastconn"} if how == "reload" else {})),
            scene.with_pool(port, b, c, **({"balance": "random"} if how == "reload" else {})),
        ]
        states[1]["backends"]["back"]["servers"]["c"] |= {"weight": 9}
        states[0]["backends"]["back"]["servers"]["d"] = {"address": b.address, "disabled": True}
        states[1]["backends"]["back"]["servers"]["d"] = {"address": b.address}
        if how == "fallback":  # the address is taken, then the weight is not
            pool = states[1]["backends"]["back"]
            pool["servers"] = {"a": pool["servers"].pop("b"), **pool["servers"]}
        edge.live(states[0])
        if how == "fallback":
            done = edge.apply(states[1])
            assert "Backend is using a static LB" in done.stdout, done.stdout + done.stderr
            edge.live(states[0])
        turns = killed = now = 0
        with scene.fault(f"the agent killed at each of its effects, by {how}") as after:
            while killed == turns:
                number = 1 + share + turns * len(VERSIONS)
                other = edge.file(states[1 - now])
                code = agents.run("--settings", edge.settings, "apply", other, kill_at=number)
                assert code in (KILLED, 0), f"effect {number}: exit {code}\n{agents.output}"
                assert first_line(port)[0] in "abc", f"effect {number}"
                turns, killed = turns + 1, killed + (code == KILLED)
                if turns % 2:
                    now = 1 - now
                edge.put(states[now])
                code = agents.run("--settings", edge.settings, "apply", kill_at=NEVER)
                assert code == 0, f"after effect {number}: exit {code}\n{agents.output}"
                consistent(scene)
                as_desired(scene)
            after("the old state or the new one; whichever is wanted after the next look")
        assert killed >= 10


@pytest.mark.parametrize("how", ["runtime", "reload"])
def test_an_agent_that_is_killed_at_any_effect_of_a_rollback(scene: Scene, how: str):
    """A document whose checks fail is applied and killed on the way there, or on the way back."""
    edge, port = scene.edge, free_port()
    share = VERSIONS.index(scene.version)
    with web("good", ready=True) as good, web("bad", ready=False) as bad, Zygote() as agents:

        def state(address: str, **more: str) -> dict:
            # One stall of a busy machine is no dead server: with nothing at stake the bad document would just go live.
            health = {"type": "http", "interval": "20ms", "fall": 4}
            pool = {"proxy_protocol": "none", "health": health, "servers": {"only": {"address": address}}, **more}
            return scene.state({"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}}, {"back": pool})

        fine, broken = state(good), state(bad, **({"balance": "first"} if how == "reload" else {}))
        edge.live(fine)
        turns = killed = 0
        with scene.fault(f"the agent killed at each effect of a rollback, by {how}") as after:
            while killed == turns:
                number = 1 + share + turns * len(VERSIONS)
                code = agents.run("--settings", edge.settings, "apply", edge.file(broken), kill_at=number)
                assert code in (KILLED, 5), f"effect {number}: exit {code}\n{agents.output}"
                turns, killed = turns + 1, killed + (code == KILLED)
                edge.put(fine)
                code = agents.run("--settings", edge.settings, "apply", kill_at=NEVER)
                assert code == 0, f"after effect {number}: exit {code}\n{agents.output}"
                consistent(scene)
                as_desired(scene)
                # A check of the bad address may end only now, and is then held against the good one until the next two.
                until(lambda: page(port) == "good", f"effect {number}: the old server", 2)
            after("the old state after the next look")
        assert killed >= 10


def test_an_agent_that_is_killed_at_any_effect_of_a_drift_correction(scene: Scene):
    """A silent server was deleted at the socket: it is added again, by `drain`, `health down`, `ready`."""
    edge, port = scene.edge, free_port()
    share = VERSIONS.index(scene.version)
    with echo("a") as a, Zygote() as agents:
        state = scene.with_pool(port, a)
        state["backends"]["back"]["servers"]["dead"] = {"address": f"127.0.0.1:{free_port()}"}
        edge.live(state)
        ask = edge.haproxy.socket.ask
        turns = killed = 0
        with scene.fault("the agent killed at each effect of a drift correction") as after:
            while killed == turns:
                for command in ("set server back/dead state maint", "del server back/dead"):
                    ask(command)
                number = 1 + share + turns * len(VERSIONS)
                code = agents.run("--settings", edge.settings, "apply", kill_at=number)
                assert code in (KILLED, 0), f"effect {number}: exit {code}\n{agents.output}"
                turns, killed = turns + 1, killed + (code == KILLED)
                code = agents.run("--settings", edge.settings, "apply", kill_at=NEVER)
                assert code == 0, f"after effect {number}: exit {code}\n{agents.output}"
                consistent(scene)
                as_desired(scene)
                seen = {server.name: server for server in edge.haproxy.observe().servers if server.backend == "back"}
                assert not seen["dead"].draining, f"effect {number}"
                assert not seen["dead"].up, f"effect {number}"
            after("as it was, without a reload")
        assert killed >= 5


def test_an_agent_that_is_killed_at_random_moments(scene: Scene):
    edge, port = scene.edge, free_port()
    moments = random.Random(scene.version)  # the same in every run
    with echo("a") as a, echo("b") as b, echo("c") as c:
        pools = [(a,), (a, b), (b, c), (a, b, c), (c,)]
        edge.live(scene.with_pool(port, a))
        with scene.fault("the agent killed at random moments of changes") as after:
            for turn in range(17):
                service = edge.serve()
                more = {"balance": moments.choice(["first", "random", "leastconn"])} if turn % 2 else {}
                edge.put(scene.with_pool(port, *moments.choice(pools), **more))
                # The moment is the point: not an event, but anywhere in the fifth of a second that a change takes.
                time.sleep(moments.uniform(0, 0.2))
                service.kill()
                service.wait()
                assert first_line(port)
            edge.put(scene.with_pool(port, b, balance="leastconn"))
            edge.serve()
            until(
                lambda: (edge.status()["live"] or {}).get("digest") == digest_of(edge.desired.read_bytes()),
                "the newest state",
            )
            until(lambda: {first_line(port)[0] for _ in range(4)} == {"b"}, "its servers")
            consistent(scene)
            after("the newest state, after the next start")


def test_haproxy_that_is_killed_is_back_within_two_seconds(scene: Scene):
    edge = scene.edge
    edge.live(scene.state())
    edge.serve()
    config = (edge.folder / "state/haproxy.cfg").read_bytes()
    with scene.fault("HAProxy killed", lossless=False) as after:
        pid = edge.pid
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        until(lambda: (running := edge.haproxy.running()) and running.pid != pid, "a new HAProxy")
        until(lambda: _served(scene.port), "clients served")
        assert time.monotonic() - start < 2
        assert (edge.folder / "state/haproxy.cfg").read_bytes() == config
        after("the live generation, the very same file")
    until(lambda: edge.status()["counters"].get("drift_corrections.process") == 1, "counted")


def _served(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(first_line(port))
    return False


def test_a_socket_file_that_nobody_listens_on(scene: Scene):
    edge = scene.edge
    edge.live(scene.state())
    os.kill(edge.pid, signal.SIGKILL)
    until(lambda: edge.haproxy.running() is None, "it is gone")
    assert (edge.folder / "run/haproxy.sock").exists()
    assert edge.agent("apply").returncode == 0
    with scene.fault("a stale socket file, a stale pid file") as after:
        assert edge.haproxy.running() is not None
        after("the live generation")


@pytest.mark.parametrize("start", ["hot", "cold"])
def test_a_pid_file_that_names_somebody_else(scene: Scene, start: str):
    edge = scene.edge
    edge.live(scene.state())
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as foreign:
        if start == "cold":
            edge.haproxy.stop()
        (edge.folder / "run/haproxy.pid").write_text(f"{foreign.pid}\n")
        if start == "cold":
            assert edge.apply(scene.state(defaults={"maxconn": 77})).returncode == 0
        with scene.fault(f"a pid file that names a foreign process, {start}") as after:
            if start == "hot":
                assert edge.apply(scene.state(defaults={"maxconn": 77})).returncode == 0
            assert foreign.poll() is None
            after("the new state; the foreign process lives")
        assert foreign.stdin is not None
        foreign.stdin.close()


def test_a_socket_that_is_gone_while_haproxy_runs(scene: Scene):
    """Nobody can hand sockets over without it: a new process binds beside the old one, which then lets go."""
    edge = scene.edge
    edge.live(scene.state())
    pid = edge.pid
    (edge.folder / "run/haproxy.sock").unlink()
    with scene.fault("the -x socket dead", lossless=False) as after:
        done = edge.apply(scene.state(defaults={"maxconn": 77}))
        assert done.returncode == 0, done.stderr
        assert edge.pid != pid
        after("the new state")


@pytest.mark.parametrize("how", ["its files", "itself"])
def test_a_run_folder_that_is_wiped(scene: Scene, how: str):
    """PfSense does it; and where the socket is gone, so are the sockets it would hand over."""
    edge = scene.edge
    edge.live(scene.state())
    edge.serve()
    pid = edge.pid
    with scene.fault(f"the run folder wiped ({how})", lossless=False) as after:
        run = edge.folder / "run"
        if how == "itself":  # in one step: the agent writes into it meanwhile
            shutil.rmtree(run.rename(edge.folder / "wiped"), ignore_errors=True)
        else:
            [path.unlink() for path in run.iterdir()]
        until(lambda: (running := edge.haproxy.running()) and running.pid != pid, "a HAProxy that answers")
        after("the live generation")
    assert edge.services[0].poll() is None


def test_a_desired_file_that_is_deleted(scene: Scene):
    edge = scene.edge
    edge.live(scene.state())
    edge.serve()
    pid = edge.pid
    with scene.fault("the desired file deleted") as after:
        edge.desired.unlink()
        edge.wait("invalid")
        assert edge.pid == pid
        after("what was live")


@pytest.mark.parametrize("name", ["report.json", "desired.yaml", "haproxy.cfg"])
@pytest.mark.parametrize("damage", [b"", b'{"number": 2, "dig', bytes(range(200))], ids=["empty", "cut short", "junk"])
def test_a_generation_that_is_damaged(scene: Scene, name: str, damage: bytes):
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b:
        edge.live(scene.with_pool(port, a))
        edge.live(state := scene.with_pool(port, b, balance="first"))
        (edge.folder / f"state/generations/000002/{name}").write_bytes(damage)
        (edge.folder / "state/journal.json").write_bytes(damage)
        (edge.folder / "run/status.json").write_bytes(damage)
        with scene.fault("the newest generation, the journal and the status damaged") as after:
            done = edge.agent("apply")
            assert done.returncode == 0, done.stderr
            assert first_line(port).startswith("b PROXY")
            assert edge.apply(state).returncode == 0
            consistent(scene)
            after("the desired state")


def test_a_clock_that_is_set_back(scene: Scene):
    """The system's clock cannot be set here; the agent's own look at it is."""
    edge, port = scene.edge, free_port()
    with echo("a") as a:
        edge.live(scene.with_pool(port, a))
        words = ["--settings", str(edge.settings), "apply", str(edge.file(scene.with_pool(port, a, balance="first")))]
        code = (
            "import sys, time\n"
            "time.time = lambda: 1_000_000.0\n"
            f"sys.argv[1:] = {words!r}\n"
            "from agent.cli import main\n"
            "main(prog_name='agent')\n"
        )
        with scene.fault("the clock set back by decades") as after:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("committed: generation 2 is live")
            assert edge.agent("apply").stdout.startswith("unchanged: generation 2 is live")
            assert "1970-01-12" in edge.agent("history").stdout
            after("the new state")


def waits_for_a_writer(pid: int) -> bool:
    """HAProxy 3.2 reads the file in a child (`-D`), earlier ones before they fork."""
    pids = [pid, *(child.pid for child in psutil.Process(pid).children())]
    return any(Path(f"/proc/{each}/wchan").read_text() in FIFO_WAITS for each in pids)


def test_a_start_that_a_killed_agent_has_left_under_way(scene: Scene):
    """It takes over when it is through: before that, nothing that is live is so for good.

    HAProxy reads its configuration, then its server-state file. Of a FIFO there it waits for a writer, so that this
    start is as slow as the test wants it.
    """
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b:
        edge.live(scene.with_pool(port, a))
        store = Store(edge.folder / "state", edge.folder / "run")
        live, running = store.live(), edge.haproxy.running()
        assert live is not None
        assert running is not None
        fifo = edge.folder / "run/fifo"
        os.mkfifo(fifo)
        store.server_state.unlink(missing_ok=True)
        os.link(fifo, store.server_state)
        store.write_journal(Journal(before=live.number, after=live.number + 1))
        with subprocess.Popen(
            [edge.folder / "state/bin/edge-haproxy", "-D", "-f", store.config, "-p", edge.folder / "run/haproxy.pid",
             "-x", edge.folder / "run/haproxy.sock", "-sf", str(running.pid)],
            start_new_session=True,
        ) as left:  # fmt: skip
            until(lambda: waits_for_a_writer(left.pid), "it waits for a writer")
            store.server_state.unlink()
            with scene.fault("a start of HAProxy that a killed agent has left under way") as after:
                through = threading.Timer(1.0, lambda: fifo.write_bytes(b"1\n"))
                through.start()
                done = edge.apply(scene.with_pool(port, b, balance="leastconn"))
                assert done.returncode == 0, done.stdout + done.stderr
                assert left.wait(10) == 0
                through.join()
                consistent(scene)
                after("the new state")
        assert first_line(port).startswith("b")
