"""PROXY protocol headers, v1 and v2, as bytes. Pure; by the protocol's own text (haproxy.org, proxy-protocol.txt)."""

from __future__ import annotations

import ipaddress
import struct

from attrs import frozen

from agent.desired.addresses import Endpoint
from agent.desired.schema import ProxyProtocol

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""How a v2 header begins. It holds `QUIT` on a line of its own: a plain SMTP server answers and hangs up."""

_PROXY = 0x21  # version 2, command PROXY
_TCP = {4: 0x11, 6: 0x21}


def header(version: ProxyProtocol, source: Endpoint, destination: Endpoint) -> bytes:
    """The header that says: `source` has connected to `destination`. b"" for `none`.

    Raises ValueError where the two are of different families: no header can say that.
    """
    if version is ProxyProtocol.NONE:
        return b""
    if source.family != destination.family:
        raise ValueError(f"{source} and {destination} are of different families")
    if version is ProxyProtocol.V1:
        line = f"PROXY TCP{source.family} {source.host} {destination.host} {source.port} {destination.port}\r\n"
        return line.encode("ascii")
    addresses = b"".join(ipaddress.ip_address(end.host).packed for end in (source, destination))
    body = addresses + struct.pack("!HH", source.port, destination.port)
    return SIGNATURE + struct.pack("!BBH", _PROXY, _TCP[source.family], len(body)) + body


LONGEST = 16 + 216 + 1_024
"""Bytes of the longest v2 header that is read: the fixed part, two unix addresses, and some extensions (TLVs)."""


@frozen(kw_only=True)
class Header:
    """What a v2 header says."""

    client: Endpoint | None
    """source address; None: LOCAL, a health check of the proxy itself"""
    destination: Endpoint | None
    """destination address; None: likewise"""
    length: int
    """bytes of the whole header"""


def parse(data: bytes) -> Header | None:
    """The v2 header at the beginning of `data`; None where more bytes are needed to tell.

    Raises ValueError where it is no v2 header, or one of a family that names no address and port.
    """
    if not data.startswith(SIGNATURE[: len(data)]):
        raise ValueError("this does not begin with a PROXY v2 header")
    if len(data) < 16:
        return None
    command, family, size = struct.unpack("!BBH", data[12:16])
    if command >> 4 != 2 or command & 0xF > 1:
        raise ValueError(f"a PROXY header of version {command >> 4}, command {command & 0xF}")
    if 16 + size > LONGEST:
        raise ValueError(f"a PROXY header of {16 + size:,} bytes; at most {LONGEST:,} are read")
    if len(data) < 16 + size:
        return None
    if command & 0xF == 0:
        return Header(client=None, destination=None, length=16 + size)
    width = {0x11: 4, 0x21: 16}.get(family)
    if width is None or size < 2 * width + 4:
        raise ValueError(f"a PROXY header of address family 0x{family:02x} with {size} bytes")
    body = data[16 : 16 + size]
    ports = struct.unpack("!HH", body[2 * width : 2 * width + 4])
    hosts = (body[:width], body[width : 2 * width])
    source, destination = (
        Endpoint(4 if width == 4 else 6, str(ipaddress.ip_address(host)), port)
        for host, port in zip(hosts, ports, strict=True)
    )
    return Header(client=source, destination=destination, length=16 + size)
