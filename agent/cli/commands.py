"""The command line, and the composition root: every command parses, calls, prints.

Imports at the top are what `agent --version` pays for; whatever is heavier is imported by the command that needs
it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent import __version__
from agent.cli import tools as once
from agent.cli.output import UNWRITABLE, end, lost, prepare_streams, show
from agent.errors import AgentError, ExitCode, InvalidError, NoAnswerError, Outcome, UsageError

if TYPE_CHECKING:
    from agent.reconcile.report import Report
    from agent.service.wiring import Host
    from agent.settings import Settings

_log = logging.getLogger("agent")


class _Commands(click.Group):
    """Turns what the agent says on purpose into a message and an exit code; everything else is a bug and looks so."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # click's own signature
        prepare_streams()
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
        return list(self.commands)  # in the order of the story, not of the alphabet


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
    help="agent.toml; else EDGEAGENT_SETTINGS, else the platform's own place.",
)
@click.pass_context
def main(ctx: click.Context, settings_file: Path | None) -> None:
    """Keeps one HAProxy true to one desired-state file, and never breaks what works.

    \b
    Exit codes: 0 live, 1 a bug, 2 usage, 3 invalid desired state, 4 refused before anything was
    touched, 5 applied, got worse, rolled back, 6 live but degraded, 7 no answer in time, 8 ssh
    failed, 9 refused by policy.

    \b
    Completion, for bash (zsh and fish alike):
      eval "$(_AGENT_COMPLETE=bash_source agent)"
    """  # noqa: D301  # click looks for the character itself
    ctx.obj = settings_file


_DESIRED = click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))


# --- commands ---------------------------------------------------------------------------------------------------


@main.command(epilog="Example: agent --settings /usr/local/etc/edgeagent/agent.toml run")
@click.pass_obj
def run(settings_file: Path | None) -> None:
    """The service: watch the desired state and keep HAProxy true to it.

    SIGHUP looks now; SIGTERM finishes the step under way and ends. HAProxy goes on serving when the agent stops,
    and is adopted, without a reload, when it starts.
    """
    from agent.service.daemon import Service
    from agent.service.wiring import Host

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = _settings(settings_file)
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
        ).run()
        if host.events is not None:
            host.events.close()


@main.command(epilog="Example: agent check examples/mail-edge.yaml")
@_DESIRED
@click.pass_obj
def check(settings_file: Path | None, file: Path | None) -> None:
    """Validate a desired state: every violation with its line. Touches nothing, needs no HAProxy.

    FILE is the configured desired state where it is left out, standard input where it is `-`. Exit 3 when
    invalid.
    """
    from agent.desired.state import Limits, parse
    from agent.haproxy.config import CONFIG_TEMPLATE, render
    from agent.host import templates
    from agent.host.desired_file import label, read
    from agent.host.haproxy_process import file_limit
    from agent.service.wiring import process_of

    settings = _settings(settings_file)
    path = file or settings.desired
    data = read(path, settings)
    limits = Limits(process_maxconn=settings.haproxy.maxconn, file_limit=file_limit())
    parsed = parse(data, file=label(path), max_bytes=settings.sync.max_bytes, limits=limits)
    render(parsed.state, process_of(settings), templates.load(CONFIG_TEMPLATE, settings.paths.templates))
    for finding in parsed.findings:
        click.echo(f"warning: {finding.text(label(path))}", err=True)
    state = parsed.state
    show(
        f"{label(path)}: valid: {len(state.frontends)} frontends, {len(state.backends)} backends, "
        f"{sum(len(backend.servers) for backend in state.backends)} servers, sha256 {parsed.digest[:12]}\n",
        ExitCode.LIVE,
    )


