"""`agent check --json` on standard input to annotations of GitHub Actions on standard output: a line a mistake.

The form is that of workflow commands: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import json
import sys


def escaped(text: str, *, value: bool = False) -> str:
    """As the runner's own toolkit escapes (actions/toolkit, packages/core/src/command.ts); `value`: of a property."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if value else text


def main() -> None:
    """One document, or a list of them."""
    documents = json.load(sys.stdin)
    for document in documents if isinstance(documents, list) else [documents]:
        place = f"file={escaped(document['file'], value=True)}"
        for violation in document["violations"]:
            line = f",line={violation['line']}" if violation["line"] else ""
            where = f"{violation['path']}: " if violation["path"] else ""
            print(f"::error {place}{line}::{escaped(where + violation['message'])}")
        for finding in document["findings"]:
            line = f",line={finding['line']}" if finding["line"] else ""
            print(f"::warning {place}{line}::{escaped(finding['message'])}")


if __name__ == "__main__":
    main()
