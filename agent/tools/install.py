"""`edgeagent.pyz install`: the one file puts itself, its rc scripts and first settings in place, and takes them away.

Every file is written aside and renamed, the agent's own name last: killed half-way, what was there goes on as it was.
Each version has a file of its own, because a running agent still reads the one it was started from.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from agent import __version__
from agent.errors import AgentError, ExitCode, InvalidError, UsageError
from agent.host import processes
from agent.host.store import Store, write
from agent.settings import FolderText, Paths, Settings, parse
from agent.tools import bytecode, configxml
from agent.tools.place import Place

_OURS = "# Written by edgeagent.pyz install"
_MARKS = (_OURS, "edgeagent_start()", "# What pfSense boots", "# What systemd starts")  # of what is ours
_PAGE = '"edgeagent '  # in the first line of each man page of ours
_RUNS_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_SECONDS = 120.0  # for the rc script, which is bounded itself

_WRAPPER = """\
#!/bin/sh
{ours}; it is replaced by each. The version is named here, so that what runs keeps its own.
for python in {python} /usr/local/bin/python3.1[1-9] {more}; do
	[ -x "$python" ] && exec "$python" -I {program} "$@"
done
echo "agent: no Python 3.11 or newer is here any more" >&2
exit 127
"""
_SETTINGS = """\
{ours}, once; yours from here on. Every key that is left out has a default.
[paths]
desired = "{config}/desired.yaml"
state = "{state}"
run = "{run}"

[haproxy]
# What HAProxy drops to once its addresses are bound; the folder is empty, and stays so.
user = "{user}"
group = "{group}"
chroot = "{empty}"
"""
_RC_CONF = """\
{ours}, once; yours from here on. The rc script lists every variable.
edgeagent_enable="YES"
"""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A folder where a file should be, a disk that is full: said, with its place."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or 'install'}: {error.strerror}") from error


def install(root: Path | None, *, platform: str = "") -> None:
    """Put everything in place, and restart an agent that runs.

    `platform`: pfsense, freebsd or linux, "" for what is found.
    Raises UsageError where this is not the one file, or a file of somebody else is in the way.
    """
    place, source = Place.of(root, platform), _one_file()
    os.umask(0o022)
    for file in (place.wrapper, *place.services):
        _nobody_elses(file)
    yours = (place.settings,) if place.linux else (place.settings, place.rc_conf)
    for file in yours:
        if file.is_symlink() and not file.exists():
            raise UsageError(f"{file} is a link that leads nowhere", remedy="mend it, or take it away")
    written: list[Path] = []
    data = source.read_bytes()
    program = place.library / f"edgeagent-{__version__}-{bytecode.identity(data)[:8]}{_tag(place)}.pyz"
    if place.real and not bytecode.is_for_this_python(data):
        data = _compiled(data, program)
    empty = place.library / "empty"
    for folder, mode in ((place.library, 0o755), (empty, 0o555), (place.at(place.state_path), 0o700)):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
    _remember(place, program, written)
    _put(program, data, 0o755, written)
    for script in place.services:
        mode = 0o644 if script == place.unit else 0o755
        _put(script, resources.files("agent.rc").joinpath(script.name).read_bytes(), mode, written)
    if place.manuals is not None:
        for page in _pages():
            _put(place.manuals / page.name, page.read_bytes(), 0o644, written)
    values = {
        "ours": _OURS,
        "config": place.config_path,
        "state": place.state_path,
        "run": place.run_path,
        **_account(place),
        "empty": f"/usr/local/libexec/edgeagent/{empty.name}",
    }
    for file, text in zip(yours, (_SETTINGS, _RC_CONF), strict=False):
        if not file.exists():
            _put(file, text.format(**values).encode(), 0o644, written)
    named = f"/usr/local/libexec/edgeagent/{program.name}"
    python = shlex.quote(_python() if place.real else "/usr/local/bin/python3.11")
    # A Linux's own python3 may be older than 3.11; those with a number in their names are not.
    more = "/usr/bin/python3.1[1-9]" if place.linux else "/usr/local/bin/python3"
    wrapper = _WRAPPER.format(ours=_OURS, python=python, more=more, program=named)
    _put(place.wrapper, wrapper.encode(), 0o755, written)
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(f"edgeagent {__version__} is installed{'' if written else ' already'} ({_kind(place)}).")
    try:
        _link(place)
    except UsageError as error:  # HAProxy comes by its own package, now or later
        click.echo(f"{error}{f': {error.remedy}' if error.remedy else ''}", err=True)
    restarted = _restart(place)
    _prune(place, program)
    if not restarted:
        start = "systemctl enable --now edgeagent" if place.linux else f"{place.rc_scripts[-1]} start"
        click.echo(_NEXT.format(config=place.at(place.config_path), start=start), nl=False)


_NEXT = """\
Next:
  1. write {config}/desired.yaml (`agent import` makes one out of what is there), `agent check`
  2. agent doctor
  3. {start}
