"""Reading files that others may have replaced by anything: a FIFO in a file's place must not block."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any


def read_regular(path: Path, most: int = -1) -> bytes:
    """The bytes of a regular file, at most `most` of them (-1: all). Raises OSError for everything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(most)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of ours, None where it is absent or anything else (a crash, a person)."""
    try:
        document = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
