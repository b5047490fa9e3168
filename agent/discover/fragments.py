"""What one Service adds to a desired state, and which Services may: the older one wins. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from agent.desired.addresses import WILDCARDS, endpoint
from agent.desired.rules import MAX_SERVERS
from agent.discover.annotations import Exposed, Mistake, read
from agent.discover.objects import PREFIX, Key, Service
from agent.discover.pools import NOBODY, Pool, Server, View, fail_open, pool
from agent.errors import Path

WORKERS = "workers"
"""The group of every node; one of chosen nodes has its labels behind that."""
_PLAIN = re.compile(r"[a-z0-9]{1,16}=[a-z0-9]{1,16}")
_SERVERS = ("nodes", "port", "servers")

Groups = Mapping[str, Mapping[str, Any]]
"""Groups of nodes as a desired state has them: by name, the address (or address and weight) of each node."""


@frozen(kw_only=True)
class Fragment:
    """`frontends`, `backends`: as a desired state has them; `groups`: those that its backends name."""

    service: Key
    frontends: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    backends: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    groups: Groups = field(factory=dict)
    remarks: tuple[str, ...] = field(default=(), eq=False)
    """what a person should know"""

    @property
    def binds(self) -> Iterator[tuple[str, int, str]]:
        """Address and port of each `bind` that can be read, and its frontend."""
        for name, frontend in self.frontends.items():
            for text in frontend.get("bind", ()):
                where = endpoint(text)
                yield where.host, where.port, name

    @property
    def request(self) -> tuple[object, ...]:
        """All of it but its servers: what its Service asks for, whatever its nodes and pods are."""
        backends = {
            name: {key: value for key, value in backend.items() if key not in _SERVERS}
            for name, backend in self.backends.items()
        }
        return (self.frontends, backends)

    @property
    def trial(self) -> tuple[object, ...]:
        """What a firewall has judged of it: its request, and whom it leads to, whatever their weights."""
        groups = {name: _hosts(group) for name, group in self.groups.items()}
        servers = {
            name: {each: server.get("address") for each, server in backend.get("servers", {}).items()}
            for name, backend in self.backends.items()
        }
        return (self.request, groups, servers)

    @property
    def is_empty(self) -> bool:
        """Whether nobody is behind it."""
        return not any(
            "nodes" in backend or backend.get("servers", {}).keys() - {NOBODY} for backend in self.backends.values()
        )


@frozen(kw_only=True)
class Bound:
    """Where the base has a frontend listen already. `place`: in its file."""

    ports: frozenset[int]
    place: str


@frozen(kw_only=True)
class BaseLayout:
    """What the cluster is put upon.

    `bind`: for Services that name no address. Of the base: `bound` by name of the frontend, `taken` (address, port,
    frontend, place), and the names of its `groups`.
    """

    bind: tuple[str, ...] = ()
    bound: Mapping[str, Bound] = field(factory=dict)
    taken: tuple[tuple[str, int, str, str], ...] = ()
    groups: frozenset[str] = frozenset()


def fragment(service: Service, view: View, layout: BaseLayout) -> tuple[Fragment | None, tuple[Mistake, ...]]:
    """What a Service asks for, with the nodes and endpoints of now; or its mistakes."""
    exposure, mistakes = read(service)
    if exposure is None:
        return None, tuple(dict.fromkeys(mistakes))
    frontends: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    groups: dict[str, Mapping[str, Any]] = {}
    remarks: dict[str, None] = {}
    wrong: list[Mistake] = []
    for exposed in exposure.exposed:
        name = exposed.name
        if name in backends:
            wrong.append(Mistake(f"{PREFIX}expose", f"two of its ports would both be called {name}"))
        servers = pool(service, exposure, exposed, view)
        if servers.remark:
            remarks[servers.remark] = None
        group = None if servers.group is None else group_name(servers.group, service, layout)
        if group is not None:
            groups[group] = members(servers.servers)
        backends[name] = _backend(exposed, servers, group, service)
        if exposed.listen is not None:
            frontends[name], mistake = _frontend(exposed, exposed.listen, service, layout)
            wrong += [mistake] if mistake else []
    if wrong:
        return None, tuple(dict.fromkeys(wrong))
    made = Fragment(service=service.key, frontends=frontends, backends=backends, groups=groups, remarks=tuple(remarks))
    return made, ()


def selectors(services: Iterable[Service], layout: BaseLayout) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The groups of nodes that Services choose, by name: their labels, and the families of the addresses."""
    chosen = {}
    for service in services:
        if service.wants:
            labels = service.annotations.get("nodes", "").strip()
            chosen[group_name(labels, service, layout)] = (labels, service.families)
    return chosen


