"""A real sshd on a high loopback port, with keys of its own, and an `ssh` that knows it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from kit.edge import Edge, edge_in_folder, until
from kit.left_out import leave_out
from kit.onefile import AGENT
from kit.servers import free_port

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def keygen(*words: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def make_key(path: Path, kind: str = "ed25519") -> Path:
    keygen("-t", kind, "-N", "", "-C", "test", "-f", path)
    return path


@dataclass
class Client:
    """A user's own ssh: keys, known hosts and ssh_config in a folder; `bin` comes first on PATH."""

    folder: Path
    key: Path = field(init=False)

    def __post_init__(self) -> None:
        self.key = make_key(self.folder / "id")
        (self.folder / "known_hosts").touch()
        (self.folder / "bin").mkdir()
        self.configure()
        wrapper = self.folder / "bin/ssh"
        wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.folder}/config "$@"\n')
        wrapper.chmod(0o755)

    def configure(self, *lines: str) -> None:
        """What stands in ssh_config before the rest."""
        rest = (
            f"IdentityFile {self.key}",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {self.folder}/known_hosts",
            "StrictHostKeyChecking yes",
        )
        (self.folder / "config").write_text("\n".join((*lines, *rest)) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}

    def ssh(self, *words: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.folder / "bin/ssh", "-o", "BatchMode=yes", *words],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Sshd:
    """An sshd whose keys run a command. Port 0 of `port`: a free one."""

    def __init__(self, folder: Path, client: Client, command: str) -> None:
        self.folder, self.client, self.port = folder, client, free_port()
        make_key(folder / "host_key")
        self.force(command)
        known = (folder / "host_key.pub").read_text().split()[:2]
        self.known = f"[127.0.0.1]:{self.port} {' '.join(known)}\n"
        with (client.folder / "known_hosts").open("a") as file:
            file.write(self.known)
        (folder / "config").write_text(
            f"""
Port {self.port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
AcceptEnv *
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def to(self) -> str:
        return f"root@127.0.0.1:{self.port}"

    def force(self, command: str) -> None:
        """The forced command of the client's key, in agent gate's own words."""
        public = self.client.key.with_suffix(".pub").read_text().strip()
        (self.folder / "authorized_keys").write_text(f'restrict,command="{command}" {public}\n')

    def start(self) -> None:
        assert SSHD is not None
        Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its privileges
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        until(answers, f"sshd listens: {(self.folder / 'log').read_text()}")

    def sessions(self) -> list[psutil.Process]:
        """Its children, each of which is one session, and theirs."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def program(self, word: str) -> psutil.Process | None:
        """A program of a session with this word in its command line; it may outlive its session."""
        for session in self.sessions():
            with contextlib.suppress(psutil.Error):  # it ends just now
                if word in session.cmdline():
                    return session
        return None

    def kill(self) -> None:
        """It, and every session of it, at once."""
        assert self.process is not None
        for one in [*self.sessions(), psutil.Process(self.process.pid)]:
            if one.name() == "sshd":
                with contextlib.suppress(psutil.Error):
                    one.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        for session in self.sessions():
            with contextlib.suppress(psutil.Error):
                session.kill()
        self.process.kill()
        self.process.wait()


@dataclass
class Firewall:
    """An agent with its service, its sshd, and what a sync over ssh calls it."""

    edge: Edge
    sshd: Sshd

    @property
    def to(self) -> str:
        return self.sshd.to


@dataclass
class Cluster:
    """Who syncs: the command of the near side, with the client's ssh."""

    client: Client
    folder: Path

    def agent(self, *words: str | Path, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*AGENT, *words],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=90,
            check=False,
            env=self.client.environment,
            cwd=self.folder,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def file(self, content: Any, name: str = "new.yaml") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path


def state(server: str, *ports: int, serial: int | None = 1, **more: Any) -> dict[str, Any]:
    """A frontend for each port, or one on a free port; nobody checks their server."""
    found: dict[str, Any] = {
        "version": 1,
        "frontends": {
            f"f{port}": {"bind": [f"127.0.0.1:{port}"], "backend": "pool"} for port in ports or (free_port(),)
        },
        "backends": {"pool": {"servers": {"a": {"address": server}}, "health": {"type": "none"}}},
        **more,
    }
    return found if serial is None else {**found, "serial": serial}


def gate_of(edge: Edge) -> str:
    return f"{shlex.join(AGENT)} --settings {edge.settings} gate"


@contextlib.contextmanager
def sshd(folder: Path, client: Client, command: str) -> Iterator[Sshd]:
    if SSHD is None:
        leave_out("sshd is not here")
    folder.mkdir()
    one = Sshd(folder, client, command)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def firewall(binary: Path, client: Client, folder: Path) -> Iterator[Firewall]:
    with edge_in_folder(binary) as edge, sshd(folder, client, gate_of(edge)) as server:
        edge.serve()
        yield Firewall(edge, server)


class Relay:
    """Carries connections to a port, and cuts them after so many bytes from the client; -1: never."""

    def __init__(self, port: int, after: int) -> None:
        self.after, self.carried = after, 0
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._carry(client, socket.create_connection(("127.0.0.1", self._to)))

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        with client, server:
            with contextlib.suppress(OSError):
                while more := client.recv(65_536):
                    if 0 <= self.after <= self.carried + len(more):
                        server.sendall(more[: self.after - self.carried])
                        self.carried = self.after
                        break
                    server.sendall(more)
                    self.carried += len(more)
            for one in (client, server):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            back.join(10)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while more := source.recv(65_536):
                sink.sendall(more)
