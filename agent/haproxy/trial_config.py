"""A configuration for a trial start: the same process, that no client can reach and that reaches no server. Pure.

Exit code 0 of `haproxy -D` proves nothing (facts.md, HAProxy 3): a missing chroot passes `haproxy -c` and kills the new
process after it has taken the old one's place. So the same global section, user and limits are started aside first.
"""

from __future__ import annotations

from pathlib import PurePath

SOCKET = "s"
"""The name of its stats socket. Short: a unix socket's path has room for about a hundred bytes."""

_TRAFFIC = frozenset({"frontend", "backend", "listen", "peers"})


def trial_config(config: bytes, folder: PurePath) -> bytes:
    """`config` without frontends, backends and peers, without a log, and with a stats socket in `folder`.

    What those sections say is for `haproxy -c` to judge, and whether addresses can be bound is tried apart; here they
    would only cost time (M: 80 of 100 ms at 1,000 frontends, and 0.8 s with a unix socket for each). But HAProxy
    counts a file for each listener and each check: as many are put onto `maxconn`, which takes two each.
    """
    lines = config.decode().splitlines()
    keywords = [line.split() for line in lines]
    counted = sum(
        keyword_of_line[:1] in (["bind"], ["peer"])
        or (keyword_of_line[:1] == ["server"] and "check" in keyword_of_line)
        for keyword_of_line in keywords
    )
    section, limited = "", False
    kept = []
    for line, keyword in zip(lines, keywords, strict=True):
        if line[:1].isalpha():
            section = keyword[0]
        if section in _TRAFFIC:
            continue
        match keyword[:2]:
            case ["stats", "socket"]:
                line = f"    stats socket {folder}/{SOCKET} mode 600 level admin"
            case ["maxconn", number] if section == "global" and not limited and number.isdecimal():
                line, limited = f"    maxconn {int(number) + (counted + 1) // 2}", True
            case ["log", where] if where != "global":
                continue
        kept.append(line)
    return ("\n".join(kept) + "\n").encode()
