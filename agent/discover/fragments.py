"""What one Service adds to a desired state, and which Services may: the older one wins. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from agent.desired.addresses import WILDCARDS, endpoint
from agent.desired.state import parse
from agent.discover.annotations import Exposed, Mistake, read
from agent.discover.objects import PREFIX, Key, Service
from agent.discover.pools import NOBODY, Pool, View, pool
from agent.errors import InvalidError

WORKERS = "workers"
"""The group of every node; one of chosen nodes has its labels behind that."""
_PLAIN = re.compile(r"[a-z0-9]{1,18}=[a-z0-9]{1,18}")


@frozen(kw_only=True)
class Fragment:
    """`frontends`, `backends`, `groups`: as a desired state has them. `binds`: (address, port) it takes.

    `remarks`: what a person should know.
    """

    service: Key
    frontends: Mapping[str, Any] = field(factory=dict)
    backends: Mapping[str, Any] = field(factory=dict)
    groups: Mapping[str, Mapping[str, str]] = field(factory=dict)
    binds: tuple[tuple[str, int], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def document(self) -> tuple[Any, ...]:
        """What of it stands in the desired state: two that are alike here change nothing."""
        return (self.frontends, self.backends, self.groups)


def flat(one: Fragment) -> Fragment:
    """The same servers without a group: as it was, while the group of that name is another one by now."""
    backends = {}
    for name, backend in one.backends.items():
        rest = {key: value for key, value in backend.items() if key not in ("nodes", "port", "servers")}
        members = one.groups.get(backend.get("nodes", ""), {})
        servers = {node: {"address": _endpoint(host, backend["port"])} for node, host in members.items()}
        backends[name] = rest | {"servers": servers | backend.get("servers", {})}
    return evolve(one, backends=backends, groups={})


def normalized(one: Fragment, tree: Mapping[str, Any]) -> Fragment:
    """As it stands in a desired state: where it listens said, its servers one by one. So two can be compared."""
    there = tree.get("frontends", {})
    frontends = {
        name: {**part, "bind": list(there.get(name, {}).get("bind", ()))} for name, part in one.frontends.items()
    }
    binds = [endpoint(text) for part in frontends.values() for text in part["bind"]]
    return evolve(flat(one), frontends=frontends, binds=tuple((each.host, each.port) for each in binds), remarks=())


def skeleton(one: Fragment) -> dict[str, Any]:
    """All of it but its servers, which the firewalls tell: small enough to be written onto its Service."""
    backends = {
        name: {key: value for key, value in part.items() if key not in ("nodes", "port", "servers")}
        for name, part in one.backends.items()
    }
    return {"frontends": dict(one.frontends), "backends": backends}


def revived(service: Key, found: Mapping[str, Any], servers: Mapping[str, Mapping[str, Any]]) -> Fragment | None:
    """A shape and the servers that the firewalls have behind its backends; None where it is not theirs, or no shape."""
    try:
        frontends = {
            str(name): {"backend": str(part["backend"]), "bind": list(part["bind"])}
            | ({"allow": list(part["allow"])} if "allow" in part else {})
            for name, part in found["frontends"].items()
        }
        backends = {str(name): {**part, "servers": dict(servers[name])} for name, part in found["backends"].items()}
        binds = [endpoint(text) for part in frontends.values() for text in part["bind"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not backends or not all(part["servers"] for part in backends.values()):
        return None
    try:  # whoever may write the Service may have written this
        parse(json.dumps({"version": 1, "frontends": frontends, "backends": backends}).encode(), file="status")
    except InvalidError:
        return None
    return Fragment(
        service=service,
        frontends=frontends,
        backends=backends,
        binds=tuple((each.host, each.port) for each in binds),
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
    place, frontend), and the names of its `groups`.
    """

    bind: tuple[str, ...] = ()
    bound: Mapping[str, Bound] = field(factory=dict)
    taken: tuple[tuple[str, int, str, str], ...] = ()
    groups: frozenset[str] = frozenset()


