"""`agent discover` as a command: what is printed, what is said, how it exits."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from kit.discover import manifests, node, service
from kit.kube import STRANGER, Kube

from agent.desired.state import parse


def discover(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    found = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")}
    return subprocess.run(
        [sys.executable, "-m", "agent", "discover", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
        env=found | environment,
    )


@pytest.fixture
def cluster(kube: Kube) -> Kube:
    """Four nodes, and the mail example."""
    for index in range(1, 5):
        kube.create(node(f"k8s-node{index}", f"192.0.2.10{index}"))
    for manifest in manifests("example-mail"):
        kube.create(manifest)
    return kube


def test_it_prints_a_desired_state_as_yaml_or_json(cluster: Kube):
    printed = discover("--kubeconfig", cluster.kubeconfig())
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.startswith("# Made by `agent discover` of test")
    as_json = discover("--kubeconfig", cluster.kubeconfig(), "--json")
    assert parse(printed.stdout.encode(), file="x").state == parse(as_json.stdout.encode(), file="x").state
    json.loads(as_json.stdout)
    assert discover("--json", KUBECONFIG=str(cluster.kubeconfig())).stdout == as_json.stdout


def test_a_mistaken_service_is_told_and_the_others_are_printed(cluster: Kube):
    cluster.create(service("bad", {"x": 80}, expose="y=80"))
    done = discover("--kubeconfig", cluster.kubeconfig())
    assert done.returncode == 6
    assert "warning: Service default/bad: edgeagent.io/expose: the Service has no port y" in done.stderr
    assert list(yaml.safe_load(done.stdout)["frontends"]) == ["imaps", "smtp", "smtps", "submission"]


def test_a_conflict_with_the_base_prints_nothing_and_names_both_places(cluster: Kube, tmp_path: Path):
    base = tmp_path / "base.yaml"
    base.write_text("version: 1\nfrontends:\n  smtp:\n    bind: ['192.0.2.9:25']\n")
    done = discover("--kubeconfig", cluster.kubeconfig(), "--base", base)
    assert (done.returncode, done.stdout) == (3, "")
    assert f'{base}:4 says ["192.0.2.9:25"]' in done.stderr
    assert "Service mail/mail: frontends.smtp.bind: the Service makes it" in done.stderr


def test_only_services_of_the_named_namespaces(cluster: Kube):
    cluster.create(service("web", {"https": 443}, expose="https", bind="192.0.2.1"))
    found = {}
    for words in (("-n", "mail"), ("-n", "default"), ("-n", "mail", "-n", "default")):
        done = discover("--json", "--kubeconfig", cluster.kubeconfig("admin-token"), *words)
        found[words[1:]] = len(json.loads(done.stdout)["frontends"])
    assert list(found.values()) == [4, 1, 5]


def test_a_thousand_services_come_in_pages(bare: Kube):
    bare.create(node("node1", "192.0.2.101"))
    for index in range(1_100):
        said = {"expose": f"web={1_000 + index}", "bind": "192.0.2.1", "prefix": f"s{index}"}
        bare.create(service(f"s{index}", {"web": 80}, kind="ClusterIP", via="clusterip", **said))
    done = discover("--json", "--kubeconfig", bare.kubeconfig("admin-token"))
    assert (done.returncode, len(json.loads(done.stdout)["frontends"])) == (0, 1_100), done.stderr[:500]


def test_no_service_that_asks_is_said(kube: Kube):
    done = discover("--kubeconfig", kube.kubeconfig())
    manager = kube.get("Namespace", "kube-system")["metadata"]["uid"]
    assert (done.returncode, yaml.safe_load(done.stdout)) == (6, {"version": 1, "manager": manager})
    assert "no Service has the annotation edgeagent.io/expose" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--kubeconfig", "/nonexistent"], 2, "no cluster to ask: /nonexistent: "),
        (["--watch"], 2, "--watch needs --to"),
        (["--to", "a@b"], 2, "belong to --watch"),
        (["--bind", "firewall"], 2, "an address is expected"),
        (["--base", "/nonexistent.yaml"], 2, "/nonexistent.yaml: No such file"),
        (["--watch", "--to", "-oProxyCommand=x"], 2, "expected USER@HOST"),
    ],
)
def test_what_cannot_be_is_said_with_a_way_out(tmp_path: Path, kube: Kube, words, code, said):
    if "--watch" in words or "--bind" in words:
        words = [*words, "--kubeconfig", str(kube.kubeconfig())]
    done = discover(*words, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr


def test_where_there_is_no_kubernetes_client_it_says_where_it_is_to_be_had():
    hidden = "import sys; sys.modules['kubernetes'] = None; from agent.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "discover"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "whl[cluster]" in done.stderr


def test_without_rights_it_is_refused_by_policy(cluster: Kube):
    done = discover("--kubeconfig", cluster.kubeconfig(STRANGER))
    assert (done.returncode, done.stdout) == (9, "")
    assert 'User "stranger" cannot list resource' in done.stderr
    assert "rbac.yaml" in done.stderr
    done = discover("--kubeconfig", cluster.kubeconfig("no-such-token"))
    assert done.returncode == 9
    assert "its token is not taken" in done.stderr


def test_in_a_pod_it_takes_the_pods_account(cluster: Kube, tmp_path: Path, root: None):
    """Its files are at a fixed place; only in a mount namespace of its own can a test put some there."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("controller-token")
    (folder / "namespace").write_text("edgeagent")
    host, port = cluster.url.split("//")[1].split(":")
    shutil.copy(cluster.folder / "certificates/apiserver.crt", folder / "ca.crt")
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = (
        f"mount -t tmpfs none /run && mkdir -p {place} && mount --bind {folder} {place} && "
        f"exec {sys.executable} -m agent discover --json"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port},
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["frontends"]) == 4


