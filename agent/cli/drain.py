"""`drain` and `ready`: servers are taken out for new clients, and put back, here or on other hosts by ssh."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent.cli.actor import actor
from agent.cli.options import load_settings, seconds
from agent.cli.output import clear_line, end
from agent.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from agent.desired.identity import Key
    from agent.desired.schema import DesiredState
    from agent.reconcile.generation import Drain
    from agent.reconcile.report import Report
    from agent.service.wiring import Host

POLL_SECONDS = 0.5

_SERVERS = click.argument("names", metavar="SERVER...", nargs=-1, required=True)
_TO = click.option(
    "--to",
    "targets",
    multiple=True,
    metavar="USER@HOST[:PORT]",
    help="On other hosts, by ssh (sync.allow_drain there).",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.command(epilog="Example: agent drain k8s-node2 --wait", short_help="Take servers out for new clients.")
@_SERVERS
@click.option("--force", is_flag=True, help="Even if a frontend that serves now is left without a server.")
@click.option("--wait", is_flag=True, help="Until the last session there has ended.")
@click.option(
    "--timeout", callback=seconds, default="1h", show_default=True, metavar="DURATION", help="How long to wait."
)
@_TO
@_JSON
@click.pass_obj
def drain(settings_file: Path | None, /, names: tuple[str, ...], **options: Any) -> None:
    """Take servers out: they get no new clients, their sessions go on.

    SERVER is BACKEND/SERVER, or a server's name alone: that server of every backend, such as a node. It stays drained
    over reloads, and where HAProxy dies, until `agent ready`, or until the desired state changes that server. Exit 4
    where a frontend that serves now would be left without a server, 7 where sessions last longer than --timeout.
    """
    if options["targets"]:
        _elsewhere("drain", names, options)
    host = DrainHost(settings_file, "drain")
    keys = host.chosen(names)
    with host.lock():
        host.store.set_drains(host.with_drained(keys))
        report = host.reconcile(force=options["force"])  # it forgets what could not be made live
        if not keys <= host.drained():
            _failed("drain", keys, report, options)
    if options["wait"]:
        _wait(host, keys, options)
    left = host.sessions(keys)
    message = f"drained; {left} sessions go on" if left else "drained; no session is left"
    _end("drain", keys, ExitCode.LIVE, message, "", options)


@click.command(epilog="Example: agent ready k8s-node2", short_help="Put drained servers back.")
@_SERVERS
@_TO
@_JSON
@click.pass_obj
def ready(settings_file: Path | None, /, names: tuple[str, ...], **options: Any) -> None:
    """Put servers back that `agent drain` took out: they get new clients again, by the weight in the document."""
    if options["targets"]:
        _elsewhere("ready", names, options)
    host = DrainHost(settings_file, "ready")
    keys = host.chosen(names)
    with host.lock():
        host.store.set_drains(tuple(drain for drain in host.store.drains() if drain.key not in keys))
        report = host.reconcile(force=False)
        if keys & host.drained():
            _failed("ready", keys, report, options)
    _end("ready", keys, ExitCode.LIVE, "ready", "", options)


class DrainHost:
    """This host, as far as draining is about it."""

    def __init__(self, settings_file: Path | None, command: str) -> None:
        from agent.service.wiring import Host

        self._host: Host = Host(load_settings(settings_file), command=command)
        self.store = self._host.store

    def chosen(self, names: tuple[str, ...]) -> frozenset[Key]:
        """The servers that are meant. Raises UsageError."""
        from agent.reconcile import drains

        return frozenset(drains.chosen(self._document(), names))

    def with_drained(self, keys: Collection[Key]) -> tuple[Drain, ...]:
        """The drains of this host, and these servers as begun now."""
        from agent.reconcile import drains

        document = self._document()
        before = drains.active(self.store.drains(), document)
        new = frozenset(keys) - {drain.key for drain in before}
        return (*before, *drains.started(document, new, since=time.time(), by=actor()))

    def lock(self) -> AbstractContextManager[None]:
        """The lock of this host's changes."""
        self.store.prepare()
        return self.store.lock(waiting=lambda holder: click.echo(f"waiting for another change\n{holder}", err=True))

    def reconcile(self, *, force: bool) -> Report:
        """Make it so. The caller holds the lock."""
        from agent.host.signals import deferred

        with deferred(lambda: click.echo("interrupted: it ends when this step is done", err=True)):
            return self._host.loop.reconcile(force=force, actor=actor())

    def drained(self) -> frozenset[Key]:
        """The servers that are drained in the live generation."""
        live = self.store.live()
        return frozenset(live.drained) if live else frozenset()

    def sessions(self, keys: Collection[Key]) -> int:
        """How many are left on these servers. Raises NoAnswerError."""
        return sum(server.sessions for server in self._host.proxy.observe().servers if server.key in keys)

    def _document(self) -> DesiredState:
        live = self.store.live()
        parsed = self._host.assessor.document(live.number) if live else None
        if parsed is None:
            raise UsageError("nothing is live here", remedy="`agent apply FILE` makes a document live")
        return parsed.state


