"""What a person runs once, as commands: parse, call. `cli` adds them to its own.

As there, only what `agent --version` pays for is imported at the top.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(epilog="Example: agent demo --stay", short_help="Show the whole thing on loopback.")
@click.option("--stay", is_flag=True, help="Keep it up to play with, until Ctrl-C.")
def demo(*, stay: bool) -> None:
    """The whole thing on loopback, no root: mail servers that demand PROXY v2, and what each client is seen as.

    Ends everything it started. Exit 1 when anything it claims was not so.
    """
    from agent.tools import demo as play

    sys.exit(play.main(stay=stay))


@click.command(
    "import",
    epilog="Example: agent import /cf/conf/config.xml > desired.yaml",
    short_help="Convert a pfSense config.xml or a haproxy.cfg.",
)
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
)
@click.option("--resolve", is_flag=True, help="Write the present address of a server in place of its host name.")
def import_(files: tuple[Path, ...], *, resolve: bool) -> None:
    """A desired state out of what is there: a pfSense config.xml or a haproxy.cfg.

    Several files are read as one, in their order, as HAProxy does; - is standard input.

    Printed as YAML. What it cannot express is listed line by line, there and on stderr: exit 6.
    """
    from agent.tools.importer import command

    command.main(files, resolve=resolve)


@click.command(epilog="Example: agent doctor", short_help="Report whether this host is ready.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def doctor(settings_file: Path | None, *, as_json: bool) -> None:
    """Is this host ready; each finding with its remedy. Touches nothing.

    Exit 0 when all is well, 6 where something should be looked at, 4 where the agent cannot do its work.
    """
    from agent.cli.output import show
    from agent.tools.doctor import report

    text, code = report(settings_file, as_json=as_json)
    show(text, code)
    sys.exit(code)


_ROOT = click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Use this folder as /."
)


@click.command(epilog="Example: python3.11 edgeagent.pyz install", short_help="Install the one file, or upgrade it.")
@_ROOT
@click.option("--revert", is_flag=True, help="Put the version before this one in place again.")
@click.option(
    "--platform",
    type=click.Choice(["pfsense", "freebsd", "linux"]),
    help="Install for this system; else it is detected.",
)
def install(root: Path | None, *, revert: bool, platform: str | None) -> None:
    """Put the one file in place on pfSense, FreeBSD or Linux, or upgrade what is there. Traffic is not touched.

    Settings that are there stay as they are. Nothing of pfSense's own is changed.
    """
    from agent.tools import install as work

    with work.explained():
        work.revert(root) if revert else work.install(root, platform=platform or "")


@click.command(epilog="Example: agent uninstall --purge", short_help="Remove what `install` put there.")
@_ROOT
@click.option("--purge", is_flag=True, help="Also settings, desired state and state; ends HAProxy.")
def uninstall(root: Path | None, *, purge: bool) -> None:
    """Take away what `install` put there. HAProxy goes on serving, and what is yours stays."""
    from agent.tools import install as work

    with work.explained():
        work.uninstall(root, purge=purge)
