"""Does a client's address get through a frontend: where to connect, and what the echo's answer means. Pure.

Behind the frontend stands `agent echo`, which answers each client with the address in the header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from attrs import evolve, frozen

from agent.desired.addresses import Endpoint
from agent.desired.schema import DesiredState
from agent.errors import Finding
from agent.proxy_protocol.greetings import shown

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ANSWER = re.compile(rb"client ([0-9a-fA-F.:\[\]]{3,60})\r?\n")

_NOT_TOLD = (b"LOCAL", b"no PROXY v2 header")  # by agent.host.echo


@frozen(kw_only=True)
class CanaryProbe:
    """One connection through a frontend."""

    frontend: str
    """its name"""
    address: Endpoint
    """one of its addresses"""
    source: str | None = None
    """source address; None: whatever the system takes"""
    accept_proxy: bool | tuple[str, ...] = False
    """which clients must send a PROXY header, as in the desired state"""
    nudge: bool = False
    """whether the frontend waits for a first byte (routes by SNI)"""


@frozen(kw_only=True)
class CanaryResult:
    """The result of a canary probe."""

    frontend: str
    """its name"""
    address: str
    """the address that was connected to"""
    used: str
    """the source address of the probe"""
    reported: str
    """the client address that the echo reported"""
    preserved: bool | None
    """whether the two are the same; None: no echo answered"""
    detail: str
    """a sentence"""
    milliseconds: int
    """duration"""


def canary_probes(
    state: DesiredState, frontends: Collection[str], *, source: str | None = None, without: Collection[str] = ()
) -> tuple[CanaryProbe, ...]:
    """Every address of these frontends, but for those quarantined (`without`) and those of another family."""
    family = None if source is None else 6 if ":" in source else 4
    return tuple(
        CanaryProbe(
            frontend=frontend.name,
            address=_reachable(bind),
            source=source,
            accept_proxy=frontend.accept_proxy,
            nudge=bool(frontend.routes),
        )
        for frontend in state.frontends
        if frontend.name in frontends
        for bind in frontend.bind
        if family in (None, bind.family) and str(bind) not in without
    )


def announces(probe: CanaryProbe, host: str) -> bool:
    """Whether a client from `host` must send a PROXY header there."""
    if isinstance(probe.accept_proxy, bool):
        return probe.accept_proxy
    address = ipaddress.ip_address(host)
    return any(address in ipaddress.ip_network(network) for network in probe.accept_proxy)


def _reachable(bind: Endpoint) -> Endpoint:
    return evolve(bind, host=_LOOPBACK[bind.family]) if bind.wildcard else bind


def canaries(state: DesiredState | None) -> tuple[str, ...]:
    """The frontends that are to be tried at every resync."""
    return tuple(frontend.name for frontend in state.frontends if frontend.canary) if state else ()


def judge(used: str, answer: bytes) -> tuple[bool | None, str, str]:
    """Whether the address was preserved, the one that the echo reported, and what to say. None: no echo answered."""
    match = _ANSWER.match(answer)
    if match is None and answer.startswith(_NOT_TOLD):
        return False, "", f"the echo was not told who came: {shown(answer)}"
    if match is None:
        what = "nothing answered" if not answer else f"no echo answered, but {shown(answer)}"
        return None, "", f"{what}; is `agent echo` behind it, and may this host connect?"
    reported = match[1].decode("ascii")
    if reported == used:
        return True, reported, "the address seen is the address used"
    return False, reported, f"came from {used}, and was seen as {reported}"


def preserved(canary_results: Iterable[CanaryResult], frontend: str) -> bool | None:
    """Of a whole frontend: False where one address of it does not preserve clients, True where all do."""
    verdicts = [result.preserved for result in canary_results if result.frontend == frontend]
    if False in verdicts:
        return False
    return True if verdicts and all(verdicts) else None


def findings(canary_results: Iterable[CanaryResult]) -> tuple[Finding, ...]:
    """What people should know."""
    return tuple(
        Finding(
            f"frontends.{result.frontend}",
            f"the canary at {result.address}: {result.detail}",
            "something on the way replaces the client's address" if result.preserved is False else "",
        )
        for result in canary_results
        if result.preserved is not True
    )
