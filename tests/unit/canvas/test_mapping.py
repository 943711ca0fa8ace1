"""One task over many arguments."""

from __future__ import annotations

import json

import pytest

from amqptasks import App
from amqptasks.canvas import Signature, chain, chord, chunks, group, maybe_signature, xmap, xstarmap
from amqptasks.exceptions import ImproperlyConfigured, InvalidTaskError


@pytest.fixture
def app() -> App:
    """An app whose calls run here."""
    app = App("tasks", task_always_eager=True, set_as_current=False)

    @app.task(name="tasks.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="tasks.double")
    async def double(x: int) -> int:
        return 2 * x

    @app.task(name="tasks.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    return app


def test_a_map_calls_a_task_with_each_item_in_turn(app: App) -> None:
    # Given tasks, one of them a coroutine / When they are mapped / Then one call gives the list
    assert app.tasks["tasks.total"].map([[1, 2], [3, 4]]).apply_async().get() == [3, 7]
    assert app.tasks["tasks.double"].map(iter([1, 2])).delay().get() == [2, 4]
    assert app.tasks["tasks.add"].starmap(zip(range(3), range(3), strict=True)).delay().get() == [0, 2, 4]


def test_a_map_travels_as_a_call_of_celerys_task(app: App) -> None:
    mapped = app.tasks["tasks.add"].starmap([(1, 2), (3, 4)])
    plain = json.loads(json.dumps(mapped))
    assert (plain["task"], plain["immutable"], plain["kwargs"]["it"]) == ("celery.starmap", True, [[1, 2], [3, 4]])
    assert maybe_signature(plain, app=app).apply().get() == [3, 7]


def test_new_arguments_are_no_items(app: App) -> None:
    # A step of a chain: the value before it is not for it.
    mapped = app.tasks["tasks.double"].map([1, 2])
    assert (app.tasks["tasks.add"].s(1, 1) | mapped | app.tasks["tasks.total"].s()).delay().get() == 6


def test_chunks_are_a_group_of_maps(app: App) -> None:
    # Given ten pairs, three at a time
    parts = app.tasks["tasks.add"].chunks(zip(range(10), range(10), strict=True), 3)
    # When they are sent, as they are or as a group
    expected = [[0, 2, 4], [6, 8, 10], [12, 14, 16], [18]]
    assert parts().get() == parts.delay().get() == parts.group()().get() == parts.apply().get() == expected
    # Then each chunk may begin later than the one before
    assert [call.options["countdown"] for call in parts.group().skew(start=1, stop=3).tasks] == [1, 2, 3, 3]


def test_chunks_within_a_canvas_give_one_value(app: App) -> None:
    parts = app.tasks["tasks.add"].chunks([(1, 1), (2, 2), (3, 3)], 2)
    plain = json.loads(json.dumps(parts))
    assert maybe_signature(plain, app=app).apply().get() == [[2, 4], [6]]
    assert group([parts, app.tasks["tasks.add"].s(1, 1)], app=app).apply().get() == [[[2, 4], [6]], 2]
    assert chain(app.tasks["tasks.add"].si(1, 1), parts.set(task_id="mine")).apply().get() == [[2, 4], [6]]


@pytest.mark.parametrize("size", [0, -1, "3", None, True])
def test_chunks_of_nothing_are_refused(app: App, size: object) -> None:
    with pytest.raises(ValueError, match="chunks of 1 item or more"):
        app.tasks["tasks.add"].chunks([(1, 1)], size).group()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [xmap, xstarmap, chunks])
def test_they_are_made_of_their_plain_forms_by_type(app: App, kind: type[Signature]) -> None:
    name = kind.__name__
    plain = {"task": "x", "subtask_type": name, "kwargs": {"task": {"task": "tasks.add"}, "it": [[1, 2]], "n": 1}}
    made = Signature.from_dict(plain, app=app)
    assert type(made) is kind
    assert made.clone() == made
    with pytest.raises(InvalidTaskError, match="to be a list"):
        Signature.from_dict({**plain, "kwargs": {"task": {"task": "tasks.add"}, "it": 5}})
    with pytest.raises(InvalidTaskError):
        Signature.from_dict({**plain, "kwargs": {"task": 5, "it": []}})


def test_tasks_that_every_app_has_give_way_to_the_users_own() -> None:
    app = App("tasks", set_as_current=False)
    own = app.task(name="celery.map")(len)
    assert app.tasks["celery.map"] is own
    with pytest.raises(NotImplementedError, match="not a real task"):
        app.tasks["celery.chain"]()


def test_a_map_goes_where_its_task_goes() -> None:
    # Given routes that know the task by name
    app = App("tasks", broker="amqp://localhost", set_as_current=False, task_routes={"tasks.len": {"queue": "far"}})
    app.task(name="tasks.len")(len)
    app.task(name="tasks.abs", queue="near")(abs)
    # When maps of it are sent / Then its queue is theirs
    for task, queue in (("tasks.len", "far"), ("tasks.abs", "near")):
        with app.sender.collecting(None) as collected:
            app.tasks[task].map([[1]]).delay()
            # As a later step, it is read by a worker
            step = json.loads(json.dumps(app.tasks[task].map([[1]])))
            maybe_signature(step, app=app).delay()
        assert [each.queues for each in collected] == [(queue,), (queue,)]
    # And as the body of a chord, which names its queue
    body = app.tasks["tasks.len"].map([[1]])
    with app.sender.collecting(None) as collected:
        chord([app.tasks["tasks.abs"].s(1)], body).delay()
    assert collected[0].manifest.queues == ("far",)


@pytest.mark.parametrize("fields", [{"it": 5}, {"task": 5}, {"it": None}])
def test_a_map_that_is_none_is_refused(app: App, fields: dict[str, object]) -> None:
    plain = {"task": "celery.map", "kwargs": {"task": {"task": "tasks.add"}, "it": [1], **fields}}
    with pytest.raises(InvalidTaskError):
        maybe_signature(plain, app=app)
    # What is written in another way is a call like any other
    assert type(maybe_signature({"task": "celery.map", "args": [{"task": "tasks.add"}, [1]]}, app=app)) is Signature


# -- replacing


def test_a_task_may_become_another_call(app: App) -> None:
    add, total = app.tasks["tasks.add"], app.tasks["tasks.total"]

    @app.task(bind=True)
    def become(self, call):
        return self.replace(maybe_signature(call, app=self.app))

    # Given replacements of every kind / When they run here / Then their values are the tasks'
    assert become.delay(add.s(2, 2)).get() == 4
    assert become.delay(add.s(2, 2) | add.s(3)).get() == 7
    assert become.delay(group([add.s(1, 1), add.s(2, 2)])).get() == [2, 4]
    assert (become.s(group([add.s(1, 1), add.s(2, 2)])) | total.s() | add.s(1)).delay().get() == 7
    with pytest.raises(ImproperlyConfigured, match="empty chain"):
        become.apply((chain(app=app),)).get()
    with pytest.raises(ImproperlyConfigured, match="part of a chord"):
        become.apply((add.s(1, 1).set(chord=total.s()),)).get()


def test_links_of_a_replaced_task_are_called_once(app: App) -> None:
    seen = []

    @app.task
    def note(*args):
        seen.append(args)

    @app.task(bind=True)
    def become(self):
        return self.replace(app.tasks["tasks.add"].s(2, 2))

    become.apply(link=[note.s()])
    assert seen == [(4,)]
