"""Names and their tasks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.app.registry import TaskRegistry
from amqptasks.exceptions import AlreadyRegistered, NotRegistered


@pytest.fixture
def app() -> App:
    return App("proj", set_as_current=False)


def test_a_missing_name_names_the_nearest(app: App) -> None:
    @app.task(name="proj.add")
    def add() -> None: ...

    assert app.tasks["proj.add"] is add
    with pytest.raises(NotRegistered, match=r"no task named 'proj\.ad' is registered \(did you mean 'proj\.add'\?\)"):
        app.tasks["proj.ad"]
    # It is a KeyError as well, as users of dicts expect.
    with pytest.raises(KeyError):
        app.tasks["nothing.like.it"]
    assert app.tasks.get("proj.ad") is None


def test_a_name_from_the_wire_is_shown_bounded_and_escaped() -> None:
    with pytest.raises(NotRegistered) as caught:
        TaskRegistry()["evil\n\x1b[31m" + "x" * 10_000]
    text = str(caught.value)
    assert len(text) < 400 and text.isprintable()


def test_two_functions_cannot_share_a_name(app: App) -> None:
    @app.task(name="proj.add")
    def first() -> None: ...

    with pytest.raises(AlreadyRegistered, match=r"'proj\.add': .*first and .*second; give one of them name="):

        @app.task(name="proj.add")
        def second() -> None: ...

    assert app.tasks["proj.add"] is first


def test_the_same_function_defined_again_stays_the_first(app: App) -> None:
    # Given a module that is imported twice, as __main__ and by its name
    def define() -> Any:
        @app.task(name="proj.add")
        def add() -> None: ...

        return add

    # When the second import defines its task again / Then it is the task that is there
    assert define() is define()


def test_a_task_is_removed_by_itself_or_by_name(app: App) -> None:
    @app.task(name="one")
    def one() -> None: ...

    @app.task(name="two")
    def two() -> None: ...

    app.tasks.unregister(one)
    app.tasks.unregister("two")
    assert not {"one", "two"} & set(app.tasks)
    with pytest.raises(NotRegistered, match="'two'"):
        app.tasks.unregister("two")


def test_registering_the_same_task_again_changes_nothing() -> None:
    registry, task = TaskRegistry(), SimpleNamespace(name="x")
    assert registry.register(task) is registry.register(task) is task