def _wait(host: DrainHost, keys: frozenset[Key], options: dict[str, Any]) -> None:
    """Until no session is left, with a line of progress. Exits 7 at the deadline."""
    deadline = time.monotonic() + options["timeout"]
    shown = -1
    while left := host.sessions(keys):
        if left != shown and not options["as_json"]:
            live = sys.stderr.isatty()
            click.echo(f"\r\033[K{left} sessions ...\r" if live else f"{left} sessions", nl=not live, err=True)
            shown = left
        if time.monotonic() > deadline:
            _end("drain", keys, ExitCode.NO_ANSWER, f"drained; {left} sessions last longer than that", "", options)
        time.sleep(POLL_SECONDS)  # HAProxy gives no event when a session ends
    clear_line()


def _failed(command: str, keys: frozenset[Key], report: Report, options: dict[str, Any]) -> NoReturn:
    """The live generation is not what was asked for."""
    message = report.message or "the live document could not be changed"
    code = report.exit_code or ExitCode.REFUSED  # a reconcile may end well, with something else
    what = "not drained" if command == "drain" else "not put back"
    _end(command, keys, code, f"{what}: {message}", report.remedy or "`agent status` says why", options)


def _end(
    command: str, keys: frozenset[Key], code: ExitCode, message: str, remedy: str, options: dict[str, Any]
) -> NoReturn:
    names = ["/".join(key) for key in sorted(keys)]

    def tell() -> None:
        if options["as_json"]:
            document = {"command": command, "servers": names, "exit_code": int(code), "message": message}
            click.echo(json.dumps(document | ({"remedy": remedy} if remedy else {}), indent=2))
            return
        done = code in (ExitCode.LIVE, ExitCode.NO_ANSWER)
        click.echo(f"{', '.join(names)}: {message}" if done else f"agent: {', '.join(names)}: {message}", err=not done)
        if remedy:
            click.echo(f"agent: {remedy}", err=True)

    end(tell, code)


def _elsewhere(command: str, names: tuple[str, ...], options: dict[str, Any]) -> NoReturn:
    """On each of the hosts, at once; the exit code is the worst."""
    from agent.remote import push

    if options.get("wait"):
        raise click.UsageError("--wait is for this host; `agent status` on the others shows the sessions")
    try:
        targets = [push.target(text) for text in dict.fromkeys(options["targets"])]
        force = ["--force"] if options.get("force") else []
        results = push.run(targets, [command, "--json", *force, *names], seconds=60)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    codes = [code for code, _ in results]
    worst = push.worst(codes)

    def tell() -> None:
        if options["as_json"]:
            hosts = [
                {"to": target.text, "exit_code": int(code), "message": message}
                for target, (code, message) in zip(targets, results, strict=True)
            ]
            click.echo(json.dumps({"command": command, "exit_code": int(worst), "hosts": hosts}, indent=2))
            return
        for target, (_, message) in zip(targets, results, strict=True):
            click.echo(f"{target.text}: {message}")

    end(tell, worst)