def current_groups(chosen: Mapping[str, tuple[str, tuple[int, ...]]], view: View) -> Groups:
    """Those groups as the nodes are now: whatever backend names one follows them."""
    groups = {}
    for name, (labels, families) in chosen.items():
        try:
            nodes = fail_open(view.members(labels, families))[:MAX_SERVERS]
        except ValueError:  # a mistake of its Service, which is reported
            continue
        if nodes:
            groups[name] = members(nodes)
    return groups


def kept(fragment: Fragment, groups: Groups, *, pin: bool, foreign: Collection[str] = ()) -> Fragment:
    """What is live of a Service that goes on as it is. It stays in its group, and follows the nodes.

    `pin`: it gets no other servers, and drains with the nodes it has: where its group has other ones now, its servers
    stand one by one. `foreign`: names of groups that are the base's by now.
    """
    backends = dict(fragment.backends)
    for name, backend in fragment.backends.items():
        live = fragment.groups.get(backend.get("nodes", ""), {})
        now = groups.get(backend.get("nodes", ""), live)
        if live and (backend["nodes"] in foreign or (pin and _hosts(now) != _hosts(live))):
            rest = {key: value for key, value in backend.items() if key not in ("nodes", "port")}
            servers = {
                node: {"address": endpoint_text(host, backend["port"])} | _weight(now.get(node, live[node]))
                for node, host in _hosts(live).items()
            }
            backends[name] = rest | {"servers": servers | backend.get("servers", {})}
    used = {backend["nodes"] for backend in backends.values() if "nodes" in backend}
    left = {name: group for name, group in fragment.groups.items() if name in used}
    return evolve(fragment, backends=backends, groups=left)


def _hosts(group: Mapping[str, Any]) -> dict[str, str]:
    return {node: entry if isinstance(entry, str) else entry.get("address", "") for node, entry in group.items()}


def _weight(entry: object) -> dict[str, int]:
    return {"weight": entry["weight"]} if isinstance(entry, Mapping) and "weight" in entry else {}


def members(servers: Sequence[Server]) -> Mapping[str, Any]:
    """Nodes as a group of a desired state has them."""
    return {
        server.name: server.host if server.weight == 1 else {"address": server.host, "weight": server.weight}
        for server in servers
    }


def _frontend(
    exposed: Exposed, listen: int, service: Service, layout: BaseLayout
) -> tuple[dict[str, Any], Mistake | None]:
    name, bound = exposed.name, layout.bound.get(exposed.name)
    frontend: dict[str, Any] = {"backend": name, "owner": service.owner}
    if service.balanced and service.ranges:
        frontend["allow"] = list(service.ranges)
    if exposed.bind or not bound:
        hosts = exposed.bind or layout.bind
        if not hosts:
            where = f"frontends.{name}.bind in the base, or --bind"
            return {}, Mistake(f"{PREFIX}bind", f"is missing, and nothing else says where to listen: {where}")
        frontend["bind"] = [endpoint_text(host, listen) for host in hosts]
    elif exposed.said and listen not in bound.ports:
        there = ", ".join(map(str, sorted(bound.ports)))
        text = f"{name} shall listen at {listen}, {bound.place} has it at {there}"
        return {}, Mistake(f"{PREFIX}expose", text, conflict=True)
    return frontend, None


def _backend(exposed: Exposed, servers: Pool, group: str | None, service: Service) -> dict[str, Any]:
    backend: dict[str, Any] = {"owner": service.owner}
    if exposed.application:
        backend["application"] = exposed.application
    if exposed.proxy_protocol:
        backend["proxy_protocol"] = exposed.proxy_protocol
    if servers.check is not None:
        backend["health"] = {"port": servers.check}
    elif service.balanced and service.local and service.health_port is not None:
        # kube-proxy answers 200 there where the node holds an endpoint, and 503 where it does not (any more).
        backend["health"] = {"type": "http", "port": service.health_port, "path": "/healthz"}
    if group is not None:
        return backend | {"nodes": group, "port": servers.servers[0].port}
    return backend | {"servers": {server.name: _server(server) for server in servers.servers}}


def _server(server: Server) -> dict[str, Any]:
    weight = {"weight": server.weight} if server.weight != 1 else {}
    return {"address": server.address} | weight | ({"disabled": True} if server.disabled else {})


def endpoint_text(host: str, port: int) -> str:
    """`192.0.2.1:25`, `[2001:db8::1]:25`"""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def group_name(labels: str, service: Service, layout: BaseLayout) -> str:
    """A name for a set of nodes: the same labels, and families of a Service, are the same nodes."""
    families = service.families
    words = re.sub(r"[^a-z0-9]+", "-", labels.replace("!", "not-").lower())[:33].strip("-")
    if labels and not _PLAIN.fullmatch(labels):  # another selector could come to the same words
        words += f".{hashlib.sha256(labels.encode()).hexdigest()[:10]}"  # no plain one has a dot
    name = "-".join(part for part in (WORKERS, words, "" if families[0] == 4 else "v6") if part)
    name += "-dual" if len(families) > 1 else ""
    while name in layout.groups:
        name = f"cluster-{name}"
    return name


