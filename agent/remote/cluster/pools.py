"""Where connections of a Service go: the servers behind each of its ports, by `via`. Pure.

Nobody is left without a server because of what the cluster says of itself: where no node is as it should be, all are
used, and HAProxy's own checks decide; where there is no endpoint at all, a disabled server keeps the frontend, so
that the first pod that comes is added without a reload.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import define, evolve, frozen

from agent.remote.cluster import selector
from agent.remote.cluster.annotations import Exposed, Exposure
from agent.remote.cluster.objects import Key, Member, Node, Service, Slice

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

    `group`: which nodes those of weight 1 are, where they are the same for every Service that says so; None where
    they are not. `remark`: what a person should know of it.
    """

    servers: tuple[Server, ...]
    check: int | None = None
    group: str | None = None
    remark: str = ""


class UnservableError(Exception):
    """There is nothing that could be a server, and why."""


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

    def chosen(self, labels: str) -> tuple[Node, ...]:
        """The nodes that take traffic from outside and have these labels, by name."""
        if labels not in self._chosen:
            fits = selector.parse(labels) if labels else lambda _: True
            found = [one for one in self.nodes if not one.excluded and fits(one.labels)]
            self._chosen[labels] = tuple(sorted(found, key=lambda one: one.name))
        return self._chosen[labels]


def pool(service: Service, exposure: Exposure, one: Exposed, view: View) -> Pool:
    """The servers of one exposed port. Raises UnservableError where no address can be had."""
    if exposure.via == "nodeport":
        return _nodeport(service, exposure, one, view)
    if exposure.via == "endpoints":
        return _endpoints(service, one, view)
    check = one.check.number if one.check else None
    if exposure.via == "clusterip":
        host = _preferred(service.addresses, service.families)
        return Pool(servers=(Server("cluster", host or service.addresses[0], one.port.number),), check=check)
    if not service.given:
        return _none(service, one.port.number, check, "its load balancer has given it no address yet")
    host = _preferred(service.given, service.families) or service.given[0]
    return Pool(servers=(Server("loadbalancer", host, one.port.number),), check=check)


def _nodeport(service: Service, exposure: Exposure, one: Exposed, view: View) -> Pool:
    port = one.port.node
    assert port is not None  # the annotations were read
    check = one.check.node if one.check else None
    nodes = view.chosen(exposure.nodes)
    found = [(node, host) for node in nodes if (host := _preferred(node.addresses, service.families))]
    if not found:
        which = f" with the labels `{exposure.nodes}`" if exposure.nodes else ""
        lack = f"has an address of its family (IPv{service.families[0]})" if nodes else "takes traffic from outside"
        raise UnservableError(f"no node{which} {lack}")
    remark = ""
    if service.local:
        # Only there does kube-proxy take a connection at all, and it keeps the source address.
        held, ready = _holders(service, view)
        here = [pair for pair in found if pair[0].name in held]
        if not here:
            return _none(service, port, check, "no node holds an endpoint of it")
        found = here
        remark = "" if ready else "no endpoint is ready; HAProxy's checks decide"
    servers = [_server(node.name, host, port, int(node.ready and not node.cordoned)) for node, host in found]
    if not any(server.weight for server in servers):
        servers = [evolve(server, weight=1) for server in servers]
        remark = "no node of it is Ready and schedulable; all serve, and HAProxy's checks decide"
    group = None if service.local else exposure.nodes
    return Pool(servers=_unique(servers), check=check, group=group, remark=remark)


def _holders(service: Service, view: View) -> tuple[frozenset[str], bool]:
    """The nodes that hold a ready endpoint; else those that hold any, and False."""
    members = [member for one in view.slices_of(service) for member in one.members]
    ready = frozenset(member.node for member in members if member.ready)
    return (ready, True) if ready else (frozenset(member.node for member in members), False)


def _endpoints(service: Service, one: Exposed, view: View) -> Pool:
    found: dict[str, tuple[Member, int]] = {}
    checks: set[int] = set()
    for part in sorted(view.slices_of(service), key=lambda part: _rank(part.family, service.families)):
        number = part.ports.get(one.port.name)
        if number is None:
            continue
        if one.check and (check := part.ports.get(one.check.name)):
            checks.add(check)
        for member in part.members:
            found.setdefault(member.name or member.address, (member, number))  # a pod of both families is one server
    check = checks.pop() if checks else None
    if checks:
        raise UnservableError(
            f"its pods have {one.check.text if one.check else ''} at more than one port to be checked"
        )
    if not found:
        return _none(service, one.port.number, check, "it has no endpoint")
    ready = [pair for pair in found.values() if pair[0].ready]
    servers = [_server(member.name or f"ip-{member.address}", member.address, port, 1) for member, port in
               ready or found.values()]  # fmt: skip
    remark = "" if ready else "no endpoint is ready; HAProxy's checks decide"
    return Pool(servers=_unique(servers), check=check, remark=remark)


def _none(service: Service, port: int, check: int | None, why: str) -> Pool:
    host = "::1" if service.families[0] == 6 else "127.0.0.1"  # never connected to
    return Pool(servers=(Server(NOBODY, host, port, disabled=True),), check=check, remark=why)


def _rank(family: int, families: Sequence[int]) -> int:
    return families.index(family) if family in families else len(families)


def _preferred(addresses: Iterable[str], families: Sequence[int]) -> str | None:
    """An address of the family that is preferred among those that the Service has."""
    fitting = [one for one in addresses if ipaddress.ip_address(one).version in families]
    return min(fitting, key=lambda one: _rank(ipaddress.ip_address(one).version, families), default=None)


def _server(name: str, host: str, port: int, weight: int) -> Server:
    bare = name.lower().replace(":", "-")
    if not _NAME.fullmatch(bare):  # a node's name may have 253 characters
        bare = f"{re.sub(r'[^a-z0-9._-]', '-', bare)[:50].strip('-._')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Server(bare, host, port, weight)


def _unique(servers: Iterable[Server]) -> tuple[Server, ...]:
    """By name; of two with one address (which HAProxy would count twice) the first."""
    seen: set[tuple[str, int]] = set()
    found = []
    for one in sorted(servers, key=lambda one: one.name):
        if (one.host, one.port) not in seen:
            seen.add((one.host, one.port))
            found.append(one)
    return tuple(found)
