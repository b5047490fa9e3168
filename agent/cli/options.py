"""What commands have in common: arguments, options, settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from agent.settings import Settings

DESIRED = click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))


def seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """A duration with its unit, as seconds."""
    from agent.desired.scalars import milliseconds

    try:
        return milliseconds(value) / 1000
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def hex_digits(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """The beginning of a SHA-256."""
    if value and not re.fullmatch(r"[0-9a-f]{12,64}", value):
        raise click.BadParameter("expected at least 12 hex digits of a SHA-256")
    return value


def load_settings(file: Path | None) -> Settings:
    """agent.toml. Raises UsageError."""
    from agent import settings

    return settings.load(file)
