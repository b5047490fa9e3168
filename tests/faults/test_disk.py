"""A file system that is full or read-only costs the change, never the service."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from kit.edge import first_line, tmpfs
from kit.servers import echo, free_port

from agent.host.store import Store
from tests.faults.conftest import Scene

BLOCK = 4096


def test_a_disk_that_is_full_at_each_write(root: None, scene: Scene):
    """Room for one block more each time, until the change fits: every write there is finds the disk full once."""
    edge, port = scene.edge, free_port()
    # Room for the named HAProxy, which is copied from another file system, and for a few generations.
    size = edge.binary.stat().st_size + 200 * BLOCK
    with echo("a") as a, echo("b") as b, tmpfs(edge.folder / "state", f"size={size // 1024}k,nr_inodes=400"):
        edge.live(scene.with_pool(port, a))
        old, new = scene.with_pool(port, a), scene.with_pool(port, b, balance="first")
        filler = edge.folder / "state/fill"
        outcomes = []
        with scene.fault("the disk full at each write of a change") as after:
            for spare in range(40):
                fill(filler, spare)
                done = edge.apply(new)
                outcomes.append(done.returncode)
                assert done.returncode in (0, 4), done.stderr
                assert "Traceback" not in done.stderr
                live = Store(edge.folder / "state", edge.folder / "run").live()
                assert live is not None
                assert first_line(port)[0] == ("b" if done.returncode == 0 else "a"), f"{spare} blocks: {done.stderr}"
                filler.unlink()
                if done.returncode == 0:
                    break
                assert "No space left on device" in done.stderr
                assert edge.apply(old).returncode == 0
            after("the old state until there is room, then the new one")
        assert outcomes[-1] == 0
        # Document, configuration, journal, swap; the commit itself needs no more room than the swap has freed.
        assert outcomes.count(4) >= 4


def fill(filler: Path, spare: int) -> None:
    """Take all the room but so many blocks."""
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x" * BLOCK)
            file.flush()
    length = filler.stat().st_size
    with filler.open("r+b") as file:
        file.truncate(max(length - spare * BLOCK, 0))


def test_a_state_folder_that_is_read_only(root: None, scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b, tmpfs(edge.folder / "state", "size=64m"):
        edge.live(scene.with_pool(port, a))
        subprocess.run(["mount", "-o", "remount,ro", edge.folder / "state"], check=True)
        with scene.fault("the state folder read-only") as after:
            for more in ({}, {"balance": "first"}):
                done = edge.apply(scene.with_pool(port, b, **more))
                assert done.returncode == 4, done.stderr
                assert "Read-only file system" in done.stderr
                assert first_line(port)[0] == "a"
            after("what was live")
