"""`agent discover --watch`: the firewalls are kept in step with the cluster.

    events -> debounce -> what is wanted -> (nothing new) | push -> what became of it -> Events, annotations

One thread decides; others watch, elect and report. A Service whose change the firewall refuses is found and held
back, as it was live last, and the others go on. Nothing is pushed that the firewalls have already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from agent.errors import ExitCode
from agent.remote.cluster.annotations import Mistake
from agent.remote.cluster.election import Election
from agent.remote.cluster.firewalls import Firewalls, Verdict
from agent.remote.cluster.fragments import Fragment, flat
from agent.remote.cluster.objects import Key, Node, Service, Slice
from agent.remote.cluster.reflector import Backoff, Reflector
from agent.remote.cluster.reports import Reporter, Told, told
from agent.remote.cluster.state import Snapshot, Terms, Wanted, document, wanted

QUIET_SECONDS, PATIENCE_SECONDS = 0.1, 1.0  # events come in bursts: a rollout, a node with all its endpoints
ASK_SECONDS = 30.0  # while not all is live: the agent there tries again by itself
RESYNC_SECONDS = 600.0
HELD_SECONDS = 300.0  # a Service that was refused is tried again, although nothing about it has changed

_TOUCHED_NOTHING = (ExitCode.REFUSED, ExitCode.INVALID)
_UNREACHED = (ExitCode.SSH, ExitCode.NO_ANSWER, ExitCode.POLICY, ExitCode.BUG, ExitCode.USAGE)

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class Sources:
    """What is watched."""

    services: Sequence[Reflector[Service]]
    nodes: Reflector[Node]
    slices: Sequence[Reflector[Slice]]

    @property
    def all(self) -> tuple[Reflector[Any], ...]:
        """Each of them."""
        return (*self.services, self.nodes, *self.slices)

    @property
    def synced(self) -> bool:
        """Whether all have been read once: half of a cluster would take the other half's frontends away."""
        return all(one.synced.is_set() for one in self.all)

    def now(self) -> Snapshot:
        """What is there."""
        return Snapshot(
            services=[found for one in self.services for found in one.objects()],
            nodes=self.nodes.objects(),
            slices=[found for one in self.slices for found in one.objects()],
        )


@frozen(kw_only=True)
class Held:
    """A Service that was refused as it is, why, and until when (monotonic seconds) it is not tried again."""

    service: Service
    state: str
    message: str
    until: float


