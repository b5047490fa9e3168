"""How the tests call the agent: as a module of this environment, or as the one file in a Python that has nothing else.

EDGEAGENT_ONE_FILE=dist/edgeagent-VERSION.pyz pytest tests/integration: `make onefile` does that. EDGEAGENT_PYTHON: by
another Python than the tests' own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PYTHON = Path(os.environ.get("EDGEAGENT_PYTHON") or sys._base_executable).resolve()
"""The bare one, not the environment's."""

ONE_FILE = os.environ.get("EDGEAGENT_ONE_FILE", "")
AGENT = (str(PYTHON), "-I", "-S", str(Path(ONE_FILE).resolve())) if ONE_FILE else (sys.executable, "-m", "agent")
"""The first words of every call. Without site-packages there is no psutil either."""
