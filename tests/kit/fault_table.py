"""The tables of docs/reliability.md: what each fault cost, gathered over all tests of a run.

`UPDATE_RELIABILITY=1 pytest tests/faults tests/cluster/test_faults.py` writes them.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kit.witness import Row, Table

DOCUMENT = Path(__file__).parents[2] / "docs/reliability.md"
TABLES = {"faults": Table(), "cluster faults": Table()}
"""By the marker in the document."""


def gather(node: Any) -> None:
    """What was played beside each other is one table."""
    for marker, rows in getattr(node, "workeroutput", {}).get("fault_tables", {}).items():
        TABLES[marker].rows += [Row(**row) for row in rows]


def finish(session: pytest.Session) -> None:
    """Hand the rows to the process that prints them, or write them."""
    if hasattr(session.config, "workeroutput"):
        rows = {marker: [asdict(row) for row in table.rows] for marker, table in TABLES.items()}
        session.config.workeroutput["fault_tables"] = rows
    elif os.environ.get("UPDATE_RELIABILITY") and not session.testsfailed:
        text = DOCUMENT.read_text()
        for marker, table in TABLES.items():
            if table.rows:
                lines = "".join(f"{line}\n" for line in table.lines())
                pattern = rf"(?<=<!-- {marker} -->\n).*?(?=\n<!-- end -->)"
                text = re.sub(pattern, lambda _, lines=lines: lines, text, flags=re.DOTALL)
        DOCUMENT.write_text(text)


def summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Each table."""
    for marker, table in TABLES.items():
        if table.rows:
            terminalreporter.section(f"{marker}, under load")
            for line in table.lines():
                terminalreporter.write_line(line)
