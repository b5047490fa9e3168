"""A configuration as it is rehearsed: the same process, but nobody can reach it and it reaches nobody. Pure.

Exit code 0 of `haproxy -D` proves nothing (FACTS, HAProxy 3): a missing chroot passes `haproxy -c` and kills the new
process after it has taken the old one's place. So the same global section, user and limits are started aside first.
"""

from __future__ import annotations

from pathlib import PurePath

SOCKET = "s"
"""The name of its stats socket. Names are short: a unix socket's path has room for about a hundred bytes."""


def rehearsal(config: bytes, folder: PurePath) -> bytes:
    """`config` with its listeners moved to unix sockets in `folder`, without checks and without a log."""
    lines = []
    for number, line in enumerate(config.decode().splitlines()):
        words = line.split()
        match words[:2]:
            case ["stats", "socket"]:
                line = f"    stats socket {folder}/{SOCKET} mode 600 level admin"
            case ["bind", _]:
                line = " ".join(["    bind", f"unix@{folder}/{number}", *words[2:]])
            case ["server" | "default-server" | "server-template", _]:
                line = f"{line} no-check"
            case ["log", where] if where != "global":
                line = ""
        lines.append(line)
    return ("\n".join(lines) + "\n").encode()
