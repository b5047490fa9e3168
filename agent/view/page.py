"""The status page: one sentence, the picture, what is live, what changed.

Places are worked out here and drawn by the template; everything in it comes from the status.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

from agent.reconcile.generation import Generation
from agent.view.status import SCHEMA, AgentStatus, BackendStatus, FrontendStatus, ServerStatus, Status, when

if TYPE_CHECKING:
    import jinja2

T = TypeVar("T")

MOST = 24
"""Nodes of one column that are drawn one by one; beyond it those that are as they should be fold into one."""

_ROW, _TOP, _HEIGHT = 52, 40, 34  # pixels: from node to node, above the first one, of a node
_COLUMNS = {"clients": (10, 90), "frontends": (140, 200), "backends": (465, 155), "servers": (700, 250)}
_WIDTH = 960
_GLYPHS = {"up": "●", "degraded": "▲", "down": "✕", "quarantined": "■", "idle": "○"}
_BAD = ("down", "quarantined", "degraded")
MEANINGS = {
    "MAINT": "taken out, in the document or by hand: no clients, no checks",
    "DRAIN": "no new clients; its sessions go on",
    "NOLB": "no new clients, as its check says",
    "unresolved": "its host name has no address",
    "INI": "not checked yet",
    "UNK": "not known",
    "SOCKERR": "this host could not open a socket for the check",
    "L4OK": "it can be connected to",
    "L4TOUT": "it did not answer in time",
    "L4CON": "it cannot be connected to: refused, or no way there",
    "L6OK": "the TLS handshake succeeded",
    "L6TOUT": "the TLS handshake took too long",
    "L6RSP": "the TLS handshake failed",
    "L7OK": "it answered as it should",
    "L7OKC": "it answered, under a condition",
    "L7TOUT": "it did not answer the check in time",
    "L7RSP": "its answer to the check was no valid one",
    "L7STS": "its answer to the check was an error",
}
"""HAProxy's own words for servers and for the checks that are used here (its management guide, 9.1, `check_status`)."""


@frozen(kw_only=True)
class Node:
    """A box of the picture; pixels."""

    x: int
    """left"""
    y: int
    """top"""
    width: int
    """of the box"""
    title: str
    """first line"""
    text: str
    """second line"""
    state: str
    """as a word"""
    label: str = ""
    """above the box, where no line is: the names that lead to a backend, what a server was found to be"""

    @property
    def glyph(self) -> str:
        """The state as a shape, for readers who do not see the colour."""
        return _GLYPHS.get(self.state, "○")

    @property
    def height(self) -> int:
        """The same for all."""
        return _HEIGHT


@frozen(kw_only=True)
class Edge:
    """A line from the right side of one box to the left side of another; pixels."""

    x1: int
    """begin"""
    y1: int
    """begin"""
    x2: int
    """end"""
    y2: int
    """end"""
    width: float
    """of the line"""
    state: str
    """as a word"""

    @property
    def path(self) -> str:
        """As SVG draws it."""
        middle = (self.x1 + self.x2) // 2
        return f"M{self.x1} {self.y1} C{middle} {self.y1} {middle} {self.y2} {self.x2} {self.y2}"


@frozen(kw_only=True)
class Picture:
    """The picture of the page."""

    nodes: tuple[Node, ...]
    """boxes"""
    edges: tuple[Edge, ...]
    """lines"""
    width: int
    """pixels"""
    height: int
    """pixels"""