# --- what may answer there ----------------------------------------------------------------------------------------


@contextmanager
def answering(reply: Callable[[bytes], bytes], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that answers each request with these bytes, and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                with context.wrap_socket(self.request, server_side=True) if context else self.request as stream:
                    stream.sendall(reply(stream.recv(65_536)))
            except OSError:
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def config(folder: Path, server: str, **more: Any) -> Path:
    file = folder / "config"
    file.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server, **more}}],
        "users": [{"name": "x", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }))  # fmt: skip
    return file


def http(status: str, body: bytes, *head: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *head]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"", "does not answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer"),
        (http("200 OK", b"<html>hello</html>"), "what answers there is no API server"),
        (http("200 OK", b"[" * 100_000), "what answers there is no API server"),
        (http("200 OK", b"[]"), "what answers there is no API server"),
        (http("200 OK", b"{}"), "what answers there is no list"),
        (http("200 OK", b'{"items": null, "metadata": {"resourceVersion": "1"}}'), "what answers there is no list"),
        (http("200 OK", b'{"kind": "Status", "status": "Success", "items": []}'), "what answers there is no list"),
        (http("500 Oops", b"<html>it broke</html>"), "500: <html>it broke</html>"),
        (http("503 Busy", b'{"kind":"Status","message":"etcd is away"}'), "503: etcd is away"),
        (http("200 OK", b'{"items": []}').replace(b"13", b"99"), "the answer was cut"),
        (http("302 Found", b"", "Location: http://127.0.0.1:1/"), "302"),
    ],
)
def test_whatever_answers_there_is_told_in_one_line(tmp_path: Path, reply: bytes, said: str):
    with answering(lambda _: reply) as server:
        done = discover("--kubeconfig", config(tmp_path, server))
    assert done.returncode == 7, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 600


def test_a_certificate_that_is_not_known_is_not_taken(tmp_path: Path):
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    authority.cert_pem.write_to_path(tmp_path / "good.pem")
    heard: list[bytes] = []

    def reply(request: bytes) -> bytes:
        heard.append(request)
        return http("200 OK", b'{"items": [], "metadata": {"resourceVersion": "1"}}')

    with answering(reply, context) as server:
        done = discover(
            "--kubeconfig", config(tmp_path, server, **{"certificate-authority": str(tmp_path / "other.pem")})
        )
        assert (done.returncode, heard) == (7, []), done.stderr
        assert "certificate verify failed" in done.stderr.lower()
        done = discover(
            "--kubeconfig", config(tmp_path, server, **{"certificate-authority": str(tmp_path / "good.pem")})
        )
        assert (done.returncode, len(heard)) == (6, 4), done.stderr


def test_objects_that_cannot_be_read_are_left_out_and_the_others_are_not(tmp_path: Path):
    good = service("web", {"https": 443}, kind="ClusterIP", expose="https", bind="192.0.2.1", via="clusterip")
    good["spec"]["clusterIP"] = "198.18.0.9"
    items: list[Any] = [
        {},
        {"metadata": None, "spec": 4},
        {"metadata": {"name": "x"}, "spec": {"ports": [{"port": "x"}]}},
    ]
    body = json.dumps({"items": [*items, 4, good], "metadata": {"resourceVersion": "1"}}).encode()
    with answering(lambda _: http("200 OK", body)) as server:
        done = discover("--json", "--kubeconfig", config(tmp_path, server))
    assert "Traceback" not in done.stderr, done.stderr
    assert list(json.loads(done.stdout)["frontends"]) == ["https"], done.stderr
