"""Notes of delayed calls are sent many at once, and none twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from amqptasks.broker.delay_index import BATCH, DelayIndex

Later = list[Callable[[], None]]


def made() -> tuple[DelayIndex, list[list[Any]], Later]:
    """An index, the ids in each message it has sent, and what it wants called later."""
    sent: list[list[Any]] = []
    later: Later = []
    index = DelayIndex(
        "test",
        lambda message, _needs: sent.append([row[0] for row in json.loads(message.body)["calls"]]),
        lambda _wait_s, callback: later.append(callback),
    )
    return index, sent, later


def add(index: DelayIndex, *ids: str) -> None:
    for each in ids:
        index.add((each, "a.task", 1.0, "queue", None, None))


def test_calls_wait_for_others_and_leave_together() -> None:
    index, sent, later = made()
    # When a few calls are noted
    add(index, "a", "b", "c")
    # Then nothing leaves before the time is over, and one timer runs
    assert sent == [] and len(later) == 1
    later.pop()()
    assert sent == [["a", "b", "c"]]
    # And the next ones wait for another
    add(index, "d")
    assert len(later) == 1


def test_many_do_not_wait() -> None:
    index, sent, _later = made()
    add(index, *map(str, range(2 * BATCH + 1)))
    assert [len(each) for each in sent] == [BATCH, BATCH]
    index.flush()
    assert sum(sent, []) == list(map(str, range(2 * BATCH + 1)))


def test_no_thread_loses_or_doubles_any() -> None:
    index, sent, _later = made()
    threads = [
        threading.Thread(target=add, args=(index, *(f"{name}-{number}" for number in range(2000)))) for name in "abcd"
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    index.flush()
    told = sum(sent, [])
    assert len(told) == len(set(told)) == 8000
