"""`agent probe` as a command: parse, call, print. Apart from `cli`, which is long enough."""

from __future__ import annotations

import ipaddress
import json
import sys

import click
from attrs import asdict

from agent.cli.output import print_json, show
from agent.desired.addresses import endpoint
from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.errors import ExitCode, UsageError
from agent.host import canary_probe
from agent.host import proxy_probe as asking
from agent.host.documents import read
from agent.host.resolver import Resolver
from agent.host.store import Store
from agent.proxy_protocol import canary, greetings
from agent.reconcile import names
from agent.settings import Settings
from agent.view import tables
from agent.view.assemble import canary_status

VIA_SECONDS = 3.0
RESOLVE_SECONDS = 5.0


def ask(settings: Settings, backends: tuple[str, ...], client: str | None, *, as_json: bool) -> None:
    """Each server of these backends (none: of all), as `client` would come; exit 4 where one is a mismatch."""
    state = parse(read(settings.desired, settings), file=str(settings.desired), max_bytes=settings.sync.max_bytes).state
    if unknown := sorted(set(backends) - {backend.name for backend in state.backends}):
        raise click.BadParameter(f"there is no backend {', '.join(unknown)}", param_hint="BACKEND")
    try:
        named = endpoint(f"[{client}]:40000" if ":" in client else f"{client}:40000") if client else None
    except ValueError:
        raise click.BadParameter(f"{client} is no IP address", param_hint="--client") from None
    questions = greetings.questions(_with_addresses(state, settings), backends, named)
    answers = asking.ask(questions)
    mismatch = any(greetings.mismatch(question.version, answers[question.key].result) for question in questions)
    code = ExitCode.REFUSED if mismatch else ExitCode.LIVE
    entries = [
        {"backend": backend, "server": server, "address": str(question.address), **asdict(answers[question.key])}
        for question in questions
        for backend, server in (question.key,)
    ]
    show(json.dumps(entries, indent=2) + "\n" if as_json else tables.handshakes(questions, answers), code)
    sys.exit(code)


def _with_addresses(state: DesiredState, settings: Settings) -> DesiredState:
    """What the names of its servers are now; one without an address is left out, and named on stderr."""
    if not (wanted := names.of(state)):
        return state
    resolution = names.choose(wanted, Resolver().answers(wanted, seconds=RESOLVE_SECONDS), {})
    for finding in names.findings(state, resolution):
        click.echo(f"warning: {finding.text(str(settings.desired))}", err=True)
    return names.without_unresolved(names.resolved(state, resolution.addresses))


def go_through(settings: Settings, via: str, source: str | None, *, as_json: bool) -> None:
    """Through each address of a live frontend to the echo behind it; exit 4 where one is lost, 7 without an echo."""
    store = Store(settings.state, settings.run)
    live = store.live()
    if live is None:
        raise UsageError("nothing is live yet", remedy="`agent apply` makes the desired state live")
    data = store.desired_of(live.number)
    state = parse(data, file="the live state", max_bytes=max(len(data), 1)).state
    if all(frontend.name != via for frontend in state.frontends):
        raise click.BadParameter(f"no frontend {via} is live", param_hint="--via")
    try:
        named = str(ipaddress.ip_address(source)) if source else None
    except ValueError:
        raise click.BadParameter(f"{source} is no IP address", param_hint="--source") from None
    left_out = [bind.address for bind in live.quarantined if bind.frontend == via]
    probes = canary.canary_probes(state, (via,), source=named, without=left_out)
    if not probes:
        raise UsageError(f"frontend {via} has no address that {named or 'anybody'} could connect to now")
    results = canary_probe.go(probes, seconds=VIA_SECONDS)
    if as_json:
        print_json([{"frontend": result.frontend, **asdict(canary_status(result))} for result in results])
    else:
        click.echo(tables.canary_results(results), nl=False)
    if any(result.preserved is False for result in results):
        sys.exit(ExitCode.REFUSED)
    if any(result.preserved is None for result in results):
        sys.exit(ExitCode.NO_ANSWER)
