"""An agent with folders of its own, used as a person uses it: by its command, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil

from agent.host.haproxy_process import HAProxy
from kit.left_out import leave_out
from kit.onefile import AGENT

WAIT = 20.0
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python has no name for it


def until(so: Callable[[], Any], what: str, timeout: float = WAIT) -> Any:
    """Poll until `so()` is true; other processes' files and sockets give no event."""
    deadline = time.monotonic() + timeout
    while not (found := so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.01)
    return found


def connect(port: int, *, source: str = "127.0.0.1", host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM)
    one.settimeout(10)
    try:
        with contextlib.suppress(OSError):  # Linux alone: a port is taken at connect, so that those in TIME_WAIT serve
            one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        one.bind((source, 0))
        one.connect((host, port))
    except OSError:
        one.close()
        raise
    return one


def first_line(port: int, *, source: str = "127.0.0.1", host: str = "127.0.0.1") -> str:
    """What the server behind greets a client from `source` with; "" where the connection is closed."""
    try:
        with connect(port, source=source, host=host) as one, one.makefile("r") as stream:
            return stream.readline().strip()
    except ConnectionResetError:
        return ""


class Edge:
    """Folders, settings and the agent's command in them. Ends whatever was started in its folders."""

    def __init__(self, folder: Path, binary: Path, **haproxy: Any) -> None:
        self.folder = folder
        self.settings = folder / "agent.toml"
        self.desired = folder / "desired.yaml"
        self.binary = binary
        lines = [
            f"{key} = {json.dumps(value)}" for key, value in {"binary": str(binary), "maxconn": 500, **haproxy}.items()
        ]
        self.configure("[haproxy]\n" + "\n".join(lines))
        self.services: list[subprocess.Popen[bytes]] = []
        self.wrapper: tuple[str, ...] = ()  # words before each command

    def configure(self, more: str) -> None:
        if "[metrics]" not in more:
            more += '\n[metrics]\nlisten = ""'  # a hundred agents side by side cannot share the default's port
        self.settings.write_text(
            f'[paths]\ndesired = "{self.desired}"\nstate = "{self.folder}/state"\nrun = "{self.folder}/run"\n'
            f'templates = "{self.folder}/templates"\n{more}\n'
        )
        (self.folder / "templates").mkdir(exist_ok=True)

    @property
    def haproxy(self) -> HAProxy:
        return HAProxy(
            binary=self.binary, process_name="edge-haproxy", state=self.folder / "state", run=self.folder / "run"
        )

    @property
    def pid(self) -> int:
        running = self.haproxy.running()
        assert running is not None, "HAProxy does not run"
        return running.pid

    def agent(
        self, *words: str | Path, data: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.wrapper, *AGENT, "--settings", self.settings, *words],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def file(self, state: Any, name: str = "new.yaml") -> Path:
        path = self.folder / name
        path.write_bytes(state if isinstance(state, bytes) else json.dumps(state, indent=1).encode())
        return path

    def put(self, state: Any) -> None:
        """Rename a new desired state into place, as every careful writer does."""
        self.file(state, ".fresh").replace(self.desired)

    def apply(self, state: Any) -> subprocess.CompletedProcess[str]:
        return self.agent("apply", self.file(state))

    def live(self, state: Any) -> None:
        done = self.apply(state)
        assert done.returncode == 0, done.stderr + done.stdout

    def run(self) -> subprocess.Popen[bytes]:
        """Start `agent run`; its log is `agent.log`."""
        with (self.folder / "agent.log").open("ab") as log:
            service = subprocess.Popen(
                [*self.wrapper, *AGENT, "--settings", self.settings, "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.services.append(service)
        return service

    def serve(self) -> subprocess.Popen[bytes]:
        """Start `agent run`, and wait until it has looked once."""
        service = self.run()
        until(lambda: self.status().get("agent", {}).get("pid") == service.pid, f"the service looks:\n{self.log}")
        return service

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "run/status.json").read_bytes())
        except FileNotFoundError:
            found = {"outcome": None, "live": None, "desired": None}
        return found

    def wait(self, outcome: str, digest: str | None = None, timeout: float = WAIT) -> dict[str, Any]:
        """Until the status tells of `outcome` (for the document with this digest)."""

        def so() -> dict[str, Any] | None:
            status = self.status()
            fits = status["outcome"] == outcome and digest in (None, (status["desired"] or {}).get("digest"))
            return status if fits else None

        try:
            found: dict[str, Any] = until(so, outcome, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; status: {self.status()}; log:\n{self.log}") from None
        return found

    def processes(self) -> list[psutil.Process]:
        """Every process of ours: those whose command line names our folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(str(self.folder) in word for word in process.cmdline()):
                    found.append(process)
        return found

    def close(self) -> None:
        for service in self.services:
            if service.poll() is None:
                service.kill()
            service.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        until(lambda: not self.processes(), "everything ended")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def edge_in_folder(binary: Path, **haproxy: Any) -> Iterator[Edge]:
    # Not pytest's own folder: a unix socket's path has room for a hundred bytes only.
    edge = Edge(Path(tempfile.mkdtemp(prefix="edge-")), binary, **haproxy)
    try:
        yield edge
    finally:
        edge.close()


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own, as root."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "edge", folder], check=False)
    if mounted.returncode != 0:
        leave_out("no tmpfs can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class Load:
    """Clients that connect, read the greeting and leave, until told to stop; counts what failed."""

    def __init__(self, port: int, threads: int = 3, *, host: str = "127.0.0.1") -> None:
        self.port, self.host = port, host
        self.greetings: list[str] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT)

    def more(self, count: int) -> list[str]:
        """Wait for so many further greetings, and return the later ones, whose clients all began after the call."""
        start = len(self.greetings) + len(self._threads)
        until(lambda: len(self.greetings) >= start + count or self.failures, "clients being served")
        return self.greetings[start:]

    def _run(self) -> None:
        while not self._stop.is_set() and len(self.greetings) < 50_000:
            try:
                greeting = first_line(self.port, host=self.host)
            except OSError as error:
                self.failures.append(repr(error))
            else:
                (self.greetings if greeting else self.failures).append(greeting)
