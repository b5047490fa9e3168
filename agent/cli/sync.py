"""`agent sync` as a command: parse, call, print.

A sync is waited for, on both sides of an ssh connection: what imports much is imported where it is needed.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import NoReturn

import click
from attrs import frozen

from agent.cli.output import end, print_json
from agent.errors import ExitCode, UsageError
from agent.host.documents import read, read_in_time, read_signature
from agent.remote.answer import Answer
from agent.settings import Settings


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
    withdraw: bool
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
        finish(Answer(word="policy", exit_code=ExitCode.POLICY, message=message, remedy="send it again"), options)
    signed = _signature(path, data, options)
    if options.targets:
        from agent.cli import push

        push.push(settings, path, data, signed, options)
    if options.withdraw and options.no_wait:
        raise UsageError("--withdraw takes back what was refused, and --no-wait does not wait for that")
    if options.ordered:
        raise UsageError("--ordered is for more than one --to")
    from agent.cli import submit

    submit.submit(settings, path, data, signed, options)


def _signature(path: Path, data: bytes, options: Options) -> bytes:
    """Made now, handed in, or found beside the file."""
    if options.signature:
        try:
            return base64.b64decode(options.signature, altchars=b"-_", validate=True)
        except ValueError:
            raise UsageError("--signature is not base64") from None
    if options.key is not None:
        from agent.host import signature

        return signature.sign(data, options.key)
    return read_signature(path)


def finish(answer: Answer, options: Options) -> NoReturn:
    """Print the answer, and exit as it says."""
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
