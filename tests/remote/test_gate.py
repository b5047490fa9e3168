"""The forced command: exactly the calls that are meant get through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit.edge import Edge, first_line, until
from kit.onefile import AGENT
from kit.servers import EchoServer, free_port
from kit.ssh import Client, Firewall, keygen, make_key, state

from agent.desired.identity import digest_of
from agent.errors import PolicyError
from agent.remote import gate

LET_THROUGH = {
    "sync": ["sync", "-"],
    "agent sync": ["sync", "-"],
    "agent sync -": ["sync", "-"],
    "agent sync - --json --no-wait --dry-run --force": [
        "sync", "--json", "--no-wait", "--dry-run", "--force", "-",
    ],
    "agent sync --timeout 30s --if-live=0123456789ab -": ["sync", "--timeout=30s", "--if-live=0123456789ab", "-"],
    "agent plan": ["plan", "-"],
    "plan - --json": ["plan", "--json", "-"],
    "agent status --json": ["status", "--json"],
    "history": ["history"],
}  # fmt: skip

HOSTILE = [
    "", " ", "agent", "sh -c id", "/bin/sh", "agent run", "agent gate", "agent apply", "agent rollback", "agent demo",
    "agent sync /etc/passwd", "agent sync ./x", "agent sync - /etc/passwd", "agent sync - -", "agent sync -- -",
    "agent sync -- --settings", "agent sync --settings /etc/passwd", "agent --settings /etc/passwd sync",
    "--settings /etc/passwd sync", "agent sync --to root@127.0.0.1", "agent sync --sign /root/.ssh/id_ed25519",
    "agent sync --sign=/root/.ssh/id_ed25519", "agent sync --to=x", "agent sync --ordered", "agent status --watch",
    "agent sync -j", "agent sync --js", "agent sync --jso", "agent sync --json=1", "agent sync --help", "agent --help",
    "agent sync -h", "agent --version", "agent sync; id", "agent sync && id", "agent sync | sh", "agent sync `id`",
    "agent sync $(id)", "agent sync ${PATH}", "agent sync > /tmp/x", "agent sync < /etc/passwd", "agent sync & id",
    "agent sync\nid", "agent sync\x00", "agent sync \\\n id", "agent 'sync", 'agent "sync', "agent sync '",
    "AGENT sync", "agent SYNC", *(f"agent sync {dash}json" for dash in "\u2014\u2013\u2010\u2212"),
    "agent plan /etc/passwd",
    "agent plan --settings /etc/passwd", "agent history /etc/passwd", "agent status -", "agent history --json x",
    "agent sync --timeout", "agent sync --timeout 5", "agent sync --timeout=$(id)", "agent sync --timeout 30s;id",
    "agent sync --if-live ../../x", "agent sync --digest xyz", "agent sync --signature ../../etc/passwd",
    "agent sync --signature", "env EDGEAGENT_SETTINGS=/etc/passwd agent sync", "EDGEAGENT_SETTINGS=x agent sync",
    "scp -t /tmp", "rsync --server . /", "internal-sftp", "agent sync @/etc/passwd", "agent discover", "python3 -c 1",
    "\x1b[2Jagent status", "agent status \x7f", "agent/../agent sync", "./agent sync", "/usr/bin/agent sync",
    "agent sync " + "-" * 40_000, "agent " + "sync " * 10_000, "agent sync --signature " + "A" * 40_000,
]  # fmt: skip


@pytest.mark.parametrize("call", LET_THROUGH)
def test_what_gets_through(call: str):
    assert gate.arguments(call) == LET_THROUGH[call]


@pytest.mark.parametrize("call", [*HOSTILE, None])
def test_what_does_not(call: str | None):
    with pytest.raises(PolicyError) as refused:
        gate.arguments(call)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


WORDS = st.sampled_from(
    ["agent", "sync", "plan", "status", "history", "run", "-", "--", "--json", "--to", "--settings", "/etc/passwd",
     "30s", "--timeout", "--timeout=1s", "--if-live", "0123456789ab", "--sign", "--digest", "--force", ";", "|", "'"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=8).map(" ".join)))
@example("agent sync --timeout=1s --timeout 2s -")
def test_whatever_gets_through_is_made_of_listed_words(call: str):
    try:
        command, *rest = gate.arguments(call)
    except PolicyError:
        return
    assert command in ("sync", "plan", "status", "history")
    for word in rest:
        name, _, value = word.partition("=")
        assert word == "-" or word in gate.FLAGS[command] or gate.VALUES[command][name].fullmatch(value), word


def call(
    edge: Edge, words: bytes | None, *, data: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The gate's process as sshd starts it."""
    inherited = {key: value for key, value in os.environ.items() if key != "SSH_ORIGINAL_COMMAND"}
    more = {} if words is None else {b"SSH_ORIGINAL_COMMAND": words}
    return subprocess.run(
        [sys.executable, "-m", "agent", "--settings", edge.settings, "gate"],
        input=data,
        capture_output=True,
        check=False,
        timeout=60,
        env={os.fsencode(key): os.fsencode(value) for key, value in {**inherited, **environment}.items()} | more,
    )


