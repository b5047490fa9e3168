"""Who changed it, over ssh: the comment of the key, its address, and the signer."""

from __future__ import annotations

import subprocess

import pytest
from kit.onefile import AGENT
from kit.servers import EchoServer
from kit.ssh import Cluster, Firewall, state

from agent.host import caller


def test_the_key_and_its_address(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    firewall.edge.live(state(backend.address, serial=1))
    made = subprocess.run(
        [*AGENT, "--settings", firewall.edge.settings, "gate", "--print-authorized-key",
         cluster.client.key.with_suffix(".pub")],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert ' gate --as test" ' in made.stdout
    (firewall.sshd.folder / "authorized_keys").write_text(made.stdout)
    done = cluster.agent("sync", cluster.file(state(backend.address, serial=2)), "--to", firewall.to)
    assert done.returncode == 0, done.stdout + done.stderr
    assert firewall.edge.status()["live"]["actor"] == "key test from 127.0.0.1"


def test_a_key_without_a_name_is_its_account(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    done = cluster.agent("sync", cluster.file(state(backend.address, serial=2)), "--to", firewall.to)
    assert done.returncode == 0, done.stdout + done.stderr
    assert firewall.edge.status()["live"]["actor"] == "root from 127.0.0.1"


def test_the_signer(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    key = cluster.client.key
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (firewall.edge.folder / "signers").write_text(f"cluster@example.org {public}\n")
    settings = firewall.edge.settings
    settings.write_text(f'{settings.read_text()}\n[sync]\nallowed_signers = "{firewall.edge.folder}/signers"\n')
    firewall.edge.services[0].terminate()
    firewall.edge.services[0].wait()
    firewall.edge.serve()
    done = cluster.agent("sync", cluster.file(state(backend.address, serial=2)), "--to", firewall.to, "--sign", key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert firewall.edge.status()["live"]["actor"] == "root from 127.0.0.1, signed by cluster@example.org"


def test_a_long_comment_does_not_hide_the_address():
    actor = caller.key("a" * 300, {"SSH_CONNECTION": "203.0.113.9 1 192.0.2.1 22"})
    assert actor.endswith("a from 203.0.113.9")
    assert len(actor) <= 120


@pytest.mark.parametrize(
    ("comment", "shown"),
    [("o'brien@host", "o_brien@host"), ('a"; rm -rf /', "'a__ rm -rf /'"), ("", ""), ("x" * 200, "x" * 120)],
)
def test_a_comment_reaches_no_shell_unquoted(cluster: Cluster, comment: str, shown: str):
    kind, data, _ = cluster.client.key.with_suffix(".pub").read_text().split()
    file = cluster.file(f"{kind} {data} {comment}\n".encode(), "odd.pub")
    done = cluster.agent("gate", "--print-authorized-key", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" gate")[1].startswith(f' --as {shown}" ' if shown else '" ')
