"""`agent sync --to` over a real sshd to real agents, and everything that can be wrong between them."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kit.edge import first_line, until
from kit.servers import EchoServer, free_port
from kit.ssh import Client, Cluster, Firewall, Relay, make_key, sshd, state

from agent.desired.identity import digest_of
from agent.errors import ExitCode
from agent.remote import push
from agent.remote.push import _judge, target, worst


def shared(backend: EchoServer, serial: int) -> dict[str, object]:
    """What two agents on one host can both have live: they cannot both bind one address."""
    return state(backend.address, serial=serial) | {"frontends": {}, "allow_empty": True}


def test_a_pair_is_live_on_both(pair: tuple[Firewall, Firewall], cluster: Cluster, backend: EchoServer):
    a, b = pair
    file = cluster.file(shared(backend, 1))
    done = cluster.agent("sync", file, "--to", a.to, "--to", b.to)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[1] for line in done.stdout.splitlines()) == sorted([f"{a.to}:", f"{b.to}:"])
    for one in pair:
        assert one.edge.desired.read_bytes() == file.read_bytes()
        assert one.edge.status()["live"]["digest"] == digest_of(file.read_bytes())


def test_the_worst_exit_and_the_other_is_live(pair: tuple[Firewall, Firewall], cluster: Cluster, backend: EchoServer):
    a, b = pair
    b.sshd.kill()
    done = cluster.agent("sync", cluster.file(state(backend.address)), "--to", a.to, "--to", b.to, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"]) == (8, 8)
    assert told["hosts"][a.to]["exit_code"] == 0
    assert told["hosts"][b.to]["message"].startswith("ssh failed: ")
    assert a.edge.status()["outcome"] == "committed"


def test_ordered_stops_at_the_first_that_is_not_live(
    pair: tuple[Firewall, Firewall], cluster: Cluster, backend: EchoServer
):
    a, b = pair
    file = cluster.file(shared(backend, 2))
    done = cluster.agent("sync", file, "--to", a.to, "--to", b.to, "--ordered")
    assert [line.split()[1] for line in done.stdout.splitlines()] == [f"{a.to}:", f"{b.to}:"]
    expected = file.read_bytes()
    old = cluster.file(shared(backend, 1))
    done = cluster.agent("sync", old, "--to", a.to, "--to", b.to, "--ordered")
    assert done.returncode == 9
    assert f"{b.to}: not tried: {a.to} is not live" in done.stdout
    assert b.edge.desired.read_bytes() == expected


@pytest.mark.parametrize("kind", ["degraded", "refused", "rolled_back", "policy"])
def test_the_far_sides_report_comes_back_whole_with_its_exit_code(
    firewall: Firewall, cluster: Cluster, backend: EchoServer, kind: str
):
    port, taken = free_port(), free_port()
    good = cluster.file(state(backend.address, port))
    assert cluster.agent("sync", good, "--to", firewall.to).returncode == 0
    nobody = f"127.0.0.1:{free_port()}"
    worse = {
        "degraded": state(backend.address, port, taken, serial=2),
        "refused": state(nobody, port, serial=2),
        "rolled_back": state(backend.address, port, serial=2),
        "policy": state(backend.address, port, serial=0),
    }[kind]
    if kind == "rolled_back":
        worse["backends"]["pool"]["health"] = {"type": "http", "interval": "100ms", "fall": 1}
    with socket.create_server(("127.0.0.1", taken)):
        done = cluster.agent("sync", cluster.file(worse), "--to", firewall.to, "--json")
        here = firewall.edge.agent("sync", firewall.edge.file(json.dumps(worse).encode()), "--json")
    answer = json.loads(done.stdout)["hosts"][firewall.to]["answer"]
    same = json.loads(here.stdout)
    assert done.returncode == here.returncode == {"degraded": 6, "refused": 4, "rolled_back": 5, "policy": 9}[kind]
    assert answer["result"] == kind
    assert (answer["result"], answer["exit_code"], answer["digest"]) == (
        same["result"],
        same["exit_code"],
        same["digest"],
    )
    if kind == "rolled_back":
        assert answer["message"] in same["message"]
        assert answer["report"]["held"] == same["report"]["held"]
    else:
        assert answer["message"] == same["message"]
    if kind == "degraded":
        assert answer["report"]["frontends"] == same["report"]["frontends"] != []


@pytest.mark.parametrize(
    "data",
    [
        b"version: 1\r\nfrontends: {}\r\n",
        b"\xef\xbb\xbfversion: 1\nfrontends: {}",
        b"version: 1\n#" + b"x" * (1_048_576 - 12),
    ],
    ids=["crlf", "bom", "1 MiB"],
)
def test_it_arrives_to_the_byte(firewall: Firewall, cluster: Cluster, data: bytes):
    done = cluster.agent("sync", "-", "--to", firewall.to, data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert firewall.edge.desired.read_bytes() == data


def test_options_reach_the_other_side(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    file = cluster.file(state(backend.address))
    done = cluster.agent("sync", file, "--to", firewall.to, "--dry-run")
    assert (done.returncode, "+frontend" in done.stdout) == (0, True), done.stderr
    assert not firewall.edge.desired.exists()
    assert cluster.agent("sync", file, "--to", firewall.to, "--if-live", "ab" * 32).returncode == 9
    done = cluster.agent("sync", file, "--to", firewall.to, "--no-wait")
    assert (done.returncode, "stored" in done.stdout) == (0, True)
    firewall.edge.wait("committed")
    empty = cluster.file({"version": 1, "serial": 2})
    assert cluster.agent("sync", empty, "--to", firewall.to).returncode == 9
    meant = cluster.file({"version": 1, "serial": 2, "allow_empty": True})
    assert cluster.agent("sync", meant, "--to", firewall.to).returncode == 0


def test_what_is_invalid_here_is_sent_nowhere(cluster: Cluster):
    done = cluster.agent("sync", cluster.file(b"version: 2"), "--to", "nobody@127.0.0.1:1")
    assert (done.returncode, "nobody" in done.stdout) == (3, False)
    for wrong in ("-oProxyCommand=id", "a b", "host:99999", "x@-y", "root@host;id", ""):
        done = cluster.agent("sync", cluster.file({"version": 1}), "--to", wrong)
        assert (done.returncode, "expected USER@HOST" in done.stderr) == (2, True), done.stderr
    twice = cluster.agent("sync", cluster.file({"version": 1}), "--to", "a@h", "--to", "a@h")
    assert (twice.returncode, "named twice" in twice.stderr) == (2, True)


def test_targets():
    assert (target("root@[::1]:22").host, target("root@[::1]:22").port) == ("root@::1", 22)
    assert (target("fw1").host, target("fw1").port) == ("fw1", None)


def test_the_worst_of_many():
    assert worst([ExitCode.LIVE, ExitCode.LIVE]) == 0
    assert worst([ExitCode.LIVE, ExitCode.DEGRADED]) == 6
    assert worst([ExitCode.SSH, ExitCode.ROLLED_BACK, ExitCode.DEGRADED]) == 8
    assert {worst([code]) for code in ExitCode} == set(ExitCode)


def fake(client: Client, script: str) -> None:
    """Another host that says whatever it likes: what stands in its place is all that is run."""
    program = client.folder / "bin/ssh"
    program.write_text(f"#!/bin/sh\ncat >/dev/null\n{script}\n")


ANSWER = {"protocol": 1, "result": "committed", "exit_code": 0, "message": "", "remedy": "", "report": None}
ODD = [
    ({"report": "boo"}, 0),
    ({"report": {"live": "boo", "plan": "boo"}}, 0),
    ({"message": ["boo"], "remedy": {"a": 1}}, 0),
    ({"result": "\x1b]0;pwned\x07"}, 0),
    ({"exit_code": 77}, 77),
    ({"exit_code": 0}, 9),  # its words are one thing, its end another
    ({"protocol": 2}, 0),
    ({"result": []}, 0),
]


@pytest.mark.parametrize(("odd", "code"), ODD)
def test_an_odd_answer_is_one_hosts_own_trouble(cluster: Cluster, client: Client, odd: dict[str, object], code: int):
    good, bad = json.dumps(ANSWER), json.dumps(ANSWER | odd)
    fake(client, f"case \"$*\" in *@bad*) echo '{bad}'; exit {code};; *) echo '{good}';; esac")
    file = cluster.file({"version": 1})
    done = cluster.agent("sync", file, "--to", "a@bad", "--to", "b@good", "--dry-run")
    assert "b@good: committed" in done.stdout
    assert "a@bad: " in done.stdout
    assert "Traceback" not in done.stderr
    assert all(one.isprintable() or one == "\n" for one in done.stdout + done.stderr)
    believed = ("report" in odd and isinstance(odd["report"], dict)) or "message" in odd
    assert done.returncode == (0 if believed else 8)


def test_what_comes_from_there_is_printed_harmless(cluster: Cluster, client: Client):
    nasty = "\x1b[2J\x1b]0;pwned\x07"
    answer = ANSWER | {"exit_code": 4, "result": "refused", "message": nasty, "remedy": nasty}
    answer["report"] = {"plan": {"diff": f"+ok{nasty}\n"}}
    (client.folder / "answer").write_text(json.dumps(answer))
    fake(client, f"cat {client.folder}/answer; printf '\\033[2Jx\\n' >&2; exit 4")
    done = cluster.agent("sync", cluster.file({"version": 1}), "--to", "a@b", "--dry-run")
    assert (done.returncode, "+ok" in done.stdout) == (4, True)
    assert all(one.isprintable() or one == "\n" for one in done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("said", "code", "exit_code", "words"),
    [
        ("Read from remote host fw: Connection timed out", 255, 8, "the session hangs"),
        ("Read from remote host fw: No route to host\nclient_loop: send disconnect: Broken pipe", 255, 8, "was cut"),
        ("Timeout, server fw not responding.", 255, 8, "the session hangs"),
        (
            "ssh: connect to host fw port 22: No route to host",
            255,
            8,
            "ssh failed: ssh: connect to host fw port 22: No route to host",
        ),
        ("ssh: connect to host fw port 22: Connection timed out", 255, 8, "Connection timed out"),
        ("ssh: Could not resolve hostname fw: Name or service not known", 255, 8, "Could not resolve hostname fw"),
        ("agent: cannot write /x: No space left on device", 4, 4, "No space left"),
        ("agent: no haproxy on PATH; agent.toml: there is no such file, not found", 2, 2, "no haproxy"),
        ("agent: '--new' is not let through: a document comes by standard input (`-`)", 9, 8, "its gate does not know"),
        ("bash: agent: command not found", 127, 8, "there is no agent there"),
        (
            "Connection to this system is monitored.\na@b: Permission denied (publickey).",
            255,
            8,
            "Permission denied (publickey)",
        ),
        (
            "Host key verification failed.\nConnection closed by UNKNOWN port 65535",
            255,
            8,
            "ssh failed: Host key verification failed",
        ),
        (
            "Connection timed out during banner exchange\nConnection to 127.0.0.1 port 1 timed out",
            255,
            8,
            "ssh failed: Connection timed out during banner exchange",
        ),
        ("Connection to fw closed by remote host.", 255, 8, "was cut"),
    ],
)
def test_what_ssh_and_the_other_side_say_is_told_apart(said: str, code: int, exit_code: int, words: str):
    found = _judge(target("a@b"), code, b"", said.splitlines())
    assert (found.exit_code, words in found.message) == (exit_code, True), found


def test_what_cannot_be_stored_is_the_far_sides_own_word(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    firewall.edge.desired.mkdir()
    done = cluster.agent("sync", cluster.file(state(backend.address)), "--to", firewall.to)
    assert done.returncode in (2, 4)
    assert "no agent of this version" not in done.stdout
    assert str(firewall.edge.desired) in done.stdout


def test_ordered_and_no_wait_contradict_each_other(cluster: Cluster):
    done = cluster.agent("sync", cluster.file({"version": 1}), "--to", "a@b", "--ordered", "--no-wait")
    assert (done.returncode, "waits for each" in done.stderr) == (2, True)


# --- what can be wrong between here and there -------------------------------------------------------------------


def failure(cluster: Cluster, to: str, *words: str) -> str:
    """What is said of a host that ssh does not get a word out of."""
    file = cluster.file({"version": 1})
    done = cluster.agent("sync", file, "--to", to, *words)
    assert done.returncode == 8, done.stdout + done.stderr
    assert done.stderr.strip(), "a remedy"
    return done.stdout


def test_nobody_listens(cluster: Cluster):
    assert "Connection refused" in failure(cluster, f"root@127.0.0.1:{free_port()}")


def test_the_key_is_not_taken(firewall: Firewall, cluster: Cluster, client: Client, tmp_path: Path):
    client.key = make_key(tmp_path / "other")
    client.configure()
    assert "Permission denied" in failure(cluster, firewall.to)


def test_the_host_key_has_changed(firewall: Firewall, cluster: Cluster, client: Client, tmp_path: Path):
    other = make_key(tmp_path / "host").with_suffix(".pub").read_text().split()[:2]
    (client.folder / "known_hosts").write_text(f"[127.0.0.1]:{firewall.sshd.port} {' '.join(other)}\n")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in failure(cluster, firewall.to)


def test_the_host_key_is_not_known(firewall: Firewall, cluster: Cluster, client: Client):
    (client.folder / "known_hosts").write_text("")
    assert "Host key verification failed" in failure(cluster, firewall.to)


def test_no_agent_on_the_other_side(cluster: Cluster, client: Client, tmp_path: Path):
    with sshd(tmp_path / "s", client, "/nowhere/agent gate") as server:
        assert "there is no agent there" in failure(cluster, server.to)
        server.force("echo hello")
        assert "what answers there is no agent of this version" in failure(cluster, server.to)
        old = tmp_path / "old"
        old.write_text("#!/bin/sh\necho \"Error: No such command 'sync'.\" >&2; exit 2\n")
        old.chmod(0o755)
        server.force(str(old))
        assert "its agent is older than this one" in failure(cluster, server.to)


def test_a_session_that_hangs_is_ended(
    cluster: Cluster, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", client.environment["PATH"])
    monkeypatch.setattr(push, "GRACE_SECONDS", 1.0)
    with sshd(tmp_path / "s", client, "cat >/dev/null; sleep 100") as server:  # ended with the server
        payload = push.Payload(data=b"version: 1", signature=b"", arguments=(), seconds=0.5)
        (found,) = push.push(
            [target(server.to)], payload, ordered=False, on_stage=lambda *_: None, on_end=lambda _: None
        )
    assert (found.exit_code, found.message) == (8, "the session hangs: no answer in time")
    assert found.seconds < 4


def test_who_reads_no_more_ends_no_session(cluster: Cluster, client: Client):
    fake(client, f"case \"$*\" in *late*) sleep 1; touch {client.folder}/done;; esac; echo '{json.dumps(ANSWER)}'")
    words = [sys.executable, "-m", "agent", "sync", cluster.file({"version": 1})]
    with subprocess.Popen(
        [*words, "--to", "a@early", "--to", "a@late"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=client.environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == 0
    assert (client.folder / "done").exists()


def test_what_is_invalid_is_one_document_too(cluster: Cluster):
    done = cluster.agent("sync", cluster.file(b"version: 2"), "--to", "a@b", "--json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (3, "invalid")


def test_a_server_that_is_none(cluster: Cluster):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            one, _ = listener.accept()
            one.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert "the session was cut" in failure(cluster, f"root@127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_sshd_killed_while_waiting(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    (service,) = firewall.edge.services
    service.send_signal(signal.SIGSTOP)
    file = cluster.file(state(backend.address))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(cluster.agent, "sync", file, "--to", firewall.to)
        until(firewall.edge.desired.exists, "the document is there")
        firewall.sshd.kill()
        done = waiting.result(60)
    assert (done.returncode, "the session was cut" in done.stdout) == (8, True), done.stdout
    assert "sync again" in done.stderr
    service.send_signal(signal.SIGCONT)
    firewall.edge.wait("committed", digest_of(file.read_bytes()))  # it had arrived


def test_the_agent_killed_while_waiting(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    (service,) = firewall.edge.services
    service.send_signal(signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(cluster.agent, "sync", cluster.file(state(backend.address)), "--to", firewall.to)
        until(firewall.edge.desired.exists, "the document is there")
        service.kill()
        done = waiting.result(60)
    assert (done.returncode, "no agent runs here; the document is stored" in done.stdout) == (7, True), done.stdout


def test_a_connection_cut_at_every_tenth_leaves_the_old_document_or_the_new_one(
    firewall: Firewall, cluster: Cluster, client: Client, backend: EchoServer
):
    port = free_port()
    old = cluster.file(state(backend.address, port))
    assert cluster.agent("sync", old, "--to", firewall.to).returncode == 0
    new = json.dumps(state(backend.address, port, serial=2)).encode()
    new += b"\n#" + os.urandom(400_000).hex().encode()
    file = cluster.file(new, "large.yaml")

    def carried(after: int) -> tuple[int, int]:
        with Relay(firewall.sshd.port, after) as relay:
            known = firewall.sshd.known.replace(f":{firewall.sshd.port} ", f":{relay.port} ")
            (client.folder / "known_hosts").write_text(known)
            word = "--dry-run" if after < 0 else "--force"
            done = cluster.agent("sync", file, "--to", f"root@127.0.0.1:{relay.port}", word)
            return done.returncode, relay.carried

    code, whole = carried(-1)
    assert code == 0
    for tenth in range(1, 10):
        code, _ = carried(whole * tenth // 10)
        assert code == 8
        assert firewall.edge.desired.read_bytes() == old.read_bytes(), tenth
    assert first_line(port)[:1] == "a"
    assert carried(whole * 2)[0] == 0
    assert firewall.edge.desired.read_bytes() == new


def test_twenty_at_once(firewall: Firewall, cluster: Cluster, backend: EchoServer):
    port = free_port()
    files = [cluster.file(state(backend.address, port, serial=n), f"{n}.yaml") for n in range(1, 21)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        ends = list(pool.map(lambda file: cluster.agent("sync", file, "--to", firewall.to, "--json"), files))
    history = json.loads(firewall.edge.agent("history", "--json").stdout)
    live = [entry["digest"] for entry in history if entry["kind"] == "generation"]
    for file, end in zip(files, ends, strict=True):
        (told,) = json.loads(end.stdout)["hosts"].values()
        if end.returncode == 8:  # sshd takes ten at once that have not yet shown their key (MaxStartups)
            assert "the session was cut" in told["message"], told
            assert told["remedy"]
        else:
            assert (end.returncode == 0) is (digest_of(file.read_bytes()) in live), told
            assert end.returncode in (0, 9)
    assert firewall.edge.status()["live"]["serial"] == max(
        n for n, end in enumerate(ends, start=1) if end.returncode == 0
    )