@pytest.mark.parametrize(
    "words",
    [
        None,
        b"sh -c id",
        b"run",
        b"sync --settings /etc/passwd",
        b"\xff\xfe\x80",
        b"agent sync " + b"x " * 60_000,
        b"--help",
    ],
    ids=["shell", "sh", "run", "settings", "binary", "long", "help"],
)
def test_the_process_refuses_with_nine_and_says_why(one_edge: Edge, words: bytes | None):
    done = call(one_edge, words)
    assert (done.returncode, done.stdout) == (9, b"")
    assert done.stderr.startswith(b"agent: ")
    assert b"Traceback" not in done.stderr


def test_values_that_look_right_and_are_not_are_refused_as_well(one_edge: Edge):
    done = call(one_edge, b"agent sync - --timeout 999999999h")
    assert (done.returncode, b"must be from 1ms" in done.stderr) == (9, True)


def test_the_environment_that_ssh_brings_changes_nothing(one_edge: Edge, tmp_path: Path):
    other = tmp_path / "other.toml"
    other.write_text(f'[paths]\nstate = "{tmp_path}/s"\nrun = "{tmp_path}/r"\ndesired = "{tmp_path}/d"\n')
    done = call(one_edge, b"agent sync - --json", data=b"version: 1", EDGEAGENT_SETTINGS=str(other))
    assert json.loads(done.stdout)["exit_code"] == 7  # no agent runs in this edge's folders
    assert one_edge.desired.read_bytes() == b"version: 1"
    assert not (tmp_path / "d").exists()
    assert b"EDGEAGENT_SETTINGS is ignored by the gate" in done.stderr


