"""`agent demo`: the whole path on loopback, with real parts, and every claim checked.

Real SMTP servers that demand PROXY v2 (aiosmtpd), a real agent as a process of its own, a real HAProxy, clients
from several loopback addresses. What is printed is what was measured; a claim that is not so makes it exit 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import click
from attrs import Factory, define, field, frozen

from agent.errors import UsageError
from agent.host.haproxy_process import HAProxy, find_binary

try:
    from aiosmtpd.controller import Controller
except ImportError:  # the demo's own dependency; nothing else of the agent needs it
    raise UsageError(
        "the demo needs the Python package aiosmtpd", remedy="in the sources: make demo; or install aiosmtpd"
    ) from None

WAIT_SECONDS = 15.0
LOAD_SECONDS = 1.0  # of clients before, between and after the changes: the time itself is what is played
MOST_CONNECTIONS = 20_000
_PROXY = 1  # the command of a v2 header that names a client (the PROXY protocol, 2.2)
CLIENTS = ("127.0.0.7", "127.0.0.8", "127.0.0.9", "::1")


def main(*, stay: bool) -> int:
    """Play it. Returns the exit code: 0 when everything claimed was so, else 1. Ends everything it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started is ended
        signal.signal(number, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="edgeagent-demo-"))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        stage = _Stage.build(folder, undo)
        _play(stage)
        if stay:
            _stay(stage)
        stage.end_agent()
        _after_the_agent(stage)
    click.echo()
    if stage.failures:
        for failure in stage.failures:
            click.echo(click.style(f"NOT SO: {failure}", fg="red"))
        return 1
    click.echo("Demo passed: every check above succeeded.")
    return 0


# --- the play ---------------------------------------------------------------------------------------------------


def _play(stage: _Stage) -> None:
    click.echo(f"HAProxy {stage.haproxy.version()} from {stage.haproxy.binary}; everything is under {stage.folder}\n")
    click.echo("1. Two SMTP servers that demand PROXY v2, a desired state, the agent.")
    stage.want(["mx1", "mx2"])
    stage.wait_live("both servers live")
    click.echo(f"   frontend smtp: {', '.join(stage.addresses)}\n")

    click.echo("2. What each client is seen as by the mail server behind:")
    for client in stage.clients:
        answer = _mail(client, stage.address_for(client))
        server, _, address = answer.partition(" saw ")
        stage.claim(
            address == client, f"client {client:<10}  {server} saw {address}", f"{client} was seen as {address!r}"
        )

    click.echo("\n3. Changes while clients come and go:")
    host, port = stage.address_for(stage.clients[0])
    with _Load(host, port) as load, smtplib.SMTP(host, port, timeout=10) as session:
        session.ehlo("long-lived.example")
        first = stage.server_of_sessions()
        time.sleep(LOAD_SECONDS)  # what comes and goes in a stretch of time is counted
        took = stage.change(["mx1", "mx2", "mx3"], "mx3 added")
        before = stage.served("mx3")
        time.sleep(LOAD_SECONDS)  # what comes and goes in a stretch of time is counted
        got = stage.served("mx3") - before
        stage.claim(got > 0, f"mx3 added, live after {took:.0f} ms; it served {got} connections since", "mx3 got none")

        took = stage.change(["mx1", "mx2", "mx3"], "drained", disabled=first)
        load.settle()
        before = stage.served(first)
        time.sleep(LOAD_SECONDS)  # what comes and goes in a stretch of time is counted
        late = stage.served(first) - before
        stage.claim(late == 0, f"{first} drained, live after {took:.0f} ms; no new client since", f"{first} got {late}")
        kept = session.noop()[0] == 250
        stage.claim(kept, f"a session opened on {first} before all this still answers", "the open session was lost")
    failed = load.failed
    stage.claim(
        not failed and load.done > 0, f"{load.done} connections, {len(failed)} failed", f"failed: {Counter(failed)}"
    )


def _after_the_agent(stage: _Stage) -> None:
    click.echo("\n4. The agent is stopped; HAProxy goes on.")
    client = stage.clients[0]
    answer = _mail(client, stage.address_for(client))
    stage.claim(answer.endswith(f" saw {client}"), f"client {client:<10}  {answer}", f"got {answer!r}")


