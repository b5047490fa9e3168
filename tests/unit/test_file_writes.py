"""When the desired file is whole: by events, by times, and by how long it is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.host.file_writes import CONFIRM_SECONDS, OPEN_SECONDS, QUIET_SECONDS, Writes, writer


class Clock:
    """Wall and monotonic time, moved by hand. Starts at the time of the file."""

    def __init__(self) -> None:
        self.time = 1_000_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "desired.yaml"


def write(file: Path, text: str, clock: Clock) -> None:
    """In place. What a write sets both times to, the test cannot: so ctime is made to look like mtime by `Writes`."""
    file.write_text(text)
    os.utime(file, (clock.time, clock.time))


def writes(file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, closes: bool) -> Writes:
    """With the ctime of a file that was written in place: its mtime. (No program can set a ctime.)"""
    made = Writes(file, wall=clock, monotonic=clock)
    made.reports_closes = closes
    whole = Writes._version

    def version(self: Writes) -> object:
        from attrs import evolve

        found = whole(self)
        return None if found is None else evolve(found, changed=found.written)

    monkeypatch.setattr(Writes, "_version", version)
    return made


def test_a_file_that_is_not_there_is_not_waited_for(file: Path, clock: Clock):
    assert Writes(file, wall=clock, monotonic=clock).unfinished() == 0.0


def test_where_closes_are_reported_a_stalled_writer_is_waited_for(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    one = writes(file, clock, monkeypatch, closes=True)
    write(file, "half", clock)
    one.event("created")
    assert one.unfinished() == QUIET_SECONDS  # or moved here from a folder that nobody watches
    write(file, "half!", clock)
    one.event("modified")
    clock.time += 60
    assert one.unfinished() == OPEN_SECONDS - 60
    write(file, "whole", clock)
    one.event("modified")
    assert one.unfinished() == OPEN_SECONDS
    one.event("closed")
    assert one.unfinished() == 0.0
    assert one.unconfirmed() == CONFIRM_SECONDS
    clock.time += CONFIRM_SECONDS
    assert one.unconfirmed() == 0.0


def test_a_look_between_a_write_and_its_event_loses_no_writer(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    file_writes = writes(file, clock, monkeypatch, closes=True)
    write(file, "half", clock)
    assert (file_writes.unfinished(), file_writes.is_open()) == (QUIET_SECONDS, False)
    file_writes.event("modified")
    assert (file_writes.unfinished(), file_writes.is_open()) == (OPEN_SECONDS, True)


def test_a_writer_that_never_closes_is_not_waited_for_for_ever(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    one = writes(file, clock, monkeypatch, closes=True)
    write(file, "half", clock)
    one.event("modified")
    clock.time += OPEN_SECONDS
    assert one.unfinished() == 0.0


def test_without_closes_a_file_must_be_left_alone_for_a_while(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    one = writes(file, clock, monkeypatch, closes=False)
    write(file, "half", clock)
    one.event("modified")
    assert one.unfinished() == QUIET_SECONDS
    clock.time += QUIET_SECONDS / 2
    write(file, "half and more", clock)
    assert one.unfinished() == QUIET_SECONDS
    clock.time += QUIET_SECONDS
    assert one.unfinished() == 0.0


def test_a_rename_is_whole_at_once_by_its_event(file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    one = writes(file, clock, monkeypatch, closes=True)
    write(file, "whole", clock)
    one.event("moved")
    assert (one.unfinished(), one.unconfirmed()) == (0.0, 0.0)


def test_a_rename_is_whole_at_once_by_its_times(file: Path, clock: Clock):
    """As on FreeBSD, where no event says so: the real ctime of this file is later than its mtime."""
    one = Writes(file, wall=clock, monotonic=clock)
    write(file, "whole", clock)
    assert (one.unfinished(), one.unconfirmed()) == (0.0, 0.0)


def test_a_chmod_is_no_write(file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    write(file, "whole", clock)
    one = writes(file, clock, monkeypatch, closes=True)
    clock.time += QUIET_SECONDS
    file.chmod(0o600)
    one.event("modified")
    assert one.unfinished() == 0.0


def test_a_clock_that_goes_back_makes_nobody_wait_for_ever(file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    one = writes(file, clock, monkeypatch, closes=False)
    clock.time += 1_000_000
    write(file, "of the future", clock)
    one._wall = lambda: 0.0
    assert one.unfinished() == QUIET_SECONDS
    clock.time += QUIET_SECONDS
    assert one.unfinished() == 0.0


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="only Linux lists the open files of a process")
@pytest.mark.parametrize("function", ["listdir", "scandir"])
def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(
    file: Path, monkeypatch: pytest.MonkeyPatch, function: str
):
    """proc(5): the folder of a process goes with it, also between two looks at it (found by the crash suite)."""
    file.write_text("")
    real, earlier = getattr(os, function), f"/proc/{os.getppid()}/fd"

    def vanish(path: str) -> object:
        if str(path) == earlier:
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, function, vanish)
    with file.open("a"):
        assert writer(file) == f"pid {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
