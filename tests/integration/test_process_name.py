"""Every HAProxy that the agent starts has its own process name, also for `-v` and `-c` (facts.md, pfSense 3 and 17).

The pfSense package reloads by `pgrep -x haproxy` and stops by `killall haproxy`; both go by the name of the process.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.edge import Edge, edge_in_folder
from kit.onefile import AGENT
from kit.servers import echo, free_port


@pytest.fixture
def watched(any_haproxy: Path, tmp_path: Path) -> Iterator[tuple[Edge, Path]]:
    """An agent whose haproxy notes the process name and options of every start, and the file that has them."""
    names = tmp_path / "names"
    wrapper = tmp_path / "haproxy"
    wrapper.write_text(f'#!/bin/bash\necho "$(cat /proc/$$/comm) $1" >>{names}\nexec -a "$0" {any_haproxy} "$@"\n')
    wrapper.chmod(0o755)
    with edge_in_folder(wrapper) as edge:
        yield edge, names


def test_each_command_starts_haproxy_under_our_name(watched: tuple[Edge, Path]):
    edge, names = watched
    with echo("a") as backend:
        document = {
            "version": 1,
            "frontends": {"f": {"bind": [f"127.0.0.1:{free_port()}"], "backend": "b"}},
            "backends": {"b": {"servers": {"a": {"address": backend.address}}}},
        }
        edge.put(document)
        assert edge.agent("plan").returncode == 0
        edge.agent("doctor")
        assert not (edge.folder / "state").exists()  # neither leaves anything behind
        edge.live(document)
        document["frontends"]["f"]["maxconn"] = 77
        edge.live(document)  # -c and a trial start
        document["backends"]["b"]["servers"]["a"]["weight"] = 7
        edge.live(document)  # at runtime, and -c
        edge.serve()
        started = [line.split() for line in names.read_text().splitlines()]
        assert {name for name, _ in started} == {"edge-haproxy"}
        assert {option for _, option in started} == {"-v", "-vv", "-c", "-db", "-D"}


@pytest.mark.parametrize("option", ["noexec", "gone"])
def test_where_no_temporary_file_can_be_run_the_name_is_still_ours(
    watched: tuple[Edge, Path], root: None, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
):
    """Hardened hosts mount /tmp noexec."""
    edge, names = watched
    edge.put({"version": 1})
    edge.agent("apply")
    shutil.rmtree(edge.folder / "state/bin")
    names.write_text("")
    folder = tmp_path / "noexec"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    words = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o noexec none {folder}; exec "$@"', "sh"]
    if option == "gone":
        words = []
        shutil.rmtree(folder)
        monkeypatch.setenv("TMPDIR", "/nonexistent")
    done = subprocess.run(
        [*words, *AGENT, "--settings", edge.settings, "plan"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert names.read_text() == "edge-haproxy -c\n"
