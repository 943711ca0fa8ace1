"""Workflows through a real worker: every example of the document this project grew from, with the results it gives;
tasks that become other calls; maps; stamps; and random canvases, worth what plain Python says."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from amqptasks import chain, chord, group, signature
from amqptasks.canvas import maybe_signature
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.result import GroupResult
from tests import canvases
from tests.running import Workshop

TASKS = """
    app.conf.task_queue_prefix = QUEUE

    @app.task
    def add(x, y, debug=False):
        return [x + y, "debugged"] if debug else x + y

    @app.task
    def mul(x, y):
        return x * y

    @app.task
    def sub(x, y):
        return x - y

    @app.task
    def xsum(numbers):
        return sum(numbers)

    @app.task
    def listed(values):
        return values

    tsum = app.task(name="tasks.tsum")(sum)

    @app.task
    def reset_buffers():
        return "reset"

    @app.task
    def import_contact(contact):
        note(f"imported {contact}")

    @app.task
    def notify_complete(import_id):
        return f"import {import_id} is complete"

    @app.task
    def create_user(username, first, last, email):
        return {"username": username, "email": email}

    @app.task
    def import_contacts(user):
        return f"contacts of {user['username']}"

    @app.task
    def send_welcome_email(user):
        return f"welcome to {user['email']}"

    @app.task
    def fail(*args):
        raise ValueError("broken")

    @app.task
    def told(task_id):
        note(f"told {task_id}")

    @app.task(bind=True)
    def ids(self, *args):
        own = self.request
        return {"id": own.id, "root": own.root_id, "parent": own.parent_id, "group": own.group,
                "nesting": own.replaced_task_nesting, "stamps": own.stamps, "args": list(args)}

    @app.task(bind=True)
    def become(self, *args):
        return self.replace(app.signature(args[-1]))

    @app.task(bind=True)
    async def become_at_once(self, *args):
        return self.replace(app.signature(args[-1]))

    @app.task(bind=True)
    def begin(self, call):
        return app.signature(call).delay().id

    @app.task(bind=True)
    def become_twice(self, times, call):
        return self.replace(become_twice.s(times - 1, call) if times else app.signature(call))

    @app.task(bind=True)
    def grow(self, *calls):
        for call in calls:
            self.add_to_chord(app.signature(call))
        return len(calls)

    @app.task(bind=True)
    def grow_lazily(self, call):
        self.add_to_chord(app.signature(call), lazy=True).delay()
        return "grown"

    @app.task(bind=True, acks_late=True)
    def grow_and_die(self, path):
        self.add_to_chord(add.s(5, 5))
        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), 9)
        return "lives"
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """The project, a module ``tasks``, and a worker with two processes."""
    source = textwrap.dedent(TASKS) + textwrap.dedent(canvases.SOURCE.replace("add", "deep_add"))
    with Workshop(tmp_path_factory.mktemp("canvas"), broker_url, source, name="tasks") as made:
        made.start("-c", "2")
        yield made


@pytest.fixture(scope="module")
def tasks(shop: Workshop) -> Any:
    """The project's module."""
    return shop.tasks


def get(result: Any) -> Any:
    return result.get(timeout=20)


# -- signatures


def test_a_signature_is_made_of_a_name_or_a_task(tasks: Any) -> None:
    assert repr(signature("tasks.add", args=(2, 2), countdown=10)) == "tasks.add(2, 2)"
    assert repr(tasks.add.signature((2, 2), countdown=10)) == "tasks.add(2, 2)"
    assert repr(tasks.add.s(2, 2)) == "tasks.add(2, 2)"
    assert repr(tasks.add.s(2, 2, debug=True)) == "tasks.add(2, 2, debug=True)"
    call = tasks.add.signature((2, 2), {"debug": True}, countdown=10)
    assert (call.args, call.kwargs, call.options) == ((2, 2), {"debug": True}, {"countdown": 10})


def test_a_signature_is_sent_or_called_here(tasks: Any) -> None:
    assert get(tasks.add.s(2, 2).delay()) == 4
    assert get(tasks.add.signature((2, 2), countdown=0.1).apply_async()) == 4
    assert tasks.add.s(2, 2)() == 4


