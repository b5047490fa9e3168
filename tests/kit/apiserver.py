"""A small API server in this process, for tests: what it says is what real ones said (`cluster/kubernetes-*.json`).

It keeps objects, counts versions, lists in pages, watches, forgets its history, and lets an account do what its RBAC
says. `tests/cluster/test_recorded.py` holds it against kube-apiserver 1.36 and 1.32, request by request.
`recorded.json` has further answers, of 1.20: what a server adds to a new object, and refusals.
"""

from __future__ import annotations

import contextlib
import copy
import http.server
import itertools
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from kit.kube import ACCOUNT, ADMIN, CONTROLLER, KINDS, STRANGER, Kube
from kit.servers import free_port

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "cluster/recorded.json").read_text())


def answers(version: str) -> dict[str, Any]:
    """What a kube-apiserver of this version answered to requests of our own kind, by title."""
    text = (Path(__file__).parents[1] / f"cluster/kubernetes-{version}.json").read_text()
    return {step["title"]: step for step in json.loads(text)}


LATER = answers("1.36")
BOOKMARK_SECONDS = 2.0  # the real one: a minute
_BOOKMARK = next(one for one in RECORDED["watched"]["body"] if one["type"] == "BOOKMARK")
_USERS = {ADMIN: "admin", CONTROLLER: ACCOUNT, STRANGER: "stranger"}
_ABOUT = {"/version": "version", "/apis": "group versions"}
_NAME = "recorded-name"
_BY_RESOURCE = {path.rsplit("/", 1)[-1]: kind for kind, path in KINDS.items()}


@dataclass
class Call:
    """A request, taken apart. `name` "": all of them."""

    verb: str
    group: str
    version: str
    resource: str
    namespace: str
    name: str
    sub: str
    query: dict[str, str]
    apply: bool = False
    """a PATCH that is a server-side apply"""

    @property
    def at(self) -> str:
        """`leases.coordination.k8s.io`"""
        whole = f"{self.resource}/{self.sub}" if self.sub else self.resource
        return f"{whole}.{self.group}" if self.group else whole


class AnswerError(Exception):
    """A recorded answer, with what is different this time."""

    def __init__(self, name: str, **words: str) -> None:
        super().__init__(name)
        found = RECORDED[name]
        text = json.dumps(found["body"])
        for word, value in words.items():
            text = text.replace(word.replace("_", "-"), value)
        self.status, self.body = int(found["status"]), json.loads(text)


class RecordedError(AnswerError):
    """Likewise, of LATER."""

    def __init__(self, status: int, body: dict[str, Any], **words: str) -> None:
        Exception.__init__(self, body.get("message"))
        text = json.dumps(body)
        for word, value in words.items():
            text = text.replace(f'"{word}"', f'"{value}"')
        self.status, self.body = status, json.loads(text)


@dataclass
class Store:
    """Objects by collection and (namespace, name), and every change since `oldest`."""

    objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = field(default_factory=dict)
    history: list[tuple[int, str, str, dict[str, Any]]] = field(default_factory=list)
    version: int = 100
    oldest: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def of(self, resource: str) -> dict[tuple[str, str], dict[str, Any]]:
        return self.objects.setdefault(resource, {})

    def put(self, word: str, resource: str, found: dict[str, Any]) -> dict[str, Any]:
        """A change, told to all who watch."""
        self.version += 1
        found = copy.deepcopy(found)
        found["metadata"]["resourceVersion"] = str(self.version)
        key = (found["metadata"].get("namespace", ""), found["metadata"]["name"])
        if word == "DELETED":
            self.of(resource).pop(key, None)
        else:
            self.of(resource)[key] = found
        self.history.append((self.version, resource, word, found))
        self.changed.notify_all()
        return found


