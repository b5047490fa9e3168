"""What turned a client away still does: the imported state beside the file it was made of, by the same clients."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.binaries import binaries
from kit.edge import Edge, connect, edge_in_folder, until
from kit.left_out import leave_out
from kit.servers import EchoServer, echo, free_port

from agent.tools.importer import command as importing

IN, OUT = "127.0.0.10", "127.0.0.20"
CLIENTS = (IN, OUT, "127.0.0.30")

# The frontend of each shape has an ACL `office` for one client; what it does with it is from the public files and bug
# reports that the shapes were met in. Whether the import can say it: then the frontend is kept.
SHAPES: dict[str, tuple[str, bool]] = {
    "a sink of a disabled server": ("use_backend sink if !office\ndefault_backend b", False),
    "a sink by weight": ("use_backend light if !office\ndefault_backend b", False),
    "a sink where nobody listens": ("use_backend nobody if !office\ndefault_backend b", False),
    "only some, and no default": ("use_backend b if office", False),
    "the same backend for both": ("use_backend b if office\ndefault_backend b", True),
    "a list of who may come": ("tcp-request connection reject unless office\ndefault_backend b", True),
    "a list of who may not": ("tcp-request connection reject if office\ndefault_backend b", True),
    "by an inspected rule": ("tcp-request content reject unless office\ndefault_backend b", True),
    "accepted, and then everybody is refused": (
        "tcp-request connection accept if office\ntcp-request connection reject\ndefault_backend b",
        True,
    ),
    "accepted, and some others refused": (
        (
            "tcp-request connection accept if office\ntcp-request connection reject if { src 127.0.0.0/8 }\n"
            "default_backend b"
        ),
        False,
    ),
    "two tests at once": ("tcp-request connection reject if office { dst_port gt 0 }\ndefault_backend b", False),
    "silently": ("tcp-request connection silent-drop if !office\ndefault_backend b", False),
}


def config(port: int, server: EchoServer, shape: str, socket: str) -> str:
    lines = "".join(f"    {line}\n" for line in shape.splitlines())
    return (
        f"global\n    stats socket {socket} mode 600 level admin\ndefaults\n    mode tcp\n    timeout connect 1s\n"
        f"    timeout client 2s\n    timeout server 2s\nfrontend f\n    bind 127.0.0.1:{port}\n"
        f"    acl office src {IN}\n{lines}"
        f"backend b\n    server a {server.address} send-proxy-v2\n"
        "backend sink\n    server none 127.0.0.1:80 disabled\n"
        "backend light\n    server none 127.0.0.1:80 weight 0\n"
        f"backend nobody\n    server none 127.0.0.1:{free_port()}\n"
    )


@contextlib.contextmanager
def original(binary: Path, folder: Path, text: str, port: int) -> Iterator[None]:
    """The very file, in a HAProxy of its own."""
    file = folder / "haproxy.cfg"
    file.write_text(text)
    with subprocess.Popen([binary, "-db", "-f", file], stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: _open(port) or process.poll() is not None, "the original serves")
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            yield
        finally:
            process.kill()


def _open(port: int) -> bool:
    with contextlib.suppress(OSError), connect(port):
        return True
    return False


def served(port: int) -> dict[str, bool]:
    """Which clients get an answer of the server."""
    found = {}
    for client in CLIENTS:
        try:
            with connect(port, source=client) as session:
                session.settimeout(1.5)  # one that is dropped in silence hears nothing
                found[client] = session.recv(100) != b""
        except OSError:
            found[client] = False
    return found


def imported(text: str, there: int, here: int) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(
        importing.document(importing.convert(text.encode(), "haproxy.cfg"), "haproxy.cfg")
    )
    for frontend in document["frontends"].values():
        frontend["bind"] = [bind.replace(f":{there}", f":{here}") for bind in frontend["bind"]]
    return document


def compare(edge: Edge, binary: Path, server: EchoServer, shape: str) -> bool:
    """Whether the import keeps the frontend; where it does, both serve the same clients."""
    there, here = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        text = config(there, server, shape, f"{folder}/s")
        document = imported(text, there, here)
        with original(binary, Path(folder), text, there):
            before = served(there)
        if not document["frontends"]:
            return False
        edge.live(document)
        assert served(here) == before, shape
        return True


@pytest.mark.parametrize("name", SHAPES)
def test_whoever_was_turned_away_still_is(one_edge: Edge, any_haproxy: Path, name: str):
    shape, kept = SHAPES[name]
    with echo("a") as server:
        assert compare(one_edge, any_haproxy, server, shape) is kept


CONDITIONS = st.sampled_from(
    [
        "if office",
        "unless office",
        "if !office",
        f"if {{ src {OUT} }}",
        f"unless {{ src {IN} {OUT} }}",
        "if office or other",
    ]
)
RULES = st.one_of(
    st.builds("tcp-request {} {} {}".format, st.sampled_from(["connection", "session"]), st.just("reject"), CONDITIONS),
    st.builds("use_backend {} {}".format, st.sampled_from(["b", "sink", "light", "nobody"]), CONDITIONS),
)


@given(rules=st.lists(RULES, min_size=1, max_size=3), default=st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_mixture_of_rules_opens_a_frontend(rules: list[str], *, default: bool):
    found = binaries()
    if not found:
        leave_out("there is no HAProxy here")
    binary = found[min(found)]
    # Rules of a connection before those that choose a backend, as HAProxy evaluates them.
    ordered = sorted(rules, key=lambda rule: rule.startswith("use_backend"))
    shape = "\n".join([f"acl other src {OUT}", *ordered, *(["default_backend b"] if default else [])])
    with edge_in_folder(binary) as edge, echo("a") as server:
        compare(edge, binary, server, shape)
