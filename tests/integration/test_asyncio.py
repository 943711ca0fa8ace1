"""``async def`` tasks in every pool, and asyncio programs that send and wait. On real workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from amqptasks import group
from amqptasks.app.app import App
from amqptasks.exceptions import (
    BulkError,
    NotSent,
    OperationalError,
    ResultUnreachable,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
)
from amqptasks.exceptions import TimeoutError as ResultTimeout
from amqptasks.results.awaiting import Signal
from amqptasks.results.rpc import RpcBackend
from tests.running import Workshop
from tests.support import eventually

SOURCE = """
    import asyncio
    from amqptasks.app import context
    from amqptasks.exceptions import Ignore, Reject, SoftTimeLimitExceeded
    from amqptasks.utils.log import get_task_logger

    logger = get_task_logger(__name__)
    asleep = most = 0
    kept = None

    @app.task
    async def nap(count):
        # Sleeps until so many have been asleep at the same time.
        global asleep, most
        asleep += 1
        most = max(most, asleep)
        while most < count:
            await asyncio.sleep(1)
        asleep -= 1
        return asleep

    @app.task(bind=True)
    async def who(self, number):
        logger.info("number %d begins", number)
        self.update_state(state="HALF", meta=number)
        await asyncio.sleep(0.01)
        logger.info("number %d ends", number)
        return [self.request.id, app.current_task.request.id, context.current().task.name, number]

    @app.task
    async def wait(name):
        await asyncio.to_thread(gate, name)
        note(f"passed {name}")
        return name

    @app.task(acks_late=True)
    async def wait_late(name):
        note(f"begun {name}")
        await asyncio.to_thread(gate, name)
        note(f"passed {name}")
        return os.getpid()

    @app.task
    async def fail(text):
        await asyncio.sleep(0)
        raise ValueError(text)

    @app.task
    async def cancel():
        asyncio.current_task().cancel()
        await asyncio.sleep(5)

    @app.task
    async def ignored():
        raise Ignore

    @app.task(acks_late=True)
    async def rejected():
        raise Reject("no", requeue=False)

    @app.task(bind=True, max_retries=2)
    async def again(self):
        note(f"attempt {self.request.retries}")
        if self.request.retries < 2:
            raise self.retry(countdown=0.1)
        return self.request.retries

    @app.task
    def plain(x):
        return [x * 2, threading.current_thread() is threading.main_thread()]

    @app.task
    def held(name):
        note(f"begun {name}")
        gate(name)
        return name

    @app.task
    async def joins():
        try:
            return await app.AsyncResult("x")
        except RuntimeError as error:
            return str(error)

    @app.task
    async def inner(x):
        await nap(0)
        return x

    @app.task
    async def on_loop():
        global kept
        loop, before = asyncio.get_running_loop(), kept
        kept = loop
        return before is None or before is loop

    @app.task(soft_time_limit=0.3, time_limit=20)
    async def is_told():
        try:
            await asyncio.wait_for(asyncio.sleep(20), 30)
        except SoftTimeLimitExceeded:
            return "told"

    @app.task(time_limit=0.3)
    async def is_ended():
        try:
            await asyncio.sleep(20)
        finally:
            note("is_ended ended")

    @app.task(soft_time_limit=0.3)
    def plain_is_told():
        while True:
            threading.Event().wait(0.01)
"""

PLAIN_POOLS = {"prefork": ("-P", "prefork", "-c", "1"), "threads": ("-P", "threads", "-c", "2"), "solo": ("-P", "solo")}


def shop_with(directory: Path, broker_url: str, *arguments: str) -> Workshop:
    """Open a workshop with one worker."""
    shop = Workshop(directory, broker_url, SOURCE)
    shop.start(*arguments)
    return shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project with a worker whose asyncio pool has 5,000 places."""
    with shop_with(tmp_path_factory.mktemp("asyncio"), broker_url, "-P", "asyncio", "-c", "5000") as shop:
        yield shop


