"""The status page: one sentence, the picture, what is live, what changed.

Places are worked out here and drawn by the template; everything in it comes from the status document.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from attrs import frozen

from agent.model.generation import Generation
from agent.view.status import headline, when

MOST = 24
"""Nodes of one column that are drawn one by one; beyond it those that are as they should be fold into one."""

_ROW, _TOP, _HEIGHT = 46, 34, 34  # pixels: from node to node, above the first one, of a node
_COLUMNS = {"clients": (10, 90), "frontends": (140, 200), "backends": (465, 155), "servers": (700, 250)}
_WIDTH = 960
_LABEL = 133  # pixels: between a frontend and a backend there is room for 19 letters
_GLYPHS = {"up": "●", "degraded": "▲", "down": "✕", "quarantined": "■", "idle": "○"}
_BAD = ("down", "quarantined", "degraded")


@frozen(kw_only=True)
class Node:
    """A box: where it is (pixels), what it says, and its state as a word."""

    x: int
    y: int
    width: int
    title: str
    text: str
    state: str

    @property
    def glyph(self) -> str:
        """The state as a shape, for whoever does not see the colour."""
        return _GLYPHS.get(self.state, "○")

    @property
    def height(self) -> int:
        """The same for all."""
        return _HEIGHT


@frozen(kw_only=True)
class Edge:
    """A line from the right side of one box to the left side of another."""

    x1: int
    y1: int
    x2: int
    y2: int
    width: float
    state: str
    label: str = ""

    @property
    def path(self) -> str:
        """As SVG draws it."""
        middle = (self.x1 + self.x2) // 2
        return f"M{self.x1} {self.y1} C{middle} {self.y1} {middle} {self.y2} {self.x2} {self.y2}"


@frozen(kw_only=True)
class Picture:
    """All of it, with its size in pixels."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    width: int
    height: int


