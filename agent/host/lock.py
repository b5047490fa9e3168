"""Advisory locks (flock) on files and folders: taken, waited for, and traced to the process that holds them.

A lock cannot outlive its process, as a pid file can. But it is on an inode, not on a name: where the file was removed
and made anew, two processes can hold "the" lock, so the name is looked at again after each lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.errors import AgentError, StoreError, UsageError
from agent.host.files import read_regular

PID_FILE = "service.pid"
_FSTAT_LINE = re.compile(r"\S+\s+(\S.*?)\s+(\d+)\s+(?:\d+|wd|root|text|tr|mmap|jail)\*?\s")
"""`USER CMD PID FD ...` of FreeBSD's fstat(1) (usr.bin/fstat/fstat.c, PREFIX: "%-8.8s %-10s %5d")."""


class LockLostError(AgentError):
    """The folder that this agent has locked is another one now, and another agent has that."""


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[str], None] | None, shared: bool = False) -> Iterator[int]:
    """Hold the lock on a file (made where it is absent) or a folder; yields the descriptor.

    `waiting`: called with a sentence that names the holder, before waiting for it. None: BlockingIOError instead.
    Raises StoreError where the path cannot be opened, or belongs to another user.
    """
    descriptor = _acquire(path, waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def held(folder: Path) -> bool:
    """Whether a process holds the lock on a folder. Raises StoreError where the folder belongs to another user."""
    if not folder.is_dir():
        return False
    try:
        with locked(folder, waiting=None, shared=True):  # two that ask do not take each other for it
            return False
    except BlockingIOError:
        return True


def _acquire(path: Path, waiting: Callable[[str], None] | None, how: int) -> int:
    while True:
        descriptor = _opened(path)
        try:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting(f"waiting for {holder(path) or 'a process that cannot be found'}, which has locked {path}")
                fcntl.flock(descriptor, how)
            if same(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed and made anew meanwhile


def _opened(path: Path) -> int:
    try:
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}", remedy=_REMEDY) from error
    owner = os.fstat(descriptor).st_uid
    if os.geteuid() not in (0, owner):  # a user who can read a folder can lock it, and keep its owner waiting
        os.close(descriptor)
        raise StoreError(f"cannot lock {path}: permission denied, it belongs to uid {owner}", remedy=_REMEDY)
    return descriptor


_REMEDY = "run as the user who owns it, or name other folders in agent.toml"


def same(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the file that is open."""
    try:
        now = path.stat()
    except OSError:
        return False
    then = os.fstat(descriptor)
    return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)


def holder(path: Path) -> str:
    """`pid 1234 (python3.11)` of each process that holds the lock on `path`, "" where the system does not tell.

    Linux: /proc/locks (proc(5)); FreeBSD: fstat(1), which lists every process that has it open.
    """
    holders = _by_proc(path) or _by_fstat(path)
    return " and ".join(f"pid {pid} ({program})" if program else f"pid {pid}" for pid, program in holders)


def _by_proc(path: Path) -> list[tuple[int, str]]:
    try:
        about = path.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    where = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    # `1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF`; a waiting process has `->` behind the number.
    fields = [line.split() for line in lines]
    pids = {int(columns[4]) for columns in fields if len(columns) > 5 and columns[1] == "FLOCK" and columns[5] == where}
    return [(pid, _name(pid)) for pid in sorted(pids) if pid > 0]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _by_fstat(path: Path) -> list[tuple[int, str]]:
    from agent.host import subprocesses  # only where a holder is named

    program = shutil.which("fstat")
    if program is None:
        return []
    with contextlib.suppress(UsageError):
        return fstat_lines(subprocesses.run([program, str(path)]).text)
    return []


def fstat_lines(text: str) -> list[tuple[int, str]]:
    """Pid and program of each line of fstat(1) but our own."""
    matches = (_FSTAT_LINE.match(line) for line in text.splitlines()[1:])
    programs_by_pid = {int(match[2]): match[1] for match in matches if match is not None}
    return sorted((pid, name) for pid, name in programs_by_pid.items() if pid != os.getpid())


class ServiceLock:
    """The lock of the one agent of a state folder. The folder itself is locked, since /var/run can be wiped.

    Its pid stands in the folder, for `holder_pid`: flock(2) does not tell which process holds a lock.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder, self._descriptor = folder, descriptor
        self._write_pid()

    def keep(self, prepare: Callable[[], None]) -> bool:
        """Make sure that the locked folder is the one that the name leads to; True where it had to be taken anew.

        `prepare` makes the folders. Raises LockLostError where another agent was faster, StoreError where they
        cannot be made.
        """
        if same(self._descriptor, self._folder):
            return False
        prepare()
        try:
            fresh = _acquire(self._folder, None, fcntl.LOCK_EX)
        except BlockingIOError:
            raise LockLostError(
                f"{self._folder} was removed and made anew, and {holder(self._folder) or 'another agent'} has it now",
                remedy="this agent ends; HAProxy goes on serving",
            ) from None
        os.dup2(fresh, self._descriptor)
        os.close(fresh)
        self._write_pid()
        return True

    def _write_pid(self) -> None:
        fresh = self._folder / f".{PID_FILE}"
        with contextlib.suppress(OSError):  # a full disk must not keep the service from serving
            fresh.unlink(missing_ok=True)
            fresh.write_text(f"{os.getpid()}\n")
            fresh.replace(self._folder / PID_FILE)


def holder_pid(folder: Path) -> int | None:
    """The pid of the agent that holds the lock on its state folder; None where none does, or it is not known.

    Raises StoreError where the folder belongs to another user.
    """
    if not folder.is_dir():
        return None
    try:
        with locked(folder, waiting=None, shared=True):  # two that ask do not take each other for it
            return None
    except BlockingIOError:
        pass
    with contextlib.suppress(OSError, ValueError):
        return int(read_regular(folder / PID_FILE, 100))
    pids = [pid for pid, _ in _by_proc(folder) or _by_fstat(folder)]
    return pids[0] if len(pids) == 1 else None


def make_private(folder: Path) -> None:
    """Make a folder that others can neither read nor enter but the group; tighten one of ours that is wider."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    about = folder.stat()
    if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) & 0o027:
        folder.chmod(stat.S_IMODE(about.st_mode) & 0o750)