"""


def _tag(place: Place) -> str:
    """What the name of the file has for another Python than pfSense's: a file for each, as for each version."""
    later = place.real and bytecode.label() != "3.11"
    return f"-py{bytecode.label()}" if later else ""


def _compiled(data: bytes, program: Path) -> bytes:
    """With byte code for this Python: as it was made before, where that is there and whole."""
    with contextlib.suppress(OSError, zipfile.BadZipFile):
        known = program.read_bytes()
        if bytecode.is_for_this_python(known) and bytecode.identity(known) == bytecode.identity(data):
            return known
    click.echo(f"compiling for Python {bytecode.label()}", err=True)
    return bytecode.compiled(data)


def revert(root: Path | None) -> None:
    """Put the version before this one in place again, by its own installer. Raises UsageError where there is none."""
    place = Place.of(root)
    link = place.library / "previous"
    if not link.is_symlink() or not (old := link.parent / link.readlink()).exists():
        raise UsageError("no earlier version is kept here", remedy="run the earlier edgeagent.pyz install")
    arguments = [_python(), "-I", str(old), "install", *(() if root is None else ("--root", str(root)))]
    done = subprocess.run(arguments, check=False)  # noqa: S603  # our own file, an argument list
    raise SystemExit(done.returncode)


def uninstall(root: Path | None, *, purge: bool) -> None:
    """Stop the agent and take everything away but what is yours: settings, desired state, state. `purge`: that too.

    HAProxy goes on serving; with `purge` it is ended as well, because what it runs is taken away.
    """
    place = Place.of(root)
    if place.unit.exists() and not place.linux:  # installed by --platform
        place = Place.of(root, "linux")
    _nobody_elses(place.wrapper)
    chosen = _chosen(place)
    state, run = place.at(chosen.paths.state), place.at(chosen.paths.run)
    if place.real:
        _end_agent(place, chosen)
        if purge:
            _end_haproxy(state)
    gone: list[Path] = []
    try:
        for entry in (configxml.SERVICE, configxml.SHELLCMD):
            if configxml.remove(place.config, entry):
                click.echo(f"took {entry.what} out of {place.config}")
    except (UsageError, InvalidError) as error:
        click.echo(f"agent: {place.config} was not looked at: {error}", err=True)
    conf = [place.rc_conf] if purge or _is_ours(place.rc_conf, _RC_CONF.format(ours=_OURS)) else []
    for path in (place.wrapper, *place.every_service, *conf):
        _remove(path, gone)
        for fresh in path.parent.glob(f".{path.name}.*.tmp"):  # of an install that was killed
            fresh.unlink()
    _remove(place.library, gone)
    for page in sorted(place.manuals.glob("agent*.1")) if place.manuals is not None else ():
        if _PAGE in page.read_text(errors="replace"):
            _remove(page, gone)
    if place.linux and place.real and _RUNS_SYSTEMD.exists():
        _systemctl("daemon-reload")
    yours = [place.settings.parent, place.rc_conf, state]
    # A folder that agent.toml names may be anything: only our own places are emptied.
    known = [place.settings.parent, place.at(place.state_path), place.at(place.run_path)]
    for path in known if purge else ():
        _remove(path, gone)
    for path in gone:
        click.echo(f"removed {path}")
    left = [str(path) for path in (*yours, *([run] if purge else [])) if path.exists()]
    how = "named in agent.toml; take them away yourself" if purge else "--purge"
    click.echo("edgeagent is gone." + (f" Yours is still there: {', '.join(left)} ({how})" if left else ""))


# --- pieces -----------------------------------------------------------------------------------------------------


def _one_file() -> Path:
    import agent

    archive = getattr(agent.__loader__, "archive", None)
    if archive is None:
        raise UsageError(
            "install puts the one file in place, and this is not it",
            remedy="make pyz, then: python3.11 dist/edgeagent-VERSION.pyz install",
        )
    return Path(archive)


def _pages() -> list[Traversable]:
    pages = (page for page in resources.files("agent.man").iterdir() if page.name.endswith(".1"))
    return sorted(pages, key=lambda page: page.name)


def _python() -> str:
    """By its own name, not through a link that an upgrade moves to another version."""
    return str(Path(sys.executable).resolve())


def _kind(place: Place) -> str:
    return f"{place.platform.why}; root {place.root}"


def _nobody_elses(file: Path) -> None:
    """Raises UsageError where something is there that no installer of ours has written."""
    text = file.read_text(errors="replace") if file.is_file() and not file.is_symlink() else ""
    if not any(mark in text for mark in _MARKS) and (file.exists() or file.is_symlink()):
        raise UsageError(f"{file} is somebody else's", remedy="move it away, and run this again")


def _is_ours(file: Path, text: str) -> bool:
    return file.is_file() and not file.is_symlink() and file.read_text(errors="replace") == text


