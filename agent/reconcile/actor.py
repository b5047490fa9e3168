"""Who makes a change, as generations and events name it. Pure."""

from __future__ import annotations

import re

FILE = "file"
"""The desired file was changed, by a program that the agent does not know."""
AGENT = "agent"
"""Nothing of the document has changed: addresses, names, settings or the agent itself have."""
LONGEST = 120  # characters
_UNSHOWN = re.compile(r"[^A-Za-z0-9@._+:/ ()-]")


def clean(text: str) -> str:
    """As much of a name as can stand in a log line, in authorized_keys and in HTML alike."""
    return _UNSHOWN.sub("_", text.strip())[:LONGEST]


def signed(actor: str, signer: str | None) -> str:
    """The same with the signer of the document, where documents are signed."""
    return f"{actor or FILE}, signed by {clean(signer)}" if signer else actor
