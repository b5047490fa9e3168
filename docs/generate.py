"""Writes docs/reference/ out of the code: `make docs` runs it, and a test says when a page is stale.

The desired state comes of the same descriptions as `agent schema`; settings, status.json and exit codes of the
docstrings beneath their fields; the commands of click; the metrics of the registry.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import click
import yaml

from agent import settings
from agent.cli import main
from agent.desired import json_schema, schema
from agent.desired.schema import SCALARS
from agent.desired.state import parse
from agent.desired.structure import is_named, keys_of
from agent.errors import ExitCode, Outcome
from agent.proxy_protocol.greetings import Result
from agent.reconcile.event import Event, Kind
from agent.reconcile.generation import Generation
from agent.reconcile.report import Report
from agent.view import events, status
from agent.view.in_sync import Relation
from agent.view.metrics import Facts, Metrics, Usage
from agent.view.status import event_status

HERE = Path(__file__).parent
NOTE = "<!-- Made by docs/generate.py: do not edit. -->\n\n"
Page = Iterator[str]


def pages() -> dict[str, str]:
    """Every file of docs/reference, by its name."""
    made = {
        "desired-state.md": _desired_state(),
        "settings.md": _settings(),
        "commands.md": _commands(),
        "exit-codes.md": _exit_codes(),
        "metrics.md": _metrics(),
        "alerts.md": _alerts(),
        "status-json.md": _status(),
        "notifications.md": _notifications(),
    }
    return {
        **{name: NOTE + "\n".join(lines) + "\n" for name, lines in made.items()},
        "desired-state.schema.json": json.dumps(json_schema.document(), indent=2) + "\n",
    }


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Page:
    """A table of Markdown, and an empty line after it."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def prose(text: str) -> Page:
    """Paragraphs, and an empty line after them."""
    yield from inspect.cleandoc(text).splitlines()
    yield ""


