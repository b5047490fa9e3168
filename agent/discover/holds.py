"""Services that are held back: what a firewall has refused of them, or rolled back, and until when."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from attrs import frozen

from agent.discover.annotations import Mistake
from agent.discover.backoff import Backoff
from agent.discover.conditions import State, request_digest, was_rolled_back
from agent.discover.fragments import Fragment
from agent.discover.objects import Key, Service

RETRY_SECONDS = (5.0, 300.0)
"""After which what was refused is tried again as it is: at first, and at most. A refusal touches nothing."""
ROLLED_BACK_SECONDS = 1800.0
"""The same of a rollback where its nodes alone have changed: that did hurt."""

_BY_NODES = ", other nodes"  # in the message of a rollback

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class Hold:
    """One Service."""

    service: Service
    fragment: Fragment | None
    """what was refused; another one is tried at once: a pod that has moved makes one. None: not known"""
    state: State
    message: str
    until: float
    """by the monotonic clock"""
    before: Fragment | None = None
    """what was live of it then, on whichever firewall; that goes on"""
    before_is_known: bool = True
    """False after a restart: then what is live now goes on"""
    pin: bool = False
    """whether it gets no other servers meanwhile: nodes were what it was refused or rolled back for"""
    named: bool = True
    """whether the firewall named it; else it is one of several, and not all of those are tried again at once"""

    def is_over(self, service: Service, fragment: Fragment | None) -> bool:
        """Whether it is no longer about what the Service asks for now."""
        if self.state is State.ROLLED_BACK:
            return service.requests != self.service.requests
        if self.fragment is None:
            return service != self.service
        return service.owner != self.service.owner or fragment is None or fragment.trial != self.fragment.trial


class Holds:
    """All of them, by Service."""

    def __init__(self) -> None:
        self._holds: dict[Key, Hold] = {}
        self._backoff: dict[Key, Backoff] = {}  # of those that were refused, until they are live
        self._batch = 1_000_000  # of those that no firewall has named: how many are tried together
        self._batch_is_tried = False
        self._pinned: set[Key] = set()  # refused for their nodes already, since they were live last

    def __contains__(self, key: Key) -> bool:
        return key in self._holds

    def __len__(self) -> int:
        return len(self._holds)

    def get(self, key: Key) -> Hold | None:
        """Of a Service; None where it is not held."""
        return self._holds.get(key)

    @property
    def excluded(self) -> dict[Key, tuple[Mistake, ...]]:
        """As `desired` takes them."""
        return {key: (Mistake("", hold.message),) for key, hold in self._holds.items()}

    @property
    def pinned(self) -> frozenset[Key]:
        """Services that get no other servers."""
        return frozenset(key for key, hold in self._holds.items() if hold.pin)

    def memory(self, live: Mapping[Key, Fragment]) -> dict[Key, Fragment]:
        """What is live, but of those that are held what was live before: one of two firewalls may have taken it."""
        found = dict(live)
        for key, hold in self._holds.items():
            if hold.before_is_known:
                found.pop(key, None)
                if hold.before is not None:
                    found[key] = hold.before
        return found

    @property
    def next_retry(self) -> float:
        """When the next one is tried again, by the monotonic clock."""
        return min((hold.until for hold in self._holds.values()), default=math.inf)

    def restore(self, services: Collection[Service]) -> None:
        """What was rolled back before this process began, by the conditions of the Services."""
        for service in services:
            if service.wants and (message := was_rolled_back(service)):
                by_nodes = _BY_NODES in message
                self._holds[service.key] = Hold(
                    service=service,
                    fragment=None,
                    state=State.ROLLED_BACK,
                    message=message,
                    until=time.monotonic() + ROLLED_BACK_SECONDS if by_nodes else math.inf,
                    before_is_known=False,
                    pin=by_nodes,
                )

    def release(self, fragments: Callable[[Service], Fragment | None], services: Sequence[Service]) -> None:
        """Those that ask for something else now, are gone, or have waited long enough."""
        now, present = time.monotonic(), {service.key: service for service in services if service.wants}
        due: list[Key] = []
        for key, hold in list(self._holds.items()):
            service = present.get(key)
            over = service is None or hold.is_over(service, fragments(service))
            if over or (now >= hold.until and hold.named):
                del self._holds[key]
            elif now >= hold.until:
                due.append(key)
        for key in due[: self._batch]:
            self._batch_is_tried = True
            del self._holds[key]

    def release_refused(self) -> None:
        """The base has changed: perhaps they were refused for that."""
        self._holds = {key: hold for key, hold in self._holds.items() if hold.state is not State.REFUSED}

    def hold(
        self,
        services: Mapping[Key, Service],
        reasons: Mapping[Key, str],
        tried: Mapping[Key, Fragment],
        live: Mapping[Key, Fragment],
        *,
        named: bool,
    ) -> None:
        """These were refused, and why.

        `tried`: what was refused; a Service that is not in it was tried as it is live. `live`: what was live. Not
        `named`: one of them is behind it, or several.
        """
        if not named:
            # Half as many are tried together the next time, at once; one that is refused alone is to blame.
            self._batch, self._batch_is_tried = max(1, min(self._batch, len(reasons)) // 2), False
            named = len(reasons) == 1
        for key, reason in reasons.items():
            earlier = self._holds.get(key)
            first, most = RETRY_SECONDS
            wait = self._backoff.setdefault(key, Backoff(first=first, most=most)).next() if named else 0.0
            self._add(
                Hold(
                    service=services[key],
                    fragment=tried.get(key, earlier.fragment if earlier else None),
                    state=State.REFUSED,
                    message=reason,
                    until=time.monotonic() + wait,
                    before=earlier.before if earlier else live.get(key),
                    pin=key in self._pinned or key not in tried,
                    named=named,
                )
            )

    def hold_rolled_back(
        self,
        services: Mapping[Key, Service],
        reasons: Mapping[Key, str],
        tried: Mapping[Key, Fragment],
        live: Mapping[Key, Fragment],
        *,
        asked: bool,
    ) -> None:
        """These were rolled back. `asked`: for what they ask for; else their nodes alone have changed."""
        until = math.inf if asked else time.monotonic() + ROLLED_BACK_SECONDS
        for key, reason in reasons.items():
            earlier = self._holds.get(key)
            self._add(
                Hold(
                    service=services[key],
                    fragment=tried.get(key),
                    state=State.ROLLED_BACK,
                    message=f"{reason} (request {request_digest(services[key])}{'' if asked else _BY_NODES})",
                    until=until,
                    before=earlier.before if earlier else live.get(key),
                    pin=not asked or key not in tried,
                )
            )

    def accepted(self) -> None:
        """A document is live: all that is not held is good."""
        for key in self._backoff.keys() - self._holds.keys():
            del self._backoff[key]
        self._pinned &= self._holds.keys()
        if self._batch_is_tried:
            self._batch, self._batch_is_tried = self._batch * 2, False

    def _add(self, hold: Hold) -> None:
        self._holds[hold.service.key] = hold
        if hold.pin:
            self._pinned.add(hold.service.key)
        _log.warning("held back: %s: %s", hold.service.text, hold.message)
