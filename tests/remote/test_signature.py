"""Signed documents: on every path in, unsigned, altered, foreign and replayed ones are refused, and nothing changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.edge import Edge, until
from kit.servers import EchoServer, free_port
from kit.ssh import Client, Cluster, Firewall, make_key, state

from agent.desired.identity import digest_of
from agent.errors import PolicyError, StoreError, UsageError
from agent.host import signature

DATA = b"version: 1\n"


def signers(file: Path, *keys: Path, options: str = "") -> Path:
    lines = [
        f"cluster@example.org {options}{' '.join(key.with_suffix('.pub').read_text().split()[:2])}" for key in keys
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key") / "id")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("stranger") / "id")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_kind(tmp_path: Path, kind: str):
    one = make_key(tmp_path / "k", kind)
    made = signature.sign(DATA, one)
    assert signature.check(DATA, made, signers(tmp_path / "s", one)) == "cluster@example.org"


@pytest.fixture
def ssh_agent(tmp_path: Path) -> Iterator[dict[str, str]]:
    socket = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    until(socket.exists, "ssh-agent listens")
    try:
        yield {"SSH_AUTH_SOCK": str(socket)}
    finally:
        process.terminate()
        process.wait()


def test_a_key_that_an_agent_holds(
    tmp_path: Path, key: Path, ssh_agent: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSH_AUTH_SOCK", ssh_agent["SSH_AUTH_SOCK"])
    subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    public = tmp_path / "only.pub"  # the private half is nowhere but in the agent
    public.write_text(key.with_suffix(".pub").read_text())
    made = signature.sign(DATA, public)
    assert signature.check(DATA, made, signers(tmp_path / "s", key)) == "cluster@example.org"


def other_namespace(key: Path) -> bytes:
    return subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", key], input=DATA, capture_output=True, check=True
    ).stdout


def test_what_does_not_fit_is_said(tmp_path: Path, key: Path, stranger: Path):
    allowed = signers(tmp_path / "s", key)
    good = signature.sign(DATA, key)

    def refused(data: bytes, made: bytes, file: Path = allowed) -> str:
        with pytest.raises(PolicyError) as error:
            signature.check(data, made, file)
        assert error.value.exit_code == 9
        return str(error.value)

    assert "it is not signed" in refused(DATA, b"")
    assert "by nobody in" in refused(DATA, signature.sign(DATA, stranger))
    assert "was altered" in refused(DATA + b"\n", good)
    assert "not one of this document" in refused(DATA, b"junk")
    assert "does not fit" in refused(DATA, other_namespace(key))
    assert "at most 16,384" in refused(DATA, good + b"x" * 20_000)
    assert "there is no such file, so nobody may sign" in refused(DATA, good, tmp_path / "none")
    (tmp_path / "empty").touch()
    assert "by nobody in" in refused(DATA, good, tmp_path / "empty")
    assert refused(DATA, good, signers(tmp_path / "ns", key, options='namespaces="file" '))
    assert refused(DATA, good, signers(tmp_path / "old", key, options='valid-before="20200101" '))


def test_a_key_that_cannot_sign(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no such key"):
        signature.sign(DATA, tmp_path / "none")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(UsageError, match="cannot sign with"):
        signature.sign(DATA, tmp_path / "junk")


# --- every path in ----------------------------------------------------------------------------------------------


def demand(edge: Edge, key: Path) -> None:
    """The agent takes what this key has signed."""
    file = signers(edge.folder / "signers", key)
    haproxy = f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500'
    edge.configure(f'{haproxy}\n[apply]\nresync = "1s"\n[sync]\nallowed_signers = "{file}"')


@pytest.fixture
def strict(one_edge: Edge, key: Path) -> Edge:
    demand(one_edge, key)
    one_edge.serve()
    return one_edge


def test_sync_takes_what_is_signed_and_nothing_else(strict: Edge, key: Path, stranger: Path, backend: EchoServer):
    first = strict.file(state(backend.address, serial=1))
    done = strict.agent("sync", first)
    assert (done.returncode, "it is not signed" in done.stderr) == (9, True)
    done = strict.agent("sync", first, "--sign", stranger)
    assert (done.returncode, "by nobody in" in done.stderr) == (9, True)
    assert not strict.desired.exists()
    assert strict.agent("sync", first, "--sign", key).returncode == 0
    before = strict.desired.read_bytes()
    second = strict.file(state(backend.address, serial=2), "second.yaml")
    made = signature.sign(second.read_bytes(), key)
    second.with_name("second.yaml.sig").write_bytes(made)
    second.write_bytes(second.read_bytes() + b" ")
    done = strict.agent("sync", second)
    assert (done.returncode, "altered" in done.stderr) == (9, True)
    assert strict.desired.read_bytes() == before
    second.write_bytes(second.read_bytes()[:-1])
    assert strict.agent("sync", second).returncode == 0
    replayed = strict.agent("sync", first, "--sign", key)
    assert (replayed.returncode, "serial 1 is lower than serial 2, which is live" in replayed.stderr) == (9, True)


def test_apply_and_the_file_changing_under_it(strict: Edge, key: Path, stranger: Path, backend: EchoServer):
    first = strict.file(state(backend.address, serial=1), "first.yaml")
    first_signature = signature.sign(first.read_bytes(), key)
    assert strict.agent("apply", first).returncode == 9
    assert not strict.desired.exists()
    first.with_name("first.yaml.sig").write_bytes(first_signature)
    assert strict.agent("apply", first).returncode == 0
    read_signature = strict.desired.with_name("desired.yaml.sig")
    assert read_signature.read_bytes() == first_signature

    def refused(data: bytes, made: bytes, words: str) -> None:
        read_signature.write_bytes(made)
        strict.file(data, ".fresh").replace(strict.desired)
        until(lambda: words in strict.wait("refused", digest_of(data))["message"], words)

    second = json.dumps(state(backend.address, serial=2)).encode()
    refused(second, first_signature, "altered")
    refused(second, signature.sign(second, stranger), "by nobody in")
    assert strict.status()["live"]["digest"] == digest_of(first.read_bytes())
    read_signature.write_bytes(signature.sign(second, key))  # it was only the signature that was missing
    strict.wait("committed", digest_of(second))
    refused(first.read_bytes(), first_signature, "serial 1 is lower than serial 2, which is live")
    assert strict.status()["live"]["digest"] == digest_of(second)


def test_a_rollback_opens_no_door_to_what_was_signed_before(strict: Edge, key: Path, backend: EchoServer):
    port = free_port()
    files = {n: strict.file(state(backend.address, port, serial=n), f"{n}.yaml") for n in (1, 3, 5, 6)}
    for number in (1, 3, 5):
        assert strict.agent("sync", files[number], "--sign", key).returncode == 0
    assert strict.agent("rollback", "1").returncode == 0
    done = strict.agent("sync", files[3], "--sign", key)
    assert (done.returncode, "serial 3 is lower than serial 5, which was taken before" in done.stderr) == (9, True)
    done = strict.agent("sync", files[5], "--sign", key)
    assert (done.returncode, "put back by hand" in done.stderr) == (5, True)  # it is held still
    done = strict.agent("sync", files[1])  # what is live, but nobody has signed it: it must not end the hold
    assert (done.returncode, "it is not signed" in done.stderr) == (9, True)
    assert strict.status()["live"]["serial"] == 1
    assert strict.agent("sync", files[6], "--sign", key).returncode == 0


def test_what_is_not_taken_lifts_no_hold(strict: Edge, key: Path, backend: EchoServer):
    files = {n: strict.file(state(backend.address, serial=n), f"{n}.yaml") for n in (1, 2)}
    for number in (1, 2):
        assert strict.agent("sync", files[number], "--sign", key).returncode == 0
    held, made = strict.desired.read_bytes(), strict.desired.with_name("desired.yaml.sig").read_bytes()
    assert strict.agent("rollback", "1").returncode == 0
    strict.put(state(backend.address, serial=9))
    strict.wait("refused")
    strict.desired.with_name("desired.yaml.sig").write_bytes(made)
    for junk in (
        b"version: 99\n",
        files[1].read_bytes(),
    ):  # invalid; and what is live anyway
        strict.put(junk)
        until(lambda junk=junk: strict.status()["desired"]["digest"] == digest_of(junk), "it is looked at")
    strict.put(held)
    assert "put back by hand" in strict.wait("rolled_back", digest_of(held))["message"]


def test_a_refused_document_uses_up_no_serial_and_a_damaged_memory_refuses(
    strict: Edge, key: Path, backend: EchoServer
):
    port = free_port()
    assert strict.agent("sync", strict.file(state(backend.address, port)), "--sign", key).returncode == 0
    nobody = strict.file(state(f"127.0.0.1:{free_port()}", port, serial=2))
    assert strict.agent("sync", nobody, "--sign", key).returncode == 4
    better = strict.file(state(backend.address, port, free_port(), serial=2))
    assert strict.agent("sync", better, "--sign", key).returncode == 0
    (strict.folder / "state/serial.json").write_text("{")
    done = strict.agent("sync", strict.file(state(backend.address, port, serial=3)), "--sign", key)
    assert (done.returncode, "serial.json is damaged" in done.stderr) == (4, True)


def test_a_fifo_in_the_signatures_place_keeps_nobody(strict: Edge, key: Path, backend: EchoServer):
    os.mkfifo(strict.desired.with_name("desired.yaml.sig"))
    strict.put(state(backend.address))
    assert "it is not signed" in strict.wait("refused")["message"]
    done = strict.agent("apply")
    assert (done.returncode, "it is not signed" in done.stderr) == (9, True)


def test_a_gate_makes_no_plan_for_strangers(strict: Edge, backend: EchoServer):
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--settings", strict.settings, "gate"],
        input=json.dumps(state(backend.address)).encode(),
        env=os.environ | {"SSH_ORIGINAL_COMMAND": "agent plan -"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"documents are signed here" in done.stderr) == (9, True)


def test_a_temporary_folder_that_is_gone_refuses(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch):
    made = signature.sign(DATA, key)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match="cannot check a signature"):
        signature.check(DATA, made, signers(tmp_path / "s", key))


def test_a_key_that_stands_there_under_two_names(tmp_path: Path, key: Path):
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    file = tmp_path / "signers"
    file.write_text(f'git@example.org namespaces="git" {public}\ncluster@example.org namespaces="edgeagent" {public}\n')
    assert signature.check(DATA, signature.sign(DATA, key), file) == "cluster@example.org"


def test_a_line_with_a_list_of_names(tmp_path: Path, key: Path):
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    file = tmp_path / "signers"
    file.write_text(f'git@x namespaces="git" {public}\na@x,b@x namespaces="edgeagent" {public}\n')
    assert signature.check(DATA, signature.sign(DATA, key), file) == "a@x"


def test_what_is_live_needs_no_signature_to_go_on(strict: Edge, key: Path, backend: EchoServer):
    file = strict.file(state(backend.address))
    assert strict.agent("sync", file, "--sign", key).returncode == 0
    strict.desired.with_name("desired.yaml.sig").unlink()
    (strict.folder / "signers").unlink()
    strict.services[0].terminate()
    strict.services[0].wait()
    strict.serve()
    assert strict.status()["outcome"] == "unchanged"


def test_over_ssh(firewall: Firewall, cluster: Cluster, client: Client, key: Path, backend: EchoServer):
    service = firewall.edge.services[0]
    demand(firewall.edge, key)
    service.terminate()
    service.wait()
    firewall.edge.serve()
    file = cluster.file(state(backend.address))
    done = cluster.agent("sync", file, "--to", firewall.to)
    assert (done.returncode, "it is not signed" in done.stdout) == (9, True)
    done = cluster.agent("sync", file, "--to", firewall.to, "--sign", key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert firewall.edge.desired.with_name("desired.yaml.sig").exists()
    rsa = make_key(client.folder / "rsa", "rsa")  # the longest signature
    signers(firewall.edge.folder / "signers", rsa)
    later = cluster.file(state(backend.address, serial=2))
    assert cluster.agent("sync", later, "--to", firewall.to, "--sign", rsa).returncode == 0


def test_the_command_finds_no_ssh_keygen(one_edge: Edge, key: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(UsageError, match="ssh-keygen does not run"):
        signature.sign(DATA, key)