@pytest.fixture(scope="module", params=sorted(PLAIN_POOLS))
def plain_shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> Iterator[Workshop]:
    """A project with a worker of another pool."""
    with shop_with(tmp_path_factory.mktemp("plain"), broker_url, *PLAIN_POOLS[request.param]) as shop:
        yield shop


# ---- The asyncio pool


def test_5000_sleeping_tasks_run_at_once_in_one_process(shop: Workshop) -> None:
    # Given 5,000 tasks that sleep, second by second, until all of them are asleep / When they are sent together
    with shop.app.bulk():
        results = [shop.tasks.nap.delay(5000) for _ in range(5000)]
    # Then every one of them has an answer, and ended once
    assert sorted(result.get(timeout=40) for result in results) == list(range(5000))
    assert shop.workers[0].children() == []
    shop.is_waiting(0)


def test_each_coroutine_sees_its_own_call(shop: Workshop) -> None:
    # Given many coroutines between each other / When they look at their requests, log, and send states
    results = [shop.tasks.who.delay(number) for number in range(50)]
    for number, result in enumerate(results):
        states: list[Any] = []
        name = shop.tasks.who.name
        assert result.get(timeout=20, on_message=states.append) == [result.id, result.id, name, number]
        # Then each is its own, in the log as well
        shop.workers[0].wait_for(rf"{name}\[{result.id}\]: number {number} begins")
        shop.workers[0].wait_for(rf"{name}\[{result.id}\]: number {number} ends")


def test_a_coroutine_tells_how_far_it_is(shop: Workshop) -> None:
    result = shop.tasks.who.delay(7)
    states: list[Any] = []
    result.get(timeout=20, on_message=states.append)
    assert (states[0]["status"], states[0]["result"]) == ("HALF", 7)


def test_plain_tasks_run_beside_the_coroutines(shop: Workshop) -> None:
    # Given a plain task that blocks its thread / When coroutines come / Then they run meanwhile
    gate = shop.gate()
    result = shop.tasks.held.delay(gate.name)
    shop.noted(f"begun {gate.name}")
    assert shop.tasks.inner.delay(4).get(timeout=20) == 4
    assert shop.tasks.plain.delay(4).get(timeout=20) == [8, False]
    gate.open()
    assert result.get(timeout=20) == gate.name


def test_coroutines_reject_and_ignore(shop: Workshop) -> None:
    ignored, rejected = shop.tasks.ignored.delay(), shop.tasks.rejected.delay()
    assert shop.dead_letter_of(rejected.id).headers["id"] == rejected.id
    shop.workers[0].wait_for(rf"{ignored.id}\] ignored")


def test_a_coroutine_that_cancels_itself_fails(shop: Workshop) -> None:
    assert type(shop.tasks.cancel.delay().get(timeout=20, propagate=False)).__name__ == "CancelledError"


def test_early_acks_are_those_of_begun_tasks_and_late_ones_of_finished_tasks(tmp_path: Path, broker_url: str) -> None:
    # Given two places with a prefetch of four, three late-ack tasks that wait, and one behind
    with Workshop(tmp_path, broker_url, SOURCE) as shop:
        first = shop.start("-P", "asyncio", "-c", "2", "--prefetch-multiplier", "2", expected_exits=None)
        gates = [shop.gate(f"g{number}") for number in range(4)]
        results = [shop.tasks.wait_late.delay(gate.name) for gate in gates]
        shop.noted("begun g0")
        shop.noted("begun g1")
        # When the second ends before the first / Then its ack is for it alone: killed, the worker leaves the others
        gates[1].open()
        assert results[1].get(timeout=20) == first.pid
        shop.noted("begun g2")
        eventually(lambda: "passed g1" in shop.ledger())
        first.kill()
        second = shop.start("-P", "asyncio", "-c", "4")
        for gate in gates:
            gate.open()
        assert [results[number].get(timeout=20) for number in (0, 2, 3)] == [second.pid] * 3
        assert shop.ledger().count("begun g0") == 2
        assert shop.ledger().count("passed g0") == 1


