"""The firewalls: a document is handed to all of them by `agent sync`, and they are asked what has become of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from agent.errors import ExitCode
from agent.model.desired import digest_of
from agent.remote import push, signature
from agent.remote.cluster.merge import as_json
from agent.view.status import why

_LIVE = (ExitCode.LIVE, ExitCode.DEGRADED)
_OUTCOMES = ("unchanged", "committed", "degraded")
ASK_SECONDS = 10.0

_log = logging.getLogger("agent.discover")


@frozen(kw_only=True)
class Verdict:
    """What became of a document, on all firewalls. `message`: of the worst; `down`: frontends that are not up, why."""

    code: ExitCode
    message: str = ""
    down: Mapping[str, str] = field(factory=dict)

    @property
    def live(self) -> bool:
        """Whether it is live everywhere."""
        return self.code in _LIVE


@define
class Firewall:
    """One of them. `digest`, `serial`: of what it has as its desired state; `code` None: not known yet."""

    target: push.Target
    code: ExitCode | None = None
    message: str = ""
    digest: str = ""
    serial: int = 0
    down: Mapping[str, str] = field(factory=dict)


class Firewalls:
    """All of them, as they are known. `sign`: a key that documents are signed with."""

    def __init__(self, targets: Sequence[push.Target], *, seconds: float, sign: Path | None) -> None:
        self.all = [Firewall(one) for one in targets]
        self._seconds, self._sign = seconds, sign
        self.pushes: dict[str, int] = {}
        self.last_seconds = 0.0

    def hand_over(self, tree: Mapping[str, Any]) -> Verdict:
        """Hand it to all, and wait. Its serial is a higher one than they have: the time, so that it stays so."""
        serial = max(int(time.time()), *(one.serial + 1 for one in self.all))
        data = as_json(tree, serial)
        signed = signature.sign(data, self._sign) if self._sign else b""
        words = ("--timeout", f"{round(self._seconds * 1000)}ms")
        parcel = push.Parcel(data=data, signature=signed, words=words, seconds=self._seconds)
        begin = time.monotonic()
        results = push.push([one.target for one in self.all], parcel, ordered=False, on_stage=_nothing, on_end=_nothing)
        self.last_seconds = time.monotonic() - begin
        for one, result in zip(self.all, results, strict=True):
            self._heard(one, result, digest_of(data), serial)
        return self.verdict

    def _heard(self, one: Firewall, result: push.Result, digest: str, serial: int) -> None:
        one.code, one.message = result.exit_code, f"{one.target.text}: {result.message}"
        word = result.exit_code.name.lower()
        self.pushes[word] = self.pushes.get(word, 0) + 1
        report = (result.answer or {}).get("report") or {}
        if result.exit_code in (*_LIVE, ExitCode.REFUSED, ExitCode.ROLLED_BACK):
            one.digest, one.serial = digest, serial  # it stands in the desired file, whatever became of it
        elif result.exit_code is not ExitCode.INVALID:
            one.digest = ""
        if result.exit_code in _LIVE:
            one.down = _down(report.get("frontends"))
        level = logging.INFO if result.exit_code in _LIVE else logging.WARNING
        _log.log(level, "push to %s: %s (%.1f s)%s", one.target.text, result.message, result.seconds,
                 f": {result.remedy}" if result.remedy and result.exit_code not in _LIVE else "")  # fmt: skip

    def ask(self) -> None:
        """What each has, and what it made of it; of one that does not answer nothing is known then."""
        for one, found in zip(
            self.all, push.status([one.target for one in self.all], seconds=ASK_SECONDS), strict=True
        ):
            if found is None:
                one.digest = ""
                continue
            desired, live = found.get("desired") or {}, found.get("live") or {}
            one.digest = str(desired.get("digest") or "")
            one.serial = max(one.serial, *(int(part.get("serial") or 0) for part in (desired, live)))
            code = found.get("exit_code")
            one.code = ExitCode(code) if isinstance(code, int) and code in list(ExitCode) else None
            one.message = f"{one.target.text}: {push.printable(found.get('message'), 500)}"
            if found.get("outcome") in _OUTCOMES:
                one.down = _down(found.get("frontends"))
                one.code = ExitCode.DEGRADED if one.down else ExitCode.LIVE

    def have(self, tree: Mapping[str, Any]) -> bool:
        """Whether it is what all of them have as their desired state."""
        return all(one.digest == digest_of(as_json(tree, one.serial or None)) for one in self.all)

    @property
    def verdict(self) -> Verdict:
        """Of what they were handed last."""
        worst = push.worst([one.code or ExitCode.LIVE for one in self.all])
        down = {name: reason for one in self.all for name, reason in one.down.items()}
        message = "" if worst in _LIVE else next(one.message for one in self.all if one.code == worst)
        return Verdict(code=worst, message=message, down=down)


def _down(frontends: object) -> dict[str, str]:
    found = {}
    for one in frontends if isinstance(frontends, list) else ():
        if isinstance(one, dict) and one.get("state") != "up":
            found[push.printable(one.get("name"), 63)] = _why(one)
    return found


def _why(one: Mapping[str, Any]) -> str:
    try:
        return push.printable(f"{one['state']}: {why(dict(one))}", 300)
    except (KeyError, TypeError):  # another version's words
        return push.printable(one.get("state"), 40)


def _nothing(*_: object) -> None:
    """Nobody looks at a board."""
