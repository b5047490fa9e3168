"""What HAProxy can be asked to do over its stats socket: a table of verbs with their replies, and the lines of them.

The replies are HAProxy's own, to the letter (M: 2.6, 2.8, 3.0, 3.2): any other one is a failure.
"""

from __future__ import annotations

import enum
import re

from attrs import frozen

from agent.desired.identity import Key

_MOVED = (
    r"nothing changed|(?:(?:IP changed from '\S+' to '\S+'|no need to change the addr)(?:, )?)?"
    r"(?:port changed from '\d+' to '\d+'|no need to change the port)?(?: by 'stats socket command')"
)


class Verb(enum.Enum):
    """A command's form, for its subject and its value, and the reply that says that it is done."""

    ENABLE_FRONTEND = ("enable frontend {}", r"(?:All sockets are already enabled\.)?")
    ADD_SERVER = ("add server {} {}", r"New server registered\.")
    ENABLE_HEALTH = ("enable health {}", r"")
    SET_STATE = ("set server {} state {}", r"")
    SET_HEALTH = ("set server {} health {}", r"")
    SET_WEIGHT = ("set server {} weight {}", r"")
    SET_ADDRESS = ("set server {} addr {}", _MOVED)
    DELETE_SERVER = ("del server {}", r"Server deleted\.")

    def __init__(self, form: str, reply: str) -> None:
        self.form = form
        self.reply = re.compile(reply)


@frozen
class Command:
    """One line for the stats socket."""

    verb: Verb
    """what to do"""
    subject: str
    """`backend/server`, or the name of a frontend in haproxy.cfg"""
    value: str = ""
    """an argument, such as a weight"""

    def __str__(self) -> str:
        return self.verb.form.format(self.subject, self.value)

    @property
    def server(self) -> Key | None:
        """The server that it is about, None for a frontend."""
        backend, slash, name = self.subject.partition("/")
        return (backend, name) if slash else None

    def succeeded(self, reply: str) -> bool:
        """Whether HAProxy's reply says that it is done."""
        return self.verb.reply.fullmatch(reply) is not None


def of_server(verb: Verb, key: Key, value: str = "") -> Command:
    """A command about a server."""
    return Command(verb, "/".join(key), value)
