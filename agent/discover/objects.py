"""What is read of a cluster, as frozen values: Services, Nodes, EndpointSlices. Pure: JSON of the API in.

Only what is used is read, so that an object of a newer API, with fields nobody knows here, is read all the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from attrs import field, frozen

from agent.desired.addresses import ip
from agent.discover.selector import Labels

PREFIX = "edgeagent.io/"
STATUS = f"{PREFIX}status"
"""An annotation of earlier versions, which is taken away."""
FINALIZER = f"{PREFIX}edge"
LOAD_BALANCER_CLASS = f"{PREFIX}edge"
"""`spec.loadBalancerClass` of a Service whose load balancer is the firewall."""
EXCLUDED = (
    "node.kubernetes.io/exclude-from-external-load-balancers",
    "node.kubernetes.io/exclude-from-load-balancers",  # as it was called before 1.19
    "alpha.service-controller.kubernetes.io/exclude-balancer",
)
"""A node with one of these labels takes no traffic from outside: Kubernetes' own service controller heeds them too."""

_LEAVING = frozenset({"ToBeDeletedByClusterAutoscaler", "node.kubernetes.io/out-of-service"})

Key = tuple[str, str]
"""Namespace and name."""
T = TypeVar("T")


@frozen
class Port:
    """A port of a Service. `name` "" where it has none (it is the only one then); `node` None without a NodePort.

    `target`: of its pods, as far as the Service says it as a number.
    """

    name: str
    number: int
    node: int | None
    protocol: str
    target: int

    @property
    def text(self) -> str:
        """As an annotation names it."""
        return self.name or str(self.number)


@frozen(kw_only=True)
class Service:
    """`annotations`: those that begin with PREFIX, without it. `given`: addresses of its load balancer.

    `families`: 4 and 6, in the Service's own order of preference. `created` sorts by age. What edgeagent itself writes
    there makes no difference to anything.
    """

    namespace: str
    name: str
    uid: str = ""
    created: str = ""
    annotations: Mapping[str, str] = field(factory=dict)
    has_old_status: bool = field(default=False, eq=False)
    """whether it carries the annotation STATUS"""
    ports: tuple[Port, ...] = ()
    addresses: tuple[str, ...] = ()
    families: tuple[int, ...] = (4,)
    given: tuple[str, ...] = ()
    kind: str = "ClusterIP"
    local: bool = False
    sticky: bool = False
    balanced: bool = False
    """of type LoadBalancer, with our class: all its ports are served, no annotation is needed"""
    ranges: tuple[str, ...] = ()
    """loadBalancerSourceRanges, where `balanced`"""
    health_port: int | None = None
    """healthCheckNodePort: where each node says whether it holds an endpoint; None: there is none"""
    ingress: tuple[str, ...] = field(default=(), eq=False)
    """the addresses in the status of its load balancer, whatever they are"""
    conditions: Mapping[str, Mapping[str, str]] = field(factory=dict, eq=False)
    """of its status, by type, as they stand there"""
    deleted: bool = False
    """It is about to go, once its finalizers are gone."""
    finalizers: tuple[str, ...] = field(default=(), eq=False)
    version: str = field(default="", eq=False)

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return (self.namespace, self.name)

    @property
    def owner(self) -> str:
        """What its frontends and backends carry in a desired state: another Service of its name is another owner."""
        return f"{self.namespace}/{self.name}/{self.uid}"

    @property
    def text(self) -> str:
        """As people name it."""
        return f"Service {self.namespace}/{self.name}"

    @property
    def wants(self) -> bool:
        """Whether it asks edgeagent for anything."""
        return (bool(self.annotations) or self.balanced) and not self.deleted

    @property
    def says_bind(self) -> bool:
        """Whether it names an address of the firewall."""
        return any(key.partition(".")[0] == "bind" for key in self.annotations)

    @property
    def requests(self) -> tuple[Any, ...]:
        """All that it asks for by itself; what its nodes and endpoints are is not its wish."""
        return (dict(self.annotations), self.balanced, self.ports, self.ranges, self.local, self.kind)

    @property
    def released(self) -> bool:
        """Whether it was served, and asks for nothing any more: its deletion, or that of its annotations, was meant."""
        return FINALIZER in self.finalizers and not self.wants


@frozen(kw_only=True)
class Node:
    """`addresses`: internal ones, or external where it has no other.

    `ready`: as its kubelet says; `cordoned`: nothing new is scheduled there; `leaving`: it is about to be deleted.
    """

    name: str
    addresses: tuple[str, ...] = ()
    labels: Labels = field(factory=dict)
    ready: bool = True
    cordoned: bool = False
    leaving: bool = False

    @property
    def serves(self) -> bool:
        """Whether it takes new clients."""
        return self.ready and not self.cordoned and not self.leaving

    @property
    def excluded(self) -> bool:
        """Whether it is kept out of load balancing for good."""
        return any(label in self.labels for label in EXCLUDED)


@frozen(kw_only=True)
class Member:
    """One endpoint: a pod's address, on a node. `name` "" where no pod is named.

    `rank`: 0 ready, 1 still serving although it ends, 2 neither.
    """

    address: str
    name: str = ""
    node: str = ""
    rank: int = 0


@frozen(kw_only=True)
class Slice:
    """Some endpoints of a Service, all of one family. `ports`: number by the name of the Service's port."""

    namespace: str
    name: str
    service: str
    family: int
    ports: Mapping[str, int]
    members: tuple[Member, ...]

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return (self.namespace, self.name)

    @property
    def of(self) -> Key:
        """Whose it is."""
        return (self.namespace, self.service)


