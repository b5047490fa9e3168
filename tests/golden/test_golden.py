"""Golden haproxy.cfg files: readable in a review, valid without a warning on every HAProxy.

`UPDATE_GOLDEN=1 pytest tests/golden` writes them anew; the difference is then for a person to read.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from agent.desired.state import parse
from agent.haproxy.config import CONFIG_TEMPLATE, Config, Process, render
from agent.host import templates
from agent.host.global_section import find_ca_file

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples/mail-edge.yaml"
CASES = {
    "mail-edge": EXAMPLE,
    "submission-edge": EXAMPLE.with_name("submission-edge.yaml"),
    "every-key": HERE / "every-key.yaml",
}


def rendered(document: Path, folder: str, **more: str) -> Config:
    process = Process(
        socket=PurePosixPath(folder, "haproxy.sock"),
        server_state=PurePosixPath(folder, "server-state"),
        maxconn=4000,
        hard_stop_after=900_000,
        **more,
    )
    state = parse(document.read_bytes(), file=document.name).state
    return render(state, process, templates.load(CONFIG_TEMPLATE, ""))


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_is_the_golden_one(name: str):
    more = {
        "user": "www",
        "group": "www",
        "chroot": "/var/empty",
        "log": "127.0.0.1:514",
        "ca_file": "/etc/ssl/cert.pem",
        "peers": PurePosixPath("/var/empty/peers"),
    }
    config = rendered(CASES[name], "/run/edge agent", **(more if name == "every-key" else {}))
    found = config.stamped(digest="0123456789abcdef", generation=42).decode()
    golden = HERE / f"{name}.cfg"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize("name", CASES)
def test_every_haproxy_takes_it_without_a_word(name: str, haproxy_binary: Path, tmp_path: Path):
    (tmp_path / "server-state").write_text("1\n")
    config = rendered(CASES[name], str(tmp_path), ca_file=find_ca_file())
    file = tmp_path / "haproxy.cfg"
    file.write_bytes(config.stamped(digest="0" * 64, generation=1))
    done = subprocess.run([haproxy_binary, "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr
    assert "[ALERT]" not in done.stderr


def test_the_example_has_every_part_of_the_worked_deployment():
    state = parse(EXAMPLE.read_bytes(), file="example").state
    frontends = {frontend.name: frontend for frontend in state.frontends}
    mail = [frontends[name] for name in ("smtp", "smtps", "submission", "imaps")]
    assert [{endpoint.port for endpoint in one.bind} for one in mail] == [{25}, {465}, {587}, {993}]
    assert all({endpoint.family for endpoint in one.bind} == {4, 6} for one in mail)
    backends = {backend.name: backend for backend in state.backends}
    assert [backends[one.name].servers[0].address.port for one in mail] == [30125, 30126, 30127, 30128]
    assert all(len(backends[one.name].servers) == 4 for one in mail)
    assert {backends[one.name].health.port for one in mail} == {30145, 30146, 30147}
    assert len(frontends["https"].bind) == 2
    assert frontends["https"].routes[-1].sni == ("*",)
    assert backends["traefik"].health.type == "none"
    assert (backends["kubernetes"].health.path, backends["kubernetes"].health.tls) == ("/readyz", True)


@pytest.mark.parametrize("name", ["mail-edge", "submission-edge"])
def test_the_examples_are_valid_without_a_warning(name: str):
    assert parse(CASES[name].read_bytes(), file=name).findings == ()
