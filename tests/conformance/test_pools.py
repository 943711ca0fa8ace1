"""What every pool promises, asked of each of them, on a real loop with real runners.

A new pool needs one line in `SUBJECTS`: a name, and what makes it of a loop, a size, its events and its runner.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amqptasks.broker.loop import Loop
from amqptasks.exceptions import SoftTimeLimitExceeded
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.pipe import encode_frame
from amqptasks.worker.outcome import FAILED, MESSAGE, SUCCEEDED, FollowUp, Outcome
from amqptasks.worker.pools.asyncio_pool import AsyncioPool
from amqptasks.worker.pools.guard import Guard
from amqptasks.worker.pools.pool import Pool, PoolEvents
from amqptasks.worker.pools.prefork import PreforkPool
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.pools.threads import ThreadPool
from amqptasks.worker.pools.window import run_limited
from amqptasks.worker.request import Request
from tests.loops import turn, turn_until
from tests.requests import Deliverer
from tests.running import Gate

# Workers fork before they have threads; this process has some, of other tests.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SUBJECTS: dict[str, type[Pool]] = {"asyncio": AsyncioPool, "prefork": PreforkPool, "threads": ThreadPool}
#: Whose slots die with what runs in them; in a shared slot only the one task is lost (test_asyncio_pool.py).
MORTAL = [name for name in SUBJECTS if name != "asyncio"]
KILLABLE = [name for name, kind in SUBJECTS.items() if kind.can_kill]

Run = Callable[[list[Any], Callable[[bytes], None]], Outcome]


class Ground:
    """A pool at work: what was assigned, what it reported, and in which order."""

    def __init__(
        self, kind: type[Pool], directory: Path, size: int, settings: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        self.directory = directory
        self.loop = Loop()
        self.outcomes: list[tuple[str, Outcome]] = []
        self.messages: list[tuple[str, str]] = []
        self.lost: list[tuple[str, bool, str]] = []
        self.freed = 0
        self.interrupted: list[str] = []
        self.timed_out: list[str] = []
        #: Reports of every kind in their order.
        self.reports: list[tuple[str, str]] = []
        self._deliverer = Deliverer(self.loop)
        self._gates: list[Gate] = []
        self._before = signal.signal(signal.SIGCHLD, self._on_child)
        events = PoolEvents(
            self._on_outcome, self._on_message, self._on_lost, self._on_free,
            lambda request, _limit_s: self.interrupted.append(request.id),
            lambda request, _limit_s: self.timed_out.append(request.id),
        )  # fmt: skip
        self.pool = kind(self.loop, size, events, self.run)
        for name, value in (settings or {}).items():
            setattr(self.pool, name, value)
        self._guard = Guard(self.loop, self.pool)
        self.pool.start()

    # -- where tasks run

    def run(self, frame: list[Any], emit: Callable[[bytes], None]) -> Outcome:
        """Do what a task's body says, as the executor does: within its time limits, if it has any."""
        try:
            return run_limited(self._work, frame, emit) if frame[3].get("timelimit") else self._work(frame, emit)
        except SoftTimeLimitExceeded:
            return Outcome(FAILED, 0.0, reason=frame[2])

    def _work(self, frame: list[Any], emit: Callable[[bytes], None]) -> Outcome:
        """Do what a task's body says, and note that it was done."""
        number, _name, task_id, _headers, body = frame[:5]
        descriptor = os.open(self.directory / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{task_id}\n".encode())
        os.close(descriptor)
        verb, _, argument = bytes(body[:50]).decode().partition(":")
        follow_ups: tuple[FollowUp, ...] = ()
        if verb == "gate":
            with open(self.directory / f"gate-{argument}") as gate:
                gate.read()
        elif verb == "spin":
            end = time.monotonic() + float(argument)
            while time.monotonic() < end:
                pass
        elif verb == "catch":
            try:
                while True:
                    pass
            except SoftTimeLimitExceeded:
                return Outcome(SUCCEEDED, 0.0, reason=task_id)
        elif verb == "loop in C":
            sum(range(10**13))
        elif verb == "stay":
            threading.Event().wait()
        elif verb == "die":
            os._exit(3)
        elif verb == "fail":
            raise RuntimeError("the runner itself has failed")
        elif verb == "say":
            for text in ("one", "two"):
                message = FollowUp(EncodedMessage("", text, b"", b"")).to_plain()
                emit(encode_frame([MESSAGE, number, message]))
        elif verb == "large":
            follow_ups = (FollowUp(EncodedMessage("", "large", b"", body)),)
        return Outcome(SUCCEEDED, 0.0, follow_ups, reason=task_id)

    # -- what the pool reports

    def _on_outcome(self, _slot: Slot, request: Request, outcome: Outcome) -> None:
        assert outcome.reason == request.id, "the outcome of another task"
        self.outcomes.append((request.id, outcome))
        self.reports.append(("outcome", request.id))

    def _on_message(self, _slot: Slot, request: Request, message: FollowUp) -> None:
        self.messages.append((request.id, message.message.routing_key))
        self.reports.append(("message", request.id))

    def _on_lost(self, request: Request, begun: bool, how: str) -> None:
        self.lost.append((request.id, begun, how))

    def _on_free(self) -> None:
        self.freed += 1

    def _on_child(self, _number: int, _frame: Any) -> None:
        reap = getattr(self.pool, "reap", None)
        if reap is not None:
            self.loop.call_threadsafe(reap)

    # -- for tests

    def request(self, task_id: str, body: bytes | str = b"") -> Request:
        return self._deliverer.request(task_id, body if isinstance(body, bytes) else body.encode())

    def assign(
        self, slot: Slot, task_id: str, body: str = "", *, hard: float | None = None, soft: float | None = None
    ) -> Request:
        """Give a slot a task, as the dispatcher does."""
        request = self.request(task_id, body)
        request.limits = None if hard is None and soft is None else (hard, soft)
        slot.assign(request)
        if request.limits is not None:
            self._guard.watch(slot, request)
        return request

    def gate(self, name: str) -> Gate:
        self._gates.append(Gate(self.directory, name))
        return self._gates[-1]

    def turn_until(self, condition: Callable[[], object]) -> None:
        turn_until(self.loop, condition)

    @property
    def done(self) -> list[str]:
        """Ids of the tasks that have ended, in order."""
        return [task_id for task_id, _outcome in self.outcomes]

    def has_done_more_than(self, count: int) -> bool:
        return len(self.done) > count

    def has_replaced(self, slot: Slot) -> bool:
        return slot not in self.pool.slots and all(each.is_open for each in self.pool.slots)

    def has_heard_of(self, count: int) -> bool:
        return len(self.done) + len(self.timed_out) + len(self.lost) >= count

    @property
    def runs(self) -> list[str]:
        """Ids of the tasks that have begun, as they noted it themselves."""
        path = self.directory / "ledger"
        return path.read_text().split() if path.exists() else []

    def close(self) -> None:
        for gate in self._gates:
            gate.open()
        self.pool.stop()
        try:
            self.turn_until(lambda: self.pool.is_stopped)
        finally:
            self.pool.kill()
            signal.signal(signal.SIGCHLD, self._before)
            self.loop.close()
            # Forking pools freeze what is alive: right for a worker, too much for a process that goes on testing.
            gc.unfreeze()


@pytest.fixture(params=sorted(SUBJECTS))
def kind(request: pytest.FixtureRequest) -> type[Pool]:
    """Each pool in turn."""
    return SUBJECTS[request.param]


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Callable[..., Ground]]:
    """Start pools; they are stopped at the end."""
    made: list[Ground] = []

    def make(kind: type[Pool], size: int = 1, **settings: Any) -> Ground:
        made.append(Ground(kind, tmp_path, size, settings))
        return made[-1]

    yield make
    for ground in made:
        ground.close()


