"""Where connections of a Service go: the servers behind each of its ports, by `via`. Pure.

Nobody is left without a server because of what the cluster says of itself: where no node is as it should be, all are
used, and HAProxy's own checks decide; where there is no endpoint at all, a disabled server keeps the frontend, so
that the first pod that comes is added without a reload.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import define, evolve, frozen

from agent.desired.rules import MAX_SERVERS
from agent.desired.scalars import describe
from agent.discover import selector
from agent.discover.annotations import Exposed, Exposure
from agent.discover.objects import EXCLUDED, PREFIX, Key, Member, Node, Service, Slice

_UNREADY = "no endpoint is ready; HAProxy's checks decide"
NOBODY = "nobody"
"""The name of the server that stands for none."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


@frozen
class Server:
    """One server of a pool. `weight` 0: drained, sessions go on."""

    name: str
    host: str
    port: int
    weight: int = 1
    disabled: bool = False

    @property
    def address(self) -> str:
        """As a desired state has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen(kw_only=True)
class Pool:
    """The servers of one port, and the port that their checks use (None: each server's own).

    `group`: the labels of the nodes that they are, where those are the same for every Service that says so; None where
    they are not. `remark`: what a person should know of it.
    """

    servers: tuple[Server, ...]
    check: int | None = None
    group: str | None = None
    remark: str = ""


@define(slots=False)
class View:
    """Nodes and endpoints at one moment; what is asked of them often is worked out once."""

    nodes: Sequence[Node]
    slices: Sequence[Slice]

    @cached_property
    def _of(self) -> Mapping[Key, list[Slice]]:
        found: dict[Key, list[Slice]] = {}
        for one in sorted(self.slices, key=lambda one: one.key):
            found.setdefault(one.of, []).append(one)
        return found

    @cached_property
    def _chosen(self) -> dict[str, tuple[Node, ...]]:
        return {}

    def slices_of(self, service: Service) -> list[Slice]:
        """Its EndpointSlices, of the families it has."""
        return [one for one in self._of.get(service.key, ()) if one.family in (4, 6)]

    def members(
        self, labels: str, families: tuple[int, ...], holders: frozenset[str] | None = None
    ) -> tuple[Server, ...]:
        """The nodes with these labels that have an address of one of the families, without a port (0).

        `holders`: only nodes of these names. A node that takes no new clients has the weight 0.
        """
        key = (labels, families, holders)
        if key not in self._members:
            self._members[key] = _unique(
                _server(node.name, host, 0, int(node.serves))
                for node in self.chosen(labels)
                if holders is None or node.name in holders
                if (host := _preferred(node.addresses, families)) is not None
            )
        return self._members[key]

    @cached_property
    def _members(self) -> dict[tuple[str, tuple[int, ...], frozenset[str] | None], tuple[Server, ...]]:
        return {}

    def chosen(self, labels: str) -> tuple[Node, ...]:
        """The nodes that take traffic from outside and have these labels, by name."""
        if labels not in self._chosen:
            fits = selector.parse(labels) if labels else lambda _: True
            found = [node for node in self.nodes if not node.excluded and fits(node.labels)]
            self._chosen[labels] = tuple(sorted(found, key=lambda one: one.name))
        return self._chosen[labels]


def pool(service: Service, exposure: Exposure, exposed: Exposed, view: View) -> Pool:
    """The servers of one exposed port; NOBODY where there is none."""
    if exposure.via == "nodeport":
        return _nodeport(service, exposure, exposed, view)
    if exposure.via == "endpoints":
        return _endpoints(service, exposed, view)
    check = exposed.check.number if exposed.check else None
    if exposure.via == "clusterip":
        host = _preferred(service.addresses, service.families)
        return Pool(servers=(Server("cluster", host or service.addresses[0], exposed.port.number),), check=check)
    if not service.given:
        return _none(service, exposed.port.number, check, "its load balancer has no address that can be used (yet)")
    host = _preferred(service.given, service.families) or service.given[0]
    return Pool(servers=(Server("loadbalancer", host, exposed.port.number),), check=check)


def _nodeport(service: Service, exposure: Exposure, exposed: Exposed, view: View) -> Pool:
    port = exposed.port.node
    assert port is not None  # the annotations were read
    check = exposed.check.node if exposed.check else None
    labels, families, remarks = exposure.nodes, service.families, []
    members = view.members(labels, families)
    if not members:
        return _none(service, port, check, _why_no_node(labels, service, view))
    if service.local:
        # Only there does kube-proxy take a connection at all, and it keeps the source address.
        holders, ready = _holders(service, exposed, view)
        members = view.members(labels, families, holders)
        if not members:
            return _none(service, port, check, "no node that takes traffic holds an endpoint of it")
        if not ready:
            remarks.append(_UNREADY)
    if not any(server.weight for server in members):
        remarks.append("no node of it is Ready and schedulable; all serve, and HAProxy's checks decide")
    if len(members) > MAX_SERVERS:
        remarks.append(f"{len(members):,} nodes; the first {MAX_SERVERS:,} serve ({PREFIX}nodes chooses)")
    if service.sticky and not service.local:
        remarks.append("its sessionAffinity sees the firewall, not its clients: a node sends all to one pod")
    servers = tuple(evolve(server, port=port) for server in fail_open(members)[:MAX_SERVERS])
    return Pool(servers=servers, check=check, group=None if service.local else labels, remark="; ".join(remarks))


def _why_no_node(labels: str, service: Service, view: View) -> str:
    which = f" with the labels {describe(labels)}" if labels else ""
    if view.chosen(labels):
        return f"no node{which} has an address of its family (IPv{service.families[0]})"
    why = f"no node{which} takes traffic from outside"
    return f"{why} (the label {EXCLUDED[0]} keeps one out)" if view.nodes else why


def fail_open(servers: tuple[Server, ...]) -> tuple[Server, ...]:
    """Where none of them takes new clients, all do: HAProxy's checks decide."""
    return (
        servers if any(server.weight for server in servers) else tuple(evolve(server, weight=1) for server in servers)
    )


def _holders(service: Service, exposed: Exposed, view: View) -> tuple[frozenset[str], bool]:
    """The nodes that hold the best endpoints of this port, and whether those are ready."""
    members = [member for part in view.slices_of(service) if exposed.port.name in part.ports for member in part.members]
    best = min((member.rank for member in members), default=2)
    return frozenset(member.node for member in members if member.rank == best), best == 0


def _endpoints(service: Service, exposed: Exposed, view: View) -> Pool:
    found: dict[str, tuple[Member, int, int | None]] = {}
    parts = sorted(view.slices_of(service), key=lambda part: _rank(part.family, service.families))
    # The best first, whichever slice it is in: an old address of the same pod may still stand in another.
    for rank in range(3):
        for part in parts:
            if (number := part.ports.get(exposed.port.name)) is None:
                continue
            check = part.ports.get(exposed.check.name) if exposed.check else None
            for member in part.members:
                if member.rank == rank:  # a pod of both families is one server
                    found.setdefault(member.name or member.address, (member, number, check))
    if not found:
        return _none(
            service, exposed.port.number, exposed.check.target if exposed.check else None, "it has no endpoint"
        )
    best = min(member.rank for member, _, _ in found.values())
    used = [(member, number, check) for member, number, check in found.values() if member.rank == best]
    remarks = [] if best == 0 else [_UNREADY]
    check = None
    if exposed.check:
        seen = Counter(check for _, _, check in used if check)
        # Of a rolling update that moves it, the port that most have; where none tells, what the Service says.
        check = min(seen, key=lambda port: (-seen[port], port)) if seen else exposed.check.target
        if len(seen) != 1:
            remarks.append(f"not all of its pods have {exposed.check.text} at one port; {check} is checked")
    servers = _unique(
        _server(member.name or f"ip-{member.address}", member.address, port, 1) for member, port, _ in used
    )
    if len(servers) > MAX_SERVERS:
        remarks.append(f"{len(servers):,} pods; the first {MAX_SERVERS:,} serve")
    return Pool(servers=servers[:MAX_SERVERS], check=check, remark="; ".join(remarks))


def _none(service: Service, port: int, check: int | None, why: str) -> Pool:
    host = "::1" if service.families[0] == 6 else "127.0.0.1"  # never connected to
    return Pool(servers=(Server(NOBODY, host, port, disabled=True),), check=check, remark=why)


def _rank(family: int, families: Sequence[int]) -> int:
    return families.index(family) if family in families else len(families)


def _preferred(addresses: Iterable[str], families: Sequence[int]) -> str | None:
    """An address of the family that is preferred among those that the Service has."""
    fitting = [address for address in addresses if ipaddress.ip_address(address).version in families]
    return min(fitting, key=lambda one: _rank(ipaddress.ip_address(one).version, families), default=None)


def _server(name: str, host: str, port: int, weight: int) -> Server:
    bare = name.lower().replace(":", "-")
    if not _NAME.fullmatch(bare):  # a node's name may have 253 characters
        bare = f"{re.sub(r'[^a-z0-9._-]', '-', bare)[:50].strip('-._')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Server(bare, host, port, weight)


def _unique(servers: Iterable[Server]) -> tuple[Server, ...]:
    """By name; of two with one address (which HAProxy would count twice) one that serves, else the first.

    A machine that was set up anew under another name has left the object of its old one behind.
    """
    best: dict[tuple[str, int], Server] = {}
    for server in sorted(servers, key=lambda one: (one.weight == 0, one.name)):
        best.setdefault((server.host, server.port), server)
    return tuple(sorted(best.values(), key=lambda one: one.name))
