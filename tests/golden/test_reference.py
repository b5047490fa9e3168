"""docs/reference is what the code says now; each example is valid and becomes the line that stands beside it."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_type_hints

import hypothesis
import pytest
import yaml
from kit import strategies

from agent.desired import schema
from agent.desired.state import parse
from agent.desired.structure import is_named, keys_of
from agent.haproxy.config import CONFIG_TEMPLATE, Process, render
from agent.host import templates

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert SPEC is not None
assert SPEC.loader is not None
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)

PAGES = generate.pages()
BASE: dict[str, Any] = {
    "version": 1,
    "nodes": {"workers": {"node1": "10.0.20.101"}},
    "frontends": {"smtp": {"bind": ["192.0.2.9:2525"], "backend": "smtp"}},
    "backends": {
        "smtp": {"servers": {"a": {"address": "10.0.20.1:25"}}},
        "webmail": {"servers": {"a": {"address": "10.0.20.1:443"}}},
    },
}
PLACES: dict[type, tuple[str, ...]] = {
    schema.DesiredState: (),
    schema.Defaults: ("defaults",),
    schema.Timeouts: ("defaults", "timeouts"),
    schema.Frontend: ("frontends", "smtp"),
    schema.FrontendTimeouts: ("frontends", "smtp", "timeouts"),
    schema.RateLimit: ("frontends", "smtp", "rate_limit"),
    schema.Route: ("frontends", "smtp", "routes"),
    schema.Backend: ("backends", "smtp"),
    schema.BackendTimeouts: ("backends", "smtp", "timeouts"),
    schema.Server: ("backends", "smtp", "servers", "a"),
    schema.Health: ("backends", "smtp", "health"),
}
# What a key cannot stand without.
BESIDE: dict[tuple[type, str], dict[str, Any]] = {
    (schema.RateLimit, "connections"): {"period": "10s"},
    (schema.RateLimit, "period"): {"connections": 30},
    (schema.RateLimit, "exempt"): {"concurrent": 20},
    (schema.Route, "sni"): {"backend": "webmail"},
    (schema.Route, "backend"): {"sni": ["mail.example.org"]},
    (schema.Backend, "nodes"): {"port": 30125},
    (schema.Backend, "port"): {"nodes": "workers"},
    (schema.Health, "send_proxy"): {"port": 30145},
    (schema.Health, "path"): {"type": "http"},
    (schema.Health, "host"): {"type": "http"},
    (schema.Health, "status"): {"type": "http"},
    (schema.Health, "tls"): {"type": "http"},
    (schema.Health, "verify"): {"type": "tls"},
}
KEYS = [(cls, key.name) for cls in PLACES for key in keys_of(cls) if key.metadata["example"] is not None]


def written(document: dict[str, Any]) -> str:
    """Its haproxy.cfg."""
    process = Process(
        socket=PurePosixPath("/run/edgeagent/haproxy.sock"),
        server_state=PurePosixPath("/run/edgeagent/server-state"),
        maxconn=4_000,
        hard_stop_after=900_000,
        ca_file="/etc/ssl/cert.pem",
    )
    state = parse(json.dumps(document).encode(), file="example").state
    return render(state, process, templates.load(CONFIG_TEMPLATE, "")).stamped(digest="", generation=1).decode()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_reference_is_not_stale(name: str):
    assert (DOCS / "reference" / name).read_text() == PAGES[name], "make docs writes it anew"


def test_there_is_no_other_page():
    assert {file.name for file in (DOCS / "reference").iterdir()} == set(PAGES)


@pytest.mark.parametrize(("cls", "name"), KEYS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_each_example_becomes_its_line(cls: type, name: str):
    (key,) = [key for key in keys_of(cls) if key.name == name]
    value = {**BESIDE.get((cls, name), {}), name: key.metadata["example"]}
    document = copy.deepcopy(BASE)
    if cls is schema.Route:
        document["frontends"]["smtp"]["routes"] = [value]
    else:
        at = document
        for step in PLACES[cls]:
            at = at.setdefault(step, {})
        at.update(value)
    before, after = written(BASE), written(document)
    if line := key.metadata["line"]:
        pattern = rf"(?<!\S){re.escape(line)}(?!\S)"
        assert len(re.findall(pattern, after)) > len(re.findall(pattern, before)), after


def test_every_key_is_in_the_golden_file():
    """It is what every HAProxy has to accept: a key that is not in it is tried on none."""
    found: set[tuple[type, str]] = set()

    def walk(cls: type, tree: dict[str, Any]) -> None:
        types = get_type_hints(cls)
        for key in keys_of(cls):
            if key.name in tree:
                found.add((cls, key.name))
                inner = [part for part in (types[key.name], *get_args(types[key.name])) if part in PLACES]
                values = tree[key.name]
                for part in inner:
                    listed = values.values() if is_named(part) else values if isinstance(values, list) else [values]
                    for value in listed:
                        walk(part, value)

    walk(schema.DesiredState, yaml.safe_load((Path(__file__).parent / "every-key.yaml").read_text()))
    assert {(cls, key.name) for cls in PLACES for key in keys_of(cls)} - found == set()


@pytest.mark.parametrize("name", sorted(key.name for key in keys_of(schema.Backend)))
def test_the_properties_use_every_key_of_a_backend(name: str):
    assert hypothesis.find(strategies.backends, lambda backend: name in backend)
