"""Which slot gets which task, and when: with real slots, whose other ends the test holds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from amqptasks.broker.loop import Loop
from amqptasks.wire.pipe import FrameReader, encode_frame
from amqptasks.worker.dispatch import MAX_AHEAD, SHORT_RUNS, SHORT_S, Dispatcher
from amqptasks.worker.outcome import SUCCEEDED, FollowUp, Outcome
from amqptasks.worker.pools.slot import Mark, Slot
from amqptasks.worker.request import Request
from tests.loops import turn, turn_until
from tests.requests import Deliverer


class Runner:
    """The other end of a slot, run by hand: it begins and ends tasks when the test says so."""

    def __init__(self, loop: Loop, owner: Bench, name: str) -> None:
        ours, self._sock = socket.socketpair()
        self.mark, self._gate = Mark(), threading.Lock()
        self.slot = Slot(loop, owner, ours, self.mark, self._gate, name)
        self._reader = FrameReader()
        self._sock.setblocking(False)
        self._numbers: list[int] = []

    def received(self) -> list[int]:
        """Numbers of the tasks that have arrived and not ended."""
        try:
            self._numbers += [frame[0] for frame in self._reader.feed(self._sock.recv(1 << 20))]
        except BlockingIOError:
            pass  # nothing more
        return self._numbers

    def begin(self) -> None:
        """Begin the first task that is here."""
        self.mark.begin(self.received()[0])

    def end(self, runtime_s: float) -> None:
        """End it."""
        if self.mark.begun()[0] < self.received()[0]:
            self.begin()
        self._sock.sendall(encode_frame(Outcome(SUCCEEDED, runtime_s).to_frame(self._numbers.pop(0))))

    def close(self) -> None:
        self.slot.close()
        self._sock.close()


class Bench:
    """A dispatcher with slots."""

    def __init__(self, size: int) -> None:
        self.loop = Loop()
        self.begun: list[str] = []
        self.done: list[str] = []
        self.pace: list[bool] = []
        self._deliverer = Deliverer(self.loop)
        self.runners = [Runner(self.loop, self, f"slot-{number}") for number in range(size)]
        self.dispatcher = Dispatcher(self.loop, self.slots, self._on_begun, self.pace.append)
        self._count = 0

    def slots(self) -> list[Slot]:
        return [runner.slot for runner in self.runners]

    def _on_begun(self, request: Request) -> None:
        if request.id not in self.begun:
            self.begun.append(request.id)

    # As the pool does.

    def on_outcome(self, slot: Slot, request: Request, outcome: Outcome) -> None:
        self.done.append(request.id)
        self.dispatcher.finished(outcome.runtime_s)

    def on_message(self, slot: Slot, request: Request, message: FollowUp) -> None:
        raise AssertionError("no task sends anything here")

    def on_broken(self, slot: Slot) -> None:
        raise AssertionError("no slot breaks here")

    # For tests.

    def add(self, count: int) -> list[str]:
        ids = [str(self._count + number) for number in range(count)]
        self._count += count
        for each in ids:
            self.dispatcher.add(self._deliverer.request(each))
        turn(self.loop)
        return ids

    def assigned(self) -> list[list[str]]:
        """Ids of the tasks of each slot."""
        return [[request.id for request in slot.assigned] for slot in self.slots()]

    def waiting(self) -> list[str]:
        return [request.id for request in self.dispatcher.waiting]

    def run(self, runner: Runner, runtime_s: float, count: int = 1) -> None:
        """Let a runner end some tasks, one after another, as they come."""
        for _ in range(count):
            turn_until(self.loop, runner.received)
            done = len(self.done)
            runner.end(runtime_s)
            turn_until(self.loop, partial(self.has_done, done + 1))

    def has_done(self, count: int) -> bool:
        return len(self.done) >= count

    def learn_short(self) -> None:
        """Let tasks run until the dispatcher believes that they are short."""
        done = len(self.done)
        self.add(120)
        while not self.has_done(done + 120):
            turn_until(self.loop, lambda: any(runner.received() for runner in self.runners))
            for runner in self.runners:
                if runner.received():
                    self.run(runner, 0.0)

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        self.loop.close()


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """One slot, or as many as the test's parameter says."""
    bench = Bench(getattr(request, "param", 1))
    yield bench
    bench.close()


def slots(number: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [number], indirect=True, ids=[f"{number} slots"])


# ---- To whom


@slots(3)
def test_each_idle_slot_gets_one_task_and_the_rest_wait(bench: Bench) -> None:
    # Given tasks whose length is not known / When more come than there are slots / Then they wait for an idle one
    bench.add(5)
    assert bench.assigned() == [["0"], ["1"], ["2"]]
    assert bench.waiting() == ["3", "4"]
    assert bench.dispatcher.running == 3
    # When one ends / Then it is that slot that gets the next, in the order of their coming
    bench.run(bench.runners[1], 0.5)
    turn_until(bench.loop, lambda: bench.assigned() == [["0"], ["3"], ["2"]])
    assert bench.waiting() == ["4"]