@pytest.fixture
def ground(new: Callable[..., Ground], kind: type[Pool]) -> Ground:
    """A pool of one slot."""
    return new(kind)


# ---- Outcomes


def test_each_task_has_one_outcome_and_they_come_in_order(ground: Ground) -> None:
    # Given a slot / When it gets many tasks at once and one by one
    (slot,) = ground.pool.slots
    ids = [str(number) for number in range(200)]
    for task_id in ids[:150]:
        slot.assign(ground.request(task_id))
    for task_id in ids[150:]:
        slot.assign(ground.request(task_id))
        turn(ground.loop)
    ground.turn_until(lambda: len(ground.done) >= 200)
    # Then each ran once and was reported once, in the order of assignment
    assert ground.done == ground.runs == ids
    assert not slot.assigned and not ground.lost


def test_slots_work_side_by_side(new: Callable[..., Ground], kind: type[Pool]) -> None:
    # Given three slots, or one of three places, of which two are held by a task
    # When the third gets tasks / Then those are done meanwhile
    ground = new(kind, 3)
    gates = [ground.gate(f"g{number}") for number in range(2)]
    slots = ground.pool.slots * 3 if ground.pool.slots[0].is_shared else ground.pool.slots
    for slot, gate in zip(slots, gates, strict=False):
        slot.assign(ground.request(gate.name, f"gate:{gate.name}"))
    for gate in gates:
        ground.turn_until(partial(_is_reached, gate))
    for number in range(5):
        slots[2].assign(ground.request(str(number)))
    ground.turn_until(lambda: len(ground.done) == 5)
    assert [slot.begun()[0] for slot in slots] == ([7] * 3 if slots[0].is_shared else [1, 1, 5])
    for gate in gates:
        gate.open()
    ground.turn_until(lambda: len(ground.done) == 7)
    assert len({slot.name for slot in slots}) == (1 if slots[0].is_shared else 3)


