"""Small documents that are dear to judge: each took minutes or gigabytes once. None is larger than sync.max_bytes."""

from __future__ import annotations

import json
from collections.abc import Callable


def _wrong_networks_beside_good_backends() -> bytes:
    backends = {f"b{i}": {"servers": {"a": {"address": "192.0.2.1:25"}}} for i in range(500)}
    front = {"bind": ["192.0.2.1:25"], "backend": "b0", "allow": ["x"] * 10_000}
    return json.dumps({"version": 1, "frontends": {"f": front}, "backends": backends}).encode()


def _mistyped_keys_in_each_backend() -> bytes:
    backend = {"servrs": {}, "healt": {}, "balanc": "x"}
    return json.dumps({"version": 1, "backends": {f"b{i}": backend for i in range(5_000)}}).encode()


def _alias_bomb() -> bytes:
    lines = ["version: 1", "frontends:", "  f: &a0 {bind: [x], backend: y}"]
    lines += ["x: &x0 [" + ", ".join(["q"] * 100) + "]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 100)}]" for i in range(1, 40)]
    lines += ["nodes: *x30"]
    return "\n".join(lines).encode()


def _valid_aliases() -> bytes:
    networks = "\n".join(f"      - 10.{i // 250}.{i % 250}.0/24" for i in range(5_000))
    lines = [
        "version: 1",
        "frontends:",
        "  f0:",
        "    bind: ['192.0.2.1:1']",
        "    backend: b",
        "    allow: &n",
        networks,
    ]
    lines += [f"  f{i}: {{bind: ['192.0.2.1:{i + 1}'], backend: b, allow: *n}}" for i in range(1, 1_000)]
    lines += ["backends: {b: {servers: {a: {address: '192.0.2.1:25'}}}}"]
    return "\n".join(lines).encode()


def _valid_aliases_within_limits() -> bytes:
    servers = "\n".join(f"      s{i}: {{address: '192.0.2.{i % 250 + 1}:{i + 1}'}}" for i in range(1_000))
    lines = ["version: 1", "backends:", "  b0:", "    servers: &s", servers]
    lines += [f"  b{i}: {{servers: *s}}" for i in range(1, 100)]
    lines += ["frontends:", *(f"  f{i}: {{bind: ['192.0.2.1:{i + 1}'], backend: b{i}}}" for i in range(100))]
    return "\n".join(lines).encode()


def _a_mapping_of_unknown_keys_by_alias() -> bytes:
    keys = ", ".join(f"k{i}: 1" for i in range(5_000))
    lines = ["version: 1", "backends:", f"  b0: &b {{{keys}}}", *(f"  b{i}: *b" for i in range(1, 5_000))]
    return "\n".join(lines).encode()


def _unknown_backends() -> bytes:
    frontends = {f"f{i}": {"bind": [f"192.0.2.1:{i + 1}"], "backend": f"bx{i}"} for i in range(5_000)}
    backends = {f"b{i}": {"servers": {"a": {"address": "192.0.2.1:25"}}} for i in range(5_000)}
    return json.dumps({"version": 1, "frontends": frontends, "backends": backends}).encode()


def _one_address_everywhere() -> bytes:
    frontends = {f"f{i}": {"bind": ["192.0.2.1:25"], "backend": "b"} for i in range(5_000)}
    backends = {"b": {"servers": {"a": {"address": "192.0.2.1:25"}}}}
    return json.dumps({"version": 1, "frontends": frontends, "backends": backends}).encode()


def _long_keys() -> bytes:
    return json.dumps({"version": 1, **{f"k{i}" + "x" * 50_000: 1 for i in range(20)}}).encode()


def _a_long_value() -> bytes:
    backend = {"balance": "round" * 50_000, "servers": {"a": {"address": "192.0.2.1:25"}}}
    return json.dumps({"version": 1, "backends": {"b": backend}}).encode()


def _a_flow_list_of_many() -> bytes:
    return b"version: 1\nname: [" + b"1," * 500_000 + b"1]\n"


def _junk_lines() -> bytes:
    return b"version: 1\n" + b"".join(b"k%d: !t v\n" % i for i in range(80_000))


def _duplicate_keys() -> bytes:
    return b'{"version": 1, ' + b", ".join(b'"k": 1' for _ in range(100_000)) + b"}"


def _routes() -> bytes:
    names = ", ".join(f"n{i}.example.org" for i in range(1_000))
    lines = ["version: 1", "frontends:", "  f0:", "    bind: ['192.0.2.1:1']", "    routes:"]
    lines += [f"      - sni: &n [{names}]", "        backend: b"]
    lines += ["      - {sni: *n, backend: b}"] * 500
    lines += ["backends: {b: {servers: {a: {address: '192.0.2.1:25'}}}}"]
    return "\n".join(lines).encode()


def _plain() -> bytes:
    """A valid document of ordinary shape, as large as the dearest of these: what all are measured by."""
    backends = {f"b{i}": {"servers": {"a": {"address": f"192.0.2.{i % 250 + 1}:25"}}} for i in range(5_000)}
    frontends = {f"f{i}": {"bind": [f"192.0.2.1:{i + 1}"], "backend": f"b{i}"} for i in range(5_000)}
    return json.dumps({"version": 1, "frontends": frontends, "backends": backends}).encode()


PLAIN: Callable[[], bytes] = _plain
ATTACKS: dict[str, Callable[[], bytes]] = {
    make.__name__.strip("_").replace("_", " "): make
    for make in (
        _wrong_networks_beside_good_backends,
        _mistyped_keys_in_each_backend,
        _alias_bomb,
        _valid_aliases,
        _valid_aliases_within_limits,
        _a_mapping_of_unknown_keys_by_alias,
        _unknown_backends,
        _one_address_everywhere,
        _long_keys,
        _a_long_value,
        _a_flow_list_of_many,
        _junk_lines,
        _duplicate_keys,
        _routes,
    )
}
