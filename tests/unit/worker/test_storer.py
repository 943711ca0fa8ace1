"""Storing for the worker's parent, where the place for that cannot be had at once."""

from __future__ import annotations

import logging

import pytest

from amqptasks.broker.loop import Loop
from amqptasks.results.backend import ResultBackend
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord
from amqptasks.states import SUCCESS
from amqptasks.worker.pools.pool import Pool, PoolEvents, Run
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.pools.threads import ThreadPool
from amqptasks.worker.storer import Storer


class ScarcePool(ThreadPool):
    """Gets its thread at the second try."""

    tries = 0

    def spawn(self, index: int) -> Slot:
        """As Python does where the system has no more threads."""
        ScarcePool.tries += 1
        if ScarcePool.tries == 1:
            raise RuntimeError("can't start new thread")
        return super().spawn(index)


def test_a_result_is_stored_once_there_is_a_place_to_store_it(caplog: pytest.LogCaptureFixture) -> None:
    # Given no thread to store in, at first / When two results are to be stored
    loop, backend, told = Loop(), MemoryBackend(), []

    def make_pool(events: PoolEvents, run: Run) -> Pool:
        return ScarcePool(loop, 1, events, run)

    def done(why: str | None) -> None:
        told.append(why)
        if len(told) == 2:
            storer.stop()
            loop.stop()

    given: ResultBackend = backend
    storer = Storer(lambda: given, "json", make_pool)
    for task_id in ("one", "two"):
        storer.store(ResultRecord.now(task_id, SUCCESS, 42), done)
    # Then it is told, and both are stored as soon as there is one
    with caplog.at_level(logging.ERROR):
        loop.run()
    assert told == [None, None]
    assert [record.result for record in map(backend.fetch, ("one", "two")) if record] == [42, 42]
