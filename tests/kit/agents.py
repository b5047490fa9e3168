"""Agents on firewalls, as `agent.remote.push` sees them: what `sync`, `status` and `show` answer over ssh; no ssh.

The shapes are those of `agent.remote.answer` and of status.json (schema 1); tests/cluster has the real ones.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from agent.desired.identity import digest_of
from agent.errors import ExitCode
from agent.remote import push
from agent.view.status import RefusalStatus


@dataclass(frozen=True)
class Judgement:
    """What an agent makes of a document. `parts`: what it names of it, where it refuses it."""

    code: ExitCode = ExitCode.LIVE
    message: str = ""
    parts: tuple[RefusalStatus, ...] = ()

    @property
    def live(self) -> bool:
        return self.code in (ExitCode.LIVE, ExitCode.DEGRADED)


GOOD = Judgement()


class Agent:
    """One. `judge`: of the names of the backends in a document; `away`: why ssh does not reach it."""

    def __init__(self, judge: Callable[[set[str]], Judgement] = lambda _: GOOD) -> None:
        self.judge = judge
        self.document = self.desired = b""
        self.held = ""
        self.code = ExitCode.LIVE
        self.handed: list[set[str]] = []
        self.asked = 0
        self.away = ""

    def judge_tree(self, tree: Mapping[str, Any]) -> Judgement:
        return self.judge(set(tree.get("backends", {})))

    @property
    def live(self) -> dict[str, Any]:
        """The live document, without its serial."""
        found: dict[str, Any] = json.loads(self.document or b"{}")
        return {key: value for key, value in found.items() if key != "serial"}

    def synced(self, tree: Mapping[str, Any]) -> None:
        """Somebody else has."""
        self.document = self.desired = json.dumps(tree).encode()

    def sync(self, target: push.Target, payload: push.Payload, options: Sequence[str]) -> push.Result:
        def ended(code: ExitCode, message: str, *parts: RefusalStatus) -> push.Result:
            refused = [
                {"kind": part.kind, "name": part.name, "server": part.server, "reason": part.reason} for part in parts
            ]
            answer = {"exit_code": int(code), "report": {"refused": refused, "frontends": []}}
            return push.Result(target=target, exit_code=code, message=message, answer=answer)

        tree = json.loads(payload.data)
        self.handed.append(set(tree.get("backends", {})))
        if self.away:
            return push.Result(target=target, exit_code=ExitCode.SSH, message=self.away)
        expected = dict(itertools.pairwise(options)).get("--if-live")
        if expected is not None and expected != digest_of(self.document):
            return ended(ExitCode.POLICY, "another document is live")
        judgement = self.judge_tree(tree)
        if judgement.live:
            self.document = self.desired = payload.data
        elif judgement.code is ExitCode.ROLLED_BACK:
            self.desired = payload.data
        elif judgement.code is ExitCode.SSH:
            return push.Result(target=target, exit_code=ExitCode.SSH, message=judgement.message)
        self.code = judgement.code
        return ended(judgement.code, judgement.message, *judgement.parts)

    def status(self) -> dict[str, Any] | str:
        self.asked += 1
        if self.away:
            return self.away

        def about(data: bytes) -> dict[str, Any] | None:
            return {"digest": digest_of(data), "serial": json.loads(data).get("serial")} if data else None

        live = self.desired == self.document
        return {
            "schema": 1,
            "desired": about(self.desired),
            "live": about(self.document),
            "held": {"digest": digest_of(self.desired), "reason": self.held} if self.held else None,
            "exit_code": int(ExitCode.LIVE if live else self.code),
            "message": "",
            "outcome": "committed" if live else "rolled_back",
            "frontends": [],
            "backends": [],
        }

    def show(self) -> bytes | str:
        return self.away or self.document


def install(monkeypatch: pytest.MonkeyPatch, agents: Mapping[str, Agent]) -> None:
    """These answer, by the text of their target, instead of what ssh would reach."""

    def pushed(
        targets: Sequence[push.Target],
        payload: push.Payload,
        *,
        more: Mapping[str, tuple[str, ...]],
        **_: object,
    ) -> tuple[push.Result, ...]:
        return tuple(
            agents[target.text].sync(target, payload, (*payload.arguments, *more.get(target.text, ())))
            for target in targets
        )

    monkeypatch.setattr(push, "push", pushed)
    monkeypatch.setattr(push, "status", lambda targets, **_: tuple(agents[target.text].status() for target in targets))
    monkeypatch.setattr(push, "show", lambda targets, **_: tuple(agents[target.text].show() for target in targets))
