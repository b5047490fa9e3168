"""`agent probe` as a command: parse, call, print. Apart from `cli`, which is long enough."""

from __future__ import annotations

import ipaddress
import json
import sys

import click
from attrs import asdict

from agent.cli.output import print_json, show
from agent.desired.schema import endpoint
from agent.desired.state import parse
from agent.errors import ExitCode, UsageError
from agent.host import canary_probe
from agent.host import proxy_probe as asking
from agent.host.desired_file import read
from agent.host.store import Store
from agent.proxy_protocol import canary, greetings
from agent.settings import Settings
from agent.view import tables
from agent.view.assemble import canary_status

VIA_SECONDS = 3.0


def ask(settings: Settings, backends: tuple[str, ...], client: str | None, *, as_json: bool) -> None:
    """Each server of these backends (none: of all), as `client` would come; exit 4 where one is a mismatch."""
    state = parse(read(settings.desired, settings), file=str(settings.desired), max_bytes=settings.sync.max_bytes).state
    if unknown := sorted(set(backends) - {one.name for one in state.backends}):
        raise click.BadParameter(f"there is no backend {', '.join(unknown)}", param_hint="BACKEND")
    try:
        named = endpoint(f"[{client}]:40000" if ":" in client else f"{client}:40000") if client else None
    except ValueError:
        raise click.BadParameter(f"{client} is no IP address", param_hint="--client") from None
    asked = greetings.questions(state, backends, named)
    found = asking.ask(asked)
    mismatch = any(greetings.mismatch(one.version, found[one.key].result) for one in asked)
    code = ExitCode.REFUSED if mismatch else ExitCode.LIVE
    entries = [
        {"backend": one.key[0], "server": one.key[1], "address": str(one.address), **asdict(found[one.key])}
        for one in asked
    ]
    show(json.dumps(entries, indent=2) + "\n" if as_json else tables.handshakes(asked, found), code)
    sys.exit(code)


def go_through(settings: Settings, via: str, source: str | None, *, as_json: bool) -> None:
    """Through each address of a live frontend to the echo behind it; exit 4 where one is lost, 7 without an echo."""
    store = Store(settings.state, settings.run)
    live = store.live()
    if live is None:
        raise UsageError("nothing is live yet", remedy="`agent apply` makes the desired state live")
    data = store.desired_of(live.number)
    state = parse(data, file="the live state", max_bytes=max(len(data), 1)).state
    if all(one.name != via for one in state.frontends):
        raise click.BadParameter(f"no frontend {via} is live", param_hint="--via")
    try:
        named = str(ipaddress.ip_address(source)) if source else None
    except ValueError:
        raise click.BadParameter(f"{source} is no IP address", param_hint="--source") from None
    aside = [one.address for one in live.quarantined if one.frontend == via]
    canary_probes = canary.canary_probes(state, (via,), source=named, without=aside)
    if not canary_probes:
        raise UsageError(f"frontend {via} has no address that {named or 'anybody'} could connect to now")
    found = canary_probe.go(canary_probes, seconds=VIA_SECONDS)
    if as_json:
        print_json([{"frontend": one.frontend, **asdict(canary_status(one))} for one in found])
    else:
        click.echo(tables.canary_results(found), nl=False)
    if any(one.preserved is False for one in found):
        sys.exit(ExitCode.REFUSED)
    if any(one.preserved is None for one in found):
        sys.exit(ExitCode.NO_ANSWER)