def _is_reached(gate: Gate) -> bool:
    try:
        gate.reached(0)
    except AssertionError:
        return False
    return True


def test_what_a_task_sends_while_it_runs_comes_before_its_outcome(ground: Ground) -> None:
    (slot,) = ground.pool.slots
    slot.assign(ground.request("a", "say"))
    slot.assign(ground.request("b", "say"))
    ground.turn_until(lambda: len(ground.done) == 2)
    assert ground.messages == [("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")]
    assert ground.reports == [
        ("message", "a"), ("message", "a"), ("outcome", "a"), ("message", "b"), ("message", "b"), ("outcome", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [0, 1000, 300_000, 5_000_000])
def test_bodies_and_results_of_any_size_go_through(ground: Ground, size: int) -> None:
    # Given tasks whose bodies are larger than any buffer between / When they send them back / Then nothing is missing
    (slot,) = ground.pool.slots
    body = b"large:" + b"x" * size
    for task_id in ("a", "b"):
        slot.assign(ground.request(task_id, body))
    ground.turn_until(lambda: len(ground.done) == 2)
    for _task_id, outcome in ground.outcomes:
        (follow_up,) = outcome.follow_ups
        assert isinstance(follow_up, FollowUp) and follow_up.message.body == body


def test_what_has_begun_is_known_without_asking(ground: Ground) -> None:
    # Given a task at a gate, and one behind it / When the slot is looked at / Then exactly the first has begun
    (slot,) = ground.pool.slots
    gate = ground.gate("g")
    assert slot.begun()[0] == 0
    first, second = ground.request("first", "gate:g"), ground.request("second")
    slot.assign(first)
    slot.assign(second)
    ground.turn_until(lambda: _is_reached(gate))
    number, started = slot.begun()
    assert number == first.number and started > 0
    gate.open()
    ground.turn_until(lambda: len(ground.done) == 2)
    assert slot.begun()[0] == second.number


# ---- Sending ahead and taking back


def test_what_has_not_begun_can_be_taken_back(ground: Ground) -> None:
    # Given a slot that is held by its first task, with others behind
    (slot,) = ground.pool.slots
    gate = ground.gate("g")
    requests = [ground.request("held", "gate:g")] + [ground.request(str(number)) for number in range(5)]
    for each in requests:
        slot.assign(each)
    ground.turn_until(lambda: _is_reached(gate))
    # When those are taken back / Then they never run there, and the slot goes on with later ones
    assert slot.take_back() == requests[1:]
    assert slot.take_back() == []
    assert list(slot.assigned) == requests[:1]
    slot.assign(ground.request("later"))
    gate.open()
    ground.turn_until(lambda: len(ground.done) == 2)
    assert ground.done == ground.runs == ["held", "later"]
    # And they can be assigned anew
    for each in requests[1:]:
        slot.assign(each)
    ground.turn_until(lambda: len(ground.done) == 7)
    assert ground.runs == ["held", "later", "0", "1", "2", "3", "4"]


def test_no_task_is_both_taken_back_and_run(new: Callable[..., Ground], kind: type[Pool]) -> None:
    # Given tasks that are sent ahead all the time / When they are taken back at any moment
    ground = new(kind, 2)
    chance = random.Random()
    assigned: list[str] = []
    taken: list[str] = []
    for round_ in range(150):
        slot = chance.choice(ground.pool.slots)
        for number in range(chance.randrange(1, 12)):
            assigned.append(f"{round_}.{number}")
            slot.assign(ground.request(assigned[-1]))
        for _ in range(chance.randrange(3)):
            ground.loop.call_later(0, lambda: None)
            ground.loop.poll()
            ground.loop.process_timeouts()
        taken += [each.id for each in chance.choice(ground.pool.slots).take_back()]
    ground.turn_until(lambda: len(ground.done) + len(taken) >= len(assigned))
    # Then each was run and reported, or taken back; none both, none neither
    assert sorted(ground.done) == sorted(ground.runs)
    assert sorted(ground.done + taken) == sorted(assigned)
    assert taken, "nothing was ever taken back: this shows nothing"


# ---- Runners that die


@pytest.mark.parametrize("name", MORTAL)
def test_a_runner_that_fails_is_replaced_and_its_task_reported(new: Callable[..., Ground], name: str) -> None:
    # Given a task that breaks what runs it, with others behind / When it runs
    ground = new(SUBJECTS[name])
    (slot,) = ground.pool.slots
    slot.assign(ground.request("good"))
    ground.turn_until(lambda: ground.done)
    for task_id, body in (("bad", "fail"), ("behind", ""), ("last", "")):
        slot.assign(ground.request(task_id, body))
    ground.turn_until(lambda: len(ground.lost) == 3 and ground.pool.slots[0].is_open)
    # Then it is lost and had begun, the others had not, and there is a new slot that works
    assert [(task_id, begun) for task_id, begun, _how in ground.lost] == [
        ("bad", True), ("behind", False), ("last", False),
    ]  # fmt: skip
    assert ground.done == ["good"] and ground.freed == 1
    (fresh,) = ground.pool.slots
    assert fresh is not slot and not slot.is_open
    fresh.assign(ground.request("next"))
    ground.turn_until(lambda: len(ground.done) == 2)
    assert ground.runs == ["good", "bad", "next"]


@pytest.mark.parametrize("name", KILLABLE)
@pytest.mark.parametrize("death", ["kill -9", "exit"])
def test_a_killed_child_reports_what_had_begun_and_what_had_not(
    new: Callable[..., Ground], name: str, death: str
) -> None:
    # Given a child in the middle of a task, with one done before and others behind
    ground = new(SUBJECTS[name])
    (slot,) = ground.pool.slots
    gate = ground.gate("g")
    slot.assign(ground.request("done"))
    slot.assign(ground.request("running", "gate:g" if death == "kill -9" else "die"))
    for number in range(3):
        slot.assign(ground.request(str(number)))
    # When it is killed, or exits by itself
    if death == "kill -9":
        ground.turn_until(lambda: _is_reached(gate))
        os.kill(slot.pid, signal.SIGKILL)
    ground.turn_until(lambda: len(ground.lost) == 4)
    # Then the running one had begun, the others had not, and what was done is reported as done
    how = "signal 9 (SIGKILL)" if death == "kill -9" else "exit code 3"
    assert ground.lost == [("running", True, how)] + [(str(number), False, how) for number in range(3)]
    assert ground.done == ["done"]
    # And another child is there at once, for it had lived to see a task
    (fresh,) = ground.pool.slots
    assert fresh.pid != slot.pid and fresh.name == slot.name and fresh.is_open
    fresh.assign(ground.request("next"))
    ground.turn_until(lambda: len(ground.done) == 2)
    assert ground.runs == ["done", "running", "next"]


@pytest.mark.parametrize("name", KILLABLE)
def test_children_killed_at_any_moment_lose_no_task_and_report_none_twice(
    new: Callable[..., Ground], name: str
) -> None:
    # Given children that get many short tasks / When they are killed again and again
    ground = new(SUBJECTS[name], 2)
    assigned: list[str] = []
    for round_ in range(12):
        for slot in ground.pool.slots:
            for number in range(30):
                assigned.append(f"{round_}.{slot.name}.{number}")
                slot.assign(ground.request(assigned[-1]))
        victim = ground.pool.slots[round_ % 2]
        ground.turn_until(partial(ground.has_done_more_than, len(ground.done)))
        os.kill(victim.pid, signal.SIGKILL)
        ground.turn_until(partial(ground.has_replaced, victim))
    ground.turn_until(lambda: len(ground.done) + len(ground.lost) == len(assigned))
    # Then each task is done, or lost, and a lost one that had not begun has left no trace
    lost = [task_id for task_id, _begun, _how in ground.lost]
    assert sorted(ground.done + lost) == sorted(assigned)
    unbegun = {task_id for task_id, begun, _how in ground.lost if not begun}
    assert not unbegun & set(ground.runs)
    # At most one a death had begun and was not reported; what had ended before is done.
    assert sum(begun for _task_id, begun, _how in ground.lost) <= 12
    assert len(ground.runs) == len(set(ground.runs))


@pytest.mark.parametrize("name", KILLABLE)
def test_a_child_that_dies_before_its_first_task_is_replaced_after_a_pause(
    new: Callable[..., Ground], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a child that has seen no task / When it dies right after its start
    ground = new(SUBJECTS[name], 2)
    victim, other = ground.pool.slots
    os.kill(victim.pid, signal.SIGKILL)
    # Then it is said, and its place stays empty for now: what kills it might kill the next one as well
    said = "ended right after its start (signal 9 (SIGKILL)); trying again in 1 s"
    ground.turn_until(lambda: said in caplog.text)
    assert not victim.is_open
    assert ground.pool.slots == [victim, other] and ground.freed == 0
    # And a new one comes after the pause
    ground.turn_until(lambda: ground.pool.slots[0] is not victim)
    assert ground.freed == 1
    ground.pool.slots[0].assign(ground.request("a"))
    ground.turn_until(lambda: ground.done == ["a"])


@pytest.mark.parametrize("name", KILLABLE)
def test_a_child_keeps_none_of_the_other_slots_sockets(new: Callable[..., Ground], name: str) -> None:
    # Given several children, the last of them forked beside the sockets of the others, one of them again later
    ground = new(SUBJECTS[name], 3)
    first, second, third = ground.pool.slots
    for slot in (first, second, third):
        slot.assign(ground.request(f"of {slot.name}"))
    ground.turn_until(lambda: len(ground.done) == 3)
    os.kill(third.pid, signal.SIGKILL)
    ground.turn_until(lambda: ground.pool.slots[2].pid != third.pid)
    # When the parent's end of one is closed / Then that child ends: nobody else holds it open
    pid = second.pid
    second.close()
    ground.turn_until(lambda: pid not in _children_of(os.getpid()))


def _children_of(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            found.update(int(each) for each in task.read_text().split())
    return found


# ---- Time limits


def test_a_task_is_interrupted_at_its_soft_limit_and_may_catch_that(ground: Ground) -> None:
    # Given tasks that run for ever / When they are past their soft limit / Then one fails by it, one catches it
    (slot,) = ground.pool.slots
    ground.assign(slot, "fails", "spin:1000", soft=0.05)
    ground.turn_until(lambda: len(ground.done) == 1)
    ground.assign(slot, "catches", "catch", soft=0.05, hard=100)
    ground.turn_until(lambda: len(ground.done) == 2)
    assert [(task_id, outcome.kind) for task_id, outcome in ground.outcomes] == [
        ("fails", FAILED), ("catches", SUCCEEDED),
    ]  # fmt: skip
    # And the slot goes on with others
    ground.assign(slot, "next")
    ground.turn_until(lambda: len(ground.done) == 3)
    assert ground.interrupted == ["fails", "catches"]
    assert ground.pool.slots == [slot] and not ground.lost and not ground.timed_out


def test_a_soft_limit_hits_its_own_task_or_nobody(ground: Ground) -> None:
    # Given tasks that end just when their limit does, each with one behind that has none / When they run
    (slot,) = ground.pool.slots
    for number in range(100):
        ground.assign(slot, f"limited{number}", "spin:0.005", soft=0.005)
        ground.assign(slot, f"free{number}", "spin:0.002")
    ground.turn_until(lambda: len(ground.done) == 200)
    # Then every one of the others ended well, whatever became of the limited ones
    failed = [task_id for task_id, outcome in ground.outcomes if outcome.kind == FAILED]
    assert not [task_id for task_id in failed if task_id.startswith("free")]
    assert len(set(ground.done)) == 200
    # And each ran once, but for a limited one that was struck before it could say so
    assert len(ground.runs) == len(set(ground.runs))
    assert not [each for each in set(ground.done) - set(ground.runs) if each.startswith("free")]
    assert ground.pool.slots == [slot] and not ground.lost


@pytest.mark.parametrize("body", ["spin:1000", "loop in C"])
def test_a_task_is_ended_at_its_hard_limit_and_the_slot_works_again(
    new: Callable[..., Ground], kind: type[Pool], body: str
) -> None:
    if body == "loop in C" and not kind.can_kill:
        body = "spin:1000"  # It would keep the interpreter from everybody for a while, this test included.
    # Given a task that takes no notice of anything, with others behind, and other tasks beside
    ground = new(kind, 2)
    slot = ground.pool.slots[0]
    other = ground.pool.slots[-1]
    ground.assign(other, "beside", "spin:0.5", hard=1000)
    ground.assign(slot, "endless", body, hard=0.1)
    if slot is not other:
        for number in range(3):
            ground.assign(slot, str(number))
    # When it is past its hard limit / Then that is told of it alone, once
    ground.turn_until(lambda: ground.timed_out == ["endless"])
    # And those behind had not begun, and come back
    if slot is not other:
        ground.turn_until(lambda: len(ground.lost) == 3)
    assert not [task_id for task_id, begun, _how in ground.lost if begun]
    # And its place is taken by another
    ground.turn_until(lambda: ground.pool.slots[0].is_open)
    ground.assign(ground.pool.slots[0], "next")
    ground.turn_until(lambda: "next" in ground.done)
    ground.turn_until(lambda: "beside" in ground.done)
    assert "endless" not in ground.done and ground.timed_out == ["endless"]


def test_a_task_that_ends_at_its_hard_limit_has_one_end(new: Callable[..., Ground], kind: type[Pool]) -> None:
    # Given tasks that end just when their hard limit does, each with one behind that has none / When they run
    ground = new(kind, 2)
    for number in range(20):
        slot = ground.pool.slots[number % len(ground.pool.slots)]
        ground.assign(slot, f"limited{number}", "spin:0.02", hard=0.02)
        ground.assign(slot, f"free{number}")
        ends = 2 * (number + 1)
        ground.turn_until(partial(ground.has_heard_of, ends))
        ground.turn_until(lambda: all(each.is_open for each in ground.pool.slots))
    # Then each ended well, or was ended; and none of those behind was begun and lost
    lost = [task_id for task_id, _begun, _how in ground.lost]
    assert len(set(ground.done + ground.timed_out + lost)) == 40
    assert not [task_id for task_id, begun, _how in ground.lost if begun]
    assert not [task_id for task_id in ground.timed_out if task_id.startswith("free")]


@pytest.mark.parametrize("name", KILLABLE)
def test_only_the_task_that_runs_can_be_a_reason_to_kill_its_child(new: Callable[..., Ground], name: str) -> None:
    # Given a child that runs a task, with one behind / When one that has ended, or waits, is to be ended / Then not so
    ground = new(SUBJECTS[name], 1)
    (slot,) = ground.pool.slots
    gate = ground.gate("g")
    ended = ground.assign(slot, "ended")
    running = ground.assign(slot, "running", "gate:g")
    waiting = ground.assign(slot, "waiting")
    ground.turn_until(lambda: _is_reached(gate))
    assert not ground.pool.end(slot, ended, 1.0) and not ground.pool.end(slot, waiting, 1.0)
    # And the one that runs is, though it is asked for twice
    assert ground.pool.end(slot, running, 1.0) and ground.pool.end(slot, running, 1.0)
    ground.turn_until(lambda: ground.timed_out == ["running"] and ground.lost)
    assert ground.done == ["ended"] and [task_id for task_id, _begun, _how in ground.lost] == ["waiting"]


def test_the_time_of_a_task_begins_when_it_does(new: Callable[..., Ground], kind: type[Pool]) -> None:
    # Given a task with a limit, sent ahead behind one that is held for longer / When it runs / Then it had its time
    ground = new(kind, 1)
    (slot,) = ground.pool.slots
    gate = ground.gate("g")
    ground.assign(slot, "held", "gate:g")
    ground.assign(slot, "limited", hard=0.05)
    ground.turn_until(lambda: _is_reached(gate))
    ends = time.monotonic() + 0.2
    ground.turn_until(lambda: time.monotonic() > ends)
    gate.open()
    ground.turn_until(lambda: ground.done == ["held", "limited"])
    assert not ground.timed_out and not ground.lost


# ---- Recycling


@pytest.mark.parametrize("name", KILLABLE)
def test_a_child_is_replaced_after_so_many_tasks_and_none_is_lost_by_it(new: Callable[..., Ground], name: str) -> None:
    # Given a child that may run three tasks, and ten at once for it / When they run
    ground = new(SUBJECTS[name], 1, max_tasks=3)
    pids = set()
    todo = [str(number) for number in range(10)]
    while len(ground.done) < 10:
        (slot,) = ground.pool.slots
        pids.add(slot.pid)
        for task_id in todo:
            slot.assign(ground.request(task_id))
        ground.turn_until(lambda: len(ground.done) == 10 or ground.has_replaced(slot))  # noqa: B023
        # Then those that its child was not to begin come back, in their order
        todo = [task_id for task_id, _begun, _how in ground.lost]
        assert not [task_id for task_id, begun, _how in ground.lost if begun]
        ground.lost.clear()
    # And each has run once, three in each process
    assert ground.done == ground.runs == [str(number) for number in range(10)]
    assert len(pids) == 4
    # And the old ones end
    ground.turn_until(lambda: _children_of(os.getpid()) & pids == {ground.pool.slots[0].pid} & pids)


@pytest.mark.parametrize("name", KILLABLE)
def test_a_child_is_replaced_once_it_has_too_much_memory(new: Callable[..., Ground], name: str) -> None:
    # Given children that may have as good as nothing / When they run a task each / Then each is its last
    ground = new(SUBJECTS[name], 1, max_memory_kib=1)
    for number in range(3):
        (slot,) = ground.pool.slots
        if number == 2:
            ground.pool.max_memory_kib = 2**40  # type: ignore[attr-defined]  # for those that are forked from now on
        slot.assign(ground.request(str(number)))
        ground.turn_until(partial(ground.has_replaced, slot))
    assert ground.done == ["0", "1", "2"] and not ground.lost
    # And with room enough it stays
    (slot,) = ground.pool.slots
    for number in range(3, 6):
        slot.assign(ground.request(str(number)))
    ground.turn_until(lambda: len(ground.done) == 6)
    assert ground.pool.slots == [slot]


# ---- Stopping


def test_stopping_lets_idle_runners_end_and_may_be_asked_for_twice(
    new: Callable[..., Ground], kind: type[Pool]
) -> None:
    ground = new(kind, 3)
    ground.pool.slots[0].assign(ground.request("a"))
    ground.turn_until(lambda: ground.done)
    threads, pids = threading.active_count(), {slot.pid for slot in ground.pool.slots} - {os.getpid()}
    assert not ground.pool.is_stopped
    # When the pool is stopped, twice / Then everything that ran tasks is gone, and nothing is replaced
    ground.pool.stop()
    ground.pool.stop()
    ground.turn_until(lambda: ground.pool.is_stopped)
    assert not pids & _children_of(os.getpid())
    assert kind is not ThreadPool or threading.active_count() <= threads - 3
    assert ground.lost == [] and ground.freed == 0
    ground.pool.stop()
    assert ground.pool.is_stopped


def test_a_stopping_pool_waits_for_a_running_task(ground: Ground) -> None:
    # Given a task at a gate / When the pool is stopped / Then it is not stopped before that task has ended
    gate = ground.gate("g")
    ground.pool.slots[0].assign(ground.request("held", "gate:g"))
    ground.turn_until(lambda: _is_reached(gate))
    ground.pool.stop()
    for _ in range(3):
        turn(ground.loop)
    assert not ground.pool.is_stopped
    gate.open()
    ground.turn_until(lambda: ground.pool.is_stopped)


@pytest.mark.parametrize("name", KILLABLE)
def test_killing_ends_running_tasks_and_replaces_nobody(new: Callable[..., Ground], name: str) -> None:
    # Given children, one in the middle of a task / When the pool is killed, twice
    ground = new(SUBJECTS[name], 2)
    gate = ground.gate("g")
    ground.pool.slots[0].assign(ground.request("held", "gate:g"))
    ground.turn_until(lambda: _is_reached(gate))
    ground.pool.kill()
    ground.pool.kill()
    # Then all of them are gone and the running task is reported
    ground.turn_until(lambda: ground.pool.is_stopped)
    ground.turn_until(lambda: ground.lost)
    assert ground.lost == [("held", True, "signal 9 (SIGKILL)")]
    assert ground.pool.slots == [] and ground.freed == 0


@pytest.mark.parametrize("name", KILLABLE)
def test_children_end_with_their_parent(tmp_path: Path, name: str) -> None:
    # Given a process that has a pool, and is killed without a chance to tell its children
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            ground = Ground(SUBJECTS[name], tmp_path, 2)
            ground.pool.slots[0].assign(ground.request("held", "stay"))
            ground.turn_until(lambda: ground.pool.slots[0].begun()[0] == 1)
            os.write(writing, b" ".join(str(slot.pid).encode() for slot in ground.pool.slots) + b"\n")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as lines:
        pids = [int(each) for each in lines.readline().split()]
        assert len(pids) == 2
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        # Then they end too, the busy one as well: the last of them closes the pipe that they inherited
        try:
            assert select.select([lines], [], [], 20)[0], "they live on"
            assert lines.read() == ""
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


# ---- Size

RESIZABLE = [name for name, kind in SUBJECTS.items() if kind.can_resize]


@pytest.mark.parametrize("name", RESIZABLE)
def test_a_pool_grows_while_its_slots_are_busy(new: Callable[..., Ground], name: str) -> None:
    # Given a pool whose only slot is held by a task
    ground = new(SUBJECTS[name])
    pool, gate = ground.pool, ground.gate("g")
    ground.assign(pool.slots[0], "held", "gate:g")
    ground.turn_until(partial(_is_reached, gate))
    # When it grows / Then it says that there is room, and the new ones run tasks
    freed = ground.freed
    pool.grow(2)
    assert (pool.size, len(pool.slots), ground.freed) == (3, 3, freed + 1)
    for number, slot in enumerate(pool.slots[1:]):
        ground.assign(slot, str(number))
    ground.turn_until(lambda: sorted(ground.done) == ["0", "1"])
    assert len({slot.name for slot in pool.slots}) == 3


@pytest.mark.parametrize("name", RESIZABLE)
def test_idle_slots_go_first_and_a_busy_one_after_its_task(new: Callable[..., Ground], name: str) -> None:
    # Given three slots, of which one is held by a task, with another sent ahead to it
    ground = new(SUBJECTS[name], 3)
    pool, gate = ground.pool, ground.gate("g")
    held, *idle = pool.slots
    ground.assign(held, "held", "gate:g")
    ground.turn_until(partial(_is_reached, gate))
    ground.assign(held, "ahead")

    # When the pool shrinks by two / Then the idle ones go, and the other still takes tasks
    pool.shrink(2)
    assert (pool.size, pool.slots, held.is_open) == (1, [held], True)

    # When it shrinks once more / Then its slot takes none any more, and gives back what has not begun
    pool.shrink(1)
    assert (pool.size, pool.slots, held.is_open) == (0, [held], False)
    assert ground.lost == [("ahead", False, "the pool has become smaller")]

    # And it goes when its task has ended, which it does, and none takes its place
    gate.open()
    ground.turn_until(lambda: not pool.slots)
    assert ground.done == ["held"]
    if isinstance(pool, PreforkPool):
        ground.turn_until(lambda: pool.is_stopped)

    # And the pool can grow again, under the old names
    pool.grow(2)
    assert [slot.name for slot in pool.slots] == [held.name, min(each.name for each in idle)]
    ground.assign(pool.slots[1], "again")
    ground.turn_until(lambda: ground.done == ["held", "again"])


@pytest.mark.parametrize("name", KILLABLE)
def test_a_slot_that_is_to_go_is_not_replaced_when_it_dies(new: Callable[..., Ground], name: str) -> None:
    # Given two slots that are to go after their tasks
    ground = new(SUBJECTS[name], 2)
    pool = ground.pool
    ground.gate("g")
    for slot in pool.slots:
        ground.assign(slot, slot.name, "gate:g")
    ground.turn_until(lambda: len(ground.runs) == 2)
    pool.shrink(2)
    # When their processes die / Then their tasks are reported as lost, and there are no slots
    for slot in list(pool.slots):
        os.kill(slot.pid, signal.SIGKILL)
    ground.turn_until(lambda: len(ground.lost) == 2)
    assert pool.slots == [] and all(begun for _id, begun, _how in ground.lost)


def test_a_child_that_has_run_enough_is_not_replaced_if_it_is_to_go(new: Callable[..., Ground]) -> None:
    # Given a child that is to end after its task in any case / When the pool shrinks meanwhile / Then there is none
    ground = new(PreforkPool, max_tasks=1)
    pool, gate = ground.pool, ground.gate("g")
    ground.assign(pool.slots[0], "held", "gate:g")
    ground.turn_until(partial(_is_reached, gate))
    pool.shrink(1)
    gate.open()
    ground.turn_until(lambda: pool.is_stopped)
    assert ground.done == ["held"] and pool.slots == [] and not ground.lost
