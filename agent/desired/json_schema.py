"""The desired state as JSON Schema (draft 2020-12), for editors and for checks where no agent is.

Made of the classes of `schema`. It says what one value may be and what the keys of one mapping may be together; what
takes the whole document (a name that must exist, an address bound twice) only `agent check` knows: DIFFERENCES.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import attrs

from agent.desired import rules, schema
from agent.desired.scalars import BOOLEAN, DURATION, Scalar, duration
from agent.desired.schema import SCALARS, HealthType
from agent.desired.structure import is_named, keys_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
IDENTIFIER = "urn:edgeagent:desired-state:1"

DIFFERENCES = (
    "names that must exist: a frontend's and a route's backend, a backend's group of nodes",
    "addresses that overlap: one bound twice, a wildcard beside another address of the same port",
    "names that are used twice: a server and a node of its group",
    "routes that can never match because earlier ones take all their names",
    "a group of nodes that is empty, where a backend has no other server",
    "a canary's backend must have `proxy_protocol: v2`",
    "totals over the whole document (frontends, servers, networks, names of routes), its size and depth",
    "addresses in detail: IPv6 in full, multicast, IPv4-mapped ones, bits behind the mask of a network",
    "a wildcard as the address of a server",
    "durations above 596h, and a range of statuses that ends before it begins",
    "whole numbers written as 25.0, duplicate keys, YAML tags and merge keys: a JSON Schema does not see them",
)
"""What `agent check` refuses and this schema does not."""

_LIMITS: Mapping[tuple[type, str], dict[str, object]] = {
    (schema.DesiredState, "frontends"): {"maxProperties": rules.MAX_FRONTENDS},
    (schema.DesiredState, "backends"): {"maxProperties": rules.MAX_BACKENDS},
    (schema.Frontend, "bind"): {"minItems": 1, "maxItems": rules.MAX_BINDS},
    (schema.Frontend, "routes"): {"maxItems": rules.MAX_ROUTES},
    (schema.Frontend, "allow"): {"maxItems": rules.MAX_NETWORKS},
    (schema.Frontend, "deny"): {"maxItems": rules.MAX_NETWORKS},
    (schema.RateLimit, "exempt"): {"maxItems": rules.MAX_NETWORKS},
    (schema.Route, "sni"): {"minItems": 1},
    (schema.Backend, "servers"): {"maxProperties": rules.MAX_SERVERS},
}


def document() -> dict[str, Any]:
    """The whole JSON Schema."""
    definitions: dict[str, Any] = {}
    top = _class(schema.DesiredState, definitions)
    return {
        "$schema": DIALECT,
        "$id": IDENTIFIER,
        "title": "edgeagent desired state, version 1",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _class(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    types = get_type_hints(cls)
    keys = keys_of(cls)
    return {
        "description": (cls.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip(),
        "type": "object",
        "properties": {key.name: _key(cls, key, types[key.name], definitions) for key in keys},
        "required": [key.name for key in keys if key.default is attrs.NOTHING],
        "additionalProperties": False,
        **_TOGETHER.get(cls, {}),
    }


def _key(cls: type, key: attrs.Attribute[Any], kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    made = {
        **_of(kind, definitions),
        **_LIMITS.get((cls, key.name), {}),
        "description": key.metadata["about"],
    }
    if (default := written_default(key, kind, SCALARS)) is not None:
        made["default"] = default
    if (example := key.metadata["example"]) is not None:
        made["examples"] = [example]
    return made


def written_default(key: attrs.Attribute[Any], kind: Any, scalars: Mapping[object, Scalar]) -> object:
    """The default of a key as it would be written; None where there is none, or where it is a mapping or a list.

    `kind`: the type of the key; `scalars`: what the types of single values are.
    """
    default = key.default
    if default is attrs.NOTHING or isinstance(default, attrs.Factory) or attrs.has(type(default)):  # type: ignore[arg-type]  # attrs' stubs call the class Factory a function
        return None
    if isinstance(default, enum.Enum):
        return default.value
    if kind in scalars and scalars[kind] is DURATION and isinstance(default, int):
        return duration(default)
    if kind is schema.HttpStatus and isinstance(default, str):
        return int(default)  # a range alone is a text
    return None if default in ("", ()) else default


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; classes and scalars that have a name become definitions."""
    if kind in SCALARS:
        name = kind.__name__
        definitions[name] = dict(SCALARS[kind].json_schema)
        return {"$ref": f"#/$defs/{name}"}
    if kind is bool:
        return dict(BOOLEAN.json_schema)
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return {"enum": [member.value for member in kind]}
    arguments, origin = get_args(kind), get_origin(kind)
    if origin is dict:
        return _mapping(_of(arguments[1], definitions), definitions)
    if origin is tuple:
        item = _of(arguments[0], definitions)
        return _mapping(item, definitions) if is_named(arguments[0]) else {"type": "array", "items": item}
    if attrs.has(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # no class holds itself; this keeps the order of the first use
            definitions[kind.__name__] = _class(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    given = [part for part in arguments if part is not type(None)]
    if len(given) == 1:
        return _of(given[0], definitions)
    return {"anyOf": [_of(part, definitions) for part in given]}


def _mapping(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": _of(schema.Name, definitions), "additionalProperties": value}


# --- what the keys of one mapping may be together, as `rules` refuses it


def _is(**key: object) -> dict[str, Any]:
    """Where the key is written, with this value."""
    ((name, value),) = key.items()
    return {"properties": {name: {"const": value}}, "required": [name]}


def _if(condition: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    return {"if": dict(condition), "then": dict(then)}


def _health() -> list[dict[str, Any]]:
    """Which keys mean something to which type of check."""
    every = rules.HEALTH_KEYS[HealthType.HTTP]
    made = []
    for kind, keys in rules.HEALTH_KEYS.items():
        nothing = dict.fromkeys(sorted(every - keys), False)
        if nothing:
            condition = _is(type=kind.value)
            if kind is HealthType.TCP:  # the default
                condition.pop("required")
            made.append(_if(condition, {"properties": nothing}))
    without_tls = {**_is(type="http"), "not": _is(tls=True)}
    made.append(_if(without_tls, {"properties": {"verify": False}}))
    return made


_TOGETHER: Mapping[type, dict[str, Any]] = {
    schema.Frontend: {
        "anyOf": [{"required": ["backend"]}, {"required": ["routes"], "properties": {"routes": {"minItems": 1}}}],
        "allOf": [_if(_is(canary=True), {"properties": {"routes": {"maxItems": 0}}})],
    },
    schema.RateLimit: {
        "dependentRequired": {"connections": ["period"], "period": ["connections"]},
        "anyOf": [{"required": ["connections"]}, {"required": ["concurrent"]}],
    },
    schema.Backend: {
        "dependentRequired": {"nodes": ["port"], "port": ["nodes"]},
        "anyOf": [{"required": ["nodes"]}, {"required": ["servers"], "properties": {"servers": {"minProperties": 1}}}],
        "allOf": [
            _if(
                {"properties": {"health": _is(type="greeting")}, "required": ["health"]},
                {
                    "properties": {"application": {"enum": sorted(rules.GREETING_APPLICATIONS)}},
                    "required": ["application"],
                },
            ),
            _if(
                _is(proxy_protocol="none"),
                {"properties": {"health": {"not": _is(send_proxy=True)}}},
            ),
        ],
    },
    schema.Health: {"allOf": _health()},
}