@main.command(epilog="Example: agent plan new.yaml")
@_DESIRED
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--from-gate", is_flag=True, hidden=True)
@click.pass_obj
def plan(settings_file: Path | None, file: Path | None, *, as_json: bool, from_gate: bool) -> None:
    """What would change, and why: no-op, runtime or reload; a unified diff of haproxy.cfg. Touches nothing.

    Addresses are tried, new servers are asked whether they answer, and the result is put before `haproxy -c`.
    Exit 3 when invalid, 4 when it would be refused.
    """
    from agent.host.desired_file import GATE_SECONDS, label, read, read_in_time
    from agent.service.wiring import Host
    from agent.view import tables

    settings = _settings(settings_file)
    path = file or settings.desired
    host = Host(settings, command="plan", file=path)
    data = read_in_time(path, settings, GATE_SECONDS) if from_gate else read(path, settings)
    preview = host.preview(data)
    findings = (*preview.parsed.findings, *preview.findings)
    refused = (*preview.objections, *preview.outages)
    code = ExitCode.REFUSED if refused else ExitCode.LIVE
    step = (preview.plan, preview.diff, preview.sessions, preview.handshakes)
    if as_json:
        document = tables.plan_document(*step) | {
            "digest": preview.parsed.digest,
            "findings": [finding.text(label(path)) for finding in findings],
            "refused": list(refused),
        }
        show(json.dumps(document, indent=2) + "\n", code)
    else:
        for finding in findings:
            click.echo(f"warning: {finding.text(label(path))}", err=True)
        show(tables.plan(*step, running=preview.running), code)
    if refused:
        click.echo(f"agent: would be refused: {'; '.join(refused)}", err=True)
    sys.exit(code)


@main.command(epilog="Example: agent apply new.yaml")
@_DESIRED
@click.option("--force", is_flag=True, help="Even if a frontend that serves now is left without a server that answers.")
@click.option(
    "--retry", is_flag=True, help="Even if it is held: it was rolled back, or `agent rollback` put another back."
)
@click.pass_obj
def apply(settings_file: Path | None, file: Path | None, *, force: bool, retry: bool) -> None:
    """Make the desired state live now, and say what became of it.

    FILE becomes the desired state: a valid one is copied into its place, an invalid one touches nothing. Beside a
    running agent, apply waits its turn. What would leave a frontend that serves now without a server that answers
    is refused.
    """
    from agent.desired.state import parse
    from agent.host.desired_file import beside, label, read
    from agent.host.file_writes import writer
    from agent.host.signals import deferred
    from agent.service.wiring import Host

    settings = _settings(settings_file)
    host = Host(settings, command="apply", on_stage=_progress())
    host.proxy.version()  # without HAProxy nothing can be applied: say so before anything is touched
    data: bytes | None = None
    if file is not None:
        data = read(file, settings)
        signature = beside(file)
        host.intake.verify(data, signature)
        parsed = parse(data, file=label(file), max_bytes=settings.sync.max_bytes)
    elif busy := writer(settings.desired):
        raise UsageError(f"{settings.desired} is being written by {busy}", remedy="wait for its end, and apply it then")
    host.store.prepare()
    with host.store.lock(waiting=_say_who_is_waited_for):
        if data is not None:
            host.backup.admit(parsed)
            host.intake.put(data, signature)
        with deferred(_say_that_it_ends_after_the_step):
            report = host.loop.reconcile(force=force, retry=retry)
    stored = "" if file is None else f"{label(file)} is stored as {settings.desired}; {_again(host, settings, report)}"
    end(lambda: _print_report(report, stored=stored), report.exit_code)


def _say_that_it_ends_after_the_step() -> None:
    click.echo("interrupted: it ends when this step is done and judged, within seconds", err=True)


def _say_who_is_waited_for(holder: str) -> None:
    click.echo(f"waiting for another change to finish\n{holder}", err=True)


