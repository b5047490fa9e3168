"""An address that is left out of the configuration: HAProxy starts whole or not at all (facts.md, HAProxy 1)."""

from __future__ import annotations

from attrs import field, frozen

from agent.desired.stored import is_text


@frozen(kw_only=True)
class Quarantined:
    """An address that is left out because it cannot be bound: `reason` in one word, `detail` for people.

    `holder`: the names of the programs that hold it, "" where the system does not tell.
    """

    frontend: str = field(validator=is_text)
    address: str = field(validator=is_text)
    reason: str = field(validator=is_text)
    detail: str = field(default="", validator=is_text)
    holder: str = field(default="", validator=is_text)
