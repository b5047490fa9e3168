"""The recorded API server answers what real ones do: kube-apiserver v1.36.2 and v1.32.13 (see kubernetes-*.json).

Recorded elsewhere on 2026-11-28, with etcd 3.5.30 and RBAC on: the same requests in the same order get the same status,
the same refusals, and objects of the same shape.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.apiserver import Recorded, recorded
from kit.discover import manifests
from kit.kube import ADMIN, CONTROLLER, STRANGER, Kube

TOKENS = {"admin": ADMIN, "the shipped service account": CONTROLLER, "nobody with rights": STRANGER}
SINCE = {
    # The account that was shipped then had no right to these Events; today's has.
    "events.k8s.io/v1 by the account as shipped": STRANGER,
    "whoever is nobody": "nobody's token",
}


def ask(kube: Kube, request: dict[str, Any], token: str) -> tuple[int, Any]:
    """Status and body; a list of events of a watch."""
    head = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    head |= {"Content-Type": request["content_type"]} if request["content_type"] else {}
    data = None if request["body"] is None else json.dumps(request["body"]).encode()
    call = urllib.request.Request(kube.url + request["path"], data, head, method=request["method"])
    try:
        with urllib.request.urlopen(call, timeout=30, context=kube.context) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    watched = "watch=1" in request["path"] and status == 200
    return status, [json.loads(line) for line in text.splitlines()] if watched else json.loads(text)


def essence(body: Any) -> Any:
    """What the controller makes of an answer, without moments, versions and uids."""
    if isinstance(body, list):  # group versions, or a watch; a server may send more bookmarks than another
        events = [event["type"] for event in body if isinstance(event, dict)]
        return [word for word in events if word != "BOOKMARK"], "BOOKMARK" in events
    if body.get("kind") == "Status":
        return body.get("status"), body.get("reason"), body.get("code")
    if "items" in body:
        return body["kind"], bool(body["metadata"].get("continue"))
    meta, status = body.get("metadata", {}), body.get("status", {})
    conditions = [{key: entry[key] for key in ("type", "status", "reason")} for entry in status.get("conditions") or ()]
    return {
        "kind": body.get("kind"),
        "version": body.get("apiVersion"),
        "finalizers": meta.get("finalizers"),
        "deleted": "deletionTimestamp" in meta,
        "balancer": status.get("loadBalancer"),
        "conditions": conditions if body.get("kind") == "Service" else None,
        "class": (body.get("spec") or {}).get("loadBalancerClass"),
        "event": [body.get(key) for key in ("reason", "note", "message", "reportingController", "reportingComponent")],
    }


def shape(body: Any, path: str = "") -> Iterator[str]:
    """Every key of an object, and the type of its value; of a list its first item."""
    if isinstance(body, dict):
        for key, value in body.items():
            yield from shape(value, f"{path}.{key}")
    elif isinstance(body, list) and body:
        yield from shape(body[0], f"{path}[]")
    else:
        yield f"{path}: {type(body).__name__}"


@pytest.mark.parametrize("version", ["1.36", "1.32"])
def test_it_answers_as_servers_of_today_do(version: str, tmp_path: Path):
    with recorded(tmp_path, version) as kube:
        for manifest in manifests("namespace", "rbac"):
            kube.create(manifest)
        replay(kube, version)


def replay(kube: Recorded, version: str) -> None:
    for step in json.loads((Path(__file__).parent / f"kubernetes-{version}.json").read_text()):
        title, request = step["title"], step["request"]
        if title.startswith("a class cannot be added"):  # made between two recorded requests
            kube.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "plain"},
                         "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})  # fmt: skip
        if title == "NodePort to LoadBalancer with the class":
            kube.patch("Service", "plain", {"spec": {"type": "NodePort"}})
        # As long as the bookmark takes that is awaited, and no longer.
        seconds = 3 if title.startswith("watch with bookmarks") else 1
        request = request | {"path": re.sub(r"timeoutSeconds=\d+", f"timeoutSeconds={seconds}", request["path"])}
        if title.startswith("watch with bookmarks"):
            begin = kube.get("EndpointSlice", "lb-x")["metadata"]["resourceVersion"]
            request |= {"path": re.sub(r"resourceVersion=\d+", f"resourceVersion={begin}", request["path"])}
            kube.patch("EndpointSlice", "lb-x", {"endpoints": step["answer"][0]["object"]["endpoints"]})
        if title.startswith("after compaction and a restart"):
            kube.forget_history()
            kube.stop()
            kube.start()
        status, body = ask(kube, request, SINCE.get(title) or TOKENS[step["as"]])
        if title.startswith("watch from version 1"):
            body = body[:1]  # the recording has its first event alone
        assert (title, status, essence(body)) == (title, step["status"], essence(step["answer"]))
        ours, theirs = set(shape(body)), set(shape(step["answer"]))
        assert (title, sorted(theirs - ours), sorted(ours - theirs)) == (title, [], [])