def test_a_warm_stop_waits_for_coroutines_and_gives_the_rest_back(tmp_path: Path, broker_url: str) -> None:
    # Given a place that is held, and a task behind / When the worker is told to stop
    with Workshop(tmp_path, broker_url, SOURCE) as shop:
        worker = shop.start("-P", "asyncio", "-c", "1")
        gate = shop.gate()
        result = shop.tasks.wait_late.delay(gate.name)
        shop.noted(f"begun {gate.name}")
        shop.tasks.nap.delay(0)
        worker.signal(15)
        # Then the one behind goes back at once, and the worker ends once the coroutine has
        shop.is_waiting(1)
        assert worker.process.poll() is None
        gate.open()
        assert worker.wait() == 0
        assert result.get(timeout=20) == worker.pid
        shop.is_waiting(1)


def test_coroutines_and_plain_tasks_keep_to_their_time_limits(shop: Workshop) -> None:
    # Given tasks over their limits / When they are told / Then they may catch it; at the hard limit they are over
    told, ended, plain = shop.tasks.is_told.delay(), shop.tasks.is_ended.delay(), shop.tasks.plain_is_told.delay()
    assert told.get(timeout=20) == "told"
    with pytest.raises(TimeLimitExceeded):
        ended.get(timeout=20)
    shop.noted("is_ended ended")
    with pytest.raises(SoftTimeLimitExceeded):
        plain.get(timeout=20)


# ---- Coroutines in other pools


def test_coroutines_run_in_every_pool(plain_shop: Workshop) -> None:
    # Given a worker that runs plain tasks / When coroutines come / Then they run, with all that belongs to them
    tasks = plain_shop.tasks
    result = tasks.who.delay(3)
    assert result.get(timeout=20) == [result.id, result.id, tasks.who.name, 3]
    plain_shop.workers[0].wait_for(rf"{tasks.who.name}\[{result.id}\]: number 3 ends")
    with pytest.raises(ValueError, match="not today") as caught:
        tasks.fail.delay("not today").get(timeout=20)
    assert "await asyncio.sleep" not in str(caught.value.__cause__) and "in fail" in str(caught.value.__cause__)
    assert tasks.inner.delay(5).get(timeout=20) == 5
    assert tasks.plain.delay(1).get(timeout=20)[0] == 2


def test_coroutines_keep_to_their_soft_limit_in_every_pool(plain_shop: Workshop) -> None:
    assert plain_shop.tasks.is_told.delay().get(timeout=20) == "told"


def test_a_place_keeps_its_loop_between_tasks(plain_shop: Workshop) -> None:
    # Given one place (threads have two, and then either loop) / When two coroutines run in it / Then on one loop
    if "threads" in plain_shop.workers[0].process.args:  # type: ignore[operator]
        assert plain_shop.tasks.on_loop.delay().get(timeout=20)
        return
    assert all(plain_shop.tasks.on_loop.delay().get(timeout=20) for _ in range(3))


def test_coroutines_are_tried_again_and_may_not_join(shop: Workshop) -> None:
    assert shop.tasks.again.delay().get(timeout=20) == 2
    assert "Never call result.get() within a task" in shop.tasks.joins.delay().get(timeout=20)


def test_coroutines_are_tried_again_and_may_not_join_in_other_pools(plain_shop: Workshop) -> None:
    assert plain_shop.tasks.again.delay().get(timeout=20) == 2
    assert "Never call result.get() within a task" in plain_shop.tasks.joins.delay().get(timeout=20)


# ---- asyncio programs


def test_programs_send_and_wait_without_threads(shop: Workshop) -> None:
    # Given an asyncio program / When it sends and awaits hundreds of tasks at once
    tasks = shop.tasks

    async def main() -> tuple[list[Any], int]:
        await (await tasks.plain.adelay(0))
        before = threading.active_count()
        results = await asyncio.gather(*(tasks.inner.adelay(number) for number in range(300)))
        values = await asyncio.gather(*results)
        return values, threading.active_count() - before

    # Then every one has its answer, and no thread was needed for any
    values, threads = asyncio.run(main())
    assert values == list(range(300)) and threads <= 0


