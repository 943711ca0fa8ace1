"""Handles of results over rpc:// and over a store: callbacks, groups, chains, trees, bars. On one worker for each."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks import App, chain, group
from amqptasks.exceptions import IncompleteStream, ResultUnreachable, TimeoutError
from amqptasks.progress import track
from amqptasks.result import AsyncResult, GroupResult, ResultSet, result_from_tuple
from amqptasks.results import callbacks, rpc
from amqptasks.results.backend import NoResultBackend
from amqptasks.results.record import ResultRecord
from tests.running import Workshop
from tests.support import ROOT, eventually

SOURCE = """
    from amqptasks import group

    app.conf.update(result_backend=f"{BACKEND}", result_extended=True)

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def behind(name, value=None):
        gate(name)
        return value

    @app.task
    def fail(text="broken"):
        raise ValueError(text)

    @app.task(bind=True)
    def steps(self, name):
        for number in range(3):
            self.update_state(state="PROGRESS", meta={"current": number, "total": 3})
            gate(f"{name}{number}")
        return "all"

    @app.task(trail=True)
    def A(how_many):
        return group(B.s(i) for i in range(how_many))().id

    @app.task(trail=True)
    def B(i):
        return pow2.delay(i).id

    @app.task(trail=True)
    def pow2(i):
        return i ** 2
"""
BACKENDS = {"rpc": "rpc://", "store": "db+sqlite:///{HERE}/results.db"}
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Callable[[str], Workshop]]:
    """Workers by backend, each started once whatever the order of the tests."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def shop_of(kind: str) -> Workshop:
            source = SOURCE.replace("{BACKEND}", BACKENDS[kind])
            made = stack.enter_context(Workshop(tmp_path_factory.mktemp(kind), broker_url, source))
            made.start("-c", "3")
            return made

        yield shop_of


@contextlib.contextmanager
def in_use(shop: Workshop) -> Iterator[Workshop]:
    """A worker for one test, whose tasks do not stay behind gates after it."""
    yield shop
    shop.open_gates()


@pytest.fixture(params=BACKENDS)
def shop(request: pytest.FixtureRequest, shops: Callable[[str], Workshop]) -> Iterator[Workshop]:
    """A worker, with results over rpc:// or in a database."""
    with in_use(shops(request.param)) as used:
        yield used


@pytest.fixture
def store(shops: Callable[[str], Workshop]) -> Iterator[Workshop]:
    """The worker with results in a database."""
    with in_use(shops("store")) as used:
        yield used


@pytest.fixture
def by_rpc(shops: Callable[[str], Workshop]) -> Iterator[Workshop]:
    """The worker with results over rpc://."""
    with in_use(shops("rpc")) as used:
        yield used


class Calls(list[Any]):
    """The calls that were made."""

    def __call__(self, value: Any) -> Any:
        self.append((value, threading.current_thread().name))
        return value

    def come(self, number: int = 1) -> None:
        eventually(lambda: len(self) >= number, WITHIN_S)


def behind_gates(shop: Workshop, number: int) -> tuple[list[Any], Any]:
    """So many gates, and the group of tasks that stand behind them."""
    gates = [shop.gate() for _ in range(number)]
    return gates, group(shop.tasks.behind.s(each.name, index) for index, each in enumerate(gates))()


# -- callbacks


def test_a_callback_is_called_when_the_worker_is_done(shop: Workshop) -> None:
    # Given a running task, with a callback for its end
    gate, calls = shop.gate(), Calls()
    result = shop.tasks.behind.delay(gate.name, "value")
    result.then(calls).then(calls)
    gate.reached()
    assert not calls
    # When the task ends
    gate.open()
    # Then the callback and what follows it are called, once, without anybody waiting for the result
    calls.come(2)
    assert calls == [(result, "amqptasks-callbacks")] * 2 and result.result == "value"


def test_an_error_is_called_back_as_what_the_task_raised(shop: Workshop) -> None:
    errors, calls = Calls(), Calls()
    shop.tasks.fail.delay().then(calls, on_error=errors)
    errors.come()
    assert repr(errors[0][0]) == "ValueError('broken')" and not calls


