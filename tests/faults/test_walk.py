"""A random walk of everything that can happen, against an oracle that knows what must be live after each step.

120 steps at each pull, half of them on each HAProxy, 400 in `make test-all`; EDGEAGENT_WALK=2000 walks further,
EDGEAGENT_SEED elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from typing import Any

from kit.edge import first_line, until
from kit.fault_table import TABLES
from kit.servers import EchoServer, echo, free_port
from kit.web import page, web
from kit.witness import Row, Witness
from kit.zygote import Zygote

from agent.desired.identity import digest_of
from agent.host.store import Store
from tests.faults.conftest import Scene

STEPS = int(os.environ.get("EDGEAGENT_WALK", "100" if os.environ.get("EDGEAGENT_ALL_VERSIONS") else "40"))
NEVER = 10**9
KILLED = -signal.SIGKILL
BALANCES = ("roundrobin", "leastconn", "random", "first")


class Walk:
    """The world, and the oracle: `live` is the document that must be live after the next look."""

    def __init__(
        self, scene: Scene, agents: Zygote, servers: list[EchoServer], pages: dict[str, str], seed: str
    ) -> None:
        self.scene, self.edge, self.agents = scene, scene.edge, agents
        self.servers, self.pages = servers, pages
        self.random = random.Random(seed)
        self.port, self.web_port, self.busy_port, self.dead_port = (free_port() for _ in range(4))
        self.live: dict[str, Any] = {}
        self.previous: dict[str, Any] | None = None
        self.lossy = False
        self.foreign: socket.socket | None = None
        self.done: list[str] = []
        self.serial = 0

    # --- documents

    def document(self, **more: Any) -> dict[str, Any]:
        """Some of the servers, with weights, one disabled now and then; at least one that serves."""
        chosen = self.random.sample(self.servers, self.random.randint(1, len(self.servers)))
        pool: dict[str, Any] = {one.name: {"address": one.address} for one in chosen}
        for name in list(pool)[1:]:
            pool[name] |= self.random.choice([{}, {}, {"weight": self.random.randint(1, 50)}, {"disabled": True}])
        if self.random.random() < 0.2:
            pool["dead"] = {"address": f"127.0.0.1:{self.dead_port}"}
        self.serial += 1
        back = {"servers": pool, "health": {"interval": "100ms"}, "balance": "roundrobin"}
        return {
            "version": 1,
            "name": f"walk-{self.serial}",
            "frontends": {
                "front": {"bind": [f"127.0.0.1:{self.port}"], "backend": "back"},
                "site": {"bind": [f"127.0.0.1:{self.web_port}"], "backend": "site"},
                **((self.live.get("frontends", {}).get("busy") and {"busy": self.live["frontends"]["busy"]}) or {}),
            },
            "backends": {
                "back": {**back, **more},
                "site": {
                    "proxy_protocol": "none",
                    "health": {"type": "http", "interval": "50ms", "fall": 3},
                    "servers": {"only": {"address": self.pages["good"]}},
                },
            },
        }

    def same_shape(self) -> dict[str, Any]:
        """What commands can do: the balance of what is live."""
        return self.document(balance=self.live["backends"]["back"]["balance"])

    # --- what happens

    def look(self, *codes: int) -> None:
        """One whole look at the desired file."""
        code = self.agents.run("--settings", self.edge.settings, "apply", kill_at=NEVER)
        assert code in codes, f"exit {code} after {self.done[-3:]}: {self.edge.agent('apply').stderr}"

    def goes_live(self, document: dict[str, Any]) -> None:
        self.previous, self.live = self.live, document
        self.edge.put(document)
        self.look(0, 6)

    def commands(self) -> None:
        self.goes_live(self.same_shape())

    def reload(self) -> None:
        self.goes_live(self.document(balance=self.random.choice(BALANCES)))

    def killed(self) -> None:
        """The agent dies at one of its effects, and the next one is of the same mind, or of another."""
        document = (
            self.same_shape() if self.random.random() < 0.6 else self.document(balance=self.random.choice(BALANCES))
        )
        self.edge.put(document)
        self.die()
        if self.random.random() < 0.3:
            document = self.live
            self.done[-1] += ", the old document is back"
        self.goes_live(document)

    def die(self) -> None:
        number = self.random.randint(1, 90)
        code = self.agents.run("--settings", self.edge.settings, "apply", kill_at=number)
        self.done[-1] += f", at effect {number}{'' if code == KILLED else ' (came to its end)'}"

    def killed_twice(self) -> None:
        document = self.document(balance=self.random.choice(BALANCES))
        self.edge.put(document)
        for _ in range(2):
            self.die()
        self.goes_live(document)

    def haproxy_killed(self) -> None:
        self.lossy = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.edge.pid, signal.SIGKILL)
        until(lambda: self.edge.haproxy.running() is None, "it is gone")
        self.edge.put(self.live)
        self.look(0, 6)

    def run_folder_wiped(self) -> None:
        self.lossy = True
        shutil.rmtree((self.edge.folder / "run").rename(self.edge.folder / "wiped"), ignore_errors=True)
        self.edge.put(self.live)
        self.look(0, 6)

    def invalid(self) -> None:
        self.edge.put(b"version: 1\nfrontends: {x: 1}\n")
        self.look(3)

    def all_dead(self) -> None:
        document = self.same_shape()
        document["backends"]["back"]["servers"] = {"dead": {"address": f"127.0.0.1:{self.dead_port}"}}
        self.edge.put(document)
        self.look(4)

    def worse(self) -> None:
        """It answers, and its check fails: put back, and held."""
        document = json.loads(json.dumps(self.live))
        document["name"] = f"worse-{self.serial}"
        document["backends"]["site"]["servers"]["only"]["address"] = self.pages["bad"]
        if self.random.random() < 0.5:
            document["backends"]["back"]["balance"] = self.random.choice(BALANCES)
        self.edge.put(document)
        self.look(5)
        self.look(5)

    def rolled_back(self) -> None:
        if not self.previous or self.previous == self.live:
            return
        self.edge.put(self.live)
        code = self.agents.run("--settings", self.edge.settings, "rollback", kill_at=NEVER)
        assert code in (0, 6), f"rollback: exit {code}"
        self.previous, self.live = self.live, self.newest()
        self.look(5)  # the file is held

    def newest(self) -> dict[str, Any]:
        """What is live now by the files."""
        store = self.store
        live = store.live()
        assert live is not None
        found: dict[str, Any] = json.loads(store.desired_of(live.number))
        return found

    def busy_address(self) -> None:
        """Somebody else takes an address that we want; or lets go of it."""
        if self.foreign is None:
            document = self.same_shape()
            if "busy" in document["frontends"]:
                document["frontends"].pop("busy")
                self.goes_live(document)
                return
            self.foreign = socket.create_server(("127.0.0.1", self.busy_port))
            document["frontends"]["busy"] = {"bind": [f"127.0.0.1:{self.busy_port}"], "backend": "back"}
            self.goes_live(document)
        else:
            self.foreign.close()
            self.foreign = None
            self.edge.put(self.live)
            self.look(0)

    def changed_at_the_socket(self) -> None:
        seen = [server for server in self.edge.haproxy.observe().servers if server.backend == "back"]
        server = self.random.choice(seen)
        if not server.maintenance:
            self.edge.haproxy.socket.ask(f"set server back/{server.name} addr 127.0.0.1 port {self.dead_port}")
        self.edge.put(self.live)
        self.lossy = True  # until it is looked at, clients are sent there
        self.look(0, 6)

    def frontend_closed(self) -> None:
        self.lossy = True
        self.edge.haproxy.socket.ask(f"{self.random.choice(['disable', 'shutdown'])} frontend fe:front")
        self.edge.put(self.live)
        self.look(0, 6)

    # --- what must be so afterwards

    @property
    def store(self) -> Store:
        return Store(self.edge.folder / "state", self.edge.folder / "run")

    def check(self) -> None:
        state, live, running = self.edge.folder / "state", self.store.live(), self.edge.haproxy.running()
        assert live is not None, self.done[-3:]
        assert running is not None, self.done[-3:]
        assert running.generation in (live.number, live.loaded), self.done[-3:]
        assert (state / "haproxy.cfg").read_bytes() == self.store.config_of(live.number)
        assert live.digest == digest_of(self.edge.file(self.live, "oracle").read_bytes()), self.done[-3:]
        assert not (state / "journal.json").exists(), self.done[-3:]
        servers = self.live["backends"]["back"]["servers"]
        seen = {server.name: server for server in self.edge.haproxy.observe().servers if server.backend == "back"}
        assert {name: (seen[name].address, seen[name].weight, seen[name].maintenance) for name in servers} == {
            name: (one["address"], one.get("weight", 1), one.get("disabled", False)) for name, one in servers.items()
        }, self.done[-3:]
        assert all(seen[name].maintenance for name in seen.keys() - servers.keys()), self.done[-3:]
        assert not [name for name in servers if seen[name].draining], self.done[-3:]
        good = {name[0] for name, one in servers.items() if name != "dead" and not one.get("disabled")}
        assert first_line(self.port)[:1] in good, self.done[-3:]
        # A check of 50 ms may take stalls of this machine for a dead server, up again two checks later.
        until(lambda: page(self.web_port) == "good", f"the page after {self.done[-3:]}")


def steps(walk: Walk) -> list[Callable[[], None]]:
    often = [walk.commands] * 5 + [walk.reload] * 3 + [walk.killed] * 6 + [walk.killed_twice] * 2
    return [
        *often,
        walk.haproxy_killed,
        walk.run_folder_wiped,
        walk.invalid,
        walk.all_dead,
        walk.worse,
        walk.rolled_back,
        walk.busy_address,
        walk.changed_at_the_socket,
        walk.frontend_closed,
    ]


def test_a_random_walk_ends_where_the_oracle_says(scene: Scene):
    seed = os.environ.get("EDGEAGENT_SEED", scene.version)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(echo(name)) for name in "abcd"]
        pages = {name: stack.enter_context(web(name, ready=name == "good")) for name in ("good", "bad")}
        walk = Walk(scene, stack.enter_context(Zygote()), servers, pages, seed)
        walk.live = walk.document()
        scene.edge.put(walk.live)
        walk.look(0, 6)
        lost = served = 0
        for number in range(STEPS):
            step = walk.random.choice(steps(walk))
            walk.done.append(f"{number}: {step.__name__}")
            walk.lossy = False
            with Witness(walk.port) as witness:
                step()
                walk.check()
            served += len(witness.greetings)
            if not walk.lossy:
                lost += len(witness.failures)
                assert witness.failures == [], (walk.done[-3:], walk.previous, walk.live)
        if walk.foreign is not None:
            walk.foreign.close()
        what = f"a random walk of {STEPS} steps, where nothing was killed"
        TABLES["faults"].rows.append(
            Row(fault=what, version=scene.version, served=served, failed=lost, after="what the oracle says")
        )
        assert served > STEPS
