"""A status as the deployment that this project comes from has it (examples/mail-edge.yaml), with troubles."""

from __future__ import annotations

from typing import Any

from agent.reconcile.generation import Generation

NODES = {"k8s-node1": "10.0.20.101", "k8s-node2": "10.0.20.102", "k8s-node3": "10.0.20.103", "k8s-node4": "10.0.20.104"}
MAIL = {"smtp": (25, 30125), "smtps": (465, 30126), "submission": (587, 30127), "imaps": (993, 30128)}


def status() -> dict[str, Any]:
    frontends = [
        _frontend(name, [f"10.0.20.1:{port}", f"[2001:db8:1::2]:{port}"], [{"sni": [], "backend": name}], up=3, of=4)
        for name, (port, _) in MAIL.items()
    ]
    routes = [
        {"sni": ["pfsense.example.lan", "fw.example.lan"], "backend": "webgui"},
        {"sni": ["*"], "backend": "traefik"},
        {"sni": [], "backend": "webgui"},
    ]
    frontends.append(_frontend("https", ["10.0.20.1:443", "10.0.10.1:443"], routes, up=2, of=2))
    frontends[-1]["state"] = "degraded"
    frontends[-1]["binds"][1] |= {"state": "quarantined", "reason": "the address is in use, by nginx (pid 4242)"}
    frontends[3] |= {"state": "down", "servers_up": 0}
    backends = [_pool(name, port, imap=name == "imaps") for name, (_, port) in MAIL.items()]
    backends.append(_backend("traefik", "tls", [_server("traefik", "10.0.20.203:443", status="no check", check="")]))
    backends.append(_backend("webgui", "raw", [_server("webgui", "127.0.0.1:8443")], proxy="none"))
    return {
        "schema": 1, "at": "2026-11-29T06:40:00Z", "exit_code": 4, "outcome": "refused",
        "agent": {"version": "0.2.0", "pid": 812, "command": "run", "started": "2026-11-28T22:00:00Z"},
        "desired": {"digest": "cd" * 32, "serial": 43, "file": "/usr/local/etc/edgeagent/desired.yaml",
                    "actor": "key cluster@k8s-node1 from 10.0.20.101"},
        "live": {"generation": 42, "serial": 42, "digest": "ab" * 32, "since": "2026-11-29T06:12:44Z",
                 "name": "home-edge", "actor": "alice (sudo)"},
        "in_sync": False,
        "not_in_sync": {"text": "it is refused: frontend smtp, which serves now, would have no server that answers",
                        "state": "refused", "reason": "frontend smtp would have no server that answers"},
        "haproxy": {"version": "2.8.25", "pid": 5120, "uptime": 90, "generation": 42},
        "held": None, "message": "frontend smtp, which serves now, would have no server that answers",
        "remedy": "nothing was touched of what is live",
        "findings": [
            {"where": "frontends.https.bind",
             "message": "10.0.10.1:443 is quarantined: the address is in use, by nginx",
             "remedy": "free the address; it goes live by itself", "line": None},
            {"where": "backends.smtp.servers.k8s-node2",
             "message": "drained since 2026-11-29 05:58 UTC by alice (sudo): no new clients",
             "remedy": "`agent ready smtp/k8s-node2` ends that", "line": None},
        ],
        "events": [
            {"event": "frontend_down", "subject": "imaps", "count": 3,
             "message": "frontend imaps serves nobody: 0 of 4 servers up",
             "at": "2026-11-29T06:31:02Z", "until": "2026-11-29T06:31:40Z"},
            {"event": "refused", "subject": "cdcdcdcdcdcd", "count": 1, "at": "2026-11-29T06:35:10Z",
             "message": "refused: sha256 cdcdcdcdcdcd: frontend smtp would have no server that answers",
             "actor": "key cluster@k8s-node1 from 10.0.20.101", "until": "2026-11-29T06:35:10Z"},
        ],
        "frontends": frontends, "backends": backends,
    }  # fmt: skip


def history() -> tuple[Generation, ...]:
    """Its last changes, oldest first."""
    reasons = (
        ("nothing is live yet",),
        tuple(f"server {name}/k8s-node4 added" for name in MAIL),
        ("server smtp/k8s-node2 changed: weight",),
        ("frontend https changed: allow", "backend traefik changed: timeouts"),
    )
    actors = (
        "file",
        "key cluster@k8s-node1 from 10.0.20.101",
        "alice (sudo)",
        "root from 192.0.2.7, signed by release",
    )
    return tuple(
        Generation(
            number=number, digest=f"{number:02x}" * 32, config_digest="", loaded=number, at=1_795_930_000.0 + number,
            outcome="degraded" if number == 42 else "committed", serial=number, seconds=0.041 * number / 39,
            reasons=why, actor=who,
        )
        for number, why, who in zip(range(39, 43), reasons, actors, strict=True)
    )  # fmt: skip


def _frontend(name: str, binds: list[str], routes: list[dict[str, Any]], *, up: int, of: int) -> dict[str, Any]:
    return {
        "name": name, "state": "up" if up == of else "degraded", "routes": routes, "canary": [],
        "binds": [{"address": address, "state": "listening", "reason": ""} for address in binds],
        "backends": list(dict.fromkeys(route["backend"] for route in routes)),
        "servers_up": up, "servers_total": of, "sessions": len(name) * 17,
        "client_ip_preserved": {"smtp": True, "imaps": False}.get(name),
    }  # fmt: skip


def _pool(name: str, port: int, *, imap: bool) -> dict[str, Any]:
    servers = [_server(node, f"{address}:{port}") for node, address in NODES.items()]
    for server in servers:
        server["handshake"] = {
            "result": "speaks_proxy", "mismatch": False, "detail": "", "subject": "", "milliseconds": 3,
            "at": "2026-11-29T06:12:44Z",
        }  # fmt: skip
        if imap:
            server |= {"status": "DOWN", "check": "L4CON"}
    servers[1]["drained"] = "2026-11-29T05:58:01Z" if name == "smtp" else ""
    if not imap:
        servers[2] |= {"status": "UP", "check": "INI"}
        servers[3] |= {"status": "DOWN", "check": "L4TOUT"}
    return _backend(name, "imap" if imap else "smtp", servers)


def _backend(name: str, application: str, servers: list[dict[str, Any]], proxy: str = "v2") -> dict[str, Any]:
    up = sum(not server["status"].startswith("DOWN") for server in servers)
    return {"name": name, "application": application, "proxy_protocol": proxy, "servers": servers,
            "servers_up": up, "servers_total": len(servers)}  # fmt: skip


def _server(name: str, address: str, status: str = "UP", check: str = "L4OK") -> dict[str, Any]:
    return {"name": name, "address": address, "weight": 1, "backup": False, "status": status, "check": check,
            "sessions": 7, "handshake": None}  # fmt: skip
