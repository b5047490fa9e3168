"""What the way from the cluster costs: the example state over a real sshd to live, beside a local apply of it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from stage import BINARY, edge, greeter, median, seconds

from kit.servers import free_port  # isort: skip
from kit.ssh import Client, firewall  # isort: skip

ROUNDS = 7
EXAMPLE = Path(__file__).parents[1] / "examples/mail-edge.yaml"


def example(server: str) -> dict[str, Any]:
    """The example's shape on loopback: its frontends, each with as many servers, all of them one that is here."""
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    nodes = document.pop("nodes")
    for frontend in document["frontends"].values():
        frontend["bind"] = [f"127.0.0.1:{free_port()}" for _ in frontend["bind"]]
        frontend.pop("allow", None)
    for pool in document["backends"].values():
        names = [*nodes.get(pool.pop("nodes", ""), ()), *pool.pop("servers", {})]
        pool.pop("port", None)
        pool |= {"application": "raw", "health": {"type": "none"}}
        pool["servers"] = {name: {"address": server} for name in names}
    return document


def main() -> dict[str, float]:
    """Medians, in turns; a change of one weight each time, so that both do the same."""
    if os.geteuid() != 0:
        print("remote: needs root for an sshd; left out", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as folder, greeter("g") as server, edge() as here:
        (Path(folder) / "client").mkdir()
        client = Client(Path(folder) / "client")
        with firewall(BINARY, client, Path(folder) / "a") as there:
            gate = (there.sshd.folder / "authorized_keys").read_text()
            document, far = example(server), example(server)
            times: dict[str, list[float]] = {"true": [], "apply": [], "sync": []}

            def turn(base: dict[str, Any], number: int) -> Path:
                one = copy.deepcopy(base) | {"serial": number}
                one["backends"]["smtp"]["servers"]["k8s-node1"]["weight"] = number
                file = Path(folder) / "state.yaml"
                file.write_text(json.dumps(one))
                return file

            def run(*words: str | Path) -> None:
                subprocess.run(words, check=True, capture_output=True, env=client.environment)  # noqa: S603

            agent = (sys.executable, "-m", "agent")
            for number in range(1, ROUNDS + 2):
                file = turn(document, number)
                applied = seconds(lambda file=file: run(*agent, "--settings", here.settings, "apply", file))
                file = turn(far, number)
                synced = seconds(lambda file=file: run(*agent, "sync", file, "--to", there.to))
                there.sshd.force("true")
                asked = seconds(lambda: run("ssh", "-o", "BatchMode=yes", "-p", str(there.sshd.port), "root@127.0.0.1"))
                (there.sshd.folder / "authorized_keys").write_text(gate)
                if number > 1:  # the first one is a cold start
                    for name, value in (("true", asked), ("apply", applied), ("sync", synced)):
                        times[name].append(value)
    true, apply, sync = (median(times[name]) for name in ("true", "apply", "sync"))
    return {
        "`ssh HOST true` (ms)": true * 1_000,
        "the example state, a weight changed: `agent apply` on the host (ms)": apply * 1_000,
        "the same by `agent sync --to HOST`, to live (ms)": sync * 1_000,
        "sync over `ssh HOST true` and one apply (target 1)": sync / (true + apply),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<92}{value:>12.2f}")
