"""`agent sync --to`: hand a document to the agents of other hosts, and print their answers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import NoReturn

import click

from agent.cli.output import clear_line, end, print_json
from agent.cli.sync import Options, finish
from agent.desired.identity import digest_of
from agent.errors import ExitCode, InvalidError
from agent.host.documents import label
from agent.reconcile.stages import STAGE_WORDS
from agent.remote import push as pushes
from agent.remote.answer import refused
from agent.settings import Settings


def push(settings: Settings, path: Path, data: bytes, signed: bytes, options: Options) -> NoReturn:
    """What is invalid here is sent nowhere: ssh connects while the document is checked, and waits for the verdict."""
    try:
        targets = [pushes.target(target) for target in options.targets]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
    if len({(target.host, target.port) for target in targets}) < len(targets):
        raise click.BadParameter("a host is named twice", param_hint="--to")
    if options.ordered and options.no_wait:
        raise click.UsageError("--ordered waits for each to be live; --no-wait waits for none")
    payload = pushes.Payload(data=data, signature=signed, arguments=tuple(_arguments(options)), seconds=options.timeout)
    progress = _Progress([target.text for target in targets])
    try:
        results = pushes.push(
            targets,
            payload,
            ordered=options.ordered,
            on_stage=lambda where, stage: progress.show(where.text, stage),
            on_end=lambda result: progress.end(result, quiet=options.as_json, plan=options.dry_run),
            check=lambda: _check(data, label(path), settings.sync.max_bytes),
        )
    except InvalidError as error:
        finish(refused(error, digest_of(data)), options)
    code = pushes.worst([result_of_host.exit_code for result_of_host in results])
    end(lambda: _tell_all(results, code, digest_of(data), as_json=options.as_json), code)


def _check(data: bytes, file: str, max_bytes: int) -> None:
    """Print what is unwise about the document. Raises InvalidError."""
    from agent.desired.state import Limits, parse  # takes as long as ssh: it is imported beside it

    limits = Limits(process_maxconn=sys.maxsize, file_limit=None)  # the other side checks its own
    for finding in parse(data, file=file, max_bytes=max_bytes, limits=limits).findings:
        clear_line()
        click.echo(f"warning: {finding.text(file)}", err=True)


def _tell_all(results: tuple[pushes.Result, ...], code: ExitCode, digest: str, *, as_json: bool) -> None:
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


def _at(results: tuple[pushes.Result, ...], code: ExitCode) -> list[str]:
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
            ("--withdraw", options.withdraw),
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

    def end(self, result: pushes.Result, *, quiet: bool, plan: bool) -> None:
        with contextlib.suppress(OSError):
            self._end(result, quiet=quiet, plan=plan)

    def _end(self, result: pushes.Result, *, quiet: bool, plan: bool) -> None:
        self._stages.pop(result.target.text, None)
        clear_line()
        if not quiet:
            good = result.exit_code == ExitCode.LIVE
            mark = click.style("ok  " if good else "!   ", fg="green" if good else "red")
            click.echo(f"{mark}{result.target.text}: {result.message} ({result.seconds:.1f} s)")
            if plan and result.answer:
                click.echo(pushes.diff_of(result.answer), nl=False)
            if result.remedy and not good:
                click.echo(f"    {result.remedy}", err=True)
        self._draw()

    def _draw(self) -> None:
        if self._live and self._stages:
            where = "  ".join(f"{host}: {stage}" for host, stage in self._stages.items())
            click.echo(f"\r\033[K{where[:200]}\r", nl=False, err=True)
