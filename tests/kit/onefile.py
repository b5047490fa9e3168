"""The one file and the Python that runs it: the bare one, not the environment's."""

from __future__ import annotations

import sys
from pathlib import Path

PYTHON = Path(sys._base_executable).resolve()
