"""install, upgrade, revert, uninstall: exactly the files they list, and nothing of anybody else's."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from kit.binaries import LATER_PYTHONS, later_python
from kit.box import Box
from kit.edge import first_line, until
from kit.left_out import leave_out
from kit.onefile import PYTHON, another_version
from kit.servers import echo, free_port

from agent.tools.platform import detect

CONFIG = b"""<?xml version="1.0"?>
<pfsense>
\t<version>23.3</version>
\t<system>
\t\t<hostname>fw</hostname>
\t\t<shellcmd>echo other</shellcmd>
\t</system>
\t<installedpackages>
\t\t<package><name>haproxy</name></package>
\t\t<service><name>haproxy</name><rcfile>haproxy.sh</rcfile></service>
\t</installedpackages>
\t<empty/>
</pfsense>
"""


def run(pyz: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-I", "-S", pyz, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def good(pyz: Path, *words: str | Path) -> str:
    done = run(pyz, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(root: Path) -> dict[str, str]:
    """Every file and link under it, with what is in it and its mode."""
    return {
        str(path.relative_to(root)): f"{stat.filemode(path.lstat().st_mode)} "
        + (str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest())
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pfSense's files."""
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    # What pfSense 2.8 has, and no /etc/platform (src/etc of github.com/pfsense/pfsense, removed in 2023).
    (folder / "etc/pfSense-rc").write_text("#!/bin/sh\n")
    (folder / "usr/local/sbin").mkdir(parents=True)
    (folder / "usr/local/sbin/pfSense-upgrade").write_text("#!/bin/sh\n")
    (folder / "usr/local/share/pfSense").mkdir(parents=True)
    (folder / "cf/conf").mkdir(parents=True)
    (folder / "cf/conf/config.xml").write_bytes(CONFIG)
    (folder / "tmp").mkdir()
    (folder / "tmp/config.cache").write_text("old")
    return folder


@pytest.fixture
def newer(pyz: Path, tmp_path: Path) -> Path:
    """Another version: the same with another number."""
    file = tmp_path / "newer.pyz"
    file.write_bytes(another_version(pyz))
    return file


def test_it_writes_what_it_lists_and_is_idempotent(pyz: Path, root: Path):
    before = files(root)
    said = good(pyz, "install", "--root", root)
    after = files(root)
    listed = {str(Path(line.removeprefix("wrote ")).relative_to(root)) for line in said.splitlines() if "wrote" in line}
    assert set(after) - set(before) == listed
    assert {path: after[path] for path in before} == before
    assert {path.rpartition("/")[2] for path in listed} >= {"agent", "edgeagent", "edgeagent.sh", "agent.toml"}
    assert oct((root / "usr/local/etc/rc.d/edgeagent.sh").stat().st_mode)[-3:] == "755"
    settings = (root / "usr/local/etc/edgeagent/agent.toml").read_text()
    assert 'state = "/usr/local/var/edgeagent"' in settings
    assert 'user = "www"' in settings
    assert (root / "usr/local/var/edgeagent").stat().st_mode & 0o777 == 0o700
    again = good(pyz, "install", "--root", root)
    assert "wrote" not in again
    assert "is installed already" in again
    assert files(root) == after


