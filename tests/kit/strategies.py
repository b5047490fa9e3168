"""hypothesis strategies: valid desired states of every shape, and ways to spoil them."""

from __future__ import annotations

import copy
import string
from typing import Any

from hypothesis import strategies as st

_EDGE = string.ascii_lowercase + string.digits
names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)
ports = st.integers(1, 65_535)
durations = st.builds("{}{}".format, st.integers(1, 500), st.sampled_from(["ms", "s", "m", "h"]))
hosts = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{1,8}){0,3}", fullmatch=True)
v4 = st.integers(0x01000000, 0xDFFFFFFF).map(lambda n: ".".join(str(n >> shift & 255) for shift in (24, 16, 8, 0)))
v6 = st.integers(1, 0xFFFF).map(lambda n: f"2001:db8::{n:x}")
endpoints = st.one_of(st.builds("{}:{}".format, v4, ports), st.builds("[{}]:{}".format, v6, ports))
networks = st.one_of(v4, v6, v4.map(lambda a: a.rsplit(".", 1)[0] + ".0/24"), st.just("2001:db8::/32"))
counts = st.integers(1, 10_000)
owners = st.from_regex(r"[!-~]{1,30}", fullmatch=True)


def maybe(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda dicts: {key: value for one in dicts for key, value in one.items()})


_paths = st.from_regex(r"/[A-Za-z0-9._~/=&?+:@%,;-]{0,20}", fullmatch=True)
_statuses = st.one_of(st.integers(100, 599), st.integers(100, 399).map(lambda low: f"{low}-{low + 200}"))
_check = maybe(port=ports, interval=durations, timeout=durations, rise=st.integers(1, 9), fall=st.integers(1, 9))
healths = st.one_of(
    st.just({"type": "none"}),
    merged(_check, maybe(type=st.just("tcp"))),
    merged(_check, st.just({"type": "tls"}), maybe(host=hosts, verify=st.booleans())),
    merged(_check, st.just({"type": "http"}), maybe(path=_paths, host=hosts, status=_statuses)),
    merged(_check, st.just({"type": "http", "tls": True}), maybe(path=_paths, verify=st.booleans())),
)
servers = merged(
    st.fixed_dictionaries({"address": endpoints}),
    maybe(weight=st.integers(0, 256), backup=st.booleans(), disabled=st.booleans()),
)
_pool = maybe(
    application=st.sampled_from(["smtp", "imap", "pop3", "tls", "http", "raw"]),
    proxy_protocol=st.sampled_from(["v2", "v1", "none"]),
    balance=st.sampled_from(["roundrobin", "leastconn", "source", "first", "random"]),
    health=healths,
    timeouts=maybe(connect=durations, server=durations),
    on_down=st.sampled_from(["keep", "close"]),
    owner=owners,
)
_greeted = merged(
    maybe(proxy_protocol=st.sampled_from(["v2", "v1", "none"])),
    st.fixed_dictionaries(
        {
            "application": st.sampled_from(["smtp", "imap", "pop3"]),
            "health": merged(_check, st.just({"type": "greeting"})),
            "servers": st.dictionaries(names, servers, min_size=1, max_size=2),
        }
    ),
)
addresses = st.one_of(v4, v6)
nodes = st.one_of(addresses, merged(st.fixed_dictionaries({"address": addresses}), maybe(weight=st.integers(0, 256))))
backends = st.one_of(
    merged(_pool, st.fixed_dictionaries({"servers": st.dictionaries(names, servers, min_size=1, max_size=4)})),
    merged(_pool, st.fixed_dictionaries({"nodes": st.just("group"), "port": ports})),
    _greeted,
)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """A desired state of any shape that should be valid; where two addresses meet by chance it is not."""
    pools = draw(st.dictionaries(names, backends, min_size=1, max_size=4))
    pool = st.sampled_from(sorted(pools))
    snis = st.one_of(st.just("*"), hosts, hosts.map("*.{}".format))
    routes = st.lists(
        st.fixed_dictionaries({"sni": st.lists(snis, min_size=1, max_size=4), "backend": pool}), max_size=2
    )
    exempt = maybe(exempt=st.lists(networks, max_size=4))
    rate = st.fixed_dictionaries({"connections": counts, "period": durations})
    concurrent = st.fixed_dictionaries({"concurrent": counts})
    limits = st.one_of(merged(rate, exempt), merged(concurrent, exempt), merged(rate, concurrent, exempt))
    frontends = merged(
        st.fixed_dictionaries({"bind": st.lists(endpoints, min_size=1, max_size=3), "backend": pool}),
        maybe(
            maxconn=counts,
            accept_proxy=st.one_of(st.booleans(), st.lists(networks, max_size=4)),
            timeouts=maybe(client=durations),
            allow=st.lists(networks, max_size=20),
            deny=st.lists(networks, max_size=20),
            rate_limit=limits,
            routes=routes,
            owner=owners,
        ),
    )
    # Without a backend a frontend refuses whoever matches no route.
    frontends = st.tuples(frontends, st.booleans()).map(
        lambda drawn: (
            {key: value for key, value in drawn[0].items() if key != "backend"}
            if drawn[1] and drawn[0].get("routes")
            else drawn[0]
        )
    )
    timeouts = maybe(connect=durations, client=durations, server=durations)
    return {
        "version": 1,
        "nodes": {"group": draw(st.dictionaries(names, nodes, min_size=1, max_size=3))},
        "frontends": draw(st.dictionaries(names, frontends, max_size=4)),
        "backends": pools,
        **draw(maybe(name=names, serial=counts, manager=owners, defaults=maybe(maxconn=counts, timeouts=timeouts))),
    }


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), names, endpoints, durations),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """A state with junk put somewhere into it."""
    # A copy: parts of it belong to the strategies, and junk put there would stay for the next example.
    document = copy.deepcopy(draw(states()))
    for _ in range(draw(st.integers(1, 4))):
        at: Any = document
        while True:
            inner = [
                one for one in (at.values() if isinstance(at, dict) else at) if isinstance(one, (dict, list)) and one
            ]
            if not inner or draw(st.booleans()):
                break
            at = draw(st.sampled_from(inner))
        if isinstance(at, dict):
            at[draw(st.one_of(st.sampled_from(sorted(at) or ["x"]), st.text(max_size=6)))] = draw(junk)
        else:
            at[draw(st.integers(0, len(at) - 1)) if at else 0 : 1] = [draw(junk)]
    return document
