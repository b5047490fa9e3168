"""`agent sync` as a command: parse, call, print."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
from attrs import frozen

from agent.cli.output import clear_line, end, print_json
from agent.desired.state import Limits, parse
from agent.errors import AgentError, ExitCode, InvalidError, PolicyError, UsageError
from agent.host import signature
from agent.host.desired_file import label, read, read_in_time, read_signature
from agent.reconcile.report import STAGE_WORDS, STAGES
from agent.remote import push
from agent.remote.submit import Answer, SyncRequest, admit, refused, stored, submit, wait
from agent.service.wiring import Host
from agent.settings import Settings
from agent.view import tables

CUT_MILLISECONDS = 300
_BAR = 18

_log = logging.getLogger("agent.gate")


@frozen(kw_only=True)
class Options:
    """The options of `agent sync`; `timeout` in seconds, `digest` and `if_live` in hex, "" where not given."""

    targets: tuple[str, ...]
    ordered: bool
    dry_run: bool
    no_wait: bool
    timeout: float
    if_live: str
    key: Path | None
    force: bool
    retry: bool
    as_json: bool
    digest: str
    signature: str
    from_gate: bool


def sync(settings: Settings, file: Path | None, options: Options) -> NoReturn:
    """Hand a document over, here or elsewhere, and exit as it ends."""
    path = file or settings.desired
    data = read_in_time(path, settings, options.timeout) if options.from_gate else read(path, settings)
    whole = len(data) <= settings.sync.max_bytes  # what is too large is not read to its end, and refused as that
    if options.digest and whole and not hashlib.sha256(data).hexdigest().startswith(options.digest):
        message = f"{len(data):,} bytes arrived, and they are not the document that was announced"
        _end(Answer(word="policy", exit_code=ExitCode.POLICY, message=message, remedy="send it again"), options)
    signed = _signature(path, data, options)
    if options.targets:
        _push(settings, path, data, signed, options)
    if options.ordered:
        raise UsageError("--ordered is for more than one --to")
    if options.from_gate and not options.digest and not options.dry_run and _cut_off():
        raise PolicyError("the connection was cut before the document had ended")
    if options.dry_run:
        _dry_run(settings, path, data, signed, options)
    request = SyncRequest(
        data=data,
        signature=signed,
        if_live=options.if_live,
        force=options.force,
        retry=options.retry,
    )
    host = Host(settings, command="sync", file=path)
    deadline = time.monotonic() + options.timeout
    try:
        submission = submit(host, request, deadline=deadline)
    except AgentError as error:
        _end(refused(error, hashlib.sha256(data).hexdigest()), options)
    if options.no_wait and submission.served:
        _end(stored(submission), options)
    progress = _progress(from_gate=options.from_gate)
    _end(wait(host, submission, deadline=deadline, timeout=options.timeout, on_stage=progress), options)


def _signature(path: Path, data: bytes, options: Options) -> bytes:
    """Made now, handed in, or found beside the file."""
    if options.signature:
        try:
            return base64.b64decode(options.signature, altchars=b"-_", validate=True)
        except ValueError:
            raise UsageError("--signature is not base64") from None
    if options.key is not None:
        return signature.sign(data, options.key)
    return read_signature(path)


def _dry_run(settings: Settings, path: Path, data: bytes, signed: bytes, options: Options) -> NoReturn:
    """The plan of this host, by the rules of a sync: nothing is written."""
    host = Host(settings, command="plan", file=path)
    request = SyncRequest(data=data, signature=signed, if_live=options.if_live)
    digest = hashlib.sha256(data).hexdigest()
    try:
        host.intake.verify(data, signed)
        admit(host, host.assessor.read(data), request)
        preview = host.preview(data)
    except AgentError as error:
        _end(refused(error, digest), options)
    outages = "" if options.force else "; ".join(preview.outages)
    outages = outages or "; ".join(preview.objections)
    plan = tables.plan_document(preview.plan, preview.diff, preview.sessions, preview.handshakes)
    if not options.as_json:
        for finding in (*preview.parsed.findings, *preview.findings):
            click.echo(f"warning: {finding.text(label(path))}", err=True)
        click.echo(tables.plan(preview.plan, preview.diff, preview.sessions, preview.handshakes), nl=False)
    answer = Answer(
        word="would be refused" if outages else "planned",
        exit_code=ExitCode.REFUSED if outages else ExitCode.LIVE,
        digest=digest,
        serial=preview.parsed.state.serial,
        message=outages or f"{plan['plan']}: nothing was touched",
        report={"plan": plan},
    )
    _end(answer, options)


def _cut_off() -> bool:
    """Whether the reader of the answer is gone: a cut ends standard input as the end of a document does.

    sshd hangs up on both at once then; who has only sent all it had to say still listens.
    """
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # poll reports hang-ups and errors in any case
    return bool(watch.poll(CUT_MILLISECONDS))


# --- elsewhere --------------------------------------------------------------------------------------------------


def _push(settings: Settings, path: Path, data: bytes, signed: bytes, options: Options) -> NoReturn:
    """What is invalid here is sent nowhere."""
    try:
        targets = [push.target(target) for target in options.targets]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
    if len({(target.host, target.port) for target in targets}) < len(targets):
        raise click.BadParameter("a host is named twice", param_hint="--to")
    if options.ordered and options.no_wait:
        raise click.UsageError("--ordered waits for each to be live; --no-wait waits for none")
    limits = Limits(process_maxconn=sys.maxsize, file_limit=None)  # the other side checks its own
    try:
        parsed = parse(data, file=label(path), max_bytes=settings.sync.max_bytes, limits=limits)
    except InvalidError as error:
        _end(refused(error, hashlib.sha256(data).hexdigest()), options)
    for finding in parsed.findings:
        click.echo(f"warning: {finding.text(label(path))}", err=True)
    payload = push.Payload(data=data, signature=signed, arguments=tuple(_arguments(options)), seconds=options.timeout)
    progress = _Progress([target.text for target in targets])
    results = push.push(
        targets,
        payload,
        ordered=options.ordered,
        on_stage=lambda where, stage: progress.show(where.text, stage),
        on_end=lambda result: progress.end(result, quiet=options.as_json, plan=options.dry_run),
    )
    code = push.worst([result_of_host.exit_code for result_of_host in results])
    end(lambda: _tell_all(results, code, parsed.digest, as_json=options.as_json), code)


def _tell_all(results: tuple[push.Result, ...], code: ExitCode, digest: str, *, as_json: bool) -> None:
    """All hosts in one document; for people each was printed as it ended."""
    if as_json:
        hosts = {
            result.target.text: {
                "exit_code": int(result.exit_code),
                "message": result.message,
                "remedy": result.remedy,
                "seconds": round(result.seconds, 3),
                "answer": result.answer,
            }
            for result in results
        }
        print_json({"exit_code": int(code), "digest": digest, "hosts": hosts})
    elif code != ExitCode.LIVE and len(results) > 1:
        click.echo(f"worst: exit {int(code)}, of {', '.join(_at(results, code))}", err=True)


def _at(results: tuple[push.Result, ...], code: ExitCode) -> list[str]:
    return [result.target.text for result in results if result.exit_code == code]


def _arguments(options: Options) -> list[str]:
    """The options that are the other side's to follow."""
    arguments = [
        word
        for word, so in (
            ("--dry-run", options.dry_run),
            ("--no-wait", options.no_wait),
            ("--force", options.force),
            ("--retry", options.retry),
        )
        if so
    ]
    arguments += ["--timeout", f"{round(options.timeout * 1000)}ms"]
    return [*arguments, "--if-live", options.if_live] if options.if_live else arguments