def test_programs_await_with_options(shop: Workshop) -> None:
    tasks = shop.tasks

    async def main() -> None:
        result = await tasks.plain.aapply_async((2,), countdown=0.05, task_id="my-own-id-" + shop.queue)
        assert result.id == "my-own-id-" + shop.queue
        assert (await result.aget(timeout=20))[0] == 4
        assert (await result)[0] == 4
        failed = await tasks.fail.adelay("wrong")
        with pytest.raises(ValueError, match="wrong"):
            await failed
        assert isinstance(await failed.aget(propagate=False), ValueError)
        assert await (await tasks.plain.aapply_async((1,), ignore_result=True)) is None
        sent = await shop.app.asend_task(tasks.plain.name, (8,))
        assert (await sent)[0] == 16
        with pytest.raises(ResultUnreachable):
            await shop.app.AsyncResult("nobody's")
        with pytest.raises(TypeError, match="signature"):
            await tasks.plain.adelay()

    asyncio.run(main())


def test_a_wait_that_ends_early_leaves_nothing_behind(shop: Workshop) -> None:
    # Given a task that waits, and a program that waits for it / When the wait times out, or is cancelled
    gate = shop.gate()
    result = shop.tasks.wait.delay(gate.name)
    backend = shop.app.backend
    assert isinstance(backend, RpcBackend)

    async def main() -> None:
        with pytest.raises(ResultTimeout, match="timed out"):
            await result.aget(timeout=0.05)
        waits = [asyncio.ensure_future(result.aget()) for _ in range(20)]
        while len(backend._slots[result.id].waiters or ()) < 20:
            await asyncio.sleep(0)
        for each in waits:
            each.cancel()
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)
        # Then nobody is left to be woken, and a later wait is none the worse for it
        assert backend._slots[result.id].waiters == []
        gate.open()
        assert await result.aget(timeout=20) == gate.name

    asyncio.run(main())


def test_several_event_loops_wait_for_one_result(shop: Workshop) -> None:
    gate = shop.gate()
    result = shop.tasks.wait.delay(gate.name)
    backend = shop.app.backend

    def run() -> Any:
        return asyncio.run(result.aget(timeout=20))

    with ThreadPoolExecutor(3) as threads:
        waits = [threads.submit(run) for _ in range(3)]
        eventually(lambda: len(backend._slots[result.id].waiters or ()) == 3)
        gate.open()
        assert [each.result() for each in waits] == [gate.name] * 3


def test_blocks_share_their_round_trips_and_groups_are_awaited(shop: Workshop) -> None:
    # Given a block in an asyncio program / When tasks, a group and a chain are sent in it, in any way
    tasks, app = shop.tasks, shop.app

    async def main() -> None:
        async with app.abulk():
            one, two = tasks.inner.delay(1), await tasks.inner.adelay(2)
            many = group(tasks.inner.s(number) for number in range(5)).delay()
            chain = (tasks.inner.s(3) | tasks.inner.s()).delay()
            async with app.abulk():
                three = tasks.inner.delay(3)
        # Then all of them were sent
        assert list(await asyncio.gather(one, two, three, chain)) == [1, 2, 3, 3]
        assert await many == list(range(5))
        bad = group(tasks.fail.s("wrong"), tasks.wait.s("a gate that is not there")).delay()
        with pytest.raises(Exception, match="wrong|gate"):
            await bad.aget(timeout=20)

    asyncio.run(main())


def test_a_coroutine_of_a_block_that_has_ended_sends_by_itself(shop: Workshop) -> None:
    # Given a coroutine that was started in a block / When it sends after the block's end / Then that is confirmed
    tasks, app = shop.tasks, shop.app

    async def main() -> None:
        goes_on = asyncio.Event()

        async def late() -> Any:
            await goes_on.wait()
            return [await tasks.inner.adelay(1), tasks.inner.delay(2)]

        async with app.abulk() as block:
            sends = asyncio.ensure_future(late())
            await asyncio.sleep(0)
        goes_on.set()
        assert [await each for each in await sends] == [1, 2]
        assert block.sendings == []

    asyncio.run(main())


