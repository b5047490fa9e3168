"""Going through a live frontend to the echo behind it, as a client would."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Sequence

from agent.desired.addresses import Endpoint
from agent.desired.schema import ProxyProtocol
from agent.proxy_protocol.canary import CanaryProbe, CanaryResult, announces, judge
from agent.proxy_protocol.header import header

_MOST = 200  # bytes of an answer
_AT_ONCE = 100


def go(canary_probes: Sequence[CanaryProbe], *, seconds: float) -> tuple[CanaryResult, ...]:
    """All of them side by side, each within `seconds` for each hundred. Never raises: what fails is an arrival too."""

    async def everyone() -> list[CanaryResult]:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def try_one(probe: CanaryProbe) -> CanaryResult:
            async with slots:
                return await _go(probe, seconds)

        return await asyncio.gather(*(try_one(probe) for probe in canary_probes))

    return tuple(asyncio.run(everyone()))


async def _go(probe: CanaryProbe, seconds: float) -> CanaryResult:
    begin, used, answer, trouble = time.monotonic(), "", b"", ""
    try:
        async with asyncio.timeout(seconds):
            local = (probe.source, 0) if probe.source else None
            reader, writer = await asyncio.open_connection(probe.address.host, probe.address.port, local_addr=local)
            try:
                name = writer.get_extra_info("sockname")
                if name is None:  # it was over before the address could be asked for
                    raise ConnectionResetError(errno.ECONNRESET, "reset at once")
                host, port = name[:2]
                me = Endpoint(probe.address.family, host, port)
                used = str(me)
                if announces(probe, host):
                    writer.write(header(ProxyProtocol.V2, me, probe.address))
                if probe.nudge:
                    writer.write(b"\r\n")
                while not answer.endswith(b"\n") and len(answer) < _MOST and (more := await reader.read(_MOST)):
                    answer += more
            finally:
                writer.transport.abort()
    except TimeoutError:
        trouble = "no answer in time"
    except OSError as error:
        trouble = error.strerror or str(error)
    preserved, reported, detail = judge(used, answer)
    return CanaryResult(
        frontend=probe.frontend,
        address=str(probe.address),
        used=used,
        reported=reported,
        preserved=preserved,
        detail=detail if preserved is not None or not trouble else f"{detail} ({trouble})",
        milliseconds=round((time.monotonic() - begin) * 1_000),
    )
