"""An API server to test against, with its admin: one that KUBECONFIG names, or one that answers as real ones did.

`Kube` is what tests use of either. Given: `make test-cluster`. Recorded: `kit.apiserver`, in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.left_out import leave_out

OLDEST = (1, 25)
"""Of Kubernetes: the first in which all that the controller uses is served, and conditions of a Service are kept."""
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
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
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

    def path(self, kind: str, name: str = "", namespace: str = "default") -> str:
        path = KINDS[kind].format(namespace=namespace)
        return f"{path}/{name}" if name else path

    def create(self, found: Mapping[str, Any], query: str = "") -> dict[str, Any]:
        namespace = found["metadata"].get("namespace", "default")
        return self.ask("POST", self.path(found["kind"], namespace=namespace) + query, found)

    def get(self, kind: str, name: str = "", namespace: str = "default") -> dict[str, Any]:
        return self.ask("GET", self.path(kind, name, namespace))

    def items(self, kind: str, namespace: str = "default") -> list[dict[str, Any]]:
        return list(self.get(kind, namespace=namespace)["items"])

    def patch(self, kind: str, name: str, body: Any, namespace: str = "default", *, status: bool = False) -> None:
        path = self.path(kind, name, namespace) + ("/status" if status else "")
        self.ask("PATCH", path, body, kind="application/merge-patch+json")

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
        return self._kubeconfig(token, token)

    def _kubeconfig(self, name: str, token: str) -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "certificates/apiserver.crt")}
        file = self.folder / f"kubeconfig-{name}"
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

    # what only a server of our own can do; `make test-cluster` leaves those tests out

    def stop(self) -> None:
        leave_out("this needs an API server of our own")

    def start(self) -> None:
        leave_out("this needs an API server of our own")

    def forget_history(self) -> None:
        """Watches from before now get 410."""
        leave_out("this needs an API server of our own")

    def requests(self) -> list[tuple[str, str, str, int]]:
        """What the controller's account asked for: verb, resource with group and subresource, namespace, status."""
        leave_out("this needs an API server of our own")


class Given(Kube):
    """What KUBECONFIG names: an API server without controllers, such as envtest's, of 1.25 or later.

    A controller would delete the Nodes that tests make, and give real endpoints to their Services. Of what tests make,
    all but namespaces is removed at the end.
    """

    def __init__(self, folder: Path, kubeconfig: str) -> None:
        from kubernetes import client, config

        self.folder = folder
        settings = client.Configuration()
        config.load_kube_config(config_file=kubeconfig, client_configuration=settings)
        self.url = str(settings.host).rstrip("/")
        (folder / "certificates").mkdir()
        (folder / "certificates/apiserver.crt").write_bytes(Path(settings.ssl_ca_cert).read_bytes())
        self._context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        if settings.cert_file:
            self._context.load_cert_chain(settings.cert_file, settings.key_file)
        bearer = settings.api_key.get("BearerToken") or settings.api_key.get("authorization") or ""
        self._tokens = {ADMIN: str(bearer).removeprefix("Bearer ")}
        self.version = str(self.ask("GET", "/version")["gitVersion"])
        numbers = re.match(r"v(\d+)\.(\d+)", self.version)
        assert numbers, self.version
        if (int(numbers[1]), int(numbers[2])) < OLDEST:
            raise RuntimeError(f"{self.url} is {self.version}: the suite is for {OLDEST[0]}.{OLDEST[1]} and later")
        self._made: list[str] = []
        self._existing = {one["metadata"]["name"] for one in self.items("Namespace")}

    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    def ask(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", token: str = ADMIN
    ) -> dict[str, Any]:
        return super().ask(method, path, body, kind=kind, token=self._tokens.get(token, token))

    def create(self, found: Mapping[str, Any], query: str = "") -> dict[str, Any]:
        meta = found["metadata"]
        path = self.path(found["kind"], meta["name"], meta.get("namespace", "default"))
        if found["kind"] == "Namespace" and meta["name"] in self._existing:
            return self.ask("GET", path)
        self._made.append(path)
        return super().create(found, query)

    def kubeconfig(self, token: str = CONTROLLER) -> Path:
        if token not in self._tokens:
            namespace, account = ("edgeagent", "edgeagent-discover") if token == CONTROLLER else ("default", "stranger")
            with contextlib.suppress(RefusedError):  # it is there
                self.create({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": account}})
            path = f"{self.path('ServiceAccount', account, namespace)}/token"
            made = self.ask(
                "POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
            )
            self._tokens[token] = made["status"]["token"]
        return self._kubeconfig(token, self._tokens[token])

    def close(self) -> None:
        """Remove what was made; an object with a finalizer of ours has nobody who would take it off."""
        for path in reversed(self._made):
            with contextlib.suppress(RefusedError):
                self.ask("DELETE", path)
            with contextlib.suppress(RefusedError):
                self.ask("PATCH", path, {"metadata": {"finalizers": None}}, kind="application/merge-patch+json")


@contextlib.contextmanager
def given(folder: Path) -> Iterator[Given]:
    """What KUBECONFIG names."""
    one = Given(folder, os.environ["EDGEAGENT_KUBECONFIG"])
    try:
        yield one
    finally:
        one.close()
