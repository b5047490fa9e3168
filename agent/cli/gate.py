"""`agent gate` as a command: which calls of an ssh key get through. A refused call starts nothing of the agent."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path

import click

from agent.cli.actor import set_actor
from agent.errors import AgentError, PolicyError, UsageError
from agent.host import caller
from agent.host.syslog import AUTH, to_syslog
from agent.reconcile.actor import clean
from agent.remote import gate as gates
from agent.settings import CONFIG_FOLDER, ENVIRONMENT, Settings

_log = logging.getLogger("agent.gate")


def let_through(main: click.Group, ctx: click.Context, settings: Settings, *, comment: str, dropped: str) -> None:
    """Let a call through, or exit 9. `comment`: of the ssh key, "" where it is not known.

    `dropped`: the EDGEAGENT_SETTINGS that the caller brought along, "" for none.
    """
    to_syslog(_log, "edgeagent gate", AUTH)
    client = caller.key(comment)
    set_actor(ctx.find_root(), client)
    call = os.environ.pop("SSH_ORIGINAL_COMMAND", None)
    if dropped:
        why = f"{ENVIRONMENT} is ignored by the gate: the forced command names its settings (--settings FILE gate)"
        _log.warning("call from %s: %s", client, why)
        click.echo(f"agent: {why}", err=True)
    try:
        arguments = _checked(call, settings)
    except PolicyError as error:
        _log.warning("refused a call from %s: %s", client, error)
        raise
    shown = " ".join(argument if len(argument) < 100 else f"{argument[:40]}..." for argument in arguments)
    _log.info("call from %s: %s", client, shown)
    name, *rest = arguments
    try:
        command = main.get_command(ctx, name)
        assert command is not None, "a call that is let through is a command"
        with command.make_context(name, rest, parent=ctx.parent) as inner:
            command.invoke(inner)
    except SystemExit as end:
        _log.info("call from %s: %s: exit %s", client, name, end.code)
        raise
    except AgentError as error:
        _log.warning("call from %s: %s: %s", client, name, str(error)[:300])
        raise
    except click.UsageError as error:
        _log.warning("refused a call from %s: %s: %s", client, name, error.message[:300])
        raise PolicyError(error.message) from None


def _checked(call: str | None, settings: Settings) -> list[str]:
    arguments = gates.arguments(call)
    if arguments[0] in gates.DRAINING and not settings.sync.allow_drain:
        raise PolicyError(
            f"{arguments[0]} is not let through here", remedy="`allow_drain = true` under [sync] in agent.toml lets it"
        )
    if arguments[0] == "plan" and settings.sync.allowed_signers:
        # A plan asks every server that its document names: not for a stranger's document.
        raise PolicyError("documents are signed here: `agent sync --dry-run` with a signature shows the plan")
    return [*arguments, "--from-gate"] if arguments[0] in gates.TAKES_DOCUMENT else arguments


def print_authorized_key(chosen: Path | None, file: Path) -> None:
    """The line for authorized_keys that gives the public key in `file` the gate, with the settings `chosen`.

    Raises UsageError.
    """
    try:
        text = file.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    settings = ["--settings", str(chosen.absolute())] if chosen else []
    program = Path(sys.argv[0]).absolute()
    how = [sys.executable, "-m", "agent"] if program.name == "__main__.py" else [str(program)]
    try:
        public = gates.public_key(text)
        owner = ["--as", clean(public.comment)] if public.comment else []
        command = " ".join(shlex.quote(word) for word in [*how, *settings, "gate", *owner])
        click.echo(gates.authorized_key(public, command))
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None
    where = chosen.absolute() if chosen else CONFIG_FOLDER / "agent.toml"
    click.echo(f"agent: with this line the gate uses the settings in {where}", err=True)
