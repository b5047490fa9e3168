"""`make dist`: the same bytes twice, sums and signatures that hold, and a host that has nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from kit.binaries import later_python
from kit.edge import connect, first_line, until
from kit.left_out import leave_out
from kit.onefile import another_version
from kit.repository import sources
from kit.root import Root, root
from kit.servers import EchoServer, echo, free_port
from kit.ssh import make_key
from kit.two_frontends import document, served

from agent import __version__
from agent.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
NAME = f"edgeagent-{__version__}"
ARTEFACTS = {f"{NAME}{end}" for end in (".pyz", ".pkg", ".tar.gz", "-py3-none-any.whl", ".cdx.json")} | {"SHA256SUMS"}


def build(folder: Path, *words: str | Path) -> Path:
    """In a copy of the sources, whose files are from today."""
    sources(folder)
    done = subprocess.run(
        [sys.executable, folder / "deploy/release/dist.py", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("first"))


def test_all_of_a_release_is_there_and_the_sums_hold(dist: Path):
    assert {file.name for file in dist.iterdir()} == ARTEFACTS
    sums = dict(reversed(line.split("  ")) for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in dist.iterdir() if file.name != "SHA256SUMS"
    }


def test_it_is_the_same_bytes_in_another_folder_and_signed(dist: Path, tmp_path: Path):
    (tmp_path / "second").mkdir()
    key = make_key(tmp_path / "key")
    again = build(tmp_path / "second", key)
    for file in dist.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    assert {file.name for file in again.iterdir()} == ARTEFACTS | {f"{name}.sig" for name in ARTEFACTS}
    (tmp_path / "signers").write_text(f"release@example.org {key.with_suffix('.pub').read_text()}")
    for name in ARTEFACTS:  # as docs/releasing.md says
        verify = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "signers", "-I", "release@example.org",
                  "-n", "edgeagent-release", "-s", again / f"{name}.sig"]  # fmt: skip
        subprocess.run(verify, input=(again / name).read_bytes(), check=True, capture_output=True)


def test_a_version_without_a_date_is_no_release(tmp_path: Path):
    shutil.copytree(ROOT / "deploy/release", tmp_path / "deploy/release")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/__init__.py").write_text('__version__ = "9.9.9"\n')
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    done = subprocess.run(
        [sys.executable, tmp_path / "deploy/release/dist.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no dated section for 9.9.9" in done.stderr) == (1, True)


def test_the_sbom_is_valid_and_names_what_is_carried(dist: Path):
    text = (dist / f"{NAME}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    pinned = {
        line.lower().replace("_", "-")
        for line in (ROOT / "deploy/release/requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    parts = json.loads(text)["components"]
    assert {f"{part['name']}=={part['version']}" for part in parts} == pinned
    assert all(part["licenses"] for part in parts)


def test_every_command_has_a_man_page_in_each_package(dist: Path, tmp_path: Path):
    pages = {"agent.1", *(f"agent-{command}.1" for command in COMMANDS)}
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        assert {Path(name).name for name in wheel.namelist() if "/share/man/man1/" in name} == pages
    with zipfile.ZipFile(dist / f"{NAME}.pyz") as one_file:
        assert {Path(name).name for name in one_file.namelist() if name.endswith(".1")} == pages
        one_file.extractall(tmp_path, [name for name in one_file.namelist() if name.endswith(".1")])
    with tarfile.open(dist / f"{NAME}.pkg") as package:
        assert {Path(name).name for name in package.getnames() if "/man1/" in name} == {f"{page}.gz" for page in pages}
    if shutil.which("mandoc") is None:
        leave_out("mandoc is not here")
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *(tmp_path / "agent/man").iterdir()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (lint.returncode, lint.stdout) == (0, "")
    shown = subprocess.run(
        ["mandoc", "-T", "ascii", tmp_path / "agent/man/agent-gate.1"], capture_output=True, text=True, check=True
    ).stdout
    plain = re.sub(".\b", "", shown)
    assert 'restrict,command="/usr/local/bin/agent gate --as cluster" ssh-ed25519 AAAA... cluster' in plain


def test_the_sources_build_and_the_wheel_runs(dist: Path, tmp_path: Path):
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        assert {
            f"{NAME}/{name}" for name in ("Makefile", "tests/prepare.sh", "rc.d/edgeagent", "docs/releasing.md")
        } <= set(archive.getnames())
        archive.extractall(tmp_path, filter="data")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path,
         tmp_path / NAME],
        check=True, capture_output=True,
    )  # fmt: skip
    with (
        zipfile.ZipFile(tmp_path / f"{NAME}-py3-none-any.whl") as made,
        zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel,
    ):
        assert sorted(made.namelist()) == sorted(wheel.namelist())
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "site")
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import agent.cli as c; "
    script += "print(c.__file__); c.main()"
    done = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "site/agent/cli/__init__.py"), f"edgeagent {__version__}"]


# --- a host that has nothing else


@pytest.fixture
def host(dist: Path) -> Iterator[Root]:
    """Debian 13's base, its Python and its HAProxy, and the one file of the release."""
    python = later_python("3.13")
    with root(Path(python).parents[2]) as machine:
        machine.path("/root/edgeagent.pyz").write_bytes((dist / f"{NAME}.pyz").read_bytes())
        yield machine


