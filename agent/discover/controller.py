"""`agent discover --watch`: the firewalls are kept in step with the cluster.

    events -> debounce -> what is wanted -> (nothing new) | push -> what became of it -> conditions, Events

One thread decides; others watch, elect and report. A Service whose change the firewall refuses is found and held
back, as it was live last, and the others go on. Nothing is pushed that the firewalls have already.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from agent.desired.addresses import WILDCARDS
from agent.discover import conditions
from agent.discover.annotations import Mistake
from agent.discover.election import Election
from agent.discover.finalizers import Finalizers
from agent.discover.firewalls import Firewalls, Verdict
from agent.discover.fragments import Before, Fragment, addresses_of, disjoint, fragment, normalized, skeleton
from agent.discover.objects import Key, Service
from agent.discover.pools import View
from agent.discover.reflector import Backoff
from agent.discover.reports import Reporter
from agent.discover.service_status import ServiceStatus, told
from agent.discover.sources import Sources
from agent.discover.state import Config, Snapshot, Wanted, document, restore_all, wanted
from agent.errors import ExitCode

QUIET_SECONDS, PATIENCE_SECONDS = 0.1, 1.0  # events come in bursts: a rollout, a node with all its endpoints
ASK_SECONDS = 30.0  # while not all is live: the agent there tries again by itself
FINALIZER_RETRY_SECONDS = (2.0, 60.0)  # after a finalizer that could not be written: at first, and at most
AWAY_SECONDS = 10.0  # a firewall that is away is asked again, at most
RESYNC_SECONDS = 600.0
HELD_SECONDS = (5.0, 300.0)  # after which what was refused is tried again as it is: at first, and at most
ROLLED_BACK_SECONDS = 1800.0  # where nodes alone have changed, and it hurt
FRESH_SECONDS = 10.0  # who begins to lead has read the cluster within that time

_ROLLED_BACK = "it hurt when it was pushed last, and nothing but nodes has changed since: nothing is pushed"
_EMPTY = "no frontend is left, and all service would end: nothing is pushed"

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class Held:
    """What was refused of a Service, why, and until when (monotonic seconds) it is not tried again.

    `level`: what was refused of it (`fragments.Found`): that, and what comes before it, is not tried. `fragment`: what
    it would have added to the desired state; None: not known. Another Service, or (where it was refused, and not rolled
    back) another fragment of it is tried at once: a pod that has moved makes one.
    """

    service: Service
    fragment: Fragment | None = None
    level: int = 0
    state: str
    message: str
    until: float


class Controller:
    """Decides. `wake` tells it that something has changed."""

    def __init__(
        self,
        *,
        sources: Sources,
        terms: Callable[[], Config],
        firewalls: Firewalls,
        election: Callable[[Callable[[], None]], Election],
        reporter: Reporter,
        finalizers: Finalizers,
        end: threading.Event,
    ) -> None:
        self._sources, self._read_terms, self._firewalls = sources, terms, firewalls
        self._terms = terms()
        self._reporter, self._finalizers, self._end = reporter, finalizers, end
        self._dirty = threading.Event()
        self._last_event = 0.0
        self.election = election(self.wake)
        self._threads = [*(one.thread for one in sources.all), self.election.thread, reporter.thread]
        self._file = self._terms  # as they were read last
        self._live_terms: Config | None = None  # those of what is live
        self._rolled_back: tuple[Config, dict[Key, tuple[Any, ...]]] | None = None
        self._term = 0  # of office; 0: not begun
        self._live: Mapping[Key, Fragment] = {}  # what the firewalls serve, as far as is known
        self._good: dict[Key, Mapping[str, str]] = {}  # the annotations it is made of
        self._sent: Mapping[str, Any] | None = None  # what they were handed last, whatever became of it
        self._held: dict[Key, Held] = {}
        self._unready: dict[Key, str] = {}  # new ones without anybody behind them, and why
        self._retry_backoff: dict[Key, Backoff] = {}  # with those that were refused
        self._finalizer_backoff = Backoff(first=FINALIZER_RETRY_SECONDS[0], most=FINALIZER_RETRY_SECONDS[1])
        self._unclaimed_backends: frozenset[str] = frozenset()  # on the firewalls: of Services that have vanished?
        self._live_requests: dict[Key, tuple[Any, ...]] = {}  # what each asked for that is live
        self._backoff = Backoff(first=1.0, most=AWAY_SECONDS)
        self._said: tuple[str, ...] = ()
        self._begin_at = 0.0  # when to try (again) to begin
        self._at = 0.0  # when to look again although nothing is heard
        self.last_loop = time.monotonic()
        self.states: dict[str, int] = {}
        self._complete = False

    @property
    def dead(self) -> list[threading.Thread]:
        """Threads that should run, and do not."""
        return [thread for thread in self._threads if not thread.is_alive()]

    @property
    def in_step(self) -> bool:
        """Whether all is live everywhere as it is asked for, and what is asked for is known."""
        return self._complete and not self._sources.stalled

    def wake(self) -> None:
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
                raise RuntimeError(f"{', '.join(one.name for one in dead)} has ended")
            heard = self._wait()
            if self._end.is_set():
                return
            self.look(heard=heard)

    def look(self, *, heard: bool) -> None:
        """Where something was heard of, or it is time: a turn."""
        if not self.election.leads:
            self._term, self._complete, self._begin_at, self._at = 0, False, 0.0, 0.0
            self._reporter.clear()
        elif self._sources.synced and (heard or time.monotonic() >= self._at or self._read_terms() is not self._file):
            self._turn()

    def _wait(self) -> bool:
        """Until something has changed and it is quiet again (True), or it is time to look; 20 s at most."""
        begins = self._begin_at if self.election.leads and self._sources.synced else math.inf
        wait = (self._at if self._term else begins) - time.monotonic()
        self._dirty.wait(min(max(0.0, wait), 20.0))
        if not self._dirty.is_set():
            return False
        patience = time.monotonic() + PATIENCE_SECONDS
        while (now := time.monotonic()) < min(self._last_event + QUIET_SECONDS, patience) and not self._end.is_set():
            self._end.wait(min(self._last_event + QUIET_SECONDS, patience) - now)
        self._dirty.clear()
        return True

    # --- a turn

    def _turn(self) -> None:
        now = time.monotonic()
        begins = self._term != self.election.term  # new, or lost and had again while we were at something
        if begins:
            if now < self._begin_at:
                return
            self._firewalls.ask()
            if self._firewalls.servers is not None and not self._sources.fresh(FRESH_SECONDS):
                self._begin_at = now + 1.0  # it wakes us when it has been read
                return
        snapshot = self._sources.now()
        self._look_at_base()
        if begins and not self._begin(snapshot):
            return
        asked, terms = begins or now >= self._at, self._terms
        if asked and not begins:
            self._firewalls.ask()
            self._remember(snapshot)
        due = self._release(snapshot)
        found = self._wanted(snapshot)
        if due and (found.violations or not self._rehearsed(found, due, snapshot)):
            later = time.monotonic() + ASK_SECONDS  # not at once again: nobody could be asked
            self._held |= {
                key: evolve(held, until=later)
                for key, held in due.items()
                if found.violations and key not in self._held
            }
            found = self._wanted(snapshot)
        tree = self._document(found.fragments)
        self._firewalls.knows(tree)
        pushed = False
        empty = (_EMPTY,) if self._firewalls.outdated(tree) and self._ends_all(found, tree, snapshot) else ()
        self._remark(found, *empty)
        if found.violations or empty:
            why = (*found.violations, *empty)
            public = [text for text in why if not text.startswith("Service ")]  # of others, and of the base
            verdict = Verdict(code=ExitCode.SSH, message="; ".join(why), reason="; ".join(public))
        elif not self._firewalls.outdated(tree) or (tree == self._sent and not asked):
            # Nothing new for anybody who is there; or it is not yet time to try again.
            verdict = self._settle(self._firewalls.verdict, tree, found, snapshot, search=asked)
        elif self._hurts(snapshot):
            verdict = Verdict(code=ExitCode.SSH, message=_ROLLED_BACK, reason=_ROLLED_BACK)
        else:
            pushed = True
            verdict = self._settle(self._push(tree, found, snapshot), tree, found, snapshot, search=True)
            if verdict.live and found.mistakes:
                self.wake()  # what a Service has given up just now may be another's
        if self._terms is not terms:  # the base was put aside: what was wanted is another thing now
            self.wake()
        settled = self._finalizers.add(service for service in snapshot.services if service.key in self._live)
        if verdict.complete:  # no firewall serves them any more
            gone = [service for service in snapshot.services if service.key not in self._live]
            settled = self._finalizers.remove(gone) and settled
        self._report(snapshot, found, verdict)
        if asked or pushed:
            before = self._at
            self._plan(verdict)
            # A push is no answer of those that were not pushed to: they are asked when it was time for that.
            self._at = self._at if asked else min(before, self._at)
        self._at = min(self._at, *(one.until for one in self._held.values()), math.inf)
        if settled:
            self._finalizer_backoff.reset()
        else:
            self._at = min(self._at, time.monotonic() + self._finalizer_backoff.next())

    def _ends_all(self, found: Wanted, tree: Mapping[str, Any], snapshot: Snapshot) -> bool:
        """Whether it would end all that the cluster serves, and that was not meant.

        A deletion is meant: such a Service is there until its finalizer goes. One that vanished without that, or lost
        its annotations, may be a mistake.
        """
        some = any(fragment.frontends for fragment in found.fragments.values())
        serving = {key for key, live in self._live.items() if live.frontends}
        if tree.get("frontends") and (some or not (serving or self._unclaimed_backends)):
            return False
        meant = {service.key for service in snapshot.services if service.released and _is_intended(service)}
        return not (meant and serving <= meant and not self._unclaimed_backends)

    def _look_at_base(self) -> None:
        """A base that hurt is put aside until its file changes again."""
        terms = self._read_terms()
        if terms is self._file:
            return
        self._file = self._terms = terms
        for key, held in list(self._held.items()):
            if held.state == "refused":  # perhaps for the base
                del self._held[key]

    def _document(self, fragments: Mapping[Key, Fragment]) -> dict[str, Any]:
        """As it is pushed. Without a frontend it says that this is meant: `_ends_all` has seen to that."""
        tree = document(self._terms, fragments)
        return tree if tree.get("frontends") else {**tree, "allow_empty": True}

    def _wanted(self, snapshot: Snapshot) -> Wanted:
        held = {key: (one.level, Mistake("", one.message)) for key, one in self._held.items()}
        found = wanted(snapshot, self._terms, Before(good=self._good, live=self._live), held)
        # A new Service comes a moment before its endpoints: with nobody behind it, it would be degraded at first, and a
        # reload when they come.
        self._unready = {
            key: "; ".join(made.remarks)
            for key, made in found.fragments.items()
            if key not in self._live and not any(addresses_of(made).values())
        }
        if not self._unready:
            return found
        fragments = {key: made for key, made in found.fragments.items() if key not in self._unready}
        return evolve(found, fragments=fragments, levels={key: found.levels[key] for key in fragments})

    def _begin(self, snapshot: Snapshot) -> bool:
        """Somebody else may have led, or we, before: what is live is told by the Services and the firewalls.

        False where no firewall tells: then nothing could be pushed either, and what the Services tell stays as it is.
        """
        self._reporter.clear()
        servers = self._firewalls.servers
        said = {service.key: found for service in snapshot.services if (found := told(service.status, service.uid))}
        if servers is None:
            verdict = self._firewalls.verdict
            if verdict.message not in self._said:
                _log.warning("no firewall tells what it has: %s", verdict.message)
            self._said = (verdict.message,)
            self._live, self._good, self._held = {}, {}, {}
            news = [service for service in snapshot.services if service.key not in said]
            self._report(Snapshot(services=news, nodes=snapshot.nodes, slices=snapshot.slices), Wanted(), verdict)
            self._plan(verdict)
            self._begin_at = self._at
            return False
        now = time.monotonic()
        _log.info("leading: %d Services, %d Nodes", len(snapshot.services), len(snapshot.nodes))
        self._live = restore_all(snapshot, self._terms, said, servers)
        self._good = {key: said[key].good for key in self._live if said[key].good}
        self._live_requests = {}
        # What nobody here knows of may be of Services that have vanished: see `_ends_all`.
        base = self._terms.base.tree.get("backends")
        known = frozenset(base if isinstance(base, Mapping) else ()).union(*map(_backends_of, said.values()))
        self._unclaimed_backends = frozenset(servers) - known
        # What hurt is not tried again because somebody else leads.
        self._held = {
            service.key: Held(
                service=service,
                level=0,
                state=before.state,
                message=before.message,
                until=now + ROLLED_BACK_SECONDS if before.tried == before.good else math.inf,
            )
            for service in snapshot.services
            if (before := said.get(service.key))
            and before.state == "rolled_back"
            and before.tried == service.annotations
        }
        self._term, self._sent, self._at, self._rolled_back = self.election.term, None, now, None
        return True

    def _remember(self, snapshot: Snapshot) -> None:
        """Of a firewall that tells for the first time: what is live there alone."""
        servers = self._firewalls.servers
        said = {service.key: found for service in snapshot.services if (found := told(service.status, service.uid))}
        missing = {key: one for key, one in said.items() if key not in self._live}
        if servers is None or not missing:
            return
        for key, one in restore_all(snapshot, self._terms, missing, servers).items():
            if disjoint(one, self._live.values()):
                self._live = {**self._live, key: one}
                self._good.setdefault(key, said[key].good or {})

    def _release(self, snapshot: Snapshot) -> dict[Key, Held]:
        """Whoever has changed is tried again; who has waited long enough too, but not on the firewalls at first."""
        now, services = time.monotonic(), {service.key: service for service in snapshot.services}
        due: dict[Key, Held] = {}
        if not self._held:
            return due
        view, ground = View(snapshot.nodes, snapshot.slices), self._terms.base.ground(self._terms.bind)

        def changed(held: Held, service: Service | None) -> bool:
            if service != held.service:
                return True
            if service is None or held.state != "refused" or held.fragment is None or held.level > 1:
                return False
            annotations = service.annotations if held.level == 0 else self._good.get(service.key, {})
            made, _ = fragment(evolve(service, annotations=annotations), view, ground)
            return made is None or made.document != held.fragment.document

        for key, held in list(self._held.items()):
            if changed(held, services.get(key)):
                del self._held[key]
            elif now >= held.until:
                due[key] = self._held.pop(key)
        return due

    def _rehearsed(self, found: Wanted, due: Mapping[Key, Held], snapshot: Snapshot) -> bool:
        """Whether the firewalls would take those that were refused before; who is not taken is held again."""
        culprits = self._culprits(found, [key for key in due if key in found.fragments])
        if culprits is None:  # nobody can tell now
            later = time.monotonic() + ASK_SECONDS
            self._held |= {key: evolve(one, until=later) for key, one in due.items()}
            return False
        self._hold(culprits, found, snapshot)
        return not culprits

    def _remark(self, found: Wanted, *more: str) -> None:
        """What a person should know, once."""
        said = (*found.violations, *found.remarks, *more)
        for one in said:
            if one not in self._said:
                _log.log(logging.ERROR if one in found.violations else logging.WARNING, "%s", one)
        self._said = said

    def _push(self, tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot) -> Verdict:
        self.last_loop = time.monotonic()
        if self._term != self.election.term or not self.election.leads:  # it was lost while we were at it
            return Verdict(code=ExitCode.SSH, message="another replica leads")
        self._finalizers.add(service for service in snapshot.services if service.key in found.fragments)
        if self._term != self.election.term or not self.election.leads:  # that took its time
            return Verdict(code=ExitCode.SSH, message="another replica leads")
        self._sent = tree
        return self._firewalls.push_all(tree)

    # --- what became of it

    def _settle(
        self, verdict: Verdict, tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot, *, search: bool
    ) -> Verdict:
        """It is live; or whoever is behind its not being live is held back."""
        if verdict.live:
            self._took(tree, found, snapshot)
            return verdict
        suspects = self._suspects(found, tree)
        rolled_back = verdict.code is ExitCode.ROLLED_BACK
        if not search or not verdict.refused or not (suspects or (rolled_back and self._base_is_new())):
            return verdict
        if rolled_back and self._live_terms is None:  # what the last one had as its base nobody knows: nobody is blamed
            self._rolled_back = (self._terms, _requests_of(snapshot))
            return verdict
        return self._isolate(verdict, suspects, found, snapshot)

    def _base_is_new(self) -> bool:
        return self._live_terms is not None and self._live_terms is not self._terms

    def _hurts(self, snapshot: Snapshot) -> bool:
        """Whether it is what hurt, and nobody knows why, but for its nodes."""
        return self._rolled_back is not None and self._rolled_back == (self._terms, _requests_of(snapshot))

    def _asks_for_something_else(self, service: Service) -> bool:
        """Whether it asks for something else than what is live of it: its nodes alone are no wish of its own."""
        known = self._live_requests.get(service.key)
        return self._good.get(service.key) != service.annotations if known is None else known != service.requests

    def _suspects(self, found: Wanted, tree: Mapping[str, Any]) -> list[Key]:
        return [key for key, one in found.fragments.items() if not self._is_live(key, one, tree)]

    def _is_live(self, key: Key, fragment: Fragment, tree: Mapping[str, Any]) -> bool:
        before = self._live.get(key)
        return before is not None and before.document == normalized(fragment, tree).document

    def _took(self, tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot) -> None:
        self._live = {key: normalized(one, tree) for key, one in found.fragments.items()}
        for key in self._retry_backoff.keys() - self._held.keys():
            del self._retry_backoff[key]
        self._sent, self._live_terms, self._rolled_back = tree, self._terms, None
        self._unclaimed_backends = frozenset()
        for service in snapshot.services:
            if found.levels.get(service.key) == 0:
                self._good[service.key] = dict(service.annotations)
                self._live_requests[service.key] = service.requests
        for key in self._good.keys() - {service.key for service in snapshot.services if service.wants}:
            del self._good[key]
            self._live_requests.pop(key, None)

    def _isolate(self, verdict: Verdict, suspects: list[Key], found: Wanted, snapshot: Snapshot) -> Verdict:
        """Who of those that changed is behind it? The others go on.

        A refusal touches nothing, and is looked into by rehearsals, which do not either. After a rollback, where
        something was touched, the base is put aside if it has changed; else whoever asks for something else than
        before is held back; where nobody does, all are.
        """
        _log.warning("looking for who is refused, of %d Services that changed", len(suspects))
        aside = False
        for _ in range(3):
            if verdict.code is ExitCode.ROLLED_BACK and self._base_is_new() and not aside:
                assert self._live_terms is not None
                _log.error("what the base says now is put aside, since it hurt: %s", verdict.message)
                aside, self._terms = True, self._live_terms
            elif verdict.code is ExitCode.ROLLED_BACK:
                self._terms = self._file  # without it it hurts as well
                services = {service.key: service for service in snapshot.services}
                blamed = [key for key in suspects if self._asks_for_something_else(services[key])] or suspects
                # Of several it is not known which one it was: nobody is shown what may be another's.
                shown = verdict if len(blamed) == 1 else evolve(verdict, reason=verdict.public)
                self._hold(dict.fromkeys(blamed, shown), found, snapshot)
            else:
                culprits = self._blamed(verdict, suspects, found) or self._culprits(found, suspects)
                if not culprits:  # the base, or nobody can tell
                    return verdict
                if unknown := self._unknown(culprits, snapshot):
                    # They serve something that nobody can write down: without them it would be taken away.
                    names = ", ".join("/".join(key) for key in unknown)
                    self._remark(found, f"{names} is refused, and what is live of it is not known: nothing is pushed")
                    return verdict
                self._hold(culprits, found, snapshot)
            found = self._wanted(snapshot)
            tree = self._document(found.fragments)
            if found.violations or self._ends_all(found, tree, snapshot):
                return verdict
            verdict = self._push(tree, found, snapshot)
            if verdict.live:
                self._took(tree, found, snapshot)
            suspects = self._suspects(found, tree)
            if not verdict.refused or not suspects:
                break
        return verdict

    def _unknown(self, culprits: Collection[Key], snapshot: Snapshot) -> list[Key]:
        """Which of them were live once, by their own status, and have frontends there that we could not write down."""
        known = self._firewalls.servers or {}
        found = []
        for service in snapshot.services:
            if (
                service.key in culprits
                and service.key not in self._live
                and (said := told(service.status, service.uid))
            ):
                ours = {name for live in self._live.values() for name in live.backends}
                found += [service.key] if any(name in known and name not in ours for name in said.frontends) else []
        return found

    @staticmethod
    def _blamed(verdict: Verdict, suspects: Collection[Key], found: Wanted) -> dict[Key, Verdict]:
        """Whose parts of the document were refused, and what is said of each; {} where that is not known of all."""
        owners = {
            (kind, name): key
            for key, made in found.fragments.items()
            for kind, names in (("frontend", made.frontends), ("backend", made.backends), ("server", made.backends))
            for name in names
        }
        reasons: dict[Key, list[str]] = {}
        for part in verdict.parts:
            key = owners.get((part.kind, part.name))
            if key is None or key not in suspects:
                return {}
            reasons.setdefault(key, []).append(part.reason)
        return {key: evolve(verdict, reason="; ".join(dict.fromkeys(said))) for key, said in reasons.items()}

    def _culprits(self, found: Wanted, suspects: Sequence[Key]) -> dict[Key, Verdict] | None:
        """Who is not taken, and what is said of each; by halves where no answer names them. All in rehearsals.

        None where nobody can tell.
        """
        tree = self._document(found.fragments)
        good: dict[Key, Fragment] = {}
        for key, one in found.fragments.items():
            if key not in suspects and self._is_live(key, one, tree):
                good[key] = one
            elif key in self._live:
                good[key] = self._live[key]
        culprits: dict[Key, Verdict] = {}
        lost = False

        def rehearse(more: Mapping[Key, Fragment]) -> Verdict:
            nonlocal lost
            self.last_loop = time.monotonic()
            if self._end.is_set() or not self.election.leads:
                verdict = Verdict(code=ExitCode.SSH)
            else:
                verdict = self._firewalls.rehearse(self._document({**good, **more}))
            lost = lost or not (verdict.live or verdict.refused)
            return verdict

        def attempt(batch: Sequence[Key], known: Verdict | None) -> None:
            if lost or not batch:
                return
            trial = {key: found.fragments[key] for key in batch}
            verdict = known or rehearse(trial)
            blamed = self._blamed(verdict, batch, found) if verdict.refused else {}
            if verdict.live:
                good.update(trial)
            elif blamed:
                culprits.update(blamed)
                attempt([key for key in batch if key not in blamed], None)
            elif verdict.refused and len(batch) == 1:
                culprits[batch[0]] = verdict
            elif verdict.refused:
                half = len(batch) // 2
                attempt(batch[:half], None)
                attempt(batch[half:], None)

        if good and rehearse({}).refused:
            return None  # without any of them it is refused as well: it is the base, or what was live already
        attempt(suspects, None)
        return None if lost else culprits

    def _hold(self, culprits: Mapping[Key, Verdict], found: Wanted, snapshot: Snapshot) -> None:
        now, services = time.monotonic(), {service.key: service for service in snapshot.services}
        for key, verdict in culprits.items():
            rolled_back = verdict.code is ExitCode.ROLLED_BACK
            first, most = HELD_SECONDS
            until = now + self._retry_backoff.setdefault(key, Backoff(first=first, most=most)).next()
            if rolled_back:  # until it asks for something else; where only nodes have changed, for long
                until = math.inf if self._asks_for_something_else(services[key]) else now + ROLLED_BACK_SECONDS
            state = "rolled_back" if rolled_back else "refused"
            level = found.levels.get(key, 0)
            self._held[key] = Held(
                service=services[key],
                fragment=found.fragments.get(key),
                level=level,
                state=state,
                message=verdict.reason or verdict.message,
                until=until,
            )
            _log.warning("held back: Service %s/%s: %s", *key, verdict.reason or verdict.message)

    # --- what is told of it

    def _report(self, snapshot: Snapshot, found: Wanted, verdict: Verdict) -> None:
        states: dict[str, int] = {}
        tree = self._document(found.fragments)
        for service in snapshot.services:
            if not service.wants:
                self._report_released(service, verdict)
                continue
            what = self._told(service, found, verdict, tree)
            states[what.state] = states.get(what.state, 0) + 1
            self._reporter.report(service, what)
        self._reporter.forget({service.uid for service in snapshot.services})
        self.states = states
        aside = self._terms is not self._file
        self._complete = verdict.complete and not self._held and not found.mistakes and not aside

    def _report_released(self, service: Service, verdict: Verdict) -> None:
        """Of one that asks for nothing any more."""
        if service.released and not verdict.complete:
            why = self._firewalls.public_away or verdict.public
            until = "it is deleted once" if service.deleted else "it is served until"
            end = "no firewall serves it any more" if service.deleted else "a firewall takes the change"
            said = told(service.status, service.uid) or ServiceStatus(state="waiting")
            self._reporter.report(
                service, evolve(said, state="waiting", message=f"{until} {end}: {why}", uid=service.uid)
            )
        elif not service.deleted and (service.status or conditions.has_any(service)):
            self._reporter.report(service, None)

    def _told(self, service: Service, found: Wanted, verdict: Verdict, tree: Mapping[str, Any]) -> ServiceStatus:
        live, fragment = self._live.get(service.key), found.fragments.get(service.key)
        names = tuple(sorted(live.frontends)) if live else ()
        goes_on = "; what was live before goes on" if live else ""

        def tell(state: str, message: str, **more: Any) -> ServiceStatus:
            good: Mapping[str, str] = self._good.get(service.key, {})
            form: Mapping[str, Any] = skeleton(live) if live else {}
            if not live and (said := told(service.status, service.uid)):  # what was live on a firewall that is away
                good, form = said.good, said.live
            return ServiceStatus(
                state=state,
                message=message,
                frontends=names,
                good=good,
                live=form,
                uid=service.uid,
                addresses=_addresses(live) if live else (),
                **more,
            )

        if held := self._held.get(service.key):
            tried = {"tried": dict(service.annotations)} if held.state == "rolled_back" else {}
            message = held.message if held.message.endswith(goes_on) else held.message + goes_on
            return tell(held.state, message, **tried)
        if mistakes := found.mistakes.get(service.key):
            return tell("mistake", "; ".join(mistake.text for mistake in mistakes) + goes_on)
        if service.key in self._unready:
            return tell("waiting", self._unready[service.key])
        if fragment is None or not self._is_live(service.key, fragment, tree):
            # Of one that is to blame it was told above.
            return tell("waiting", (self._firewalls.public_away or verdict.public) + goes_on)
        if outdated := self._firewalls.without(fragment.backends, tree):
            return tell("waiting", f"{outdated}; live on the others" if verdict.live else outdated)
        down = [f"{name} is {verdict.down[name]}" for name in names if name in verdict.down]
        remarks = list(fragment.remarks) if fragment else []
        return tell("degraded" if down or remarks else "live", "; ".join([*down, *remarks]))

    def _plan(self, verdict: Verdict) -> None:
        """When to ask again."""
        now = time.monotonic()
        if verdict.away or (not verdict.live and not verdict.refused):
            self._at = now + self._backoff.next()
        else:
            self._backoff.reset()
            self._at = now + (RESYNC_SECONDS if verdict.live and not verdict.down else ASK_SECONDS)


def _requests_of(snapshot: Snapshot) -> dict[Key, tuple[Any, ...]]:
    """What Services ask for."""
    return {service.key: service.requests for service in snapshot.services if service.wants}


def _addresses(live: Fragment) -> tuple[str, ...]:
    """Where clients reach it. A wildcard is no address."""
    return tuple(dict.fromkeys(host for host, _ in live.binds if host not in WILDCARDS))


def _is_intended(service: Service) -> bool:
    """Whether a Service that asks for nothing any more is let go on purpose: deleted, or of another class by now.

    Annotations that are gone may be a mistake: whoever wiped those of all has not meant to end all service.
    """
    said = told(service.status, service.uid)
    return service.deleted or (said is not None and bool(said.live) and "expose" not in said.good)


def _backends_of(said: ServiceStatus) -> frozenset[str]:
    """What was live of a Service, by its own status."""
    backends = said.live.get("backends")
    return frozenset((*said.frontends, *(backends if isinstance(backends, Mapping) else ())))