def test_partials_are_completed_when_they_are_called(tasks: Any) -> None:
    # Incomplete signature: 4 + 2
    partial = tasks.add.s(2)
    assert get(partial.delay(4)) == get(partial.apply_async((4,))) == 6
    # Keyword arguments are merged: add(2, 2, debug=True)
    whole = tasks.add.s(2, 2)
    assert get(whole.delay(debug=True)) == get(whole.apply_async(kwargs={"debug": True})) == [4, "debugged"]
    # Options too, the new ones taking precedence: ten seconds become none
    assert get(tasks.add.signature((2, 2), countdown=10).apply_async(countdown=0)) == 4
    # New arguments stand before those of the signature
    assert get(tasks.sub.s(10).delay(16)) == 6


def test_a_callback_gets_the_result(tasks: Any) -> None:
    # Given callbacks whose results are wanted
    for link, expected in (
        (tasks.add.s(8), 12), (tasks.reset_buffers.si(), "reset"),
        (tasks.reset_buffers.signature(immutable=True), "reset"),
    ):  # fmt: skip
        told = link.freeze()
        # When 2 + 2 is added / Then the callback has run, with the four or without
        assert get(tasks.add.apply_async((2, 2), link=link)) == 4
        assert get(told) == expected


# -- chains


def test_a_chain_is_called_or_piped(tasks: Any) -> None:
    add = tasks.add
    # 2 + 2 + 4 + 8
    assert get(chain(add.s(2, 2), add.s(4), add.s(8))()) == 16
    assert get((add.s(2, 2) | add.s(4) | add.s(8))()) == 16
    assert ~(add.s(2, 2) | add.s(4)) == 8


def test_a_chain_of_independent_tasks(tasks: Any) -> None:
    result = (tasks.add.si(2, 2) | tasks.add.si(4, 4) | tasks.add.si(8, 8))()
    assert (get(result), get(result.parent), get(result.parent.parent)) == (16, 8, 4)


def test_chains_are_partial_and_combine(tasks: Any) -> None:
    add, mul = tasks.add, tasks.mul
    # (16 + 4) * 8
    assert get((add.s(4) | mul.s(8))(16)) == 160
    # ((4 + 16) * 2 + 4) * 8
    assert get((add.s(4, 16) | mul.s(2) | (add.s(4) | mul.s(8)))()) == 352


# -- groups


def test_a_simple_group(tasks: Any) -> None:
    assert get(group(tasks.add.s(i, i) for i in range(10))()) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_a_group_in_a_chain_takes_the_result_or_not(tasks: Any) -> None:
    # Given a workflow of two things to do for a new user
    workflow = tasks.create_user.s() | group(tasks.import_contacts.s(), tasks.send_welcome_email.s())
    result = workflow.delay(username="artv", first="Art", last="Vandelay", email="art@vandelay.com")
    assert get(result) == ["contacts of artv", "welcome to art@vandelay.com"]

    # And a group that ignores what was before it
    result = (tasks.add.s(4, 4) | group(tasks.add.si(i, i) for i in range(10)))()
    assert isinstance(result, GroupResult)
    assert repr(result) == f"<GroupResult: {result.id} [{', '.join(member.id for member in result)}]>"
    assert get(result) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert get(result.parent) == 8


# -- chords


def test_a_simple_chord(tasks: Any) -> None:
    assert get(chord((tasks.add.s(i, i) for i in range(10)), tasks.xsum.s())()) == 90
    # [10, 15] -> tsum([10, 15]) -> 25
    assert get(chord(group(tasks.add.s(5, 5), tasks.sub.s(25, 10)))(tasks.tsum.s())) == 25
    assert get(chord([tasks.add.s(5, 5), tasks.sub.s(25, 10)])(tasks.tsum.s())) == 25


def test_the_body_of_a_chord_may_be_immutable(shop: Workshop, tasks: Any) -> None:
    contacts = ["ann", "bob", "cleo"]
    result = chord((tasks.import_contact.s(c) for c in contacts), tasks.notify_complete.si(7)).apply_async()
    assert get(result) == "import 7 is complete"
    assert {f"imported {contact}" for contact in contacts} <= set(shop.ledger())


def test_a_group_and_a_task_are_a_chord(tasks: Any) -> None:
    upgraded = group(tasks.add.s(i, i) for i in range(10)) | tasks.xsum.s()
    assert isinstance(upgraded, chord)
    assert get(upgraded()) == 90