def code(value: object) -> str:
    """A value as it is written in YAML or TOML, in code; "" for none."""
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def sentence(docstring: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


def beneath(cls: type) -> dict[str, str]:
    """The docstring beneath each field or member of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        target = field.target if isinstance(field, ast.AnnAssign) else getattr(field, "targets", [None])[0]
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[target.id] = " ".join(str(text.value.value).split())
    return found


def members(kind: type[enum.Enum], head: str) -> Page:
    """A table of an enum with the docstrings beneath its members."""
    about = beneath(kind)
    yield from table((head, "meaning"), ((code(member.value), about[member.name]) for member in kind))


# --- the desired state


def _desired_state() -> Page:
    yield from prose(
        """
        # The desired state, version 1

        YAML or JSON. `agent check FILE` names every mistake with its line; [the guide](../desired-state.md)
        explains what the keys do together, and [the JSON Schema](desired-state.schema.json) (`agent schema`) checks
        them in an editor.

        Names match `[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?`; addresses are IP literals; durations carry a unit: `ms`,
        `s`, `m` or `h`. An unknown key, a duplicate key and a value of another type are errors. The last column is
        what the example becomes in haproxy.cfg.
        """
    )
    yield from _class("The document", schema.DesiredState, set())
    yield from prose(
        """
        ## What only `agent check` refuses

        A JSON Schema cannot say these; everything else it refuses as `agent check` does:
        """
    )
    yield from (f"- {difference}" for difference in json_schema.DIFFERENCES)


def _class(title: str, cls: type, done: set[type]) -> Page:
    done.add(cls)
    yield f"## {title}"
    yield ""
    yield sentence(cls.__doc__)
    yield ""
    types, inner = get_type_hints(cls), []
    rows = []
    for key in keys_of(cls):
        kind = types[key.name]
        required = key.default is attrs.NOTHING
        default = json_schema.written_default(key, kind, SCALARS)
        rows.append(
            (
                code(key.name),
                key.metadata["about"],
                _type(kind),
                "required" if required else code(default),
                code(key.metadata["example"]),
                code(key.metadata["line"] or None),
            )
        )
        inner += [(key.name, part) for part in _classes(kind) if part not in done]
    yield from table(("key", "what", "type", "default", "example", "in haproxy.cfg"), rows)
    for name, part in inner:
        if part not in done:
            yield from _class(f"{_article(part)} `{name}`", part, done)


def _article(part: type) -> str:
    holder = {"FrontendTimeouts": "A frontend's", "BackendTimeouts": "A backend's", "Timeouts": "Default"}
    return holder.get(part.__name__, "Each of" if is_named(part) or part is schema.Route else "The key")


def _type(kind: Any) -> str:
    """The type of a key in words, with links to the classes."""
    if kind in SCALARS:
        return SCALARS[kind].label
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text"
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return ", ".join(code(member.value) for member in kind)
    arguments, origin = get_args(kind), get_origin(kind)
    if origin is tuple:
        item = arguments[0]
        if item in SCALARS:
            return f"list: {_type(item)}"
        return "mapping by name" if is_named(item) else "list of mappings"
    if origin is dict:
        return "mapping of mappings" if get_origin(arguments[1]) is dict else "mapping by name"
    if attrs.has(kind):
        return "mapping"
    return " or ".join(_type(part) for part in arguments if part is not type(None))


def _classes(kind: Any) -> Iterator[type]:
    if attrs.has(kind) and kind not in SCALARS:
        yield kind
    for part in get_args(kind):
        yield from _classes(part)


# --- agent.toml


def _settings() -> Page:
    yield from prose(
        """
        # Settings: agent.toml

        `--settings FILE`, else `EDGEAGENT_SETTINGS`, else `/usr/local/etc/edgeagent/agent.toml` (FreeBSD) or
        `/etc/edgeagent/agent.toml`. Every key has a default; an unknown one is an error. A duration carries a unit:
        `ms`, `s`, `m` or `h`. Each is written as `key = value` in its `[section]`.
        """
    )
    sections = beneath(settings.Settings)
    for section in attrs.fields(settings.Settings):
        yield f"## [{section.name}]"
        yield ""
        yield f"{sections[section.name][0].upper()}{sections[section.name][1:]}."
        yield ""
        cls: Any = type(section.default)
        about, types = beneath(cls), get_type_hints(cls)
        yield from table(
            ("key", "type", "default", "what"),
            (
                (
                    code(f"{section.name}.{key.name}"),
                    _setting_type(types[key.name]),
                    ""
                    if cls is settings.Paths
                    else code(json_schema.written_default(key, types[key.name], settings.SCALARS)),
                    about[key.name],
                )
                for key in attrs.fields(cls)
            ),
        )


def _setting_type(kind: Any) -> str:
    return settings.SCALARS[kind].label if kind in settings.SCALARS else _type(kind)


# --- commands


def _commands() -> Page:
    yield from prose(
        """
        # Commands

        What `agent COMMAND --help` prints. [Exit codes](exit-codes.md) are the same for all of them.
        """
    )
    context = click.Context(main, info_name="agent", max_content_width=100, terminal_width=100)
    yield from _help("agent", main, context)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100)
        yield from _help(f"agent {name}", command, inner)


def _help(title: str, command: click.Command, context: click.Context) -> Page:
    yield f"## {title}"
    yield ""
    yield "```text"
    yield command.get_help(context)
    yield "```"
    yield ""


def _exit_codes() -> Page:
    yield from prose(
        """
        # Exit codes and outcomes

        Scripts may rely on these numbers. A command that addresses several hosts exits with the worst of them.

        Commands that only look use the same numbers: `doctor` 4 something is broken, 6 something should be looked at;
        `probe` 4 a server or a path does not pass the address on, 7 no echo; `import` 6 something is left out, 3 the
        result is not valid; `plan` as `apply` would.
        """
    )
    about = beneath(ExitCode)
    yield from table(("exit code", "meaning"), ((code(int(member)), about[member.name]) for member in ExitCode))
    yield from prose(
        """
        An outcome is how one reconcile ended: the same word in `agent history`, status.json, notifications and
        metrics.
        """
    )
    words = beneath(Outcome)
    yield from table(
        ("outcome", "exit code", "meaning"),
        ((code(member.value), code(int(member.exit_code)), words[member.name]) for member in Outcome),
    )


# --- metrics


def _metrics() -> Page:
    yield from prose(
        """
        # Metrics

        At `metrics.listen`, `/metrics`, for Prometheus. Labels are names of the desired state. Totals of frontends
        continue over reloads of HAProxy. Alert rules: `deploy/prometheus/alerts.yaml`; [what to
        do](../operations.md).
        """
    )
    metrics = Metrics(_some_facts, lambda: None)
    metrics.note(
        Report(outcome=Outcome.COMMITTED, at=0.0, file="", timings=(("switch", 0.0),))
    )  # its labels appear then
    registry = metrics.registry
    rows = []
    for family in registry.collect():
        labels = sorted({name for sample in family.samples for name in sample.labels if name != "le"})
        labels = labels or list(getattr(family, "_labelnames", ()))
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        rows.append((code(f"{family.name}{suffix}"), family.type, ", ".join(map(code, labels)), family.documentation))
    yield from table(("metric", "type", "labels", "what"), sorted(rows))
    yield from prose(
        """
        `process_*` are those of the Prometheus clients: `process_cpu_seconds_total`,
        `process_resident_memory_bytes`, `process_open_fds`, of the agent's own process. They, `haproxy_open_fds` and
        `haproxy_resident_memory_bytes` need psutil, and are absent without it.

        `kind` of a drift: `file`, `frontend`, `process` or `server`. `state` of a server: `up`, `down`, `maintenance`
        or `draining`. `reason` of a quarantine: `in_use by PROGRAM`, `no_such_address`, `not_permitted` or `failed`.
        """
    )


def _some_facts() -> Facts:
    """Facts in which every metric has its place."""
    example = HERE.parent / "examples/mail-edge.yaml"
    parsed = parse(example.read_bytes(), file=example.name)
    live = Generation(number=1, digest=parsed.digest, config_digest="", loaded=1, at=0.0, outcome="committed")
    return Facts(
        version="",
        live=live,
        state=parsed.state,
        read=0.0,
        usage=Usage(processes={"serving": 1, "draining": 0}, memory=0, files=0),
    )


def _alerts() -> Page:
    rules = yaml.safe_load((HERE.parent / "deploy/prometheus/alerts.yaml").read_text())
    yield from prose(
        """
        # Alerts

        The rules of [alerts.yaml](../../deploy/prometheus/alerts.yaml). Each leads to
        what to do about it.
        """
    )
    yield from table(
        ("alert", "severity", "after", "fires when", "what to do"),
        (
            (
                code(rule["alert"]),
                rule["labels"]["severity"],
                rule.get("for", "at once"),
                code(" ".join(rule["expr"].split())),
                _runbook(rule["annotations"]["runbook_url"]),
            )
            for group in rules["groups"]
            for rule in group["rules"]
        ),
    )


def _runbook(url: str) -> str:
    """A link to a heading of the operations guide, out of an alert's `runbook_url`."""
    heading = url.partition("#")[2]
    return f"[{heading}](../operations.md#{heading})"


# --- status.json, and what notify.command receives


def _status() -> Page:
    yield from prose(
        """
        # status.json

        Schema 1: what `agent status --json` prints, and the file `status.json` in `paths.run`, replaced atomically
        after every reconcile and at least every few seconds. Times are ISO 8601 in UTC. New
        keys may be added; a key that stands here is not removed or changed within schema 1.
        """
    )
    yield from _type_of_status("The document", status.Status, set())
    yield "## Words"
    yield ""
    yield from members(Relation, "`not_in_sync.state`")
    yield from members(Result, "`handshake.result`")
    yield from members(Kind, "`events.event`")


def _type_of_status(title: str, cls: type, done: set[type]) -> Page:
    done.add(cls)
    about, types = beneath(cls), get_type_hints(cls)
    yield f"## {title}"
    yield ""
    yield from table(
        ("key", "type", "what"),
        ((code(key.name), _json_type(types[key.name]), about[key.name]) for key in attrs.fields(cls)),
    )
    for key in attrs.fields(cls):
        for part in _classes(types[key.name]):
            if part not in done:
                yield from _type_of_status(f"`{key.name}`", part, done)


def _json_type(kind: Any) -> str:
    arguments, origin = get_args(kind), get_origin(kind)
    if origin is tuple:
        return f"list of {_json_type(arguments[0])}"
    if type(None) in arguments:
        return " or ".join([*(_json_type(part) for part in arguments if part is not type(None)), "null"])
    return {str: "text", int: "number", float: "number", bool: "true or false"}.get(kind, "object")


def _notifications() -> Page:
    yield from prose(
        """
        # What notify.command receives

        One JSON document on standard input for each event, and for each change of outcome, generation, document,
        message or findings; so an `unchanged` follows each `committed` at the next resync. The same is a line in
        syslog.

        ## A change of the outcome
        """
    )
    report = Report(outcome=Outcome.COMMITTED, digest="9f86d0...", generation=42, at=0.0, file="")
    yield "```json"
    yield json.dumps(events.notice(None, report), indent=2)
    yield from prose(
        """
        ```

        `before` is the outcome before, `plan` is `unchanged`, `runtime` or `reload`; see [outcomes](exit-codes.md).

        ## An event
        """
    )
    event = Event(
        kind=Kind.FRONTEND_DOWN.value,
        subject="smtp",
        message="frontend smtp serves nobody: 0 of 4 servers up",
        at=1_795_859_387,
        until=1_795_859_387,
    )
    yield "```json"
    yield json.dumps(status.as_json(event_status(event)), indent=2)
    yield from prose(
        """
        ```

        The first change of a frontend is reported at once; further ones within a minute are reported together at
        its end, as one event with a `count`.
        """
    )
    yield from members(Kind, "event")


def write() -> None:
    """Write every page."""
    folder = HERE / "reference"
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(re.sub(r"\n{3,}", "\n\n", text))


if __name__ == "__main__":
    write()
