"""Locks: who holds one, whose folder it is, and a folder that was removed and made anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.host.lock import PID_FILE, LockLostError, ServiceLock, fstat_lines, holder, holder_pid, locked
from agent.host.store import Store

HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""

PROGRAM = Path(sys.executable).name[:15]  # what the kernel names a process by (proc(5), comm)

# FreeBSD, usr.bin/fstat/fstat.c (main): print_header, PREFIX, vtrans; the same formats, put together here.
HEADER = "USER     CMD          PID   FD MOUNT      INUM MODE         SZ|DV R/W NAME"
LINE = "%-8.8s %-10s %5d%s %-8s %6d %10s %6d %2s  %s"
OPEN_BY = [
    ("root", "python3.11", 4021, "    5"),
    ("www", "edge haproxy", 99999, "   wd"),
    ("_verylongname", "x", 7, " mmap"),
]
FSTAT = "\n".join([
    HEADER, *(LINE % (*who, "/var/db", 12345, "drwxr-x---", 512, "r", "/var/db/edgeagent") for who in OPEN_BY),
])  # fmt: skip


def other_holder(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_who_holds_a_lock_is_named_by_pid_and_program(tmp_path: Path):
    assert holder(tmp_path) == ""
    with other_holder(tmp_path) as process:
        assert holder(tmp_path) == f"pid {process.pid} ({PROGRAM})"
        said: list[str] = []

        def waiting(sentence: str) -> None:
            said.append(sentence)
            process.kill()

        with locked(tmp_path, waiting=waiting):
            assert said == [f"waiting for pid {process.pid} ({PROGRAM}), which has locked {tmp_path}"]


def test_freebsd_names_whoever_has_it_open():
    assert fstat_lines(FSTAT) == [(7, "x"), (4021, "python3.11"), (99999, "edge haproxy")]


def test_a_file_that_is_made_anew_is_locked_anew(tmp_path: Path):
    path = tmp_path / "lock"
    with other_holder_of_file(path) as process:

        def waiting(_: str) -> None:
            path.unlink()
            path.touch()
            process.kill()

        with locked(path, waiting=waiting) as descriptor:
            assert os.fstat(descriptor).st_ino == path.stat().st_ino


def other_holder_of_file(path: Path) -> subprocess.Popen[bytes]:
    path.touch()
    return other_holder(path)


def test_the_folders_are_private_from_the_first_command_on_and_tightened(tmp_path: Path):
    store = Store(tmp_path / "db/state", tmp_path / "run")
    old = os.umask(0)
    try:
        store.prepare()
    finally:
        os.umask(old)
    for folder in (store.state, store.state / "generations", store.run):
        assert folder.stat().st_mode & 0o777 == 0o750
    store.state.chmod(0o755)
    store.run.chmod(0o700)
    store.prepare()
    assert [folder.stat().st_mode & 0o777 for folder in (store.state, store.run)] == [0o750, 0o700]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o755, "cannot lock {}: permission denied, it belongs to uid 0"),
        (0o750, "cannot open {}: Permission denied"),
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_not_waited_for(root: None, mode: int, said: str):
    folder = Path(tempfile.mkdtemp(prefix="edge-"))
    folder.chmod(mode)
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            with locked(folder, waiting=None):
                os.write(write, b"locked")
        except Exception as error:  # noqa: BLE001  # the other process has no other way to say so
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    folder.rmdir()
    assert os.read(read, 1_000).decode() == f"StoreError: {said.format(folder)}"


def test_an_agent_takes_a_folder_that_was_made_anew_and_ends_where_another_was_faster(tmp_path: Path):
    store = Store(tmp_path / "state", tmp_path / "run")
    store.prepare()
    with store.service(waiting=lambda _: None) as lock:
        assert not lock.keep(store.prepare)
        shutil.rmtree(store.state)
        assert lock.keep(store.prepare)
        assert store.service_running()
        shutil.rmtree(store.state)
        store.prepare()
        with other_holder(store.state) as other:
            with pytest.raises(LockLostError, match=f"pid {other.pid} "):
                lock.keep(store.prepare)
            other.kill()
    assert isinstance(lock, ServiceLock)


def test_the_lock_names_its_holder_by_pid_and_only_while_it_is_held(tmp_path: Path):
    store = Store(tmp_path / "state", tmp_path / "run")
    assert store.service_pid() is None
    store.prepare()
    (store.state / PID_FILE).write_text("1\n")  # of an agent that was killed
    assert store.service_pid() is None
    with store.service(waiting=lambda _: None) as lock:
        assert store.service_pid() == os.getpid()
        shutil.rmtree(store.state)
        assert lock.keep(store.prepare)
        assert store.service_pid() == os.getpid()
    assert store.service_pid() is None


@pytest.mark.parametrize("content", ["", "x", None])
def test_where_the_file_cannot_be_read_the_system_tells(tmp_path: Path, content: str | None):
    """A full disk, a damaged file: /proc/locks or fstat(1) knows."""
    with other_holder(tmp_path) as other:
        if content is not None:
            (tmp_path / PID_FILE).write_text(content)
        assert holder_pid(tmp_path) == other.pid
        other.kill()


def test_an_agent_whose_pid_cannot_be_written_serves_all_the_same(tmp_path: Path):
    store = Store(tmp_path / "state", tmp_path / "run")
    store.prepare()
    (store.state / f".{PID_FILE}").mkdir()
    with store.service(waiting=lambda _: None):
        assert store.service_pid() == os.getpid()
