"""The agent's files: generations, the live haproxy.cfg, journal, hold, status, lock. No other program writes them.

Every file changes by temp, fsync, rename in its own folder, so that a reader or a crash finds the old one or the
new one. What is read back after a crash may be anything; it is checked, never trusted.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, field, frozen

from agent.desired.identity import Key, digest_of
from agent.desired.stored import read_as
from agent.errors import StoreError
from agent.host.files import read_json, read_regular
from agent.host.lock import ServiceLock, held, holder_pid, locked, make_private
from agent.reconcile.event import Event, recorded
from agent.reconcile.generation import Drain, Generation, Hold, Journal, Request

if TYPE_CHECKING:
    from agent.proxy_protocol.record import (
        Handshake,  # with it comes all of the schema, which the history can do without
    )

_STAGED = ".staged"
_NUMBER = re.compile(r"[0-9]{1,12}")
_FILE_MODE = 0o640
MOST_EVENTS = 200  # that are kept


@contextlib.contextmanager
def _telling(what: str, path: Path) -> Iterator[None]:
    """Whatever the file system says, as a StoreError with the path and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {what} {path}: {error.strerror}", remedy=_remedy(error)) from error


def _remove(path: Path) -> None:
    """Nothing is asked of the file system where there is nothing: a read-only one refuses even that."""
    if path.exists() or path.is_symlink():
        with _telling("remove", path):
            path.unlink(missing_ok=True)


Identity = tuple[int, int]
"""Of a file: its inode and when it was written (ns)."""


def identity(path: Path) -> Identity | None:
    """Which file stands in a place, None where there is none that can be looked at."""
    try:
        about = path.stat()
    except (OSError, RuntimeError):  # a link that leads to itself is a RuntimeError
        return None
    return about.st_ino, about.st_mtime_ns


