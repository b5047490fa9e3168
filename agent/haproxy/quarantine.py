"""An address that is left out of the configuration: HAProxy starts whole or not at all (facts.md, HAProxy 1)."""

from __future__ import annotations

from attrs import field, frozen

from agent.desired.stored import is_text


@frozen(kw_only=True)
class Quarantined:
    """An address that is left out because it cannot be bound."""

    frontend: str = field(validator=is_text)
    """its frontend"""
    address: str = field(validator=is_text)
    """address and port"""
    reason: str = field(validator=is_text)
    """one word: `in_use`, `no_such_address`, `not_permitted` or `failed`"""
    detail: str = field(default="", validator=is_text)
    """a sentence"""
    holder: str = field(default="", validator=is_text)
    """names of the programs that hold it; empty: the system does not show them"""