@pytest.mark.parametrize("version", LATER_PYTHONS)
def test_a_later_python_gets_byte_code_of_its_own(pfsense: Box, version: str):
    """FreeBSD's ports move on: without it every command would compile some hundred modules first."""
    python = later_python(version)
    if python is None:
        leave_out(f"there is no Python {version} here (`make system` as root on Debian gets it)")
    words = (python, "-I", "-S", "/usr/local/edgeagent.pyz", "install", "--root", "/")
    done = pfsense.run(*words)
    assert done.returncode == 0, done.stderr
    assert f"compiling for Python {version}" in done.stderr
    magic = subprocess.run(
        [python, "-c", "import importlib.util; print(importlib.util.MAGIC_NUMBER.hex())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (installed,) = pfsense.path("/usr/local/libexec/edgeagent").glob("*.pyz")
    assert f"-py{version}.pyz" in installed.name
    with zipfile.ZipFile(installed) as archive:
        codes = [name for name in archive.namelist() if name.endswith(".pyc")]
        assert len(codes) > 100
        assert {archive.read(name)[:4].hex() for name in codes} == {magic}
    assert pfsense.sh("/usr/local/bin/agent --version").startswith("edgeagent ")
    assert str(python) in pfsense.sh("cat /usr/local/bin/agent")
    again = pfsense.run(*words)
    assert ("is installed already" in again.stdout, "compiling" in again.stderr) == (True, False)
    installed.write_bytes(installed.read_bytes()[:-100])  # damaged: made anew
    assert "compiling" in pfsense.run(*words).stderr
    assert pfsense.sh("/usr/local/bin/agent --version").startswith("edgeagent ")


def test_freebsd_is_told_from_pfsense(pyz: Path, tmp_path: Path):
    good(pyz, "install", "--root", tmp_path)
    assert not (tmp_path / "usr/local/etc/rc.d/edgeagent.sh").exists()
    assert 'state = "/var/db/edgeagent"' in (tmp_path / "usr/local/etc/edgeagent/agent.toml").read_text()


@pytest.mark.parametrize(
    ("path", "text", "system"),
    [
        ("etc/pfSense-rc", "", "pfSense"),
        ("usr/local/share/pfSense/x", "", "pfSense"),
        ("usr/local/sbin/pfSense-upgrade", "", "pfSense"),
        ("cf/conf/config.xml", '<?xml version="1.0"?>\n<pfsense>\n</pfsense>', "pfSense"),
        ("etc/platform", "pfSense\n", "pfSense"),  # before 2.7.1
        ("etc/platform", "nanobsd\n", "FreeBSD"),
        ("usr/local/opnsense/version/core", "", "OPNsense"),
        ("conf/config.xml", "<opnsense><x/></opnsense>", "OPNsense"),
        ("conf/config.xml", "<other>pfsense</other>", "FreeBSD"),
        ("etc/rc.conf", "", "FreeBSD"),
        # What /etc/rc.d/os-release writes on 14.2, and Debian 12's own (base-files).
        ("etc/os-release", 'NAME=FreeBSD\nVERSION="14.2-RELEASE"\nVERSION_ID="14.2"\nID=freebsd\n', "FreeBSD"),
        ("etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n', "Linux"),
    ],
)
def test_each_sign_tells_the_system(tmp_path: Path, path: str, text: str, system: str):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    found = detect(tmp_path)
    assert (found.system, found.why.startswith(f"{system}, by ")) == (system, True)


def test_it_says_what_it_took_the_host_for_and_can_be_told_otherwise(pyz: Path, root: Path, tmp_path: Path):
    said = good(pyz, "install", "--root", root)
    assert "pfSense, by /etc/pfSense-rc and /usr/local/share/pfSense and /usr/local/sbin/pfSense-upgrade and" in said
    other = tmp_path / "bare"
    said = good(pyz, "install", "--root", other, "--platform", "pfsense")
    assert "pfSense, by --platform pfsense" in said
    assert (other / "usr/local/etc/rc.d/edgeagent.sh").exists()
    good(pyz, "uninstall", "--root", other, "--purge")
    assert files(other) == {}


def test_opnsense_is_refused_clearly(pyz: Path, tmp_path: Path):
    (tmp_path / "usr/local/opnsense").mkdir(parents=True)
    done = run(pyz, "install", "--root", tmp_path)
    assert (done.returncode, "this is OPNsense, by /usr/local/opnsense" in done.stderr) == (2, True), done.stderr
    assert files(tmp_path) == {}
    good(pyz, "install", "--root", tmp_path, "--platform", "freebsd")


def test_settings_that_are_there_stay(pyz: Path, root: Path):
    own = {"usr/local/etc/edgeagent/agent.toml": "# mine\n", "usr/local/etc/rc.conf.d/edgeagent": "# mine too\n"}
    for name, text in own.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    good(pyz, "install", "--root", root)
    assert {name: (root / name).read_text() for name in own} == own


def test_upgrade_revert_and_uninstall(pyz: Path, newer: Path, root: Path):
    nothing = files(root)
    good(pyz, "install", "--root", root)
    first = files(root)
    good(newer, "install", "--root", root)
    kept = {path.name for path in (root / "usr/local/libexec/edgeagent").glob("*.pyz")}
    assert len(kept) == 2
    assert "9." in (root / "usr/local/bin/agent").read_text()
    assert "9." not in good(newer, "install", "--root", root, "--revert").splitlines()[-1]
    back = files(root)
    assert {path: back[path] for path in first} == first
    assert "9." in good(pyz, "install", "--root", root, "--revert")
    said = good(newer, "uninstall", "--root", root)
    left = files(root)
    assert set(left) - set(nothing) == {"usr/local/etc/edgeagent/agent.toml"}
    removed = {line.removeprefix("removed ") for line in said.splitlines() if line.startswith("removed")}
    assert {str(root / "usr/local/bin/agent"), str(root / "usr/local/libexec/edgeagent")} <= removed
    assert "Yours is still there" in said
    good(newer, "uninstall", "--root", root, "--purge")
    assert files(root) == nothing
    good(newer, "uninstall", "--root", root)


def test_revert_without_an_earlier_version_is_said(pyz: Path, root: Path):
    good(pyz, "install", "--root", root)
    done = run(pyz, "install", "--root", root, "--revert")
    assert (done.returncode, "no earlier version" in done.stderr) == (2, True)


def test_what_is_somebody_elses_is_left_alone(pyz: Path, root: Path):
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/agent").write_text("#!/bin/sh\necho another agent\n")
    before = files(root)
    for word in ("install", "uninstall"):
        done = run(pyz, word, "--root", root)
        assert (done.returncode, "somebody else's" in done.stderr) == (2, True)
    assert files(root) == before
    (root / "usr/local/bin/agent").unlink()
    for name, make in {
        "bin/agent": lambda path: path.symlink_to("/nowhere"),
        "etc/rc.d/edgeagent": lambda path: path.write_text("#!/bin/sh\n"),
        "bin/agent/x": lambda path: path.touch(),
        "etc/edgeagent/agent.toml": lambda path: path.symlink_to("/nowhere"),
    }.items():
        odd = root / "usr/local" / name
        odd.parent.mkdir(parents=True, exist_ok=True)
        make(odd)
        before = files(root)
        done = run(pyz, "install", "--root", root)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert {path: files(root)[path] for path in before} == before
        odd.unlink()
        if name == "bin/agent/x":
            odd.parent.rmdir()


def test_rc_variables_that_are_somebodys_stay_and_are_told(pyz: Path, root: Path):
    conf = root / "usr/local/etc/rc.conf.d/edgeagent"
    conf.parent.mkdir(parents=True)
    conf.write_text('edgeagent_enable="YES"\nedgeagent_args=""\n')
    good(pyz, "install", "--root", root)
    assert str(conf) in good(pyz, "uninstall", "--root", root).splitlines()[-1]
    assert conf.exists()


SERVICE = b"<service><name>edgeagent</name><rcfile>edgeagent.sh</rcfile></service>"
SHELLCMD = b"<shellcmd>/usr/local/etc/rc.d/edgeagent.sh start</shellcmd>"


def test_entries_of_an_earlier_version_go_and_nothing_else_is_touched(pyz: Path, root: Path):
    """Version 0.1 could put them into config.xml."""
    config = root / "cf/conf/config.xml"
    good(pyz, "install", "--root", root)
    assert config.read_bytes() == CONFIG
    (root / "tmp/config.cache").write_text("cached")
    with_entries = CONFIG.replace(b"\t</system>", b"\t\t" + SHELLCMD + b"\n\t</system>")
    with_entries = with_entries.replace(b"\t</installedpackages>", b"\t\t" + SERVICE + b"\n\t</installedpackages>")
    config.write_bytes(with_entries)
    good(pyz, "uninstall", "--root", root)
    assert config.read_bytes() == CONFIG
    assert not (root / "tmp/config.cache").exists()


@pytest.mark.parametrize(
    "config",
    [b"", b"<pfsense><system>", b"<!DOCTYPE x [<!ENTITY a 'b'>]><pfsense><system>&a;</system></pfsense>", b"\xff\xfe"],
)
def test_a_config_xml_that_cannot_be_read_is_not_touched(pyz: Path, root: Path, config: bytes):
    (root / "cf/conf/config.xml").write_bytes(config)
    before = files(root)
    good(pyz, "install", "--root", root)
    assert "was not looked at" in run(pyz, "uninstall", "--root", root, "--purge").stderr
    assert files(root) == before


def test_killed_at_any_moment_what_is_there_works(pyz: Path, newer: Path, root: Path):
    good(pyz, "install", "--root", root)
    wrapper = root / "usr/local/bin/agent"
    whole = 0.0
    for _ in range(2):
        start = time.monotonic()
        good(newer, "install", "--root", root)
        good(pyz, "install", "--root", root)
        whole = (time.monotonic() - start) / 2
    for step in range(8):
        child = psutil.Popen([PYTHON, "-I", "-S", newer, "install", "--root", root], stdout=subprocess.DEVNULL)
        try:
            child.wait(whole * (step + 1) / 9)
        except psutil.TimeoutExpired:
            child.kill()
            child.wait()
        (name,) = re.findall(r"edgeagent-[^/ ]+\.pyz", wrapper.read_text())
        named = root / "usr/local/libexec/edgeagent" / name
        assert named.exists()
        done = subprocess.run([PYTHON, "-I", "-S", named, "--version"], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("edgeagent ")
        good(newer, "install", "--root", root)
        assert "9." not in good(newer, "install", "--root", root, "--revert").splitlines()[-1]
    (wrapper.parent / ".agent.4711.tmp").touch()  # as a kill in that very moment leaves it
    good(pyz, "uninstall", "--root", root, "--purge")
    assert set(files(root)) == {
        "etc/pfSense-rc",
        "usr/local/sbin/pfSense-upgrade",
        "cf/conf/config.xml",
        "tmp/config.cache",
    }


def serve(box: Box, port: int, server: str) -> None:
    document = {
        "version": 1,
        "frontends": {"f": {"bind": [f"127.0.0.1:{port}"], "backend": "b"}},
        "backends": {"b": {"servers": {"a": {"address": server}}}},
    }
    box.put("/usr/local/etc/edgeagent/desired.yaml", json.dumps(document).encode())
    assert box.run("/usr/local/etc/rc.d/edgeagent.sh", "start").returncode == 0


def test_an_upgrade_in_place_costs_no_connection(installed: Box, newer: Path):
    port = free_port()
    with echo("a") as backend:
        serve(installed, port, backend.address)
        status = installed.path("/run/edgeagent/status.json")
        assert json.loads(status.read_text())["outcome"] == "committed"
        haproxy = installed.sh("pgrep -x edge-haproxy")
        installed.put("/usr/local/newer.pyz", newer.read_bytes())
        done = installed.run(PYTHON, "-I", "-S", "/usr/local/newer.pyz", "install", "--root", "/")
        assert done.returncode == 0, done.stderr
        until(lambda: json.loads(status.read_text())["agent"]["version"].startswith("9."), "the new version runs")
        assert installed.sh("pgrep -x edge-haproxy") == haproxy
        assert first_line(port)
        assert installed.run("/usr/local/bin/agent", "--version").stdout.startswith("edgeagent 9.")
        done = installed.run("/usr/local/bin/agent", "uninstall", "--root", "/")
        assert done.returncode == 0, done.stderr
        assert first_line(port)
        assert installed.sh("pgrep -x edge-haproxy") == haproxy


STATUS = "/usr/local/bin/agent --settings /usr/local/etc/edgeagent/agent.toml status"


def test_a_box_that_was_installed_anew_is_an_edge_again(installed: Box):
    """By the lines of docs/pfsense.md, as they stand, but for the copy to another host."""
    text = (Path(__file__).parents[2] / "docs/pfsense.md").read_text()
    (backup,) = re.findall(r"^17 3 \* \* \* root (.*)$", text, re.MULTILINE)
    (restore,) = re.findall(r"^(tar -C / -xzf) fw-edgeagent.tgz && (.*)$", text, re.MULTILINE)
    port = free_port()
    with echo("a") as server:
        serve(installed, port, server.address)
        assert first_line(port).startswith("a ")
        live = json.loads(installed.sh(f"{STATUS} --json"))["live"]
        archive = installed.path("/usr/local/backup.tgz")
        installed.sh(backup.replace("/root/edgeagent.tgz", "/usr/local/backup.tgz"))
        installed.sh(f"{PYTHON} -I -S /usr/local/edgeagent.pyz uninstall --root / --purge")
        assert not installed.path("/usr/local/bin/agent").exists()
        assert archive.stat().st_mode & 0o077 == 0
        until(lambda: not answers(port), "HAProxy has ended")
        installed.sh(f"{restore[0]} /usr/local/backup.tgz && {restore[1]}")
        assert first_line(port).startswith("a ")
        again = json.loads(installed.sh(f"{STATUS} --json"))["live"]
        assert (again["generation"], again["digest"]) == (live["generation"], live["digest"])


def answers(port: int) -> bool:
    try:
        return bool(first_line(port))
    except OSError:
        return False


def test_a_state_that_is_elsewhere_is_told_and_its_haproxy_ended(installed: Box):
    port = free_port()
    settings = installed.path("/usr/local/etc/edgeagent/agent.toml")
    settings.write_text(
        settings.read_text()
        .replace("/usr/local/var/edgeagent", "/usr/local/lib/mystate")
        .replace("[haproxy]", '[haproxy]\nprocess_name = "mail-haproxy"')
    )
    with echo("a") as backend:
        serve(installed, port, backend.address)
        assert first_line(port)
        installed.put("/usr/local/etc/rc.conf.d/edgeagent", b'edgeagent_enable="NO"\n')
        done = installed.run("/usr/local/bin/agent", "uninstall", "--root", "/", "--purge")
    assert done.returncode == 0, done.stderr
    assert "/usr/local/lib/mystate (named in agent.toml" in done.stdout
    assert installed.run("pgrep", "-f", "[e]dgeagent-|[m]ail-haproxy").returncode == 1
    assert not installed.path("/run/edgeagent").exists()


def test_the_one_file_is_reproducible_and_starts_fast(pyz: Path):
    before = pyz.read_bytes()
    words = [sys.executable, Path(__file__).parents[2] / "deploy/release/pyz.py"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert pyz.read_bytes() == before
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".so", ".pyd", ".dylib"))]
    assert {
        "agent/cli/commands.pyc",
        "agent/cli/commands.py",
        "agent/templates/haproxy.cfg.j2",
        "agent/rc/edgeagent",
    } <= set(names)
    assert not [name for name in names if name.startswith(("psutil", "pip/"))]
    assert good(pyz, "--version").startswith("edgeagent ")
