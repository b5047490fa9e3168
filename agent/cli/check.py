"""`check`, `schema`: what a document may be, without a firewall.

Imports at the top are what `agent check` pays for before it reads anything.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from agent.cli.options import load_settings
from agent.cli.output import show
from agent.errors import ExitCode, InvalidError, dotted

if TYPE_CHECKING:
    from agent.settings import Settings


@click.command(epilog="Example: agent check examples/mail-edge.yaml", short_help="Validate a desired state.")
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True)
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document: violations and findings, with their lines.")
@click.pass_obj
def check(settings_file: Path | None, files: tuple[Path, ...], *, as_json: bool) -> None:
    """Validate a desired state: every violation with its line. Touches nothing, needs no HAProxy.

    FILE is the configured desired state where it is left out, standard input where it is `-`. Exit 3 when
    invalid. Of several, each is checked; --json is then a list of documents, in their order.
    """
    settings = load_settings(settings_file)
    checked = [_checked(file, settings) for file in files or (settings.desired,)]
    code = next((document.code for document in checked if document.code), ExitCode.LIVE)
    for document in checked:
        for line in () if as_json else document.complaints:
            click.echo(line, err=True)
    if as_json:
        documents = [document.json for document in checked]
        show(json.dumps(documents if len(files) > 1 else documents[0], indent=2) + "\n", code)
    else:
        show("".join(document.summary for document in checked), code)
    sys.exit(code)


@frozen(kw_only=True)
class _Checked:
    """What `agent check` says of one file."""

    code: ExitCode
    """live or invalid"""
    json: dict[str, Any]
    """for programs"""
    complaints: tuple[str, ...]
    """for people, on stderr"""
    summary: str
    """for people, on stdout; empty where it is invalid"""


def _checked(path: Path, settings: Settings) -> _Checked:
    """Raises UsageError for a file that cannot be read, RefusedError for a template that does not take it."""
    from agent.desired.state import parse
    from agent.haproxy.config import CONFIG_TEMPLATE, render, require_authorities
    from agent.host.documents import label, read
    from agent.host.global_section import process_of
    from agent.host.limits import limits_of

    name = label(path)
    try:
        data = read(path, settings)
        parsed = parse(data, file=name, max_bytes=settings.sync.max_bytes, limits=limits_of(settings))
    except InvalidError as error:
        return _Checked(code=ExitCode.INVALID, json=_invalid(error), complaints=(str(error),), summary="")
    process, state = process_of(settings), parsed.state
    if settings.paths.templates:
        from agent.host import templates

        render(state, process, templates.load(CONFIG_TEMPLATE, settings.paths.templates))
    else:  # the built-in template takes every valid state
        require_authorities(state, process)
    findings = [
        {"where": finding.where, "line": finding.line, "message": finding.message, "remedy": finding.remedy}
        for finding in parsed.findings
    ]
    document = {"file": name, "valid": True, "exit_code": 0, "digest": parsed.digest, "findings": findings}
    return _Checked(
        code=ExitCode.LIVE,
        json=document | {"violations": []},
        complaints=tuple(f"warning: {finding.text(name)}" for finding in parsed.findings),
        summary=f"{name}: valid: {len(state.frontends)} frontends, {len(state.backends)} backends, "
        f"{sum(len(backend.servers) for backend in state.backends)} servers, sha256 {parsed.digest[:12]}\n",
    )


def _invalid(error: InvalidError) -> dict[str, Any]:
    """What `agent check --json` says of a document that is none."""
    violations = [
        {"path": dotted(violation.path), "line": violation.line, "message": violation.message}
        for violation in error.violations
    ]
    about = {"file": error.file, "valid": False, "exit_code": int(error.exit_code), "digest": "", "findings": []}
    return about | {"violations": violations, "violations_total": error.total}


@click.command(epilog="Example: agent schema > desired-state.schema.json", short_help="Print the JSON Schema.")
def schema() -> None:
    """JSON Schema (draft 2020-12) of the desired state, for editors and checks without an agent.

    An editor with the YAML language server reads it where the first line of a file is

        # yaml-language-server: $schema=desired-state.schema.json

    `agent check` refuses more: what takes the whole document, such as a backend that must exist.
    """
    from agent.desired import json_schema

    show(json.dumps(json_schema.document(), indent=2) + "\n", ExitCode.LIVE)
