"""`make dist`: everything that a release consists of, in dist/. The same sources are the same bytes, on any day.

dist.py [KEY]    with an ssh key, each file gets a signature FILE.sig (ssh-keygen -Y, namespace edgeagent-release)
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import man
import pkg
import pyz
import sbom

ROOT = Path(__file__).parents[2]
NAMESPACE = "edgeagent-release"
_SUMS = "SHA256SUMS"


def build(target: Path) -> list[Path]:
    """All files, in `target`, whole or not at all. Raises SystemExit where this version is not a released one."""
    version, date = pyz.version(), pyz.released()
    if f"## [{version}] - " not in (ROOT / "CHANGELOG.md").read_text():
        raise SystemExit(f"CHANGELOG.md has no dated section for {version}, which agent/__init__.py names")
    with tempfile.TemporaryDirectory(prefix="edgeagent-dist-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _progress("sources and wheel")
        _distributions(made, Path(scratch) / "sources", version, date)
        _progress("the one file")
        pyz.build(made / f"edgeagent-{version}.pyz")
        _progress("the package for FreeBSD")
        pkg.build(made / f"edgeagent-{version}.pkg")
        _progress("SBOM")
        carried = Path(scratch) / "carried"
        with zipfile.ZipFile(made / f"edgeagent-{version}.pyz") as archive:
            archive.extractall(carried)  # noqa: S202  # our own file, of a moment ago
        text = sbom.document(carried, version=version, date=date)
        (made / f"edgeagent-{version}.cdx.json").write_text(text)
        files = sorted(made.iterdir())
        sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
        (made / _SUMS).write_text(sums)
        target.mkdir(exist_ok=True)
        for old in [*target.glob("edgeagent-*"), *target.glob(f"{_SUMS}*")]:
            old.unlink()
        return [Path(shutil.copy(file, target / file.name)) for file in sorted(made.iterdir())]


def sign(files: list[Path], key: Path) -> list[Path]:
    """A signature beside each. Raises SystemExit."""
    for file in files:
        file.with_name(f"{file.name}.sig").unlink(missing_ok=True)
    done = subprocess.run(  # noqa: S603  # our own words
        ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), *map(str, files)],  # noqa: S607  # OpenSSH's
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"cannot sign with {key}")
    return [file.with_name(f"{file.name}.sig") for file in files]


def _distributions(made: Path, sources: Path, version: str, date: str) -> None:
    """Sdist and wheel, out of what git knows and the man pages, with one date and one mode."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S607
    for name in filter(None, listed.decode().split("\0")):
        file = ROOT / name
        if file.is_file():
            copy = sources / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
            copy.chmod(0o755 if os.access(file, os.X_OK) else 0o644)
    man.write(sources / "man", date)
    epoch = int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp())
    for path in sorted(sources.rglob("*")):
        os.utime(path, (epoch, epoch))
    subprocess.run(  # noqa: S603  # our own words
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(made), str(sources)],
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _normalize(made / f"edgeagent-{version}.tar.gz", epoch)


def _normalize(sdist: Path, epoch: int) -> None:
    """Setuptools writes the sdist with the owner and the times of the files that it has made."""
    buffer = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for entry in sorted(old.getmembers(), key=lambda member: member.name):
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = epoch
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            entry.pax_headers = {}
            new.addfile(entry, old.extractfile(entry) if entry.isfile() else None)
    sdist.write_bytes(gzip.compress(buffer.getvalue(), mtime=epoch))


def _progress(what: str) -> None:
    print(f"building: {what}", file=sys.stderr)


def main() -> int:
    """Returns the exit code."""
    pyz.same_bytes_everywhere()
    os.umask(0o022)
    files = build(ROOT / "dist")
    if sys.argv[1:]:
        files += sign(files, Path(sys.argv[1]))
    for file in files:
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
