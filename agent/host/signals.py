"""Signals that wait until a step is done: what goes live is judged first, whatever signal comes meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def deferred(waiting: Callable[[], None]) -> Iterator[None]:
    """In the body SIGINT, SIGTERM and SIGHUP end nothing; the first one calls `waiting`, to say what is waited for.

    The step is bounded in time. They are not repeated afterwards: their sender wanted this command to end, and it
    ends with its result. Elsewhere than in the main thread Python delivers no signal, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    announced = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal announced
        if not announced:
            announced = True
            waiting()

    before = {number: signal.signal(number, note) for number in _DEFERRED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
