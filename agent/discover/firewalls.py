"""The firewalls: a document is handed to all of them by `agent sync`, and they are asked what has become of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from agent.desired.identity import digest_of
from agent.discover.merge import as_json
from agent.discover.pools import NOBODY
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
class Verdict:
    """What became of a document: the worst of those that took part, and their words.

    `away`: who did not take part, and why; with nobody left, `code` is SSH. `down`: frontends that are not up, and why.
    """

    code: ExitCode
    message: str = ""
    reason: str = ""
    """the message without the name of a firewall: tenants of the cluster are not shown its address and user"""
    away: str = ""
    down: Mapping[str, str] = field(factory=dict)
    parts: tuple[RefusalStatus, ...] = ()
    """those of the document for which it was refused, by each firewall that refused it; (): none was named"""

    @property
    def live(self) -> bool:
        """Whether it is live wherever it can be."""
        return self.code in _LIVE

    @property
    def complete(self) -> bool:
        """Whether it is live everywhere."""
        return self.live and not self.away

    @property
    def public(self) -> str:
        """Why it is not live, for the owner of a Service that is not behind that."""
        if self.live:
            return ""
        own = self.reason if self.code is ExitCode.SSH else ""  # of the controller, which has not pushed
        return own or _PUBLIC.get(self.code, "nothing is pushed now")

    @property
    def refused(self) -> bool:
        """Whether somebody has judged it, and not taken it."""
        return self.code in _ANSWERS and not self.live


@define
class Firewall:
    """One of them. `digest`, `serial`: of what it has as its desired state; `code` None: not known yet.

    `live`: the digest of what it has live, "" where nobody knows; `tree`: that, where it is one of ours (its digest is
    `had`). `servers`: by name, of each backend; None where it does not tell. `away`: why it takes no part now.
    `by_hand`: a person holds it.
    """

    target: push.Target
    code: ExitCode | None = None
    message: str = ""
    digest: str = ""
    serial: int = 0
    down: Mapping[str, str] = field(factory=dict)
    live: str = ""
    tree: Mapping[str, Any] | None = None
    had: str = ""
    servers: Mapping[str, Mapping[str, Any]] | None = None
    away: str = ""
    by_hand: bool = False
    refused: tuple[RefusalStatus, ...] = ()


class Firewalls:
    """All of them, as they are known. `sign`: a key that documents are signed with."""

    def __init__(self, targets: Sequence[push.Target], *, seconds: float, sign: Path | None) -> None:
        self.all = [Firewall(target) for target in targets]
        self.seconds, self._sign = seconds, sign
        self.pushes: dict[str, int] = {}
        self.last_seconds = 0.0

    def outdated(self, tree: Mapping[str, Any]) -> list[Firewall]:
        """Those that are there and do not have it."""
        return [one for one in self.all if not one.away and not self._has(one, tree)]

    def push_all(self, tree: Mapping[str, Any]) -> Verdict:
        """To each that is there and does not have it, and wait."""
        to = self.outdated(tree)
        serial, results = self._push(to, tree, ())
        digest = digest_of(as_json(tree, serial))
        for one, result in zip(to, results, strict=True):
            self._heard(one, result, digest, serial)
            if result.exit_code in _LIVE:
                one.live = one.had = digest
                one.tree = tree
        return self.verdict

    def rehearse(self, tree: Mapping[str, Any]) -> Verdict:
        """What those that are there would say of it. Nothing is touched."""
        there = [one for one in self.all if not one.away]
        _, results = self._push(there, tree, ("--dry-run",))
        judged = [result for result in results if result.exit_code in _ANSWERS]
        if not judged:
            return Verdict(code=ExitCode.SSH, message="; ".join(_named(result) for result in results))
        worst = push.worst([one.exit_code for one in judged])
        return Verdict(
            code=worst,
            message=next(_named(result) for result in judged if result.exit_code == worst),
            reason=next(result.message for result in judged if result.exit_code == worst),
            parts=tuple(part for result in judged for part in _refused(result)),
        )

    def _push(
        self, to: Sequence[Firewall], tree: Mapping[str, Any], words: tuple[str, ...]
    ) -> tuple[int, tuple[push.Result, ...]]:
        """Its serial is a higher one than any has: the time, so that it stays so."""
        serial = max(int(time.time()), *(one.serial + 1 for one in self.all))
        data = as_json(tree, serial)
        begin = time.monotonic()
        try:
            signed = signature.sign(data, self._sign) if self._sign else b""
        except AgentError as error:  # the key is gone: nothing is pushed, and it is said
            failed = [
                push.Result(target=one.target, exit_code=error.exit_code, message=f"cannot be signed: {error}")
                for one in to
            ]
            return serial, tuple(failed)
        options = (*words, "--withdraw", "--timeout", f"{round(self.seconds * 1000)}ms")
        payload = push.Payload(data=data, signature=signed, arguments=options, seconds=self.seconds)
        # Only on what it is known to have live: whoever was there in between, a person or a leader, is not undone.
        more = {one.target.text: ("--if-live", one.live) for one in to if one.live}
        results = push.push(
            [one.target for one in to], payload, ordered=False, on_stage=_nothing, on_end=_nothing, more=more
        )
        self.last_seconds = time.monotonic() - begin
        return serial, results

    def _heard(self, firewall: Firewall, result: push.Result, digest: str, serial: int) -> None:
        word = result.exit_code.name.lower()
        self.pushes[word] = self.pushes.get(word, 0) + 1
        good = result.exit_code in _LIVE
        remedy = f": {result.remedy}" if result.remedy and not good else ""
        _log.log(
            logging.INFO if good else logging.WARNING,
            "push to %s: %s (%.1f s)%s", firewall.target.text, result.message, result.seconds, remedy,
        )  # fmt: skip
        if result.exit_code not in _ANSWERS:
            firewall.digest, firewall.live, firewall.away = "", "", result.message
            return
        firewall.code, firewall.message, firewall.away = result.exit_code, result.message, ""
        firewall.refused = _refused(result)
        # What is refused is withdrawn, what is invalid not even stored; anything else is the desired file now.
        if firewall.code not in (ExitCode.INVALID, ExitCode.REFUSED):
            firewall.digest, firewall.serial = digest, serial
        if good:
            firewall.down = _down(((result.answer or {}).get("report") or {}).get("frontends"))

    def ask(self) -> None:
        """What each has, and what it made of it; of one that does not answer nothing is known then."""
        for one, found in zip(
            self.all, push.status([one.target for one in self.all], seconds=ASK_SECONDS), strict=True
        ):
            before = one.away
            try:
                _read(one, found)
            except (KeyError, TypeError, ValueError, AttributeError) as error:  # another version's words, or nobody's
                one.digest, one.live, one.servers, one.away = "", "", None, f"its status cannot be read: {error!r}"
            if one.away != before:
                _log.warning("%s takes no change: %s", one.target.text, one.away) if one.away else _log.info(
                    "%s is back", one.target.text
                )

    def knows(self, tree: Mapping[str, Any]) -> None:
        """Whoever has it live is known to have this tree."""
        for one in self.all:
            if one.live and one.live == digest_of(as_json(tree, one.serial or None)):
                one.tree, one.had = tree, one.live

    def without(self, names: Collection[str], tree: Mapping[str, Any]) -> str:
        """That some are away that, as far as is known, have not what `tree` says of these backends and frontends."""
        outdated = [
            one
            for one in self.all
            if one.away and (one.tree is None or any(_says(one.tree, name) != _says(tree, name) for name in names))
        ]
        return self._count(outdated)

    @property
    def public_away(self) -> str:
        """How many take no part, for owners of Services; "" where all do."""
        return self._count([firewall for firewall in self.all if firewall.away])

    def _count(self, away: Collection[Firewall]) -> str:
        if not away:
            return ""
        if len(self.all) == 1:
            return "the firewall takes no change now"
        return f"{len(away)} of {len(self.all)} firewalls {'takes' if len(away) == 1 else 'take'} no change now"

    def _has(self, firewall: Firewall, tree: Mapping[str, Any]) -> bool:
        return firewall.digest == digest_of(as_json(tree, firewall.serial or None))

    @property
    def servers(self) -> dict[str, Mapping[str, Any]] | None:
        """What is live behind each backend, on any of them; None where none of them has told."""
        best = sorted(self.all, key=lambda one: (one.by_hand, -one.serial))  # what was put back is older
        known = [one.servers for one in best if one.servers is not None]
        found: dict[str, Mapping[str, Any]] = {}
        for servers in known:
            for name, part in servers.items():
                found.setdefault(name, part)
        return found if known else None

    @property
    def away(self) -> str:
        """Who takes no part, and why."""
        return "; ".join(f"{one.target.text}: {one.away}" for one in self.all if one.away)

    @property
    def verdict(self) -> Verdict:
        """Of what they have."""
        there = [one for one in self.all if not one.away]
        if not there:
            return Verdict(code=ExitCode.SSH, message=self.away, away=self.away)
        worst = push.worst([one.code or ExitCode.LIVE for one in there])
        message = (
            "" if worst in _LIVE else next(f"{one.target.text}: {one.message}" for one in there if one.code == worst)
        )
        down = {name: reason for one in there for name, reason in one.down.items()}
        reason = "" if worst in _LIVE else next(firewall.message for firewall in there if firewall.code == worst)
        parts = tuple(part for firewall in there if firewall.code is ExitCode.REFUSED for part in firewall.refused)
        return Verdict(code=worst, message=message, reason=reason, away=self.away, down=down, parts=parts)


def _read(firewall: Firewall, found: Mapping[str, Any] | str) -> None:
    if isinstance(found, str):
        firewall.digest, firewall.live, firewall.servers, firewall.away = "", "", None, push.printable(found, 500)
        return
    desired, live, held = found.get("desired") or {}, found.get("live") or {}, found.get("held") or {}
    by_hand = _BY_HAND in str(held.get("reason"))
    # What stands in the desired file; the status may tell of the generation that was put back.
    digest = str((held if by_hand else desired).get("digest") or "")
    serials = [int(part.get("serial") or 0) for part in (desired, live)]
    firewall.servers = {
        str(pool["name"]): {str(server["name"]): _server(server) for server in pool["servers"]}
        for pool in found["backends"]
    }
    firewall.live = str(live.get("digest") or "")
    if firewall.had != firewall.live:  # somebody else's
        firewall.tree = None
    firewall.digest, firewall.serial, firewall.away = digest, max(firewall.serial, *serials), ""
    firewall.by_hand = by_hand
    if by_hand:
        firewall.away = f"{push.printable(held.get('reason'), 200)}; `agent rollback` to the later one ends that"
    code = found.get("exit_code")
    firewall.code = ExitCode(code) if code in list(ExitCode) else None
    firewall.message = push.printable(found.get("message"), 500)
    firewall.refused = ()  # of what was pushed last; this may be about something else
    if found.get("outcome") in _OUTCOMES:
        firewall.down = _down(found.get("frontends"))
        firewall.code = ExitCode.DEGRADED if firewall.down else ExitCode.LIVE


def _says(tree: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """All of a frontend and its backend of one name."""
    backend = tree.get("backends", {}).get(name, {})
    group = tree.get("nodes", {}).get(backend.get("nodes"))
    return tree.get("frontends", {}).get(name), backend, group


def _server(found: Mapping[str, Any]) -> dict[str, Any]:
    """As a desired state has it."""
    made: dict[str, Any] = {"address": str(found["address"])}
    if found.get("weight", 1) != 1:
        made["weight"] = int(found["weight"])
    if found.get("backup"):
        made["backup"] = True
    if found["name"] == NOBODY:
        made["disabled"] = True
    return made


def _refused(result: push.Result) -> tuple[RefusalStatus, ...]:
    """The parts of the document for which it was refused, as far as the answer names them."""
    parts = ((result.answer or {}).get("report") or {}).get("refused")
    read = (from_json(part, RefusalStatus) for part in (parts if isinstance(parts, list) else ()))
    return tuple(part for part in read if part is not None)


def _named(result: push.Result) -> str:
    return f"{result.target.text}: {result.message}"


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
