"""Eager runs beside Celery's own: the same tasks defined with both, the same events, in the same order.

Also pydantic models as arguments and return values. What is to differ is said where it does.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Optional

import celery
import celery.exceptions
import celery.signals
import pytest
from pydantic import BaseModel, ValidationInfo, field_validator

import amqptasks
import amqptasks.exceptions
import amqptasks.signals
from amqptasks.app import current

SIGNALS = ("task_prerun", "task_postrun", "task_success", "task_failure")


class Side:
    """One of the two packages, with an app that runs tasks at once, and what happened in it."""

    def __init__(self, package: Any) -> None:
        self.package = package
        self.exceptions = importlib.import_module(f"{package.__name__}.exceptions")
        self.signals = importlib.import_module(f"{package.__name__}.signals")
        self.app: Any = package.Celery("proj", broker="amqp://127.0.0.1:1//", backend="cache+memory://")
        self.app.conf.task_always_eager = True
        self.events: list[Any] = []
        self._receivers: list[Any] = []
        for name in SIGNALS:
            self._connect(name)

    def task(self, **options: Any) -> Any:
        """Decorate a function. Celery puts tasks into every other app of the process too, unless told not to."""
        return self.app.task(**options, **({"shared": False} if self.package is celery else {}))

    def _connect(self, name: str) -> None:
        def receiver(sender: Any = None, **fields: Any) -> None:
            self.events.append((name, plain(fields, self)))

        getattr(self.signals, name).connect(receiver, weak=False)
        self._receivers.append((name, receiver))

    def close(self) -> None:
        for name, receiver in self._receivers:
            getattr(self.signals, name).disconnect(receiver)
        self.app.close()

    def base(self, **broken: type[Exception]) -> Any:
        """A task class that notes what its handlers are told, and raises in the ones named."""
        side = self

        def handler(name: str) -> Any:
            def told(self: Any, *args: Any) -> None:
                side.events.append((name, plain(args, side)))
                if name in broken:
                    raise broken[name](name)

            return told

        names = ("before_start", "on_success", "on_failure", "after_return")
        return type("Noted", (self.package.Task,), {name: handler(name) for name in names})


def plain(value: Any, side: Side) -> Any:
    """What can be compared between the packages."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("signal", "runtime", "traceback")}
        return {key: plain(each, side) for key, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, side) for each in value]
    if isinstance(value, BaseException) or type(value).__name__ == "ExceptionWithTraceback":
        return repr(getattr(value, "exc", value))
    if type(value).__name__ == "ExceptionInfo":
        return ("einfo", plain(value.exception, side), str(value).splitlines()[-1])
    return value.name if hasattr(value, "apply_async") else value


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Side, Side]]:
    """Celery's side and ours."""
    # Our app is the current one for the length of a test alone.
    monkeypatch.setattr(current, "_current", None)
    both = Side(celery), Side(amqptasks)
    yield both
    for side in both:
        side.close()


def outcome(call: Any) -> Any:
    """How a call ended, in words."""
    try:
        result = call()
    except Exception as error:
        return "raised", type(error).__name__, str(error)
    value = result.result
    return result.state, repr(value) if isinstance(value, Exception) else value


def check_same(sides: tuple[Side, Side], run: Any) -> Any:
    theirs, ours = (run(side) for side in sides)
    assert ours == theirs
    assert sides[1].events == sides[0].events
    return ours


@pytest.mark.parametrize("kind", ["succeeds", "fails", "cannot start", "encodes"])
@pytest.mark.parametrize("propagates", [False, True])
def test_the_same_events_in_the_same_order(sides: tuple[Side, Side], kind: str, propagates: bool) -> None:
    def run(side: Side) -> Any:
        side.app.conf.task_eager_propagates = propagates
        broken = {"before_start": LookupError} if kind == "cannot start" else {}

        @side.task(name="work", base=side.base(**broken), bind=True)
        def work(self: Any, value: Any, key: Any = None) -> Any:
            side.events.append(("run", self.request.id, self.request.is_eager, self.request.called_directly))
            if kind == "fails":
                raise KeyError(value)
            return value, key

        options: dict[str, Any] = {"task_id": "the-id", "headers": {"a": 1}}
        return outcome(lambda: work.apply_async(((1, 2),), {"key": {3: 4}}, **options))

    # When both run the task / Then they tell of it alike. Celery passes no einfo to after_return; we do, on failure
    theirs, ours = (run(side) for side in sides)
    assert ours == theirs
    assert without_einfo(sides[1].events) == without_einfo(sides[0].events)


def without_einfo(events: list[Any]) -> list[Any]:
    return [(name, told[0][:-1]) if name == "after_return" else (name, *told) for name, *told in events]


# Celery's @app.task takes no lambdas.
def one() -> int:
    return 1


def plus(x: int, y: int) -> int:
    return x + y


def divide(x: int) -> float:
    return x / 0


@pytest.mark.parametrize("name", ["on_success", "after_return"])
def test_a_fault_in_a_handler_is_raised_by_both(sides: tuple[Side, Side], name: str) -> None:
    def run(side: Side) -> Any:
        task = side.task(name="work", base=side.base(**{name: LookupError}))(one)
        return outcome(lambda: task.apply_async(task_id="the-id"))

    assert check_same(sides, run) == ("raised", "LookupError", name)


