"""What `agent doctor` looks at, check by check. Each looks and touches nothing; each finding says what to do.

`broken`: the agent cannot do its work; `look`: needs attention; `note`: worth knowing; `ok`.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attrs import frozen

from agent import __version__
from agent.desired.addresses import Endpoint, endpoint
from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.errors import AgentError, InvalidError, UsageError
from agent.host import listeners
from agent.host.documents import read
from agent.host.files import read_regular
from agent.host.haproxy_process import HAProxy
from agent.host.limits import file_limit, limits_of
from agent.host.listener import Listener
from agent.host.store import Store
from agent.settings import Settings
from agent.tools import basetools
from agent.tools.basetools import Address
from agent.tools.platform import System, detect

_SECONDS = 10.0  # for each of the system's own tools
_OLDEST = (2, 6)  # the oldest HAProxy that is tested
_LITTLE = 1_000_000  # bytes left in the run folder: sockets, status.json of a thousand frontends
_SLACK = 300.0  # seconds that a clock may lag behind what was written
_LOST = "without it: no memory and files of HAProxy in metrics, no session counts of replaced processes"
_MODULES = ("click", "jinja2", "watchdog", "prometheus_client", "yaml", "attrs", "cattrs")
_KEYS = ("root/.ssh/authorized_keys", "home/*/.ssh/authorized_keys", "usr/home/*/.ssh/authorized_keys")
_REOPENS = {"port-forwarding", "pty", "agent-forwarding", "x11-forwarding", "user-rc"}


@frozen(kw_only=True)
class Found:
    """One finding."""

    level: str
    """`ok`, `note`, `look` or `broken`"""
    what: str
    """what it is about"""
    message: str
    """what was found"""
    remedy: str = ""
    """what to do"""


@frozen(kw_only=True)
class Scene:
    """This host as the checks see it."""

    settings: Settings
    """of this host"""
    ask: Callable[[Sequence[str]], str]
    """what a tool of the system prints, "" where it is not there"""
    root: Path = Path("/")
    """of the file system"""
    listening: tuple[Listener, ...] = ()
    """listening TCP sockets"""
    state: DesiredState | None = None
    """the desired state; None: there is no valid one"""
    addresses: tuple[Address, ...] = ()
    """of this host's interfaces"""
    now: float = 0.0
    """seconds since the epoch"""

    @property
    def system(self) -> str:
        """`pfSense`, `FreeBSD` or `Linux`: whose remedies are named."""
        detected = detect(self.root).system
        if self.root != Path("/") and detected is System.FREEBSD and not sys.platform.startswith("freebsd"):
            return System.LINUX.value
        return System.FREEBSD.value if detected is System.OPNSENSE else detected.value

    @property
    def store(self) -> Store:
        """The agent's folders."""
        return Store(self.settings.state, self.settings.run, keep=self.settings.apply.keep_generations)

    @property
    def haproxy(self) -> HAProxy:
        """The HAProxy of the settings."""
        settings = self.settings.haproxy
        return HAProxy(
            binary=settings.binary, process_name=settings.process_name, state=self.settings.state, run=self.settings.run
        )

    @property
    def binds(self) -> list[tuple[str, Endpoint]]:
        """Every address that should be served, with its frontend."""
        return (
            [(frontend.name, bind) for frontend in self.state.frontends for bind in frontend.bind] if self.state else []
        )


_START = {
    "pfSense": "/usr/local/etc/rc.d/edgeagent.sh start",
    "FreeBSD": "service edgeagent start",
    "Linux": "start its service, or `agent run`",
}
_GET_HAPROXY = {
    "pfSense": "install the haproxy package (System > Package Manager), or set haproxy.binary in agent.toml",
    "FreeBSD": "pkg install haproxy, or set haproxy.binary in agent.toml",
    "Linux": "install your system's haproxy package (apt install haproxy), or set haproxy.binary in agent.toml",
}
_GET_PSUTIL = {
    "pfSense": "pkg install py311-psutil",
    "FreeBSD": "pkg install py311-psutil",
    "Linux": "install your system's psutil package (apt install python3-psutil)",
}
_RAISE_FILES = {
    "pfSense": "System > Advanced > System Tunables: kern.maxfilesperproc; or lower haproxy.maxconn in agent.toml",
    "FreeBSD": "raise kern.maxfilesperproc (sysctl.conf), or lower haproxy.maxconn in agent.toml",
    "Linux": "raise the limit of open files (ulimit -n, LimitNOFILE), or lower haproxy.maxconn in agent.toml",
}


