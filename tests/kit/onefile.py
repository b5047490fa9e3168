"""How the tests call the agent: as a module of this environment, or as the one file in a Python that has nothing else.

EDGEAGENT_ONE_FILE=dist/edgeagent-VERSION.pyz pytest tests/integration: `make onefile` does that. EDGEAGENT_PYTHON: by
another Python than the tests' own.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

PYTHON = Path(os.environ.get("EDGEAGENT_PYTHON") or sys._base_executable).resolve()
"""The bare one, not the environment's."""

ONE_FILE = os.environ.get("EDGEAGENT_ONE_FILE", "")
AGENT = (str(PYTHON), "-I", "-S", str(Path(ONE_FILE).resolve())) if ONE_FILE else (sys.executable, "-m", "agent")
"""The first words of every call. Without site-packages there is no psutil either."""

ROOT = Path(__file__).parents[2]


def build() -> Path:
    """The one file of these sources, in dist/."""
    subprocess.run([sys.executable, ROOT / "deploy/release/pyz.py"], check=True, stdout=subprocess.DEVNULL)
    (built,) = (ROOT / "dist").glob("*.pyz")
    return built


def another_version(pyz: Path) -> bytes:
    """The same with another number, 9 in front of its own."""
    written = io.BytesIO()
    with zipfile.ZipFile(pyz) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "agent/__init__.py":
                data = data.replace(b'__version__ = "', b'__version__ = "9.')
            if name != "agent/__init__.pyc":
                new.writestr(name, data)
    return written.getvalue()