class _Progress:
    """Where each host is, in one line of a terminal; and a line for good as each ends.

    A reader that has gone (`| head -1`) ends no session.
    """

    def __init__(self, hosts: list[str]) -> None:
        self._stages = dict.fromkeys(hosts, "connecting")
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._draw()

    def show(self, host: str, stage: str) -> None:
        self._stages[host] = STAGE_WORDS.get(stage, stage)
        with contextlib.suppress(OSError):
            self._draw()

    def end(self, result: push.Result, *, quiet: bool, plan: bool) -> None:
        with contextlib.suppress(OSError):
            self._end(result, quiet=quiet, plan=plan)

    def _end(self, result: push.Result, *, quiet: bool, plan: bool) -> None:
        self._stages.pop(result.target.text, None)
        clear_line()
        if not quiet:
            good = result.exit_code == ExitCode.LIVE
            mark = click.style("ok  " if good else "!   ", fg="green" if good else "red")
            click.echo(f"{mark}{result.target.text}: {result.message} ({result.seconds:.1f} s)")
            if plan and result.answer:
                click.echo(push.diff_of(result.answer), nl=False)
            if result.remedy and not good:
                click.echo(f"    {result.remedy}", err=True)
        self._draw()

    def _draw(self) -> None:
        if self._live and self._stages:
            where = "  ".join(f"{host}: {stage}" for host, stage in self._stages.items())
            click.echo(f"\r\033[K{where[:200]}\r", nl=False, err=True)


# --- printing ---------------------------------------------------------------------------------------------------


def _progress(*, from_gate: bool) -> Callable[[str], None]:
    """Each stage of the agent: a bar on a terminal, else a line: in words, or as `--to` on the other side reads it."""
    if sys.stderr is None:
        return lambda _: None
    live = sys.stderr.isatty()

    def show(stage: str) -> None:
        label = stage if from_gate else STAGE_WORDS.get(stage, stage)
        with contextlib.suppress(OSError):  # a full disk behind stderr costs the progress
            draw(stage) if live else click.echo(f"{push.STAGE}{label}", err=True)

    def draw(stage: str) -> None:
        done = (STAGES.index(stage) + 1) * _BAR // len(STAGES) if stage in STAGES else _BAR
        click.echo(f"\r\033[K[{'#' * done}{'.' * (_BAR - done)}] {STAGE_WORDS.get(stage, stage)}\r", nl=False, err=True)

    return show


def _end(answer: Answer, options: Options) -> NoReturn:
    end(lambda: print_json(answer.document()) if options.as_json else _tell(answer), answer.exit_code)


def _tell(answer: Answer) -> None:
    report = answer.report or {}
    for finding in report.get("findings") or ():
        where = f"{finding['where']}: " if finding["where"] else ""
        click.echo(f"warning: {where}{finding['message']}", err=True)
    for frontend in report.get("frontends") or ():
        click.echo(f"warning: frontend {frontend['name']} is {frontend['state']}", err=True)
    if answer.message and answer.word != "stored":
        click.echo(answer.message if answer.word == "invalid" else f"agent: {answer.message}", err=True)
    if answer.remedy:
        click.echo(f"agent: {answer.remedy}", err=True)
    live = (report.get("live") or {}).get("generation")
    facts = [f"generation {live} is live"] if live is not None else []
    facts += [f"serial {answer.serial}"] if answer.serial is not None else []
    facts += [f"sha256 {answer.digest[:12]}"] if answer.digest else []
    click.echo(f"{answer.word}: {', '.join(facts)} ({answer.seconds * 1000:.0f} ms)")
    for reason in report.get("reasons") or ():
        click.echo(f"  - {reason}")
