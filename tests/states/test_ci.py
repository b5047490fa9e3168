"""Repositories of desired states: a broken one is refused before it is committed, in a workflow, and in a container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kit.repository import ROOT, commit, git, repository, sources

GOOD = (ROOT / "examples/mail-edge.yaml").read_text()
BROKEN = GOOD.replace("backend: smtp\n", "backend: smpt\n", 1)
LINE = next(number for number, line in enumerate(BROKEN.splitlines(), 1) if "smpt" in line)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Our own repository, and its commit."""
    folder = tmp_path_factory.mktemp("own")
    return folder, sources(folder)


@pytest.fixture
def states(tmp_path: Path) -> Path:
    return repository(tmp_path / "states")


# --- pre-commit, for real


def test_the_hook_refuses_a_broken_state_and_takes_a_good_one(own: tuple[Path, str], states: Path, tmp_path: Path):
    folder, revision = own
    (states / ".pre-commit-config.yaml").write_text(
        yaml.safe_dump({"repos": [{"repo": str(folder), "rev": revision, "hooks": [{"id": "agent-check"}]}]})
    )
    environment = os.environ | {
        "PRE_COMMIT_HOME": str(tmp_path / "hooks"),
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "Tests"),
        **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "tests@example.org"),
    }
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], cwd=states, check=True, capture_output=True)

    def committed(**files: str) -> tuple[int, str]:
        for name, text in files.items():
            (states / name.replace("_", ".")).write_text(text)
        git(states, "add", "--all")
        command = ["git", "commit", "--quiet", "--message", "a change"]
        done = subprocess.run(command, cwd=states, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, output = committed(desired_yaml=BROKEN, values_yaml="no: state")
    assert code == 1, output
    assert f"desired.yaml:{LINE}: " in output
    assert 'did you mean "smtp"' in output
    assert "values.yaml" not in output
    assert committed(desired_yaml=GOOD)[0] == 0
    assert git(states, "show", "--stat", "--format=", "HEAD").count("|") == 3


# --- the action, its steps as a script


def test_the_action_gives_its_inputs_to_the_script_by_the_environment_alone():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    python, check = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    assert python["uses"].startswith("actions/setup-python@")
    assert check["run"] == 'bash "$SOURCES/deploy/ci/check-states.sh"'
    assert check["env"] == {
        "FILES": "${{ inputs.files }}", "BASE": "${{ inputs.base }}", "SOURCES": "${{ github.action_path }}",
    }  # fmt: skip
    assert all(value["description"] for value in action["inputs"].values())


def run(states: Path, *, sources: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """The step of the action. Without `sources`: with the agent of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", (sources or ROOT) / "deploy/ci/check-states.sh"]
    more = {"SOURCES": str(sources)} if sources else {}
    return subprocess.run(
        command, cwd=states, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "GITHUB_ACTIONS": "true", **more, **variables},
    )  # fmt: skip


def test_the_action_checks_what_a_change_touches(own: tuple[Path, str], states: Path, tmp_path: Path):
    (states / "desired.yaml").write_text(GOOD)
    (states / "old-desired.yaml").write_text(BROKEN)  # whatever was wrong before is not this change's
    base = commit(states)
    (states / "sites").mkdir()
    (states / "sites/a desired,x.yaml").write_text(BROKEN)
    (states / "-desired.yaml").write_text(GOOD)
    commit(states)
    done = run(states, sources=own[0], BASE=base, RUNNER_TEMP=str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert f"sites/a desired,x.yaml:{LINE}: " in done.stderr
    assert f"::error file=sites/a desired%2Cx.yaml,line={LINE}::" in done.stdout
    assert "old-desired.yaml" not in done.stdout + done.stderr
    (states / "sites/a desired,x.yaml").unlink()
    commit(states)
    done = run(states, BASE=base)
    assert (done.returncode, "-desired.yaml: valid" in done.stdout) == (0, True), done.stderr
    assert run(states, BASE=git(states, "rev-parse", "HEAD")).stdout == "no desired state has changed\n"


@pytest.mark.parametrize("base", ["", "0" * 40, "f" * 40, "main; touch pwned", "--help"])
def test_without_a_base_that_is_here_all_are_checked(states: Path, base: str):
    (states / "desired.yaml").write_text(BROKEN)
    commit(states)
    done = run(states, BASE=base)
    assert (done.returncode, f"desired.yaml:{LINE}: " in done.stderr) == (3, True)
    assert not (states / "pwned").exists()


def test_where_git_fails_nothing_passes(states: Path, tmp_path: Path):
    (states / "desired.yaml").write_text(GOOD)
    commit(states)
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", GIT_CEILING_DIRECTORIES=str(tmp_path)).returncode != 0  # no repository
    assert run(states, GIT_TEST_ASSUME_DIFFERENT_OWNER="1", HOME=str(tmp_path)).returncode != 0  # somebody else's
    assert run(states, FILES="../*.yaml").returncode != 0


def test_from_a_subfolder_and_with_a_file_that_cannot_be_read(states: Path):
    (states / "sub").mkdir()
    (states / "sub/desired.yaml").write_text(BROKEN)
    commit(states)
    done = run(states / "sub")
    assert (done.returncode, f"sub/desired.yaml:{LINE}: " in done.stderr) == (3, True), done.stderr
    (states / "a-desired.yaml").symlink_to("nowhere")
    commit(states)
    done = run(states)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


@pytest.mark.parametrize("files", ["$(touch pwned)", "`touch pwned`\n*.none", "; touch pwned", "a b\n\n"])
def test_patterns_are_no_shell(states: Path, files: str):
    (states / "desired.yaml").write_text(BROKEN)
    commit(states)
    done = run(states, FILES=files)
    assert (done.returncode, "no file of this repository matches" in done.stderr) == (2, True), done.stderr
    assert not (states / "pwned").exists()


# --- the container: no engine is here, its steps are taken one by one


def test_the_image_is_built_of_what_it_copies_and_checks(tmp_path: Path, states: Path):
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "deploy/ci/Containerfile").read_text(), flags=re.MULTILINE)
    steps = [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()]
    source = tmp_path / "src"
    source.mkdir()
    for *names, target in (rest.split() for word, rest in steps if word == "COPY"):
        for name in names:
            where = tmp_path / target.lstrip("/")
            shutil.copytree(ROOT / name, where) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, where)
    assert dict(steps)["RUN"] == "pip install --no-cache-dir /src && rm -rf /src"
    # Its dependencies are those of this environment: which they are, the hook and the action have found out.
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, source]
    subprocess.run(pip, check=True, capture_output=True)
    shutil.rmtree(source)
    assert dict(steps)["ENTRYPOINT"] == '["agent", "check"]'
    (states / "desired.yaml").write_text(BROKEN)
    (states / "other.yaml").write_text(GOOD)
    done = subprocess.run(
        [sys.executable, site / "bin/agent", "check", "desired.yaml", "other.yaml"],
        cwd=states, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert (done.returncode, "other.yaml: valid" in done.stdout) == (3, True)
    assert f"desired.yaml:{LINE}: " in done.stderr
