"""The firewalls: a document is pushed to all of them by `agent sync`, and they are asked what they have live."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from agent.desired import document
from agent.desired.identity import digest_of
from agent.discover import memory
from agent.discover.fragments import Fragment
from agent.discover.memory import Owner
from agent.discover.merge import as_json
from agent.errors import AgentError, ExitCode
from agent.host import signature
from agent.remote import push
from agent.view.status import FrontendStatus, RefusalStatus, from_json

_LIVE = (ExitCode.LIVE, ExitCode.DEGRADED)
_ANSWERS = (*_LIVE, ExitCode.REFUSED, ExitCode.INVALID, ExitCode.ROLLED_BACK)
_PUBLIC = {
    ExitCode.SSH: "nothing is pushed now: the log of `agent discover` says why",
    ExitCode.REFUSED: "a firewall refused the document, and it is not known for which Service",
    ExitCode.ROLLED_BACK: "a firewall put the change back, and it is not known for which Service",
    ExitCode.POLICY: "a firewall has another document by now; this one is made anew",
}
_OUTCOMES = ("unchanged", "committed", "degraded")
_BY_HAND = "by hand"  # of a hold: a person has put an earlier generation back
ASK_SECONDS = 10.0

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class Result:
    """What became of a document: the worst of the firewalls that took part."""

    code: ExitCode
    """SSH where none took part, or nothing was pushed"""
    message: str = ""
    """of the firewall with that code, with its name"""
    reason: str = ""
    """the message without the name of a firewall: tenants of the cluster are not shown its address and user"""
    away: str = ""
    """firewalls that did not take part, and why"""
    down: Mapping[str, str] = field(factory=dict)
    """frontends that are not up, and why"""
    refused: tuple[RefusalStatus, ...] = ()
    """the parts of the document for which it was refused; (): none was named"""

    @property
    def live(self) -> bool:
        """Whether it is live wherever it can be."""
        return self.code in _LIVE

    @property
    def complete(self) -> bool:
        """Whether it is live everywhere."""
        return self.live and not self.away

    @property
    def rejected(self) -> bool:
        """Whether a firewall has judged it, and not accepted it."""
        return self.code in _ANSWERS and not self.live

    @property
    def rolled_back(self) -> bool:
        """Whether it was live for a moment, and served worse."""
        return self.code is ExitCode.ROLLED_BACK

    @property
    def public(self) -> str:
        """Why it is not live, for the owner of a Service that is not behind that."""
        if self.live:
            return ""
        own = self.reason if self.code is ExitCode.SSH else ""  # of the controller, which has not pushed
        return own or _PUBLIC.get(self.code, "nothing is pushed now")


@define
class Firewall:
    """One of them, as it is known."""

    target: push.Target
    digest: str = ""
    """of the document that is live there; "": not known, or nothing is"""
    tree: Mapping[str, Any] | None = None
    """that document without its serial, or the last one that was known; None: never known"""
    fragments: Mapping[Owner, Fragment] = field(factory=dict)
    """what each Service has in it"""
    in_sync: bool = False
    """whether its desired file is what is live"""
    serial: int = 0
    """the highest that it has had"""
    code: ExitCode = ExitCode.LIVE
    message: str = ""
    refused: tuple[RefusalStatus, ...] = ()
    down: Mapping[str, str] = field(factory=dict)
    away: str = ""
    """why it takes no part now"""
    by_hand: bool = False
    """a person holds it"""

    def learn(self, tree: Mapping[str, Any]) -> None:
        """This is live there."""
        self.tree, self.fragments = tree, memory.fragments(tree)

    def has(self, tree: Mapping[str, Any]) -> bool:
        """Whether this is live there, and nothing else desired."""
        return self.in_sync and self.tree == tree


class Firewalls:
    """All of them. `sign`: a key that documents are signed with."""

    def __init__(self, targets: Sequence[push.Target], *, seconds: float, sign: Path | None) -> None:
        self.all = [Firewall(target) for target in targets]
        self.seconds, self._sign = seconds, sign
        self.pushes: dict[str, int] = {}
        self.last_seconds = 0.0

    @property
    def known(self) -> bool:
        """Whether any has told what it has live."""
        return any(firewall.tree is not None for firewall in self.all)

    @property
    def must_be_asked(self) -> bool:
        """Whether one has never told what it has."""
        return any(firewall.tree is None and not firewall.away for firewall in self.all)

    def live(self, present: Collection[Owner] = ()) -> dict[Owner, Fragment]:
        """What each Service has on them. `present`: Services that are there: they come before those of anybody else."""
        best = sorted(self.all, key=lambda firewall: (firewall.by_hand, -firewall.serial))  # what was put back is older
        return memory.together([firewall.fragments for firewall in best], present)

    def serving(self, owner: Owner) -> bool:
        """Whether any of them has something of this Service, as far as is known."""
        return any(firewall.tree is None or owner in firewall.fragments for firewall in self.all)

    def lacking(self, owner: Owner, fragment: Fragment) -> str:
        """That some are away that, as far as is known, do not have what this Service has now."""
        return self._count(
            firewall for firewall in self.all if firewall.away and firewall.fragments.get(owner) != fragment
        )

    def outdated(self, tree: Mapping[str, Any]) -> list[Firewall]:
        """Those that are there and do not have it."""
        return [firewall for firewall in self.all if not firewall.away and not firewall.has(tree)]

    def push_all(self, tree: Mapping[str, Any]) -> Result:
        """To each that is there and does not have it, and wait."""
        to = self.outdated(tree)
        # A serial higher than any has: the time, so that it stays so.
        serial = max(int(time.time()), *(firewall.serial + 1 for firewall in self.all))
        data = as_json(tree, serial)
        for firewall, result in zip(to, self._push(to, data), strict=True):
            self._received(firewall, result, tree, digest_of(data), serial)
        return self.result

    def _push(self, to: Sequence[Firewall], data: bytes) -> tuple[push.Result, ...]:
        begin = time.monotonic()
        try:
            signed = signature.sign(data, self._sign) if self._sign else b""
        except AgentError as error:  # the key is gone: nothing is pushed, and it is logged
            message = f"cannot be signed: {error}"
            return tuple(
                push.Result(target=firewall.target, exit_code=error.exit_code, message=message) for firewall in to
            )
        options = ("--withdraw", "--timeout", f"{round(self.seconds * 1000)}ms")
        payload = push.Payload(data=data, signature=signed, arguments=options, seconds=self.seconds)
        # Only on what it is known to have live: a person, or another controller, is not undone.
        more = {firewall.target.text: ("--if-live", firewall.digest) for firewall in to if firewall.digest}
        results = push.push(
            [firewall.target for firewall in to], payload, ordered=False, on_stage=_nothing, on_end=_nothing, more=more
        )
        self.last_seconds = time.monotonic() - begin
        return results

    def _received(
        self, firewall: Firewall, result: push.Result, tree: Mapping[str, Any], digest: str, serial: int
    ) -> None:
        word = result.exit_code.name.lower()
        self.pushes[word] = self.pushes.get(word, 0) + 1
        good = result.exit_code in _LIVE
        remedy = f": {result.remedy}" if result.remedy and not good else ""
        _log.log(
            logging.INFO if good else logging.WARNING,
            "push to %s: %s (%.1f s)%s", firewall.target.text, result.message, result.seconds, remedy,
        )  # fmt: skip
        if result.exit_code not in _ANSWERS:
            firewall.digest, firewall.away = "", result.message
            return
        firewall.code, firewall.message, firewall.away = result.exit_code, result.message, ""
        report = (result.answer or {}).get("report") or {}
        firewall.refused = _refused(report.get("refused"))
        if good:
            firewall.learn(tree)
            firewall.digest, firewall.in_sync, firewall.serial = digest, True, serial
            firewall.down = _down(report.get("frontends"))
        elif result.exit_code is ExitCode.ROLLED_BACK:  # it stays the desired file; what is refused is withdrawn
            firewall.in_sync, firewall.serial = False, serial

    def refresh(self) -> None:
        """What each has, and what it made of it; of one that does not answer the last that is known stays."""
        answers = push.status([firewall.target for firewall in self.all], seconds=ASK_SECONDS)
        for firewall, answer in zip(self.all, answers, strict=True):
            before = firewall.away
            try:
                self._read(firewall, answer)
            except (AgentError, KeyError, TypeError, ValueError, AttributeError) as error:  # another version, or nobody
                firewall.digest, firewall.away = "", f"its status cannot be read: {error!r}"
            if firewall.away != before:
                _log.warning("%s takes no change: %s", firewall.target.text, firewall.away) if firewall.away else (
                    _log.info("%s is back", firewall.target.text)
                )

    def _read(self, firewall: Firewall, answer: Mapping[str, Any] | str) -> None:
        if isinstance(answer, str):
            firewall.digest, firewall.away = "", push.printable(answer, 500)
            return
        desired, live, held = (answer.get(key) or {} for key in ("desired", "live", "held"))
        firewall.by_hand = _BY_HAND in str(held.get("reason"))
        firewall.serial = max(firewall.serial, *(int(part.get("serial") or 0) for part in (desired, live)))
        digest = str(live.get("digest") or "")
        if firewall.tree is None or digest != firewall.digest:
            shown = push.show([firewall.target], seconds=ASK_SECONDS)[0] if digest else b""
            if isinstance(shown, str) or (digest and digest_of(shown) != digest):
                firewall.digest = ""
                firewall.away = shown if isinstance(shown, str) else "its live document changes just now"
                return
            firewall.learn(_tree(shown))
        firewall.digest, firewall.away = digest, ""
        # What stands in the desired file; the status may be about the generation that was put back.
        wanted = held.get("digest") if firewall.by_hand else desired.get("digest")
        firewall.in_sync = wanted == digest or (not digest and not wanted)
        if firewall.by_hand:
            firewall.away = f"{push.printable(held.get('reason'), 200)}; `agent rollback` to the later one ends that"
        code = answer.get("exit_code")
        firewall.code = ExitCode(code) if code in list(ExitCode) else ExitCode.LIVE
        firewall.message = push.printable(answer.get("message"), 500)
        firewall.refused = ()  # of what was pushed last; this may be about something else
        if answer.get("outcome") in _OUTCOMES:
            firewall.down = _down(answer.get("frontends"))
            firewall.code = ExitCode.DEGRADED if firewall.down else ExitCode.LIVE

    @property
    def frontends(self) -> frozenset[str]:
        """The names of all that is live on any of them."""
        sections = [(firewall.tree or {}).get("frontends") for firewall in self.all]
        return frozenset(name for section in sections if isinstance(section, Mapping) for name in section)

    @property
    def base(self) -> dict[str, Any]:
        """What of the newest live document is no Service's: the base as it was live."""
        newest = max(self.all, key=lambda firewall: (firewall.tree is not None, firewall.serial))
        return memory.unowned(newest.tree or {})

    def settle(self, tree: Mapping[str, Any]) -> None:
        """Whatever was pushed last: one that has this live is well."""
        for firewall in self.all:
            if not firewall.away and firewall.has(tree) and firewall.code not in _LIVE:
                firewall.code = ExitCode.DEGRADED if firewall.down else ExitCode.LIVE
                firewall.message, firewall.refused = "", ()

    @property
    def result(self) -> Result:
        """Of what they have."""
        present = [firewall for firewall in self.all if not firewall.away]
        away = "; ".join(f"{firewall.target.text}: {firewall.away}" for firewall in self.all if firewall.away)
        if not present:
            return Result(code=ExitCode.SSH, message=away, away=away)
        code = push.worst([firewall.code for firewall in present])
        worst = next(firewall for firewall in present if firewall.code == code)
        return Result(
            code=code,
            message="" if code in _LIVE else f"{worst.target.text}: {worst.message}",
            reason="" if code in _LIVE else worst.message,
            away=away,
            down={name: reason for firewall in present for name, reason in firewall.down.items()},
            refused=tuple(part for firewall in present for part in firewall.refused),
        )

    @property
    def public_away(self) -> str:
        """How many take no part, for owners of Services; "" where all do."""
        return self._count(firewall for firewall in self.all if firewall.away)

    def _count(self, away: Iterable[Firewall]) -> str:
        count = len(list(away))
        if not count:
            return ""
        if len(self.all) == 1:
            return "the firewall takes no change now"
        return f"{count} of {len(self.all)} firewalls {'takes' if count == 1 else 'take'} no change now"


def _tree(data: bytes) -> Mapping[str, Any]:
    """A live document, as `memory` and `Firewall.has` read it. One that is no mapping has nothing of ours."""
    value = document.read(data, file="live", max_bytes=push.MOST).value if data else {}
    return {key: part for key, part in value.items() if key != "serial"} if isinstance(value, dict) else {}


def _refused(parts: object) -> tuple[RefusalStatus, ...]:
    """The parts of the document for which it was refused, as far as the answer names them."""
    read = (from_json(part, RefusalStatus) for part in (parts if isinstance(parts, list) else ()))
    return tuple(part for part in read if part is not None)


def _down(frontends: object) -> dict[str, str]:
    found = {}
    for frontend in frontends if isinstance(frontends, list) else ():
        if isinstance(frontend, dict) and frontend.get("state") != "up":
            found[push.printable(frontend.get("name"), 63)] = _why(frontend)
    return found


def _why(document: Mapping[str, Any]) -> str:
    frontend = from_json(document, FrontendStatus)
    if frontend is None:  # of another version
        return push.printable(document.get("state"), 40)
    return push.printable(f"{frontend.state}: {frontend.why}", 300)


def _nothing(*_: object) -> None:
    """Nobody looks at a board."""
