"""What servers were found to be, as it is remembered."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import in_

from agent.desired.stored import is_number, is_seconds, is_text, read_as
from agent.proxy_protocol.greetings import Result

Asked = tuple[str, str, str, str, str]
"""A question as a key: backend, server, address, application, version."""


@frozen(kw_only=True)
class Handshake:
    """What a server was found to be, as it is remembered."""

    backend: str = field(validator=is_text)
    """its backend"""
    server: str = field(validator=is_text)
    """its name"""
    address: str = field(validator=is_text)
    """address and port"""
    application: str = field(validator=is_text)
    """what was spoken"""
    version: str = field(validator=is_text)
    """which header was sent"""
    result: str = field(validator=in_([member.value for member in Result]))
    """a `greetings.Result`"""
    detail: str = field(validator=is_text)
    """what was received"""
    subject: str = field(validator=is_text)
    """common name of its certificate"""
    milliseconds: int = field(validator=is_number)
    """duration"""
    at: float = field(validator=is_seconds)
    """seconds since the epoch"""
    digest: str = field(validator=is_text)
    """of the document that it was probed for"""

    @property
    def key(self) -> tuple[str, str]:
        """Backend and server."""
        return (self.backend, self.server)

    @property
    def asked(self) -> Asked:
        """What was asked: of which server, where, and how."""
        return (self.backend, self.server, self.address, self.application, self.version)


def handshakes(value: object) -> tuple[Handshake, ...]:
    """Handshakes out of values or of JSON objects. Raises TypeError, ValueError."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"handshakes: {value!r} is no list")
    return tuple(item if isinstance(item, Handshake) else read_as(Handshake, item) for item in value)
