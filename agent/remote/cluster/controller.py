"""`agent discover --watch`: the firewalls are kept in step with the cluster.

    events -> debounce -> what is wanted -> (nothing new) | push -> what became of it -> Events, annotations

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

from attrs import frozen

from agent.errors import ExitCode
from agent.remote.cluster.annotations import Mistake
from agent.remote.cluster.election import Election
from agent.remote.cluster.firewalls import Firewalls, Verdict
from agent.remote.cluster.fragments import Before, Fragment
from agent.remote.cluster.objects import Key, Node, Service, Slice
from agent.remote.cluster.reflector import Backoff, Reflector
from agent.remote.cluster.reports import Reporter, Told, told
from agent.remote.cluster.state import Snapshot, Terms, Wanted, document, lives, wanted

QUIET_SECONDS, PATIENCE_SECONDS = 0.1, 1.0  # events come in bursts: a rollout, a node with all its endpoints
ASK_SECONDS = 30.0  # while not all is live: the agent there tries again by itself
RESYNC_SECONDS = 600.0
HELD_SECONDS = 300.0  # a Service that was refused is tried again, although nothing about it has changed
HURT_SECONDS = 3600.0  # where nodes alone have changed, and it hurt
FRESH_SECONDS = 10.0  # who begins to lead has read the cluster within that time
DEAF_SECONDS = 60.0  # without a word of a kind, nobody can say that all is in step

_EMPTY = "no frontend is left, and all service would end: nothing is pushed"

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

    def fresh(self, seconds: float) -> bool:
        """Whether all have been read within so many seconds; those that were not are read anew, in time."""
        stale = [one for one in self.all if not one.listed_within(seconds)]
        for one in stale:
            one.anew()
        return not stale

    @property
    def deaf(self) -> list[str]:
        """Kinds that cannot be watched, for a while now."""
        return sorted({one.kind for one in self.all if one.failing_for() > DEAF_SECONDS})

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
        self._term = 0  # of office; 0: not begun
        self._live: Mapping[Key, Fragment] = {}  # what the firewalls serve, as far as is known
        self._good: dict[Key, Mapping[str, str]] = {}  # the annotations it is made of
        self._sent: Mapping[str, Any] | None = None  # what they were handed last, whatever became of it
        self._held: dict[Key, Held] = {}
        self._backoff = Backoff(first=1.0, most=60.0)
        self._said: tuple[str, ...] = ()
        self._begin_at = 0.0  # when to try (again) to begin
        self._at = 0.0  # when to look again although nothing is heard
        self.turned = time.monotonic()
        self.states: dict[str, int] = {}
        self._complete = False

    @property
    def dead(self) -> list[threading.Thread]:
        """Threads that should run, and do not."""
        return [one for one in self._threads if not one.is_alive()]

    @property
    def in_step(self) -> bool:
        """Whether all is live everywhere as it is asked for, and what is asked for is known."""
        return self._complete and not self._sources.deaf

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
                self._term, self._complete, self._begin_at = 0, False, 0.0
                self._reporter.clear()
                self._at = time.monotonic() + RESYNC_SECONDS
            elif self._sources.synced:
                self._turn()
            else:
                self._at = time.monotonic() + RESYNC_SECONDS

    def _wait(self) -> None:
        """Until something has changed and it is quiet again, or it is time to look; 20 s at most."""
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
        if self._term != self.election.term:  # new, or lost and had again while we were at something
            if now < self._begin_at:
                return
            if not self._sources.fresh(FRESH_SECONDS):
                self._at = now + 1.0  # it wakes us when it has been read
                return
            snapshot, self._terms = self._sources.now(), self._read_terms()
            if not self._begin(snapshot):
                return
            now = self._at
        else:
            snapshot, self._terms = self._sources.now(), self._read_terms()
            if now >= self._at:
                self._firewalls.ask()
        due = self._release(snapshot)
        found = self._wanted(snapshot)
        if due and not found.violations and not self._rehearsed(found, due, snapshot):
            found = self._wanted(snapshot)
        tree = document(self._terms, found.fragments)
        empty = () if tree.get("frontends") else (_EMPTY,)
        self._remark(found, *empty)
        if found.violations:
            verdict = Verdict(code=ExitCode.SSH, message="; ".join(found.violations))
        elif empty:
            verdict = Verdict(code=ExitCode.SSH, message=_EMPTY)
        elif self._firewalls.have(tree) or (now < self._at and tree == self._sent):
            # Nothing new; or it is not yet time to try again.
            verdict = self._settle(self._firewalls.verdict, tree, found, snapshot)
        else:
            verdict = self._settle(self._hand_over(tree), tree, found, snapshot)
            if verdict.live and found.mistakes:
                self.wake()  # what a Service has given up just now may be another's
        self._report(snapshot, found, verdict)
        self._plan(verdict)

    def _wanted(self, snapshot: Snapshot) -> Wanted:
        held = {key: Mistake("", one.message) for key, one in self._held.items()}
        return wanted(snapshot, self._terms, Before(good=self._good, live=self._live), held)

    def _begin(self, snapshot: Snapshot) -> bool:
        """Somebody else may have led, or we, before: what is live is told by the Services and the firewalls.

        False where no firewall tells: then nothing could be pushed either.
        """
        self._firewalls.ask()
        servers = self._firewalls.servers
        if servers is None:
            verdict = self._firewalls.verdict
            if verdict.message not in self._said:
                _log.warning("no firewall tells what it has: %s", verdict.message)
                self._said = (verdict.message,)
            self._live, self._good = {}, {}
            self._report(snapshot, self._wanted(snapshot), verdict)
            self._plan(verdict)
            self._begin_at = self._at
            return False
        _log.info("leading: %d Services, %d Nodes", len(snapshot.services), len(snapshot.nodes))
        said = {one.key: told(one.status, one.uid) for one in snapshot.services if one.status}
        good = {key: one.good for key, one in said.items() if one and one.good}
        self._live = lives(snapshot, self._terms, good, servers)
        self._good = {key: one for key, one in good.items() if key in self._live}
        # What hurt is not tried again because somebody else leads.
        self._held = {
            one.key: Held(service=one, state=before.state, message=before.message, until=math.inf)
            for one in snapshot.services
            if (before := said.get(one.key)) and before.state == "rolled_back" and before.tried == one.annotations
        }
        self._term, self._sent, self._at = self.election.term, None, time.monotonic()
        return True

    def _release(self, snapshot: Snapshot) -> list[Key]:
        """Whoever has changed is tried again; who has waited long enough too, but not on the firewalls at first."""
        now, services, due = time.monotonic(), {one.key: one for one in snapshot.services}, []
        for key, held in list(self._held.items()):
            if services.get(key) != held.service:
                del self._held[key]
            elif now >= held.until:
                del self._held[key]
                due.append(key)
        return due

    def _rehearsed(self, found: Wanted, due: list[Key], snapshot: Snapshot) -> bool:
        """Whether the firewalls would take those that were refused before; who is not taken is held again."""
        self.turned = time.monotonic()
        suspects = [key for key in due if key in found.fragments]
        verdict = self._firewalls.rehearse(document(self._terms, found.fragments))
        if verdict.live:
            return True
        self._hold(self._guilty(found, suspects, verdict), snapshot)
        return False

    def _remark(self, found: Wanted, *more: str) -> None:
        """What a person should know, once."""
        said = (*found.violations, *found.remarks, *more)
        for one in said:
            if one not in self._said:
                _log.log(logging.ERROR if one in found.violations else logging.WARNING, "%s", one)
        self._said = said

    def _hand_over(self, tree: Mapping[str, Any]) -> Verdict:
        self.turned = time.monotonic()
        if self._term != self.election.term or not self.election.leads:  # it was lost while we were at it
            return Verdict(code=ExitCode.SSH, message="another replica leads")
        self._sent = tree
        return self._firewalls.hand_over(tree)

    # --- what became of it

    def _settle(self, verdict: Verdict, tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot) -> Verdict:
        """It is live; or whoever is behind its not being live is held back."""
        if verdict.live:
            self._took(found.fragments, tree, found, snapshot)
            return verdict
        suspects = [key for key, one in found.fragments.items() if not self._is_live(key, one)]
        if not verdict.refused or not suspects:
            return verdict
        return self._isolate(verdict, suspects, found, snapshot)

    def _is_live(self, key: Key, one: Fragment) -> bool:
        before = self._live.get(key)
        return before is not None and before.document == one.document

    def _took(
        self, fragments: Mapping[Key, Fragment], tree: Mapping[str, Any], found: Wanted, snapshot: Snapshot
    ) -> None:
        self._live, self._sent = dict(fragments), tree
        for one in snapshot.services:
            if one.key in fragments and found.levels.get(one.key) == 0 and one.key not in self._held:
                self._good[one.key] = dict(one.annotations)
        for key in self._good.keys() - {one.key for one in snapshot.services if one.wants}:
            del self._good[key]

    def _isolate(self, verdict: Verdict, suspects: list[Key], found: Wanted, snapshot: Snapshot) -> Verdict:
        """Who of those that changed is behind it? The others go on.

        A refusal touches nothing, and is looked into by rehearsals, which do not either. After a rollback, where
        something was touched, whoever asks for something else than before is held back; where nobody does, all are.
        """
        _log.warning("looking for who is refused, of %d Services that changed", len(suspects))
        for _ in range(2):
            if verdict.code is ExitCode.ROLLED_BACK:
                services = {one.key: one for one in snapshot.services}
                asked = [key for key in suspects if self._good.get(key) != services[key].annotations]
                guilty = dict.fromkeys(asked or suspects, verdict)
            else:
                guilty = self._guilty(found, suspects, verdict)
            if not guilty:
                return verdict
            known = self._firewalls.servers or {}
            if unknown := [
                key for key in guilty if key not in self._live and not self._names(found, key).isdisjoint(known)
            ]:
                # They serve something that we cannot write down: without them it would be taken away.
                names = ", ".join("/".join(key) for key in unknown)
                self._remark(
                    found, f"Service {names} is refused, and what is live of it is not known: nothing is pushed"
                )
                return verdict
            self._hold(guilty, snapshot)
            found = self._wanted(snapshot)
            tree = document(self._terms, found.fragments)
            if found.violations or not tree.get("frontends"):
                return verdict
            verdict = self._hand_over(tree)
            if verdict.live:
                self._took(found.fragments, tree, found, snapshot)
            suspects = [key for key, one in found.fragments.items() if not self._is_live(key, one)]
            if not verdict.refused or not suspects:
                break
        return verdict

    @staticmethod
    def _names(found: Wanted, key: Key) -> set[str]:
        return set(found.fragments[key].backends) if key in found.fragments else set()

    def _guilty(self, found: Wanted, suspects: Sequence[Key], verdict: Verdict) -> dict[Key, Verdict]:
        """By halves, in rehearsals: who is not taken, and what is said of each. Empty where nobody can tell."""
        good = {key: one for key, one in found.fragments.items() if key not in suspects}
        good |= {key: self._live[key] for key in suspects if key in self._live}
        guilty: dict[Key, Verdict] = {}
        lost = False

        def attempt(batch: Sequence[Key], known: Verdict | None) -> None:
            nonlocal lost
            self.turned = time.monotonic()
            if lost or not self.election.leads:
                return
            trial = {**good, **{key: found.fragments[key] for key in batch}}
            known = known or self._firewalls.rehearse(document(self._terms, trial))
            if known.live:
                good.update(trial)
            elif not known.refused:
                lost = True
            elif len(batch) == 1:
                guilty[batch[0]] = known
            else:
                half = len(batch) // 2
                attempt(batch[:half], None)
                attempt(batch[half:], None)

        if suspects:
            attempt(suspects, verdict)
        return {} if lost else guilty

    def _hold(self, guilty: Mapping[Key, Verdict], snapshot: Snapshot) -> None:
        now, services = time.monotonic(), {one.key: one for one in snapshot.services}
        for key, verdict in guilty.items():
            hurt = verdict.code is ExitCode.ROLLED_BACK
            until = now + HELD_SECONDS
            if hurt:  # until it asks for something else; where only nodes have changed, for long
                until = math.inf if self._good.get(key) != services[key].annotations else now + HURT_SECONDS
            state = "rolled_back" if hurt else "refused"
            self._held[key] = Held(service=services[key], state=state, message=verdict.message, until=until)
            _log.warning("held back: Service %s/%s: %s", *key, verdict.message)

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
        self._complete = verdict.complete and not self._held and not found.mistakes

    def _told(self, one: Service, found: Wanted, verdict: Verdict) -> Told:
        live, fragment = self._live.get(one.key), found.fragments.get(one.key)
        names = tuple(sorted(live.frontends)) if live else ()
        goes_on = "; what was live before goes on" if live else ""

        def tell(state: str, message: str, **more: Any) -> Told:
            good = self._good.get(one.key, {})
            return Told(state=state, message=message, frontends=names, good=good, uid=one.uid, **more)

        if held := self._held.get(one.key):
            tried = {"tried": dict(one.annotations)} if held.until == math.inf else {}
            message = held.message if held.message.endswith(goes_on) else held.message + goes_on
            return tell(held.state, message, **tried)
        if mistakes := found.mistakes.get(one.key):
            return tell("mistake", "; ".join(mistake.text for mistake in mistakes) + goes_on)
        if fragment is not None and not self._is_live(one.key, fragment):
            state = "refused" if verdict.refused else "waiting"
            return tell(state, (verdict.message or verdict.away) + goes_on)
        down = [f"{name} is {verdict.down[name]}" for name in names if name in verdict.down]
        remarks = list(fragment.remarks) if fragment else []
        return tell("degraded" if down or remarks else "live", "; ".join([*down, *remarks]))

    def _plan(self, verdict: Verdict) -> None:
        """When to look again."""
        now = time.monotonic()
        if verdict.away or (not verdict.live and not verdict.refused):
            self._at = now + self._backoff.next()
        else:
            self._backoff.reset()
            self._at = now + (RESYNC_SECONDS if verdict.live and not verdict.down else ASK_SECONDS)
        due: Collection[float] = [one.until for one in self._held.values()]
        self._at = min(self._at, *due, math.inf)
