"""Eager runs: what a caller sees of apply(), and of every call under task_always_eager. Without a broker."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from amqptasks import App, Task, chain, group, signals
from amqptasks.exceptions import AlwaysEagerIgnored, EncodeError, Ignore, Reject
from amqptasks.result import AsyncResult, EagerResult, GroupResult


@pytest.fixture
def app() -> App:
    return App("proj", backend="memory://", set_as_current=False, task_always_eager=True)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """The signals of runs, in order."""
    seen: list[Any] = []
    connected = []
    for signal in (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure):
        receiver = lambda signal, **_: seen.append(signal.name)  # noqa: E731
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))
    yield seen
    for signal, receiver in connected:
        signal.disconnect(receiver)


class Noted(Task[..., Any]):
    """Notes its handlers."""

    notes: list[Any]

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.notes.append("before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.notes.append("on_success")

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.notes.append("on_failure")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.notes.append(f"after_return {status}")


def test_a_call_runs_at_once_and_returns_its_result(app: App) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    result = add.delay(2, 3)
    assert isinstance(result, EagerResult) and isinstance(result, AsyncResult)
    assert (result.get(), result.state, result.ready(), result.successful()) == (5, "SUCCESS", True, True)
    # And a countdown, a queue or an expiry means nothing
    options: dict[str, Any] = {"countdown": 3600, "queue": "elsewhere", "expires": 1, "task_id": "mine"}
    assert add.apply_async((1,), {"y": 1}, **options).id == "mine"
    # But arguments are checked
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        add.delay(1)  # type: ignore[call-arg]


def test_a_failure_is_a_result_and_its_traceback_is_told(app: App) -> None:
    @app.task
    def fail() -> None:
        raise KeyError("gone")

    result = fail.delay()
    assert (result.state, result.failed()) == ("FAILURE", True)
    assert isinstance(result.result, KeyError) and "KeyError: 'gone'" in str(result.traceback)
    assert isinstance(result.get(propagate=False), KeyError)
    with pytest.raises(KeyError, match="gone"):
        result.get()
    # When errors are to propagate, by the setting or by the call / Then the call raises
    assert fail.apply().failed()
    with pytest.raises(KeyError):
        fail.apply(throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(KeyError):
        fail.delay()
    assert fail.apply(throw=False).failed()


def test_arguments_go_through_the_serializer(app: App) -> None:
    @app.task
    def echo(value: Any) -> Any:
        return value

    # Then a tuple becomes a list and a key becomes text, as they would on the way to a worker
    now = datetime.datetime(2026, 2, 3, tzinfo=datetime.timezone.utc)
    assert echo.delay((1, {2: now})).get() == [1, {"2": now}]
    assert echo.apply(((1, {2: now}),)).get() == (1, {2: now})
    # And what cannot travel is refused, where it would be
    with pytest.raises(EncodeError, match="argument 1"):
        echo.delay(object())
    app.conf.task_serializer = "msgpack"
    assert echo.delay(b"\xff").get() == b"\xff"
    with pytest.raises(EncodeError):
        echo.apply_async((float("nan"),), serializer="json")


def test_the_request_shows_its_arguments_as_deep_as_the_setting_says(app: App) -> None:
    @app.task(bind=True)
    def shown(self: Any, value: Any) -> Any:
        return self.request.argsrepr

    assert shown.delay([[[1]]]).get() == "([[[...]]],)"
    app.conf.task_repr_maxlevels = 4
    assert shown.delay([[[1]]]).get() == "([[[1]]],)"


def test_the_request_says_that_it_is_eager(app: App) -> None:
    @app.task(bind=True)
    def request(self: Any) -> Any:
        return self.request

    seen = request.apply_async(
        headers={"a": 1}, priority=3, queue="q", shadow="s", time_limit=9, group_id="g", root_id="r", parent_id="p"
    ).result
    assert seen.is_eager and not seen.called_directly
    assert (seen.root_id, seen.parent_id, seen.group, seen.shadow) == ("r", "p", "g", "s")
    assert (seen.headers, seen.timelimit, seen.delivery_info["priority"]) == ({"a": 1}, [9, None], 3)
    plain = request.apply(retries=2, logfile="log", loglevel=20).result
    assert (plain.retries, plain.logfile, plain.loglevel, plain.root_id) == (2, "log", 20, plain.id)
    assert plain.delivery_info["is_eager"] and plain.args == () and plain.kwargs == {}


def test_a_task_within_a_task_knows_its_parent_and_may_not_be_waited_for(app: App) -> None:
    @app.task(bind=True)
    def inner(self: Any) -> Any:
        return [self.request.parent_id, self.request.root_id]

    @app.task(bind=True)
    def outer(self: Any) -> Any:
        result = inner.delay()
        try:
            result.get()
        except RuntimeError as error:
            return [self.request.id, result.result, str(error)[:29]]

    own_id, seen, complaint = outer.delay().get()
    assert seen == [own_id, own_id]
    assert complaint == "Never call result.get() withi"


def test_handlers_and_signals_come_in_a_workers_order(app: App, events: list[Any]) -> None:
    Noted.notes = events

    @app.task(base=Noted)
    def work(fails: bool) -> None:
        events.append("run")
        if fails:
            raise ValueError

    work.delay(False)
    assert events == [
        "task_prerun", "before_start", "run", "on_success", "task_success", "after_return SUCCESS", "task_postrun",
    ]  # fmt: skip
    events.clear()
    work.delay(True)
    assert events == [
        "task_prerun", "before_start", "run", "on_failure", "task_failure", "after_return FAILURE", "task_postrun",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["on_success", "after_return", "on_failure"])
def test_an_error_in_a_handler_reaches_the_caller(app: App, name: str) -> None:
    # Given a handler with a fault / When its task runs in this very program / Then the program learns of it
    def fault(*_: Any) -> None:
        raise LookupError(name)

    base = type("Faulty", (Task,), {name: fault})
    task = app.task(base=base)(lambda: 1 / (0 if name == "on_failure" else 1))
    with pytest.raises(LookupError, match=name):
        task.delay()


def test_ignore_and_reject_are_states(app: App) -> None:
    for error, state in ((Ignore(), "IGNORED"), (Reject("no"), "REJECTED")):

        @app.task(name=state)
        def steer(error: Exception = error) -> None:
            raise error

        result = steer.apply()
        assert (result.state, result.result, result.get()) == (state, error, None)


def test_a_program_may_be_ended_by_its_own_task(app: App) -> None:
    # When a task that runs in this program raises SystemExit / Then that is what the program wants
    with pytest.raises(SystemExit):
        app.task(lambda: exit(3)).delay()


def test_callbacks_and_errbacks_follow(app: App) -> None:
    told: list[Any] = []

    @app.task
    def add(x: int, y: int) -> int:
        told.append(("add", x, y))
        return x + y

    @app.task
    def fail() -> None:
        raise ValueError("bad")

    @app.task
    def by_id(task_id: str) -> None:
        told.append(("by id", task_id))

    @app.task
    def by_request(request: Any, exc: Exception, traceback: str) -> None:
        told.append(("by request", request.id, repr(exc), traceback.splitlines()[-1]))

    add.apply_async((1, 2), link=[add.s(10), by_id.si("done")])
    assert told == [("add", 1, 2), ("add", 3, 10), ("by id", "done")]
    told.clear()
    fail.apply_async(task_id="f", link_error=[by_id.s(), by_request.s()])
    assert told == [("by id", "f"), ("by request", "f", "ValueError('bad')", "ValueError: bad")]


def test_chains_and_groups_run_at_once_too(app: App) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    result = chain(add.s(2, 2), add.s(4), add.s(8))()
    assert [result.get(), result.parent.get(), result.parent.parent.get()] == [16, 8, 4]
    assert result.parent.parent.parent is None
    several = group(add.s(i, i) for i in range(4))()
    assert isinstance(several, GroupResult) and several.get() == [0, 2, 4, 6]
    assert (add.s(1) | group(add.s(1), add.s(2))).delay(1).get() == [3, 4]
    # And without the setting, when they are told to
    app.conf.task_always_eager = False
    assert add.s(1).apply((5,)).get() == 6
    assert (add.s(1) | add.s(2)).apply((5,)).get() == 8
    assert group(add.s(1), add.s(2)).apply((5,), task_id="g").id == "g"
    # And a chain's links and id are its last step's
    app.conf.task_always_eager = True
    called: list[Any] = []
    note = app.task(name="note")(called.append)
    assert (add.s(1) | add.s(2)).apply_async((5,), link=note.s(), task_id="last").id == "last"
    assert called == [8]


def test_a_chain_stops_where_it_fails(app: App) -> None:
    @app.task
    def fail(*_: Any) -> None:
        raise ValueError("bad")

    assert fail.s().delay().failed()
    with pytest.raises(ValueError, match="bad"):
        (fail.s() | fail.s()).delay()


def test_results_are_stored_if_they_are_to_be(app: App) -> None:
    add = app.task(name="add")(lambda x, y: x + y)
    ignored = app.task(name="ignored", ignore_result=True)(lambda: 1)
    fail = app.task(name="fail")(lambda: 1 / 0)
    assert app.AsyncResult(add.delay(1, 2).id).state == "PENDING"
    app.conf.task_store_eager_result = True
    result = add.delay(1, 2)
    assert app.AsyncResult(result.id).get(timeout=1) == 3
    stored = app.AsyncResult(fail.delay().id)
    assert stored.state == "FAILURE" and isinstance(stored.result, ZeroDivisionError)
    assert "ZeroDivisionError" in str(stored.traceback)
    assert app.AsyncResult(ignored.delay().id).state == "PENDING"
    # And by a task of its own mind
    app.conf.task_store_eager_result = False
    add.store_eager_result = True
    assert app.AsyncResult(add.delay(1, 2).id).state == "SUCCESS"


def test_a_send_by_name_is_sent_all_the_same(app: App) -> None:
    # Given an app whose broker is away / When a task is sent by name / Then a warning says that it is sent for real
    app.conf.broker_url = "amqp://127.0.0.1:1//"
    with (
        pytest.warns(AlwaysEagerIgnored, match="task_always_eager has no effect on send_task") as caught,
        pytest.raises(Exception, match="127.0.0.1:1"),
    ):
        app.send_task("somewhere.else", retry=False, timeout=0.5)
    assert caught[0].filename == __file__
    app.close()


def test_no_broker_is_asked(app: App) -> None:
    app.conf.broker_url = "amqp://127.0.0.1:1//"
    app.conf.result_backend = "rpc://"
    add = app.task(name="add")(lambda x, y: x + y)
    assert (add.delay(1, 2).get(), group(add.s(1, 1), add.s(2, 2))().get()) == (3, [2, 4])
    assert "publisher" not in app._parts and "thread" not in app._parts
