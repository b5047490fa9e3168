"""`agent import`: what people have, as a desired state. What it cannot express is listed line by line."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import yaml

from agent.desired.state import parse
from agent.errors import ExitCode, InvalidError, UsageError, Violation
from agent.tools import configxml
from agent.tools.importer import haproxycfg, pfsensecfg
from agent.tools.importer.haproxycfg import Section
from agent.tools.importer.translate import Translation, translate


def main(files: Sequence[Path], *, resolve: bool) -> None:
    """Print the desired state; exit 6 where something is not in it, 3 where it is not valid yet.

    `files`: several are read as HAProxy reads several `-f`; `-` is standard input.
    """
    names = ["standard input" if str(file) == "-" else file.name for file in files]
    sources = [(_bytes(file), name) for file, name in zip(files, names, strict=True)]
    translation = convert_all(sources, address_of if resolve else None)
    text = document(translation, ", ".join(names))
    for skipped_line in translation.left:
        click.echo(f"not expressed: {_comment(str(skipped_line))}", err=True)
    click.echo(text.encode(), nl=False)  # UTF-8, whatever the terminal's
    try:
        parsed = parse(text.encode(), file="the desired state made of it")
    except InvalidError as error:
        click.echo(f"{error}\nagent: mend these by hand, then `agent check`", err=True)
        sys.exit(ExitCode.INVALID)
    frontends, backends = len(parsed.state.frontends), len(parsed.state.backends)
    lines = f"; {len(translation.left)} lines are not expressed" if translation.left else ""
    click.echo(f"{frontends} frontends, {backends} backends{lines}", err=True)
    sys.exit(ExitCode.DEGRADED if translation.left else ExitCode.LIVE)


def address_of(host: str) -> str | None:
    """The first address that the system's resolver has for a host name, IPv4 before IPv6; None where it has none."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    addresses = [str(sockaddr[0]) for _, _, _, _, sockaddr in answers]
    return next((address for address in addresses if ":" not in address), addresses[0] if addresses else None)


def _bytes(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def convert(data: bytes, name: str, resolve: Callable[[str], str | None] | None = None) -> Translation:
    """Either kind of file. Raises InvalidError for what is neither."""
    return convert_all([(data, name)], resolve)


def convert_all(
    sources: Sequence[tuple[bytes, str]], resolve: Callable[[str], str | None] | None = None
) -> Translation:
    """Several files as one, in their order: the sections of each. Raises InvalidError."""
    sections = [section for data, name in sources for section in _sections(data, name)]
    if not any(part.kind in ("frontend", "backend", "listen", "disabled") for part in sections):
        raise InvalidError(sources[0][1], (Violation((), "no frontend, backend or listen section in it"),))
    return translate(sections, resolve)


def _sections(data: bytes, name: str) -> list[Section]:
    if data.lstrip().startswith(b"<"):
        root = configxml.read(data, name)
        if root.tag == "opnsense":
            message = (
                "a config.xml of OPNsense, whose HAProxy plugin is not read; import /usr/local/etc/haproxy.conf of it"
            )
            raise InvalidError(name, (Violation((), message),))
        sections = pfsensecfg.read(root, name)
        if not sections:
            message = "the haproxy package has nothing in it (installedpackages/haproxy)"
            raise InvalidError(name, (Violation((), message),))
        return sections
    if b"\0" in data:
        raise InvalidError(name, (Violation((), "neither XML nor text"),))
    try:
        text = data.decode()
    except UnicodeDecodeError:  # comments of another age
        text = data.decode("latin-1")
    return haproxycfg.read(text, name)


def document(translation: Translation, name: str) -> str:
    """As YAML, with what is not in it on top."""
    lines = [
        f"# Made of {_comment(name)} by `agent import`. Look at it before it goes live: `agent check`, `agent plan`."
    ]
    if translation.left:
        lines += ["# Not expressed:", *(f"#   {_comment(str(skipped_line))}" for skipped_line in translation.left)]
    body = yaml.safe_dump(translation.document, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return "\n".join([*lines, body])


def _comment(text: str) -> str:
    """On one line, whatever it held."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in text)