def test_the_printed_line_carries_the_settings_in_force(one_edge: Edge, tmp_path: Path):
    public = tmp_path / "key.pub"
    public.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA cluster\n")
    words = [*AGENT, "gate", "--print-authorized-key", public]
    environment = {**os.environ, "EDGEAGENT_SETTINGS": str(one_edge.settings)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert f' --settings {one_edge.settings} gate --as cluster"' in done.stdout
    assert f"uses the settings in {one_edge.settings}" in done.stderr
    environment.pop("EDGEAGENT_SETTINGS")
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert "--settings" not in done.stdout
    assert "uses the settings in /etc/edgeagent/agent.toml" in done.stderr


def test_a_document_without_an_end_is_read_no_further_than_allowed(one_edge: Edge):
    done = call(one_edge, b"agent sync - --json", data=b"#" * 50_000_000)
    assert (done.returncode, json.loads(done.stdout)["result"]) == (3, "invalid")
    assert "at most 1,048,576 bytes" in json.loads(done.stdout)["message"]


def test_a_connection_that_is_cut_ends_no_document(firewall: Firewall, client: Client, backend: EchoServer):
    """Without a digest only the end of the session tells: half of a YAML file can be valid."""
    port, other = free_port(), free_port()
    whole = f"version: 1\nbackends: {{a: {{servers: {{a: {{address: '{backend.address}'}}}}}}}}\nfrontends:\n"
    whole += f"  one: {{bind: ['127.0.0.1:{port}'], backend: a}}\n"
    data = whole + f"  two: {{bind: ['127.0.0.1:{other}'], backend: a}}\n"
    assert client.ssh("-p", str(firewall.sshd.port), "root@127.0.0.1", "agent sync", data=data.encode()).returncode == 0
    words = [client.folder / "bin/ssh", "-p", str(firewall.sshd.port), "root@127.0.0.1", "agent sync - --timeout 5s"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as ssh:
        assert ssh.stdin is not None
        ssh.stdin.write(whole.encode())
        ssh.stdin.flush()
        gates = until(lambda: firewall.sshd.program("gate"), "the gate reads")
        ssh.kill()
    gates.wait(20)
    assert firewall.edge.desired.read_bytes() == data.encode()
    assert first_line(other)[:1] == "a"


def test_a_document_that_never_ends_is_not_waited_for(one_edge: Edge):
    with subprocess.Popen(
        [sys.executable, "-m", "agent", "--settings", one_edge.settings, "gate"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"SSH_ORIGINAL_COMMAND": "agent sync - --timeout 500ms"},
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"version: 1\n")
        process.stdin.flush()
        assert process.wait(20) == 9
        assert b"no whole document within 0.5 s" in process.stderr.read()


def test_each_call_of_the_design_through_a_real_sshd(firewall: Firewall, client: Client, backend: EchoServer):
    data = json.dumps(state(backend.address)).encode()

    def ssh(*words: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return client.ssh("-p", str(firewall.sshd.port), "root@127.0.0.1", *words, data=data)

    done = ssh("agent", "plan", "-", data=data)
    assert (done.returncode, "+frontend" in done.stdout) == (0, True), done.stderr
    done = ssh("agent sync", data=data)
    assert (done.returncode, done.stdout.startswith("committed: generation 1 is live")) == (0, True), done.stderr
    done = ssh("agent status --json")
    assert (done.returncode, json.loads(done.stdout)["live"]["digest"]) == (0, digest_of(data))
    done = ssh("agent history")
    assert (done.returncode, done.stdout.count("committed")) == (0, 1)
    for words in ("agent show", "show 1"):
        done = ssh(words)
        assert (done.returncode, done.stdout.encode()) == (0, data), done.stderr
    for words in (
        "sh -c id",
        "run",
        "sync --settings /etc/passwd",
        "show ../1",
        "show 1 1",
        "cat /etc/passwd; agent status",
    ):
        done = ssh(words)
        assert (done.returncode, done.stdout) == (9, "")
        assert "is not let through" in done.stderr
    done = client.ssh("-p", str(firewall.sshd.port), "root@127.0.0.1", "-s", "sftp")
    assert done.returncode != 0


def test_the_line_for_authorized_keys(firewall: Firewall, client: Client, backend: EchoServer):
    public = client.key.with_suffix(".pub")
    done = firewall.edge.agent("gate", "--print-authorized-key", public)
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip()
    assert line.startswith('restrict,command="')
    assert line.endswith(public.read_text().strip())
    assert f"--settings {firewall.edge.settings} gate" in line
    firewall.sshd.folder.joinpath("authorized_keys").write_text(done.stdout)
    found = client.ssh("-p", str(firewall.sshd.port), "root@127.0.0.1", "agent", "history")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected one public key"),
        ("ssh-ed25519\n", "expected one public key"),
        ('command="id" ssh-ed25519 AAAA x', "expected one public key"),
        ("ssh-ed25519 AAAA a\nssh-ed25519 AAAA b\n", "expected one public key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "this is a private key"),
        ("ssh-ed25519 AAA x", "the key itself is not whole"),
    ],
)
def test_a_file_that_is_no_public_key(one_edge: Edge, content: str, words: str):
    file = one_edge.folder / "key.pub"
    file.write_text(content)
    done = one_edge.agent("gate", "--print-authorized-key", file)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_kind_are_printed(tmp_path: Path, kind: str):
    public = make_key(tmp_path / "k", kind).with_suffix(".pub").read_text()
    line = gate.authorized_key(gate.public_key(public), "/usr/local/bin/agent gate")
    (tmp_path / "authorized_keys").write_text(line)
    keygen("-l", "-f", tmp_path / "authorized_keys")  # OpenSSH's own reader
