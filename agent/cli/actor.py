"""Who calls this command, for the history."""

from __future__ import annotations

import click

from agent.host import caller

_KEY = "agent.actor"


def actor() -> str:
    """The user, or the owner of the ssh key whose call the gate let through."""
    context = click.get_current_context(silent=True)
    return str(context.meta[_KEY]) if context is not None and _KEY in context.meta else caller.user()


def set_actor(context: click.Context, name: str) -> None:
    """For this command and those that it calls."""
    context.meta[_KEY] = name
