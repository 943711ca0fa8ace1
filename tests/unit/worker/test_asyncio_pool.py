"""What the asyncio pool promises beyond other pools: many coroutines at once, each of which can be ended alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks.app.coroutines import Run
from amqptasks.broker.loop import Loop
from amqptasks.exceptions import SoftTimeLimitExceeded
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.pipe import encode_frame
from amqptasks.worker.outcome import MESSAGE, SUCCEEDED, FollowUp, Outcome
from amqptasks.worker.pools.asyncio_pool import AsyncioPool, SharedSlot
from amqptasks.worker.pools.pool import PoolEvents
from amqptasks.worker.pools.window import Abandoned, run_limited
from amqptasks.worker.request import Request
from tests.loops import turn_until
from tests.requests import Deliverer

Emit = Callable[[bytes], None]


class Hall:
    """A pool whose coroutines do what their bodies say, and whose reports are kept."""

    def __init__(self, size: int, threads: int = 32) -> None:
        self.loop = Loop()
        self.outcomes: dict[str, Outcome] = {}
        self.messages: list[str] = []
        self.lost: list[tuple[str, bool]] = []
        self.begun: list[str] = []
        self.caught: list[str] = []
        self.inside: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.doors: dict[str, threading.Event] = {}
        self.busy: list[str] = []
        self._deliverer = Deliverer(self.loop)
        events = PoolEvents(
            lambda _slot, request, outcome: self.outcomes.__setitem__(request.id, outcome),
            lambda _slot, _request, message: self.messages.append(message.message.routing_key),
            lambda request, begun, _how: self.lost.append((request.id, begun)),
            lambda: None,
        )
        self.pool = AsyncioPool(self.loop, size, events, self.run)
        self.pool.run_async, self.pool.threads = self.run_async, threads
        self.pool.is_async = lambda frame: bytes(frame[4])[:5] != b"plain"  # type: ignore[method-assign]
        self.pool.start()
        slot = self.pool.slots[0]
        assert isinstance(slot, SharedSlot)
        self.slot = slot

    # -- where tasks run

    def run(self, frame: list[Any], emit: Emit) -> Outcome:
        self.begun.append(frame[2])
        run_limited(self._stay, frame[2], self.doors.setdefault(frame[2], threading.Event()))
        return Outcome(SUCCEEDED, reason=frame[2])

    def _stay(self, task_id: str, door: threading.Event) -> None:
        try:
            self.inside.append(task_id)
            while not door.wait(0.001):
                pass
        except SoftTimeLimitExceeded:
            self.caught.append(task_id)
        except Abandoned:
            self.caught.append(f"{task_id} abandoned")
            raise

    async def run_async(self, frame: list[Any], emit: Emit, run: Run) -> Outcome:
        number, task_id, body = frame[0], frame[2], bytes(frame[4]).decode()
        self.begun.append(task_id)
        if body == "fail":
            raise RuntimeError("the runner itself has failed")
        if body == "say":
            emit(encode_frame([MESSAGE, number, FollowUp(EncodedMessage("", task_id, b"", b"")).to_plain()]))
        if body in ("gate", "stubborn"):
            await run.drive(self._wait(task_id, body))
        return Outcome(SUCCEEDED, reason=task_id)

    async def _wait(self, task_id: str, body: str) -> None:
        gate = self.gates[task_id] = asyncio.Event()
        try:
            await gate.wait()
        except SoftTimeLimitExceeded:
            self.caught.append(task_id)
        except asyncio.CancelledError:
            self.caught.append(f"{task_id} cancelled")
            if body == "stubborn":
                await gate.wait()
            raise

    # -- for tests

    def send(self, task_id: str, body: str = "") -> Request:
        request = self._deliverer.request(task_id, body.encode())
        self.slot.assign(request)
        return request

    def open(self, task_id: str) -> None:
        self.slot._host._loop.call_soon_threadsafe(self.gates[task_id].set)

    def until(self, condition: Callable[[], object]) -> None:
        turn_until(self.loop, condition)

    def close(self) -> None:
        for door in self.doors.values():
            door.set()
        self.pool.kill()
        turn_until(self.loop, lambda: self.pool.is_stopped)
        self.loop.close()


@pytest.fixture
def new() -> Iterator[Callable[..., Hall]]:
    """Open halls; they are closed at the end."""
    made: list[Hall] = []

    def make(size: int, threads: int = 32) -> Hall:
        made.append(Hall(size, threads))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_as_many_run_at_once_as_there_are_places(new: Callable[..., Hall]) -> None:
    # Given 300 places / When 400 waiting coroutines are sent / Then 300 have begun, in order, and the rest can be had
    hall = new(300)
    requests = [hall.send(str(number), "gate") for number in range(400)]
    hall.until(lambda: len(hall.gates) == 300)
    assert hall.begun == [str(number) for number in range(300)]
    assert hall.slot.newly_begun() == requests[:300] and hall.slot.newly_begun() == []
    assert not hall.slot.has_begun(requests[300]) and hall.slot.started(requests[300]) is None
    assert hall.slot.started(requests[0]) is not None
    assert hall.slot.take_back() == requests[300:]
    # And they end in any order, each reported as itself
    for number in reversed(range(300)):
        hall.open(str(number))
    hall.until(lambda: len(hall.outcomes) == 300)
    assert all(outcome.reason == task_id for task_id, outcome in hall.outcomes.items())
    assert not hall.slot.assigned and hall.slot.started(requests[0]) is None


def test_a_place_that_is_free_is_taken_by_what_waits(new: Callable[..., Hall]) -> None:
    hall = new(2)
    for task_id in ("a", "b", "c"):
        hall.send(task_id, "gate")
    hall.until(lambda: set(hall.gates) == {"a", "b"})
    hall.open("b")
    hall.until(lambda: "c" in hall.gates and hall.outcomes)
    assert list(hall.outcomes) == ["b"]


def test_what_a_coroutine_sends_comes_before_its_outcome(new: Callable[..., Hall]) -> None:
    hall = new(10)
    for number in range(10):
        hall.send(str(number), "say")
    hall.until(lambda: len(hall.outcomes) == 10)
    assert sorted(hall.messages) == [str(number) for number in range(10)]


def test_a_runner_that_fails_loses_its_own_task_alone(new: Callable[..., Hall]) -> None:
    # Given a coroutine that waits / When another breaks what runs it / Then that one is lost, and the first goes on
    hall = new(5)
    hall.send("good", "gate")
    hall.send("bad", "fail")
    hall.until(lambda: hall.lost == [("bad", True)])
    hall.until(lambda: "good" in hall.gates)
    hall.open("good")
    hall.until(lambda: "good" in hall.outcomes)
    assert hall.slot.is_open


def test_an_interrupted_coroutine_may_catch_it_and_the_others_know_nothing_of_it(new: Callable[..., Hall]) -> None:
    # Given two coroutines / When one is interrupted / Then it catches the error by its name, and ends well
    hall = new(5)
    first, other = hall.send("first", "gate"), hall.send("other", "gate")
    hall.until(lambda: len(hall.gates) == 2)
    assert hall.slot.interrupt(first, SoftTimeLimitExceeded())
    hall.until(lambda: "first" in hall.outcomes)
    assert hall.caught == ["first"]
    assert list(hall.slot.assigned) == [other]
    # And what has ended cannot be interrupted any more
    assert not hall.slot.interrupt(first, SoftTimeLimitExceeded())


@pytest.mark.parametrize("body", ["gate", "stubborn"])
def test_a_coroutine_that_is_given_up_frees_its_place_whatever_it_does(new: Callable[..., Hall], body: str) -> None:
    # Given one place, and a coroutine in it / When it is given up / Then the next one runs
    hall = new(1)
    request = hall.send("stays", body)
    hall.send("next")
    hall.until(lambda: "stays" in hall.gates)
    assert hall.slot.give_up(request) and not hall.slot.give_up(request)
    hall.until(lambda: "next" in hall.outcomes)
    # And nothing is heard of it any more
    assert hall.caught == ["stays cancelled"]
    assert list(hall.outcomes) == ["next"] and not hall.lost and not hall.slot.assigned


def test_plain_tasks_run_in_a_bounded_number_of_threads_beside(new: Callable[..., Hall]) -> None:
    # Given two threads / When three plain tasks and a coroutine come / Then two and the coroutine run
    hall = new(10, 2)
    plain = [hall.send(task_id, "plain") for task_id in ("a", "b", "c")]
    hall.send("coroutine")
    hall.until(lambda: "coroutine" in hall.outcomes)
    hall.until(lambda: {"a", "b"} <= set(hall.begun))
    assert "c" not in hall.begun and not hall.slot.has_begun(plain[2])
    # And the third can still be had
    assert hall.slot.take_back() == [plain[2]]
    # And one that is given up leaves room for another
    assert hall.slot.give_up(plain[0])
    hall.send("d", "plain")
    hall.until(lambda: "d" in hall.begun)


def test_plain_tasks_are_interrupted_and_given_up_too(new: Callable[..., Hall]) -> None:
    # Given one thread, and a plain task in it / When it is interrupted / Then it may catch that, and ends
    hall = new(10, 1)
    first, second = hall.send("first", "plain"), hall.send("second", "plain")
    hall.until(lambda: hall.inside == ["first"])
    hall.until(lambda: hall.slot.interrupt(first, SoftTimeLimitExceeded()))
    hall.until(lambda: "first" in hall.outcomes)
    assert hall.caught == ["first"] and not hall.slot.interrupt(first, SoftTimeLimitExceeded())
    # And when the next one is given up / Then its thread is free again, and nothing is heard of it
    hall.until(lambda: hall.inside == ["first", "second"])
    assert hall.slot.give_up(second)
    hall.send("third", "plain")
    hall.until(lambda: "third" in hall.begun)
    hall.doors["third"].set()
    hall.doors["second"].set()
    hall.until(lambda: list(hall.outcomes) == ["first", "third"])


def test_stopping_waits_for_coroutines_and_killing_cancels_them(new: Callable[..., Hall]) -> None:
    hall, other = new(5), new(5)
    for each in (hall, other):
        each.send("stays", "gate")
        each.until(lambda each=each: "stays" in each.gates)  # type: ignore[misc]
        each.pool.stop()
    assert not hall.pool.is_stopped
    hall.open("stays")
    hall.until(lambda: hall.pool.is_stopped)
    assert hall.caught == []
    other.pool.kill()
    other.until(lambda: other.pool.is_stopped)
    assert other.caught == ["stays cancelled"]