def _ok(what: str, message: str) -> Found:
    return Found(level="ok", what=what, message=message)


def _note(what: str, message: str, remedy: str = "") -> Found:
    return Found(level="note", what=what, message=message, remedy=remedy)


def _look(what: str, message: str, remedy: str) -> Found:
    return Found(level="look", what=what, message=message, remedy=remedy)


def _broken(what: str, message: str, remedy: str) -> Found:
    return Found(level="broken", what=what, message=message, remedy=remedy)


def checked(scene: Scene, desired: Sequence[Found] = ()) -> Iterator[Found]:
    """Each check in turn. One that fails in itself is a finding, not the end."""
    for check in (_host, _python, _binary, _folders, _running):
        yield from _guarded(check, scene)
    yield from desired
    for check in (_binds, _package, _web_gui, _nat, _carp, _limits, _clock, _gate, _signers, _service, _metrics):
        yield from _guarded(check, scene)


def _guarded(check: Callable[[Scene], Iterator[Found]], scene: Scene) -> Iterator[Found]:
    what = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(scene)
    except Exception as error:  # noqa: BLE001  # what one check meets must not take the others away
        yield _look(what, f"cannot be looked at: {error}", "run `agent doctor` as root")


# --- the agent itself -------------------------------------------------------------------------------------------


def _host(scene: Scene) -> Iterator[Found]:
    host = detect(scene.root)
    if host.system is System.OPNSENSE:
        yield _look("host", f"taken for {host.why}", "it is not tested there; `agent install` refuses it")
    else:
        yield _ok("host", f"taken for {host.why}")


def _python(scene: Scene) -> Iterator[Found]:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        yield _broken("python", f"these packages are missing: {', '.join(missing)}", "run the one file, which has them")
    version = ".".join(map(str, sys.version_info[:3]))
    yield _ok("python", f"{version}, edgeagent {__version__}")
    if importlib.util.find_spec("psutil") is None:
        yield _note("psutil", f"not installed; {_LOST}", _GET_PSUTIL[scene.system])


def _binary(scene: Scene) -> Iterator[Found]:
    try:
        original = scene.haproxy.program
    except UsageError as error:
        yield _broken("haproxy", str(error), _GET_HAPROXY[scene.system])
        return
    with scene.haproxy.borrowed() as binary:
        built = basetools.build(scene.ask([str(binary), "-vv"]))
    if built is None:
        message = f"{original} -vv does not say that it is HAProxy"
        yield _broken("haproxy", message, _GET_HAPROXY[scene.system])
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", built.version)[:2])
    exporter = "with" if built.exporter else "without"
    about = f"{original}: {built.version}, {exporter} its own exporter (not needed)"
    if numbers < _OLDEST:
        yield _look("haproxy", f"{about}; the oldest that is tested is 2.6", "upgrade it")
    else:
        yield _ok("haproxy", about)
    named = scene.settings.state / "bin" / scene.settings.haproxy.process_name
    if not named.exists():
        yield _note("process name", f"{named} is made at the first change")
        return
    have, origin = named.stat(), original.stat()
    if have.st_ino != origin.st_ino and (have.st_size, have.st_mtime_ns) != (origin.st_size, origin.st_mtime_ns):
        yield _look(
            "process name",
            f"{named} is not {original} any more: HAProxy was upgraded",
            "nothing: the next reload runs the new one",
        )
    else:
        yield _ok("process name", f"{named.name}, which the haproxy package leaves alone")


def _folders(scene: Scene) -> Iterator[Found]:
    mounts = dict(basetools.file_systems(scene.ask(["mount", "-p"]) or _read(scene.root / "proc/mounts") or ""))
    for what, folder in (("state folder", scene.settings.state), ("run folder", scene.settings.run)):
        if not folder.exists():
            yield _note(what, f"{folder} is made at the start")
            continue
        about = folder.stat()
        if about.st_uid not in (os.geteuid(), 0) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.filemode(about.st_mode)
            yield _look(
                what,
                f"{folder} ({mode}, uid {about.st_uid}) can be written by others",
                f"chown root {folder}; chmod 700 {folder}",
            )
            continue
        kind = _kind_of(folder, mounts)
        free = os.statvfs(folder)
        left = free.f_bavail * free.f_frsize
        if what == "state folder" and kind in ("tmpfs", "mfs", "md"):
            yield _look(
                what,
                f"{folder} is in memory ({kind}): what was live is lost at a reboot",
                "paths.state under /usr/local (pfSense with RAM disks loses /var and /tmp)",
            )
        elif left < _LITTLE:
            yield _look(what, f"{folder}: {left:,} bytes are free", "make room there")
        else:
            yield _ok(what, f"{folder}, {left / 1e6:,.0f} MB free{f', {kind}' if kind else ''}")


