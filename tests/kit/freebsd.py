"""FreeBSD's rule of bind(2): a stand-in after the kernel's source, for a Linux that refuses more."""

from __future__ import annotations

from collections.abc import Callable, Collection

from agent.desired.addresses import Endpoint
from agent.host.listener import Listener
from agent.reconcile.preflight import BindFailure


def bind_rule(listening: Collection[Listener]) -> Callable[[Endpoint], BindFailure | None]:
    """What `listeners.unbound` finds as root on FreeBSD beside these listeners: only the very same address is taken.

    in_pcbbind_setup() (sys/netinet/in_pcb.c): with SO_REUSEADDR `lookupflags` has no INPLOOKUP_WILDCARD, so
    in_pcblookup_local() finds no wildcard beside an address, and no address beside a wildcard; the lookup with
    INPLOOKUP_WILDCARD in front of it is for who has no PRIV_NETINET_REUSEPORT.
    """

    def unbound(endpoint: Endpoint) -> BindFailure | None:
        if any(one.endpoint == endpoint for one in listening):
            return BindFailure(reason="in_use", detail="the address is in use")
        return None

    return unbound