def picture(status: Status) -> Picture:
    """From clients through frontends and backends to servers."""
    frontends, backends = status.frontends, {backend.name: backend for backend in status.backends}
    shown, folded = _fold(frontends, lambda frontend: frontend.state == "up")
    wanted = (name for frontend in shown for name in frontend.backends)
    names = list(dict.fromkeys(name for name in wanted if name in backends))[:MOST]
    rows = [(name, server) for name in names for server in backends[name].servers]
    kept, more = _fold(rows, lambda row: _state(row[1]) == "up")
    nodes: list[Node] = []
    edges: list[Edge] = []
    height = _TOP + _ROW * max(len(shown) + bool(folded), len(names), len(kept) + bool(more), 1)
    client = _node("clients", (height - _HEIGHT) // 2, "clients", f"{_sessions(frontends)} sessions", "idle")
    nodes.append(client)
    places: dict[str, Node] = {}
    sent_names = _sent_names(shown)
    for name, y in zip(names, _spread(len(names), height), strict=True):
        pool = backends[name]
        text = f"{pool.application}, PROXY {pool.proxy_protocol}, {pool.servers_up}/{pool.servers_total} up"
        places[name] = _node("backends", y, name, text, _backend_state(pool), ", ".join(sent_names.get(name, ())))
        nodes.append(places[name])
    for frontend, y in zip(shown, _spread(len(shown) + bool(folded), height), strict=False):
        here = _node("frontends", y, frontend.name, _addresses(frontend), frontend.state)
        nodes.append(here)
        edges.append(_edge(client, here, frontend.sessions, frontend.state))
        edges += [
            _edge(here, places[name], frontend.sessions, frontend.state) for name in frontend.backends if name in places
        ]
    if folded:
        y = _spread(len(shown) + 1, height)[-1]
        here = _node("frontends", y, f"and {len(folded)} more", "all of them serve", "up")
        nodes.append(here)
        edges.append(_edge(client, here, _sessions(folded), "up"))
    slots = _spread(len(kept) + bool(more), height)
    for (name, server), y in zip(kept, slots, strict=False):
        probed = server.handshake
        label = probed.result.replace("_", " ") if probed else ""
        here = _node("servers", y, f"{server.name} {server.address}", _checked(server), _state(server), label)
        nodes.append(here)
        state = "down" if probed and probed.mismatch else _state(server)
        edges.append(_edge(places[name], here, server.sessions, state))
    if more:
        here = _node("servers", slots[-1], f"and {len(more)} more", "all of them are up", "up")
        nodes.append(here)
        edges += [_edge(places[name], here, 0, "up") for name in dict.fromkeys(name for name, _ in more)]
    return Picture(nodes=tuple(nodes), edges=tuple(edges), width=_WIDTH, height=height + 10)


def _fold(rows: Sequence[T], is_good: Callable[[T], bool]) -> tuple[list[T], list[T]]:
    """Those that are drawn, and those that are as they should be and fold: what is wrong is always seen, up to MOST."""
    if len(rows) <= MOST:
        return list(rows), []
    bad = [row for row in rows if not is_good(row)][: MOST - 1]
    good = [row for row in rows if is_good(row)]
    left = MOST - 1 - len(bad)
    return [*bad, *good[:left]], good[left:]


def _spread(count: int, height: int) -> list[int]:
    """The upper edges of so many boxes over the height."""
    room = (height - _TOP) / max(count, 1)
    return [round(_TOP + room * index + (room - _HEIGHT) / 2) for index in range(count)]


def _node(column: str, y: int, title: str, text: str, state: str, label: str = "") -> Node:
    x, width = _COLUMNS[column]
    return Node(
        x=x,
        y=y,
        width=width,
        title=_short(title, width),
        text=_short(text, width + 10),
        state=state,
        label=_short(label, width + 10),
    )


def _short(text: str, width: int) -> str:
    """As much as a box has room for."""
    most = width // 7
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _edge(start: Node, end: Node, sessions: int, state: str) -> Edge:
    middle = _HEIGHT // 2
    return Edge(
        x1=start.x + start.width,
        y1=start.y + middle,
        x2=end.x,
        y2=end.y + middle,
        width=round(min(1.2 + (sessions**0.5) / 3, 9), 1),
        state=state,
    )


def _sessions(frontends: Iterable[FrontendStatus]) -> int:
    return sum(frontend.sessions for frontend in frontends)


def _addresses(frontend: FrontendStatus) -> str:
    wrong = [f"{bind.address} {bind.state}" for bind in frontend.binds if bind.state != "listening"]
    return ", ".join(wrong or [bind.address for bind in frontend.binds])


def _sent_names(frontends: Iterable[FrontendStatus]) -> dict[str, dict[str, None]]:
    """By backend: the names (SNI) whose clients are sent there, each once."""
    names_of: dict[str, dict[str, None]] = {}
    for route in (route for frontend in frontends for route in frontend.routes):
        if route.backend is not None:
            names_of.setdefault(route.backend, {}).update(dict.fromkeys(route.sni))
    return names_of


def _backend_state(backend: BackendStatus) -> str:
    if not backend.servers_up:
        return "down"
    return "up" if backend.servers_up >= backend.servers_total else "degraded"


def _state(server: ServerStatus) -> str:
    if server.drained:
        return "idle"
    if server.status.startswith(("UP", "no check")):
        return "up"
    return "idle" if server.status.startswith(("MAINT", "DRAIN")) else "down"


def _checked(server: ServerStatus) -> str:
    drained = "drained" if server.drained else ""
    return ", ".join(part for part in (drained, server.status, server.check, f"{server.sessions} sessions") if part)


def render(status: Status | None, history: Sequence[Generation], *, trouble: Sequence[str] = (), docs: str = "") -> str:
    """The whole page, as HTML. `status` None: before the first one. `trouble`: why nothing on it can be relied on.

    `docs`: where the documents are, "" where that is not known.
    """
    shown = status or _EMPTY
    return _template().render(
        status=shown,
        headline=shown.headline,
        worst="down" if trouble else _worst(shown),
        trouble=trouble,
        picture=picture(shown),
        glyphs=_GLYPHS,
        docs=docs,
        legend=_legend(shown),
        history=[
            {
                "number": generation.number,
                "since": when(generation.at),
                "outcome": generation.outcome,
                "milliseconds": round(generation.seconds * 1_000),
                "serial": generation.serial,
                "digest": generation.digest[:12],
                "actor": generation.actor,
                "reasons": [*generation.reasons[:3], *([f"and {left} more"] if left else [])],
            }
            for generation in reversed(history[-10:])
            for left in (max(len(generation.reasons) - 3, 0),)
        ],
    )


def _legend(status: Status) -> dict[str, str]:
    """What the words mean that servers on this page have, each once."""
    servers = [server for backend in status.backends for server in backend.servers]
    used = {server.check for server in servers} | {server.status.partition(" ")[0] for server in servers}
    return {word: meaning for word, meaning in MEANINGS.items() if word in used}


def _worst(status: Status) -> str:
    """The state of all of it: that of the frontend that is worst off."""
    states = [frontend.state for frontend in status.frontends]
    meant = status.live is not None and status.in_sync  # a document may say that it serves nothing
    if (not states and not meant) or status.haproxy is None:
        return "down"
    return next((state for state in _BAD if state in states), "up" if status.in_sync else "degraded")


_EMPTY = Status(
    schema=SCHEMA,
    at="",
    agent=AgentStatus(version="", pid=0),
    desired=None,
    live=None,
    outcome=None,
    exit_code=None,
    message="",
    remedy="",
    held=None,
    findings=(),
    frontends=(),
    backends=(),
    haproxy=None,
    in_sync=False,
)


@functools.cache
def _template() -> jinja2.Template:
    import jinja2  # of a service whose page nobody opens it would be a sixth of the memory

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agent.templates", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("status.html.j2")
