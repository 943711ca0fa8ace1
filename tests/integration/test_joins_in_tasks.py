"""Waiting for results inside tasks: refused in every pool, allowed where a task says so, and for nobody else."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import pytest

from tests.running import Workshop

SOURCE = """
    import asyncio
    import contextlib
    from amqptasks.result import EagerResult, ResultSet, allow_join_result, assert_will_not_block, denied_join_result

    WAIT_S = 20

    @app.task
    def add(x, y):
        return x + y

    def said(call):
        try:
            return call()
        except RuntimeError as error:
            assert str(error).startswith("Never call result.get() within a task!"), error
            return "refused"

    @app.task
    def ways():
        # Every way to wait, where it is denied and where it is allowed.
        sent = add.delay(1, 2)
        several = ResultSet([sent])
        every = {
            "get": lambda: sent.get(timeout=WAIT_S),
            "wait": lambda: sent.wait(timeout=WAIT_S),
            "join": lambda: several.join(timeout=WAIT_S),
            "join_native": lambda: several.join_native(timeout=WAIT_S),
            "get of a set": lambda: several.get(timeout=WAIT_S),
            "as_completed": lambda: [each.result for each in several.as_completed(timeout=WAIT_S)],
            "progress": lambda: several.progress(timeout=WAIT_S),
            "eager": lambda: add.apply((1, 2)).get(),
            "asked for": lambda: sent.get(timeout=WAIT_S, disable_sync_subtasks=False),
            "assert": assert_will_not_block,
        }
        denied = {name: said(call) for name, call in every.items()}
        with allow_join_result():
            allowed = {name: said(call) for name, call in every.items()}
        return [denied, allowed, said(sent.get)]

    @app.task
    def nested():
        sent, seen = add.delay(1, 2), []
        look = lambda: seen.append(said(lambda: sent.get(timeout=WAIT_S)))
        look()
        with allow_join_result():
            look()
            with denied_join_result():
                look()
                with allow_join_result():
                    look()
                look()
            look()
            # What runs here and now is part of this task.
            seen.append(inner.apply().result)
            seen.append(inner())
            look()
        look()
        with contextlib.suppress(LookupError), allow_join_result():
            raise LookupError
        look()
        return seen

    @app.task
    def inner():
        return said(assert_will_not_block)

    @app.task
    def in_threads():
        # A thread that the task starts itself is a place of its own, and so is its task meanwhile.
        sent, seen = add.delay(1, 2), []

        def elsewhere():
            with allow_join_result():
                seen.append(sent.get(timeout=WAIT_S))
            with denied_join_result():
                seen.append(said(sent.get))

        with denied_join_result():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            seen.append(said(sent.get))
            thread.join()
        return sorted(map(str, seen))

    @app.task
    def side_by_side(name):
        # Two of these run at once; what one allows the other is refused.
        with allow_join_result() if name == "allowed" else contextlib.nullcontext():
            gate(name)
            return said(assert_will_not_block)

    @app.task
    async def awaits():
        sent = add.delay(1, 2)
        seen = []
        for wait in (sent.aget, ResultSet([sent]).aget, lambda: asyncio.to_thread(sent.get, timeout=WAIT_S)):
            try:
                seen.append(await wait())
            except RuntimeError:
                seen.append("refused")
        with allow_join_result():
            seen += [await sent, await ResultSet([sent]), await asyncio.to_thread(sent.get, timeout=WAIT_S)]
            seen += await asyncio.gather(sent.aget(), sent.aget())
        return seen
"""
POOLS = ("prefork", "threads", "solo", "asyncio")


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Callable[[str], Workshop]]:
    """Workers by pool, each started once whatever the order of the tests."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def shop_of(pool: str) -> Workshop:
            made = stack.enter_context(Workshop(tmp_path_factory.mktemp(pool), broker_url, SOURCE))
            # A task that waits needs somebody else: where there is one slot, another worker.
            for _ in range(2 if pool == "solo" else 1):
                made.start("-P", pool, *(() if pool == "solo" else ("-c", "2")), ready=False)
            for worker in made.workers:
                worker.wait_ready()
            return made

        yield shop_of


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shop(shops: Callable[[str], Workshop], pool: str) -> Workshop:
    """A worker with this pool."""
    return shops(pool)


def test_every_way_of_waiting_is_refused_unless_allowed(shop: Workshop) -> None:
    denied, allowed, after = shop.tasks.ways.delay().get(timeout=30)
    assert denied.pop("asked for") == 3
    assert set(denied.values()) == {"refused"} and after == "refused"
    values = {name: [3] for name in ("join", "join_native", "get of a set", "as_completed", "progress")}
    assert allowed == values | dict.fromkeys(("get", "wait", "eager", "asked for"), 3) | {"assert": None}


def test_what_is_allowed_ends_with_its_block(shop: Workshop) -> None:
    assert shop.tasks.nested.delay().get(timeout=30) == [
        "refused", 3, "refused", 3, "refused", 3, None, None, 3, "refused", "refused",
    ]  # fmt: skip


def test_a_thread_of_a_task_is_a_place_of_its_own(shop: Workshop) -> None:
    assert shop.tasks.in_threads.delay().get(timeout=30) == ["3", "refused", "refused"]


def test_what_one_task_allows_another_is_refused(shop: Workshop, pool: str) -> None:
    # Given two tasks that run at once, of which one may wait
    gates = [shop.gate(name) for name in ("allowed", "denied")]
    results = [shop.tasks.side_by_side.delay(each.name) for each in gates]
    if pool != "asyncio":
        for each in gates:
            each.reached()
    for each in gates:
        each.open()
    # Then it alone may
    assert [result.get(timeout=30) for result in results] == [None, "refused"]


def test_coroutines_follow_the_same_rules(shop: Workshop) -> None:
    assert shop.tasks.awaits.delay().get(timeout=30) == ["refused", "refused", "refused", 3, [3], 3, 3, 3]
