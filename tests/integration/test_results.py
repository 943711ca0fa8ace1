"""Results over rpc:// as callers see them: waiting, looking, failing, states, ignoring. On one real worker."""

from __future__ import annotations

import builtins
import datetime
import re
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import ContentError, EncodeError, ImproperlyConfigured, ResultUnreachable, TimeoutError
from amqptasks.results.handles import AsyncResult
from amqptasks.wire.failures import RemoteError
from tests.running import Gate, Workshop
from tests.support import eventually

SOURCE = """
    from amqptasks.result import allow_join_result

    app.conf.result_extended = True

    class OutOfStock(Exception):
        def __init__(self, item, left):
            super().__init__(item, left)
            self.item, self.left = item, left

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def behind(name, value=None):
        gate(name)
        return value

    @app.task(track_started=True)
    def tracked(name):
        gate(name)

    @app.task(bind=True)
    def progress(self, first, second):
        gate(first)
        self.update_state(state="PROGRESS", meta={"done": 1, "of": 2})
        gate(second)
        self.update_state(meta={"done": 2, "of": 2})
        return "all"

    @app.task
    def sell(item, left):
        raise OutOfStock(item, left)

    @app.task(throws=(KeyError,))
    def expected():
        raise KeyError("nothing to worry about")

    @app.task
    def caused():
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError("the sum failed") from error

    @app.task
    def local_error():
        class Hidden(Exception):
            pass
        raise Hidden("only known there", object)

    @app.task
    def leave(kind):
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[kind]("bye")

    @app.task
    def odd_value():
        return {"value": object()}

    @app.task
    def waits(allowed):
        result = add.delay(1, 2)
        if allowed:
            with allow_join_result():
                return result.get(timeout=20)
        return result.get(timeout=20)

    @app.task(ignore_result=True)
    def silent(text):
        note(f"silent {text}")

    @app.task(ignore_result=True, bind=True)
    def silent_states(self):
        self.update_state(state="PROGRESS")
        raise ValueError("nobody hears")

    @app.task(ignore_result=True, store_errors_even_if_ignored=True)
    def loud(fails):
        if fails:
            raise ValueError("heard all the same")
        return "never seen"

    @app.task
    def starts():
        return [add.delay(1, 2).id, add.delay(3, 4).id]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project and one worker with three children, for all tests of this module."""
    with Workshop(tmp_path_factory.mktemp("results"), broker_url, SOURCE) as made:
        made.start("-c", "3")
        yield made


@pytest.fixture
def gate(shop: Workshop) -> Iterator[Gate]:
    """A gate that is opened at the end of the test, so that no task stays behind it."""
    made = shop.gate()
    yield made
    made.open()


def in_threads(number: int, call: Callable[[], Any]) -> list[Any]:
    """Call in this many threads at once; returns what each got, or its exception."""
    start = threading.Barrier(number)
    answers: list[Any] = [None] * number

    def run(index: int) -> None:
        start.wait(20)
        try:
            answers[index] = call()
        except Exception as error:
            answers[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


# -- waiting


def test_a_result_is_had_by_many_threads_and_many_times(shop: Workshop, gate: Gate) -> None:
    # Given a task that runs, and one that has ended
    result, done = shop.tasks.behind.delay(gate.name, {"sum": 4}), shop.tasks.add.delay(2, 2)
    gate.reached()
    opener = threading.Timer(0.05, gate.open)
    opener.start()
    # When many threads wait for both / Then each gets the value, and so does a later call
    assert in_threads(16, lambda: result.get(timeout=20)) == [{"sum": 4}] * 16
    assert in_threads(4, lambda: done.get(timeout=20)) == [4] * 4
    assert result.get() == result.get(timeout=0) == result.wait() == {"sum": 4}
    opener.join()


def test_a_result_that_takes_too_long_can_be_waited_for_again(shop: Workshop, gate: Gate) -> None:
    result = shop.tasks.behind.delay(gate.name, "late")
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match=r"The operation timed out\.") as caught:
            result.get(timeout=timeout)
        assert isinstance(caught.value, builtins.TimeoutError)
        assert isinstance(caught.value, AsyncResult.TimeoutError)
    gate.open()
    assert result.get(timeout=20) == "late"


