"""`probe`, `echo`: does the client's address get through.

Imports at the top are what `agent --version` pays for; whatever is heavier is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from agent.cli.options import load_settings


@click.command(epilog="Example: agent probe smtp --client 198.51.100.7", short_help="Test whether servers speak PROXY.")
@click.argument("backends", nargs=-1, metavar="[BACKEND]...")
@click.option("--client", metavar="ADDRESS", help="Client address in the header; look for it in the server's log.")
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
    it must report the very address that was used. Exit 4 when it was another one, 7 when no echo answered.
    """
    from agent.cli import probe

    if via is not None:
        if backends or client:
            raise click.UsageError("--via goes through a frontend, as whoever --source says; leave the others out")
        probe.go_through(load_settings(settings_file), via, source, as_json=as_json)
        return
    if source is not None:
        raise click.UsageError("--source belongs to --via; whom a header names, --client says")
    probe.ask(load_settings(settings_file), backends, client, as_json=as_json)


@click.command(
    epilog="Example: agent echo --listen 10.0.20.101:2525",
    short_help="Answer each client with the address it is seen with.",
)
@click.option("--listen", required=True, metavar="ADDR:PORT", help="Where; an IPv6 address in brackets.")
def echo(listen: str) -> None:
    """A listener that demands PROXY v2 and answers each client with the address in the header.

    Put it behind a frontend in place of the mail server: a client that reads its own address there has proved the
    whole path. Health checks read LOCAL. Until Ctrl-C or SIGTERM; needs no settings and no HAProxy.
    """
    import asyncio
    import signal

    from agent.desired.addresses import endpoint
    from agent.host.echo import listening

    try:
        address = endpoint(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None

    async def serve() -> None:
        stopped = asyncio.Event()
        # In a pod it is process 1, which no signal ends by itself.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with listening(address, click.echo) as where:
            click.echo(f"listening on {where}; every client must send a PROXY v2 header. Ctrl-C ends it.", err=True)
            await stopped.wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    click.echo("ended", err=True)
