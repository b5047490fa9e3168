"""Documents that are small and dear: each is judged in the time and memory of an ordinary one."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest
from kit.attacks import ATTACKS, PLAIN

from agent.desired.state import DEFAULT_MAX_BYTES, parse
from agent.errors import MOST_VIOLATIONS, InvalidError

MOST_TIMES_SLOWER = 10  # than an ordinary document of 588 KB (0.7 s); they were 20 to 370 times slower
MOST_MEMORY = 150  # MB
LONGEST_MESSAGE = 40_000  # characters: it goes to the log, to status.json, to whoever synced


def _judged(data: bytes) -> tuple[float, InvalidError | None]:
    begin = time.process_time()
    try:
        parse(data, file="desired.yaml")
    except InvalidError as error:
        return time.process_time() - begin, error
    return time.process_time() - begin, None


@pytest.fixture(scope="module")
def plain() -> float:
    """Seconds for an ordinary document, in the same run."""
    seconds, error = _judged(PLAIN())
    assert error is None
    return seconds


def _measured(make: Callable[[], bytes], answer: Connection) -> None:
    data = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, error = _judged(data)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    said = None if error is None else (len(error.violations), error.total, len(str(error)))
    answer.send((len(data), seconds, memory, said))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_small_document_costs_little(name: str, plain: float):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measured, args=(ATTACKS[name], theirs))
    process.start()
    theirs.close()
    size, seconds, memory, said = ours.recv()
    process.join()
    assert size <= DEFAULT_MAX_BYTES
    assert seconds / plain < MOST_TIMES_SLOWER
    assert memory < MOST_MEMORY
    if said is not None:
        listed, total, length = said
        assert (listed <= MOST_VIOLATIONS, total >= listed, length < LONGEST_MESSAGE) == (True, True, True)


def test_what_is_not_listed_is_counted():
    with pytest.raises(InvalidError) as raised:
        parse(ATTACKS["mistyped keys in each backend"](), file="desired.yaml")
    assert len(raised.value.violations) == MOST_VIOLATIONS
    assert raised.value.total == 15_000
    assert str(raised.value).endswith("\ndesired.yaml: and at least 14,900 more")
