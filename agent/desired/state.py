"""Bytes to a desired state: sorted by name, groups of nodes unfolded, every default filled in.

`parse` is the only way to get one from bytes: all of it is right, or every violation is reported at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from operator import attrgetter

from attrs import evolve, frozen

from agent.desired import document, rules, structure
from agent.desired.addresses import Endpoint, ServerEndpoint
from agent.desired.document import Document
from agent.desired.identity import digest_of
from agent.desired.schema import CONVERTER, Backend, DesiredState, Node, Server, Weight
from agent.errors import MOST_VIOLATIONS, Finding, InvalidError, Violation, dotted

DEFAULT_MAX_BYTES = 1_048_576


@frozen(kw_only=True)
class Limits:
    """What this host allows."""

    process_maxconn: int = 4_000
    """connections of the whole process (haproxy.maxconn)"""
    file_limit: int | None = None
    """open files; None: not known, or unlimited"""


@frozen(kw_only=True)
class Parsed:
    """A valid document."""

    state: DesiredState
    """what it says"""
    digest: str
    """SHA-256 of its bytes, hex"""
    findings: tuple[Finding, ...]
    """what is unwise about it"""


def parse(data: bytes, *, file: str, max_bytes: int = DEFAULT_MAX_BYTES, limits: Limits = Limits()) -> Parsed:
    """Bytes to a desired state. `file` names it in messages.

    Raises InvalidError with every violation, in the order of the document; never anything else.
    """
    written = document.read(data, file=file, max_bytes=max_bytes)
    if excess := tuple(itertools.islice(rules.too_much(written.value), MOST_VIOLATIONS)):
        raise InvalidError(file, _placed(written, excess))
    if isinstance(written.value, dict) and "version" in written.value and written.value["version"] != 1:
        built = structure.structure(CONVERTER, {"version": written.value["version"]}, DesiredState)
    else:
        built = structure.structure(CONVERTER, written.value, DesiredState)
    broken = [Violation(fault.path, fault.message, written.line(fault.path)) for fault in built.faults]
    remarks_on_rules = itertools.islice(
        rules.violations(built, written.value), MOST_VIOLATIONS + 1
    )  # one more: there are others
    broken += _placed(written, (_at(built, remark) for remark in remarks_on_rules))
    broken += written.violations
    if broken or built.value is None:
        listed = tuple(sorted(dict.fromkeys(broken), key=_order))
        raise InvalidError(file, listed, more=built.more + written.more)
    remarks = rules.advice(
        built.value, written.value, process_maxconn=limits.process_maxconn, file_limit=limits.file_limit
    )
    findings = tuple(
        Finding(dotted(remark.path), remark.message, remark.remedy, written.line(remark.path) if remark.path else None)
        for remark in remarks
    )
    return Parsed(state=_unfold(built.value), digest=digest_of(data), findings=findings)


def _at(built: structure.Structured[DesiredState], remark: rules.Remark) -> rules.Remark:
    """Rules see the tree without what was cut out; people see the document."""
    return rules.Remark(built.at(remark.path), remark.message, remark.remedy)


def _placed(written: Document, remarks: Iterable[rules.Remark]) -> tuple[Violation, ...]:
    return tuple(Violation(remark.path, remark.message, written.line(remark.path)) for remark in remarks)


def _order(violation: Violation) -> tuple[int, str]:
    return (violation.line or 0, dotted(violation.path))


def _unfold(written: DesiredState) -> DesiredState:
    """Sorted by name, the groups of nodes as servers of the backends that name them."""
    by_name = attrgetter("name")
    backends = (
        evolve(backend, servers=tuple(sorted([*backend.servers, *_nodes(written, backend)], key=by_name)))
        for backend in written.backends
    )
    return evolve(
        written,
        frontends=tuple(sorted(written.frontends, key=by_name)),
        backends=tuple(sorted(backends, key=by_name)),
    )


def _nodes(written: DesiredState, backend: Backend) -> Iterable[Server]:
    if backend.nodes is not None and backend.port is not None:
        for name, node in written.nodes[backend.nodes].items():
            host, weight = (node.address, node.weight) if isinstance(node, Node) else (node, Weight(1))
            address = ServerEndpoint(Endpoint(6 if ":" in host else 4, host, backend.port))
            yield Server(name=name, address=address, weight=weight)