def test_a_callback_of_a_group_comes_with_its_last_task(shop: Workshop) -> None:
    gates, result = behind_gates(shop, 3)
    calls, first = Calls(), Calls()
    result.then(calls)
    result[1].then(first)
    gates[1].open()
    first.come()
    assert not calls
    for each in gates:
        each.open()
    calls.come()
    assert calls[0][0] is result and result.get(timeout=0) == [0, 1, 2]


def test_hundreds_of_callbacks_are_called(shop: Workshop) -> None:
    calls = Calls()
    with shop.app.bulk():
        results = [shop.tasks.add.delay(number, 1) for number in range(300)]
    for result in results:
        result.then(calls)
    calls.come(300)
    assert sorted(result.result for result, _ in calls) == list(range(1, 301))
    # And nothing is left of them
    assert not callbacks._caller._waiting and not callbacks._caller._arrivals._told


# -- groups and sets


def test_a_group_is_looked_at_and_waited_for_in_every_way(shop: Workshop) -> None:
    # Given a group of which one task runs on
    gate = shop.gate()
    result = group(shop.tasks.add.s(2, 2), shop.tasks.behind.s(gate.name, "last"))()
    assert result[0].get(timeout=WITHIN_S) == 4
    # Then that is what it says
    looks = (result.ready(), result.waiting(), result.successful(), result.failed(), result.completed_count())
    assert looks == (False, True, False, False, 1) and len(result) == 2
    with pytest.raises(TimeoutError):
        result.get(timeout=0.1)
    # And once it is done, every way of waiting gives the same
    gate.open()
    assert result.get(timeout=WITHIN_S) == result.join() == result.join_native() == [4, "last"]
    looks = (result.ready(), result.waiting(), result.successful(), result.failed(), result.completed_count())
    assert looks == (True, False, True, False, 2)
    assert sorted((id_, meta["status"], meta["result"]) for id_, meta in result.iter_native()) == sorted(
        (each.id, "SUCCESS", each.result) for each in result
    )
    seen: list[Any] = []
    assert result.get(callback=lambda *each: seen.append(each)) == []
    assert seen == [(result[0].id, 4), (result[1].id, "last")]


def test_results_come_as_they_are_finished(shop: Workshop) -> None:
    gates, result = behind_gates(shop, 3)
    gates[2].open()
    seen = []
    for each in result.as_completed(timeout=WITHIN_S):
        seen.append(each.result)
        {2: gates[0], 0: gates[1], 1: gates[1]}[seen[-1]].open()
    assert seen == [2, 0, 1]


def test_a_failed_member_ends_the_wait_though_others_run_on(shop: Workshop) -> None:
    gate = shop.gate()
    result = group(shop.tasks.behind.s(gate.name), shop.tasks.fail.s("early"))()
    with pytest.raises(ValueError, match="early"):
        result.get(timeout=WITHIN_S)
    with pytest.raises(ValueError, match="early"):
        result.maybe_throw()
    assert result.failed() and not result.ready()
    gate.open()
    values = result.get(timeout=WITHIN_S, propagate=False)
    assert values[0] is None and repr(values[1]) == "ValueError('early')"


def test_states_on_the_way_are_told_while_waiting(shop: Workshop) -> None:
    # Given a task that says how far it is
    name = uuid.uuid4().hex[:6]
    gates = [shop.gate(f"{name}{number}") for number in range(3)]
    result = shop.tasks.steps.delay(name)
    seen: list[Any] = []

    def on_message(meta: dict[str, Any]) -> None:
        seen.append((meta["status"], meta["result"]))
        if meta["status"] == "PROGRESS":
            gates[meta["result"]["current"]].open()

    # When somebody waits for it who lets it go on with each word of it / Then each state was seen, and the end
    assert result.get(timeout=WITHIN_S, on_message=on_message) == "all"
    assert seen == [("PROGRESS", {"current": each, "total": 3}) for each in range(3)] + [("SUCCESS", "all")]


def test_states_of_a_set_are_told_while_waiting(by_rpc: Workshop) -> None:
    name = uuid.uuid4().hex[:6]
    gates = [by_rpc.gate(f"{name}{number}") for number in range(3)]
    results = ResultSet([by_rpc.tasks.add.delay(1, 1), by_rpc.tasks.steps.delay(name)])
    seen: list[Any] = []

    def on_message(meta: dict[str, Any]) -> None:
        seen.append(meta["status"])
        if meta["status"] == "PROGRESS":
            gates[meta["result"]["current"]].open()

    assert len(list(results.iter_native(timeout=WITHIN_S, on_message=on_message))) == 2
    assert sorted(seen) == ["PROGRESS"] * 3 + ["SUCCESS"] * 2


