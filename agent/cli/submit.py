"""`agent sync` to the agent of this host, also as the far end of `agent sync --to`."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
from attrs import evolve

from agent.cli.actor import actor
from agent.cli.sync import Options, finish
from agent.desired.identity import digest_of
from agent.errors import AgentError, ExitCode, InvalidError, PolicyError
from agent.host.documents import label
from agent.reconcile.stages import STAGE_WORDS, STAGES
from agent.remote import submit as submissions
from agent.remote.answer import STAGE, Answer, refused
from agent.remote.submit import SyncRequest
from agent.settings import Settings

CUT_MILLISECONDS = 300
WITHDRAW_SECONDS = 10.0  # the agent may be trying the document once more
_BAR = 18


def submit(settings: Settings, path: Path, data: bytes, signed: bytes, options: Options) -> NoReturn:
    """Hand it to the agent here, wait for the outcome, and exit with it."""
    if options.from_gate and not options.digest and not options.dry_run and _cut_off():
        raise PolicyError("the connection was cut before the document had ended")
    to = submissions.destination(settings, path)
    request = SyncRequest(
        data=data,
        signature=signed,
        if_live=options.if_live,
        force=options.force,
        retry=options.retry,
        actor=actor(),
    )
    if options.dry_run:
        _dry_run(settings, path, to, request, options)
    deadline = time.monotonic() + options.timeout
    try:
        submission = submissions.submit(to, request, deadline=deadline)
    except AgentError as error:
        if isinstance(error, (InvalidError, PolicyError)):
            submissions.record_refusal(to.store, request, error)
        finish(refused(error, digest_of(data)), options)
    if options.no_wait and submission.served:
        finish(submissions.stored(submission), options)
    progress = _progress(from_gate=options.from_gate)
    from agent.remote import outcome  # while the service works

    answer = outcome.wait(to, submission, deadline=deadline, timeout=options.timeout, on_stage=progress)
    if options.withdraw and answer.exit_code is ExitCode.REFUSED:
        answer = _withdrawn(to, submission, answer)
    finish(answer, options)


def _withdrawn(to: submissions.Destination, submission: submissions.Submission, answer: Answer) -> Answer:
    """The answer, once the desired file is what it was before."""
    try:
        withdrawn = submissions.withdraw(to, submission, deadline=time.monotonic() + WITHDRAW_SECONDS)
    except AgentError as error:
        return evolve(answer, message=f"{answer.message}; it stays the desired state: {error}")
    if not withdrawn:
        return evolve(answer, message=f"{answer.message}; it stays the desired state")
    return evolve(answer, message=f"{answer.message}; the desired file is what it was before")


def _dry_run(
    settings: Settings, path: Path, to: submissions.Destination, request: SyncRequest, options: Options
) -> NoReturn:
    """The plan of this host, by the rules of a sync: nothing is written."""
    from agent.service.wiring import Host
    from agent.view import tables

    digest = digest_of(request.data)
    try:
        to.intake.verify(request.data, request.signature)
        submissions.admit(to, to.read(request.data), request)
        preview = Host(settings, command="plan", file=path).preview(request.data)
    except AgentError as error:
        finish(refused(error, digest), options)
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
        report={
            "plan": plan,
            # With --force what a serving frontend would lose is no reason.
            "refused": tables.refused_document(
                refusal for refusal in preview.refused if not (options.force and refusal.kind == "frontend")
            ),
        },
    )
    finish(answer, options)


def _cut_off() -> bool:
    """Whether the reader of the answer is gone: a cut ends standard input as the end of a document does.

    sshd hangs up on both at once then; who has only sent all it had to say still listens.
    """
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # poll reports hang-ups and errors in any case
    return bool(watch.poll(CUT_MILLISECONDS))


def _progress(*, from_gate: bool) -> Callable[[str], None]:
    """Each stage of the agent: a bar on a terminal, else a line: in words, or as `--to` on the other side reads it."""
    if sys.stderr is None:
        return lambda _: None
    live = sys.stderr.isatty()

    def show(stage: str) -> None:
        label = stage if from_gate else STAGE_WORDS.get(stage, stage)
        with contextlib.suppress(OSError):  # a full disk behind stderr costs the progress
            draw(stage) if live else click.echo(f"{STAGE}{label}", err=True)

    def draw(stage: str) -> None:
        done = (STAGES.index(stage) + 1) * _BAR // len(STAGES) if stage in STAGES else _BAR
        click.echo(f"\r\033[K[{'#' * done}{'.' * (_BAR - done)}] {STAGE_WORDS.get(stage, stage)}\r", nl=False, err=True)

    return show
