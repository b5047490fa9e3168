"""A listening TCP socket and its holder, as the system lists it."""

from __future__ import annotations

from attrs import frozen

from agent.desired.addresses import Endpoint


@frozen(kw_only=True)
class Listener:
    """A listening TCP socket."""

    endpoint: Endpoint
    """address and port"""
    pid: int | None = None
    """None: the system does not show it to this user"""
    program: str = ""
    """empty: likewise"""

    def __str__(self) -> str:
        program = self.program or "a program that this user may not see"
        return f"{program} (pid {self.pid})" if self.pid else program
