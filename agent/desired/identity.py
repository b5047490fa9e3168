"""What names a document, and what names a server."""

from __future__ import annotations

import hashlib

Key = tuple[str, str]
"""A server: its backend and its name."""


def digest_of(data: bytes) -> str:
    """The name of a document's exact bytes: SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()