@pytest.fixture
def servers() -> Iterator[tuple[EchoServer, EchoServer]]:
    with echo("a") as a, echo("b") as b:
        yield a, b


@contextlib.contextmanager
def service(host: Root) -> Iterator[None]:
    """`agent run`, as an init system would start and end it."""
    with subprocess.Popen(host.words("agent", "run"), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: host.run("agent", "status", "--pid").returncode == 0, "the service is up")
        try:
            yield
        finally:
            pid = host.run("agent", "status", "--pid").stdout.strip()
            host.run("sh", "-c", f"kill {int(pid)}")  # the shell's own: Debian's base has no kill(1)
            process.wait(30)


def everything(host: Root) -> set[str]:
    paths = host.good("find", "/usr", "/etc", "/var", "-xdev").splitlines()
    return {path for path in paths if "__pycache__" not in path}


def test_from_nothing_to_an_edge_and_back(host: Root, dist: Path, servers: tuple[EchoServer, EchoServer]):
    before = everything(host)
    assert "systemctl enable --now edgeagent" in host.good("python3", "/root/edgeagent.pyz", "install")
    assert host.good("agent", "--version") == f"edgeagent {__version__}\n"
    assert host.run("agent", "doctor").returncode in (0, 6)
    port = free_port()
    settings = host.path("/etc/edgeagent/agent.toml")
    settings.write_text(settings.read_text() + '\n[metrics]\nlisten = ""\n')
    host.path("/etc/edgeagent/desired.yaml").write_text(json.dumps(document(port, *servers)))
    host.good("agent", "check")
    host.good("agent", "apply")
    assert served(port) == {"a", "b"}

    with contextlib.ExitStack() as sessions:
        with service(host):
            assert "drained" in host.good("agent", "drain", "a")
            assert served(port) == {"b"}
            host.good("agent", "ready", "a")
            until(lambda: served(port) == {"a", "b"}, "both serve")
            session = sessions.enter_context(connect(port))
            session.recv(100)
            host.path("/root/newer.pyz").write_bytes(another_version(dist / f"{NAME}.pyz"))
            assert "have your init system restart it" in host.good("python3", "/root/newer.pyz", "install")
            assert host.good("agent", "--version") == f"edgeagent 9.{__version__}\n"
            assert json.loads(host.good("agent", "status", "--json"))["agent"]["version"] == __version__
        with service(host):

            def new() -> bool:
                return bool(json.loads(host.run("agent", "status", "--json").stdout)["agent"]["version"][:2] == "9.")

            until(new, "the new version runs")
            host.good("agent", "install", "--revert")
            assert host.good("agent", "--version") == f"edgeagent {__version__}\n"
            done = host.run("agent", "uninstall")
            assert (done.returncode != 0, "an agent still runs" in done.stderr) == (True, True)
        session.sendall(b"still here")
        assert session.recv(100) == b"still here"

    assert first_line(port)[:1] in ("a", "b")
    done = host.run("agent", "uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    assert first_line(port)[:1] in ("a", "b")  # HAProxy goes on serving, and what is a person's stays
    assert host.path("/etc/edgeagent/desired.yaml").exists()
    host.good("python3", "/root/edgeagent.pyz", "uninstall", "--purge")
    folders = {"/usr/local/libexec", "/usr/local/share/man", "/usr/local/share/man/man1", "/etc/systemd/system"}
    assert everything(host) - before <= folders
    until(lambda: served(port) == {""}, "HAProxy has ended")
