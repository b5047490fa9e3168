"""Prints the constraints of pip that install every lower bound of setup.py: `make lowest` runs the tests with them."""

from __future__ import annotations

import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.py"


def main() -> None:
    bounds = dict(re.findall(r'"([A-Za-z0-9._-]+)>=([0-9.]+)"', SETUP.read_text()))
    for name, version in sorted(bounds.items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
