"""Who calls this process: a user of this host, or the owner of an ssh key."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from agent.reconcile.actor import LONGEST, clean

SUFFIX = 60  # characters of `from ADDRESS`: the longest IPv6 address with a scope


def user(environ: Mapping[str, str] = os.environ) -> str:
    """`alice`, `alice (sudo)`, `root from 192.0.2.7` in a session of ssh."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name
        name = f"uid {os.getuid()}"
    if os.getuid() == 0 and (behind := environ.get("SUDO_USER", "")) not in ("", "root"):
        name = f"{behind} (sudo)"
    return _from(name, environ)


def key(comment: str, environ: Mapping[str, str] = os.environ) -> str:
    """`key alice@laptop from 192.0.2.7`; the account where the key's comment is not known."""
    return _from(f"key {comment}", environ) if comment else user(environ)


def _from(name: str, environ: Mapping[str, str]) -> str:
    client = environ.get("SSH_CONNECTION", "").split(" ")[0]
    suffix = clean(f"from {client}"[:SUFFIX]) if client else ""
    # The owner of a key chooses its comment: it must not push the address out of the line.
    return f"{clean(name)[: LONGEST - len(suffix) - 1]} {suffix}".rstrip()