# --- who may ------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Resolved:
    """What became of the Services: fragments in the order in which they were accepted, and the mistakes of each.

    `kept`: those that go on as they are live. `stuck`: what is live, and does not go with the base any more.
    """

    fragments: Mapping[Key, Fragment]
    mistakes: Mapping[Key, tuple[Mistake, ...]]
    kept: frozenset[Key] = frozenset()
    stuck: Mapping[Key, tuple[Mistake, ...]] = field(factory=dict)


def resolve(
    services: Iterable[Service],
    view: View,
    layout: BaseLayout,
    *,
    live: Mapping[Key, Fragment],
    against: Callable[[Fragment], tuple[Mistake, ...]],
    excluded: Mapping[Key, tuple[Mistake, ...]],
) -> Resolved:
    """Each Service that asks for something.

    Names and addresses belong to whoever had them first: the base, then what is live, then the older Service. A Service
    with a mistake goes on as it is live. `against`: what the base says against a fragment. `excluded`: Services that
    are not tried, and why.
    """
    asking = {service.key: service for service in services if service.wants}
    fragments: dict[Key, Fragment] = {}
    mistakes: dict[Key, tuple[Mistake, ...]] = {}
    kept: set[Key] = set()
    stuck: dict[Key, tuple[Mistake, ...]] = {}
    taken = _Taken(layout)
    for key in live.keys() & asking.keys():
        taken.add(live[key], asking[key])

    def accept(service: Service, made: Fragment) -> None:
        fragments[service.key] = made
        taken.add(made, service)

    for service in sorted(asking.values(), key=lambda one: (one.key not in live, one.created, one.key)):
        key = service.key
        made, wrong = (None, excluded[key]) if key in excluded else fragment(service, view, layout)
        if made is not None:
            wrong = (*taken.mistakes(made, service), *against(made))
        if made is not None and not wrong:
            accept(service, made)
            continue
        mistakes[key] = wrong
        if key not in live:
            continue
        # Nobody asked for the end of what is live, unless the base keeps its name for another.
        wrong = (*taken.mistakes(live[key], service), *against(live[key]))
        if any(mistake.kept for mistake in wrong):
            continue
        if wrong:
            stuck[key] = wrong
        kept.add(key)
        accept(service, live[key])
    return Resolved(fragments=fragments, mistakes=mistakes, kept=frozenset(kept), stuck=stuck)


class _Taken:
    """Names and addresses that somebody has."""

    def __init__(self, layout: BaseLayout) -> None:
        self._names: dict[str, Service] = {}
        self._binds: dict[int, list[tuple[str, str, str, Service | None]]] = {}  # by port: host, frontend, whose
        for host, port, frontend, place in layout.taken:
            self._binds.setdefault(port, []).append((host, frontend, place, None))

    def add(self, made: Fragment, service: Service) -> None:
        self._names |= dict.fromkeys(made.backends, service)
        for host, port, _ in made.binds:
            self._binds.setdefault(port, []).append((host, "", service.text, service))

    def mistakes(self, made: Fragment, service: Service) -> tuple[Mistake, ...]:
        """Where it would take what another has, or the same address twice."""
        found = [
            Mistake(f"{PREFIX}expose", f"{name} is {other.text}'s already; {PREFIX}prefix makes names of its own")
            for name in made.backends
            if (other := self._names.get(name, service)).key != service.key
        ]
        own: list[tuple[str, int]] = []
        for host, port, _ in made.binds:
            text = endpoint_text(host, port)
            if any(number == port and overlap(host, before) for before, number in own):
                found.append(Mistake(f"{PREFIX}bind", f"{text} is named twice"))
            for other_host, frontend, whose, owner in self._binds.get(port, ()):
                foreign = owner.key != service.key if owner else frontend not in made.frontends
                if foreign and overlap(host, other_host):
                    met = endpoint_text(other_host, port)
                    found.append(Mistake(f"{PREFIX}bind", f"{text} is {whose}'s already ({met})"))
                    break
            own.append((host, port))
        return tuple(found)


def overlap(one: str, other: str) -> bool:
    """Whether two addresses cannot both be bound at one port: the same, or one is every address of its family."""
    if (":" in one) != (":" in other):
        return False
    return one == other or one in WILDCARDS or other in WILDCARDS


def at(tree: object, path: Path) -> object:
    """What stands there; None for nothing."""
    for step in path:
        if isinstance(tree, Mapping):
            tree = tree.get(step)
        else:
            tree = tree[step] if isinstance(tree, list) and isinstance(step, int) and step < len(tree) else None
    return tree
