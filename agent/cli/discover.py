"""`agent discover`: a desired state out of a cluster, printed once, or kept true on firewalls."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import click
from attrs import evolve, frozen

from agent.cli.output import end
from agent.desired.addresses import endpoint
from agent.discover import merge, objects
from agent.discover.api import Api, ApiError, Where
from agent.discover.backoff import Backoff
from agent.discover.base import Base, base
from agent.discover.cluster import Cluster
from agent.discover.controller import Controller
from agent.discover.desired import Config, Desired, desired
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewalls
from agent.discover.informer import Informer
from agent.discover.objects import Node, Service, Slice
from agent.discover.reporter import Reporter
from agent.discover.site import Site
from agent.errors import AgentError, ExitCode, InvalidError, UsageError, Violation
from agent.host import signature
from agent.host.http_server import Listen, serving
from agent.remote import push

CLUSTER_UID = "/api/v1/namespaces/kube-system"
"""The namespace whose uid is the cluster's: it is made with the cluster, and cannot be deleted."""

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
    max_bytes: int


def discover(options: Options) -> NoReturn:
    """Once, or for ever."""
    try:
        bind = merge.bind_addresses(options.bind)
    except ValueError as error:
        raise click.BadParameter(f"an address is expected: {error}", param_hint="--bind") from None
    config = _BaseFile(options.base, Config(bind=bind, max_bytes=options.max_bytes), watched=options.watch)
    api = Api(Where(kubeconfig=options.kubeconfig, context=options.context))
    if options.watch:
        _watch(api, config, options)
    _once(api, evolve(config.now(), manager=_manager(api)), options)


class _BaseFile:
    """The base is read again where it has changed; one that cannot be read any more leaves the last good one."""

    def __init__(self, file: Path | None, config: Config, *, watched: bool) -> None:
        self._file, self._watched, self._error = file, watched, ""
        self._data = self._bytes()
        self._config = evolve(config, base=self._base(self._data))

    def now(self) -> Config:
        """As of now."""
        try:
            data = self._bytes()
            if data != self._data:
                self._data = data
                self._config = evolve(self._config, base=self._base(data))
                _log.info("%s: read again", self._file)
            self._error = ""
        except AgentError as error:
            if str(error) != self._error:
                _log.error("the base stays as it was: %s", error)
            self._error = str(error)
        return self._config

    def managed_by(self, manager: str) -> None:
        """Whose documents they are, unless the base says it."""
        self._config = evolve(self._config, manager=manager)

    def _bytes(self) -> bytes:
        if self._file is None:
            return b""
        try:
            return self._file.read_bytes()
        except OSError as error:
            raise UsageError(f"{self._file}: {error.strerror}") from None

    def _base(self, data: bytes) -> Base:
        return base(data, str(self._file), watched=self._watched) if self._file is not None else Base()


def _manager(api: Api, ended: threading.Event | None = None) -> str:
    """The uid of the cluster; "" where it may not be read, which is logged: two clusters could take turns then.

    `ended`: an API server that does not answer is asked again until that.
    """
    backoff = Backoff()
    while True:
        try:
            uid = api.get(CLUSTER_UID).get("metadata", {}).get("uid")
        except ApiError as error:
            if ended is not None and error.status not in (401, 403, 404) and not ended.wait(backoff.next()):
                continue
            _log.warning("the document names no manager: %s", error)
            return ""
        return uid if isinstance(uid, str) else ""


# --- once ---------------------------------------------------------------------------------------------------------


def _once(api: Api, config: Config, options: Options) -> NoReturn:
    """Print it. Exit 3 where the base and a Service are at odds, or nothing valid comes of it; 6 with mistakes."""
    cluster = _cluster(api, options.namespaces, lambda: None, threading.Event())
    for informer in cluster.informers:
        informer.list()
    made = desired(cluster.snapshot(), config)
    _complain(made)
    conflicts = [
        f"{_text(key)}: {mistake.text}"
        for key, mistakes in made.mistakes.items()
        for mistake in mistakes
        if mistake.conflict
    ]
    if conflicts or made.violations:
        problems = tuple(Violation((), text) for text in (*conflicts, *made.violations))
        raise InvalidError("discover", problems)
    data = merge.as_json(made.tree) if options.as_json else merge.as_yaml(made.tree, api.name)
    code = ExitCode.DEGRADED if made.mistakes or not made.fragments else ExitCode.LIVE
    end(lambda: click.echo(data.decode(), nl=False), code)


def _complain(made: Desired) -> None:
    for key, mistakes in sorted(made.mistakes.items()):
        for mistake in mistakes:
            if not mistake.conflict:
                click.echo(f"warning: {_text(key)}: {mistake.text} (left out)", err=True)
    for key, fragment in sorted(made.fragments.items()):
        for remark in fragment.remarks:
            click.echo(f"warning: {_text(key)}: {remark}", err=True)
    for remark in made.remarks:
        click.echo(f"warning: {remark}", err=True)
    if not made.fragments and not made.mistakes:
        click.echo(f"warning: no Service has the annotation {objects.PREFIX}expose", err=True)


def _text(key: objects.Key) -> str:
    return f"Service {'/'.join(key)}"


# --- for ever -----------------------------------------------------------------------------------------------------


def _watch(api: Api, config: _BaseFile, options: Options) -> NoReturn:
    try:
        targets = [push.target(target) for target in dict.fromkeys(options.targets)]
        listen = Listen(address=endpoint(options.listen)) if options.listen else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if options.key is not None:
        signature.sign(b"", options.key)  # what cannot be signed is better known now
    ended = threading.Event()
    control: list[Controller] = []

    def changed() -> None:
        for controller in control:
            controller.enqueue()

    cluster = _cluster(api, options.namespaces, changed, ended)
    firewalls = Firewalls(targets, seconds=options.timeout, sign=options.key)
    reporter = Reporter(api, end=ended)
    controller = Controller(
        cluster=cluster,
        config=config.now,
        firewalls=firewalls,
        reporter=reporter,
        finalizers=Finalizers(api),
        end=ended,
    )
    control.append(controller)

    def stop(_number: int, _frame: object) -> None:
        ended.set()
        controller.enqueue()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with _site(listen, Site(controller, cluster, firewalls, reporter)):
        _log.info("watching %s for %s", api.name, ", ".join(target.text for target in targets))
        config.managed_by(_manager(api, ended))
        controller.run()
        reporter.wake()
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


def _cluster(api: Api, namespaces: tuple[str, ...], changed: Callable[[], None], ended: threading.Event) -> Cluster:
    """Of every namespace, or of these alone."""

    def paths(group: str, kind: str) -> list[str]:
        return [f"{group}/namespaces/{namespace}/{kind}" for namespace in dict.fromkeys(namespaces)] or [
            f"{group}/{kind}"
        ]

    services = [
        Informer[Service](api, path, objects.service, changed=changed, end=ended)
        for path in paths("/api/v1", "services")
    ]
    slices = [
        Informer[Slice](api, path, objects.endpoint_slice, changed=changed, end=ended)
        for path in paths("/apis/discovery.k8s.io/v1", "endpointslices")
    ]
    nodes = Informer[Node](api, "/api/v1/nodes", objects.node, changed=changed, end=ended)
    return Cluster(services=services, nodes=nodes, slices=slices)
