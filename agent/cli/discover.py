"""`agent discover`: a desired state out of a cluster, printed once, or kept true on firewalls."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import click
from attrs import evolve, frozen

from agent.cli.output import end
from agent.desired.addresses import endpoint
from agent.discover import merge, objects
from agent.discover.api import Api, Where
from agent.discover.controller import Controller
from agent.discover.election import Election
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewalls
from agent.discover.fragments import Before
from agent.discover.merge import Base
from agent.discover.objects import Node, Service, Slice
from agent.discover.reflector import Kind, Reflector
from agent.discover.reports import Reporter
from agent.discover.service_status import told
from agent.discover.site import Site
from agent.discover.sources import Sources
from agent.discover.state import Config, Wanted, document, wanted
from agent.errors import AgentError, ExitCode, InvalidError, UsageError, Violation
from agent.host import signature
from agent.host.http_server import Listen, serving
from agent.remote import push

END_SECONDS = 5.0

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class Options:
    """The options of `agent discover`; `timeout` in seconds; "" and () where not given."""

    base: Path | None
    bind: tuple[str, ...]
    namespaces: tuple[str, ...]
    kubeconfig: str
    context: str
    as_json: bool
    watch: bool
    targets: tuple[str, ...]
    timeout: float
    key: Path | None
    listen: str
    lease_namespace: str
    max_bytes: int


def discover(options: Options) -> NoReturn:
    """Once, or for ever."""
    try:
        bind = merge.bind_addresses(options.bind)
    except ValueError as error:
        raise click.BadParameter(f"an address is expected: {error}", param_hint="--bind") from None
    terms = _Terms(options.base, Config(bind=bind, max_bytes=options.max_bytes), watched=options.watch)
    api = Api(Where(kubeconfig=options.kubeconfig, context=options.context))
    if options.watch:
        _watch(api, terms, options)
    _once(api, terms.now(), options)


class _Terms:
    """The base is read again where it has changed; one that cannot be read any more leaves the last good one."""

    def __init__(self, file: Path | None, terms: Config, *, watched: bool) -> None:
        self._file, self._watched, self._said = file, watched, ""
        self._data = self._bytes()
        self._terms = evolve(terms, base=self._base(self._data))

    def now(self) -> Config:
        """As of now."""
        try:
            data = self._bytes()
            if data != self._data:
                self._data = data
                self._terms = evolve(self._terms, base=self._base(data))
                _log.info("%s: read again", self._file)
            self._said = ""
        except AgentError as error:
            if str(error) != self._said:
                _log.error("the base stays as it was: %s", error)
            self._said = str(error)
        return self._terms

    def _bytes(self) -> bytes:
        if self._file is None:
            return b""
        try:
            return self._file.read_bytes()
        except OSError as error:
            raise UsageError(f"{self._file}: {error.strerror}") from None

    def _base(self, data: bytes) -> Base:
        return merge.base(data, str(self._file), watched=self._watched) if self._file is not None else Base()


# --- once ---------------------------------------------------------------------------------------------------------


def _once(api: Api, terms: Config, options: Options) -> NoReturn:
    """Print it. Exit 3 where the base and a Service are at odds, or nothing valid comes of it; 6 with mistakes."""
    end_now = threading.Event()
    sources = _sources(api, options.namespaces, lambda: None, end_now)
    for one in sources.all:
        one.read()
    snapshot = sources.now()
    last = {service.key: told(service.status, service.uid) for service in snapshot.services}
    found = wanted(snapshot, terms, Before(good={key: one.good for key, one in last.items() if one and one.good}))
    _complain(found)
    conflicts = [
        f"{_text(key)}: {mistake.text}"
        for key, mistakes in found.mistakes.items()
        for mistake in mistakes
        if mistake.conflict
    ]
    if conflicts or found.violations:
        problems = tuple(Violation((), text) for text in (*conflicts, *found.violations))
        raise InvalidError("discover", problems)
    tree = document(terms, found.fragments)
    data = merge.as_json(tree) if options.as_json else merge.as_yaml(tree, api.name)
    code = ExitCode.DEGRADED if found.mistakes or not found.fragments else ExitCode.LIVE
    end(lambda: click.echo(data.decode(), nl=False), code)


def _complain(found: Wanted) -> None:
    for key, mistakes in sorted(found.mistakes.items()):
        goes_on = " (as it was live last, it stays in)" if key in found.levels else " (left out)"
        for mistake in mistakes:
            if not mistake.conflict:
                click.echo(f"warning: {_text(key)}: {mistake.text}{goes_on}", err=True)
    for key, one in sorted(found.fragments.items()):
        for remark in one.remarks:
            click.echo(f"warning: {_text(key)}: {remark}", err=True)
    for remark in found.remarks:
        click.echo(f"warning: {remark}", err=True)
    if not found.fragments and not found.mistakes:
        click.echo(f"warning: no Service has the annotation {objects.PREFIX}expose", err=True)


def _text(key: objects.Key) -> str:
    return f"Service {'/'.join(key)}"


# --- for ever -----------------------------------------------------------------------------------------------------


def _watch(api: Api, terms: _Terms, options: Options) -> NoReturn:
    try:
        targets = [push.target(target) for target in dict.fromkeys(options.targets)]
        listen = Listen(address=endpoint(options.listen)) if options.listen else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if options.key is not None:
        signature.sign(b"", options.key)  # what cannot be signed is better known now
    ended, done = threading.Event(), threading.Event()
    control: list[Controller] = []

    def changed() -> None:
        for one in control:
            one.wake()

    sources = _sources(api, options.namespaces, changed, ended)
    firewalls = Firewalls(targets, seconds=options.timeout, sign=options.key)
    reporter = Reporter(api, is_leader=lambda: control[0].election.leads, end=ended)
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"  # two on one host are two

    def election(woken: Callable[[], None]) -> Election:
        namespace = options.lease_namespace or api.namespace
        return Election(api, namespace=namespace, identity=identity, changed=woken, end=done)

    controller = Controller(
        sources=sources,
        terms=terms.now,
        firewalls=firewalls,
        election=election,
        reporter=reporter,
        finalizers=Finalizers(api),
        end=ended,
    )
    control.append(controller)

    def stop(_number: int, _frame: object) -> None:
        ended.set()
        controller.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with _site(listen, Site(controller, sources, firewalls, reporter)):
        _log.info("%s: watching %s for %s", identity, api.name, ", ".join(target.text for target in targets))
        controller.run()
        reporter.wake()
        done.set()  # whoever leads next begins when nothing of ours is under way any more
        controller.election.thread.join(END_SECONDS)  # it gives the Lease back
    _log.info("ended")
    sys.stderr.flush()
    os._exit(0)  # a watch waits for its server; nothing of it has to be put in order


@contextlib.contextmanager
def _site(listen: Listen | None, site: Site) -> Iterator[None]:
    if listen is None:
        yield
        return
    with serving(listen, site.routes) as where:
        _log.info("metrics on %s", where)
        yield


def _sources(api: Api, namespaces: tuple[str, ...], changed: Callable[[], None], ended: threading.Event) -> Sources:
    """Of every namespace, or of these alone."""

    def paths(group: str, kind: str) -> list[str]:
        return [f"{group}/namespaces/{namespace}/{kind}" for namespace in dict.fromkeys(namespaces)] or [
            f"{group}/{kind}"
        ]

    services = [
        Reflector(api, Kind[Service]("services", (path,), objects.service), changed=changed, end=ended)
        for path in paths("/api/v1", "services")
    ]
    slices = [
        Reflector(api, Kind[Slice]("endpointslices", both, objects.endpoint_slice), changed=changed, end=ended)
        for both in zip(
            *(paths(f"/apis/discovery.k8s.io/{version}", "endpointslices") for version in ("v1", "v1beta1")),
            strict=True,
        )
    ]
    nodes = Reflector(api, Kind[Node]("nodes", ("/api/v1/nodes",), objects.node), changed=changed, end=ended)
    return Sources(services=services, nodes=nodes, slices=slices)
