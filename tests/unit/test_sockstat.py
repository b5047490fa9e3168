"""FreeBSD's sockstat is read whole in every release: its lines are composed from the sources' own formats."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest
from kit.sockstat import RELEASES, Row

from agent.host import listeners, sockstat, subprocesses

LONG = "2001:db8:1234:5678:9abc:def0:1234:5678"
ROWS = [
    Row("www", 80, "edge-haproxy", 4321, 5, "tcp4", "10.0.20.1:25"),
    Row("www", 80, "edge-haproxy", 44321, 6, "tcp6", f"{LONG}:65535"),
    Row("root", 0, "nginx", 22107, 12, "tcp4", "*:443"),
    Row("root", 0, "nginx", 22107, 7, "tcp6", "*:443"),
    Row("root", 0, "sshd", 911, 4, "tcp46", "*:22"),
    Row("root", 0, "dhcp6c", 95012, 103, "tcp6", "fe80::1%igc0:547"),
    Row("a_user_with_a_long_name", 1001, "edge-haproxy", 54321, 5, "tcp4", "10.0.20.1:465"),
    Row("a_user_with_a_long_name", 1001, "python3.11", 12345, 9, "tcp4", "127.0.0.1:9127"),
    Row("nine_long", 1002, "a program", 99, 3, "tcp4", "127.0.0.1:99"),
    Row("?", 0, "?", None, 0, "tcp4", "192.0.2.1:2049"),
]
EXPECTED = {
    ("10.0.20.1:25", 4321, "edge-hapro"),
    (f"[{LONG}]:65535", 44321, "edge-hapro"),
    ("0.0.0.0:443", 22107, "nginx"),
    ("[::]:443", 22107, "nginx"),
    ("0.0.0.0:22", 911, "sshd"),
    ("[::]:22", 911, "sshd"),
    ("[fe80::1]:547", 95012, "dhcp6c"),
    ("10.0.20.1:465", 54321, "edge-hapro"),
    ("127.0.0.1:9127", 12345, "python3.11"),
    ("127.0.0.1:99", 99, "a program"),
    ("192.0.2.1:2049", None, ""),
}


def read(text: str) -> set[tuple[str, int | None, str]]:
    return {(str(listener.endpoint), listener.pid, listener.program) for listener in sockstat.listeners(text)}


@pytest.mark.parametrize("release", RELEASES)
def test_every_listener_of_every_release_is_read_whole(release: str):
    assert read(RELEASES[release](ROWS, wide=True)) == EXPECTED


@pytest.mark.parametrize("release", ["14", "15", "main"])
def test_with_numbers_in_place_of_user_names(release: str):
    text = RELEASES[release](ROWS, wide=True, numeric=True)
    assert "a_user" not in text
    assert read(text) == EXPECTED


def test_without_w_main_would_cut_an_address():
    """Why `-w` is asked for: the fact, in the stand-in (facts.md, pfSense 14)."""
    assert LONG not in RELEASES["main"](ROWS, wide=False)


def test_a_pid_that_has_grown_together_with_a_short_name_is_not_guessed():
    """Of FreeBSD 12, which knows no `-n`: where the name ends, nobody can tell."""
    row = Row("a_user_with_a_long_name", 1001, "py3", 2345, 9, "tcp4", "127.0.0.1:9127")
    assert "py32345" in RELEASES["12"]([row], wide=True)
    assert read(RELEASES["12"]([row], wide=True)) == {("127.0.0.1:9127", None, "py32345")}


@pytest.mark.parametrize("line", ["", "USER COMMAND", "www x 1 2 tcp4 *:* *:*", "www x 1 2 tcp4 host.example:25 *:*"])
def test_what_is_no_listener_is_left_out(line: str):
    assert read(f"USER     COMMAND    PID   FD PROTO  LOCAL ADDRESS         FOREIGN ADDRESS\n{line}\n") == set()


def test_names_are_asked_for_only_where_n_is_unknown(monkeypatch: pytest.MonkeyPatch):
    """FreeBSD 12: `usage: sockstat [-46cLlSsUuvw]...`, exit 1 (its usage())."""
    asked: list[Sequence[str]] = []

    def run(argv: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        numeric = "n" in argv[1]
        text = "" if numeric else RELEASES["12"](ROWS, wide="w" in argv[1])
        return subprocess.CompletedProcess(argv, int(numeric), text, "usage: sockstat" if numeric else "")

    monkeypatch.setattr(subprocesses.subprocess, "run", run)
    monkeypatch.setattr(listeners.sys, "platform", "freebsd14")
    assert {(str(listener.endpoint), listener.pid, listener.program) for listener in listeners.listeners()} == EXPECTED
    assert [argv[1:] for argv in asked] == [["-46lnw", "-P", "tcp"], ["-46lw", "-P", "tcp"]]