def _kind_of(folder: Path, mounts: dict[str, str]) -> str:
    """Of the file system a folder is on; md devices are memory too."""
    inside = [place for place in mounts if folder.resolve().is_relative_to(place)]
    return mounts[max(inside, key=len)] if inside else ""


def _running(scene: Scene) -> Iterator[Found]:
    served, live = scene.store.service_running(), scene.store.live()
    running = scene.haproxy.running()
    if served:
        yield _ok("agent", "runs")
    else:
        yield _look(
            "agent",
            "does not run: nothing follows the desired state",
            _START[scene.system],
        )
    if running is not None:
        yield _ok("stats socket", f"HAProxy {running.version} answers, pid {running.pid}")
    elif live is not None:
        yield _broken(
            "stats socket",
            f"generation {live.number} should be live, and no HAProxy answers at {scene.haproxy.socket.path}",
            "start the agent: it starts HAProxy; `agent status` says why it does not",
        )
    else:
        yield _note("stats socket", "no HAProxy yet, and nothing is live")


def desired(settings: Settings) -> tuple[DesiredState | None, list[Found]]:
    """The desired state where it is valid, and what is to be said of it."""
    limits = limits_of(settings)
    file = settings.desired
    if not file.exists():
        live = Store(settings.state, settings.run).live()
        serves = f"generation {live.number} goes on serving" if live else "nothing to serve yet"
        return None, [_look("desired state", f"{file} is not there: {serves}", "write it; `agent import` helps")]
    try:
        parsed = parse(read(file, settings), file=str(file), max_bytes=settings.sync.max_bytes, limits=limits)
    except InvalidError as error:
        first = str(error).splitlines()[0]
        return None, [_look("desired state", first, "agent check")]
    except (AgentError, OSError) as error:
        remedy = getattr(error, "remedy", "") or "agent check"
        return None, [_broken("desired state", str(error), remedy)]
    count = len(parsed.state.frontends)
    findings = [_ok("desired state", f"valid, {count} frontends")]
    findings += [
        _look("desired state", f"{finding.where}: {finding.message}", finding.remedy) for finding in parsed.findings
    ]
    return parsed.state, findings


# --- addresses --------------------------------------------------------------------------------------------------


def _binds(scene: Scene) -> Iterator[Found]:
    name, good = scene.settings.haproxy.process_name, 0
    for frontend, bind in scene.binds:
        what = f"frontend {frontend}"
        holding = listeners.holders(bind, scene.listening)
        # sockstat prints the first ten letters of a name.
        foreign = [listener for listener in holding if not (listener.program and name.startswith(listener.program))]
        # Where ours has the very address, a foreign wildcard takes nothing: the kernel prefers the nearer match.
        served = any(listener.endpoint == bind and listener not in foreign for listener in holding)
        if foreign and (not served or bind.wildcard or any(not listener.endpoint.wildcard for listener in foreign)):
            holders = ", ".join(sorted({str(listener) for listener in foreign}))
            yield _look(what, f"{bind} is held by {holders}", "free it, or take it out")
            continue
        if len(holding) > len(foreign):
            good += 1
            continue
        why = listeners.unbound(bind)
        if why is None:
            good += 1
        elif why.reason == "not_permitted":
            yield _broken(what, f"{bind}: {why.detail}", "run the agent as root")
        else:
            yield _look(what, f"{bind}: {why.detail}", _elsewhere(scene, bind))
    if scene.binds:
        yield _ok("addresses", f"{good} of {len(scene.binds)} are served or can be")


def _elsewhere(scene: Scene, bind: Endpoint) -> str:
    if scene.addresses and bind.host not in {address.address for address in scene.addresses}:
        return "give it to an interface or a virtual IP, or take it out; it goes live by itself once it is there"
    return "it goes live by itself once it can be bound"


