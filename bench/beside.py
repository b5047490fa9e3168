"""Side by side with easyhaproxy (static mode): the same HAProxy, the same servers, the same three events.

It listens on all addresses, kills by name and writes to /run, so both play in namespaces of their own, made here;
what was started ends with them. It has no send-proxy, so both carry plain TCP.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from changes import alive
from stage import edge, median, put

from kit.edge import Edge, connect, first_line, until  # isort: skip
from kit.servers import EchoServer, echo, free_port  # isort: skip
from kit.witness import Witness  # isort: skip

HERE = Path(__file__).parent
OTHER = HERE.parent / ".cache/easyhaproxy/bin/easy-haproxy"
ROUNDS = 5
SESSIONS = 20


class Tool(Protocol):
    """Something that makes HAProxy true to a file."""

    def want(self, ports: dict[int, EchoServer]) -> None: ...  # noqa: D102  # ports and the server behind each


class Agent:
    """Ours, as a service."""

    def __init__(self, one: Edge) -> None:
        self._edge = one

    def want(self, ports: dict[int, EchoServer]) -> None:
        """Rename a new desired state into place."""
        document: dict[str, Any] = {
            "version": 1,
            "frontends": {f"f{port}": {"bind": [f"0.0.0.0:{port}"], "backend": f"b{port}"} for port in ports},
            "backends": {
                f"b{port}": {"proxy_protocol": "none", "servers": {server.name: {"address": server.address}}}
                for port, server in ports.items()
            },
        }
        put(self._edge, document)


class EasyHaproxy:
    """Theirs, as its documentation has it, looking as often as it can: every second."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "static/config.yml"
        for name in ("static", "haproxy/conf.d", "certs/certbot", "certs/haproxy", "www"):
            (folder / name).mkdir(parents=True)
        self._folder = folder

    def start(self) -> None:
        """Needs its first file."""
        words = ["--discover", "static", "--refresh-conf", "1"]
        subprocess.Popen(  # noqa: S603  # our own words; it ends with the namespace
            [OTHER, *words, "--customer-errors", "false", "--haproxy-stats-enable", "false"],
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "log").open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "EASYHAPROXY_BASE_PATH": str(self._folder)},  # its flag comes too late for static mode
        )

    def want(self, ports: dict[int, EchoServer]) -> None:
        """Rename a new configuration into place."""
        containers = {
            f"front{port}.example.org:{port}": {"mode": "tcp", "ip": [one.address]} for port, one in ports.items()
        }
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"customerrors": False, "stats": {"enabled": False}, "containers": containers}))
        fresh.replace(self._file)


def play(name: str, tool: Tool, start: Any) -> dict[str, float]:
    """A server replaced, sessions kept, a port that is busy."""
    ports = [free_port("0.0.0.0") for _ in range(2)]  # noqa: S104  # easyhaproxy binds all addresses
    with contextlib.ExitStack() as stack:
        a, b, other = (
            stack.enter_context(echo(word, header=False, host=f"127.0.0.{n}")) for n, word in enumerate("abc", 2)
        )
        tool.want({ports[0]: a, ports[1]: other})
        start()
        until(lambda: answers(ports[0]), f"{name} serves", 60)
        found, kept = [], []
        for turn in range(ROUNDS):
            new, word = (b, "b") if turn % 2 == 0 else (a, "a")
            sessions = [connect(ports[0]) for _ in range(SESSIONS)]
            for session in sessions:
                session.recv(100)
            begin = time.monotonic()
            tool.want({ports[0]: new, ports[1]: other})
            until(lambda word=word: answers(ports[0]).startswith(word), f"{name}: the new server", 60)
            found.append(time.monotonic() - begin)
            time.sleep(2)  # what becomes of the old process's sessions is decided by now
            kept.append(sum(alive(session) for session in sessions))
            for session in sessions:
                session.close()
        with socket.create_server(("127.0.0.1", 0)) as holder, Witness(ports[1]) as clients:
            tool.want({ports[0]: a, ports[1]: other, holder.getsockname()[1]: other})
            time.sleep(8)  # however long it takes: the measure itself
            served = len(clients.greetings)
            time.sleep(1)
            still = len(clients.greetings) > served
        outage = clients.outage * 1000 if still else float("inf")
    return {
        f"{name}: change to serving (ms)": median(found) * 1000,
        f"{name}: long-lived sessions kept over a change (of {SESSIONS})": median(kept),
        f"{name}: a busy port in the new file: outage of the others (ms)": outage,
    }


def answers(port: int) -> str:
    """The greeting; "" where nobody gives one."""
    with contextlib.suppress(OSError):
        return first_line(port)
    return ""


def inside() -> dict[str, float]:
    """In the namespaces: both, one after the other."""
    subprocess.run(["/usr/sbin/ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    with edge() as one:
        found = play("edgeagent", Agent(one), one.serve)
    with tempfile.TemporaryDirectory() as folder:
        theirs = EasyHaproxy(Path(folder))
        return found | play("easyhaproxy 6.5", theirs, theirs.start)


def main() -> dict[str, float]:
    """Make the namespaces and play in them; only root can."""
    if os.geteuid() != 0 or not OTHER.exists():
        print(
            "left out: the side by side needs root, and easyhaproxy in .cache (`make bench` gets it)", file=sys.stderr
        )
        return {}
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(  # noqa: S603  # ourselves
        [*words, sys.executable, __file__], stdout=subprocess.PIPE, text=True, check=True, cwd=HERE
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(inside()))