def fragment(service: Service, view: View, ground: BaseLayout) -> tuple[Fragment | None, tuple[Mistake, ...]]:
    """What a Service asks for, with the nodes and endpoints of now; or its mistakes."""
    exposure, mistakes = read(service)
    if exposure is None:
        return None, tuple(dict.fromkeys(mistakes))
    frontends: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    groups: dict[str, dict[str, str]] = {}
    binds: list[tuple[str, int]] = []
    remarks: dict[str, None] = {}
    wrong: list[Mistake] = []
    for one in exposure.exposed:
        if one.name in backends:
            wrong.append(Mistake(f"{PREFIX}expose", f"two of its ports would both be called {one.name}"))
        found = pool(service, exposure, one, view)
        if found.remark:
            remarks[found.remark] = None
        backends[one.name] = _backend(one, found, groups, service, ground.groups)
        if one.listen is None:
            continue
        frontends[one.name] = {"backend": one.name}
        if service.balanced and service.ranges:
            frontends[one.name]["allow"] = list(service.ranges)
        bound = ground.bound.get(one.name)
        if one.bind or not bound:
            hosts = one.bind or ground.bind
            frontends[one.name] |= {"bind": [_endpoint(host, one.listen) for host in hosts]}
            binds += [(host, one.listen) for host in hosts]
            if not hosts:
                where = f"frontends.{one.name}.bind in the base, or --bind"
                wrong.append(Mistake(f"{PREFIX}bind", f"is missing, and nothing else says where to listen: {where}"))
        elif one.said and one.listen not in bound.ports:
            there = ", ".join(map(str, sorted(bound.ports)))
            told = f"{one.name} shall listen at {one.listen}, {bound.place} has it at {there}"
            wrong.append(Mistake(f"{PREFIX}expose", told, conflict=True))
    if wrong:
        return None, tuple(dict.fromkeys(wrong))
    made = Fragment(
        service=service.key,
        frontends=frontends,
        backends=backends,
        groups=groups,
        binds=tuple(binds),
        remarks=tuple(remarks),
    )
    return made, ()


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _backend(
    exposed: Exposed,
    found: Pool,
    groups: dict[str, dict[str, str]],
    service: Service,
    taken: frozenset[str],
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if exposed.application:
        made["application"] = exposed.application
    if exposed.proxy_protocol:
        made["proxy_protocol"] = exposed.proxy_protocol
    if found.check is not None:
        made["health"] = {"port": found.check}
    elif service.balanced and service.local and service.health_port is not None:
        # kube-proxy answers 200 there where the node holds an endpoint, and 503 where it does not (any more).
        made["health"] = {"type": "http", "port": service.health_port, "path": "/healthz"}
    alone: Iterable[Any] = found.servers
    if found.group is not None:
        ready = {server.name: server.host for server in found.servers if server.weight}
        name = _group(found.group, service.families)
        while name in taken:
            name = f"cluster-{name}"
        groups[name] = ready
        made |= {"nodes": name, "port": found.servers[0].port}
        alone = [server for server in found.servers if not server.weight]
    servers = {server.name: {"address": server.address} | _how(server.weight, server.disabled) for server in alone}
    return made | ({"servers": servers} if servers else {})


def _how(weight: int, disabled: bool) -> dict[str, Any]:  # noqa: FBT001  # two columns of one row
    return ({"weight": weight} if weight != 1 else {}) | ({"disabled": True} if disabled else {})


def _group(labels: str, families: Sequence[int]) -> str:
    """A name for a set of nodes: the same labels and families of a Service are the same nodes."""
    words = re.sub(r"[^a-z0-9]+", "-", labels.replace("!", "not-").lower())[:38].strip("-")
    if labels and not _PLAIN.fullmatch(labels):  # another selector could come to the same words
        words += f"-{hashlib.sha256(labels.encode()).hexdigest()[:6]}"
    name = "-".join(part for part in (WORKERS, words, "" if families[0] == 4 else "v6") if part)
    return name + ("-dual" if len(families) > 1 else "")


# --- who may ------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Found:
    """What became of the Services: fragments in the order in which they were taken, and the mistakes of each.

    `levels`: what each fragment is made of: 0 the annotations as they are, 1 those that were live last, 2 what is live.
    `stuck`: what is live, and does not go with the base any more.
    """

    fragments: Mapping[Key, Fragment]
    mistakes: Mapping[Key, tuple[Mistake, ...]]
    levels: Mapping[Key, int]
    stuck: Mapping[Key, tuple[Mistake, ...]] = field(factory=dict)


@frozen(kw_only=True)
class Before:
    """What was: the annotations of each Service that were `good`, and what is `live`, as far as is known."""

    good: Mapping[Key, Mapping[str, str]] = field(factory=dict)
    live: Mapping[Key, Fragment] = field(factory=dict)


def resolve(
    services: Iterable[Service],
    view: View,
    ground: BaseLayout,
    *,
    before: Before,
    against: Callable[[Fragment], tuple[Mistake, ...]],
    excluded: Mapping[Key, Mapping[int, tuple[Mistake, ...]]],
) -> Found:
    """Each Service that asks for something.

    Names and addresses belong to whoever had them first: the base, then what is live, then the older Service. What
    is wrong with a Service that is live takes nothing away: it goes on with its good annotations, else as it is.
    `against`: what the base says against a fragment. `excluded`: what the whole says against a Service at a level.
    """
    asking = {service.key: service for service in services if service.wants}
    fragments: dict[Key, Fragment] = {}
    mistakes: dict[Key, tuple[Mistake, ...]] = {}
    levels: dict[Key, int] = {}
    stuck: dict[Key, tuple[Mistake, ...]] = {}
    names: dict[str, Key] = {}
    binds: dict[int, list[tuple[str, int, str, str]]] = {}  # by port

    def bound(one: Fragment, owner: str) -> None:
        for host, port in one.binds:
            binds.setdefault(port, []).append((host, port, owner, ""))

    for taken in ground.taken:
        binds.setdefault(taken[1], []).append(taken)
    reserved = {key: one for key, one in before.live.items() if key in asking}
    for key, held in reserved.items():
        names |= dict.fromkeys(held.backends, key)
        bound(held, asking[key].text)

    def judged(service: Service, level: int) -> tuple[Fragment | None, tuple[Mistake, ...]]:
        made: Fragment | None
        wrong: tuple[Mistake, ...]
        if level == 2:
            made, wrong = (flat(reserved[service.key]) if service.key in reserved else None), ()
        else:
            said = service.annotations if level == 0 else before.good.get(service.key, service.annotations)
            if level == 1 and said == service.annotations:
                return None, ()
            made, wrong = fragment(evolve(service, annotations=said), view, ground)
        if made is not None:
            taken = {
                name: asking[names[name]].text for name in made.backends if names.get(name, service.key) != service.key
            }
            numbers = {port for _, port in made.binds}
            others = [bind for number in numbers for bind in binds.get(number, ()) if bind[2] != service.text]
            wrong = (*_taken(made, taken, others), *against(made))
            if level < 2:
                wrong = (*wrong, *excluded.get(service.key, {}).get(level, ()))
            # Nobody asked for the end of what is live, unless the base keeps its name for another.
            if level == 2 and wrong and not any(mistake.kept for mistake in wrong):
                stuck[service.key] = wrong
                return made, wrong
        return (None if wrong else made), wrong

    for one in sorted(asking.values(), key=lambda one: (one.key not in reserved, one.created, one.key)):
        for level in range(3):
            made, wrong = judged(one, level)
            if level == 0 and wrong:
                mistakes[one.key] = wrong
            if made is not None:
                fragments[one.key], levels[one.key] = made, level
                names |= dict.fromkeys(made.backends, one.key)
                bound(made, one.text)
                break
    return Found(fragments=fragments, mistakes=mistakes, levels=levels, stuck=stuck)


def _taken(made: Fragment, names: Mapping[str, str], binds: Sequence[tuple[str, int, str, str]]) -> tuple[Mistake, ...]:
    """Names and addresses that somebody else has already."""
    found = [
        Mistake(f"{PREFIX}expose", f"{name} is {names[name]}'s already; {PREFIX}prefix makes names of its own")
        for name in made.backends
        if name in names
    ]
    here: list[tuple[str, int, str, str]] = []
    for host, port in made.binds:
        for other, number, owner, frontend in (*binds, *here):
            if number == port and frontend not in made.frontends and overlap(host, other):
                whose = f"{owner}'s already ({_endpoint(other, number)})" if owner else "named twice"
                found.append(Mistake(f"{PREFIX}bind", f"{_endpoint(host, port)} is {whose}"))
                break
        here.append((host, port, "", ""))
    return tuple(found)


def addresses_of(one: Fragment) -> dict[str, set[str]]:
    """The addresses behind each of its backends; those that stand for nobody are none."""
    return {
        name: {server["address"] for each, server in part["servers"].items() if each != NOBODY}
        for name, part in flat(one).backends.items()
    }


def disjoint(one: Fragment, others: Iterable[Fragment]) -> bool:
    """Whether it has no name and no address in common with any of them."""
    for other in others:
        if not one.backends.keys().isdisjoint(other.backends):
            return False
        if any(port == number and overlap(host, there) for host, port in one.binds for there, number in other.binds):
            return False
    return True


def overlap(one: str, other: str) -> bool:
    """Whether two addresses cannot both be bound at one port: the same, or one is every address of its family."""
    if (":" in one) != (":" in other):
        return False
    return one == other or one in WILDCARDS or other in WILDCARDS
