"""`plan`, `apply`, `rollback`: what becomes of a document on this host.

Imports at the top are what `agent --version` pays for; whatever is heavier is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent.cli.actor import actor
from agent.cli.options import DESIRED, load_settings
from agent.cli.output import end, print_json, show
from agent.errors import AgentError, ExitCode, Outcome, PolicyError, UsageError

if TYPE_CHECKING:
    from agent.reconcile.report import Report
    from agent.service.wiring import Host
    from agent.settings import Settings


CHANGES = 10
"""Exit code of `agent plan --detailed-exitcode` where something would change."""


@click.command(epilog="Example: agent plan new.yaml", short_help="Show what would change, and why.")
@DESIRED
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit 10 where something would change, 0 where nothing would.")
@click.option("--from-gate", is_flag=True, hidden=True)
@click.pass_obj
def plan(
    settings_file: Path | None, file: Path | None, *, as_json: bool, detailed_exitcode: bool, from_gate: bool
) -> None:
    """What would change, and why: no-op, runtime or reload; a unified diff of haproxy.cfg. Touches nothing.

    Addresses are tried, new servers are asked whether they answer, and the result is put before `haproxy -c`.
    Exit 3 when invalid, 4 when it would be refused.
    """
    from agent.haproxy.plan import Unchanged
    from agent.host.documents import GATE_SECONDS, label, read, read_in_time
    from agent.service.wiring import Host
    from agent.view import tables

    settings = load_settings(settings_file)
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
            "refused": tables.refused_document(preview.refused),
            "message": "; ".join(refused),
        }
        show(json.dumps(document, indent=2) + "\n", code)
    else:
        for finding in findings:
            click.echo(f"warning: {finding.text(label(path))}", err=True)
        show(tables.plan(*step, running=preview.running), code)
    if refused:
        click.echo(f"agent: would be refused: {'; '.join(refused)}", err=True)
    changes = not isinstance(preview.plan, Unchanged) or preview.plan.new_generation
    sys.exit(CHANGES if detailed_exitcode and changes and not refused else code)


@click.command(epilog="Example: agent apply new.yaml", short_help="Make the desired state live now.")
@DESIRED
@click.option(
    "--force",
    is_flag=True,
    help="Even if a frontend that serves now is left without a server that answers, or another manager wrote what is "
    "live.",
)
@click.option(
    "--retry", is_flag=True, help="Even if it is held: it was rolled back, or `agent rollback` put another back."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, as that of `agent sync --json`.")
@click.pass_obj
def apply(settings_file: Path | None, file: Path | None, *, force: bool, retry: bool, as_json: bool) -> None:
    """Make the desired state live now, and say what became of it.

    FILE becomes the desired state: a valid one is copied into its place, an invalid one touches nothing. Beside a
    running agent, apply waits its turn. What would leave a frontend that serves now without a server that answers
    is refused.
    """
    if as_json:
        _apply_for_programs(load_settings(settings_file), file, force=force, retry=retry)
    settings = load_settings(settings_file)
    host, report = _applied(settings, file, force=force, retry=retry)
    stored = "" if file is None else _stored(file, settings, host, report)
    end(lambda: _print_report(report, stored=stored), report.exit_code)


def _apply_for_programs(settings: Settings, file: Path | None, *, force: bool, retry: bool) -> NoReturn:
    """The answer of a sync, also for what was refused before it was stored."""
    from agent.remote import answer, outcome

    try:
        host, report = _applied(settings, file, force=force, retry=retry)
    except AgentError as error:
        refused = answer.refused(error, "")
        end(lambda: print_json(refused.document()), refused.exit_code)
    status = host.publisher.status()
    done = outcome.answer_of(status, digest=report.digest or "", serial=report.serial, seconds=report.seconds)
    end(lambda: print_json(done.document()), report.exit_code)


def _stored(file: Path, settings: Settings, host: Host, report: Report) -> str:
    from agent.host.documents import label

    return f"{label(file)} is stored as {settings.desired}; {_again(host, settings, report)}"


def _applied(settings: Settings, file: Path | None, *, force: bool, retry: bool) -> tuple[Host, Report]:
    """One reconcile of this host. Raises AgentError where nothing was touched."""
    from agent.desired.state import parse
    from agent.host.documents import label, read, read_signature
    from agent.host.file_writes import writer
    from agent.host.signals import deferred
    from agent.reconcile.generation import Request
    from agent.service.wiring import Host

    host = Host(settings, command="apply", on_stage=_progress())
    host.proxy.version()  # without HAProxy nothing can be applied: say so before anything is touched
    data: bytes | None = None
    if file is not None:
        data = read(file, settings)
        signature = read_signature(file)
        with _refusals_recorded(host, data):
            host.intake.verify(data, signature)
        parsed = parse(data, file=label(file), max_bytes=settings.sync.max_bytes)
    elif busy := writer(settings.desired):
        raise UsageError(f"{settings.desired} is being written by {busy}", remedy="wait for its end, and apply it then")
    host.store.prepare()
    with host.store.lock(waiting=_say_who_is_waited_for):
        if data is not None:
            with _refusals_recorded(host, data):
                host.backup.admit(parsed, force=force)
            host.store.set_request(Request(digest=parsed.digest, actor=actor()))
            host.intake.put(data, signature)
        with deferred(_say_that_it_ends_after_the_step):
            report = host.loop.reconcile(force=force, retry=retry, actor=actor())
    return host, report


@contextlib.contextmanager
def _refusals_recorded(host: Host, data: bytes) -> Iterator[None]:
    """What policy rejects is a try, and in the history; a mistake of a person who has handed nothing over is none."""
    from agent.remote.submit import SyncRequest, record_refusal

    try:
        yield
    except PolicyError as error:
        record_refusal(host.store, SyncRequest(data=data, actor=actor()), error)
        raise


def _say_that_it_ends_after_the_step() -> None:
    click.echo("interrupted: it ends when this step is done and judged, within seconds", err=True)


def _say_who_is_waited_for(holder: str) -> None:
    click.echo(f"waiting for another change to finish\n{holder}", err=True)


def _again(host: Host, settings: Settings, report: Report) -> str:
    """When a document that did not go live is tried again."""
    from agent.desired.scalars import duration

    if report.outcome is Outcome.ROLLED_BACK:
        return "it is held until it changes or --retry is given"
    if not host.store.service_running():
        return "no agent runs: `agent apply` tries it again"
    return f"the running agent tries it again every {duration(settings.apply.resync)}"


@click.command(epilog="Example: agent rollback 41", short_help="Put an earlier generation back.")
@click.argument("generation", required=False, type=click.IntRange(min=1))
@click.pass_obj
def rollback(settings_file: Path | None, generation: int | None) -> None:
    """Put an earlier generation back, and hold the present file.

    Without GENERATION, the last one whose document was another. The desired file stays as it is and is not applied
    again until it changes; `agent status` shows the hold. `agent history` lists the generations.
    """
    from agent.host.signals import deferred
    from agent.service.wiring import Host

    host = Host(load_settings(settings_file), command="rollback", on_stage=_progress())
    host.store.prepare()
    with host.store.lock(waiting=_say_who_is_waited_for), deferred(_say_that_it_ends_after_the_step):
        report = host.loop.rollback(generation, actor=actor())
    end(lambda: _print_report(report), report.exit_code)


# --- printing


def _progress() -> Any:
    """Names the stage under way, on a terminal, in one line that the next one overwrites."""
    from agent.reconcile.stages import STAGE_WORDS

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
        counts = Counter(handshake.result for handshake in report.handshakes)
        click.echo(f"  - new servers asked: {', '.join(f'{count} {word}' for word, count in sorted(counts.items()))}")
