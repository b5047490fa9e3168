"""`sync`, `discover`, `gate`: documents from elsewhere.

Imports at the top are what `agent --version` pays for; whatever is heavier is imported by the command that needs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from agent.cli.options import DESIRED, hex_digits, load_settings, seconds


@click.command(
    epilog="Example: agent sync desired.yaml --to admin@192.0.2.1 --to admin@192.0.2.2 --sign KEY",
    short_help="Hand a desired state to agents, here or by ssh.",
)
@DESIRED
@click.option(
    "--to", "targets", multiple=True, metavar="USER@HOST[:PORT]", help="An agent to hand it to, by ssh; repeat."
)
@click.option("--ordered", is_flag=True, help="One after the other, until one is not live (a CARP pair: backup first).")
@click.option("--dry-run", is_flag=True, help="Only the plan, preflight included; exit as `agent plan`.")
@click.option("--no-wait", is_flag=True, help="Hand it over, and do not wait for the outcome.")
@click.option(
    "--timeout",
    callback=seconds,
    default="30s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for an answer.",
)
@click.option("--if-live", callback=hex_digits, default="", metavar="SHA256", help="Only if this is what is live now.")
@click.option(
    "--sign", "key", type=click.Path(path_type=Path, dir_okay=False), metavar="KEY", help="Sign it with this ssh key."
)
@click.option(
    "--force",
    is_flag=True,
    help="Even if a frontend that serves now is left without a server that answers, or another manager wrote what is "
    "live.",
)
@click.option(
    "--retry", is_flag=True, help="Even if it is held: it was rolled back, or `agent rollback` put another back."
)
@click.option("--withdraw", is_flag=True, help="If it is refused, put the desired file back as it was.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--digest",
    callback=hex_digits,
    default="",
    metavar="SHA256",
    help="SHA-256 of FILE; one that arrives incomplete is refused.",
)
@click.option("--signature", default="", hidden=True)
@click.option("--from-gate", is_flag=True, hidden=True)
@click.pass_obj
def sync(settings_file: Path | None, /, file: Path | None, **options: Any) -> None:
    """Hand a desired state to the agent here, or by ssh to one or many, and wait for the outcome.

    FILE (`-`: standard input) becomes the desired state of each, to the byte. Its serial only grows: a lower one is
    refused (exit 9). A signature in FILE.sig is sent with it. The exit code is the agent's own; of many, the worst.
    """
    from agent.cli import sync

    sync.sync(load_settings(settings_file), file, sync.Options(**options))


def _without_effect(_context: click.Context, option: click.Parameter, value: str | None) -> None:
    """An option of 0.1 that has nothing to say any more."""
    if value is not None:
        click.echo(f"agent: {option.opts[0]} has no effect any more, and will be an error", err=True)


@click.command(
    epilog="Example: agent discover --base base.yaml > desired.yaml",
    short_help="Make a desired state out of a Kubernetes cluster.",
)
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
@click.option(
    "--timeout",
    callback=seconds,
    default="30s",
    show_default=True,
    metavar="DURATION",
    help="How long a push may take.",
)
@click.option(
    "--sign", "key", type=click.Path(path_type=Path, dir_okay=False), metavar="KEY", help="Sign what is pushed."
)
@click.option("--listen", default="", metavar="ADDR:PORT", help="With --watch: /metrics, /healthz, /readyz.")
@click.option("--lease-namespace", hidden=True, expose_value=False, callback=_without_effect)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=1_048_576,
    show_default=True,
    help="What the firewall takes (its sync.max_bytes).",
)
def discover(**options: Any) -> None:
    """A desired state out of a Kubernetes cluster: Services with edgeagent.io/ annotations, Nodes, EndpointSlices.

    Printed as YAML; what is wrong with a Service is reported on stderr, and leaves the others alone (exit 6). Where the
    base and a Service are at odds, both places are named and nothing is printed (exit 3). Needs the extra `cluster`.

    \b
      kubectl annotate service mail edgeagent.io/expose="smtp=25" edgeagent.io/bind=192.0.2.1
      agent discover > desired.yaml && agent sync desired.yaml --to admin@192.0.2.1
    """  # noqa: D301  # click looks for the character itself
    from agent.cli import discover as cluster

    if options["watch"] and not options["targets"]:
        raise click.UsageError("--watch needs --to: the firewalls to keep in sync")
    if not options["watch"] and (options["targets"] or options["listen"] or options["key"]):
        raise click.UsageError(
            "--to, --sign and --listen belong to --watch; once: agent discover | agent sync - --to ..."
        )
    cluster.discover(cluster.Options(**options))


@click.command(
    epilog="Example: agent gate --print-authorized-key ~/.ssh/id_ed25519.pub",
    short_help="The forced command of an ssh key.",
)
@click.option(
    "--print-authorized-key",
    "key",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="KEYFILE",
    help="Print the line that gives this public key the gate and nothing else.",
)
@click.option("--as", "comment", default="", metavar="NAME", help="Whose key this is, for the history.")
@click.pass_context
def gate(ctx: click.Context, key: Path | None, comment: str) -> None:
    """The forced command of an ssh key: lets sync, plan, status, history and show through.

    \b
    In authorized_keys of the firewall (all in one line):
      restrict,command="/usr/local/bin/agent gate --as cluster" ssh-ed25519 AAAA... cluster

    Documents come by standard input, the answer goes to standard output, each call to syslog. `drain` and `ready` get
    through where `sync.allow_drain` is true. Exit 9 for every other call.
    """  # noqa: D301  # click looks for the character itself
    from agent.cli import gate
    from agent.settings import ENVIRONMENT

    if key is not None:
        gate.print_authorized_key(ctx.obj or (Path(named) if (named := os.environ.get(ENVIRONMENT)) else None), key)
        return
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    # Whatever ssh brought along: settings are those of the forced command, or the platform's own.
    dropped = os.environ.pop(ENVIRONMENT, "")
    gate.let_through(group, ctx, load_settings(ctx.obj), comment=comment, dropped=dropped)
