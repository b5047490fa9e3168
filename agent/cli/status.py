"""`run`, `status`, `history`: the service, and what it does.

Imports at the top are what `agent --version` pays for; whatever is heavier is imported by the command that needs it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from agent import __version__
from agent.cli.options import load_settings
from agent.cli.output import show
from agent.errors import ExitCode, NoAnswerError, UsageError

_log = logging.getLogger("agent")


@click.command(
    epilog="Example: agent --settings /usr/local/etc/edgeagent/agent.toml run", short_help="Run the service."
)
@click.pass_obj
def run(settings_file: Path | None) -> None:
    """The service: watch the desired state and keep HAProxy in sync with it.

    SIGHUP looks now; SIGTERM finishes the step under way and ends. HAProxy goes on serving when the agent stops,
    and is adopted, without a reload, when it starts.
    """
    from agent.host.service_manager import ServiceManager
    from agent.service.daemon import Service
    from agent.service.wiring import Host

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings, manager = load_settings(settings_file), ServiceManager()
    host = Host(settings, command="run")
    host.store.prepare()
    with (
        host.store.service(waiting=lambda holder: _log.warning("another agent has these folders; %s", holder)) as lock,
        host.publisher.web(),
    ):
        try:
            haproxy = host.proxy.version()
        except UsageError as error:  # a package that is being replaced is no reason not to serve
            haproxy = f"({error})"
        _log.info("edgeagent %s, HAProxy %s, desired state %s", __version__, haproxy, settings.desired)
        Service(
            settings=settings,
            reconcile=host.loop.reconcile_and_log,
            changed=host.loop.changed,
            healthy=host.loop.healthy,
            writing=host.loop.writing,
            writes=host.loop.writes,
            keep_lock=lambda: host.backup.keep_lock(lock),
            report=manager.notify,
            looked=lambda: host.publisher.last is not None,
        ).run()
        if host.events is not None:
            host.events.close()


@click.command(
    epilog="Example: agent status --json | jq .frontends", short_help="Show what is live, and how it serves."
)
@click.option("--json", "as_json", is_flag=True, help="status.json: one JSON document.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@click.option("--pid", is_flag=True, help="Only the pid of the running agent, by the lock that it holds.")
@click.pass_obj
def status(settings_file: Path | None, *, as_json: bool, watch: bool, pid: bool) -> None:
    """Every frontend, its addresses and servers; what is live, what is wrong.

    Exit 0 when all is up and the desired state is live, 6 when not, 7 when no agent runs (HAProxy is asked directly
    then).
    """
    from agent.host.files import read_json
    from agent.host.lock import held
    from agent.view import status_table
    from agent.view.status import Status, from_json, to_json

    if pid:
        if as_json or watch:
            raise click.UsageError("--pid goes with no other option")
        _print_pid(settings_file)
    if watch and as_json:
        raise click.UsageError("--watch is for people; a program reads --json when it wants to")
    settings = load_settings(settings_file)
    while True:
        running = held(settings.state)
        now = from_json(read_json(settings.run / "status.json"), Status) if running else None
        if now is None:  # no agent wrote it, or not as this version does
            from agent.service.wiring import Host  # HAProxy is asked: all of the agent is needed

            now = Host(settings, command="status").publisher.status()
        degraded = now.haproxy is None or not now.in_sync or bool(now.not_up)
        code = ExitCode.NO_ANSWER if not running else ExitCode.DEGRADED if degraded else ExitCode.LIVE
        wipe = "\033[H\033[2J" if watch and sys.stdout.isatty() else ""
        text = to_json(now, indent=2) + "\n" if as_json else wipe + status_table.status(now, running=running)
        show(text, code)
        if not watch:
            break
        try:
            time.sleep(1)  # a person looks; status.json gives no event
        except KeyboardInterrupt:
            break
    sys.exit(code)


def _print_pid(settings_file: Path | None) -> NoReturn:
    """For the rc script: pid files go with /var/run, the lock does not."""
    from agent.host.store import Store

    settings = load_settings(settings_file)
    pid = Store(settings.state, settings.run).service_pid()
    if pid is None:
        raise NoAnswerError(f"no agent runs on {settings.state}")
    show(f"{pid}\n", ExitCode.LIVE)
    sys.exit(ExitCode.LIVE)


@click.command(epilog="Example: agent history", short_help="List what was live, and when.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, oldest first.")
@click.pass_obj
def history(settings_file: Path | None, *, as_json: bool) -> None:
    """What was live and when, newest first; what was tried and put back, and what else happened.

    In JSON an entry has the `kind` generation or event.
    """
    from agent.host.store import Store
    from agent.view import history as view

    settings = load_settings(settings_file)
    store = Store(settings.state, settings.run)
    generations, events = store.generations(), store.events()
    if as_json:
        show(json.dumps(view.document(generations, events), indent=2) + "\n", ExitCode.LIVE)
    elif generations or events:
        show(view.text(generations, events), ExitCode.LIVE)
    else:
        click.echo("Nothing was live yet.", err=True)


@click.command(epilog="Example: agent show > live.yaml", short_help="Print the live document, byte for byte.")
@click.argument("generation", required=False, type=click.IntRange(min=1))
@click.pass_obj
def show_document(settings_file: Path | None, generation: int | None) -> None:
    """Print the live document, byte for byte, or that of an earlier GENERATION.

    `agent history` lists the generations. Exit 2 where there is none.
    """
    from agent.host.store import Store

    settings = load_settings(settings_file)
    store = Store(settings.state, settings.run)
    live = store.live()
    number = generation if generation is not None else live.number if live else None
    if number is None:
        raise UsageError("nothing is live yet", remedy="`agent apply FILE` makes a document live")
    if all(known.number != number for known in store.generations()):
        raise UsageError(f"there is no generation {number}", remedy="`agent history` lists them")
    show(store.desired_of(number), ExitCode.LIVE)