def _stay(stage: _Stage) -> None:
    click.echo("\nIt stays up. Try, in another terminal:")
    click.echo(f"  export EDGEAGENT_SETTINGS={stage.settings}")
    click.echo("  agent status;  agent history;  $EDITOR " + str(stage.desired))
    host, port = stage.address_for(stage.clients[0])
    click.echo(f"  nc -s {stage.clients[0]} {host} {port}")
    click.echo("Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def _mail(client: str, address: tuple[str, int]) -> str:
    """Send a mail from `client`; the server answers with its name and the address in the header."""
    with smtplib.SMTP(*address, timeout=10, source_address=(client, 0)) as smtp:
        smtp.ehlo("client.example")
        smtp.mail("alice@example.org")
        smtp.rcpt("bob@example.org")
        return smtp.data("Subject: who am I\r\n\r\nHello\r\n")[1].decode().removeprefix("OK ")


# --- the parts --------------------------------------------------------------------------------------------------


class _Mailbox:
    """An aiosmtpd handler that answers each client with the address in the PROXY header."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections = 0

    async def handle_PROXY(self, _server: Any, _session: Any, _envelope: Any, proxy: Any) -> bool:  # noqa: N802  # aiosmtpd's own name
        """Count what came from a client; HAProxy's own checks say LOCAL."""
        self.connections += proxy.command == _PROXY
        return True

    async def handle_DATA(self, _server: Any, session: Any, _envelope: Any) -> str:  # noqa: N802  # likewise
        """`250 OK mx1 saw 127.0.0.7`"""
        return f"250 OK {self.name} saw {session.proxy_data.src_addr}"


@frozen
class _MailServer:
    """A mail server on a port of its own, in a thread of its own."""

    name: str
    mailbox: _Mailbox
    port: int

    @classmethod
    def start(cls, name: str, undo: contextlib.ExitStack) -> _MailServer:
        mailbox, port = _Mailbox(name), _free_port("127.0.0.1")
        controller = Controller(mailbox, hostname="127.0.0.1", port=port, proxy_protocol_timeout=5.0)
        controller.start()
        undo.callback(controller.stop)
        return cls(name, mailbox, port)


@define
class _Stage:
    """Everything the play needs, and what it found not to be so."""

    folder: Path
    haproxy: HAProxy
    servers: dict[str, _MailServer]
    addresses: list[str]
    clients: list[str]
    agent: subprocess.Popen[bytes]
    failures: list[str] = field(default=Factory(list))

    @classmethod
    def build(cls, folder: Path, undo: contextlib.ExitStack) -> _Stage:
        binary = find_binary("haproxy")
        haproxy = HAProxy(binary=binary, process_name="edge-haproxy", state=folder / "state", run=folder / "run")
        clients = [client for client in CLIENTS if _can_bind(client)]
        if not clients:  # where only 127.0.0.1 is configured (FreeBSD, macOS)
            clients = ["127.0.0.1"]
        hosts = ["127.0.0.1", *(["::1"] if "::1" in clients else [])]
        port = _free_port(*hosts)
        addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
        servers = {name: _MailServer.start(name, undo) for name in ("mx1", "mx2", "mx3")}
        settings = folder / "agent.toml"
        settings.write_text(
            f'[paths]\ndesired = "{folder}/desired.yaml"\nstate = "{folder}/state"\nrun = "{folder}/run"\n'
            f'[haproxy]\nbinary = "{binary}"\nmaxconn = 400\n[metrics]\nlisten = ""\n'
        )
        undo.callback(haproxy.stop)
        with (folder / "agent.log").open("wb") as log:
            agent = subprocess.Popen(  # noqa: S603  # ourselves, an argument list
                [sys.executable, "-m", "agent", "--settings", str(settings), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        stage = cls(folder, haproxy, servers, addresses, clients, agent)
        undo.callback(stage.end_agent)
        return stage

    @property
    def desired(self) -> Path:
        return self.folder / "desired.yaml"

    @property
    def settings(self) -> Path:
        return self.folder / "agent.toml"

    def address_for(self, client: str) -> tuple[str, int]:
        host, _, port = self.addresses[-1 if ":" in client else 0].rpartition(":")
        return host.strip("[]"), int(port)

    def want(self, names: list[str], disabled: str = "") -> str:
        """Rename a new desired state into place. Returns the SHA-256 of its bytes."""
        from agent.desired.identity import digest_of

        servers = {
            name: {"address": f"127.0.0.1:{self.servers[name].port}", "disabled": name == disabled} for name in names
        }
        state = {
            "version": 1,
            "name": "demo",
            "frontends": {"smtp": {"bind": self.addresses, "backend": "smtp"}},
            "backends": {"smtp": {"application": "smtp", "servers": servers, "health": {"interval": "500ms"}}},
        }
        data = json.dumps(state, indent=2).encode()
        fresh = self.folder / ".desired.new"
        fresh.write_bytes(data)
        fresh.replace(self.desired)
        return digest_of(data)

    def change(self, names: list[str], what: str, disabled: str = "") -> float:
        """A new desired state, until it is live. Returns how long that took, in milliseconds."""
        start = time.monotonic()
        digest = self.want(names, disabled)
        self.wait_live(what, digest)
        return (time.monotonic() - start) * 1000

    def wait_live(self, what: str, digest: str | None = None) -> None:
        def live() -> bool:
            status = self._status()
            return bool(
                status["live"]
                and digest in (None, status["live"]["digest"])
                and all(frontend["state"] == "up" for frontend in status["frontends"])
            )

        if not _until(live) or self.agent.poll() is not None:
            log = (self.folder / "agent.log").read_text()
            raise UsageError(f"{what}: not within {WAIT_SECONDS:.0f} s; the agent said:\n{log}")

    def _status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self.folder / "run" / "status.json").read_bytes())
        except FileNotFoundError:  # the agent has not come so far yet
            status = {"live": None}
        return status

    def served(self, name: str) -> int:
        return self.servers[name].mailbox.connections

    def server_of_sessions(self) -> str:
        """The server that holds the session which stays open; the clients of the load are too short to tell apart."""
        tally: Counter[str] = Counter()
        for _ in range(20):
            tally.update(server.name for server in self.haproxy.observe().servers if server.sessions)
        return tally.most_common(1)[0][0]

    def claim(self, so: bool, text: str, otherwise: str) -> None:  # noqa: FBT001  # a fact, not an option
        click.echo(f"   {click.style('ok', fg='green') if so else click.style('NO', fg='red')}  {text}")
        if not so:
            self.failures.append(otherwise)

    def end_agent(self) -> None:
        if self.agent.poll() is None:
            os.kill(self.agent.pid, signal.SIGTERM)
            self.agent.wait(timeout=WAIT_SECONDS)


class _Load:
    """Clients that connect, are greeted and leave, all the time, and count."""

    THREADS = 3

    def __init__(self, host: str, port: int) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._address = (host, port)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=WAIT_SECONDS)

    def settle(self) -> None:
        """Until every client has begun anew, so that nothing counted from here on was under way before."""
        goal = self.done + 2 * self.THREADS
        _until(lambda: self.done + len(self.failed) >= goal)

    def _run(self) -> None:
        while not self._stop.is_set() and self.done < MOST_CONNECTIONS:
            try:
                with smtplib.SMTP(*self._address, timeout=10):
                    pass
            except (OSError, smtplib.SMTPException) as error:
                with self._lock:
                    self.failed.append(type(error).__name__)
            else:
                with self._lock:
                    self.done += 1


def _until(so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while not so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)  # files and other processes: nothing here to be woken by
    return True


def _can_bind(host: str) -> bool:
    try:
        with _bound(host, 0):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as connection:
        connection.bind((host, port))
        yield int(connection.getsockname()[1])


def _free_port(*hosts: str) -> int:
    """A port that is free on all of these addresses now."""
    for _ in range(50):
        with _bound(hosts[0], 0) as port:
            try:
                for host in hosts[1:]:
                    with _bound(host, port):
                        pass
            except OSError:
                continue
            return port
    raise UsageError("no free port on loopback")