def test_what_cannot_be_sent_is_an_error_as_elsewhere(shop: Workshop) -> None:
    tasks, app = shop.tasks, shop.app

    async def main() -> None:
        with pytest.raises(NotSent):
            await tasks.inner.aapply_async((1,), exchange="amq.direct", routing_key="nobody-" + shop.queue)
        with pytest.raises(BulkError, match="1 of 2") as caught:
            async with app.abulk():
                tasks.inner.delay(1)
                await tasks.inner.aapply_async((1,), exchange="amq.direct", routing_key="nobody-" + shop.queue)
        assert [type(each).__mro__[1] for each in caught.value.failures.values()] == [NotSent]

    asyncio.run(main())


def test_sending_to_a_broker_that_is_not_there_takes_no_longer_than_it_may(shop: Workshop) -> None:
    # Given no broker / When many coroutines send / Then each gets its error, and the loop went on meanwhile
    app = App("nowhere", broker="amqp://127.0.0.1:1//", broker_publish_timeout=0.5, set_as_current=False)

    @app.task
    def nothing() -> None: ...

    async def main() -> list[Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        sent = await asyncio.gather(*(nothing.adelay() for _ in range(50)), return_exceptions=True)
        ticking.cancel()
        assert ticks > 5
        return sent

    with app:
        assert all(isinstance(each, OperationalError) for each in asyncio.run(main()))


def test_results_in_a_database_are_awaited_too(tmp_path: Path) -> None:
    # Given results in a store that tells nobody / When a coroutine waits / Then it gets them, or its timeout
    from amqptasks.results.record import ResultRecord

    app = App("stored", backend=f"db+sqlite:///{tmp_path}/results.db", set_as_current=False)

    async def main() -> None:
        result = app.AsyncResult("an-id")
        with pytest.raises(ResultTimeout):
            await result.aget(timeout=0.05)
        waits = asyncio.ensure_future(result.aget(timeout=20))
        await asyncio.sleep(0)
        await asyncio.to_thread(app.backend.store, ResultRecord.now("an-id", "SUCCESS", 42))
        assert await waits == 42

    with app:
        asyncio.run(main())


def test_a_signal_may_outlive_its_loop() -> None:
    # Given a signal of a loop that is closed / When it is set / Then nothing happens
    made: list[Callable[[], None]] = []

    async def main() -> None:
        made.append(Signal().set)

    asyncio.run(main())
    made[0]()


# ---- Eager runs


def test_coroutines_run_eagerly_with_and_without_a_loop(tmp_path: Path) -> None:
    # Given an eager app / When a coroutine is called from a plain program, from a running loop, and awaited
    app = App("eager", task_always_eager=True, set_as_current=False)

    @app.task(bind=True)
    async def double(self: Any, x: int) -> Any:
        await asyncio.sleep(0)
        return [self.request.id, app.current_task.name, 2 * x]

    @app.task
    async def fail() -> None:
        raise ValueError("wrong")

    async def main() -> Any:
        result, applied = await double.adelay(3), double.apply((4,))
        return (await result)[2], (await applied)[2], double.delay(5).get()[2]

    # Then it runs as in a worker
    result = double.delay(2)
    assert result.get() == [result.id, double.name, 4]
    assert asyncio.run(main()) == (6, 8, 10)
    assert isinstance(fail.delay().result, ValueError)


def test_a_coroutine_that_is_called_as_a_function_sees_a_request() -> None:
    app = App("direct", set_as_current=False)

    @app.task(bind=True)
    async def look(self: Any, x: int) -> Any:
        await asyncio.sleep(0)
        return [self.request.called_directly, list(self.request.args), x]

    async def main() -> Any:
        return await asyncio.gather(look(1), look(2))

    assert asyncio.run(main()) == [[True, [1], 1], [True, [2], 2]]
