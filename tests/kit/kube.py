"""An API server to test against, with its admin: the real one, or one of our own that answers as the real one did.

`Kube` is what tests use of either. Real: etcd and kube-apiserver on loopback, where `make test-cluster` has built
it. Recorded: `kit.apiserver`, in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.edge import until
from kit.servers import free_port

BINARY = Path(__file__).parents[2] / ".cache/cluster/kube-apiserver"
ADMIN, CONTROLLER, STRANGER = "admin-token", "controller-token", "stranger-token"
ACCOUNT = "system:serviceaccount:edgeagent:edgeagent-discover"
KINDS = {
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Event": "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "PodDisruptionBudget": "/apis/policy/v1beta1/namespaces/{namespace}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
}


class RefusedError(Exception):
    """The API server said no: `status` of HTTP, `body` as it came."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body.get('message')}")
        self.status, self.body = status, body


class Kube:
    """An API server, asked as its admin. `url` has no slash at its end."""

    url: str
    folder: Path

    def ask(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", token: str = ADMIN
    ) -> dict[str, Any]:
        head = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            raise RefusedError(error.code, json.loads(error.read() or b"{}")) from None

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "certificates/apiserver.crt")

    slices = "v1"
    """Of EndpointSlices, the version that it serves; before 1.21 v1beta1 alone."""

    def path(self, kind: str, name: str = "", namespace: str = "default") -> str:
        path = KINDS[kind].format(namespace=namespace)
        if kind == "EndpointSlice":
            path = path.replace("/v1/", f"/{self.slices}/")
        return f"{path}/{name}" if name else path

    def _of_its_version(self, body: Any) -> Any:
        """An EndpointSlice, or a part of one, as a server with `slices` has it: before v1 a node was in `topology`."""
        if self.slices == "v1" or not isinstance(body, dict) or "endpoints" not in body:
            return body
        old = [
            {key: value for key, value in endpoint.items() if key != "nodeName"}
            | {"topology": {"kubernetes.io/hostname": endpoint["nodeName"]}}
            for endpoint in body["endpoints"]
        ]
        version = {"apiVersion": f"discovery.k8s.io/{self.slices}"} if "apiVersion" in body else {}
        return {**body, "endpoints": old, **version}

    def create(self, found: Mapping[str, Any], query: str = "") -> dict[str, Any]:
        namespace = found["metadata"].get("namespace", "default")
        return self.ask("POST", self.path(found["kind"], namespace=namespace) + query, self._of_its_version(found))

    def get(self, kind: str, name: str = "", namespace: str = "default") -> dict[str, Any]:
        return self.ask("GET", self.path(kind, name, namespace))

    def items(self, kind: str, namespace: str = "default") -> list[dict[str, Any]]:
        return list(self.get(kind, namespace=namespace)["items"])

    def patch(self, kind: str, name: str, body: Any, namespace: str = "default", *, status: bool = False) -> None:
        path = self.path(kind, name, namespace) + ("/status" if status else "")
        self.ask("PATCH", path, self._of_its_version(body), kind="application/merge-patch+json")

    def replace(self, found: Mapping[str, Any]) -> dict[str, Any]:
        meta = found["metadata"]
        return self.ask("PUT", self.path(found["kind"], meta["name"], meta.get("namespace", "default")), found)

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        self.ask("DELETE", self.path(kind, name, namespace))

    def annotate(self, name: str, namespace: str = "default", **annotations: str | None) -> None:
        """`expose="smtp=25"`, `health_port__smtp="check"`: without the prefix, `_` for `-`, `__` for `.`."""
        found = {
            f"edgeagent.io/{key.replace('__', '.').replace('_', '-')}": value for key, value in annotations.items()
        }
        self.patch("Service", name, {"metadata": {"annotations": found}}, namespace)

    def kubeconfig(self, token: str = CONTROLLER) -> Path:
        """A file for `--kubeconfig`."""
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "certificates/apiserver.crt")}
        file = self.folder / f"kubeconfig-{token}"
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "here", "cluster": cluster}],
                    "users": [{"name": "me", "user": {"token": token}}],
                    "contexts": [
                        {"name": "test", "context": {"cluster": "here", "user": "me", "namespace": "edgeagent"}}
                    ],
                    "current-context": "test",
                }
            )
        )
        return file

    # what each does in its own way

    def stop(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def forget_history(self) -> None:
        """Watches from before now get 410."""
        raise NotImplementedError

    def requests(self) -> list[tuple[str, str, str, int]]:
        """What the controller's account asked for: verb, resource with group and subresource, namespace, status."""
        raise NotImplementedError


class Real(Kube):
    """etcd and kube-apiserver 1.20, with RBAC and an audit log."""

    slices = "v1beta1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._etcd_port, self._peer, self._port = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        subprocess.run(["openssl", "genrsa", "-out", folder / "account.key", "2048"], check=True, capture_output=True)
        (folder / "tokens").write_text(
            f'{ADMIN},admin,1,"system:masters"\n'
            f'{CONTROLLER},{ACCOUNT},2,"system:serviceaccounts,system:serviceaccounts:edgeagent"\n'
            f"{STRANGER},stranger,3\n"
        )
        (folder / "audit.yaml").write_text(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\n"
            f"rules:\n- level: Metadata\n  users: ['{ACCOUNT}']\n- level: None\n"
        )
        self._run(
            "etcd",
            shutil.which("etcd") or "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer}",
            f"--initial-cluster=default=http://127.0.0.1:{self._peer}",
            "--unsafe-no-fsync",
        )

    def _run(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> None:
        key = self.folder / "account.key"
        self._run(
            "kube-apiserver",
            str(BINARY),
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--cert-dir={self.folder}/certificates",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default",
            f"--token-auth-file={self.folder}/tokens",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=198.18.0.0/16",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            f"--audit-policy-file={self.folder}/audit.yaml",
            f"--audit-log-path={self.folder}/audit.log",
        )

        def ready() -> bool:
            process = self._processes["kube-apiserver"]
            assert process.poll() is None, (self.folder / "kube-apiserver.log").read_text()[-3000:]
            with contextlib.suppress(OSError, RefusedError, ValueError):
                self.ask("GET", "/api/v1/namespaces/default")
                self.ask("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node")
                return True
            return False

        until(ready, "kube-apiserver is ready", 90)

    def stop(self) -> None:
        self._end("kube-apiserver")

    def _end(self, name: str) -> None:
        if (process := self._processes.pop(name, None)) is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        for name in list(self._processes):
            self._end(name)

    def forget_history(self) -> None:
        ctl = ["etcdctl", f"--endpoints=http://127.0.0.1:{self._etcd_port}"]
        environment = os.environ | {"ETCDCTL_API": "3"}
        told = subprocess.run(
            [*ctl, "endpoint", "status", "-w", "json"], check=True, capture_output=True, env=environment
        )
        revision = json.loads(told.stdout)[0]["Status"]["header"]["revision"]
        subprocess.run([*ctl, "compact", str(revision)], check=True, capture_output=True, env=environment)

    def requests(self) -> list[tuple[str, str, str, int]]:
        found = []
        for line in (self.folder / "audit.log").read_text().splitlines():
            event = json.loads(line)
            ref = event["objectRef"]
            resource = "/".join(one for one in (ref["resource"], ref.get("subresource")) if one)
            group = ref.get("apiGroup", "")
            where = f"{resource}.{group}" if group else resource
            found.append((event["verb"], where, ref.get("namespace", ""), event["responseStatus"]["code"]))
        return found


@contextlib.contextmanager
def real(folder: Path) -> Iterator[Real]:
    """A real one, ready."""
    one = Real(folder)
    try:
        begin = time.monotonic()
        one.start()
        print(f"kube-apiserver: ready in {time.monotonic() - begin:.1f} s")
        yield one
    finally:
        one.close()