def test_a_task_is_looked_at_before_while_and_after_it_runs(shop: Workshop, gate: Gate) -> None:
    # Given a task that runs / Then nothing is known of it
    result = shop.tasks.behind.delay(gate.name, 42)
    gate.reached()
    assert (result.state, result.status, result.ready(), result.successful(), result.failed()) == (
        "PENDING", "PENDING", False, False, False,
    )  # fmt: skip
    assert (result.result, result.info, result.traceback, result.date_done) == (None, None, None, None)
    # When it ends / Then all is known, without get() too
    gate.open()
    eventually(result.ready, 20)
    assert (result.state, result.status, result.successful(), result.failed()) == ("SUCCESS", "SUCCESS", True, False)
    assert (result.result, result.info, result.traceback) == (42, 42, None)
    assert abs(result.date_done - datetime.datetime.now(datetime.timezone.utc)) < datetime.timedelta(minutes=1)


def test_an_extended_result_tells_of_its_call(shop: Workshop) -> None:
    result = shop.tasks.add.delay(2, y=3)
    assert result.get(timeout=20) == 5
    assert (result.name, result.args, result.kwargs) == (f"{shop.project.name}.add", [2], {"y": 3})
    assert (result.retries, result.queue) == (0, shop.queue)
    assert re.fullmatch(r"w0-\w+@test", result.worker)


def test_a_callback_gets_the_id_and_the_value(shop: Workshop) -> None:
    seen: list[Any] = []
    result = shop.tasks.add.delay(1, 1)
    result.get(timeout=20, callback=lambda task_id, value: seen.append((task_id, value)))
    assert seen == [(result.id, 2)]


# -- failures


def test_an_error_is_raised_as_its_own_class_with_the_remote_traceback(shop: Workshop) -> None:
    result = shop.tasks.sell.delay("lamp", 0)
    with pytest.raises(shop.tasks.OutOfStock) as caught:
        result.get(timeout=20)
    assert (caught.value.args, caught.value.item, caught.value.left) == (("lamp", 0), "lamp", 0)
    # Then who prints it sees where it was raised, in the worker
    shown = "".join(traceback.format_exception(caught.value))
    assert "raise OutOfStock(item, left)" in shown
    assert (result.state, result.failed(), result.successful(), result.ready()) == ("FAILURE", True, False, True)
    assert "raise OutOfStock(item, left)" in result.traceback
    assert isinstance(result.result, shop.tasks.OutOfStock)


def test_an_error_is_returned_rather_than_raised_on_request(shop: Workshop) -> None:
    result = shop.tasks.sell.delay("lamp", 2)
    error = result.get(timeout=20, propagate=False)
    assert isinstance(error, shop.tasks.OutOfStock)
    assert error.left == 2
    # And the next call can raise it all the same
    with pytest.raises(shop.tasks.OutOfStock):
        result.get()


def test_threads_that_wait_for_an_error_each_raise_one_of_their_own(shop: Workshop, gate: Gate) -> None:
    result = shop.tasks.caused.delay()
    errors = in_threads(8, lambda: result.get(timeout=20))
    assert [str(each) for each in errors] == ["the sum failed"] * 8
    assert len({id(each) for each in errors}) == 8
    assert "ZeroDivisionError: division by zero" in result.traceback
    assert "direct cause" in result.traceback


def test_an_error_whose_class_is_not_loaded_here_keeps_its_name(shop: Workshop) -> None:
    with pytest.raises(RemoteError, match="only known there") as caught:
        shop.tasks.local_error.delay().get(timeout=20)
    assert type(caught.value).__name__ == "Hidden"
    assert caught.value.args[1] == "<class 'object'>"


