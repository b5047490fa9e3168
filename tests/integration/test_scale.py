"""The limits of the schema are kept: 5,000 frontends are served, and the service answers meanwhile.

100,000 servers, times and memory: bench/scale.py. Here are no times, but the bounds that other programs have: a
probe of /healthz gives up after seconds.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

from kit.edge import edge_in_folder, first_line, until
from kit.servers import echo, free_port

from agent.desired.identity import digest_of
from agent.desired.rules import MAX_FRONTENDS

PROBE_SECONDS = 5  # what a load balancer or a watchdog waits for an answer, at most
PATIENCE = 300.0


def document(server: str, port: int, *, weight: int) -> dict[str, Any]:
    """Addresses of loopback of its own for each frontend."""
    names = range(MAX_FRONTENDS)
    return {
        "version": 1,
        "frontends": {
            f"f{n}": {"bind": [f"127.30.{n // 250}.{n % 250 + 1}:{port}"], "backend": f"b{n}"} for n in names
        },
        "backends": {
            f"b{n}": {
                "servers": {
                    "a": {"address": server, "weight": weight if n % 100 == 0 else 1},
                    "b": {"address": server},
                },
                "health": {"type": "none"},  # each check takes a file, and a test machine may allow fewer
            }
            for n in names
        },
    }


def test_as_many_frontends_as_the_schema_takes(any_haproxy: Path):
    web, port = free_port(), free_port()

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}{path}", timeout=PROBE_SECONDS) as answer:
            body: bytes = answer.read()
            return body

    with edge_in_folder(any_haproxy) as edge, echo("a") as server:
        edge.configure(
            f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[metrics]\nlisten = "127.0.0.1:{web}"\n'
            "[sync]\nmax_bytes = 8_388_608"
        )
        edge.put({"version": 1, "allow_empty": True})
        service = edge.serve()
        over, failures = threading.Event(), []

        def probe() -> None:
            while not over.is_set():
                try:
                    get("/healthz")
                except OSError as error:
                    failures.append(repr(error))

        prober = threading.Thread(target=probe)
        prober.start()
        try:
            for weight, plan in ((1, "reload"), (7, "runtime")):
                data = json.dumps(document(server.address, port, weight=weight)).encode()
                edge.file(data, ".fresh").replace(edge.desired)
                status = edge.wait("committed", digest_of(data), PATIENCE)
                assert status["plan"] == plan
            assert first_line(port, host=f"127.30.{(MAX_FRONTENDS - 1) // 250}.{(MAX_FRONTENDS - 1) % 250 + 1}")
            assert get("/metrics").count(b"\nedgeagent_frontend_up{") == MAX_FRONTENDS
            assert b"</html>" in get("/")
        finally:
            over.set()
            prober.join()
        assert not failures
        assert edge.agent("status").stdout.count("\n") > 1
        # A signal in the midst of a reconcile ends the service after that step.
        data = json.dumps(document(server.address, port, weight=9)).encode()
        edge.file(data, ".fresh").replace(edge.desired)
        until(lambda: digest_of(data) in (edge.folder / "run/progress.json").read_text(), "it has begun")
        service.terminate()
        assert service.wait(60) == 0


def test_what_is_over_the_limits_is_refused_for_that_alone(any_haproxy: Path):
    """With the line of what is too many, and without looking at any of it."""
    with edge_in_folder(any_haproxy) as edge:
        edge.configure("[sync]\nmax_bytes = 33_554_432")
        servers = {f"s{n}": {"address": "nonsense"} for n in range(1_000)}
        many = {"version": 1, "backends": {f"b{n}": {"servers": servers} for n in range(101)}}
        done = edge.agent("check", edge.file(many))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "new.yaml:3: backends: 101,000 servers in all, groups unfolded; at most 100,000 are taken" in done.stderr
