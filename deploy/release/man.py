"""Writes man pages, one for `agent` and one for each command, out of the commands' own help (by click-man).

click-man leaves out examples and what click prints verbatim (behind a backspace), and takes no group whose commands are
imported when they are called: that is put in here.
"""

from __future__ import annotations

import re
from inspect import cleandoc
from pathlib import Path

import click
from click_man.core import generate_man_page

from agent import __version__
from agent.cli.commands import main as group

_VERBATIM = re.compile(r"^\x08\n(.*?)(?:\n\n|\Z)", re.DOTALL | re.MULTILINE)
_FILES = """\
.SH FILES
The places are those of agent.toml ([paths]); without one, on Linux and on FreeBSD:
.TP
.I /etc/edgeagent/agent.toml, /usr/local/etc/edgeagent/agent.toml
settings
.TP
.I /etc/edgeagent/desired.yaml, /usr/local/etc/edgeagent/desired.yaml
the desired state
.TP
.I /var/lib/edgeagent, /var/db/edgeagent
generations, the live haproxy.cfg
.SH ENVIRONMENT
.TP
.B EDGEAGENT_SETTINGS
the settings file, where \\fB\\-\\-settings\\fP names none
"""


def pages(date: str) -> dict[str, str]:
    """The text of each page by its file name. `date`: as 2026-11-29."""
    whole = click.Group(
        "agent",
        short_help="keeps one HAProxy in sync with one desired-state file",
        help=group.help,
        params=group.params,
        commands={name: _command(name) for name in group.list_commands(click.Context(group))},
    )
    top = click.Context(whole, info_name="agent")
    made = {"agent.1": _page(top, date) + _FILES}
    for name, command in whole.commands.items():
        made[f"agent-{name}.1"] = _page(click.Context(command, info_name=name, parent=top), date)
    return made


def _command(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None, "a command that is listed is there"
    return command


def _page(context: click.Context, date: str) -> str:
    command = context.command
    help_text = cleandoc(command.help or "")
    verbatim: list[str] = []

    def aside(match: re.Match[str]) -> str:
        verbatim.append(match[1])
        return f"VERBATIM{len(verbatim) - 1}\n\n"

    command.help = _VERBATIM.sub(aside, help_text)
    try:
        text = generate_man_page(context, version=f"edgeagent {__version__}", date=date)
    finally:
        command.help = help_text
    # A blank line before each, as roff(7) has it; a line that begins with a dot would be a request.
    text = re.sub(r"^([.'])(?!SH|TH|PP|TP|B\b)", r"\\&\1", text, flags=re.MULTILINE)
    for number, block in enumerate(verbatim):
        lines = block.replace("\\", "\\e").replace("-", r"\-")
        text = text.replace(f"VERBATIM{number}", f".PP\n.nf\n{_safe(lines)}\n.fi")
    text = re.sub(r"\.PP\n+(?=\.(PP|SH|TP))", "", text)
    text = re.sub(r"(?<=\n)(\.SH [A-Z]+\n)\.PP\n", r"\1", text)
    text = re.sub(r"\n\.PP\s*\Z", "\n", text)
    if command.epilog:
        example = command.epilog.removeprefix("Example: ").replace("-", r"\-")
        text += f".SH EXAMPLES\n.nf\n{_safe(example)}\n.fi\n"
    return text + (".SH SEE ALSO\n\\fBagent\\fP(1), \\fBhaproxy\\fP(1)\n" if context.parent else "")


def _safe(block: str) -> str:
    return re.sub(r"^([.'])", r"\\&\1", block, flags=re.MULTILINE)


def write(folder: Path, date: str) -> None:
    """Each page as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(date).items():
        (folder / name).write_text(text)