def test_progress_is_shown_while_waiting(shop: Workshop) -> None:
    file = io.StringIO()
    result = group(shop.tasks.add.s(number, number) for number in range(20))()
    assert result.progress("sums", timeout=WITHIN_S, file=file) == [2 * number for number in range(20)]
    assert file.getvalue().splitlines() == [f"{done}/20 sums" for done in range(2, 21, 2)]
    sums = [each.get() for each in track([shop.tasks.add.delay(1, 1), shop.tasks.add.delay(1, 1)], file=file)]
    assert sums == [2, 2]


# -- chains


def test_every_step_of_a_chain_has_its_result(shop: Workshop) -> None:
    add = shop.tasks.add
    result = chain(add.s(4, 4), add.s(8), add.s(16))()
    assert result.get(timeout=WITHIN_S) == 32
    assert result.parent.get() == 16 and result.parent.parent.get() == 8
    # And it comes back from its plain form
    again = result_from_tuple(pickle.loads(pickle.dumps(result.as_tuple())), app=shop.app)
    assert (again, again.as_list(), again.parent.parent.get()) == (result, result.as_list(), 8)


def test_a_chain_raises_what_an_earlier_step_raised(shop: Workshop) -> None:
    tasks = shop.tasks
    result = chain(tasks.fail.si("first"), tasks.add.si(1, 1), tasks.add.s(1))()
    with pytest.raises(ValueError, match="first"):
        result.get(timeout=WITHIN_S)
    assert repr(result.parent.parent.get(propagate=False)) == "ValueError('first')"


# -- where any process can look


def test_a_tree_of_tasks_is_walked_gathered_and_drawn(store: Workshop) -> None:
    # Given tasks that start tasks that start tasks, as Celery's documentation has them
    result = store.tasks.A.delay(10)
    result.get(timeout=WITHIN_S)

    def finished() -> bool:
        with contextlib.suppress(IncompleteStream):
            return bool(list(result.iterdeps()))
        return False

    eventually(finished, WITHIN_S)
    # Then the values of the leaves are there
    leaves = [value for child, value in result.collect() if not child.children]
    assert leaves == [0, 1, 4, 9, 16, 25, 36, 49, 64, 81] and result.get_leaf() == 81
    # And the tree can be drawn
    drawn = io.StringIO()
    result.graph.to_dot(drawn)
    assert len(result.graph) > 20 and drawn.getvalue().count("->") == len(result.graph) - 1
    assert drawn.getvalue().startswith("digraph dependencies {\n")


def test_a_group_is_saved_for_another_process(store: Workshop) -> None:
    # Given a group that was saved
    result = group(store.tasks.add.s(i, i) for i in range(3))()
    assert result.save() is result
    # When another process asks for it by its id
    program = (
        f"import {store.project.name} as shop\n"
        f"group = shop.app.GroupResult.restore({result.id!r})\n"
        "print(group, group.get(timeout=20))\n"
        "group.delete()\n"
    )
    paths = os.pathsep.join([str(ROOT), str(store.directory)])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    # Then it has it, and may delete it
    assert done.stdout == f"{result.id} [0, 2, 4]\n", done.stderr
    assert store.app.GroupResult.restore(result.id) is None
    # And results are there, for they are not the group's
    assert GroupResult(result.id, [store.app.AsyncResult(each.id) for each in result]).get(timeout=0) == [0, 2, 4]


# -- where none can


def test_rpc_keeps_no_groups_and_says_so(by_rpc: Workshop) -> None:
    result = group(by_rpc.tasks.add.s(1, 1))()
    for order in (result.save, lambda: GroupResult.restore(result.id, app=by_rpc.app), result.delete):
        with pytest.raises(NoResultBackend, match="rpc:// cannot save groups; use one that stores results"):
            order()
    assert result.get(timeout=WITHIN_S) == [2]


