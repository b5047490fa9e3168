"""`agent discover --watch`: the firewalls are kept in step with the cluster.

    events -> quiet -> what is desired -> (nothing new) | push -> what became of it -> conditions, Events

One thread reconciles; others watch and report. It remembers nothing that matters: what is live stands on the
firewalls, under the owner of each frontend; two controllers at once undo nothing of each other (`--if-live`). A Service
whose change a firewall refuses is held back, as it is live, and the others go on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve, frozen

from agent.desired.addresses import WILDCARDS
from agent.discover import conditions, memory
from agent.discover.backoff import Backoff
from agent.discover.base import Base
from agent.discover.cluster import Cluster
from agent.discover.conditions import ServiceStatus, State
from agent.discover.desired import Config, Desired, desired
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewalls, Result
from agent.discover.fragments import Fragment, fragment
from agent.discover.holds import Holds
from agent.discover.memory import fragments
from agent.discover.objects import Key, Service, Snapshot
from agent.discover.pools import View
from agent.discover.reporter import Reporter
from agent.errors import ExitCode

QUIET_SECONDS, PATIENCE_SECONDS = 0.1, 1.0  # events come in bursts: a rollout, a node with all its endpoints
RESYNC_SECONDS = 600.0
ASK_SECONDS = 30.0  # while not all is up
AWAY_SECONDS = (1.0, 10.0)  # after which a firewall that is away is asked again: at first, and at most
FINALIZER_SECONDS = (2.0, 60.0)  # the same of a finalizer that could not be written
MOST_PUSHES = 4  # of one reconcile: what is refused is held back, and the rest goes on

_EMPTY = "no frontend is left, and all service would end: nothing is pushed"

_ROLLED_BACK = "it hurt when it was pushed last, and nothing but nodes has changed since: nothing is pushed"

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class _Turn:
    """What one reconcile is about."""

    config: Config
    snapshot: Snapshot
    services: Mapping[Key, Service]
    live: Mapping[Key, Fragment]
    """what each has on the firewalls"""
    desired: Desired
    after: Mapping[Key, Fragment]
    """what each has in the desired state, as it is read back from a document"""
    unready: Mapping[Key, str]
    """new ones without anybody behind them, and why"""

    @property
    def request(self) -> tuple[object, ...]:
        """All that is asked for, whatever the nodes and pods are."""
        return (self.config, {key: made.request for key, made in self.after.items()})

    @property
    def changed(self) -> list[Key]:
        """Services of which something else would be live."""
        return [key for key, made in self.after.items() if self.live.get(key) != made]

    @property
    def asked(self) -> list[Key]:
        """Those of them that ask for something else; of the others only the nodes or pods have changed."""
        live = self.live
        return [key for key in self.changed if key not in live or live[key].request != self.after[key].request]


class Controller:
    """Decides. `enqueue` tells it that something has changed."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        config: Callable[[], Config],
        firewalls: Firewalls,
        reporter: Reporter,
        finalizers: Finalizers,
        end: threading.Event,
    ) -> None:
        self._cluster, self._read_config, self._firewalls = cluster, config, firewalls
        self._reporter, self._finalizers, self._end = reporter, finalizers, end
        self._threads = [*(informer.thread for informer in cluster.informers), reporter.thread]
        self._dirty = threading.Event()
        self._last_event = 0.0
        self._holds = Holds()
        self._config: Config | None = None  # as it was read last
        self._live_config: Config | None = None  # of what was pushed last, and went live
        self._rejected_config: Config | None = None  # was put aside, since it hurt
        self._base_is_cleared = False  # the base was not behind what was refused: it is not put aside for it again
        self._pushed = False  # in this reconcile
        self._sent: Mapping[str, Any] | None = None  # the last document that was pushed, whatever became of it
        self._hurt: tuple[object, ...] | None = None  # what was rolled back, with nobody to blame
        self._groups: Mapping[
            str, tuple[str, tuple[int, ...]]
        ] = {}  # of nodes: also what was chosen earlier, and is live
        self._remarks: tuple[str, ...] = ()
        self._backoff = Backoff(*AWAY_SECONDS)
        self._finalizer_backoff = Backoff(*FINALIZER_SECONDS)
        self._restored = False
        self._ask_at = 0.0  # when the firewalls are asked although nothing has happened
        self._requeue_at = 0.0
        self._complete = False
        self.last_loop = time.monotonic()
        self.states: dict[str, int] = {}

    @property
    def dead(self) -> list[threading.Thread]:
        """Threads that should run, and do not."""
        return [thread for thread in self._threads if not thread.is_alive()]

    @property
    def in_step(self) -> bool:
        """Whether all is live everywhere as it is asked for, and what is asked for is known."""
        return self._complete and not self._cluster.stalled

    @property
    def due(self) -> bool:
        """Whether it is time to reconcile although nothing has happened in the cluster."""
        return time.monotonic() >= self._requeue_at or self._read_config() is not self._config

    def enqueue(self) -> None:
        """From any thread."""
        self._last_event = time.monotonic()
        self._dirty.set()

    def run(self) -> None:
        """Until the end."""
        for thread in self._threads:
            thread.start()
        while not self._end.is_set():
            self.last_loop = time.monotonic()
            if dead := self.dead:  # a defect of ours: whoever started us starts us anew
                raise RuntimeError(f"{', '.join(thread.name for thread in dead)} has ended")
            happened = self._wait()
            if self._end.is_set() or not self._cluster.synced:
                continue
            if happened or self.due:
                self.reconcile()

    def _wait(self) -> bool:
        """Until something has changed and it is quiet again (True), or it is time to look; 20 s at most."""
        self._dirty.wait(min(max(0.0, self._requeue_at - time.monotonic()), 20.0) if self._cluster.synced else 20.0)
        if not self._dirty.is_set():
            return False
        patience = time.monotonic() + PATIENCE_SECONDS
        while (now := time.monotonic()) < min(self._last_event + QUIET_SECONDS, patience) and not self._end.is_set():
            self._end.wait(min(self._last_event + QUIET_SECONDS, patience) - now)
        self._dirty.clear()
        return True

    # --- one reconcile

    def reconcile(self) -> None:
        """From what is there to what is desired, whatever was done before."""
        snapshot = self._cluster.snapshot()
        due = time.monotonic() >= self._ask_at
        if due or self._firewalls.must_be_asked:
            self._firewalls.refresh()
            due = True
        if not self._firewalls.known:
            self._report_unknown(snapshot)
            if due:
                self._ask_at = time.monotonic() + self._backoff.next()
            self._requeue_at = self._ask_at
            return
        if not self._restored:
            _log.info("begins with %d Services, %d Nodes", len(snapshot.services), len(snapshot.nodes))
            self._holds.restore(snapshot.services)
            self._restored = True
        config = self._take_config()
        self._holds.release(_fragments_of(snapshot, config), snapshot.services)
        self._pushed = False
        for _ in range(MOST_PUSHES):
            turn = self._turn(snapshot, config)
            result = self._program(turn, due=due)
            if not self._hold_culprits(turn, result):
                break
            config = self._take_config()
        else:
            self.enqueue()  # there is more to try
        if result.live:
            self._holds.accepted()
            self._live_config, self._hurt = turn.config, None
        elif result.rolled_back and self._sent == turn.desired.tree:
            self._hurt = turn.request
        retry_at = self._settle_finalizers(turn, result)
        self._report(turn, result)
        self._schedule(turn, result, due=due, retry_at=retry_at)

    def _take_config(self) -> Config:
        """The base as it is now; while one that hurt is in its file, the last good one."""
        config = self._read_config()
        if config is not self._config:
            self._config, self._rejected_config, self._base_is_cleared = config, None, False
            self._holds.release_refused()
        if config is not self._rejected_config:
            return config
        if self._live_config is None:  # this process has seen no other one: what is live has one
            self._live_config = evolve(config, base=Base(file="the live base", tree=self._firewalls.base))
        return self._live_config

    def _turn(self, snapshot: Snapshot, config: Config) -> _Turn:
        by_owner = self._firewalls.live({service.owner for service in snapshot.services})
        services = {service.key: service for service in snapshot.services}
        now = {key: by_owner[service.owner] for key, service in services.items() if service.owner in by_owner}
        live = self._holds.memory(now)
        excluded, pinned = self._holds.excluded, self._holds.pinned
        made = desired(snapshot, config, live=live, excluded=excluded, pinned=pinned, groups=self._groups)
        # A new Service comes a moment before its endpoints: with nobody behind it, it would be degraded at first, and a
        # reload when they come.
        unready = {
            key: "; ".join(fragment.remarks)
            for key, fragment in made.fragments.items()
            if key not in live and fragment.is_empty and fragment.frontends.keys().isdisjoint(self._firewalls.frontends)
        }
        if unready:
            present = [service for service in snapshot.services if service.key not in unready]
            made = desired(
                evolve(snapshot, services=present),
                config,
                live=live,
                excluded=excluded,
                pinned=pinned,
                groups=self._groups,
            )
        self._groups = made.groups
        if not made.tree.get("frontends"):  # `_ends_all` has the last word on that
            made = evolve(made, tree={**made.tree, "allow_empty": True})
        return _Turn(
            config=config,
            snapshot=snapshot,
            services=services,
            live=live,
            desired=made,
            after={read.service: read for read in fragments(made.tree).values()},
            unready=unready,
        )

    def _program(self, turn: _Turn, *, due: bool) -> Result:
        """Push what is desired to the firewalls that do not have it. `due`: also what was pushed before."""
        made, tree = turn.desired, turn.desired.tree
        outdated = self._firewalls.outdated(tree)
        empty = (_EMPTY,) if outdated and self._ends_all(turn) else ()
        self._remark(made, *empty)
        if made.violations or empty:
            public = [text for text in (*made.violations, *empty) if not text.startswith("Service ")]
            message = "; ".join((*made.violations, *empty))
            return Result(code=ExitCode.SSH, message=message, reason="; ".join(public))
        self._firewalls.settle(tree)
        if not outdated or (tree == self._sent and not due):
            return self._firewalls.result
        if turn.request == self._hurt:
            return Result(code=ExitCode.SSH, message=_ROLLED_BACK, reason=_ROLLED_BACK)
        self.last_loop = time.monotonic()
        self._finalizers.add(turn.services[key] for key in turn.after if key in turn.services)
        self._sent, self._pushed = tree, True
        return self._firewalls.push_all(tree)

    def _ends_all(self, turn: _Turn) -> bool:
        """Whether it would end all that the cluster serves, and that was not meant.

        A deletion is meant: such a Service is there until its finalizer goes. One that vanished without that, or lost
        its annotations, may be a mistake.
        """
        serving = {owner for owner, live in self._firewalls.live().items() if live.frontends}
        some = any(made.frontends for made in turn.after.values())
        if turn.desired.tree.get("frontends") and (some or not serving):
            return False
        meant = {
            service.owner
            for service in turn.snapshot.services
            if service.released and (service.deleted or conditions.was_by_class(service))
        }
        return not (meant and serving <= meant)

    def _hold_culprits(self, turn: _Turn, result: Result) -> bool:
        """Hold back whatever is behind a refusal or a rollback. False: there is none, or nobody can tell."""
        if not result.rejected or self._sent != turn.desired.tree:
            return False
        changed = turn.changed
        named = _named(result, turn.after, changed)
        # Once cleared it is suspect again where nothing else is left to blame.
        if (self._base_is_new(turn) and not named) or (not changed and self._base_differs(turn)):
            _log.error("what the base says now is put aside, since it is not accepted: %s", result.message)
            self._rejected_config, self._sent = self._config, None
            return True
        if not changed:
            return False
        self._sent = None  # the same again, once they are tried again, is not what was sent
        if self._rejected_config is not None and turn.config is not self._rejected_config:
            # Without what the base says now it is not accepted either: it is tried again without the culprits.
            self._rejected_config, self._base_is_cleared = None, True
        # Of one that is in it as it is live nothing else was tried.
        made = {key: new for key, new in turn.desired.fragments.items() if key not in turn.desired.kept}
        if result.rolled_back:
            blamed = turn.asked or changed
            reason = result.reason if len(blamed) == 1 else result.public  # else it may be about another's
            reasons = dict.fromkeys(blamed, reason)
            self._holds.hold_rolled_back(turn.services, reasons, made, turn.live, asked=bool(turn.asked))
            return True
        reason = result.reason if len(changed) == 1 else result.public
        self._holds.hold(turn.services, named or dict.fromkeys(changed, reason), made, turn.live, named=bool(named))
        return True

    def _base_is_new(self, turn: _Turn) -> bool:
        """Whether the base says something else than what is live, and nothing speaks for it yet."""
        return not self._base_is_cleared and self._base_differs(turn)

    def _base_differs(self, turn: _Turn) -> bool:
        """Whether the base in the file was tried, and is not the one that is live."""
        if turn.config is not self._config:
            return False
        if self._live_config is not None:
            return turn.config is not self._live_config
        live = self._firewalls.base  # after a restart
        return bool(live) and live != memory.unowned(turn.desired.tree)

    def _settle_finalizers(self, turn: _Turn, result: Result) -> float:
        """Add those that are missing, remove those of what no firewall serves. Returns when to try that again."""
        live = self._firewalls.live({service.owner for service in turn.snapshot.services})
        settled = self._finalizers.add(service for service in turn.snapshot.services if service.owner in live)
        if result.complete:
            gone = [
                service
                for service in turn.snapshot.services
                if service.released and not self._firewalls.serving(service.owner)
            ]
            settled = self._finalizers.remove(gone) and settled
        if not settled:
            return time.monotonic() + self._finalizer_backoff.next()
        self._finalizer_backoff.reset()
        return math.inf

    def _remark(self, made: Desired, *more: str) -> None:
        """What a person should know, once."""
        texts = (*made.violations, *made.remarks, *more)
        for text in texts:
            if text not in self._remarks:
                _log.log(logging.ERROR if text in made.violations else logging.WARNING, "%s", text)
        self._remarks = texts

    def _schedule(self, turn: _Turn, result: Result, *, due: bool, retry_at: float) -> None:
        """When to look again although nothing has happened."""
        now = time.monotonic()
        troubled = bool(result.away) or not (result.live or result.rejected)
        if not troubled:
            self._backoff.reset()
            wait = RESYNC_SECONDS if result.live and not result.down else ASK_SECONDS
        elif due or self._ask_at - now > AWAY_SECONDS[1]:  # else it is near enough
            wait = self._backoff.next()
        else:
            wait = AWAY_SECONDS[1]
        # What happens in the cluster meanwhile puts nothing off.
        self._ask_at = now + wait if due else min(self._ask_at, now + wait)
        self._requeue_at = min(self._ask_at, retry_at, self._holds.next_retry)
        if self._pushed and result.live and turn.desired.mistakes and turn.changed:
            self.enqueue()  # what a Service has given up just now may be another's

    # --- what is reported of it

    def _report(self, turn: _Turn, result: Result) -> None:
        states: dict[str, int] = {}
        by_owner = self._firewalls.live({service.owner for service in turn.snapshot.services})
        for service in turn.snapshot.services:
            if not service.wants:
                self._report_released(service, result)
                continue
            status = self._status(turn, service, result, by_owner.get(service.owner))
            states[status.state.value.lower()] = states.get(status.state.value.lower(), 0) + 1
            self._reporter.report(service, status)
        self._reporter.forget({service.uid for service in turn.snapshot.services})
        self.states = states
        aside = self._rejected_config is not None
        self._complete = result.complete and not len(self._holds) and not turn.desired.mistakes and not aside

    def _report_unknown(self, snapshot: Snapshot) -> None:
        """No firewall tells what it has: what is reported of Services stays, but for new ones."""
        self._complete = False
        message = self._firewalls.result.message
        if (message,) != self._remarks:
            _log.warning("no firewall tells what it has: %s", message)
        self._remarks = (message,)
        for service in snapshot.services:
            if service.wants and not conditions.has_any(service):
                away = self._firewalls.public_away
                self._reporter.report(service, ServiceStatus(state=State.WAITING, message=away))

    def _report_released(self, service: Service, result: Result) -> None:
        """Of one that asks for nothing any more."""
        if service.released and not result.complete:
            why = self._firewalls.public_away or result.public
            until = "it is deleted once" if service.deleted else "it is served until"
            end = "no firewall serves it any more" if service.deleted else "a firewall takes the change"
            self._reporter.report(service, ServiceStatus(state=State.WAITING, message=f"{until} {end}: {why}"))
        elif not service.deleted and (service.has_old_status or conditions.has_any(service)):
            self._reporter.report(service, None)

    def _status(self, turn: _Turn, service: Service, result: Result, live: Fragment | None) -> ServiceStatus:
        """`live`: what it has on the firewalls now."""
        names = tuple(sorted(live.frontends)) if live else ()
        hosts = (host for host, _, _ in live.binds if host not in WILDCARDS) if live else ()
        addresses = tuple(dict.fromkeys(hosts))
        goes_on = "; what was live before goes on" if live else ""

        def status(state: State, message: str) -> ServiceStatus:
            return ServiceStatus(state=state, message=message, frontends=names, addresses=addresses)

        key, after = service.key, turn.after.get(service.key)
        if hold := self._holds.get(key):
            return status(hold.state, hold.message.removesuffix(goes_on) + goes_on)
        if mistakes := turn.desired.mistakes.get(key):
            return status(State.MISTAKE, "; ".join(mistake.text for mistake in mistakes) + goes_on)
        if key in turn.unready:
            return status(State.WAITING, turn.unready[key])
        if after is None or live != after:
            return status(State.WAITING, (self._firewalls.public_away or result.public) + goes_on)
        if lacking := self._firewalls.lacking(service.owner, after):
            return status(State.WAITING, f"{lacking}; live on the others" if result.live else lacking)
        down = [f"{name} is {result.down[name]}" for name in names if name in result.down]
        remarks = turn.desired.fragments[key].remarks if key in turn.desired.fragments else ()
        return status(State.DEGRADED if down or remarks else State.LIVE, "; ".join([*down, *remarks]))


def _fragments_of(snapshot: Snapshot, config: Config) -> Callable[[Service], Fragment | None]:
    """What a Service asks for, by the nodes and endpoints of now."""
    view, layout = View(snapshot.nodes, snapshot.slices), config.base.layout(config.bind)
    return lambda service: fragment(service, view, layout)[0]


def _named(result: Result, after: Mapping[Key, Fragment], changed: list[Key]) -> dict[Key, str]:
    """Whose parts of the document were refused, and why each; {} where that is not known of all."""
    owners = {
        (kind, name): key
        for key, made in after.items()
        for kind, names in (("frontend", made.frontends), ("backend", made.backends), ("server", made.backends))
        for name in names
    }
    reasons: dict[Key, list[str]] = {}
    for part in result.refused:
        key = owners.get((part.kind, part.name))
        if key is None or key not in changed:
            return {}
        reasons.setdefault(key, []).append(part.reason)
    return {key: "; ".join(dict.fromkeys(said)) for key, said in reasons.items()}