def test_ignore_and_reject_end_alike(sides: tuple[Side, Side]) -> None:
    def run(side: Side) -> Any:
        @side.task(name="steer")
        def steer(kind: str) -> None:
            raise getattr(side.exceptions, kind)("why")

        found = []
        for kind in ("Ignore", "Reject"):
            result = steer.delay(kind)
            found.append((result.state, type(result.result).__name__, result.get()))
        side.events.clear()
        return found

    assert check_same(sides, run) == [("IGNORED", "Ignore", None), ("REJECTED", "Reject", None)]


def test_workflows_end_alike(sides: tuple[Side, Side]) -> None:
    def run(side: Side) -> Any:
        chain, group = side.package.chain, side.package.group
        add = side.task(name="add")(plus)
        fail = side.task(name="fail")(divide)
        steps = chain(add.s(2, 2), add.s(4), add.s(8))()
        found: list[Any] = [steps.get(), steps.parent.get(), steps.parent.parent.get()]
        found.append(group(add.s(i, i) for i in range(4))().get())
        found.append((add.s(1, 1) | group(add.s(1), add.s(2))).delay().get())
        found.append(group(add.s(1) | add.s(2), add.s(9)).apply((5,)).get())
        found.append(add.apply_async((1, 2), link=add.s(5)).get())
        found.append(outcome((add.s(1, 1) | fail.s()).delay))
        found.append(outcome((add.s(1, 1) | fail.s() | add.s(1)).delay))
        side.events.clear()
        return found

    check_same(sides, run)


# -- pydantic


class Point(BaseModel):
    x: int
    y: int = 0

    @field_validator("y")
    @classmethod
    def context_is_told(cls, value: int, info: ValidationInfo) -> int:
        if value == 99:
            told = info.context or {}
            raise ValueError(f"{told['celery_app'].main} {told['celery_task_name']} {told.get('extra')}")
        return value


class Point3(Point):
    z: int = 0


def define(side: Side, name: str, **options: Any) -> Any:
    """One of the functions below, as a pydantic task of a side."""
    functions = SimpleNamespace(**{each.__name__: each for each in (move, maybe, several, loose, other, bound)})
    return side.task(name=name, pydantic=True, bind=name == "bound", **options)(getattr(functions, name))


def move(point: Point, by: int = 1) -> Point:
    assert type(point) is Point
    return Point(x=point.x + by, y=point.y)


def maybe(point: Optional[Point] = None) -> Point | None:  # noqa: UP045 - both spellings are understood
    assert point is None or type(point) is Point
    return point


def several(*points: Point, **named: Point) -> list[Any]:
    return [type(each).__name__ for each in (*points, *named.values())]


def loose(point: dict[str, Any]) -> Any:
    return point


def other(point: Point) -> int:
    return point.x


def bound(self: Any, point: Point) -> Point:
    assert self.name == "bound"
    return point


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("move", ({"x": 1},), {}),
    ("move", ({"x": 1, "y": 2},), {"by": 3}),
    ("move", (Point(x=1, y=2),), {}),
    ("move", (), {"point": Point(x=1)}),
    ("move", ({"x": "4"},), {}),
    ("move", ({"x": "no"},), {}),
    ("move", (None,), {}),
    ("move", ({"y": 99, "x": 1},), {}),
    ("maybe", (), {}),
    ("maybe", (None,), {}),
    ("maybe", ({"x": 5},), {}),
    ("maybe", (Point(x=6),), {}),
    ("loose", ({"x": 1},), {}),
    ("other", (Point(x=7),), {}),
    ("bound", (Point(x=8),), {}),
    ("bound", ({"x": 8, "y": 1},), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS)
@pytest.mark.parametrize("options", [{}, {"pydantic_strict": True, "pydantic_context": {"extra": "told"}}], ids=str)
def test_models_are_validated_and_dumped_alike(
    sides: tuple[Side, Side], name: str, args: Any, kwargs: Any, options: dict[str, Any]
) -> None:
    def run(side: Side) -> Any:
        found = outcome(lambda: define(side, name, **options).apply_async(args, kwargs))
        side.events.clear()
        return found

    check_same(sides, run)


@pytest.mark.parametrize(
    ("name", "args"), [("loose", (Point(x=1),)), ("move", (Point3(x=1, z=2),)), ("several", (Point(x=1),))]
)
def test_a_model_that_would_not_come_back_is_refused_by_both(sides: tuple[Side, Side], name: str, args: Any) -> None:
    for side in sides:
        with pytest.raises(Exception, match="Point") as caught:
            define(side, name).delay(*args)
        assert type(caught.value).__name__ == "EncodeError"


def test_how_models_are_dumped_may_be_said(sides: tuple[Side, Side]) -> None:
    def run(side: Side) -> Any:
        task = define(side, "move", pydantic_dump_kwargs={"exclude": {"y"}})
        side.events.clear()
        return outcome(lambda: task.apply(({"x": 1},)))

    theirs, ours = (run(side) for side in sides)
    assert ours == theirs == ("SUCCESS", {"x": 2})


def test_a_task_with_models_is_a_function_too(sides: tuple[Side, Side]) -> None:
    for side in sides:
        assert define(side, "move")(Point(x=1)) == define(side, "move")({"x": 1}) == {"x": 2, "y": 0}
