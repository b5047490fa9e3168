"""What HAProxy says of itself, as frozen values: the process, its frontends, its servers."""

from __future__ import annotations

from attrs import frozen

from agent.desired.identity import Key

_PASSED = ("OK", "OKC")  # L4OK, L6OK, L7OK, L7OKC (HAProxy's management guide, 9.1, check_status)
_NO_CHECK_YET = ("", "UNK", "INI", "SOCKERR")  # SOCKERR: this host had no socket for it, which says nothing of it


FRONTEND_PREFIX = "fe:"
"""In front of a frontend's name in haproxy.cfg, where no name of a document can have it.

From HAProxy 3.3 on a frontend and a backend cannot share a name; 3.2 warns (M: 3.2.26, `This is dangerous and will not
be supported anymore in version 3.3`). A process that an earlier version of the agent started has no prefix.
"""


@frozen(kw_only=True)
class Running:
    """A HAProxy process that answered on our socket."""

    pid: int
    """process number"""
    version: str
    """of HAProxy"""
    uptime: int
    """seconds"""
    generation: int | None
    """the generation whose file it was started with; None: its file names none"""


@frozen(kw_only=True)
class FrontendStats:
    """A frontend of the running process. Totals count from its start."""

    name: str
    """as in the desired state"""
    open: bool
    """whether it accepts connections"""
    sessions: int
    """current ones"""
    connections: int
    """total"""
    denied: int = 0
    """total of those refused by a rule"""
    bytes_in: int = 0
    """total, from clients"""
    bytes_out: int = 0
    """total, to clients"""
    proxy: str = ""
    """its name in haproxy.cfg"""
    stopped: bool = False
    """it was shut down at the socket; nothing opens it again in this process"""


@frozen(kw_only=True)
class ServerStats:
    """A server of the running process."""

    backend: str
    """its backend"""
    name: str
    """its name"""
    status: str
    """HAProxy's own word: `UP`, `DOWN`, `MAINT`, `DRAIN`, `no check`, ..."""
    check: str
    """result of the last check: `L4OK`, `L7STS`, ...; empty or `INI`: none yet"""
    sessions: int
    """current ones"""
    address: str = ""
    """`192.0.2.1:25` or `[2001:db8::1]:25`"""
    weight: int = 1
    """the one set by configuration or socket"""
    backup: bool = False
    """whether it is a backup"""
    check_milliseconds: int | None = None
    """duration of the last check; None: there was none"""

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
    """which"""
    frontends: tuple[FrontendStats, ...]
    """all that were asked for"""
    servers: tuple[ServerStats, ...]
    """all that were asked for"""