class Recorded(Kube):
    """In this process, and within milliseconds."""

    def __init__(self, folder: Path, version: str = "1.36") -> None:
        self.folder = folder
        self.later = answers(version)
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        authority = trustme.CA()
        (folder / "certificates").mkdir()
        authority.cert_pem.write_to_path(folder / "certificates/apiserver.crt")
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.tls)
        self.store = Store()
        self.calls: list[tuple[Call, str, int]] = []
        self.applied: dict[tuple[str, str], dict[str, Any]] = {}
        """The status that each manager applied last, by uid of the object."""
        self.programs: dict[str, set[str]] = {}
        """The User-Agent headers of each user."""
        self._server: _Server | None = None
        with self.store.changed:
            for name in ("default", "kube-system"):
                self._create(Call("create", "", "v1", "namespaces", "", "", "", {}), {"metadata": {"name": name}})
            # Its own Service, as the real one has it.
            own = RECORDED["page"]["body"]["items"][0]
            self._create(Call("create", "", "v1", "services", "default", "", "", {}), own)

    def start(self) -> None:
        try:
            self._server = _Server(self._port, self)
        except OSError as error:  # seen twice in two days, never alone: who has it?
            holders = subprocess.run(["ss", "-tanp", f"( sport = :{self._port} )"], capture_output=True, check=False)
            raise OSError(f"{error}: {holders.stdout.decode()}") from error
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """At once, with every connection."""
        if self._server is not None:
            self._server.shutdown()
            self._server.hang_up()
            self._server.server_close()
            self._server = None

    def forget_history(self) -> None:
        with self.store.changed:
            self.store.oldest = self.store.version
            self.store.history.clear()

    def requests(self) -> list[tuple[str, str, str, int]]:
        return [(call.verb, call.at, call.namespace, code) for call, user, code in self.calls if user == ACCOUNT]

    # --- what it does

    def answer(self, call: Call, user: str, body: Any) -> tuple[int, dict[str, Any]]:
        """One request that is no watch."""
        kind = _BY_RESOURCE.get(call.resource)
        root = f"/apis/{call.group}/{call.version}/" if call.group else f"/api/{call.version}/"
        core_event = kind == "Event" and root == "/api/v1/"
        if kind is None or not (self.path(kind).startswith(root) or core_event):
            raise AnswerError("no such path")
        self._allow(call, user)
        if call.sub == "token":  # authentication.k8s.io/v1, TokenRequest
            token = CONTROLLER if call.name == "edgeagent-discover" else STRANGER
            return 201, {"kind": "TokenRequest", "status": {"token": token}}
        if kind == "Event" and call.verb == "get":
            found = self.store.of("events").get((call.namespace, call.name))
            return (200, _core_event(found) if core_event else found) if found else (404, {})
        with self.store.changed:
            if (
                call.query.get("resourceVersionMatch") == "Exact"
                and int(call.query["resourceVersion"]) < self.store.oldest
            ):
                old = LATER["after compaction: list at an old version"]
                raise RecordedError(old["status"], old["answer"])
            if call.verb == "list":
                return 200, self._list(call, kind)
            if call.verb == "create":
                return 201, self._create(call, body)
            found = self.store.of(call.resource).get((call.namespace, call.name))
            if found is None:
                raise AnswerError("not found", services=self._full(call), recorded_other=call.name)
            if call.verb == "get":
                return 200, found
            if call.verb == "delete" and found["metadata"].get("finalizers"):
                return 200, self._terminating(found, call)
            if call.verb == "delete":
                self.store.put("DELETED", call.resource, found)
                raise AnswerError("deleted", services=call.resource, recorded_name=call.name)
            changed = self._change(call, found, body)
            return 200, _with_managed_fields(changed, call, body) if call.apply else changed

    def _terminating(self, found: dict[str, Any], call: Call) -> dict[str, Any]:
        """As "delete with a finalizer: it stays" has it."""
        recorded = LATER["delete with a finalizer: it stays"]["answer"]["metadata"]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        more = {"deletionTimestamp": now, "deletionGracePeriodSeconds": recorded["deletionGracePeriodSeconds"]}
        meta = found["metadata"]
        return (
            found
            if "deletionTimestamp" in meta
            else self.store.put("MODIFIED", call.resource, {**found, "metadata": meta | more})
        )

    @staticmethod
    def _full(call: Call) -> str:
        return f"{call.resource}.{call.group}" if call.group else call.resource

    def _allow(self, call: Call, user: str) -> None:
        if user == "admin":
            return
        if not user:
            raise AnswerError("unauthorized")
        for rule, namespace in self._rules(user):
            wanted = f"{call.resource}/{call.sub}" if call.sub else call.resource
            if (
                call.verb in rule["verbs"]
                and call.group in rule["apiGroups"]
                and wanted in rule["resources"]
                and namespace in ("", call.namespace)
                and (not rule.get("resourceNames") or call.name in rule["resourceNames"])
            ):
                return
        error = AnswerError("forbidden", stranger=user, services=call.resource)
        error.body["details"] |= {"name": call.name} if call.name else {}
        error.body["details"] |= {"group": call.group} if call.group else {}
        raise error

    def _rules(self, user: str) -> Iterator[tuple[dict[str, Any], str]]:
        """Of each role that is bound to the account, and where it holds ("": everywhere)."""
        for bindings, roles in (("clusterrolebindings", "clusterroles"), ("rolebindings", "roles")):
            for (namespace, _), binding in self.store.of(bindings).items():
                who = [f"system:serviceaccount:{one['namespace']}:{one['name']}" for one in binding["subjects"]]
                role = self.store.of(roles).get((namespace, binding["roleRef"]["name"]))
                if user in who and role is not None:
                    for rule in role["rules"]:
                        yield rule, namespace

    def _list(self, call: Call, kind: str) -> dict[str, Any]:
        everything = sorted(self.store.of(call.resource).items())
        items = [one for (space, _), one in everything if call.namespace in ("", space)]
        meta: dict[str, Any] = {"resourceVersion": str(self.store.version)}
        if token := call.query.get("continue"):
            version, skipped = map(int, token.split("-"))
            if version < self.store.oldest:
                raise AnswerError("expired")
            items, meta["resourceVersion"] = items[skipped:], str(version)
        limit = int(call.query.get("limit") or 0)
        if limit and len(items) > limit:
            done = int(token.split("-")[1]) if token else 0
            meta["continue"] = f"{meta['resourceVersion']}-{done + limit}"
            meta["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        items = [{key: value for key, value in item.items() if key not in ("apiVersion", "kind")} for item in items]
        return {**RECORDED["page"]["body"], "kind": f"{kind}List", "metadata": meta, "items": items}

    def _create(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        found = copy.deepcopy(body)
        meta = found["metadata"]
        if call.resource not in ("namespaces", "nodes", "clusterroles", "clusterrolebindings"):
            meta.setdefault("namespace", call.namespace)
        key = (meta.get("namespace", ""), meta["name"])
        if key in self.store.of(call.resource):
            raise AnswerError("exists", nodes=self._full(call), recorded_name=meta["name"])
        kind = _BY_RESOURCE[call.resource]
        if kind == "Event" and call.group:
            found |= {"deprecatedSource": {}, "deprecatedFirstTimestamp": None, "deprecatedLastTimestamp": None}
        elif (template := RECORDED.get(f"created {kind}")) is not None:
            self._defaults(kind, found, template)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        return self.store.put("ADDED", call.resource, found)

    def _defaults(self, kind: str, found: dict[str, Any], recorded: dict[str, Any]) -> None:
        """What the real one added to what it was given."""
        if kind == "Service":
            spec = found["spec"]
            number = next(self.store.numbers)
            spec.setdefault("type", "ClusterIP")
            spec.setdefault("clusterIP", f"198.18.{number // 256}.{number % 256}")
            spec.setdefault("clusterIPs", [spec["clusterIP"]])
            for port in spec.get("ports") or ():
                port.setdefault("targetPort", port["port"])
                if spec["type"] != "ClusterIP":
                    port.setdefault("nodePort", 30000 + next(self.store.numbers))
            if spec["type"] == "ClusterIP":
                spec.setdefault("externalTrafficPolicy", None)
            spec.setdefault("internalTrafficPolicy", "Cluster")
            spec.setdefault("ipFamilies", ["IPv6" if ":" in str(spec["clusterIP"]) else "IPv4"])
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            if spec["type"] == "LoadBalancer":
                spec.setdefault("allocateLoadBalancerNodePorts", True)
            if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
                spec.setdefault("healthCheckNodePort", 30000 + next(self.store.numbers))
        if kind == "Node":  # until its kubelet says that it is ready
            taint = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
            found.setdefault("spec", {}).setdefault("taints", [taint])
        _fill(found, _added(recorded["body"], recorded["asked"]))
        if kind == "Service" and found["spec"]["externalTrafficPolicy"] is None:
            del found["spec"]["externalTrafficPolicy"]

    def _change(self, call: Call, found: dict[str, Any], body: Any) -> dict[str, Any]:
        if call.verb == "update":
            if body["metadata"].get("resourceVersion") not in (None, found["metadata"]["resourceVersion"]):
                raise AnswerError("conflict", leases=call.resource, recorded_name=call.name)
            return self.store.put("MODIFIED", call.resource, {**body, "metadata": found["metadata"] | body["metadata"]})
        self._precondition(call, found, body)
        changed = self._applied(found, body, call) if call.apply else _merged(found, body)
        if call.resource == "services":
            _validate(call, found, changed)
        if call.sub == "status":  # there the rest is what it was; annotations are taken (recorded of 1.20)
            changed = {**changed, **{key: value for key, value in found.items() if key == "spec"}}
        elif "status" in found and call.resource in ("services", "nodes"):
            changed["status"] = found["status"]
        if call.resource == "nodes":  # an empty text is left out
            for condition in (changed.get("status") or {}).get("conditions") or ():
                for key in [key for key, value in condition.items() if value == ""]:
                    del condition[key]
        if changed == found:
            return changed
        # "... until the finalizer goes, by way of status": the answer is the object, and then it is gone.
        ends = "deletionTimestamp" in changed["metadata"] and not changed["metadata"].get("finalizers")
        return self.store.put("DELETED" if ends else "MODIFIED", call.resource, changed)

    def _applied(self, found: dict[str, Any], body: dict[str, Any], call: Call) -> dict[str, Any]:
        """Server-side apply to a status, as "conditions by server-side apply" has it.

        Conditions are a map by type, an ingress is one value; what the manager had applied before and does not name
        any more goes.
        """
        manager, status = call.query["fieldManager"], found.get("status") or {}
        uid = found["metadata"]["uid"]
        theirs = {
            entry["type"]
            for (owner, other), applied in self.applied.items()
            if owner == uid and other != manager
            for entry in applied.get("conditions") or ()
        }
        if call.query.get("force") != "true" and theirs & {
            entry["type"] for entry in (body.get("status") or {}).get("conditions") or ()
        }:
            recorded = LATER["the same field by another manager, without force: conflict"]
            raise RecordedError(recorded["status"], recorded["answer"])
        mine = self.applied.get((found["metadata"]["uid"], manager), {})
        wanted = body.get("status") or {}
        kept = {
            entry["type"]: entry
            for entry in status.get("conditions") or ()
            if entry["type"] not in {old["type"] for old in mine.get("conditions", ())}
        }
        for entry in wanted.get("conditions") or ():
            kept[entry["type"]] = entry
        made = {key: value for key, value in status.items() if key != "conditions"}
        if "loadBalancer" in mine and "loadBalancer" not in wanted:
            made["loadBalancer"] = {}
        if "loadBalancer" in wanted:
            made["loadBalancer"] = wanted["loadBalancer"]
        if kept:
            made["conditions"] = list(kept.values())
        self.applied[found["metadata"]["uid"], manager] = wanted
        return {**found, "status": made}

    def _precondition(self, call: Call, found: dict[str, Any], body: Any) -> None:
        """A patch may say of which object, and of which version of it, it is meant."""
        meta = body.get("metadata") or {}
        if meta.get("uid") not in (None, found["metadata"]["uid"]):
            recorded = LATER["a wrong uid is a precondition that fails"]
            raise RecordedError(recorded["status"], recorded["answer"], lb=call.name)
        if meta.get("resourceVersion") not in (None, found["metadata"]["resourceVersion"]):
            raise AnswerError("conflict", leases=call.resource, recorded_name=call.name)

    def events(self, call: Call, gone: threading.Event) -> Iterator[dict[str, Any]]:
        """A watch."""
        seen = int(call.query.get("resourceVersion") or 0)
        if call.query.get("sendInitialEvents") == "true":
            with self.store.changed:
                seen, everything = self.store.version, list(self.store.of(call.resource).values())
            yield from ({"type": "ADDED", "object": found} for found in everything)
            marks = {"k8s.io/initial-events-end": "true"}
            meta = {"creationTimestamp": None, "resourceVersion": str(seen), "annotations": marks}
            kind = _BY_RESOURCE[call.resource]
            yield {**_BOOKMARK, "object": {**_BOOKMARK["object"], "kind": kind, "metadata": meta}}
        deadline = time.monotonic() + int(call.query.get("timeoutSeconds") or 1800)
        if seen < self.store.oldest:
            yield from RECORDED["gone"]["body"]
            return
        bookmark = time.monotonic() + BOOKMARK_SECONDS
        while time.monotonic() < deadline and not gone.is_set():
            with self.store.changed:
                fresh = [one for one in self.store.history if one[0] > seen]
                if not fresh and time.monotonic() < bookmark:
                    self.store.changed.wait(0.2)
                    continue
                version = self.store.version
            if not fresh:
                bookmark, seen = time.monotonic() + BOOKMARK_SECONDS, version
                if call.query.get("allowWatchBookmarks"):
                    kind, meta = (
                        _BY_RESOURCE[call.resource],
                        {"creationTimestamp": None, "resourceVersion": str(version)},
                    )
                    yield {**_BOOKMARK, "object": {**_BOOKMARK["object"], "kind": kind, "metadata": meta}}
            for version, resource, word, found in fresh:
                seen = version
                if resource == call.resource and call.namespace in ("", found["metadata"].get("namespace", "")):
                    yield {"type": word, "object": found}


def _validate(call: Call, found: dict[str, Any], changed: dict[str, Any]) -> None:
    """What a real one refuses of a Service; and what it fills in."""

    def refuse(title: str, name: str) -> None:
        recorded = LATER[title]
        raise RecordedError(recorded["status"], recorded["answer"], **{name: call.name})

    before, spec = found["spec"], changed["spec"]
    if spec.get("type") == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if before.get("type") == spec.get("type") == "LoadBalancer" and (
        before.get("loadBalancerClass") != spec.get("loadBalancerClass")
    ):
        refuse("a class cannot be added to an existing LoadBalancer Service", "plain")
    ingress = ((changed.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    if ingress and spec.get("type") != "LoadBalancer":
        refuse("ingress on a NodePort Service", "np")
    if "ingress" in ((changed.get("status") or {}).get("loadBalancer") or {}) and not ingress:
        changed["status"]["loadBalancer"] = {}  # an empty list is left out
    for entry in ingress:
        if "ip" in entry:
            entry.setdefault("ipMode", "VIP")
        elif "ipMode" in entry:
            refuse("hostname with ipMode", "lb")


def _with_managed_fields(found: dict[str, Any], call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """As the answer to a server-side apply to a status has it: which fields are the manager's."""
    fields = {
        f'k:{{"type":"{entry["type"]}"}}': {".": {}, **{f"f:{key}": {} for key in sorted(entry)}}
        for entry in (body.get("status") or {}).get("conditions") or ()
    }
    entry = {
        "manager": call.query["fieldManager"],
        "operation": "Apply",
        "apiVersion": "v1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": {"f:conditions": fields}},
        "subresource": "status",
    }
    return {**found, "metadata": {**found["metadata"], "managedFields": [entry]}}


def _core_event(found: dict[str, Any]) -> dict[str, Any]:
    """One of events.k8s.io/v1 as core/v1 shows it."""
    names = {"regarding": "involvedObject", "note": "message", "reportingController": "reportingComponent"}
    made = {names.get(key, key): value for key, value in found.items()}
    made = {key: value for key, value in made.items() if not key.startswith("deprecated")}
    return {**made, "apiVersion": "v1", "source": {}, "firstTimestamp": None, "lastTimestamp": None}


def _added(answer: Any, asked: Any) -> Any:
    """What is in an answer and was not asked for; of a list, in each of its items."""
    if isinstance(answer, dict) and isinstance(asked, dict):
        own = ("uid", "creationTimestamp", "resourceVersion", "namespace")
        parts = {key: _added(value, asked.get(key)) for key, value in answer.items() if key not in own}
        return {key: value for key, value in parts.items() if value not in ({}, []) or key not in asked}
    if isinstance(answer, list) and isinstance(asked, list) and answer and asked:
        return [_added(answer[0], asked[0])]
    return {} if asked is not None else answer


def _fill(found: Any, added: Any) -> None:
    for key, value in added.items():
        if key not in found:
            found[key] = copy.deepcopy(value)
        elif isinstance(found[key], dict) and isinstance(value, dict):
            _fill(found[key], value)
        elif isinstance(found[key], list) and isinstance(value, list) and value:
            for one in found[key]:
                if isinstance(one, dict):
                    _fill(one, value[0])


def _merged(found: Any, change: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    made = dict(found) if isinstance(found, dict) else {}
    for key, value in change.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, api: Recorded) -> None:
        self.api, self.gone = api, threading.Event()
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[Any, Any]:
        request, client = super().get_request()
        # The handshake comes with the first byte that is read, in the client's own thread.
        return self.api.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False), client

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        self.gone.set()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # head and body in one piece: two would wait for each other

    def do_GET(self) -> None:
        self._do("get")

    def do_POST(self) -> None:
        self._do("create")

    def do_PUT(self) -> None:
        self._do("update")

    def do_PATCH(self) -> None:
        self._do("patch")

    def do_DELETE(self) -> None:
        self._do("delete")

    def _do(self, verb: str) -> None:
        api = self.server.api
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if (title := _ABOUT.get(self.path)) is not None:
            self._answer(200, api.later[title]["answer"])
            return
        call = _call(verb, self.path)
        call.apply = self.headers.get("Content-Type") == "application/apply-patch+yaml"
        user = _USERS.get((self.headers.get("Authorization") or "").partition(" ")[2], "")
        api.programs.setdefault(user, set()).add(self.headers.get("User-Agent") or "")
        try:
            if call.verb == "watch":
                api.answer(Call("list", *list(vars(call).values())[1:7], {}), "admin", None)  # is it served at all
                api._allow(call, user)
                api.calls.append((call, user, 200))
                self._watch(call)
                return
            code, found = api.answer(call, user, body)
        except AnswerError as error:
            code, found = error.status, error.body
        api.calls.append((call, user, code))
        self._answer(code, found)

    def _answer(self, code: int, found: Any) -> None:
        data = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, call: Call) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for event in self.server.api.events(call, self.server.gone):
            data = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        if not self.server.gone.is_set():
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        """Not asked for."""


def _call(verb: str, path: str) -> Call:
    where, _, query = path.partition("?")
    asked = dict(urllib.parse.parse_qsl(query))
    _, root, *rest = where.split("/")
    group = rest.pop(0) if root == "apis" else ""
    version = rest.pop(0)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        _, namespace, *rest = rest
    resource, name, sub = (*rest, "", "")[:3]
    if verb == "get" and not name:
        verb = "watch" if asked.get("watch") in ("true", "1") else "list"
    return Call(verb, group, version, resource, namespace, name, sub, asked)


@contextlib.contextmanager
def recorded(folder: Path, version: str = "1.36") -> Iterator[Recorded]:
    """One, ready."""
    one = Recorded(folder, version)
    try:
        one.start()
        yield one
    finally:
        one.stop()