def _package(scene: Scene) -> Iterator[Found]:
    """The haproxy package of pfSense, which leaves what has another name alone (facts.md, pfSense 3)."""
    installed = basetools.packages(scene.ask(["pkg", "info"]))
    theirs = sorted({str(listener.endpoint) for listener in scene.listening if listener.program == "haproxy"})
    if "pfSense-pkg-haproxy" in installed or theirs:
        binds = f"; it listens on {', '.join(theirs[:10])}" if theirs else "; it listens nowhere"
        yield _note(
            "haproxy package",
            f"pfSense's own is here ({installed.get('pfSense-pkg-haproxy', 'running')}){binds}",
            "both go on beside each other; `agent import /cf/conf/config.xml` takes its frontends over",
        )


def _web_gui(scene: Scene) -> Iterator[Found]:
    gui = [
        listener for listener in scene.listening if listener.program == "nginx" and listener.endpoint.port in (80, 443)
    ]
    ports = {bind.port for _, bind in scene.binds}
    taken = sorted({listener.endpoint.port for listener in gui} & ports)
    if taken:
        numbers = " and ".join(map(str, taken))
        yield _look(
            "web GUI",
            f"it listens on {numbers}, and so should a frontend",
            "System > Advanced > Admin Access: another TCP port (8443), and disable the redirect rule on 80",
        )


def _nat(scene: Scene) -> Iterator[Found]:
    rules = scene.ask(["pfctl", "-sn"])
    redirects = basetools.redirects(rules)
    odd = basetools.unread_redirects(rules)
    if odd:
        yield _note("NAT", f"{odd} redirects were not understood", "pfctl -sn")
    served = {(bind.host, bind.port) for _, bind in scene.binds}
    anywhere = {bind.port for _, bind in scene.binds if bind.wildcard}
    wanted = {bind.port for _, bind in scene.binds}
    right = 0
    for redirect in redirects:
        # Clients come to the port of the rule, whether that is a frontend's or leads to one.
        first, last = redirect.ports
        near = {port for port in wanted if first <= port <= last}
        if redirect.target_ports is not None:
            low = redirect.target_ports[0]
            near |= {first + port - low for port in wanted if first <= first + port - low <= last}
        past = sorted(
            port
            for port in near
            if (target_port := redirect.target_port(port)) not in anywhere
            and not all((target, target_port) in served for target in redirect.targets)
        )
        right += bool(near) and not past
        if past:
            numbers = f"port {past[0]}" if len(past) == 1 else f"ports {', '.join(map(str, past))}"
            yield _look(
                "NAT",
                (
                    f"{numbers} of {redirect.to} on {redirect.interface} goes to {' and '.join(redirect.targets)}, "
                    "past HAProxy"
                ),
                "Firewall > NAT > Port Forward: the address of the frontend, or take the frontend out",
            )
    if right:
        yield _ok("NAT", f"{right} redirects lead to frontends")


def _carp(scene: Scene) -> Iterator[Found]:
    wanted = {bind.host for _, bind in scene.binds}
    for address in scene.addresses:
        if address.address in wanted and address.vhid is not None:
            where = f"{address.address} (vhid {address.vhid} on {address.interface}) is {address.carp}"
            if address.carp == "MASTER":
                yield _ok("CARP", where)
            else:
                yield _note("CARP", f"{where}: clients come to the other firewall")


# --- the rest ---------------------------------------------------------------------------------------------------


def _limits(scene: Scene) -> Iterator[Found]:
    limit, maxconn = file_limit(), scene.settings.haproxy.maxconn
    if limit is not None and 2 * maxconn + 100 > limit:
        yield _look(
            "file limit",
            f"haproxy.maxconn {maxconn:,} takes {2 * maxconn + 100:,} files; the limit is {limit:,}",
            _RAISE_FILES[scene.system],
        )
    elif limit is None:
        yield _note("file limit", "no limit is known for this user")
    else:
        yield _ok("file limit", f"{limit:,}, enough")


def _clock(scene: Scene) -> Iterator[Found]:
    newest = max((generation.at for generation in scene.store.generations()), default=0.0)
    if newest > scene.now + _SLACK:
        yield _look(
            "clock",
            f"it is {newest - scene.now:,.0f} s before the newest generation",
            "set it (ntpd); times in history and metrics are wrong until then",
        )
    else:
        yield _ok("clock", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(scene.now)))


