"""Builds `dist/edgeagent-VERSION.pyz`: the agent and all it needs in one file that a bare Python 3.11 runs.

Pure Python only: compiled parts of what is carried are left out, and MarkupSafe and PyYAML do without. Byte-compiled
for 3.11 inside, beside the sources, which any later Python falls back to. The same input makes the same bytes: pinned
requirements, sorted names, one date, no compression, a fixed hash seed (it decides the order of set constants).
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import man

ROOT = Path(__file__).parents[2]
SHEBANG = b"#!/usr/bin/env python3.11\n"
MAIN = b'''"""The one file: the same as the installed command."""

import sys

if sys.version_info < (3, 11):
    sys.exit("edgeagent needs Python 3.11 or newer")

from agent.cli import main

main(prog_name="agent")
'''
_DATE = (1980, 1, 1, 0, 0, 0)
_LEFT_OUT = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json", "entry_points.txt", "top_level.txt")
_KEPT = (".py", ".j2", ".sh")


def version() -> str:
    """Of the sources."""
    line = next(
        text for text in (ROOT / "agent/__init__.py").read_text().splitlines() if text.startswith("__version__")
    )
    return line.split('"')[1]


def released() -> str:
    """The date of this version in the CHANGELOG; of an unreleased one that of the last release. As 2026-11-29.

    It is the one date in everything that is built: the same sources are the same bytes on any day.
    """
    match = re.search(r"^## \[[0-9.]+\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit("CHANGELOG.md has no section with a version and a date")
    return match[1]


def build(target: Path) -> None:
    """Write the file, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="pyz-") as scratch:
        folder = Path(scratch) / "all"
        _carried(folder)
        ours(folder)
        compiled(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}.fresh")  # two may build at once
        with fresh.open("wb") as file:
            file.write(SHEBANG)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for path in _sorted(folder):
                    name = str(path.relative_to(folder)) + "/" * path.is_dir()
                    entry = zipfile.ZipInfo(name, _DATE)
                    entry.external_attr = (0o40755 << 16 | 0x10) if path.is_dir() else 0o100644 << 16
                    entry.create_system = 3
                    archive.writestr(entry, b"" if path.is_dir() else path.read_bytes())
        fresh.chmod(0o755)
        fresh.replace(target)


def _sorted(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("*"), key=str)


def _carried(folder: Path) -> None:
    """The packages, without what is compiled or only for tools; with their licences."""
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps", "--target", str(folder)]
    subprocess.run(  # noqa: S603  # our own words
        [sys.executable, "-m", "pip", *words, "-r", str(Path(__file__).with_name("requirements.txt"))], check=True
    )
    shutil.rmtree(folder / "bin", ignore_errors=True)
    for path in list(_sorted(folder)):
        if path.is_dir():
            continue
        about = next((parent for parent in path.parents if parent.suffix == ".dist-info"), None)
        if path.name in _LEFT_OUT or (about is None and path.suffix not in _KEPT):
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def ours(folder: Path) -> None:
    """The agent, its templates and rc scripts, as packages under `folder`."""
    for path in sorted((ROOT / "agent").rglob("*.py")):
        _copy(path, folder / path.relative_to(ROOT))
    for path in sorted((ROOT / "templates").glob("*.j2")):
        _copy(path, folder / "agent/templates" / path.name)
    (folder / "agent/templates/__init__.py").write_bytes(b"")  # zipimport knows no folder without one before 3.13
    for name in ("edgeagent", "edgeagent.sh"):
        _copy(ROOT / "rc.d" / name, folder / "agent/rc" / name)
    _copy(ROOT / "deploy/systemd/edgeagent.service", folder / "agent/rc/edgeagent.service")
    (folder / "agent/rc/__init__.py").write_bytes(b"")
    man.write(folder / "agent/man", released())
    (folder / "agent/man/__init__.py").write_bytes(b"")
    _copy(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "__main__.py").write_bytes(MAIN)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def compiled(folder: Path) -> None:
    """Byte code beside each source, and believed without a look at its date: nobody changes one without the other."""
    for path in list(_sorted(folder)):
        if path.suffix == ".py":
            py_compile.compile(
                str(path),
                cfile=str(path.with_suffix(".pyc")),
                dfile=str(path.relative_to(folder)),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


def same_bytes_everywhere() -> None:
    """Byte code is for pfSense's Python, and set constants in it stand in the order of the hash seed."""
    if sys.version_info[:2] != (3, 11):
        sys.exit("this is byte-compiled for pfSense's Python: build it with 3.11")
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606  # itself


def main() -> int:
    """Returns the exit code."""
    same_bytes_everywhere()
    target = ROOT / "dist" / f"edgeagent-{version()}.pyz"
    build(target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
