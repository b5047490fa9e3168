"""PROXY protocol headers, v1 and v2, as bytes. Pure; by the protocol's own text (haproxy.org, proxy-protocol.txt)."""

from __future__ import annotations

import ipaddress
import struct

from agent.model.schema import Endpoint, ProxyProtocol

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
    addresses = b"".join(ipaddress.ip_address(one.host).packed for one in (source, destination))
    body = addresses + struct.pack("!HH", source.port, destination.port)
    return SIGNATURE + struct.pack("!BBH", _PROXY, _TCP[source.family], len(body)) + body