def _chosen(place: Place) -> Settings:
    """What agent.toml names; where it cannot be read, what the installer wrote."""
    with contextlib.suppress(OSError, UsageError):
        return parse(place.settings.read_bytes(), str(place.settings))
    return Settings(paths=Paths(state=FolderText(place.state_path), run=FolderText(place.run_path)))


def _put(file: Path, data: bytes, mode: int, written: list[Path]) -> None:
    """Old or new, never between; nothing where it is so already."""
    if file.is_file() and file.read_bytes() == data and stat.S_IMODE(file.stat().st_mode) == mode:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, data, mode=mode)
    written.append(file)


def _current(place: Place) -> Path | None:
    """The version that the command runs now."""
    if not place.wrapper.is_file():
        return None
    match = re.search(r"/(edgeagent-[^/ ]+\.pyz) ", place.wrapper.read_text(errors="replace"))
    file = place.library / match[1] if match else None
    return file if file is not None and file.is_file() else None


def _remember(place: Place, program: Path, written: list[Path]) -> None:
    """The version that runs until now is what `--revert` goes back to: known before another one is named."""
    before, link = _current(place), place.library / "previous"
    if before is None or before == program or (link.is_symlink() and link.readlink() == Path(before.name)):
        return
    fresh = link.with_name(".previous.fresh")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(before.name)
    fresh.replace(link)
    written.append(link)


def _prune(place: Place, program: Path) -> None:
    """Versions before the one before go, once the new one runs."""
    link = place.library / "previous"
    kept = {program.name, link.readlink().name if link.is_symlink() else ""}
    for path in place.library.glob("edgeagent-*.pyz"):
        if path.name not in kept:
            path.unlink()


def _link(place: Place) -> None:
    """HAProxy under its own name, now rather than at the first change (facts.md, pfSense 3)."""
    from agent.host.haproxy_process import HAProxy

    chosen = _chosen(place)
    where = "/usr/sbin/haproxy" if place.linux else "/usr/local/sbin/haproxy"
    binary, state = place.at(where), place.at(chosen.paths.state)
    ours = HAProxy(binary=binary, process_name=chosen.haproxy.process_name, state=state, run=state)
    click.echo(f"HAProxy runs as {ours.named_binary()}")


def _restart(place: Place) -> bool:
    """An agent that runs becomes the new version; what HAProxy serves is not touched. Whether there was one."""
    if place.linux and place.real and _RUNS_SYSTEMD.exists():
        _systemctl("daemon-reload")
    if not place.real or not _store(_chosen(place)).service_running():
        return False
    if place.linux and not _RUNS_SYSTEMD.exists():
        click.echo("an agent runs, and no systemd: have your init system restart it")
        return True
    if (_systemctl("restart") if place.linux else _run_rc(place.rc_scripts[0], "onerestart")) != 0:
        raise AgentError("the new version does not start", remedy="edgeagent.pyz install --revert")
    return True


def _account(place: Place) -> dict[str, str]:
    """FreeBSD and pfSense have www; a Linux has what its haproxy package makes, else nobody."""
    if not place.linux:
        return {"user": "www", "group": "www"}
    user = "haproxy" if "haproxy" in _names_in(place, "/etc/passwd") else "nobody"
    groups = _names_in(place, "/etc/group")
    return {"user": user, "group": user if user in groups or not groups else "nogroup"}  # Debian has no group nobody


def _names_in(place: Place, file: str) -> list[str]:
    try:
        return [line.partition(":")[0] for line in place.at(file).read_text().splitlines()]
    except OSError:
        return []


def _run_rc(script: Path, verb: str) -> int:
    return _run([str(script), verb])


def _systemctl(verb: str) -> int:
    return _run(["systemctl", verb, *(() if verb == "daemon-reload" else ("edgeagent.service",))])


def _run(command: list[str]) -> int:
    try:
        return subprocess.run(  # noqa: S603  # our own script, or systemctl
            command, stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        click.echo(f"agent: {' '.join(command)}: {error}", err=True)
        return int(ExitCode.BUG)


def _store(chosen: Settings) -> Store:
    return Store(Path(chosen.paths.state), Path(chosen.paths.run), keep=1)


def _end_agent(place: Place, chosen: Settings) -> None:
    """Raises AgentError where it does not end: then nothing is taken away."""
    script = place.services[0]
    if place.linux and script.exists() and _RUNS_SYSTEMD.exists():
        _run(["systemctl", "disable", "--now", "edgeagent.service"])
    elif script.exists() and not place.linux:
        _run_rc(script, "onestop")
    if _store(chosen).service_running():
        raise AgentError("an agent still runs; nothing was removed", remedy="end it, and run this again")


def _end_haproxy(state: Path) -> None:
    """What was started on our own configuration, replaced ones too; nobody else's."""
    for process in processes.started_on(state / "haproxy.cfg", programs=state / "bin"):
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(process.pid, signal.SIGTERM)
        click.echo(f"ended HAProxy, pid {process.pid}")


def _remove(path: Path, gone: list[Path]) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    else:
        return
    gone.append(path)
