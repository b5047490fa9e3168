"""The house itself: the wheel, the Makefile, the README, what may stand in the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kit.left_out import leave_out
from kit.servers import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, so that no file of this checkout alone can make it work."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("edgeagent-*.whl")
    return found


def test_the_wheel_holds_the_templates_as_a_package_and_no_tests(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "agent/templates/__init__.py",
        "agent/templates/haproxy.cfg.j2",
        "agent/py.typed",
        "agent/cli/commands.py",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "kit", "templates"))]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "agent").rglob("*.py")}
    assert modules <= names


def test_an_installed_wheel_plans_and_checks_with_its_own_templates(wheel: Path, any_haproxy: Path, tmp_path: Path):
    site = tmp_path / "site"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    settings = tmp_path / "agent.toml"
    settings.write_text(
        f'[paths]\nstate = "{tmp_path}/s"\nrun = "/tmp/r"\ndesired = "{tmp_path}/d"\n'
        f'[haproxy]\nbinary = "{any_haproxy}"\n'
    )
    (tmp_path / "state.yaml").write_text(
        f'{{version: 1, frontends: {{smtp: {{bind: ["127.0.0.1:{free_port()}"], backend: smtp}}}}, '
        f'backends: {{smtp: {{servers: {{a: {{address: "127.0.0.1:{free_port()}"}}}}}}}}}}'
    )
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import agent.cli, agent.templates\n"
        f"assert agent.cli.__file__.startswith({str(site)!r}), agent.cli.__file__\n"
        f"assert agent.templates.__file__.startswith({str(site)!r}), agent.templates.__file__\n"
        "agent.cli.main(prog_name='agent')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "--settings", settings, "plan", tmp_path / "state.yaml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "+frontend fe:smtp\n" in done.stdout


@pytest.mark.parametrize("make", ["make", "bmake"])
def test_the_makefile_is_read_by_gnu_and_bsd_make(make: str):
    if shutil.which(make) is None:
        leave_out(f"{make} is not here")
    for target in ("demo", "test", "bench", "clean"):
        done = subprocess.run([make, "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("dash", "-n"), ("shellcheck", "-s", "sh"), ("checkbashisms",)])
def test_shell_scripts_are_posix_sh(words: tuple[str, ...]):
    if shutil.which(words[0]) is None:
        leave_out(f"{words[0]} is not here")
    scripts = [ROOT / "tests/prepare.sh", *ROOT.glob("rc.d/*"), *ROOT.glob("tests/freebsd/**/*.sh")]
    assert len(scripts) > 2
    for script in scripts:
        done = subprocess.run([*words, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_documents_link_to_what_is_there():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        prose = re.sub(r"`[^`]*`", "", document.read_text())
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_desired_states_in_documents_are_valid_and_commands_are_there():
    from agent.cli.commands import COMMANDS
    from agent.desired.state import parse

    states = 0
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = document.read_text()
        for block in re.findall(r"```yaml\n(version: 1\n.*?)```", text, re.DOTALL):
            assert parse(block.encode(), file=document.name).findings == ()
            states += 1
        for command in re.findall(r"`agent ([a-z](?:[a-z-]*[a-z])?)", text):
            assert command in COMMANDS, f"{document.name} speaks of `agent {command}`"
    assert states


def test_settings_are_documented_key_by_key():
    import attrs

    from agent.settings import Settings

    text = (ROOT / "docs/reference/settings.md").read_text()
    for section in attrs.fields(Settings):
        for key in attrs.fields(section.type if isinstance(section.type, type) else type(section.default)):
            assert f"`{section.name}.{key.name}`" in text, f"{section.name}.{key.name}"


def test_the_schema_is_documented_key_by_key():
    from agent.desired import schema
    from agent.desired.structure import keys_of

    text = (ROOT / "docs/reference/desired-state.md").read_text()
    for kind in (schema.DesiredState, schema.Frontend, schema.Backend, schema.Server, schema.Health, schema.RateLimit):
        for key in keys_of(kind):
            assert f"`{key.name}`" in text, f"{kind.__name__}.{key.name}"


def test_the_site_is_built_strictly(tmp_path: Path):
    """No dead link, no missing heading, no page outside of the navigation."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "pfsense.html").read_text()
    assert 'href="repository/examples/mail-edge.yaml"' in page
    assert (tmp_path / "repository/examples/mail-edge.yaml").exists()
    outside = re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "index.html").read_text())
    assert not [url for url in outside if url.endswith((".js", ".css", ".woff2"))], "the site fetches nothing"


def test_the_changelog_names_this_version():
    from agent import __version__

    assert re.search(
        rf"^## \[?({re.escape(__version__)}|Unreleased)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


CITED = re.compile(r"facts\.md[,:]\s+(HAProxy|pfSense|mail\s+servers)(?:\s+(\d+)(?:\s+and\s+(\d+))?)?")
SECTIONS = {
    "HAProxy": "## HAProxy",
    "pfSense": "## pfSense and FreeBSD",
    "mail servers": "## Mail servers and the header",
}


def test_every_fact_that_is_cited_is_there():
    facts = (ROOT / "docs/facts.md").read_text()
    sections = {name: facts.partition(head)[2].partition("\n## ")[0] for name, head in SECTIONS.items()}
    numbers = {name: set(re.findall(r"^(\d+)\. \*\*", text, re.MULTILINE)) for name, text in sections.items()}
    assert all(sections.values())
    cited = 0
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if not name.endswith((".py", ".j2", ".md", ".sh")) or name in ("docs/facts.md", "tests/house/test_house.py"):
            continue
        text = re.sub(r"\n\s*#?\s*", " ", (ROOT / name).read_text())
        for match in CITED.finditer(text):
            for number in match.groups()[1:]:
                cited += 1
                assert number is None or number in numbers[match[1]], (name, match[0])
    assert cited > 50
