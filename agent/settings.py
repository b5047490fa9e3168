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
from typing import NewType

from attrs import frozen

from agent.desired import structure
from agent.desired.structure import Scalar, describe, expected
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
    state: FolderText = FolderText("/var/db/edgeagent" if _FREEBSD else "/var/lib/edgeagent")
    run: FolderText = FolderText("/var/run/edgeagent" if _FREEBSD else "/run/edgeagent")
    templates: OptionalFolder = OptionalFolder("")


@frozen(kw_only=True)
class Haproxy:
    """The HAProxy that is run, and its user. `ca_file` "": the system's own bundle."""

    binary: str = "haproxy"
    process_name: ProcessName = ProcessName("edge-haproxy")
    user: Account = Account("")
    group: Account = Account("")
    chroot: OptionalFolder = OptionalFolder("")
    maxconn: Count = Count(4_000)
    hard_stop_after: Milliseconds = Milliseconds(900_000)
    max_draining: Count = Count(4)
    log: LogAddress = LogAddress("")
    ca_file: OptionalFolder = OptionalFolder("")


@frozen(kw_only=True)
class Apply:
    """How changes are applied; times in milliseconds."""

    debounce: Milliseconds = Milliseconds(25)
    resync: Milliseconds = Milliseconds(30_000)
    verify_timeout: Milliseconds = Milliseconds(10_000)
    probe: ProbeMode = ProbeMode.MISMATCH
    keep_generations: Count = Count(20)


@frozen(kw_only=True)
class Metrics:
    """Where metrics and the status page are served. "": nowhere.

    `certificate` and `key`: PEM files, for TLS; `passwords`: a file of `user:password` lines, for basic authentication.
    """

    listen: ListenAddress = ListenAddress("127.0.0.1:9127")
    certificate: OptionalFolder = OptionalFolder("")
    key: OptionalFolder = OptionalFolder("")
    passwords: OptionalFolder = OptionalFolder("")


@frozen(kw_only=True)
class Sync:
    """What a desired state must be to be taken."""

    allowed_signers: OptionalFolder = OptionalFolder("")
    max_bytes: Count = Count(1_048_576)


@frozen(kw_only=True)
class Notify:
    """A program that receives each change of the outcome, as JSON on its standard input. "": none."""

    command: OptionalFolder = OptionalFolder("")


@frozen(kw_only=True)
class Settings:
    """All of agent.toml."""

    paths: Paths = Paths()
    haproxy: Haproxy = Haproxy()
    apply: Apply = Apply()
    metrics: Metrics = Metrics()
    sync: Sync = Sync()
    notify: Notify = Notify()

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
    if not value.isprintable() or any(one in value for one in _NOT_IN_PATHS):
        raise ValueError(
            f"a path without any of {_NOT_IN_PATHS} and control characters is expected, got {describe(value)}"
        )
    return FolderText(value)


def _optional_folder(value: object) -> OptionalFolder:
    return OptionalFolder("" if value == "" else _folder(value))


_PROCESS_NAME = structure.matching(
    r"[a-z][a-z0-9._-]{0,14}", "a process name of at most 15 of a-z 0-9 . _ -", label="process name"
)


def _process_name(value: object) -> str:
    name = _PROCESS_NAME.hook(value)
    if name == "haproxy":
        # facts.md, pfSense 3: the haproxy package takes any process of this name for its own, and kills it.
        raise ValueError('must not be "haproxy": pfSense\'s haproxy package kills every process of that name')
    return str(name)


_SCALARS: dict[object, Scalar] = {
    FolderText: Scalar(_folder, "absolute path", {"type": "string"}),
    OptionalFolder: Scalar(_optional_folder, "absolute path or nothing", {"type": "string"}),
    ProcessName: Scalar(_process_name, _PROCESS_NAME.label, _PROCESS_NAME.json_schema),
    Account: structure.matching(r"(?:[a-z_][a-z0-9_.-]{0,31})?", "the name of a user or group", label="account"),
    LogAddress: structure.matching(
        r"[A-Za-z0-9./:@_\[\]-]{0,200}", "a syslog address, such as 127.0.0.1:514", label="syslog address"
    ),
    ListenAddress: structure.matching(
        r"(?:[0-9a-fA-F.:\[\]]+:[0-9]{1,5})?", "an address and a port", label="address:port"
    ),
    Count: structure.whole(1, 100_000_000),
    Milliseconds: structure.DURATION,
}
_CONVERTER = structure.converter(_SCALARS)


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
    built = structure.structure(_CONVERTER, tree, Settings)
    problems = [f"{file}: {dotted(fault.path)}: {fault.message}" for fault in built.faults]
    if built.value is not None and len(built.value.paths.run.encode()) > MAX_RUN_PATH:
        problems.append(
            f"{file}: paths.run: longer than {MAX_RUN_PATH} bytes; HAProxy's socket could not be bound in it"
        )
    if problems or built.value is None:
        raise UsageError("\n".join(problems), remedy="correct these keys; every other one keeps its default")
    return built.value