@pytest.mark.parametrize(("kind", "name"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")])
def test_a_task_that_exits_ends_neither_its_worker_nor_its_caller(shop: Workshop, kind: str, name: str) -> None:
    children = shop.workers[0].children()
    with pytest.raises(RemoteError, match="bye") as caught:
        shop.tasks.leave.delay(kind).get(timeout=20)
    assert type(caught.value).__name__ == name
    assert shop.workers[0].children() == children


def test_an_answer_that_nobody_can_get_any_more_is_dropped_without_a_word(shop: Workshop) -> None:
    # Given a call whose reply queue is no more / When it has run
    gate, worker = shop.gate(), shop.workers[0]
    result = shop.tasks.behind.apply_async((gate.name,), reply_to=f"gone-{uuid.uuid4().hex}")
    gate.reached()
    gate.open()
    worker.wait_for(rf"\[{result.id}\] succeeded")
    # Then it is settled as any other, and nothing is said of it
    assert shop.tasks.add.delay(2, 2).get(timeout=20) == 4
    shop.is_waiting(0)
    assert not [line for line in worker.log.splitlines() if result.id in line and "INFO/" not in line]


def test_an_expected_error_is_logged_in_one_line(shop: Workshop) -> None:
    result = shop.tasks.expected.delay()
    with pytest.raises(KeyError, match="nothing to worry about"):
        result.get(timeout=20)
    worker = shop.workers[0]
    worker.wait_for(rf"INFO/ForkPoolWorker-\d\] Task \S+\[{result.id}\] raised expected: KeyError\(.*\)\n(?!Traceback)")


def test_an_unexpected_error_is_logged_with_its_traceback(shop: Workshop) -> None:
    result = shop.tasks.caused.delay()
    result.get(timeout=20, propagate=False)
    found = shop.workers[0].wait_for(
        rf"ERROR/ForkPoolWorker-\d\] Task \S+\[{result.id}\] raised unexpected: RuntimeError\(.*\)\nTraceback "
    )
    assert found


def test_a_value_that_cannot_be_sent_is_an_error_of_the_task(shop: Workshop) -> None:
    result = shop.tasks.odd_value.delay()
    with pytest.raises(EncodeError, match="object"):
        result.get(timeout=20)
    assert result.failed()


# -- states


def test_a_tracked_task_says_where_it_runs(shop: Workshop, gate: Gate) -> None:
    result = shop.tasks.tracked.delay(gate.name)
    eventually(lambda: result.state == "STARTED", 20)
    assert result.info["pid"] in shop.workers[0].children()
    assert re.fullmatch(r"w0-\w+@test", result.info["hostname"])
    assert not result.ready()


def test_a_task_tells_of_its_progress(shop: Workshop) -> None:
    # Given a task that reports twice, each time when it is let on
    first, second = shop.gate(), shop.gate()
    result = shop.tasks.progress.delay(first.name, second.name)
    assert result.state == "PENDING"
    # When it has reported / Then its state and its data are seen
    first.open()
    eventually(lambda: result.state == "PROGRESS", 20)
    assert result.info == result.result == {"done": 1, "of": 2}
    assert not result.ready() and not result.failed()
    # And a waiting caller may see every report
    seen: list[Any] = []
    second.open()
    assert result.get(timeout=20, on_message=seen.append) == "all"
    assert [each["status"] for each in seen][-1] == "SUCCESS"
    assert {"done": 2, "of": 2} in [each["result"] for each in seen] or len(seen) < 3
    assert all(each["task_id"] == result.id for each in seen)


def test_a_state_is_reported_in_a_worker_only(shop: Workshop) -> None:
    with pytest.raises(ImproperlyConfigured, match="outside a worker"):
        shop.tasks.progress.update_state(state="PROGRESS")


# -- inside tasks


def test_waiting_inside_a_task_is_refused_unless_allowed(shop: Workshop) -> None:
    with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
        shop.tasks.waits.delay(False).get(timeout=20)
    assert shop.tasks.waits.delay(True).get(timeout=20) == 3


def test_a_result_knows_the_tasks_that_its_task_started(shop: Workshop) -> None:
    result = shop.tasks.starts.delay()
    ids = result.get(timeout=20)
    assert [each.id for each in result.children] == ids
    # Then their answers go to the process that sent them: the worker's child, not this one
    assert result.children[0].state == "PENDING"
    with pytest.raises((ResultUnreachable, TimeoutError)):
        result.children[0].get(timeout=0.1)


# -- whose results these are


def test_an_id_of_another_process_is_refused_at_once(shop: Workshop) -> None:
    stranger = shop.app.AsyncResult(str(uuid.uuid4()))
    assert (stranger.state, stranger.ready(), stranger.exists()) == ("PENDING", False, False)
    with pytest.raises(ResultUnreachable, match=r"only the process that sent the task"):
        stranger.get()


def test_a_handle_made_of_an_id_reads_the_same_result(shop: Workshop) -> None:
    sent = shop.tasks.add.delay(2, 2)
    assert shop.app.AsyncResult(sent.id).get(timeout=20) == 4
    assert shop.tasks.add.AsyncResult(sent.id).state == "SUCCESS"


def test_a_forgotten_result_is_gone(shop: Workshop, gate: Gate) -> None:
    done, running = shop.tasks.add.delay(1, 1), shop.tasks.behind.delay(gate.name)
    assert done.get(timeout=20) == 2
    gate.reached()
    assert done.forget() is None
    assert running.forget() is None
    for each in (done, running):
        assert each.state == "PENDING"
        with pytest.raises(ResultUnreachable, match="forget"):
            each.get(timeout=1)


def test_without_a_backend_a_result_says_what_to_do(shop: Workshop) -> None:
    with App(broker=shop.broker_url, set_as_current=False) as without:
        result = without.send_task(f"{shop.project.name}.silent", ("no backend",), queue=shop.queue)
        with pytest.raises(NotImplementedError, match=r"backend='rpc://'"):
            result.get(timeout=1)
    shop.noted("silent no backend")


# -- ignoring


def test_an_ignored_result_is_none_at_once(shop: Workshop, gate: Gate) -> None:
    # Given tasks whose results are ignored, by themselves and by the call
    result = shop.tasks.silent.delay("by task")
    assert result.get() is None
    blocked = shop.tasks.behind.apply_async((gate.name,), ignore_result=True)
    # When get() is called while they run / Then it does not wait
    gate.reached()
    assert blocked.get() is None
    # And they run
    shop.noted("silent by task")
    # And a call may want what its task ignores
    wanted = shop.tasks.silent.apply_async(("after all",), ignore_result=False)
    assert wanted.get(timeout=20) is None
    assert wanted.state == "SUCCESS"


def test_an_ignored_task_sends_nothing(shop: Workshop) -> None:
    # Given an ignored task that reports and fails / When another task, sent after it, has been answered by each child
    result = shop.tasks.silent_states.delay()
    shop.workers[0].wait_for(rf"\[{result.id}\] raised unexpected: ValueError")
    for _ in range(6):
        shop.tasks.add.delay(1, 1).get(timeout=20)
    # Then nothing has come for it
    assert shop.app.backend.fetch(result.id) is None


def test_results_are_ignored_by_setting(shop: Workshop) -> None:
    with App(broker=shop.broker_url, backend="rpc://", set_as_current=False) as quiet:
        quiet.conf.task_ignore_result = True
        result = quiet.send_task(f"{shop.project.name}.silent", ("by setting",), queue=shop.queue)
        assert result.get() is None
        assert quiet.send_task(
            f"{shop.project.name}.add", (2, 2), queue=shop.queue, ignore_result=False
        ).get(timeout=20) == 4  # fmt: skip
    shop.noted("silent by setting")


def test_errors_are_kept_even_if_results_are_ignored(shop: Workshop) -> None:
    # Given a task that ignores its results but not its errors
    # Then its value stays unseen, and its error is raised
    assert shop.tasks.loud.delay(False).get(timeout=20) is None
    with pytest.raises(ValueError, match="heard all the same"):
        shop.tasks.loud.delay(True).get(timeout=20)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-python-serialize"])
def test_an_answer_that_cannot_be_read_is_an_error_of_its_task(shop: Workshop, content_type: str) -> None:
    # Given a call that is waited for, in a queue where no worker is
    result = shop.tasks.add.apply_async((1, 2), queue=f"{shop.queue}-nobody")
    shop.also_delete(f"{shop.queue}-nobody")
    assert not result.ready()

    # When an answer comes that cannot be read
    reply_to = shop.app.backend.reply_to()
    eventually(lambda: shop.admin.exists(reply_to))
    shop.publish(b"\xff{", {}, queue=reply_to, correlation_id=result.id, content_type=content_type)

    # Then whoever waits learns that, and does not wait for ever
    with pytest.raises(ContentError):
        result.get(timeout=20)
