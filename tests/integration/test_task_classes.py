"""Classes of tasks in a real worker: handlers and their order, a ``__call__`` of one's own, annotations, models, shared
and discovered tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.running import Workshop
from tests.support import eventually

SOURCE = """
    from typing import Any
    from pydantic import BaseModel
    from amqptasks import Task, current_app, current_task, shared_task, signals
    from amqptasks.exceptions import Ignore, Reject

    HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")

    def handler(name, fault=None):
        def told(self, *args):
            told = [str(each) if isinstance(each, (BaseException, type(None))) else each for each in args]
            if told and hasattr(told[-1], "exc_info"):
                told[-1] = ["einfo", str(told[-1]).splitlines()[-1], type(told[-1].exception).__name__]
            note(f"{self.request.id} {name} {told}")
            if fault is not None:
                raise fault(name)
        return told

    Noted = type("Noted", (Task,), {name: handler(name) for name in HANDLERS})

    def faulty(name, fault):
        return type("Faulty", (Noted,), {name: handler(name, fault)})

    for name in ("task_prerun", "task_postrun", "task_success", "task_failure"):
        def receiver(sender=None, signal=None, **fields):
            if isinstance(sender, Noted):
                note(f"{sender.request.id} {signal.name} {fields.get('state', '')}".strip())
        getattr(signals, name).connect(receiver, weak=False)

    @app.task(base=Noted, bind=True)
    def work(self, kind, key=None):
        note(f"{self.request.id} run")
        if kind == "fail":
            raise ValueError("bad")
        if kind == "ignore":
            raise Ignore()
        if kind == "reject":
            raise Reject("no")
        if kind == "object":
            return object()
        return kind

    @app.task(base=Noted)
    def told_of(*args):
        note(f"{current_task.request.id} run")

    for fault in (LookupError, SystemExit):
        for name in HANDLERS:
            app.task(base=faulty(name, fault), name=f"{name}.{fault.__name__}")(lambda kind: 1 / kind)

    class Around(Task):
        def __call__(self, *args, **kwargs):
            note(f"{self.request.id} around {args} {kwargs}")
            return ["around", super().__call__(*args, **kwargs), self.request.id]

    @app.task(base=Around, bind=True)
    def inner(self, x):
        return [self.request.id, self.request.called_directly, current_task.name, x]

    @app.task(throws=(KeyError, LookupError))
    def expected():
        raise KeyError("expected")

    @app.task(throws=ValueError)
    def expected_one():
        raise ValueError("expected too")

    class Count(Task):
        total = 0

        def run(self, by):
            self.total += by
            return self.total

    count = app.register_task(Count)

    @shared_task(bind=True)
    def everywhere(self, x):
        return [self.app.main, current_app.main, x]

    app.autodiscover_tasks(["found_package"])

    def twice(method):
        return lambda *args: [method(*args), method(*args)]

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(f"{task_id} annotated {exc}")

    app.conf.task_annotations = {
        "annotated": {"@run": twice, "priority": 4},
        "annotated_bound": {"@run": twice, "on_failure": on_failure},
    }

    @app.task(name="annotated")
    def annotated(x):
        return [x, current_task.request.delivery_info["priority"]]

    @app.task(name="annotated_bound", bind=True)
    def annotated_bound(self, x):
        return [self.name, 1 / x]

    class Point(BaseModel):
        x: int
        y: int = 0

    @app.task(pydantic=True)
    def move(point: Point, by: int = 1) -> Point:
        assert type(point) is Point
        return Point(x=point.x + by, y=point.y)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project and one worker with one child, for all tests of this module."""
    directory = tmp_path_factory.mktemp("classes")
    write_package(directory)
    with Workshop(directory, broker_url, SOURCE) as made:
        made.start("-c", "1")
        yield made


def write_package(directory: Path) -> None:
    package = directory / "found_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text("from amqptasks import shared_task\n@shared_task\ndef found(): return 'found'\n")


def get(result: Any) -> Any:
    return result.get(timeout=20)


def notes_of(shop: Workshop, result: Any, *, last: str = "task_postrun") -> list[str]:
    """What was noted of one call, up to its last event."""

    def look() -> list[str]:
        notes = [line.partition(" ")[2] for line in shop.ledger() if line.startswith(f"{result.id} ")]
        assert notes and notes[-1].startswith(last), notes
        return notes

    eventually(look, 20.0)
    return look()


# -- handlers


def test_handlers_of_a_success_come_in_order(shop: Workshop) -> None:
    result = shop.tasks.work.delay("fine", key=1)
    assert get(result) == "fine"
    call = f"'{result.id}', ['fine'], {{'key': 1}}"
    assert notes_of(shop, result) == [
        "task_prerun",
        f"before_start [{call}]",
        "run",
        f"on_success ['fine', {call}]",
        "task_success",
        f"after_return ['SUCCESS', 'fine', {call}, 'None']",
        "task_postrun SUCCESS",
    ]


def test_handlers_of_a_failure_come_in_order(shop: Workshop) -> None:
    result = shop.tasks.work.delay("fail")
    with pytest.raises(ValueError, match="bad"):
        get(result)
    einfo = "['einfo', 'ValueError: bad', 'ValueError']"
    call = f"'{result.id}', ['fail'], {{}}"
    assert notes_of(shop, result) == [
        "task_prerun",
        f"before_start [{call}]",
        "run",
        f"on_failure ['bad', {call}, {einfo}]",
        "task_failure",
        f"after_return ['FAILURE', 'bad', {call}, {einfo}]",
        "task_postrun FAILURE",
    ]


def test_a_result_that_cannot_be_encoded_is_a_failure_to_handlers_too(shop: Workshop) -> None:
    result = shop.tasks.work.delay("object")
    with pytest.raises(Exception, match="object"):
        get(result)
    events = [note.partition(" ")[0] for note in notes_of(shop, result)]
    assert events == [
        "task_prerun", "before_start", "run", "on_failure", "task_failure", "after_return", "task_postrun",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "state"), [("ignore", "IGNORED"), ("reject", "REJECTED")])
def test_what_was_ignored_or_rejected_has_not_returned(shop: Workshop, kind: str, state: str) -> None:
    result = shop.tasks.work.delay(kind)
    events = [note.partition(" ")[0] for note in notes_of(shop, result)]
    assert events == ["task_prerun", "before_start", "run", "task_postrun"]
    assert notes_of(shop, result)[-1] == f"task_postrun {state}"


@pytest.mark.parametrize("fault", ["LookupError", "SystemExit"])
@pytest.mark.parametrize("name", ["on_success", "after_return"])
def test_a_fault_in_a_handler_does_not_undo_a_success(shop: Workshop, name: str, fault: str) -> None:
    # Given a handler that raises / When its task succeeds / Then the caller gets the result, and the log the error
    children = shop.workers[0].children()
    result = shop.app.tasks[f"{name}.{fault}"].delay(1)
    assert get(result) == 1.0
    shop.workers[0].wait_for(rf"Task {name}\.{fault}\[{result.id}\] {name} handler raised: {fault}\('{name}'\)")
    assert notes_of(shop, result)[-1] == "task_postrun SUCCESS"
    assert shop.workers[0].children() == children, "the child must have lived on"


@pytest.mark.parametrize("fault", ["LookupError", "SystemExit"])
@pytest.mark.parametrize("name", ["on_failure", "after_return"])
def test_a_fault_in_a_handler_does_not_hide_a_failure(shop: Workshop, name: str, fault: str) -> None:
    result = shop.app.tasks[f"{name}.{fault}"].delay(0)
    with pytest.raises(ZeroDivisionError):
        get(result)
    shop.workers[0].wait_for(rf"\[{result.id}\] raised unexpected: ZeroDivisionError")
    assert notes_of(shop, result)[-1] == "task_postrun FAILURE"


@pytest.mark.parametrize("fault", ["LookupError", "SystemExit"])
def test_what_before_start_raises_fails_the_task(shop: Workshop, fault: str) -> None:
    result = shop.app.tasks[f"before_start.{fault}"].delay(1)
    error = result.get(timeout=20, propagate=False)
    assert (type(error).__name__, str(error), result.state) == (fault, "before_start", "FAILURE")
    events = [note.partition(" ")[0] for note in notes_of(shop, result)]
    assert events == ["task_prerun", "before_start", "on_failure", "task_failure", "after_return", "task_postrun"]


def test_expected_errors_are_told_in_one_line(shop: Workshop) -> None:
    for task, shown in ((shop.tasks.expected, "KeyError"), (shop.tasks.expected_one, "ValueError")):
        result = task.delay()
        assert result.get(timeout=20, propagate=False).args[0].startswith("expected")
        found = shop.workers[0].wait_for(rf"(?m)^.*\[{result.id}\] raised expected: {shown}.*\n")
        assert "INFO/" in found[0]
        after = shop.workers[0].log.partition(found[0])[2]
        assert not after.startswith("Traceback")
        # But the caller has the traceback
        assert "Traceback" in str(result.traceback)


# -- classes


def test_a_call_of_the_classs_own_runs_in_a_worker(shop: Workshop) -> None:
    result = shop.tasks.inner.delay(7)
    assert get(result) == ["around", [result.id, False, shop.tasks.inner.name, 7], result.id]
    assert notes_of(shop, result, last="around") == ["around (7,) {}"]


def test_a_registered_class_has_one_instance_in_a_child(shop: Workshop) -> None:
    before = get(shop.tasks.count.delay(0))
    assert [get(shop.tasks.count.delay(2)) for _ in range(3)] == [before + 2, before + 4, before + 6]
    with pytest.raises(TypeError, match="missing a required argument: 'by'"):
        shop.tasks.count.delay()


def test_shared_and_discovered_tasks_run_in_a_worker(shop: Workshop) -> None:
    # Given a task of a library, and a tasks module that only the worker has imported
    shop.app.set_current()
    assert get(shop.tasks.everywhere.delay(3)) == [shop.project.name, shop.project.name, 3]
    assert get(shop.app.send_task("found_package.tasks.found")) == "found"


# -- annotations


def test_annotations_hold_in_a_worker(shop: Workshop) -> None:
    assert get(shop.tasks.annotated.delay(5)) == [[5, 4], [5, 4]]
    assert get(shop.tasks.annotated_bound.delay(1)) == [["annotated_bound", 1.0]] * 2
    failed = shop.tasks.annotated_bound.delay(0)
    with pytest.raises(ZeroDivisionError):
        get(failed)
    shop.noted(f"{failed.id} annotated division by zero")


# -- models


def test_models_travel_as_data_and_arrive_as_models(shop: Workshop) -> None:
    move, point = shop.tasks.move, shop.tasks.Point
    assert get(move.delay(point(x=1, y=2), by=3)) == get(move.delay({"x": 1, "y": 2}, by=3)) == {"x": 4, "y": 2}
    result = move.delay({"x": "no"})
    error = result.get(timeout=20, propagate=False)
    assert result.failed() and type(error).__name__ == ValidationError.__name__
    assert re.search(r"1 validation error for Point", str(result.traceback))
