"""Builds `dist/edgeagent-VERSION.pkg` for `pkg add` on FreeBSD: our own files; the rest are dependencies.

The format is pkg(8)'s: a compressed tar that begins with +COMPACT_MANIFEST and +MANIFEST (JSON is UCL), then the files
by their absolute names. No foreign tool is needed, and the same input makes the same bytes. It was never read by a
real pkg(8) here: docs/freebsd-smoke.md has that on its list.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyz

ROOT = Path(__file__).parents[2]
SITE = "/usr/local/lib/python3.11/site-packages"
_MODE = {"/usr/local/bin/agent": 0o755, "/usr/local/etc/rc.d/edgeagent": 0o755}
# Name in packages, origin in ports, a version of the quarter that this was written in; any installed one will do.
_NEEDS = {
    "haproxy": ("net/haproxy", "3.0.8"),
    "python311": ("lang/python311", "3.11.11"),
    "py311-Jinja2": ("devel/py-Jinja2", "3.1.5"),
    "py311-attrs": ("devel/py-attrs", "25.1.0"),
    "py311-cattrs": ("devel/py-cattrs", "24.1.2"),
    "py311-click": ("devel/py-click", "8.1.7"),
    "py311-prometheus-client": ("net-mgmt/py-prometheus-client", "0.21.1"),
    "py311-psutil": ("sysutils/py-psutil", "6.1.1"),
    "py311-pyyaml": ("devel/py-pyyaml", "6.0.1"),
    "py311-watchdog": ("devel/py-watchdog", "6.0.0"),
}
_COMMAND = b"#!/usr/local/bin/python3.11\nfrom agent.cli import main\n\nmain()\n"
_SETTINGS = b"""\
# A beginning. Copy it to agent.toml; docs/reference/settings.md has every key.
[haproxy]
# What HAProxy drops to once its addresses are bound.
user = "www"
group = "www"
chroot = "/var/empty"
"""
_MESSAGE = """\
1. cp /usr/local/etc/edgeagent/agent.toml.sample /usr/local/etc/edgeagent/agent.toml
2. write /usr/local/etc/edgeagent/desired.yaml, `agent check`, `agent doctor`
3. sysrc edgeagent_enable=YES && service edgeagent start
"""


def files() -> dict[str, bytes]:
    """All of it, by absolute name: sources, byte code for 3.11, command, rc script, a sample of settings."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="pkg-") as scratch:
        folder = Path(scratch)
        pyz.ours(folder)
        for extra in ("__main__.py", "LICENSE"):
            (folder / extra).unlink()
        pyz.compiled(folder)
        for path in sorted(folder.rglob("*"), key=str):
            if path.is_file():
                name = path.relative_to(folder)
                if path.suffix == ".1":
                    found[f"/usr/local/share/man/man1/{path.name}.gz"] = gzip.compress(path.read_bytes(), mtime=0)
                    continue
                if path.suffix == ".pyc":
                    name = name.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
                found[f"{SITE}/{name}"] = path.read_bytes()
    metadata = f"Metadata-Version: 2.1\nName: edgeagent\nVersion: {pyz.version()}\n"
    found[f"{SITE}/edgeagent-{pyz.version()}.dist-info/METADATA"] = metadata.encode()
    found["/usr/local/bin/agent"] = _COMMAND
    found["/usr/local/etc/rc.d/edgeagent"] = (ROOT / "rc.d/edgeagent").read_bytes()
    found["/usr/local/etc/edgeagent/agent.toml.sample"] = _SETTINGS
    found["/usr/local/share/licenses/edgeagent/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    return dict(sorted(found.items()))


def manifest(found: dict[str, bytes]) -> dict[str, Any]:
    """What pkg(8) calls the compact one: everything but the files."""
    return {
        "name": "edgeagent",
        "origin": "net/edgeagent",
        "version": pyz.version(),
        "comment": "Keeps HAProxy in sync with one desired-state file",
        "maintainer": "edgeagent@example.org",
        "www": "https://example.org/edgeagent",
        "abi": "FreeBSD:*:*",
        "arch": "freebsd:*:*",
        "prefix": "/usr/local",
        "flatsize": sum(len(data) for data in found.values()),
        "licenselogic": "single",
        "licenses": ["BSD2CLAUSE"],
        "desc": "Regenerates haproxy.cfg from one file, validates it, reloads without losing a connection,"
        " proves that backends speak PROXY, goes back when a change hurt, exports health.",
        "categories": ["net"],
        "deps": {name: {"origin": origin, "version": version} for name, (origin, version) in _NEEDS.items()},
        "messages": [{"message": _MESSAGE, "type": "install"}],
    }


def build(target: Path) -> None:
    """Write the package, whole or not at all."""
    found = files()
    compact = manifest(found)
    whole = compact | {"files": {name: f"1${hashlib.sha256(data).hexdigest()}" for name, data in found.items()}}
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(f".{os.getpid()}.fresh")  # two may build at once
    with tarfile.open(fresh, "w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for name, document in (("+COMPACT_MANIFEST", compact), ("+MANIFEST", whole)):
            _add(archive, name, json.dumps(document, separators=(",", ":")).encode(), 0o644)
        for name, data in found.items():
            _add(archive, name, data, _MODE.get(name, 0o644))
    fresh.replace(target)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), mode, 0
    entry.uname, entry.gname = "root", "wheel"
    archive.addfile(entry, io.BytesIO(data))


def main() -> int:
    """Returns the exit code."""
    pyz.same_bytes_everywhere()
    target = ROOT / "dist" / f"edgeagent-{pyz.version()}.pkg"
    build(target)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
