"""Whether the desired file is whole, or being written.

A rename puts a whole file in place. A copy or an editor may write in place: half of a YAML document can be valid, and
would take away every frontend of the other half. Linux reports when a writer closes the file (inotify,
IN_CLOSE_WRITE); kqueue does not, so there the file must be unchanged for a while. A rename is also seen without an
event: it sets the time of change (ctime) and leaves that of the last write (mtime), which a write sets both.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from attrs import field, frozen

QUIET_SECONDS = 1.0
"""A file that was written in place is whole once it is unchanged for so long, where no close is reported."""
OPEN_SECONDS = 300.0
"""The same where a close would be reported and was not: a writer that stalls, or one that never closes."""
CONFIRM_SECONDS = 3.0
"""A file that was written in place and takes frontends away counts once it is unchanged for so long."""


def writer(file: Path) -> str:
    """`pid 1234 (scp)` of a process that has the file open for writing; "" for none, or where the system does not tell.

    Linux: /proc/PID/fd and fdinfo (proc(5)), of all processes for root, else of one's own.
    """
    try:
        place = str(file.resolve())
    except (OSError, RuntimeError):
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at (glob passes on the former)
            for link in (process / "fd").iterdir():
                if _opened_for_writing(link, place):
                    return f"pid {process.name} ({(process / 'comm').read_text().strip()})"
    return ""


def _opened_for_writing(link: Path, place: str) -> bool:
    """Whether /proc/PID/fd/N is `place`, open for writing."""
    with contextlib.suppress(OSError, ValueError, StopIteration):  # closed meanwhile
        if str(link.readlink()) == place:
            lines = (link.parent.parent / "fdinfo" / link.name).read_text().splitlines()
            flags = int(next(line.split()[1] for line in lines if line.startswith("flags:")), 8)
            return flags & os.O_ACCMODE != os.O_RDONLY
    return False


@frozen
class _Version:
    """One state of the file. Two with the same bytes are equal: a chmod makes no other one."""

    device: int
    inode: int
    size: int
    written: int
    """mtime, in ns."""
    changed: int = field(eq=False)
    """ctime, in ns."""


class Writes:
    """The writers of `file`. `event` is called by the watch, in its thread; everything else by the service."""

    def __init__(
        self,
        file: Path,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reports_closes = False
        """Whether the watch reports that a writer has closed the file."""
        self._file = file
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._renamed: _Version | None = None
        self._closed: _Version | None = None
        self._open = False
        self._written: _Version | None = self._version()  # at the last event of a write
        self._seen = (self._written, monotonic())

    def event(self, kind: str) -> None:
        """Take a watchdog event about the file: `moved` (here), `closed` (after writing), `modified`, and others."""
        with self._lock:
            if kind == "moved":
                self._renamed, self._open = self._version(), False
            elif kind == "closed":
                self._closed, self._open = self._version(), False
            # `created` alone says nothing: a file that was moved here from an unwatched folder comes so too.
            elif kind == "modified" and (version := self._version()) != self._written:  # else its mode alone
                self._open = version not in (self._renamed, self._closed)
                self._written = version

    def is_open(self) -> bool:
        """Whether a writer is known to have the file open; False where nothing tells, or it was changed just now."""
        with self._lock:
            return self._open

    def unfinished(self) -> float:
        """For how many seconds more the file must not be read; 0.0: it is whole, or it is not there."""
        with self._lock:
            version = self._version()
            if version is None or self._whole_by_rename(version):
                return 0.0
            unchanged = self._unchanged_for(version)
            patience = OPEN_SECONDS if self.reports_closes and self._open else QUIET_SECONDS
            if version != self._closed and unchanged < patience:
                return patience - unchanged
            # Another writer than the one that has closed it, or one that had begun before we looked.
            return max(OPEN_SECONDS - unchanged, 0.0) if unchanged < OPEN_SECONDS and writer(self._file) else 0.0

    def unconfirmed(self) -> float:
        """For how many seconds more a file that takes frontends away must stay as it is; 0.0: it counts."""
        with self._lock:
            version = self._version()
            if version is None or self._whole_by_rename(version):
                return 0.0
            return max(CONFIRM_SECONDS - self._unchanged_for(version), 0.0)

    def by_rename(self) -> bool:
        """Whether what stands there was put there by a rename: it is whole, and nothing has to be waited for."""
        with self._lock:
            version = self._version()
            return version is not None and self._whole_by_rename(version)

    def _whole_by_rename(self, version: _Version) -> bool:
        return version == self._renamed or (version.changed > version.written and not self._open)

    def _unchanged_for(self, version: _Version) -> float:
        """By the file's own time, or since when it is seen so: a clock that jumps must not make it wait for ever."""
        now = self._monotonic()
        if version != self._seen[0]:
            self._seen = (version, now)
        by_clock = self._wall() - version.written / 1e9
        return max(now - self._seen[1], by_clock)

    def _version(self) -> _Version | None:
        try:
            about = self._file.stat()
        except (OSError, RuntimeError):  # a link that leads to itself is a RuntimeError to pathlib
            return None
        if not stat.S_ISREG(about.st_mode):  # it is not being written, and reading it is refused
            return None
        return _Version(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
