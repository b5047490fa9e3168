"""What changes cost the clients: 300 of them at full speed, and an address that cannot be bound."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from paths import settled
from stage import BINARY, edge, host, put

from kit.edge import connect, until  # isort: skip
from kit.servers import echo, free_port  # isort: skip
from kit.witness import Witness  # isort: skip

CHANGES = 300
SESSIONS = 20


def mixed() -> dict[str, float]:
    """Servers added, removed, moved, reweighted, drained; now and then something that takes a new process."""
    choose = random.Random(1)  # noqa: S311  # the same in every run
    with contextlib.ExitStack() as stack, edge() as one:
        pool = [stack.enter_context(echo(f"s{n}")) for n in range(4)]
        port = free_port()
        document: dict[str, Any] = {
            "version": 1,
            "frontends": {"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back"}},
            "backends": {"back": {"servers": {"s0": {"address": pool[0].address}}}},
        }
        put(one, document)
        one.serve()
        sessions = [stack.enter_context(connect(port)) for _ in range(SESSIONS)]
        for session in sessions:
            session.recv(100)
        with Witness(port) as clients:
            for turn in range(CHANGES):
                back = document["backends"]["back"]
                names = choose.sample(range(4), choose.randint(1, 4))
                back["servers"] = {
                    f"s{n}": {"address": choose.choice(pool).address, "weight": choose.randint(1, 9)} for n in names
                }
                if len(names) > 1 and choose.random() < 0.3:
                    back["servers"][f"s{names[0]}"]["disabled"] = True
                if turn % 100 == 99:  # paced: each leaves a process behind for as long as the sessions last
                    document["defaults"] = {"maxconn": 100 + turn}
                put(one, document)
                settled(one, document)
                lost = sum(not alive(session) for session in sessions)
        counters = one.status()["counters"]
    return {
        f"{CHANGES} mixed changes at full client speed: at the socket": counters["runtime_updates"],
        f"{CHANGES} mixed changes at full client speed: by a reload": counters["reloads"],
        f"{CHANGES} mixed changes at full client speed: connections": len(clients.greetings),
        f"{CHANGES} mixed changes at full client speed: failed connections (target 0)": len(clients.failures),
        f"{CHANGES} mixed changes at full client speed: of {SESSIONS} long-lived sessions lost (target 0)": lost,
    }


def alive(session: socket.socket) -> bool:
    """Whether a session still has its server."""
    try:
        session.sendall(b"ping")
        return session.recv(10) == b"ping"
    except OSError:
        return False


def bad_address() -> dict[str, float]:
    """A port that somebody else holds comes into the state: what it costs a frontend that has nothing to do with it."""
    with echo("a") as a, edge() as one, edge() as script, socket.create_server(("127.0.0.1", 0)) as holder:
        busy = holder.getsockname()[1]

        def document(port: int, *more: int) -> dict[str, Any]:
            ports = {"healthy": port, **{f"f{n}": n for n in more}}
            return {
                "version": 1,
                "frontends": {name: {"bind": [f"127.0.0.1:{n}"], "backend": "back"} for name, n in ports.items()},
                "backends": {"back": {"servers": {"a": {"address": a.address}}}},
            }

        mine, ours, theirs = host(one), free_port(), free_port()
        put(one, document(ours))
        mine.loop.reconcile()
        with Witness(ours) as clients:
            put(one, document(ours, busy))
            assert mine.loop.reconcile().outcome.value == "degraded"
            clients.more(50)
        agent_ms = clients.outage * 1000
        by_hand = host(script)
        put(script, document(theirs))
        by_hand.loop.reconcile()
        config = script.folder / "state/haproxy.cfg"
        text = config.read_text()
        bad = script.folder / "bad.cfg"
        bad.write_text(
            text.replace("\nbackend back\n", f"\nfrontend bad\n    bind 127.0.0.1:{busy}\n\nbackend back\n", 1)
        )
        with Witness(theirs) as clients:
            plain_script(bad, script.folder / "run")
            before = len(clients.greetings)
            until(lambda: len(clients.greetings) > before + 50, "served again")
        return {
            "a busy port in a reload: outage of the others with the agent (ms; target 0)": agent_ms,
            "a busy port in a reload: outage of the others with `-c && -D -sf -x` (ms)": clients.outage * 1000,
        }


def plain_script(config: Path, run: Path) -> None:
    """What most people do; that it fails is the point."""
    pid = (run / "haproxy.pid").read_text().strip()
    subprocess.run([BINARY, "-c", "-f", config], check=True, capture_output=True)  # noqa: S603  # our own words
    words = [BINARY, "-D", "-f", config, "-p", run / "haproxy.pid", "-sf", pid, "-x", run / "haproxy.sock"]
    subprocess.run(words, check=False, capture_output=True)  # noqa: S603


def idle(seconds: float = 60.0) -> dict[str, float]:
    """An agent with five frontends and nothing to do. The control: a Python that only sleeps."""
    import psutil

    with echo("a") as a, edge() as one:
        ports = [free_port() for _ in range(5)]
        document = {
            "version": 1,
            "frontends": {f"f{n}": {"bind": [f"127.0.0.1:{port}"], "backend": "b"} for n, port in enumerate(ports)},
            "backends": {"b": {"servers": {"a": {"address": a.address}}}},
        }
        put(one, document)
        process = psutil.Process(one.serve().pid)
        settled(one, document)
        before = process.cpu_times()
        time.sleep(seconds)  # the measure itself
        after = process.cpu_times()
        memory = process.memory_info().rss
        os.kill(process.pid, signal.SIGTERM)
    used = (after.user - before.user) + (after.system - before.system)
    return {
        f"idle for {seconds:.0f} s at 5 frontends: CPU (% of a core; target 0.3)": 100 * used / seconds,
        "idle at 5 frontends: resident memory (MB; target 45)": memory / 1e6,
    }


def main() -> dict[str, float]:
    """All of it."""
    return mixed() | bad_address() | idle()
