"""The group of all commands, and how errors become messages and exit codes.

A command's module is imported when it is called; imports at the top of it are what each of its commands pays for.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from pathlib import Path
from typing import Any

import click

from agent import __version__
from agent.cli.output import UNWRITABLE, lost, prepare_streams
from agent.errors import AgentError, InvalidError

COMMANDS = {
    "run": "status",
    "check": "check",
    "schema": "check",
    "plan": "apply",
    "apply": "apply",
    "sync": "remote",
    "discover": "remote",
    "gate": "remote",
    "status": "status",
    "history": "status",
    "show": "status",
    "rollback": "apply",
    "drain": "drain",
    "ready": "drain",
    "stop-haproxy": "stop",
    "probe": "proxy",
    "echo": "proxy",
    "demo": "tools",
    "doctor": "tools",
    "import": "tools",
    "install": "tools",
    "uninstall": "tools",
}
"""The module of each command, in the order in which the help shows them."""


_FUNCTIONS = {"import": "import_", "show": "show_document", "stop-haproxy": "stop_haproxy"}
"""The function of a command that has not its name."""


class _Commands(click.Group):
    """Turns what the agent says on purpose into a message and an exit code; everything else is a bug and looks so."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # click's own signature
        prepare_streams()
        collect_seldom()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # of --help and --version, which click writes before any command runs
            if error.errno in UNWRITABLE and error.filename is None:
                lost(error)
            raise

    def invoke(self, ctx: click.Context) -> Any:  # likewise
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except AgentError as error:
            _complain(error)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno in UNWRITABLE and error.filename is None:
                lost(error)
            raise
        return result

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)  # in the order in which a person needs them, not of the alphabet

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Only the command that is called is imported."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"agent.cli.{COMMANDS[name]}")
        command: click.Command = getattr(module, _FUNCTIONS.get(name, name))
        return command


def collect_seldom() -> None:
    """Garbage collection, set for processes that end at once, and for one whose state is large and lives on.

    Collecting among modules that are being imported, and once more among all of them at the end of the process, takes
    a fifth of a short command; collecting among half a million objects of a large state, a tenth of each reconcile.
    """
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


def _complain(error: AgentError) -> None:
    click.echo(str(error) if isinstance(error, InvalidError) else f"agent: {error}", err=True)
    if error.remedy:
        click.echo(f"agent: {error.remedy}", err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="edgeagent", message="%(prog)s %(version)s")
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="agent.toml; else EDGEAGENT_SETTINGS, else the default path of the system.",
)
@click.pass_context
def main(ctx: click.Context, settings_file: Path | None) -> None:
    """Keeps one HAProxy in sync with one desired-state file, and never breaks what works.

    \b
    Exit codes: 0 live, 1 a bug, 2 usage, 3 invalid desired state, 4 refused before anything was
    touched, 5 applied, got worse, rolled back, 6 live but degraded, 7 no answer in time, 8 ssh
    failed, 9 refused by policy.

    \b
    Completion, for bash (zsh and fish alike):
      eval "$(_AGENT_COMPLETE=bash_source agent)"
    """  # noqa: D301  # click looks for the character itself
    ctx.obj = settings_file
