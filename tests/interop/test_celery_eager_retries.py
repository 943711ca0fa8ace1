"""Retries of eager runs, and of tasks called as functions, beside Celery's own: the same attempts, told alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.test_celery_eager import Side, check_same, outcome, sides

__all__ = ["sides"]


class Busy(Exception):
    """An error of the project's own."""


def define(side: Side, kind: str) -> Any:
    """One of the tasks that are tried."""

    class Noted(side.package.Task):  # type: ignore[misc, name-defined]
        def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            side.events.append(("on_retry", repr(exc), task_id, list(args), kwargs, "Retry" in str(einfo)))

    options: dict[str, Any] = {"name": "work", "bind": True, "base": Noted, "max_retries": 2}
    if kind == "by itself":
        options.update(autoretry_for=(Busy,), dont_autoretry_for=(BusyForEver,), retry_kwargs={"max_retries": 1})
    if kind == "for ever":
        options["max_retries"] = None

    @side.task(**options)
    def work(self: Any, *args: Any, **kwargs: Any) -> Any:
        side.events.append(("run", self.request.retries, self.request.id, list(args), kwargs))
        return RUNS[kind](self, args, kwargs)

    return work


class BusyForEver(Busy):
    """One of those that are not retried."""


def fails(self: Any, args: Any, kwargs: Any) -> None:
    raise {"busy": Busy, "for ever": BusyForEver, "other": KeyError}[args[0]]("no")


def goes_on(self: Any, args: Any, kwargs: Any) -> str:
    asked = self.retry(countdown=1, throw=False)
    return f"{asked} {asked.sig} {asked.is_eager}"


def retries_with_error(self: Any, args: Any, kwargs: Any) -> None:
    try:
        raise Busy("within")
    except Busy as error:
        raise self.retry(exc=error, countdown=3) from None


def up_to(times: int, self: Any) -> str:
    if self.request.retries < times:
        self.retry(countdown=0)
    return "done"


RUNS: dict[str, Any] = {
    "asks": lambda self, args, kwargs: self.retry(countdown=3),
    "asks by default": lambda self, args, kwargs: self.retry(),
    "asks with text": lambda self, args, kwargs: self.retry(exc="a text", countdown=1, max_retries=99),
    "asks with error": retries_with_error,
    "asks at a moment": lambda self, args, kwargs: self.retry(eta="2040-01-01T00:00:00"),
    "once": lambda self, args, kwargs: up_to(1, self),
    "for ever": lambda self, args, kwargs: up_to(20, self),
    "changes args": lambda self, args, kwargs: self.retry(args=(*args, "more"), countdown=0),
    "changes kwargs": lambda self, args, kwargs: self.retry(kwargs={"y": 1}, countdown=0),
    "has no more": lambda self, args, kwargs: self.retry(max_retries=0),
    "goes on": goes_on,
    "by itself": fails,
}


@pytest.mark.parametrize("kind", [each for each in RUNS if each not in ("by itself", "asks with text")])
@pytest.mark.parametrize("throw", [False, True])
def test_attempts_follow_each_other_at_once(sides: tuple[Side, Side], kind: str, throw: bool) -> None:
    def run(side: Side) -> Any:
        def on_signal(sender: Any = None, request: Any = None, reason: Any = None, **more: Any) -> None:
            side.events.append(("task_retry", sender.name, request.id, request.retries, str(reason), reason.when))

        side.signals.task_retry.connect(on_signal)
        try:
            task = define(side, kind)
            return outcome(lambda: task.apply((1,), {"x": 2}, task_id="the-id", throw=throw))
        finally:
            side.signals.task_retry.disconnect(on_signal)
            side.events[:] = [each for each in side.events if each[0] not in ("task_postrun", "task_failure")]

    check_same(sides, run)


@pytest.mark.parametrize("error", ["busy", "for ever", "other"])
def test_errors_are_retried_alike(sides: tuple[Side, Side], error: str) -> None:
    def run(side: Side) -> Any:
        task = define(side, "by itself")
        found = outcome(lambda: task.apply((error,), task_id="the-id"))
        side.events[:] = [each for each in side.events if each[0] in ("run", "on_retry")]
        return found

    check_same(sides, run)


@pytest.mark.parametrize("kind", ["asks", "asks with text", "asks with error", "has no more", "goes on"])
def test_called_as_a_function_there_is_no_other_attempt(sides: tuple[Side, Side], kind: str) -> None:
    def run(side: Side) -> Any:
        task = define(side, kind)
        found: list[Any] = []
        for call in (task, lambda: in_except(task), lambda: task.retry(exc=Busy("outside"))):
            try:
                call()
            except Exception as error:
                found.append((type(error).__name__, str(error), type(error.__cause__).__name__))
        side.events.clear()
        return found

    check_same(sides, run)


def in_except(task: Any) -> None:
    try:
        raise LookupError("before")
    except LookupError:
        task()
