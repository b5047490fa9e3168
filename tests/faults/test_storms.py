"""Many changes at once: only the newest counts, and replaced processes do not pile up."""

from __future__ import annotations

import contextlib
import time

from kit.edge import connect, first_line, until
from kit.servers import echo, free_port

from agent.desired.identity import digest_of
from tests.faults.conftest import Scene


def newest_is_live(scene: Scene, timeout: float = 30) -> None:
    digest = digest_of(scene.edge.desired.read_bytes())
    until(lambda: (scene.edge.status()["live"] or {}).get("digest") == digest, "the newest state", timeout)


def test_a_desired_file_that_is_replaced_a_thousand_times_in_ten_seconds(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b:
        edge.live(scene.with_pool(port, a))
        edge.serve()
        with scene.fault("the desired file replaced 1,000 times in 10 s") as after:
            begin = time.monotonic()
            for turn in range(1_000):
                reload = {"balance": ["first", "random"][turn // 2 % 2]}
                edge.put({**scene.with_pool(port, a if turn % 2 else b, **reload), "serial": turn})
                time.sleep(max(begin + turn * 0.01 - time.monotonic(), 0))  # the storm's own pace
            edge.put({**scene.with_pool(port, b), "serial": 1_000})
            newest_is_live(scene)
            assert {first_line(port)[0] for _ in range(6)} == {"b"}
            after("the newest state")
        counters = edge.status()["counters"]
        # The burst (max_draining), and one every five seconds.
        assert counters["reloads"] <= 4 + (time.monotonic() - begin) / 5 + 1
        assert len(edge.processes()) <= 2 + 4


def test_two_states_that_flap(scene: Scene):
    """A node that comes and goes, with sessions on it: at the socket, without a single reload."""
    edge, port = scene.edge, free_port()
    with echo("a") as a, echo("b") as b, contextlib.ExitStack() as stack:
        edge.live(scene.with_pool(port, a, b))
        edge.serve()
        pid = edge.pid
        sessions = [stack.enter_context(connect(port)) for _ in range(8)]
        first = [session.recv(100) for session in sessions]
        with scene.fault("two states that flap, 60 times") as after:
            for turn in range(60):
                edge.put({**scene.with_pool(port, *((a,) if turn % 2 else (a, b))), "serial": turn})
                newest_is_live(scene)
            assert edge.pid == pid
            assert {first_line(port)[0] for _ in range(6)} == {"a"}
            after("the newest state, the same process")
        for session, greeting in zip(sessions, first, strict=True):
            session.sendall(greeting)
            assert session.recv(100) == greeting


def test_replaced_processes_are_capped_and_the_oldest_ends_first(scene: Scene):
    edge, port = scene.edge, free_port()
    with echo("a") as a, contextlib.ExitStack() as stack:
        edge.live(scene.with_pool(port, a))
        with scene.fault("eight reloads, with a session on each old process") as after:
            sessions = []
            for turn in range(8):
                sessions.append(stack.enter_context(connect(port)))
                assert sessions[-1].recv(100)
                done = edge.apply(scene.with_pool(port, a, balance=["first", "random"][turn % 2]))
                assert done.returncode == 0, done.stderr
                assert len(edge.processes()) <= 1 + 4
            after("the newest state and four replaced processes")
        assert "ending HAProxy process" in done.stderr
        assert "the oldest of 4 that were replaced, with 1 sessions: haproxy.max_draining is 4" in done.stderr
        # The oldest four were ended with theirs; the others go on.
        for index, session in enumerate(sessions):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                session.sendall(b"ping")
                assert (session.recv(10) == b"ping") is (index >= 4), index
