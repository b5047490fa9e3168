"""`agent import`: what people have, as a desired state. What it cannot express is listed line by line."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import yaml

from agent.errors import ExitCode, InvalidError, UsageError, Violation
from agent.model.desired import parse
from agent.once import configxml
from agent.once.imports import haproxycfg, pfsensecfg
from agent.once.imports.translate import Translation, translate


def main(file: Path) -> None:
    """Print the desired state; exit 6 where something is not in it, 3 where it is not valid yet."""
    found = convert(_bytes(file), file.name)
    text = document(found, file.name)
    for one in found.left:
        click.echo(f"not expressed: {_comment(str(one))}", err=True)
    click.echo(text.encode(), nl=False)  # UTF-8, whatever the terminal's
    try:
        parsed = parse(text.encode(), file="the desired state made of it")
    except InvalidError as error:
        click.echo(f"{error}\nagent: mend these by hand, then `agent check`", err=True)
        sys.exit(ExitCode.INVALID)
    frontends, backends = len(parsed.state.frontends), len(parsed.state.backends)
    lines = f"; {len(found.left)} lines are not expressed" if found.left else ""
    click.echo(f"{frontends} frontends, {backends} backends{lines}", err=True)
    sys.exit(ExitCode.DEGRADED if found.left else ExitCode.LIVE)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def convert(data: bytes, name: str) -> Translation:
    """Either kind of file. Raises InvalidError for what is neither."""
    if data.lstrip().startswith(b"<"):
        sections = pfsensecfg.read(configxml.read(data, name), name)
        if not sections:
            message = "the haproxy package has nothing in it (installedpackages/haproxy)"
            raise InvalidError(name, (Violation((), message),))
        return translate(sections)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidError(name, (Violation((), f"neither XML nor text: {error.reason}"),)) from None
    sections = haproxycfg.read(text, name)
    if not any(one.kind in ("frontend", "backend", "listen") for one in sections):
        raise InvalidError(name, (Violation((), "no frontend, backend or listen section in it"),))
    return translate(sections)


def document(found: Translation, name: str) -> str:
    """As YAML, with what is not in it on top."""
    lines = [
        f"# Made of {_comment(name)} by `agent import`. Look at it before it goes live: `agent check`, `agent plan`."
    ]
    if found.left:
        lines += ["# Not expressed:", *(f"#   {_comment(str(one))}" for one in found.left)]
    body = yaml.safe_dump(found.document, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return "\n".join([*lines, body])


def _comment(text: str) -> str:
    """On one line, whatever it held."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