def _again(host: Host, settings: Settings, report: Report) -> str:
    """When a document that did not go live is tried again."""
    from agent.desired.structure import duration

    if report.outcome is Outcome.ROLLED_BACK:
        return "it is held until it changes or --retry is given"
    if not host.store.service_running():
        return "no agent runs: `agent apply` tries it again"
    return f"the running agent tries it again every {duration(settings.apply.resync)}"


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    from agent.desired.structure import milliseconds

    try:
        return milliseconds(value) / 1000
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _hex(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value and not re.fullmatch(r"[0-9a-f]{12,64}", value):
        raise click.BadParameter("expected at least 12 hex digits of a SHA-256")
    return value


@main.command(epilog="Example: agent sync desired.yaml --to admin@192.0.2.1 --to admin@192.0.2.2 --sign KEY")
@_DESIRED
@click.option(
    "--to", "targets", multiple=True, metavar="USER@HOST[:PORT]", help="An agent to hand it to, by ssh; repeat."
)
@click.option("--ordered", is_flag=True, help="One after the other, until one is not live (a CARP pair: backup first).")
@click.option("--dry-run", is_flag=True, help="Only the plan, preflight included; exit as `agent plan`.")
@click.option("--no-wait", is_flag=True, help="Hand it over, and do not wait for what becomes of it.")
@click.option("--timeout", callback=_seconds, default="30s", show_default=True, help="How long to wait for an answer.")
@click.option("--if-live", callback=_hex, default="", metavar="DIGEST", help="Only if this is what is live now.")
@click.option(
    "--sign", "key", type=click.Path(path_type=Path, dir_okay=False), metavar="KEY", help="Sign it with this ssh key."
)
@click.option("--force", is_flag=True, help="Even if a frontend that serves now is left without a server that answers.")
@click.option(
    "--retry", is_flag=True, help="Even if it is held: it was rolled back, or `agent rollback` put another back."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--digest", callback=_hex, default="", help="Its SHA-256: half of a document is not taken.")
@click.option("--signature", default="", hidden=True)
@click.option("--from-gate", is_flag=True, hidden=True)
@click.pass_obj
def sync(settings_file: Path | None, /, file: Path | None, **options: Any) -> None:
    """Hand a desired state to the agent here, or by ssh to one or many, and wait for what becomes of it.

    FILE (`-`: standard input) becomes the desired state of each, to the byte. Its serial only grows: a lower one is
    refused (exit 9). A signature in FILE.sig is sent with it. The exit code is the agent's own; of many, the worst.
    """
    from agent.cli import sync

    sync.sync(_settings(settings_file), file, sync.Options(**options))


@main.command(epilog="Example: agent discover --base base.yaml > desired.yaml")
@click.option(
    "--base",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A desired state that is put underneath: binds, SNI routes, what the cluster does not know.",
)
@click.option("--bind", multiple=True, metavar="ADDRESS", help="Where Services that name no address are bound; repeat.")
@click.option(
    "-n", "--namespace", "namespaces", multiple=True, metavar="NAME", help="Only Services of this namespace; repeat."
)
@click.option("--kubeconfig", default="", metavar="FILE", help="Else as kubectl finds it, or the pod's own account.")
@click.option("--context", default="", metavar="NAME", help="One of the kubeconfig.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of YAML.")
@click.option("--watch", is_flag=True, help="Keep the firewalls of --to in step with the cluster, for ever.")
@click.option(
    "--to", "targets", multiple=True, metavar="USER@HOST[:PORT]", help="With --watch: an agent to push to; repeat."
)
@click.option("--timeout", callback=_seconds, default="30s", show_default=True, help="How long a push may take.")
@click.option(
    "--sign", "key", type=click.Path(path_type=Path, dir_okay=False), metavar="KEY", help="Sign what is pushed."
)
@click.option("--listen", default="", metavar="ADDR:PORT", help="With --watch: /metrics, /healthz, /readyz.")
@click.option(
    "--lease-namespace", default="", metavar="NAME", help="Where replicas agree on a leader; else the one it runs in."
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=1_048_576,
    show_default=True,
    help="What the firewall takes (its sync.max_bytes).",
)
def discover(**options: Any) -> None:
    """A desired state out of a Kubernetes cluster: Services with edgeagent.io/ annotations, Nodes, EndpointSlices.

    Printed as YAML; what is wrong with a Service is told on stderr, and leaves the others alone (exit 6). Where the
    base and a Service are at odds, both places are named and nothing is printed (exit 3). Needs the extra `cluster`.

    \b
      kubectl annotate service mail edgeagent.io/expose="smtp=25" edgeagent.io/bind=192.0.2.1
      agent discover > desired.yaml && agent sync desired.yaml --to admin@192.0.2.1
    """  # noqa: D301  # click looks for the character itself
    from agent.cli import discover as cluster

    if options["watch"] and not options["targets"]:
        raise click.UsageError("--watch needs --to: whom to keep in step")
    if not options["watch"] and (options["targets"] or options["listen"] or options["key"]):
        raise click.UsageError(
            "--to, --sign and --listen belong to --watch; once: agent discover | agent sync - --to ..."
        )
    cluster.discover(cluster.Options(**options))


@main.command(epilog="Example: agent gate --print-authorized-key ~/.ssh/id_ed25519.pub")
@click.option(
    "--print-authorized-key",
    "key",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="KEYFILE",
    help="Print the line that gives this public key the gate and nothing else.",
)
@click.pass_context
def gate(ctx: click.Context, key: Path | None) -> None:
    """The forced command of an ssh key: lets sync, plan, status and history through, and nothing else.

    \b
    In authorized_keys of the firewall (all in one line):
      restrict,command="/usr/local/bin/agent gate" ssh-ed25519 AAAA... cluster

    Documents come by standard input, the answer goes to standard output, each call to syslog. Exit 9 for every other
    call.
    """  # noqa: D301  # click looks for the character itself
    from agent.cli import sync
    from agent.settings import ENVIRONMENT

    if key is not None:
        sync.print_authorized_key(ctx.obj or (Path(named) if (named := os.environ.get(ENVIRONMENT)) else None), key)
        return
    # Whatever ssh brought along: settings are those of the forced command, or the platform's own.
    dropped = os.environ.pop(ENVIRONMENT, "")
    sync.gate(main, ctx, _settings(ctx.obj), dropped=dropped)


@main.command(epilog="Example: agent status --json | jq .frontends")
@click.option("--json", "as_json", is_flag=True, help="status.json: one JSON document.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@click.option("--pid", is_flag=True, help="Only the pid of the running agent, by the lock that it holds.")
@click.pass_obj
def status(settings_file: Path | None, *, as_json: bool, watch: bool, pid: bool) -> None:
    """Every frontend, its addresses and servers; what is live, what is wrong.

    Exit 0 when all is up and the desired state is live, 6 when not, 7 when no agent runs (HAProxy is asked directly
    then).
    """
    from agent.service.wiring import Host
    from agent.view import tables
    from agent.view.status import Status, from_json, to_json

    if pid:
        if as_json or watch:
            raise click.UsageError("--pid goes with no other option")
        _print_pid(settings_file)
    host = Host(_settings(settings_file), command="status")
    if watch and as_json:
        raise click.UsageError("--watch is for people; a program reads --json when it wants to")
    while True:
        running = host.store.service_running()
        now = from_json(host.store.status(), Status) if running else None
        if now is None:  # no agent wrote it, or not as this version does
            now = host.publisher.status()
        degraded = now.haproxy is None or not now.in_sync or bool(now.not_up)
        code = ExitCode.NO_ANSWER if not running else ExitCode.DEGRADED if degraded else ExitCode.LIVE
        wipe = "\033[H\033[2J" if watch and sys.stdout.isatty() else ""
        text = to_json(now, indent=2) + "\n" if as_json else wipe + tables.status(now, running=running)
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

    settings = _settings(settings_file)
    pid = Store(settings.state, settings.run).service_pid()
    if pid is None:
        raise NoAnswerError(f"no agent runs on {settings.state}")
    show(f"{pid}\n", ExitCode.LIVE)
    sys.exit(ExitCode.LIVE)


@main.command(epilog="Example: agent history")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, oldest first.")
@click.pass_obj
def history(settings_file: Path | None, *, as_json: bool) -> None:
    """What was live and when, newest first; what was tried and put back, and what else happened.

    In JSON an entry has the `kind` generation or event.
    """
    from agent.host.store import Store
    from agent.view import tables

    settings = _settings(settings_file)
    store = Store(settings.state, settings.run)
    generations, events = store.generations(), store.events()
    if as_json:
        show(json.dumps(tables.history_document(generations, events), indent=2) + "\n", ExitCode.LIVE)
    elif generations or events:
        show(tables.history(generations, events), ExitCode.LIVE)
    else:
        click.echo("Nothing was live yet.", err=True)


@main.command(epilog="Example: agent rollback 41")
@click.argument("generation", required=False, type=click.IntRange(min=1))
@click.pass_obj
def rollback(settings_file: Path | None, generation: int | None) -> None:
    """Put an earlier generation back, and hold the present file.

    Without GENERATION, the last one whose document was another. The desired file stays as it is and is not applied
    again until it changes; `agent status` shows the hold. `agent history` lists the generations.
    """
    from agent.host.signals import deferred
    from agent.service.wiring import Host

    host = Host(_settings(settings_file), command="rollback", on_stage=_progress())
    host.store.prepare()
    with host.store.lock(waiting=_say_who_is_waited_for), deferred(_say_that_it_ends_after_the_step):
        report = host.loop.rollback(generation)
    end(lambda: _print_report(report), report.exit_code)


@main.command(epilog="Example: agent probe smtp --client 198.51.100.7")
@click.argument("backends", nargs=-1, metavar="[BACKEND]...")
@click.option("--client", metavar="ADDRESS", help="Whom the header names, to be found in the server's log.")
@click.option("--via", metavar="FRONTEND", help="Go through this live frontend to `agent echo` behind it instead.")
@click.option("--source", metavar="ADDRESS", help="With --via: an address of this host to come from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def probe(
    settings_file: Path | None,
    backends: tuple[str, ...],
    client: str | None,
    via: str | None,
    source: str | None,
    *,
    as_json: bool,
) -> None:
    """Does each server speak PROXY? One connection each, by the desired state; touches nothing.

    Without --client the header carries a true source, an address of this host. Exit 4 when a server provably does not
    take what it would be sent.

    With --via, does a client's address get through? One connection to each address of the frontend; the echo behind
    it must be told of the very address that was used. Exit 4 when it was another one, 7 when no echo answered.
    """
    from agent.cli import probe

    if via is not None:
        if backends or client:
            raise click.UsageError("--via goes through a frontend, as whoever --source says; leave the others out")
        probe.go_through(_settings(settings_file), via, source, as_json=as_json)
        return
    if source is not None:
        raise click.UsageError("--source belongs to --via; whom a header names, --client says")
    probe.ask(_settings(settings_file), backends, client, as_json=as_json)


@main.command(epilog="Example: agent echo --listen 10.0.20.101:2525")
@click.option("--listen", required=True, metavar="ADDR:PORT", help="Where; an IPv6 address in brackets.")
def echo(listen: str) -> None:
    """A listener that demands PROXY v2 and answers each client with the address it was told of.

    Put it behind a frontend in place of the mail server: a client that reads its own address there has proved the
    whole path. Health checks read LOCAL. Until Ctrl-C or SIGTERM; needs no settings and no HAProxy.
    """
    import asyncio
    import signal

    from agent.desired.schema import endpoint
    from agent.host.echo import listening

    try:
        address = endpoint(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None

    async def serve() -> None:
        told = asyncio.Event()
        # In a pod it is process 1, which no signal ends by itself.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        async with listening(address, click.echo) as where:
            click.echo(f"listening on {where}; every client must send a PROXY v2 header. Ctrl-C ends it.", err=True)
            await told.wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    click.echo("ended", err=True)


for _once in once.COMMANDS:
    main.add_command(_once)


def _settings(file: Path | None) -> Settings:
    from agent import settings

    return settings.load(file)


# --- printing ---------------------------------------------------------------------------------------------------


def _progress() -> Any:
    """Names the stage under way, on a terminal, in one line that the next one overwrites."""
    from agent.reconcile.report import STAGE_WORDS

    if sys.stderr is None or not sys.stderr.isatty():
        return None
    return lambda stage: click.echo(f"\r\033[K{STAGE_WORDS.get(stage, stage)} ...\r", nl=False, err=True)


def _print_report(report: Report, *, stored: str = "") -> None:
    """`stored`: what became of the file that was handed over, where it did not go live."""
    for finding in report.findings:
        click.echo(f"warning: {finding.text(report.file)}", err=True)
    if report.message:
        click.echo(report.message, err=True)
    if report.remedy:
        click.echo(f"agent: {report.remedy}", err=True)
    failed = report.outcome in (Outcome.REFUSED, Outcome.ROLLED_BACK, Outcome.INVALID)
    if failed and stored:
        click.echo(f"agent: {stored}", err=True)
    digest = f", sha256 {report.digest[:12]}" if report.digest else ""
    if failed and digest:
        digest = f"; the desired state is not{digest}"
    live = f"generation {report.generation} is live" if report.generation is not None else "nothing is live"
    changed = {"runtime": ", without a reload", "reload": ", by a reload"}
    how = changed.get(report.plan or "", "") * report.switched
    if report.started and report.switched:
        how = ", HAProxy was started"
    click.echo(f"{report.outcome.value}: {live}{how}{digest} ({report.seconds * 1000:.0f} ms)")
    for reason in report.reasons:
        click.echo(f"  - {reason}")
    if report.handshakes:
        counts = Counter(one.result for one in report.handshakes)
        click.echo(f"  - new servers asked: {', '.join(f'{count} {word}' for word, count in sorted(counts.items()))}")
