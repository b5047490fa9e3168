"""A cluster of nodes that serve, and a firewall in front of them."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.discover import Controller, controller, events, node, service, told
from kit.edge import first_line, until
from kit.kube import Kube
from kit.servers import EchoServer, free_port
from kit.ssh import Client, Firewall


def pools(wall: Firewall) -> dict[str, dict[str, tuple[str, int]]]:
    """What the firewall's agent has live: address and weight of each server of each backend."""
    status = wall.edge.status()
    return {
        one["name"]: {server["name"]: (server["address"], server["weight"]) for server in one["servers"]}
        for one in status["backends"]
    }


def reloads(wall: Firewall) -> int:
    return wall.edge.status()["counters"].get("reloads", 0)


@dataclass
class Site:
    """Both, and what a test does with them."""

    kube: Kube
    client: Client
    wall: Firewall
    folder: Path
    bind: str
    hosts: list[str]

    @contextlib.contextmanager
    def watched(self, *words: str, name: str = "log") -> Iterator[Controller]:
        with controller(self.kube, self.client, self.folder, "--to", self.wall.to, *words, name=name) as one:
            yield one

    def live(self, control: Controller, name: str, namespace: str = "default") -> None:
        self.told(control, name, "live", namespace)

    def told(self, control: Controller, name: str, state: str, namespace: str = "default") -> None:
        try:
            until(lambda: told(self.kube, name, namespace).get("state") == state, f"{name} is {state}")
        except AssertionError as error:
            said = told(self.kube, name, namespace)
            raise AssertionError(f"{error}; it is told: {said}; the controller said:\n{control.said}") from None

    def event(self, name: str, reason: str) -> str:
        """The message of its last Event, once that is of this reason; it comes right after the annotation."""

        def so() -> str:
            last = [*events(self.kube, name), ("", "")]
            return last[-2][1] if len(last) > 1 and last[-2][0] == reason else ""

        return str(until(so, f"an Event {reason}"))

    def nodes(self, *names: str) -> None:
        for name, host in zip(names, self.hosts, strict=False):
            self.kube.create(node(name, host))

    def smtp(self, name: str = "mail", port: int = 25, **annotations: str) -> int:
        """A Service at a free port of the firewall, which is returned. Its NodePort: 30,000 and its own."""
        at = free_port(self.bind)
        said = {"expose": f"smtp={at}", "bind": self.bind, **annotations}
        self.kube.create(service(name, {"smtp": port}, **said))
        return at


def reached(host: str, port: int) -> str:
    try:
        return first_line(port, host=host)
    except OSError:
        return ""


@contextlib.contextmanager
def Mute(host: str, port: int) -> Iterator[EchoServer]:  # noqa: N802  # stands beside the other servers
    """A plain SMTP server: it takes a header for nonsense, says so, and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"220 plain ESMTP\r\n")
            self.request.settimeout(5)
            try:
                while more := self.request.recv(1000):
                    if more.startswith(b"QUIT"):
                        return
                    self.request.sendall(b"500 5.5.2 Error: bad syntax\r\n")
            except OSError:
                return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield EchoServer("mute", port, host)
        server.shutdown()
