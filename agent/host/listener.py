"""A listening TCP socket and its holder, as the system lists it."""

from __future__ import annotations

from attrs import frozen

from agent.desired.addresses import Endpoint


@frozen(kw_only=True)
class Listener:
    """A listening TCP socket. `pid` None and `program` "": the system does not tell this user."""

    endpoint: Endpoint
    pid: int | None = None
    program: str = ""

    def __str__(self) -> str:
        program = self.program or "a program that this user may not see"
        return f"{program} (pid {self.pid})" if self.pid else program