def test_the_ids_of_another_process_are_refused_at_once(by_rpc: Workshop) -> None:
    # Given a result that another process has asked for
    program = f"import {by_rpc.project.name} as shop; r = shop.add.delay(1, 1); print(r.id, r.get(timeout=20))"
    paths = os.pathsep.join([str(ROOT), str(by_rpc.directory)])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    task_id, value = done.stdout.split()
    assert value == "2"
    # When this one waits for it, in any way / Then it learns at once that there is nothing to wait for
    stranger = by_rpc.app.AsyncResult(task_id)
    several = GroupResult("g", [by_rpc.tasks.add.delay(1, 1), stranger])
    waits: list[Callable[[], Any]] = [
        stranger.get, stranger.wait, several.get, several.join, several.join_native, several.progress,
        lambda: list(several.iter_native()), lambda: list(several.as_completed()),
        lambda: list(several.iter_native(on_message=print)), lambda: stranger.then(print), lambda: several.then(print),
        lambda: list(stranger.collect(intermediate=True)),
    ]  # fmt: skip
    for wait in waits:
        with pytest.raises(ResultUnreachable, match=f"result of task {task_id} cannot reach this process"):
            wait()


# -- memory


@pytest.fixture
def small(by_rpc: Workshop, broker_url: str) -> Iterator[App]:
    """An app of this process alone, that keeps five results."""
    with App("small", broker=broker_url, backend="rpc://", result_cache_max=5, set_as_current=False) as app:
        app.conf.task_default_queue = by_rpc.queue
        yield app


def test_a_result_that_is_waited_for_keeps_its_place(by_rpc: Workshop, small: App) -> None:
    # Given a result that somebody waits for, another with a callback, and a third that nobody waits for
    gate, calls, name = by_rpc.gate(), Calls(), by_rpc.project.name
    awaited, called = (small.send_task(f"{name}.behind", (gate.name, number)) for number in range(2))
    alone = small.send_task(f"{name}.add", (1, 1))
    called.then(calls)
    values: list[Any] = []
    waiting = threading.Thread(target=lambda: values.append(awaited.get(timeout=WITHIN_S)))
    waiting.start()
    backend: Any = small.backend
    eventually(lambda: bool(backend._slots[awaited.id].waiters), WITHIN_S)
    # When more tasks are sent than places are there
    others = [small.send_task(f"{name}.add", (1, 1)) for _ in range(30)]
    others[-1].get(timeout=WITHIN_S)
    gate.open()
    # Then those that are waited for come, and the third has no place any more
    waiting.join(WITHIN_S)
    calls.come()
    assert values == [0] and calls[0][0].result == 1
    with pytest.raises(ResultUnreachable):
        alone.get()
    assert len(backend._slots) <= 5 + 2


def test_forgetting_ends_the_waits(by_rpc: Workshop) -> None:
    # Given a result that is waited for, in every way
    gate = by_rpc.gate()
    result = by_rpc.tasks.behind.delay(gate.name)
    errors, raised = Calls(), []

    def wait() -> None:
        try:
            result.get(timeout=WITHIN_S)
        except ResultUnreachable as error:
            raised.append(error)

    result.then(print, on_error=errors)
    waiting = threading.Thread(target=wait)
    waiting.start()
    slot = by_rpc.app.backend._slots[result.id]
    eventually(lambda: len(slot.waiters or ()) == 2, WITHIN_S)
    # When it is forgotten / Then nobody waits for ever
    result.forget()
    waiting.join(WITHIN_S)
    errors.come()
    assert len(raised) == 1 and isinstance(errors[0][0], ResultUnreachable)
    gate.open()


def test_a_hundred_thousand_forgotten_results_leave_nothing(by_rpc: Workshop) -> None:
    # Given a program that has forgotten some results already
    backend: Any = by_rpc.app.backend

    def come_and_go(number: int) -> None:
        for _ in range(number):
            result = AsyncResult(str(uuid.uuid4()), backend)
            backend.expect(result.id)
            backend.store(ResultRecord.now(result.id, "SUCCESS", "value"))
            assert result.get(timeout=0) == "value"
            result.forget()

    def counted() -> tuple[int, int, int]:
        gc.collect()
        slots = sum(isinstance(each, rpc._Slot) for each in gc.get_objects())
        return len(backend._slots), slots, sys.getallocatedblocks()

    come_and_go(1000)
    before = counted()
    # When 100,000 come and go
    come_and_go(100_000)
    # Then nothing is left of them
    after = counted()
    assert after[:2] == before[:2] and after[2] - before[2] < 5000
