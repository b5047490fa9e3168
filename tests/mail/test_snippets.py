"""docs/backends.md: every snippet is taken out of the page and run as it stands, and the probe finds PROXY spoken."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from kit.binaries import binaries
from kit.edge import edge_in_folder, until
from kit.left_out import leave_out
from kit.mail import DOVECOT, MAIN, MASTER, UID, end_postfix, missing
from kit.netns import inside, two_hosts

PAGE = (Path(__file__).parents[2] / "docs/backends.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- snippet: (\S+) -->\n```\w*\n(.*?)```\n", PAGE, re.DOTALL))
FIREWALL, SERVER = "10.0.20.1", "10.0.20.101"


def started(folder: Path, *words: str | Path, port: int) -> Callable[[], None]:
    """A program that stays in the foreground; returns what ends it."""
    log = folder / "log"
    environment = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=folder)

    def end() -> None:
        process.terminate()
        process.wait(timeout=20)

    try:
        until(lambda: answers(port) or process.poll() is not None, f"{words[0]} listens")
        assert process.poll() is None, log.read_text()
    except AssertionError:
        end()
        raise
    return end


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((SERVER, port), 1):
        return True
    return False


def certificate(folder: Path) -> None:
    made = trustme.CA().issue_cert("mail.example.org", SERVER, common_name="mail.example.org")
    made.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    (folder / "server.pem").chmod(0o600)


def postfix(folder: Path) -> Callable[[], None]:
    for name in ("etc", "spool", "data"):
        (folder / name).mkdir()
    shutil.chown(folder / "data", "postfix")
    certificate(folder)
    (folder / "etc/main.cf").write_text(MAIN.format(folder=folder, uid=UID) + SNIPPETS["main.cf"])
    services = MASTER[MASTER.index("smtpd     pass") :]
    (folder / "etc/master.cf").write_text(SNIPPETS["master.cf"] + services)
    done = subprocess.run(
        ["/usr/sbin/postfix", "-c", folder / "etc", "start"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    until(lambda: all(map(answers, (2525, 5587, 4465))), "Postfix listens")
    return lambda: end_postfix(folder)


def dovecot(folder: Path) -> Callable[[], None]:
    for name in ("dovecot", "dovecot-state"):
        (folder / name).mkdir()
    certificate(folder)
    text = DOVECOT[: DOVECOT.index("service imap-login")].replace("listen = 127.0.0.1", f"listen = {SERVER}")
    text = text.replace("protocols = imap pop3", "protocols = imap").replace("haproxy_trusted_networks", "#")
    config = folder / "dovecot.conf"
    config.write_text(text.format(folder=folder, uid=UID, password="x") + SNIPPETS["dovecot.conf"])
    return started(folder, "/usr/sbin/dovecot", "-F", "-c", config, port=10993)


def nginx(folder: Path) -> Callable[[], None]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") or leave_out("nginx is not here")
    (folder / "snippet.conf").write_text(SNIPPETS["nginx.conf"])
    paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{ }}\n"
        f"http {{ access_log off; {paths} include {folder}/snippet.conf; }}\n"
    )
    words = (program, "-c", folder / "nginx.conf", "-e", folder / "error.log", "-p", folder)
    return started(folder, *words, port=8080)


def caddy(folder: Path) -> Callable[[], None]:
    program = Path(sys.executable).parent / "caddy"
    if not program.exists():
        leave_out("Caddy is not here")
    (folder / "Caddyfile").write_text(SNIPPETS["Caddyfile"])
    return started(folder, program, "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile", port=8081)


def haproxy(folder: Path) -> Callable[[], None]:
    timeouts = "defaults\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
    (folder / "haproxy.cfg").write_text(timeouts + SNIPPETS["haproxy.cfg"])
    return started(folder, binaries()[min(binaries())], "-db", "-f", folder / "haproxy.cfg", port=8082)


def aiosmtpd(folder: Path) -> Callable[[], None]:
    (folder / "aiosmtpd_snippet.py").write_text(SNIPPETS["aiosmtpd.py"])
    return started(folder, sys.executable, folder / "aiosmtpd_snippet.py", port=8025)


SERVERS: dict[str, tuple[Callable[[Path], Callable[[], None]], dict[str, tuple[str, int]]]] = {
    "postfix": (postfix, {"screen": ("smtp", 2525), "submission": ("smtp", 5587), "smtps": ("tls", 4465)}),
    "dovecot": (dovecot, {"imaps": ("tls", 10993)}),
    "nginx": (nginx, {"web": ("http", 8080)}),
    "caddy": (caddy, {"web": ("http", 8081)}),
    "haproxy": (haproxy, {"web": ("http", 8082)}),
    "aiosmtpd": (aiosmtpd, {"smtp": ("smtp", 8025)}),
}


def test_every_snippet_of_the_page_is_run():
    assert set(SNIPPETS) == {
        "main.cf", "master.cf", "dovecot.conf", "nginx.conf", "Caddyfile", "haproxy.cfg", "aiosmtpd.py",
    }  # fmt: skip
    assert PAGE.count("\n```") == 2 * len(SNIPPETS)


@pytest.fixture
def hosts(root: None) -> Iterator[tuple[str, str]]:
    if absent := missing():
        leave_out(f"{' and '.join(absent)} not installed")
    with two_hosts(FIREWALL, SERVER) as names:
        yield names


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's own: servers drop their rights, and must enter it all the same.
    made = Path(tempfile.mkdtemp(prefix="snippet-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_with_the_snippet_speaks_proxy_to_the_firewall(
    hosts: tuple[str, str], folder: Path, any_haproxy: Path, name: str
):
    near, far = hosts
    start, backends = SERVERS[name]
    document: dict[str, Any] = {
        "version": 1,
        "backends": {
            key: {"application": application, "servers": {"a": {"address": f"{SERVER}:{port}"}}}
            for key, (application, port) in backends.items()
        },
    }
    with contextlib.ExitStack() as stack:
        with inside(far):
            stack.callback(start(folder))
        edge = stack.enter_context(edge_in_folder(any_haproxy))
        edge.put(document)

        def probed() -> bool:
            with inside(near):
                results.append(edge.agent("probe", "--json").stdout)
            return {entry["backend"]: entry["result"] for entry in json.loads(results[-1])} == expected

        # A mail server that has just started greets its first client late; the probe waits for two seconds.
        results: list[str] = []
        expected = dict.fromkeys(backends, "speaks_proxy")
        with contextlib.suppress(AssertionError):
            until(probed, "each speaks PROXY")
        assert {entry["backend"]: entry["result"] for entry in json.loads(results[-1])} == expected, results[-1]
