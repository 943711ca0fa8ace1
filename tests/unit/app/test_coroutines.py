"""Coroutines where plain code runs: loops that are kept and closed, and interruptions from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pytest

from amqptasks.app.coroutines import close_loop, interrupt, run_coroutine
from amqptasks.exceptions import SoftTimeLimitExceeded

_color: ContextVar[str] = ContextVar("_color", default="none")


@pytest.fixture(autouse=True)
def _loop() -> Iterator[None]:
    yield
    close_loop()


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def catch() -> str:
    try:
        await asyncio.Event().wait()
    except SoftTimeLimitExceeded as error:
        return f"caught {error.args}"
    return "never"


async def gathered() -> None:
    await asyncio.gather(wait_for_ever(), wait_for_ever())


async def waited_for() -> None:
    await asyncio.wait_for(wait_for_ever(), 60)


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
        group.create_task(wait_for_ever())
        await asyncio.Event().wait()


async def under_a_timeout() -> None:
    async with asyncio.timeout(60):  # type: ignore[attr-defined, unused-ignore]
        await asyncio.Event().wait()


WAITS: list[Callable[[], Any]] = [wait_for_ever, gathered, waited_for]
if sys.version_info >= (3, 11):
    WAITS += [in_a_group, under_a_timeout]


def interrupted(error: BaseException) -> threading.Thread:
    """Interrupt this thread's coroutine as soon as there is one."""
    thread_id = threading.get_ident()

    def try_it() -> None:
        while not interrupt(thread_id, error):
            pass

    thread = threading.Thread(target=try_it)
    thread.start()
    return thread


def test_a_loop_is_kept_where_that_is_wanted_until_it_is_closed() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    kept = run_coroutine(loop(), keep_loop=True)
    assert run_coroutine(loop(), keep_loop=True) is kept
    own = run_coroutine(loop())
    assert own is not kept and own.is_closed() and not kept.is_closed()
    close_loop()
    close_loop()
    assert kept.is_closed()
    assert run_coroutine("no coroutine") == "no coroutine"


def test_what_was_left_on_a_loop_is_cancelled_when_it_is_closed() -> None:
    ended: list[str] = []

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stay")

    async def leave() -> None:
        background.append(asyncio.ensure_future(stay()))
        await asyncio.sleep(0)

    background: list[asyncio.Future[None]] = []
    run_coroutine(leave(), keep_loop=True)
    assert ended == []
    close_loop()
    assert ended == ["stay"]


def test_a_coroutine_runs_in_the_callers_context_also_beside_a_running_loop() -> None:
    # Given a context / When a coroutine runs in it, or is run from a loop that is running / Then it sees the context
    async def color() -> str:
        await asyncio.sleep(0)
        return _color.get()

    async def outer() -> Any:
        return run_coroutine(color())

    async def fail() -> Any:
        raise ValueError("wrong")

    async def outer_failing() -> Any:
        return run_coroutine(fail())

    token = _color.set("red")
    assert run_coroutine(color()) == "red"
    assert asyncio.run(outer()) == "red"
    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(outer_failing())
    _color.reset(token)


@pytest.mark.parametrize("wait", WAITS)
def test_an_interruption_ends_whatever_is_awaited_and_comes_out_as_itself(wait: Callable[[], Any]) -> None:
    # Given a coroutine that waits for something / When it is interrupted from another thread
    error = SoftTimeLimitExceeded("now")
    thread = interrupted(error)
    # Then the error itself comes out, and nothing is left on the loop
    with pytest.raises(SoftTimeLimitExceeded) as caught:
        run_coroutine(wait(), keep_loop=True)
    thread.join()
    assert caught.value is error and not isinstance(error, asyncio.CancelledError)

    async def left() -> int:
        return len(asyncio.all_tasks())

    assert run_coroutine(left(), keep_loop=True) == 1


def test_an_interruption_may_be_caught_under_the_errors_name() -> None:
    thread = interrupted(SoftTimeLimitExceeded(1, 2))
    assert run_coroutine(catch(), keep_loop=True) == "caught (1, 2)"
    thread.join()
    assert not interrupt(threading.get_ident(), SoftTimeLimitExceeded())


@pytest.mark.parametrize("how", ["raises", "interrupts"])
def test_what_a_signal_handler_raises_reaches_the_coroutine(how: str) -> None:
    # Given a handler that raises, or that interrupts / When its signal comes while the loop waits
    main_thread = threading.get_ident()

    def handle(_number: int, _frame: FrameType | None) -> None:
        error = SoftTimeLimitExceeded("from a signal")
        if how == "raises":
            raise error
        assert interrupt(main_thread, error)

    def send_it() -> None:
        while sys._current_frames()[main_thread].f_code.co_name != "select":
            pass
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send_it)
    before = signal.signal(signal.SIGUSR1, handle)
    sender.start()
    try:
        # Then the coroutine may catch it
        assert run_coroutine(catch(), keep_loop=True) == "caught ('from a signal',)"
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_coroutine_that_cancels_itself_is_cancelled() -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        run_coroutine(cancel())