@slots(2)
def test_a_slot_that_is_closed_gets_nothing(bench: Bench) -> None:
    bench.runners[0].slot.close()
    bench.add(2)
    assert bench.assigned() == [[], ["0"]]
    assert bench.waiting() == ["1"]


@slots(2)
def test_while_it_is_paused_nothing_is_handed_out(bench: Bench) -> None:
    bench.dispatcher.is_paused = True
    bench.add(2)
    assert bench.assigned() == [[], []]
    bench.dispatcher.is_paused = False
    bench.dispatcher.schedule()
    turn(bench.loop)
    assert bench.assigned() == [["0"], ["1"]]


# ---- Sending ahead


def test_only_short_tasks_are_sent_ahead(bench: Bench) -> None:
    # Given tasks that turn out to be short / When many have run so / Then the slot gets several at once, not too many
    bench.add(3)
    assert bench.assigned() == [["0"]]
    bench.learn_short()
    bench.add(300)
    ahead = len(bench.assigned()[0])
    assert 1 < ahead <= MAX_AHEAD
    # When a single one takes long / Then that is over at once: what is there is run, and then they come one by one
    bench.run(bench.runners[0], 60.0)
    bench.run(bench.runners[0], SHORT_S / 10, ahead)
    assert len(bench.assigned()[0]) <= 1


@slots(2)
def test_sending_ahead_fills_the_slots_evenly(bench: Bench) -> None:
    bench.learn_short()
    bench.add(20)
    first, second = (len(each) for each in bench.assigned())
    assert abs(first - second) <= 1 and first > 1


def test_what_waits_behind_a_long_task_is_freed(bench: Bench) -> None:
    # Given a slot that was sent several tasks ahead / When the first of them begins and does not end
    bench.learn_short()
    ids = bench.add(5)
    assert bench.assigned() == [ids]
    bench.runners[0].begin()
    # Then the others are taken back, first in the line again, in their order, and not sent ahead until it is over
    turn_until(bench.loop, lambda: bench.assigned() == [ids[:1]])
    assert bench.waiting() == ids[1:]
    assert bench.runners[0].mark.withdrawn() > 0


@slots(2)
def test_what_is_freed_goes_to_an_idle_slot(bench: Bench) -> None:
    # Given two slots with short tasks, several ahead in each
    bench.learn_short()
    ids = bench.add(6)
    assert sorted(sum(bench.assigned(), [])) == sorted(ids)
    stuck, free = bench.runners
    held = bench.assigned()[0]
    # When one is stuck in its first / Then the other ends up with everything else
    stuck.begin()
    while len(bench.done) < 120 + 5:
        turn(bench.loop)
        if free.received():
            bench.run(free, 0.0)
    assert bench.assigned() == [held[:1], []]


# ---- What is told


def test_a_task_that_has_begun_is_told_while_it_runs(bench: Bench) -> None:
    # Given a task that waits in its slot / When it begins / Then that is told; early acks depend on it
    bench.add(2)
    turn(bench.loop)
    assert bench.begun == []
    turn_until(bench.loop, bench.runners[0].received)
    bench.runners[0].begin()
    turn_until(bench.loop, lambda: bench.begun == ["0"])
    assert bench.waiting() == ["1"]


def test_the_pace_is_called_short_after_many_short_runs_and_not_for_ever(bench: Bench) -> None:
    bench.add(SHORT_RUNS + 2)
    bench.run(bench.runners[0], 0.0, SHORT_RUNS - 1)
    assert bench.pace == []
    bench.run(bench.runners[0], 0.0)
    assert bench.pace == [True]
    bench.run(bench.runners[0], 1.0)
    assert bench.pace == [True, False]
    # It is not called so again at once: changing one's mind costs something
    bench.add(2 * SHORT_RUNS)
    bench.run(bench.runners[0], 0.0, 2 * SHORT_RUNS)
    assert bench.pace == [True, False]


# ---- Taking back


@slots(2)
def test_everything_that_has_not_begun_can_be_taken_back(bench: Bench) -> None:
    # Given tasks in slots and in the line, one of which has begun / When all is taken back / Then all but that one are
    ids = bench.add(5)
    turn_until(bench.loop, bench.runners[0].received)
    bench.runners[0].begin()
    taken = bench.dispatcher.take_back_all()
    assert [each.id for each in taken] == ids[1:]
    assert bench.assigned() == [["0"], []] and bench.waiting() == []
    # And they can be given again, in front of what has come since
    bench.dispatcher.is_paused = True
    late = bench.add(1)
    bench.dispatcher.add_first(taken)
    assert bench.waiting() == ids[1:] + late


def test_the_last_of_the_line_can_be_taken_out(bench: Bench) -> None:
    # As is done when the broker may have fewer outstanding from now on
    bench.add(6)
    assert [each.id for each in bench.dispatcher.pop_beyond(2)] == ["3", "4", "5"]
    assert bench.waiting() == ["1", "2"]
    assert bench.dispatcher.pop_beyond(2) == bench.dispatcher.pop_beyond(10) == []
