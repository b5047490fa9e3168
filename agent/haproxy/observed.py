"""What HAProxy says of itself, as frozen values: the process, its frontends, its servers."""

from __future__ import annotations

from attrs import frozen

from agent.desired.state import Key

_PASSED = ("OK", "OKC")  # L4OK, L6OK, L7OK, L7OKC (HAProxy's management guide, 9.1, check_status)
_NO_CHECK_YET = ("", "UNK", "INI", "SOCKERR")  # SOCKERR: this host had no socket for it, which says nothing of it


FRONTEND_PREFIX = "fe:"
"""In front of a frontend's name in haproxy.cfg, where no name of a document can have it.

From HAProxy 3.3 on a frontend and a backend cannot share a name; 3.2 warns (M: 3.2.26, `This is dangerous and will not
be supported anymore in version 3.3`). A process that an earlier version of the agent started has no prefix.
"""


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
class FrontendStats:
    """A frontend: open for new connections or not, sessions now.

    And since the process began: connections, those denied, bytes from clients and to them. `proxy`: its name in
    haproxy.cfg. `stopped`: it was shut down at the socket, and nothing opens it again in this process.
    """

    name: str
    open: bool
    sessions: int
    connections: int
    denied: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    proxy: str = ""
    stopped: bool = False


@frozen(kw_only=True)
class ServerStats:
    """A server: HAProxy's own word for its state (`UP`, `DOWN`, `MAINT`, `DRAIN`, `no check`, ...).

    `address`: `192.0.2.1:25`, `[2001:db8::1]:25`. `check`: how its last check ended (`L4OK`, `L7STS`, ...; empty or
    `INI`: none yet). `weight`: the one set by configuration or socket. `check_milliseconds`: how long the last check
    took, None where there was none.
    """

    backend: str
    name: str
    status: str
    check: str
    sessions: int
    address: str = ""
    weight: int = 1
    backup: bool = False
    check_milliseconds: int | None = None

    @property
    def key(self) -> Key:
        """Backend and name."""
        return (self.backend, self.name)

    @property
    def up(self) -> bool:
        """Whether new clients are sent to it."""
        return self.status.startswith(("UP", "no check"))

    @property
    def down(self) -> bool:
        """Whether HAProxy thinks it dead."""
        return self.status.startswith("DOWN")

    @property
    def maintenance(self) -> bool:
        """Whether it was taken out, by the file or by hand."""
        return self.status.startswith("MAINT")

    @property
    def draining(self) -> bool:
        """Whether it was set by hand to take no new clients."""
        return self.status.startswith("DRAIN")

    @property
    def wanted(self) -> bool:
        """Whether it counts: not taken out on purpose."""
        return not self.maintenance

    @property
    def passed(self) -> bool | None:
        """How its last check ended; None where there was none yet."""
        word = self.check.removeprefix("* ")
        if word in _NO_CHECK_YET:
            return None
        return word.endswith(_PASSED)


@frozen(kw_only=True)
class Observation:
    """One look at a process."""

    process: Running
    frontends: tuple[FrontendStats, ...]
    servers: tuple[ServerStats, ...]