@frozen(kw_only=True)
class Snapshot:
    """What is in the cluster at one moment."""

    services: Sequence[Service] = ()
    nodes: Sequence[Node] = ()
    slices: Sequence[Slice] = ()


def service(found: Mapping[str, Any]) -> Service:
    """A Service out of the API's JSON."""
    meta, spec = _part(found, "metadata"), _part(found, "spec")
    addresses = _addresses(spec.get("clusterIPs") or [spec.get("clusterIP")])
    named = [{"IPv4": 4, "IPv6": 6}.get(str(one)) for one in spec.get("ipFamilies") or ()]
    # Before 1.23 the families are only there where dual stack was switched on; the addresses tell as well.
    families = [one for one in named if one] or [ipaddress.ip_address(address).version for address in addresses]
    balancer = _part(_part(found, "status"), "loadBalancer")
    return Service(
        namespace=_text(meta, "namespace"),
        name=_text(meta, "name"),
        uid=_text(meta, "uid"),
        created=_text(meta, "creationTimestamp"),
        annotations={
            key.removeprefix(PREFIX): str(value)
            for key, value in _part(meta, "annotations").items()
            if key.startswith(PREFIX) and key != STATUS
        },
        has_old_status=STATUS in _part(meta, "annotations"),
        ports=tuple(
            Port(
                _text(one, "name"),
                int(one["port"]),
                int(one["nodePort"]) if one.get("nodePort") else None,
                _text(one, "protocol") or "TCP",
                target if isinstance(target := one.get("targetPort"), int) else int(one["port"]),
            )
            for one in spec.get("ports") or ()
        ),
        addresses=addresses,
        families=tuple(dict.fromkeys(families)) or (4,),
        given=_reachable([one.get("ip") for one in balancer.get("ingress") or ()]),
        kind=_text(spec, "type") or "ClusterIP",
        local=spec.get("externalTrafficPolicy") == "Local",
        sticky=spec.get("sessionAffinity") == "ClientIP",
        balanced=_text(spec, "type") == "LoadBalancer" and spec.get("loadBalancerClass") == LOAD_BALANCER_CLASS,
        ranges=tuple(map(str, spec.get("loadBalancerSourceRanges") or ())),
        health_port=int(spec["healthCheckNodePort"]) if spec.get("healthCheckNodePort") else None,
        ingress=tuple(_text(entry, "ip") for entry in balancer.get("ingress") or () if isinstance(entry, Mapping)),
        conditions={
            _text(condition, "type"): {key: str(value) for key, value in condition.items()}
            for condition in _part(found, "status").get("conditions") or ()
            if isinstance(condition, Mapping)
        },
        deleted="deletionTimestamp" in meta,
        finalizers=tuple(map(str, meta.get("finalizers") or ())),
        version=_text(meta, "resourceVersion"),
    )


def node(found: Mapping[str, Any]) -> Node:
    """A Node out of the API's JSON."""
    meta, status = _part(found, "metadata"), _part(found, "status")
    ready = [one.get("status") for one in status.get("conditions") or () if one.get("type") == "Ready"]
    spec, told = _part(found, "spec"), [one for one in status.get("addresses") or () if isinstance(one, Mapping)]
    internal, external = (
        _addresses([one.get("address") for one in told if one.get("type") == kind])
        for kind in ("InternalIP", "ExternalIP")
    )
    taints = {one.get("key") for one in spec.get("taints") or () if isinstance(one, Mapping)}
    return Node(
        name=_text(meta, "name"),
        addresses=internal or external,
        labels=dict(_part(meta, "labels")),
        ready=ready == ["True"],
        cordoned=bool(spec.get("unschedulable")),
        leaving="deletionTimestamp" in meta or not taints.isdisjoint(_LEAVING),
    )


def endpoint_slice(found: Mapping[str, Any]) -> Slice:
    """An EndpointSlice out of the API's JSON, of discovery.k8s.io/v1."""
    meta = _part(found, "metadata")
    members = []
    for one in found.get("endpoints") or ():
        at = _reachable(one.get("addresses") or ())
        where = one.get("nodeName") or ""
        # "nil should be interpreted as ready" (EndpointConditions, in the API's own words).
        conditions = _part(one, "conditions")
        rank = 0 if conditions.get("ready") is not False else 1 if conditions.get("serving") is True else 2
        target = _part(one, "targetRef")
        pod = _text(target, "name") if target.get("kind") == "Pod" else ""
        # Only the first: "consumers should only use the first element" (discovery.k8s.io/v1, Endpoint.addresses).
        members += [Member(address=one, name=pod, node=str(where), rank=rank) for one in at[:1]]
    return Slice(
        namespace=_text(meta, "namespace"),
        name=_text(meta, "name"),
        service=_text(_part(meta, "labels"), "kubernetes.io/service-name"),
        family={"IPv4": 4, "IPv6": 6}.get(_text(found, "addressType"), 0),
        ports={_text(one, "name"): int(one["port"]) for one in found.get("ports") or () if one.get("port")},
        members=tuple(members),
    )


def _part(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _addresses(found: Any) -> tuple[str, ...]:
    """Those that a desired state can have, in their shortest form; whatever else stands there is left out."""
    good = []
    for one in found:
        try:
            good.append(ip(one)[1] if isinstance(one, str) else "")
        except ValueError:
            continue
    return tuple(dict.fromkeys(one for one in good if one and not ipaddress.ip_address(one).is_unspecified))


def _reachable(found: Any) -> tuple[str, ...]:
    """Without those that would be the firewall itself, or on its own link: a hand-made slice can name anything."""
    far = (ipaddress.ip_address(address) for address in _addresses(found))
    return tuple(str(one) for one in far if not one.is_loopback and not one.is_link_local)