def _gate(scene: Scene) -> Iterator[Found]:
    files = [file for pattern in _KEYS for file in sorted(scene.root.glob(pattern))]
    texts = {file: _read(file) for file in files}
    unread = [str(file) for file, text in texts.items() if text is None]
    if unread or os.geteuid() != 0:
        what = ", ".join(unread) or "the keys of other users"
        yield _look("gate", f"cannot read {what}", "run `agent doctor` as root")
    lines = [(file, line) for file in files for line in (texts[file] or "").splitlines() if not line.startswith("#")]
    ours = [(file, line) for file, line in lines if re.search(r'command="[^"]*agent[^"]* gate"', line)]
    for file, line in ours:
        if not _restricted(line):
            yield _look(
                "gate",
                f"a key in {file} runs the gate and is not restricted: it may forward ports",
                "agent gate --print-authorized-key KEYFILE prints the line",
            )
    if ours:
        yield _ok("gate", f"{len(ours)} keys run `agent gate`")
    elif not unread and os.geteuid() == 0:
        yield _note(
            "gate",
            "no ssh key runs `agent gate`: nobody can `agent sync` to this host",
            "agent gate --print-authorized-key KEYFILE prints the line for authorized_keys",
        )


def _restricted(line: str) -> bool:
    """By the options in front of the key: sshd(8), AUTHORIZED_KEYS."""
    front = re.match(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+', line)
    options = re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', front[0] if front else "")
    names = {option.partition("=")[0].lower() for option in options}
    return "restrict" in names and not names & _REOPENS


def _signers(scene: Scene) -> Iterator[Found]:
    chosen = scene.settings.sync.allowed_signers
    if not chosen:
        return
    text = _read(Path(chosen))
    if not text:
        yield _broken(
            "signers",
            f"{chosen} {'cannot be read' if text is None else 'is empty'}: no document is accepted",
            "put the signers' public keys there (ssh-keygen(1), ALLOWED SIGNERS)",
        )
    else:
        yield _ok("signers", f"documents must be signed by a key of {chosen}")


def _service(scene: Scene) -> Iterator[Found]:
    script = scene.root / "usr/local/etc/rc.d/edgeagent"
    if not script.exists():
        return
    texts = {file: _read(file) for file in _rc_files(scene.root)}
    if unread := [f"/{file.relative_to(scene.root)}" for file, content in texts.items() if content is None]:
        yield _look("boot", f"cannot read {', '.join(unread)}", "run `agent doctor` as root")
        return
    text = "\n".join(content or "" for content in texts.values())
    values = re.findall(r"""^(?:[^#\n]*[;\s])?edgeagent_enable=["']?(\w*)""", text, re.MULTILINE)
    if not values or values[-1].lower() not in ("yes", "true", "on", "1"):  # the last one counts
        yield _look(
            "boot",
            "the service is not enabled: nothing starts it at boot",
            'edgeagent_enable="YES" in /usr/local/etc/rc.conf.d/edgeagent',
        )
    else:
        yield _ok("boot", "the service is enabled")


def _rc_files(root: Path) -> Iterator[Path]:
    """The files that rc.subr reads for the service, in its order (load_rc_config of FreeBSD's libexec/rc/rc.subr)."""
    etc = root / "etc"
    general = ("rc.conf", "rc.conf.local") if (etc / "defaults/rc.conf").exists() else ("rc.conf",)
    yield from (etc / name for name in general if (etc / name).exists())
    for own in (etc / "rc.conf.d/edgeagent", root / "usr/local/etc/rc.conf.d/edgeagent"):
        if own.is_dir():
            yield from sorted(file for file in own.iterdir() if file.is_file())
        elif own.exists():
            yield own


def _metrics(scene: Scene) -> Iterator[Found]:
    chosen = scene.settings.metrics
    if not chosen.listen:
        yield _note("metrics", "metrics.listen is empty: no metrics, no status page")
        return
    if not scene.store.service_running():
        return
    where = endpoint(chosen.listen)
    host = ("::1" if where.family == 6 else "127.0.0.1") if where.wildcard else where.host
    context = ssl._create_unverified_context() if chosen.certificate else None  # noqa: S323, SLF001  # our own, by address
    talk = (
        http.client.HTTPSConnection(host, where.port, timeout=_SECONDS, context=context)
        if context
        else http.client.HTTPConnection(host, where.port, timeout=_SECONDS)
    )
    code = 0
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(talk):
        talk.request("GET", "/healthz")
        code = talk.getresponse().status
    if code in (200, 401):
        yield _ok("metrics", f"answer at {where}")
    else:
        yield _look(
            "metrics",
            f"do not answer at {where}{f': {code}' if code else ''}",
            "`agent status`, and the log of the service",
        )


def _read(file: Path) -> str | None:
    """The text of a file, None where it cannot be read."""
    try:
        return read_regular(file).decode(errors="replace")
    except OSError:
        return None