def test_what_follows_a_chord_with_a_group_for_a_body_gets_its_results(tasks: Any) -> None:
    add, xsum = tasks.add, tasks.xsum
    wide = chord([add.si(1, 1), add.si(2, 2)], group([xsum.s(), xsum.s()]))
    assert get(wide.delay()) == [6, 6]
    then = xsum.s() | add.s(0)
    for call in (wide | xsum.s(), wide | then, chain(wide, xsum.s(), add.s(0)), chain(add.si(0, 0), wide | then)):
        assert get(call.delay()) == 12, call


# -- a task that becomes another call


def test_the_call_that_replaces_a_task_answers_for_it(tasks: Any) -> None:
    # Given calls of every kind / When a task becomes one of them
    add, xsum = tasks.add, tasks.xsum
    for call, expected in (
        (add.s(2, 2), 4), (add.s(2, 2) | add.s(3), 7), (group([add.s(1, 1), add.s(2, 2)]), [2, 4]),
        (add.s(1, 1) | group([add.s(1), add.s(2)]), [3, 4]), (group([]), []),
        (chord([add.s(1, 1), add.s(2, 2)], xsum.s()), 6), (add.starmap([(1, 1), (2, 2)]), [2, 4]),
        (add.chunks([(1, 1), (2, 2), (3, 3)], 2), [[2, 4], [6]]),
    ):  # fmt: skip
        # Then who waits for the task gets what that gives
        assert get(tasks.become.delay(call)) == expected, call


def test_a_replacement_stands_where_the_task_stood(shop: Workshop, tasks: Any) -> None:
    add, become, xsum = tasks.add, tasks.become, tasks.xsum
    # In a chain, a group and a chord; and a chord's part becomes several calls
    assert get((become.s(add.s(2, 2)) | add.s(10) | add.s(100)).delay()) == 114
    assert get(group([become.s(add.s(2, 2)), add.s(1, 1)]).delay()) == [4, 2]
    assert get(chord([become.s(add.s(2, 2) | add.s(1)), add.s(1, 1)], xsum.s()).delay()) == 7
    assert get((group([become.s(group([add.s(1, 1), add.s(2, 2)])), xsum.s([5])]) | tasks.total.s()).delay()) == 11
    # With its links
    callback, errback = add.s(1000), tasks.told.s()
    wanted = callback.freeze()
    become.apply_async((add.s(2, 2),), link=callback)
    assert get(wanted) == 1004
    failed = become.apply_async((tasks.fail.s(),), link_error=errback)
    with pytest.raises(ValueError, match="broken"):
        get(failed)
    shop.noted(f"told {failed.id}")


def test_a_replacement_keeps_the_ids(tasks: Any) -> None:
    # Given a chain in which a task becomes another, and that one another
    result = (tasks.ids.s() | tasks.become_twice.si(2, tasks.ids.s("replaced"))).delay()
    first, last = get(result.parent), get(result)
    assert last["args"] == ["replaced"]
    assert (last["id"], last["root"], last["parent"]) == (result.id, first["id"], first["id"])
    assert (first["nesting"], last["nesting"]) == (0, 3)
    # And of a chain each step, and each that follows, knows of it
    result = (tasks.become.s(tasks.ids.s() | tasks.ids.s()) | tasks.ids.s()).delay()
    last = get(result)
    (middle,) = last["args"]
    assert [each["nesting"] for each in (last, middle, *middle["args"])] == [1, 1, 1]


def test_what_cannot_take_a_tasks_place_fails_it(tasks: Any) -> None:
    for call, complaint in (
        (chain(app=tasks.app), "Cannot replace with an empty chain"),
        (tasks.add.s(1, 1).set(chord=tasks.xsum.s()), "must not be part of a chord"),
    ):
        with pytest.raises(ImproperlyConfigured, match=complaint):
            get(tasks.become.delay(call))


@pytest.mark.parametrize("pool", ["asyncio", "threads"])
def test_tasks_are_replaced_in_every_pool(shop: Workshop, tasks: Any, pool: str) -> None:
    # Given a worker with another pool, on a queue of its own
    queue = f"{shop.queue}-{pool}"
    shop.also_delete(queue)
    shop.start("-P", pool, "-Q", queue)
    pair = [tasks.add.s(1, 1).set(queue=queue), tasks.add.s(2, 2).set(queue=queue)]
    for become in (tasks.become, tasks.become_at_once):
        # When tasks become others there, one in a chord / Then those answer for them
        call = become.s(group(pair)).set(queue=queue)
        assert get(call.delay()) == [2, 4]
        assert get(chord([call, *pair])(tasks.total.s())) == 12


