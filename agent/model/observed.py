"""What HAProxy says of itself, as frozen values: the process, its frontends, its servers."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Running:
    """A HAProxy process that answered on our socket.

    `generation`: the one whose file it was started with, None where its file does not say.
    `uptime`: seconds.
    """

    pid: int
    version: str
    uptime: int
    generation: int | None


@frozen(kw_only=True)
class FrontendSeen:
    """A frontend: open for new connections or not, sessions now, connections since the process began."""

    name: str
    open: bool
    sessions: int
    connections: int


@frozen(kw_only=True)
class ServerSeen:
    """A server: HAProxy's own word for its state (`UP`, `DOWN`, `MAINT`, `DRAIN`, `no check`, ...)."""

    backend: str
    name: str
    status: str
    check: str
    sessions: int

    @property
    def up(self) -> bool:
        """Whether new clients are sent to it."""
        return self.status.startswith(("UP", "no check"))

    @property
    def wanted(self) -> bool:
        """Whether it counts: not taken out by somebody on purpose."""
        return not self.status.startswith("MAINT")


@frozen(kw_only=True)
class Observation:
    """One look at a process."""

    process: Running
    frontends: tuple[FrontendSeen, ...]
    servers: tuple[ServerSeen, ...]