def write(path: Path, data: bytes, *, mode: int = _FILE_MODE, durable: bool = True) -> Identity:
    """Replace a file whole: a reader sees the old bytes or the new ones. `durable`: they survive a power cut.

    Returns the identity of the new file, whatever stands in its place by then.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.unlink(missing_ok=True)  # of a crash; a FIFO there would wait for a reader, a link would be followed
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            about = os.fstat(descriptor)
            if durable:
                os.fsync(descriptor)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror}", remedy=_remedy(error)) from error
    if durable:
        _sync(path.parent)
    return about.st_ino, about.st_mtime_ns


def _sync(path: Path) -> None:
    """Force a file or a folder to the disk. Raises StoreError."""
    with _telling("write", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "run as the user who owns the folder, or name other folders in agent.toml"
    return "look at the file system: space left, mounted read-only?"


@frozen
class Store:
    """The agent's files."""

    state: Path
    """durable folder"""
    run: Path
    """volatile folder"""
    keep: int = field(default=20, kw_only=True)
    """generations that are kept"""

    # --- places

    @property
    def config(self) -> Path:
        """The haproxy.cfg that HAProxy runs."""
        return self.state / "haproxy.cfg"

    @property
    def server_state(self) -> Path:
        """What the last process knew of its servers."""
        return self.run / "server-state"

    @property
    def status_file(self) -> Path:
        """status.json."""
        return self.run / "status.json"

    @property
    def progress_file(self) -> Path:
        """Where the service is with a document."""
        return self.run / "progress.json"

    @property
    def _generations(self) -> Path:
        return self.state / "generations"

    def _folder(self, number: int) -> Path:
        return self._generations / f"{number:06d}"

    def _staged(self, number: int) -> Path:
        return self._generations / f"{number:06d}{_STAGED}"

    def prepare(self) -> None:
        """Make the folders, readable by their owner and its group alone. Raises StoreError."""
        for folder in (self.state, self._generations, self.run):
            with _telling("make", folder):
                make_private(folder)

    # --- locks

    @contextlib.contextmanager
    def lock(self, *, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the one lock under which anything is changed. `waiting`: called once with its holder."""
        with locked(self.run / "lock", waiting=waiting):
            yield

    @contextlib.contextmanager
    def try_lock(self) -> Iterator[bool]:
        """The same without waiting: yields whether it is ours. The service must stay able to receive a signal."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.run / "lock", waiting=None))
            except BlockingIOError:
                yield False
                return
            yield True

    @contextlib.contextmanager
    def service(self, *, waiting: Callable[[str], None]) -> Iterator[ServiceLock]:
        """Be the one agent of these folders, until the end."""
        with locked(self.state, waiting=waiting) as descriptor:
            yield ServiceLock(self.state, descriptor)

    def service_running(self) -> bool:
        """Whether an agent holds these folders. Raises StoreError where they belong to another user."""
        return held(self.state)

    def service_pid(self) -> int | None:
        """The pid of the agent that holds these folders, None where none does. Raises StoreError."""
        return holder_pid(self.state)

    # --- generations

    def generations(self) -> tuple[Generation, ...]:
        """All that can be read, oldest first. One that was cut short by a crash is passed over."""
        generations = [self._read_generation(number) for number in self._numbers()]
        return tuple(generation for generation in generations if generation is not None)

    def live(self) -> Generation | None:
        """The newest generation that is whole."""
        whole = (self._read_generation(number) for number in reversed(self._numbers()))
        return next((generation for generation in whole if generation is not None), None)

    def _numbers(self) -> list[int]:
        if not self.state.exists():
            return []
        with _telling("read", self._generations), contextlib.suppress(FileNotFoundError):
            return sorted(int(folder.name) for folder in self._generations.iterdir() if _NUMBER.fullmatch(folder.name))
        return []

    def next_number(self) -> int:
        """The number of the generation after the last one, whether that can be read or not."""
        return max(self._numbers(), default=0) + 1

    def _read_generation(self, number: int) -> Generation | None:
        """A generation whose report, document and configuration are all as they were written, else None."""
        return self._generation_in(self._folder(number), number)

    def _generation_in(self, folder: Path, number: int) -> Generation | None:
        report = read_json(folder / "report.json")
        try:
            generation = read_as(Generation, {**(report or {}), "reasons": tuple((report or {})["reasons"])})
            digests = tuple(digest_of(self._read(folder / name)) for name in ("desired.yaml", "haproxy.cfg"))
        except (StoreError, ValueError, TypeError, KeyError):
            return None
        return (
            generation
            if (generation.number, generation.digest, generation.config_digest) == (number, *digests)
            else None
        )

    def desired_of(self, number: int) -> bytes:
        """The exact bytes of the document of a generation. Raises StoreError."""
        return self._read(self._folder(number) / "desired.yaml")

    def config_of(self, number: int) -> bytes:
        """The exact bytes of the haproxy.cfg of a generation. Raises StoreError."""
        return self._read(self._folder(number) / "haproxy.cfg")

    def _read(self, path: Path) -> bytes:
        with _telling("read", path):
            return read_regular(path)

    def stage(self, number: int, *, desired: bytes, config: bytes) -> Path:
        """Put a generation aside, not live yet. Returns its haproxy.cfg, for `haproxy -c`."""
        self.unstage()
        folder = self._staged(number)
        with _telling("make", folder):
            folder.mkdir(parents=True)
        # Forced to the disk when it is committed: until then a power cut leaves what is live.
        write(folder / "desired.yaml", desired, durable=False)
        write(folder / "haproxy.cfg", config, durable=False)
        return folder / "haproxy.cfg"

    def unstage(self) -> None:
        """Drop what was put aside and never became live."""
        for folder in self._generations.glob(f"*{_STAGED}"):
            shutil.rmtree(folder, ignore_errors=True)

    def staged(self, number: int) -> tuple[bytes, bytes] | None:
        """Document and configuration of a staged generation, None where they are not whole."""
        folder = self._staged(number)
        try:
            return read_regular(folder / "desired.yaml"), read_regular(folder / "haproxy.cfg")
        except OSError:
            return None

    def describe(self, generation: Generation, handshakes: tuple[Handshake, ...] = ()) -> None:
        """Say in the staged folder what it will be when it is live, so that the next agent can finish it by a rename.

        Not forced to the disk: it counts only while the process that was started for it runs.
        """
        folder = self._staged(generation.number)
        if handshakes:
            write(folder / "handshakes.json", _dumped(handshakes), durable=False)
        write(folder / "report.json", json.dumps(asdict(generation), indent=1).encode(), durable=False)

    def staged_generation(self, number: int) -> Generation | None:
        """A staged generation that is whole, else None."""
        return self._generation_in(self._staged(number), number)

    def write_config(self, config: bytes | None) -> None:
        """Make these bytes the haproxy.cfg that HAProxy runs; None: there is none."""
        if config is None:
            _remove(self.config)
        else:
            write(self.config, config)

    def read_config(self) -> bytes | None:
        """The haproxy.cfg that HAProxy runs, None where there is none."""
        return self._read(self.config) if self.config.exists() else None

    def commit(self, generation: Generation, handshakes: tuple[Handshake, ...] = ()) -> None:
        """The staged generation is live from here on; forget the oldest ones beyond `keep`.

        What its new servers were found to be stands beside its report, not in it: there can be thousands, and the
        report is read every second.
        """
        folder = self._staged(generation.number)
        for name in ("desired.yaml", "haproxy.cfg"):
            _sync(folder / name)
        if handshakes:
            write(folder / "handshakes.json", _dumped(handshakes), durable=False)
        write(folder / "report.json", json.dumps(asdict(generation), indent=1).encode())
        final = self._folder(generation.number)
        with _telling("make", final):
            if final.exists():  # cut short by a crash, or it would have been read
                shutil.rmtree(final)
            folder.rename(final)
        _sync(self._generations)
        for number in self._superseded():
            shutil.rmtree(self._folder(number), ignore_errors=True)

    def _superseded(self) -> list[int]:
        """Those beyond `keep`: first the older ones of the same document one after the other, then the oldest.

        A host name that moves back and forth must not take every other document out of the history.
        """
        numbers, gone = self._numbers(), []
        digests = {known.number: known.digest for known in self.generations()} if len(numbers) > self.keep else {}
        while len(numbers) > self.keep:
            same = (
                number for number, after in itertools.pairwise(numbers) if digests.get(number) == digests.get(after)
            )
            gone.append(next(same, numbers[0]))
            numbers.remove(gone[-1])
        return gone

    def marks(self) -> tuple[Identity | None, ...]:
        """What changes when a command of another process puts a generation or a hold in place: cheap to look at."""
        return identity(self._generations), identity(self.state / "hold.json")

    # --- journal, hold, server state, status

    def write_journal(self, journal: Journal) -> None:
        """From here on a switch is under way."""
        # Of a step by commands it is not forced to the disk: after a power cut no process runs that it could be about.
        write(self.state / "journal.json", json.dumps(asdict(journal)).encode(), durable=not journal.runtime)

    def journal(self) -> Journal | None:
        """The switch that was under way when the agent ended, None where none was, or it cannot be read."""
        try:
            return read_as(Journal, read_json(self.state / "journal.json"))
        except (TypeError, ValueError):  # absent, or not as we write it
            return None

    def clear_journal(self) -> None:
        """The switch is over, one way or the other."""
        _remove(self.state / "journal.json")

    def hold(self) -> Hold | None:
        """The document that is not to be applied again."""
        try:
            return read_as(Hold, read_json(self.state / "hold.json"))
        except (TypeError, ValueError):  # absent, or not as we write it
            return None

    def write_hold(self, hold: Hold | None) -> None:
        """Hold a document, or let go."""
        if hold is None:
            _remove(self.state / "hold.json")
        else:
            write(self.state / "hold.json", json.dumps(asdict(hold), indent=1).encode())

    def handshakes(self) -> tuple[Handshake, ...]:
        """What servers were last found to be, nothing where that cannot be read."""
        with contextlib.suppress(OSError):
            return _handshakes(read_regular(self.state / "handshakes.json"))
        return ()

    def set_handshakes(self, handshakes: tuple[Handshake, ...]) -> None:
        """Remember what servers were found to be."""
        write(self.state / "handshakes.json", _dumped(handshakes))

    def unreachable(self) -> frozenset[Key]:
        """Servers without a check that have never answered; none where that cannot be read.

        While HAProxy runs it has them as down; a process that starts anew would take them for up.
        """
        document = read_json(self.state / "unreached.json") or {}
        with contextlib.suppress(TypeError, ValueError):
            return frozenset((str(backend), str(server)) for backend, server in document.get("servers", ()))
        return frozenset()

    def set_unreachable(self, servers: Collection[Key]) -> None:
        """Remember them; none: forget."""
        if servers:
            write(self.state / "unreached.json", json.dumps({"servers": sorted(servers)}).encode())
        else:
            _remove(self.state / "unreached.json")

    def drains(self) -> tuple[Drain, ...]:
        """Servers that a person has drained; none where that cannot be read."""
        document = read_json(self.state / "drains.json") or {}
        with contextlib.suppress(TypeError, ValueError):
            return tuple(read_as(Drain, drain) for drain in document.get("drains", ()))
        return ()

    def set_drains(self, drains: Collection[Drain]) -> None:
        """Remember them; none: forget."""
        if drains:
            write(self.state / "drains.json", json.dumps({"drains": [asdict(drain) for drain in drains]}).encode())
        else:
            _remove(self.state / "drains.json")

    def write_server_state(self, dump: str) -> None:
        """What the next process shall know of its servers."""
        write(self.server_state, dump.encode(), durable=False)

    def set_request(self, request: Request | None) -> None:
        """Who hands the next document over, and how it is to be treated, once; None: like any other."""
        if request is None:
            _remove(self.state / "request.json")
        else:
            write(self.state / "request.json", json.dumps(asdict(request)).encode())

    def request(self) -> Request | None:
        """What is known of the document that was handed over last; None: nothing."""
        try:
            return read_as(Request, read_json(self.state / "request.json"))
        except (TypeError, ValueError):  # absent, or not as we write it
            return None

    def events(self) -> tuple[Event, ...]:
        """What happened between changes, oldest first; nothing where that cannot be read."""
        try:
            return _events(read_regular(self.state / "events.json"))
        except OSError:
            return ()

    def add_events(self, events: Iterable[Event]) -> None:
        """Record what happened. The caller holds the lock. Raises StoreError."""
        after = recorded(self.events(), events, most=MOST_EVENTS)
        write(self.state / "events.json", json.dumps([asdict(event) for event in after], indent=1).encode())

    def set_serial(self, serial: int, digest: str) -> None:
        """The newest document that was ever taken, where documents are signed: a rollback does not make it older."""
        write(self.state / "serial.json", json.dumps({"serial": serial, "digest": digest}).encode())

    def serial(self) -> tuple[int, str] | None:
        """Serial and digest of the newest signed document that was taken, None where there is none.

        Raises StoreError for a file that says nothing: without it, whatever was signed once could be played again.
        """
        path = self.state / "serial.json"
        if not path.exists():
            return None
        document = read_json(path) or {}
        serial, digest = document.get("serial"), document.get("digest")
        if not isinstance(serial, int) or not isinstance(digest, str):
            raise StoreError(f"{path} is damaged", remedy="remove it, having seen which serial was live last")
        return serial, digest

    def write_progress(self, digest: str | None, stage: str) -> None:
        """Where the service is with a document, for those that wait for it."""
        # In place, at every stage of every change: a reader that comes in between finds no progress.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        with _telling("write", self.progress_file):
            descriptor = os.open(self.progress_file, flags, 0o644)
            try:
                os.write(descriptor, json.dumps({"digest": digest, "stage": stage}).encode())
            finally:
                os.close(descriptor)

    def progress(self) -> tuple[str, str] | None:
        """The document that the service is at, and its stage; None where it is not known."""
        document = read_json(self.progress_file) or {}
        digest, stage = document.get("digest"), document.get("stage")
        return (digest, stage) if isinstance(digest, str) and isinstance(stage, str) else None

    def write_status(self, status: str) -> None:
        """Replace status.json."""
        write(self.status_file, status.encode() + b"\n", mode=0o644, durable=False)

    def status(self) -> dict[str, Any] | None:
        """status.json as it stands, None where there is none that can be read."""
        return read_json(self.status_file)


def _dumped(handshakes: tuple[Handshake, ...]) -> bytes:
    return json.dumps([asdict(handshake) for handshake in handshakes], indent=1).encode()


@functools.lru_cache(maxsize=1)
def _events(data: bytes) -> tuple[Event, ...]:
    """Kept, because every status asks for them."""
    try:
        return tuple(read_as(Event, entry) for entry in json.loads(data))
    except (ValueError, TypeError, RecursionError):  # a crash, or a person
        return ()


@functools.lru_cache(maxsize=1)
def _handshakes(data: bytes) -> tuple[Handshake, ...]:
    """Kept, because every status asks for them: thousands on a large edge, and they seldom change."""
    from agent.proxy_protocol import record

    with contextlib.suppress(ValueError, TypeError, RecursionError):  # a crash, or a person
        return record.handshakes(json.loads(data))
    return ()
