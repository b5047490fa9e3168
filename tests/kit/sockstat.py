"""What FreeBSD's sockstat(1) prints, composed from the format strings of its source, for each release.

The formats: usr.bin/sockstat/sockstat.c, display() and displaysock(), of stable/12 (no `-n`), 6d13bb0e6797 (13 and 14)
and 01a46c7dc002 (15 before libxo); usr.bin/sockstat/main.c at 09d1a109598e (main, libxo). `%.10s` cuts every command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen


@frozen
class Row:
    """A listening socket: `local` as printaddr() has it, `*:443` or `fe80::1%igc0:25`. pid None: the kernel's own."""

    user: str
    uid: int
    command: str
    pid: int | None
    fd: int
    proto: str
    local: str


def release_12(rows: Iterable[Row], *, wide: bool) -> str:
    """`"%s "`, pad to 9, `"%.10s"`, pad to 20, `"%lu "`, pad to 26, `"%d "`, pad to 29: a long one moves the next."""
    lines = [_fixed_head("%-8s %-10s %-5s %-2s %-6s %-*s %-*s", wide=wide)]
    for row in rows:
        text = _padded(f"{row.user} ", 9) + f"{row.command:.10s}"
        text = _padded(_padded(text, 20) + f"{row.pid} ", 26) + f"{row.fd} "
        if row.pid is None:
            text = f"{'?':8s} {'?':10s} {'?':5s} {'?':2s} "
        lines.append(_fixed_tail(text, row, column=29, wide=wide))
    return "\n".join([*lines, ""])


def release_14(rows: Iterable[Row], *, wide: bool, numeric: bool = False) -> str:
    """As 12, but `"%5lu "` and `"%-3d "`, pad to 30; `-n` prints the uid in place of the name."""
    lines = [_fixed_head("%-8s %-10s %-5s %-3s %-6s %-*s %-*s", wide=wide)]
    for row in rows:
        text = _padded(f"{row.uid if numeric else row.user} ", 9) + f"{row.command:.10s}"
        text = _padded(_padded(text, 20) + f"{row.pid:5d} ", 26) + f"{row.fd:<3d} " if row.pid is not None else ""
        lines.append(_fixed_tail(text or f"{'?':8s} {'?':10s} {'?':5s} {'?':2s} ", row, column=30, wide=wide))
    return "\n".join([*lines, ""])


def release_15(rows: Iterable[Row], *, wide: bool, numeric: bool = False) -> str:
    """Each column is ended by one blank at least (`do ... while`): nothing is glued any more."""
    lines = [_fixed_head("%-8s %-10s %-5s %-3s %-6s %-*s %-*s", wide=wide)]
    for row in rows:
        text = _padded(f"{row.uid if numeric else row.user} ", 9) + f"{row.command:.10s} "
        text = _padded(_padded(text, 20) + f"{row.pid:5d} ", 26) + f"{row.fd:<3d}" if row.pid is not None else ""
        lines.append(_fixed_tail(text or f"{'?':8s} {'?':10s} {'?':5s} {'?':3s}", row, column=30, wide=wide))
    return "\n".join([*lines, ""])


def release_main(rows: Iterable[Row], *, wide: bool, numeric: bool = False) -> str:
    """libxo: columns as wide as their widest value; without `-w` local addresses are cut to 21 (`"%-*.*s"`)."""
    rows = list(rows)
    users = [str(row.uid) if numeric else row.user for row in rows]
    known = [row for row in rows if row.pid is not None]
    user = max([4, *map(len, users)])
    pid = max([3, *(len(str(row.pid)) for row in known)])
    fd = max([2, *(len(str(row.fd)) for row in known)])
    proto = max([5, *(len(row.proto[:3]) + 1 for row in rows)])
    local = max([13, *(len(row.local) for row in rows)]) if wide else 21
    foreign = 15 if wide else 21
    head = f"{'USER':{user}} {'COMMAND':10} {'PID':>{pid}} {'FD':>{fd}} {'PROTO':{proto}} "
    lines = [f"{head}{'LOCAL ADDRESS':{local}} {'FOREIGN ADDRESS':{foreign}}"]
    for name, row in zip(users, rows, strict=True):
        shown = (name, row.command[:10], row.pid, row.fd) if row.pid is not None else ("??", "??", "??", "??")
        lines.append(
            f"{shown[0]:{user}} {shown[1]:10} {shown[2]:>{pid}} {shown[3]:>{fd}} {row.proto:{proto}} "
            f"{row.local:{local}.{local}} {'*:*':{foreign}}"
        )
    return "\n".join([*lines, ""])


RELEASES: dict[str, Callable[..., str]] = {
    "12": release_12,
    "14": release_14,
    "15": release_15,
    "main": release_main,
}


def _fixed_head(pattern: str, *, wide: bool) -> str:
    width = 45 if wide else 21
    words = ("USER", "COMMAND", "PID", "FD", "PROTO", width, "LOCAL ADDRESS", width, "FOREIGN ADDRESS")
    return pattern % words


def _padded(text: str, column: int) -> str:
    return text.ljust(column)


def _fixed_tail(text: str, row: Row, *, column: int, wide: bool) -> str:
    text = _padded(_padded(text, column) + f"{row.proto} ", column + 7)
    text += row.local
    if ":" in row.local.rpartition(":")[0] and len(text) >= 58:
        text += " "
    return _padded(text, column + 7 + (46 if wide else 22)) + "*:*"
