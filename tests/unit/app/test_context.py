"""What a task knows of its call, and which task is running where."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from amqptasks.app import context
from amqptasks.app.app import App
from amqptasks.app.context import Context


@pytest.fixture
def app() -> App:
    return App("proj", set_as_current=False)


def test_a_field_the_message_did_not_carry_has_its_default() -> None:
    request = Context(id="1", retries=2)
    assert (request.id, request.retries) == ("1", 2)
    assert (request.group, request.called_directly, request.delivery_info) == (None, True, None)
    assert request.get("id") == "1" and request.get("nothing", 5) == 5
    request.update({"group": "g"}, chain=[])
    assert (request.group, request.chain) == ("g", [])
    request.clear()
    assert (request.id, request.retries) == (None, 0)


def test_requests_share_nothing() -> None:
    one, two = Context(), Context()
    one.children.append("x")
    assert (one.children, two.children) == (["x"], [])


def test_limits_are_read_from_the_pair() -> None:
    assert (Context(timelimit=[10, 5]).time_limit, Context(timelimit=[10, 5]).soft_time_limit) == (10, 5)
    assert (Context().time_limit, Context().soft_time_limit) == (None, None)


def test_a_request_shows_every_field_of_celerys_in_order_and_the_users_after() -> None:
    shown = Context(id="1", mine="x", _private="y").as_dict()
    assert list(shown)[:4] == ["lang", "task", "id", "shadow"]
    assert shown["id"] == "1" and list(shown)[-1] == "mine"
    assert "_private" not in shown
    assert repr(Context(id="1")).startswith("<Context: {'lang': 'py', 'task': None, 'id': '1'")


def test_a_call_can_be_sent_again_with_its_own_options() -> None:
    request = Context(id="1", root_id="r", group="g", timelimit=[9, 3], callbacks=["c"], retries=2)
    options = request.as_execution_options()
    assert options["task_id"] == "1" and options["root_id"] == "r" and options["group_id"] == "g"
    assert options["time_limit"] == 9 and options["soft_time_limit"] == 3
    assert options["link"] == ["c"] and options["retries"] == 2


# ---- Which task is running


def test_outside_a_call_there_is_an_empty_request(app: App) -> None:
    @app.task(bind=True)
    def look(self: Any) -> tuple[Any, ...]:
        return self.request.id, self.request.args, self.request.called_directly

    assert context.current() is None
    assert look.request.id is None
    # When it is called as a function / Then it sees that call, and nobody sees it afterwards
    assert look() == (None, (), True)
    assert context.current() is None


def test_a_task_called_by_a_task_sees_its_own_request(app: App) -> None:
    @app.task(bind=True)
    def inner(self: Any, *args: int) -> Any:
        return self.request.args, outer.request.args

    @app.task(bind=True)
    def outer(self: Any, *args: int) -> Any:
        found = inner(2)
        return found, self.request.args

    assert outer(1) == (((2,), (1,)), (1,))


def test_a_recursive_task_sees_the_innermost_call(app: App) -> None:
    @app.task(bind=True)
    def down(self: Any, depth: int) -> list[int]:
        below = down(depth - 1) if depth else []
        return [self.request.args[0], *below]

    assert down(3) == [3, 2, 1, 0]


def test_an_error_leaves_no_request_behind(app: App) -> None:
    @app.task
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert context.current() is None


def test_each_thread_and_each_coroutine_has_its_own(app: App) -> None:
    @app.task
    def unused() -> None: ...

    token = context.push(unused, Context(id="main"))
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(context.current()))
    thread.start()
    thread.join()

    async def push_and_look(task_id: str, barrier: asyncio.Event) -> Any:
        context.push(unused, Context(id=task_id))
        barrier.set() if task_id == "b" else await barrier.wait()
        request = context.request_of(unused)
        return request and request.id

    async def both() -> list[Any]:
        barrier = asyncio.Event()
        return list(await asyncio.gather(push_and_look("a", barrier), push_and_look("b", barrier)))

    assert asyncio.run(both()) == ["a", "b"]
    request = context.request_of(unused)
    assert request is not None and request.id == "main"
    context.pop(token)
    assert seen == [None]
