"""Asks a real kube-apiserver what `kit.apiserver` answers, and keeps it: `python tests/cluster/record.py`.

What differs from run to run is named alike, so that a second recording is the same file.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit import kube

FILE = Path(__file__).parent / "recorded.json"
NAME = "recorded-name"
_MOMENT = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

PORTS = [{"name": "smtp", "port": 25, "targetPort": 2525, "nodePort": 30125}]
OBJECTS: dict[str, dict[str, Any]] = {
    "Namespace": {"metadata": {"name": NAME}},
    "Node": {"metadata": {"name": NAME}},
    "Service": {"metadata": {"name": NAME}, "spec": {"type": "NodePort", "ports": PORTS}},
    "EndpointSlice": {
        "apiVersion": "discovery.k8s.io/v1beta1",
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": "IPv4",
        "ports": [{"name": "smtp", "port": 2525}],
        "endpoints": [{"addresses": ["192.0.2.7"], "topology": {"kubernetes.io/hostname": NAME}}],
    },
    "Lease": {
        "apiVersion": "coordination.k8s.io/v1",
        "metadata": {"name": NAME},
        "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15},
    },
    "Event": {
        "metadata": {"name": NAME},
        "involvedObject": {"kind": "Service", "name": NAME, "namespace": "default"},
        "reason": "Live",
        "message": "smtp: live",
        "type": "Normal",
    },
}


def answers(one: kube.Kube, seconds: int = 65) -> dict[str, Any]:
    """What it says to each of a fixed list of requests: status, content type, body.

    `seconds`: how long it is watched; the real one sends a bookmark after a minute, to a watch that has seen an event.
    """
    found: dict[str, Any] = {}

    def ask(name: str, method: str, path: str, body: Any = None, *, token: str = kube.ADMIN) -> dict[str, Any]:
        head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(one.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120, context=one.context) as answer:
                status, kind, text = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            status, kind, text = error.code, error.headers["Content-Type"], error.read()
        told: Any = text.decode()
        if kind == "application/json":
            lines = text.splitlines()
            told = [json.loads(line) for line in lines] if len(lines) > 1 or "watch=" in path else json.loads(text)
        found[name] = {"status": status, "kind": kind, "body": told, "asked": body}
        return told if isinstance(told, dict) else {}

    for kind, given in OBJECTS.items():
        path = "/api/v1/namespaces/default/events" if kind == "Event" else one.path(kind)
        ask(f"created {kind}", "POST", path, {"apiVersion": "v1", "kind": kind, **given})
    ask("exists", "POST", one.path("Node"), {"apiVersion": "v1", "kind": "Node", **OBJECTS["Node"]})
    ask("not found", "GET", one.path("Service", "recorded-other"))
    ask("no such path", "GET", "/apis/discovery.k8s.io/v1/endpointslices")
    ask("forbidden", "GET", "/api/v1/services", token=kube.STRANGER)
    ask("unauthorized", "GET", "/api/v1/services", token="nobody")
    lease = one.get("Lease", NAME)
    one.replace(lease)
    one.patch("Lease", NAME, {"spec": {"leaseDurationSeconds": 16}})
    ask("conflict", "PUT", one.path("Lease", NAME), lease)
    page = ask("page", "GET", "/api/v1/services?limit=1")
    begin = one.get("Node")["metadata"]["resourceVersion"]
    changes = threading.Timer(1, _change, [one])
    changes.start()
    watch = f"watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}"
    ask("watched", "GET", f"/api/v1/nodes?{watch}&resourceVersion={begin}")
    changes.join()
    one.forget_history()
    ask("expired", "GET", f"/api/v1/services?limit=1&continue={page['metadata']['continue']}")
    ask("deleted", "DELETE", one.path("Service", NAME))
    one.stop()
    one.start()
    ask("gone", "GET", "/api/v1/services?watch=true&timeoutSeconds=2&resourceVersion=1")
    return _alike(found)


def _change(one: kube.Kube) -> None:
    one.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "recorded-other"}})
    one.patch("Node", "recorded-other", {"metadata": {"labels": {"changed": "yes"}}})
    one.delete("Node", "recorded-other")


def _alike(found: Any) -> Any:
    """Without what differs each time."""
    if isinstance(found, dict):
        gone = ("managedFields", "continue", "remainingItemCount")
        parts = {key: _alike(value) for key, value in found.items() if key not in gone}
        # Its own Service leads to its own port.
        return parts | ({"targetPort": 6443} if parts.get("name") == "https" else {})
    if isinstance(found, list):
        return [_alike(one) for one in found]
    if isinstance(found, str):
        text = _UID.sub("UID", _MOMENT.sub("MOMENT", found))
        text = re.sub(r"\d+ \(\d+\)", "OLD (NEW)", text)
        text = re.sub(r"198\.18\.\d+\.\d+", "ADDRESS", text)
        return re.sub(r"^\d+$", "VERSION", text)
    return found


def main() -> None:
    """Write it down."""
    with tempfile.TemporaryDirectory(prefix="kube-") as folder, kube.real(Path(folder)) as one:
        FILE.write_text(json.dumps(answers(one), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