def picture(document: Mapping[str, Any]) -> Picture:
    """From clients through frontends and backends to servers."""
    frontends, backends = document.get("frontends", ()), document.get("backends", ())
    shown, folded = _fold(frontends, "state", ("up",))
    pools = {one["name"]: one for one in backends}
    wanted = [name for one in shown for name in one["backends"]]
    names = list(dict.fromkeys(name for name in wanted if name in pools))[:MOST]
    rows = [(name, server) for name in names for server in pools[name]["servers"]]
    kept, more = _fold([{**server, "pool": name, "word": _server(server)} for name, server in rows], "word", ("up",))
    nodes: list[Node] = []
    edges: list[Edge] = []
    height = _TOP + _ROW * max(len(shown) + bool(folded), len(names), len(kept) + bool(more), 1)
    client = _node("clients", (height - _HEIGHT) // 2, "clients", f"{_sessions(frontends)} sessions", "idle")
    nodes.append(client)
    places: dict[str, Node] = {}
    for one, y in zip(names, _spread(len(names), height), strict=True):
        pool = pools[one]
        state = _pool_state(pool)
        text = f"{pool['application']}, PROXY {pool['proxy_protocol']}, {pool['servers_up']}/{pool['servers_total']} up"
        places[one] = _node("backends", y, one, text, state)
        nodes.append(places[one])
    for one, y in zip(shown, _spread(len(shown) + bool(folded), height), strict=False):
        here = _node("frontends", y, one["name"], _addresses(one), one["state"])
        nodes.append(here)
        edges.append(_edge(client, here, one["sessions"], one["state"]))
        names_of = _sent_names(one)
        edges += [
            _edge(here, places[name], one["sessions"], one["state"], names_of.get(name, ""))
            for name in one["backends"]
            if name in places
        ]
    if folded:
        y = _spread(len(shown) + 1, height)[-1]
        here = _node("frontends", y, f"and {len(folded)} more", "all of them serve", "up")
        nodes.append(here)
        edges.append(_edge(client, here, _sessions(folded), "up"))
    slots = _spread(len(kept) + bool(more), height)
    for server, y in zip(kept, slots, strict=False):
        here = _node("servers", y, f"{server['name']} {server['address']}", _checked(server), server["word"])
        nodes.append(here)
        met = server.get("handshake")
        label = met["result"].replace("_", " ") if met else ""
        state = "down" if met and met["mismatch"] else server["word"]
        edges.append(_edge(places[server["pool"]], here, server["sessions"], state, label))
    if more:
        here = _node("servers", slots[-1], f"and {len(more)} more", "all of them are up", "up")
        nodes.append(here)
        edges += [_edge(places[name], here, 0, "up") for name in dict.fromkeys(one["pool"] for one in more)]
    return Picture(nodes=tuple(nodes), edges=tuple(edges), width=_WIDTH, height=height + 10)


def _fold(
    found: Sequence[dict[str, Any]], key: str, good: tuple[str, ...]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that are drawn, and those that are as they should be and fold: what is wrong is always seen, up to MOST."""
    if len(found) <= MOST:
        return list(found), []
    bad = [one for one in found if one[key] not in good][: MOST - 1]
    some = [one for one in found if one[key] in good]
    left = MOST - 1 - len(bad)
    return [*bad, *some[:left]], some[left:]


def _spread(count: int, height: int) -> list[int]:
    """The upper edges of so many boxes over the height."""
    room = (height - _TOP) / max(count, 1)
    return [round(_TOP + room * index + (room - _HEIGHT) / 2) for index in range(count)]


def _node(column: str, y: int, title: str, text: str, state: str) -> Node:
    x, width = _COLUMNS[column]
    return Node(x=x, y=y, width=width, title=_short(title, width), text=_short(text, width + 40), state=state)


def _short(text: str, width: int) -> str:
    """As much as a box has room for."""
    most = width // 7
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _edge(start: Node, end: Node, sessions: int, state: str, label: str = "") -> Edge:
    middle = _HEIGHT // 2
    return Edge(
        x1=start.x + start.width,
        y1=start.y + middle,
        x2=end.x,
        y2=end.y + middle,
        width=round(min(1.2 + (sessions**0.5) / 3, 9), 1),
        state=state,
        label=label,
    )


def _sessions(frontends: Iterable[Mapping[str, Any]]) -> int:
    return sum(one["sessions"] for one in frontends)


def _addresses(frontend: Mapping[str, Any]) -> str:
    wrong = [f"{one['address']} {one['state']}" for one in frontend["binds"] if one["state"] != "listening"]
    return ", ".join(wrong or [one["address"] for one in frontend["binds"]])


def _sent_names(frontend: Mapping[str, Any]) -> dict[str, str]:
    """By backend: the names (SNI) whose clients are sent there, as many as a line has room for."""
    found: dict[str, list[str]] = {}
    for route in frontend.get("routes", ()):
        if route["backend"] is not None:
            found.setdefault(route["backend"], []).extend(route["sni"])
    return {backend: _short(", ".join(names), _LABEL) for backend, names in found.items()}


def _pool_state(pool: Mapping[str, Any]) -> str:
    if not pool["servers_up"]:
        return "down"
    return "up" if pool["servers_up"] >= pool["servers_total"] else "degraded"


def _server(server: Mapping[str, Any]) -> str:
    status = str(server["status"])
    if status.startswith(("UP", "no check")):
        return "up"
    return "idle" if status.startswith(("MAINT", "DRAIN")) else "down"


def _checked(server: Mapping[str, Any]) -> str:
    return ", ".join(
        str(part) for part in (server["status"], server["check"], f"{server['sessions']} sessions") if part
    )


def render(document: Mapping[str, Any], history: Sequence[Generation], *, trouble: Sequence[str] = ()) -> str:
    """The whole page, as HTML. `trouble`: why nothing on it can be relied on."""
    whole = {**_EMPTY, **document}
    return _template().render(
        document=whole,
        headline=headline(whole),
        worst="down" if trouble else _worst(whole),
        trouble=trouble,
        picture=picture(whole),
        glyphs=_GLYPHS,
        history=[
            {
                "number": one.number,
                "since": when(one.at),
                "outcome": one.outcome,
                "milliseconds": round(one.seconds * 1_000),
                "serial": one.serial,
                "digest": one.digest[:12],
                "reasons": "; ".join(one.reasons[:3]),
            }
            for one in reversed(history[-10:])
        ],
    )


def _worst(document: Mapping[str, Any]) -> str:
    """The state of all of it: that of the frontend that is worst off."""
    states = [one["state"] for one in document["frontends"]]
    meant = document.get("live") is not None and document["in_sync"]  # a document may say that it serves nothing
    if (not states and not meant) or document.get("haproxy") is None:
        return "down"
    fine = "up" if document["in_sync"] else "degraded"
    return next((word for word in _BAD if word in states), fine)


_EMPTY: dict[str, Any] = {
    "at": "",
    "agent": {},
    "live": None,
    "haproxy": None,
    "held": None,
    "in_sync": False,
    "not_in_sync": None,
    "events": [],
    "outcome": None,
    "message": "",
    "remedy": "",
    "findings": [],
    "frontends": [],
    "backends": [],
}


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agent.templates", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("status.html.j2")