class Controller:
    """Decides. `wake` tells it that something has changed."""

    def __init__(
        self,
        *,
        sources: Sources,
        terms: Callable[[], Terms],
        firewalls: Firewalls,
        election: Callable[[Callable[[], None]], Election],
        reporter: Reporter,
        end: threading.Event,
    ) -> None:
        self._sources, self._read_terms, self._firewalls = sources, terms, firewalls
        self._terms = terms()
        self._reporter, self._end = reporter, end
        self._dirty = threading.Event()
        self._last_event = 0.0
        self.election = election(self.wake)
        self._threads = [*(one.thread for one in sources.all), self.election.thread, reporter.thread]
        self._leads = False
        self._live: Mapping[Key, Fragment] = {}  # what the firewalls serve, as far as is known
        self._sent: Mapping[str, Any] | None = None  # what they were handed last, whatever became of it
        self._good: dict[Key, Mapping[str, str]] = {}
        self._held: dict[Key, Held] = {}
        self._backoff = Backoff(first=1.0, most=60.0)
        self._said = ""
        self._at = 0.0  # when to look again although nothing is heard
        self.turned = time.monotonic()
        self.states: dict[str, int] = {}
        self.in_step = False

    @property
    def dead(self) -> list[threading.Thread]:
        """Threads that should run, and do not."""
        return [one for one in self._threads if not one.is_alive()]

    def wake(self) -> None:
        """From any thread."""
        self._last_event = time.monotonic()
        self._dirty.set()

    def run(self) -> None:
        """Until the end."""
        for thread in self._threads:
            thread.start()
        while not self._end.is_set():
            self.turned = time.monotonic()
            if dead := self.dead:  # a defect of ours: whoever started us starts us anew
                raise RuntimeError(f"{', '.join(one.name for one in dead)} has ended")
            self._wait()
            if self._end.is_set():
                return
            if not self.election.leads:
                self._leads = self.in_step = False
                self._at = time.monotonic() + RESYNC_SECONDS
            elif self._sources.synced:
                self._turn()
            else:
                self._at = time.monotonic() + RESYNC_SECONDS

    def _wait(self) -> None:
        """Until something has changed and it is quiet again, or it is time to look; a minute at most."""
        self._dirty.wait(min(max(0.0, self._at - time.monotonic()), 20.0))
        if not self._dirty.is_set():
            return
        patience = time.monotonic() + PATIENCE_SECONDS
        while (now := time.monotonic()) < min(self._last_event + QUIET_SECONDS, patience) and not self._end.is_set():
            self._end.wait(min(self._last_event + QUIET_SECONDS, patience) - now)
        self._dirty.clear()

    # --- a turn

    def _turn(self) -> None:
        now = time.monotonic()
        snapshot, self._terms = self._sources.now(), self._read_terms()
        if not self._leads:
            self._leads = True
            self._begin(snapshot)
            now = self._at
        elif now >= self._at:
            self._firewalls.ask()
        self._release(snapshot)
        held = {key: Mistake("", one.message) for key, one in self._held.items()}
        found = wanted(snapshot, self._terms, self._good, held)
        if found.violations:
            message = "; ".join(found.violations)
            if message != self._said:
                _log.error("nothing is pushed: %s", message)
            self._said = message
            verdict = Verdict(code=ExitCode.INVALID, message=message)
            self._report(snapshot, found, verdict)
            self._at = time.monotonic() + RESYNC_SECONDS
            return
        self._said = ""
        chosen = self._chosen(found)
        tree = document(self._terms, chosen)
        if self._firewalls.have(tree):
            verdict = self._settle(self._firewalls.verdict, chosen, tree, found, snapshot)
        elif now < self._at and tree == self._sent:
            verdict = self._firewalls.verdict  # nothing new, and it is not yet time to try again
        else:
            verdict = self._settle(self._hand_over(tree), chosen, tree, found, snapshot)
        self._report(snapshot, found, verdict)
        self._plan(verdict)

    def _begin(self, snapshot: Snapshot) -> None:
        """Somebody else may have led, or we, before: what is live is told by the Services and the firewalls."""
        _log.info("leading: %d Services, %d Nodes", len(snapshot.services), len(snapshot.nodes))
        found = {one.key: told(one.status) for one in snapshot.services if one.status}
        self._good = {key: one.good for key, one in found.items() if one and one.good}
        then = [evolve(one, annotations=self._good.get(one.key, {})) for one in snapshot.services]
        fragments = wanted(evolve(snapshot, services=then), self._terms, {}).fragments
        self._live, self._held, self._sent = fragments, {}, None
        self._firewalls.ask()
        self._at = time.monotonic()

    def _release(self, snapshot: Snapshot) -> None:
        """Whoever has changed, or has waited long enough, is tried again."""
        now, services = time.monotonic(), {one.key: one for one in snapshot.services}
        for key, held in list(self._held.items()):
            if now >= held.until or services.get(key) != held.service:
                del self._held[key]

    def _chosen(self, found: Wanted) -> dict[Key, Fragment]:
        """What is wanted; of a Service that is held back without earlier annotations to go on with, what is live."""
        stays = {key: flat(self._live[key]) for key in self._held if key not in found.fragments and key in self._live}
        return {**found.fragments, **stays}

    def _settle(
        self, verdict: Verdict, chosen: dict[Key, Fragment], tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot
    ) -> Verdict:
        """It is live; or whoever is behind its not being live is held back."""
        if verdict.live:
            self._took(chosen, tree, found, snapshot)
            return verdict
        suspects = [key for key, one in chosen.items() if key not in self._held and not self._is_live(key, one)]
        if verdict.code in (*_TOUCHED_NOTHING, ExitCode.ROLLED_BACK) and suspects:
            return self._isolate(chosen, suspects, verdict, found, snapshot)
        return verdict

    def _hand_over(self, tree: Mapping[str, Any]) -> Verdict:
        self.turned = time.monotonic()
        if not self.election.leads:  # it was lost while we were at it
            return Verdict(code=ExitCode.POLICY, message="another replica leads")
        self._sent = tree
        return self._firewalls.hand_over(tree)

    def _is_live(self, key: Key, one: Fragment) -> bool:
        before = self._live.get(key)
        return before is not None and before.document == one.document

    def _took(self, chosen: Mapping[Key, Fragment], tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot) -> None:
        self._live, self._sent = dict(chosen), tree
        for one in snapshot.services:
            if one.key in chosen and one.key not in found.mistakes and one.key not in self._held:
                self._good[one.key] = dict(one.annotations)
        for key in self._good.keys() - {one.key for one in snapshot.services if one.wants}:
            del self._good[key]

    def _isolate(
        self,
        chosen: dict[Key, Fragment],
        suspects: list[Key],
        verdict: Verdict,
        found: Wanted,
        snapshot: Snapshot,
    ) -> Verdict:
        """Who of those that changed is refused: by halves, since nothing is touched by a refusal.

        After a rollback, where something was, all of them are held back.
        """
        good: dict[Key, Fragment] = {key: one for key, one in chosen.items() if key not in suspects}
        good |= {key: flat(self._live[key]) for key in suspects if key in self._live}
        _log.warning("looking for who is refused, of %d Services that changed", len(suspects))

        def attempt(batch: list[Key], known: Verdict | None) -> None:
            nonlocal verdict
            if verdict.code in _UNREACHED:
                return
            if known is None:
                known = self._hand_over(document(self._terms, {**good, **{key: chosen[key] for key in batch}}))
            if known.live:
                good.update({key: chosen[key] for key in batch})
                verdict = known
            elif known.code in _UNREACHED:
                verdict = known
            elif len(batch) == 1 or known.code is ExitCode.ROLLED_BACK:
                state = "rolled_back" if known.code is ExitCode.ROLLED_BACK else "refused"
                until = time.monotonic() + HELD_SECONDS
                services = {one.key: one for one in snapshot.services}
                for key in batch:
                    self._held[key] = Held(service=services[key], state=state, message=known.message, until=until)
                    _log.warning("held back: Service %s/%s: %s", *key, known.message)
            else:
                half = len(batch) // 2
                attempt(batch[:half], None)
                attempt(batch[half:], None)

        attempt(suspects, verdict)
        tree = document(self._terms, good)
        if verdict.code not in _UNREACHED and not self._firewalls.have(tree):
            verdict = self._hand_over(tree)
        if verdict.live:
            self._took(good, tree, found, snapshot)
        return verdict

    # --- what is told of it

    def _report(self, snapshot: Snapshot, found: Wanted, verdict: Verdict) -> None:
        states: dict[str, int] = {}
        for one in snapshot.services:
            if not one.wants:
                if one.status:
                    self._reporter.report(one, None)
                continue
            what = self._told(one, found, verdict)
            states[what.state] = states.get(what.state, 0) + 1
            self._reporter.report(one, what)
        self._reporter.forget({one.uid for one in snapshot.services})
        self.states = states
        self.in_step = verdict.live and not self._held and not found.mistakes

    def _told(self, one: Service, found: Wanted, verdict: Verdict) -> Told:
        live, fragment = self._live.get(one.key), found.fragments.get(one.key)
        names = tuple(sorted(live.frontends)) if live else ()
        good = self._good.get(one.key, {})
        goes_on = "; what was live before goes on" if live else ""
        if held := self._held.get(one.key):
            return Told(state=held.state, message=held.message + goes_on, frontends=names, good=good)
        if mistakes := found.mistakes.get(one.key):
            message = "; ".join(mistake.text for mistake in mistakes) + goes_on
            return Told(state="mistake", message=message, frontends=names, good=good)
        if fragment is not None and not self._is_live(one.key, fragment):
            refused = verdict.code not in _UNREACHED and not verdict.live
            state = "refused" if refused else "waiting"
            return Told(state=state, message=verdict.message + goes_on, frontends=names, good=good)
        down = [f"{name} is {verdict.down[name]}" for name in names if name in verdict.down]
        remarks = list(fragment.remarks) if fragment else []
        state = "degraded" if down or remarks else "live"
        return Told(state=state, message="; ".join([*down, *remarks]), frontends=names, good=good)

    def _plan(self, verdict: Verdict) -> None:
        """When to look again."""
        now = time.monotonic()
        if verdict.code in _UNREACHED:
            self._at = now + self._backoff.next()
            return
        self._backoff.reset()
        self._at = now + (RESYNC_SECONDS if verdict.live and not verdict.down else ASK_SECONDS)
        if self._held:
            self._at = min(self._at, *(one.until for one in self._held.values()))
