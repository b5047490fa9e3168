"""A name server of the tests' own (dnslib), and an agent that asks no other: its own /etc/resolv.conf, mounted over."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dnslib
import dnslib.server

from kit.left_out import leave_out

HOST = "127.53.0.1"
"""On loopback; port 53 is the only one that resolv.conf(5) knows."""


class NameServer:
    """`addresses`: of each name; a name that is not there does not exist. `silent`: it answers nothing at all."""

    def __init__(self, **addresses: str) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        for name, address in addresses.items():
            self.set(name.replace("_", "."), address)
        self.asked: list[str] = []
        self._answering = threading.Event()
        self._answering.set()

    def set(self, name: str, *addresses: str) -> None:
        self.addresses[name] = addresses

    @property
    def silent(self) -> bool:
        return not self._answering.is_set()

    @silent.setter
    def silent(self, value: bool) -> None:
        self._answering.clear() if value else self._answering.set()

    def resolve(self, request: dnslib.DNSRecord, _handler: Any) -> dnslib.DNSRecord:
        name, kind = str(request.q.qname).rstrip("."), request.q.qtype
        self.asked.append(name)
        self._answering.wait(60)
        reply = request.reply()
        if name not in self.addresses:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        for address in self.addresses.get(name, ()):
            if (":" in address, kind) == (False, dnslib.QTYPE.A):
                reply.add_answer(dnslib.RR(name, kind, rdata=dnslib.A(address), ttl=1))
            elif (":" in address, kind) == (True, dnslib.QTYPE.AAAA):
                reply.add_answer(dnslib.RR(name, kind, rdata=dnslib.AAAA(address), ttl=1))
        return reply


@contextlib.contextmanager
def name_server(folder: Path, **addresses: str) -> Iterator[tuple[NameServer, tuple[str, ...]]]:
    """It, and the words before a command that make it ask there."""
    file = folder / "resolv.conf"
    file.write_text(f"nameserver {HOST}\noptions timeout:5 attempts:2\n")
    wrapper = ("unshare", "--mount", "sh", "-c", f'mount --bind {file} /etc/resolv.conf && exec "$@"', "sh")
    if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode != 0:
        leave_out("no mount namespace can be made here (root)")
    resolver = NameServer(**addresses)
    server = dnslib.server.DNSServer(resolver, port=53, address=HOST, logger=dnslib.server.DNSLogger("-request"))
    server.start_thread()
    try:
        yield resolver, wrapper
    finally:
        resolver.silent = False
        server.stop()
        server.server.server_close()
