"""What one Service adds to a desired state, and which Services may: the older one wins. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from agent.model.schema import WILDCARDS
from agent.remote.cluster.annotations import Exposed, Mistake, read
from agent.remote.cluster.objects import PREFIX, Key, Service
from agent.remote.cluster.pools import Pool, UnservableError, View, pool

WORKERS = "workers"
"""The group of every node; one of chosen nodes has its labels behind that."""
_PLAIN = re.compile(r"[a-z0-9]+=[a-z0-9]+")


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


@frozen(kw_only=True)
class Ground:
    """What the cluster is put upon: binds for Services that name none, and what the base has of each frontend."""

    bind: tuple[str, ...] = ()
    bound: frozenset[str] = frozenset()
    taken: tuple[tuple[str, int, str], ...] = ()


def fragment(service: Service, view: View, ground: Ground) -> tuple[Fragment | None, tuple[Mistake, ...]]:
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
        try:
            found = pool(service, exposure, one, view)
        except UnservableError as error:
            wrong.append(Mistake(f"{PREFIX}via" if exposure.via != "nodeport" else f"{PREFIX}nodes", str(error)))
            continue
        if found.remark:
            remarks[found.remark] = None
        backends[one.name] = _backend(one, found, groups, service.families)
        if one.listen is None:
            continue
        frontends[one.name] = {"backend": one.name}
        hosts = one.bind or (() if one.name in ground.bound else ground.bind)
        if hosts:
            frontends[one.name] |= {"bind": [_endpoint(host, one.listen) for host in hosts]}
            binds += [(host, one.listen) for host in hosts]
        elif one.name not in ground.bound:
            here = f"frontends.{one.name}.bind in the base"
            wrong.append(
                Mistake(f"{PREFIX}bind", f"is missing, and nothing else says where to listen ({here}, --bind)")
            )
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


def _backend(one: Exposed, found: Pool, groups: dict[str, dict[str, str]], families: Sequence[int]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if one.application:
        made["application"] = one.application
    if one.proxy_protocol:
        made["proxy_protocol"] = one.proxy_protocol
    if found.check is not None:
        made["health"] = {"port": found.check}
    alone: Iterable[Any] = found.servers
    if found.group is not None:
        ready = {server.name: server.host for server in found.servers if server.weight}
        name = _group(found.group, families)
        groups[name] = ready
        made |= {"nodes": name, "port": found.servers[0].port}
        alone = [server for server in found.servers if not server.weight]
    servers = {server.name: {"address": server.address} | _how(server.weight, server.disabled) for server in alone}
    return made | ({"servers": servers} if servers else {})


def _how(weight: int, disabled: bool) -> dict[str, Any]:  # noqa: FBT001  # two columns of one row
    return ({"weight": weight} if weight != 1 else {}) | ({"disabled": True} if disabled else {})


def _group(labels: str, families: Sequence[int]) -> str:
    """A name for a set of nodes: the same labels and families of a Service are the same nodes."""
    words = re.sub(r"[^a-z0-9]+", "-", labels.replace("!", "not-").lower())[:40].strip("-")
    if labels and not _PLAIN.fullmatch(labels):  # another selector could come to the same words
        words += f"-{hashlib.sha256(labels.encode()).hexdigest()[:6]}"
    name = "-".join(part for part in (WORKERS, words, "" if families[0] == 4 else "v6") if part)
    return name + ("-dual" if len(families) > 1 else "")


# --- who may ------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Found:
    """What became of the Services: fragments in the order of age, and the mistakes of each that has some.

    `stands`: those whose last good annotations go on, since the present ones are mistaken.
    """

    fragments: Mapping[Key, Fragment]
    mistakes: Mapping[Key, tuple[Mistake, ...]]
    stands: frozenset[Key] = frozenset()


def gather(
    services: Iterable[Service],
    view: View,
    ground: Ground,
    *,
    good: Mapping[Key, Mapping[str, str]],
    against: Callable[[Fragment], tuple[Mistake, ...]],
    banned: Mapping[Key, Sequence[tuple[Mistake, ...]]],
) -> Found:
    """Each Service that asks for something.

    Names and addresses belong to whoever had them first: the base, then what is live, then the older Service.
    `good`: annotations that were live, for those that are mistaken now. `against`: what the base says against a
    fragment. `banned`: what was found to be wrong with the present annotations, and then with the good ones.
    """
    fragments: dict[Key, Fragment] = {}
    mistakes: dict[Key, tuple[Mistake, ...]] = {}
    stands: set[Key] = set()
    names: dict[str, str] = {}
    binds: list[tuple[str, int, str]] = list(ground.taken)

    def judged(one: Service, bans: Sequence[tuple[Mistake, ...]]) -> tuple[Fragment | None, tuple[Mistake, ...]]:
        made, wrong = fragment(one, view, ground)
        if made is not None:
            wrong = (*_taken(one, made, names, binds), *against(made), *(mistake for ban in bans for mistake in ban))
        return (None if wrong else made), wrong

    # What is live comes first: a newcomer with an older date (restored from a backup) displaces nobody.
    for one in sorted(services, key=lambda one: (one.key not in good, one.created, one.key)):
        if not one.wants:
            continue
        bans = banned.get(one.key, ())
        made, wrong = judged(one, bans[:1])
        if wrong:
            mistakes[one.key] = wrong
            if one.key in good and good[one.key] != one.annotations:
                made, _ = judged(evolve(one, annotations=good[one.key]), bans[1:])
                stands |= {one.key} if made else set()
        if made is None:
            continue
        fragments[one.key] = made
        names |= dict.fromkeys(made.backends, one.text)
        binds += [(host, port, one.text) for host, port in made.binds]
    return Found(fragments=fragments, mistakes=mistakes, stands=frozenset(stands))


def _taken(
    one: Service, made: Fragment, names: Mapping[str, str], binds: Sequence[tuple[str, int, str]]
) -> tuple[Mistake, ...]:
    """Names and addresses that somebody else has already."""
    found = [
        Mistake(f"{PREFIX}expose", f"{name} is {names[name]}'s already; {PREFIX}prefix makes names of its own")
        for name in made.backends
        if name in names
    ]
    here: list[tuple[str, int, str]] = []
    for host, port in made.binds:
        for other, number, owner in (*binds, *here):
            if number == port and overlap(host, other):
                whose = "named twice" if owner == one.text else f"{owner}'s already ({_endpoint(other, number)})"
                found.append(Mistake(f"{PREFIX}bind", f"{_endpoint(host, port)} is {whose}"))
                break
        here.append((host, port, one.text))
    return tuple(found)


def overlap(one: str, other: str) -> bool:
    """Whether two addresses cannot both be bound at one port: the same, or one is every address of its family."""
    if (":" in one) != (":" in other):
        return False
    return one == other or one in WILDCARDS or other in WILDCARDS
