"""`agent discover` as a process, the cluster it watches, and a firewall with servers where the nodes would be."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from kit.edge import until
from kit.kube import CONTROLLER, Kube
from kit.servers import EchoServer, echo
from kit.ssh import Client

DEPLOY = Path(__file__).parents[2] / "deploy/kubernetes"
_numbers = itertools.count(1)


def manifests(*names: str) -> list[dict[str, Any]]:
    """Of `deploy/kubernetes/NAME.yaml`."""
    return [one for name in names for one in yaml.safe_load_all((DEPLOY / f"{name}.yaml").read_text())]


def own_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody else has: each test's, and each worker's, are in a network of their own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    number = next(_numbers)
    return [f"127.{60 + worker}.{number}.{10 + one}" for one in range(count)]


def node(name: str, *addresses: str, ready: bool = True, cordoned: bool = False, **labels: str) -> dict[str, Any]:
    """`labels`: `_` for `-`."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {key.replace("_", "-"): value for key, value in labels.items()}},
        "spec": {"unschedulable": True} if cordoned else {},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address} for address in addresses]
            + [{"type": "Hostname", "address": name}],
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": "True" if ready else "Unknown"},
            ],
        },
    }


def service(
    name: str, ports: dict[str, int], *, namespace: str = "default", kind: str = "NodePort", **annotations: str
) -> dict[str, Any]:
    """Each port by its name; NodePorts are 5,000 above it, or 30,000 above a small one. Annotations as `annotate`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {
                f"edgeagent.io/{key.replace('__', '.').replace('_', '-')}": value for key, value in annotations.items()
            },
        },
        "spec": {
            "type": kind,
            "ports": [
                {"name": port, "port": number, **({"nodePort": 30_000 + number} if kind == "NodePort" else {})}
                for port, number in ports.items()
            ],
        },
    }


def balanced(name: str, ports: dict[str, int], **spec: Any) -> dict[str, Any]:
    """A Service of type LoadBalancer with our class, its NodePorts as `service` has them."""
    made = service(name, ports, kind="NodePort")
    del made["metadata"]["annotations"]
    made["spec"] |= {"type": "LoadBalancer", "loadBalancerClass": "edgeagent.io/edge", **spec}
    return made


def endpoints(
    service: str, *members: tuple[str, str, bool], namespace: str = "default", **ports: int
) -> dict[str, Any]:
    """(address, node, ready) each."""
    family = "IPv6" if members and ":" in members[0][0] else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-{family.lower()}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": name, "port": number} for name, number in ports.items()],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": ready},
                "nodeName": where,
                "targetRef": {"kind": "Pod", "name": f"{service}-{index}"},
            }
            for index, (address, where, ready) in enumerate(members)
        ],
    }


@dataclass
class Controller:
    """`agent discover --watch` in a process of its own. `log`: what it says."""

    kube: Kube
    client: Client
    words: tuple[str, ...]
    log: Path
    token: str = CONTROLLER
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        words = [sys.executable, "-m", "agent", "discover", "--watch", "--kubeconfig", self.kube.kubeconfig(self.token)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, *self.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.client.environment,
                cwd=self.log.parent,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, words: str, *, count: int = 1, timeout: float = 30) -> None:
        """Until its log has these words so often."""
        try:
            until(lambda: self.said.count(words) >= count or self.process.poll() is not None, words, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.said}") from None
        assert self.said.count(words) >= count, self.said

    @property
    def pushes(self) -> int:
        return self.said.count(" push to ")

    def pushed(self, count: int) -> None:
        """So often, and no more: its word comes a moment after what it has done."""
        self.wait(" push to ", count=count)
        assert self.pushes == count, self.said

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def controller(kube: Kube, client: Client, folder: Path, *words: str, name: str = "log") -> Iterator[Controller]:
    one = Controller(kube, client, words, folder / f"controller.{name}")
    one.start()
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def node_servers(addresses: list[str], *ports: int, header: bool = True) -> Iterator[dict[tuple[str, int], EchoServer]]:
    """What kube-proxy would be: a server at each address and port."""
    with contextlib.ExitStack() as stack:
        yield {
            (host, port): stack.enter_context(echo(f"{host}:{port}", host=host, port=port, header=header))
            for host in addresses
            for port in ports
        }


def told(kube: Kube, name: str, namespace: str = "default") -> dict[str, Any]:
    """What the controller reports of a Service, by its conditions: `state` and `message`; {} where nothing."""
    found = (kube.get("Service", name, namespace).get("status") or {}).get("conditions") or ()
    by_type = {condition["type"].removeprefix("edgeagent.io/"): condition for condition in found}
    if "Programmed" not in by_type:
        return {}
    degraded = by_type["Degraded"]["status"] == "True"
    state = "degraded" if degraded else by_type["Programmed"]["reason"].lower()
    return {"state": state, "message": by_type["Programmed"]["message"]}


def events(kube: Kube, name: str, namespace: str = "default") -> list[tuple[str, str]]:
    """(reason, message) of the Events of a Service, oldest first."""
    own = [event for event in kube.items("Event", namespace) if event["regarding"]["name"] == name]
    return [(event["reason"], event["note"]) for event in sorted(own, key=lambda event: event["metadata"]["name"])]
