"""`agent echo`: a listener that demands PROXY v2 and answers each client with the address in the header.

Put behind a frontend in place of the mail server, it proves the whole path (firewall, kube-proxy, pod) before the
mail server is moved. It keeps nothing, sends nothing but that one line, and never waits long for a client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from agent.desired.addresses import Endpoint
from agent.errors import UsageError
from agent.proxy_protocol.header import LONGEST, Header, parse

HEADER_SECONDS = 5.0  # as long as Postfix waits for it
MOST = 1_000  # clients at once


@contextlib.asynccontextmanager
async def listening(address: Endpoint, say: Callable[[str], None]) -> AsyncIterator[Endpoint]:
    """Serve on `address` (port 0: any) while the body runs; yields where. `say`: one line for each client.

    Raises UsageError where the address cannot be bound.
    """
    slots = asyncio.Semaphore(MOST)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        async with slots:
            try:
                answer = _answer(await asyncio.wait_for(_header(reader), HEADER_SECONDS))
            except (ValueError, TimeoutError) as error:
                answer = f"no PROXY v2 header: {str(error) or 'none came'}"
            say(f"{peer}: {answer}")
            with contextlib.suppress(ConnectionError):
                writer.write(f"{answer}\r\n".encode())
                await writer.drain()
            writer.close()

    try:
        server = await asyncio.start_server(client, address.host, address.port, limit=LONGEST)
    except OSError as error:
        raise UsageError(f"cannot listen on {address}: {error.strerror}") from error
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield Endpoint(address.family, host, port)


async def _header(reader: asyncio.StreamReader) -> Header:
    """Read a header, and no byte behind it that is not there. Raises ValueError."""
    data = b""
    while (header := parse(data)) is None:
        try:
            more = await reader.read(LONGEST - len(data))
        except ConnectionError as error:
            raise ValueError("the connection was reset") from error
        if not more:
            raise ValueError("the connection ended before it")
        data += more
    return header


def _answer(header: Header) -> str:
    """`client 203.0.113.7:4711`, or `LOCAL` for a check of the proxy's own."""
    return "LOCAL" if header.client is None else f"client {header.client}"
