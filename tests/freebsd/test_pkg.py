"""The package, by its format: what pkg(8) would read. No pkg(8) is here to read it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from kit.onefile import PYTHON

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package() -> Path:
    subprocess.run([sys.executable, ROOT / "deploy/release/pkg.py"], check=True, stdout=subprocess.DEVNULL)
    (built,) = (ROOT / "dist").glob("*.pkg")
    return built


def test_manifests_come_first_and_name_every_file(package: Path):
    with tarfile.open(package) as archive:
        names = archive.getnames()
        compact, whole = (json.load(archive.extractfile(name)) for name in names[:2])  # type: ignore[arg-type]
        assert names[:2] == ["+COMPACT_MANIFEST", "+MANIFEST"]
        assert "files" not in compact
        assert whole == compact | {"files": whole["files"]}
        # tarfile takes the first slash off as it reads; pkg(8) does not.
        assert [f"/{name.lstrip('/')}" for name in names[2:]] == list(whole["files"])
        for entry in archive.getmembers()[2:]:
            data = archive.extractfile(entry).read()  # type: ignore[union-attr]
            assert whole["files"][f"/{entry.name.lstrip('/')}"] == f"1${hashlib.sha256(data).hexdigest()}"
            assert (entry.uname, entry.gname, entry.mtime) == ("root", "wheel", 0)
        modes = {entry.name.lstrip("/"): entry.mode for entry in archive.getmembers()}
    assert modes["usr/local/bin/agent"] == modes["usr/local/etc/rc.d/edgeagent"] == 0o755
    assert set(compact["deps"]) == {
        "haproxy", "python311", "py311-click", "py311-psutil", "py311-Jinja2", "py311-watchdog",
        "py311-prometheus-client", "py311-pyyaml", "py311-attrs", "py311-cattrs",
    }  # fmt: skip
    assert "sysrc edgeagent_enable=YES" in compact["messages"][0]["message"]


def test_it_is_reproducible(package: Path):
    before = package.read_bytes()
    subprocess.run([sys.executable, ROOT / "deploy/release/pkg.py"], check=True, stdout=subprocess.DEVNULL)
    assert package.read_bytes() == before


def test_what_is_in_it_runs(package: Path, tmp_path: Path, pyz: Path):
    """With the dependencies beside it, as FreeBSD's packages would have them; here they come out of the one file."""
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path, filter="tar")
    site = tmp_path / "usr/local/lib/python3.11/site-packages"
    assert (site / "agent/cli/__pycache__/commands.cpython-311.pyc").exists()
    words = f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path.append({str(pyz)!r}); import agent.cli as c; "
    words += "print(c.__file__); c.main(['check', sys.argv[1]])"
    told = subprocess.run(
        [PYTHON, "-I", "-S", "-c", words, ROOT / "examples/mail-edge.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[0].startswith(str(site))