def test_what_a_task_begins_is_among_its_children(tasks: Any) -> None:
    # Given a task that sends a call, a group or a chain
    add = tasks.add
    for call, members in ((add.s(1, 1), None), (group([add.s(1, 1), add.s(2, 2)]), 2), (add.s(1, 1) | add.s(2), None)):
        result = tasks.begin.delay(call)
        begun = get(result)
        # Then there is one child: the call's result, the group's, or that of the first step of the chain
        (child,) = result.children
        assert (len(child) if isinstance(child, GroupResult) else None) == members
        assert (child.id == begun) is (call.subtask_type != "chain")


def test_a_part_may_add_parts_to_its_chord(tasks: Any, tmp_path: Path) -> None:
    add, listed = tasks.add, tasks.listed
    with pytest.raises(ValueError, match="not member of any chord"):
        get(tasks.grow.delay(add.s(1, 1)))
    # Given parts that add calls: single ones, a chain, a group, one that adds another
    for header, expected in (
        ([tasks.grow.s(add.s(1, 1), add.s(2, 2)), add.s(9, 9)], [2, 2, 4, 18]),
        ([add.s(9, 9), tasks.grow.s(add.s(1, 1) | add.s(10))], [18, 1, 12]),
        ([tasks.grow.s(group(add.s(1, 1), add.s(2, 2)))], [1, 2, 4]),
        ([tasks.grow.s(tasks.grow.s(add.s(3, 3)))], [1, 1, 6]),
        ([tasks.grow_lazily.s(add.s(1, 1)), add.s(2, 2)], ["grown", 2, 4]),
        # And one that is run again after it has done so, which adds no other
        ([tasks.grow_and_die.s(str(tmp_path / "died")), add.s(1, 1)], ["lives", 10, 2]),
    ):
        # When the chord is sent / Then its body gets the results of all, each after the part that added it
        assert get(chord(header, listed.s()).delay()) == expected


# -- maps, stamps, asyncio


def test_maps_and_chunks(tasks: Any) -> None:
    add = tasks.add
    assert get(tasks.xsum.map([[1, 2], [3, 4]]).delay()) == [3, 7]
    assert get(add.starmap(zip(range(10), range(10), strict=True)).delay()) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    parts = add.chunks(zip(range(10), range(10), strict=True), 4)
    assert get(parts()) == get(parts.group()()) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    assert get((add.s(1, 1) | tasks.xsum.map([[1], [2]]) | tasks.xsum.s()).delay()) == 3
    assert get(group([parts, add.s(1, 1)]).delay()) == [[[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]], 2]


def test_stamps_travel_with_everything_that_follows(tasks: Any) -> None:
    ids = tasks.ids
    call = ids.s() | group([ids.s(), ids.s()]) | ids.s()
    call.stamp(tenant="acme", urgent=True)
    result = call.delay()
    expected = {"tenant": "acme", "urgent": True}
    seen = [get(result), *get(result.parent), get(result.parent.parent)]
    assert [each["stamps"] for each in seen] == [expected] * 4


def test_canvases_are_sent_from_coroutines(tasks: Any) -> None:
    add = tasks.add

    async def send() -> list[Any]:
        results = [
            await add.s(2, 2).adelay(), await (add.s(2) | add.s(4)).adelay(2), await group([add.s(1)]).adelay(1),
            await group(add.s(i, i) for i in range(3)).aapply_async(),
            await chord([add.s(1, 1)], tasks.xsum.s()).adelay(),
        ]  # fmt: skip
        return [await each for each in results]

    assert asyncio.run(send()) == [4, 8, [2], [0, 2, 4], 2]


# -- anything


@settings(max_examples=25)
@given(shape=canvases.canvases())
def test_a_canvas_is_worth_what_python_says(tasks: Any, shape: canvases.Shape) -> None:
    # Given a random canvas / When it runs in a worker, made here or read from what travels
    call = canvases.build(shape, Renamed(tasks))
    travelled = maybe_signature(json.loads(json.dumps(call)), app=tasks.app)
    results = [call.apply_async((1,)), travelled.apply_async((1,))]
    # Then it gives what plain Python gives
    assert [get(each) for each in results] == [canvases.value_of(shape, 1)] * 2


class Renamed:
    """The tasks of the arithmetic, one of which has another name here."""

    def __init__(self, tasks: Any) -> None:
        self.add, self.total, self.number = tasks.deep_add, tasks.total, tasks.number
