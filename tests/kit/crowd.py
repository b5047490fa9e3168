"""Thousands of servers in one process: reads a PROXY header at each (address, port), and greets.

The greeting is the address that was connected to. As a program: standard input is one JSON list of [address, port],
and stays open for as long as the servers are wanted.
"""

from __future__ import annotations

import contextlib
import json
import resource
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.servers import parse_header


@contextlib.contextmanager
def crowd(places: Sequence[tuple[str, int]]) -> Iterator[None]:
    """All of them, in a process of its own."""
    words = [sys.executable, __file__]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(places).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    """Until standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    places = json.loads(sys.stdin.readline())
    waiting = selectors.DefaultSelector()
    for host, port in places:
        one = socket.create_server((host, port), backlog=16)
        waiting.register(one, selectors.EVENT_READ)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                return
            assert isinstance(key.fileobj, socket.socket)
            client, _ = key.fileobj.accept()
            with client:
                client.settimeout(1)
                try:
                    parse_header(client)
                    client.sendall(f"{client.getsockname()[0]}\n".encode())
                except OSError:
                    continue


if __name__ == "__main__":
    main()
