"""`stop-haproxy`: the end of service on this host, on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.actor import actor
from agent.cli.options import load_settings
from agent.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from agent.host.processes import Process

POLL_SECONDS = 0.05
TERM_SECONDS = 5.0  # HAProxy ends at once on SIGTERM; one that does not is killed


@click.command(epilog="Example: agent stop-haproxy --soft", short_help="End HAProxy: nothing is served any more.")
@click.option(
    "--soft", is_flag=True, help="Close the listeners, and let sessions end, at most haproxy.hard_stop_after."
)
@click.pass_obj
def stop_haproxy(settings_file: Path | None, *, soft: bool) -> None:
    """End HAProxy, replaced processes too: nothing is served any more. Only what was started on our own configuration.

    Stopping the agent never does that; this is for the day on which a host is taken out. Beside a running agent it is
    refused (exit 4), because the agent starts HAProxy again. `agent apply` or `agent run` serve what was live before.
    """
    from agent.errors import RefusedError, StoreError
    from agent.host import processes
    from agent.host.store import Store
    from agent.reconcile.event import Event, Kind

    settings = load_settings(settings_file)
    store = Store(settings.state, settings.run, keep=settings.apply.keep_generations)
    if not store.state.exists():
        raise UsageError(f"{store.state} is not there: no agent of these settings has ever run here")
    with store.lock(waiting=lambda holder: click.echo(f"waiting for another change\n{holder}", err=True)):
        if store.service_running():
            raise RefusedError(
                f"an agent runs (pid {store.service_pid()}), and would start HAProxy again",
                remedy="stop its service first: `service edgeagent stop`, `systemctl stop edgeagent`",
            )
        ours = processes.started_on(store.config, programs=store.state / "bin")
        if not ours:
            click.echo("no HAProxy of ours runs")
            return
        for process in ours:
            _signal(process, signal.SIGUSR1 if soft else signal.SIGTERM)
        now = time.time()
        pids = ", ".join(str(process.pid) for process in ours)
        message = f"HAProxy was ended on purpose{', softly' if soft else ''} (pid {pids})"
        stopped = Event(
            kind=Kind.HAPROXY_STOPPED.value, subject="haproxy", message=message, at=now, until=now, actor=actor()
        )
        try:
            store.add_events([stopped])
        except StoreError as error:  # a full disk costs the record of it
            click.echo(f"agent: {error}", err=True)
    if soft:
        click.echo(
            f"{_named(ours)}: no new clients; sessions may go on for {settings.haproxy.hard_stop_after // 1000} s"
        )
        return
    left = _wait(ours, TERM_SECONDS)
    for process in left:
        _signal(process, signal.SIGKILL)
    if stuck := _wait(left, TERM_SECONDS):
        click.echo(f"agent: {_named(stuck)} does not end", err=True)
        sys.exit(ExitCode.NO_ANSWER)
    click.echo(f"ended {_named(ours)}")


def _named(ours: tuple[Process, ...]) -> str:
    return f"HAProxy, pid {', '.join(str(process.pid) for process in ours)}"


def _signal(process: Process, number: signal.Signals) -> None:
    """Raises UsageError where that is not allowed."""
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:  # it has ended by itself
        return
    except PermissionError:
        raise UsageError(f"HAProxy, pid {process.pid}, is another user's", remedy="run this as root") from None


def _wait(ours: tuple[Process, ...], seconds: float) -> tuple[Process, ...]:
    """Those that still run at the end."""
    from agent.host import processes

    deadline = time.monotonic() + seconds
    while True:
        left = tuple(process for process in ours if processes.alive(process.pid))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_SECONDS)  # not our child: there is no event for its end
