"""What any caller may expect of any worker: one list of tests, run for each pair that must understand each other.

A test class of a pair inherits `Calls` and gives it a `client` whose tasks go to a worker of the other kind. The tests
are written against what Celery and amqptasks have in common, so they read the same for both.
"""

from __future__ import annotations

import errno
import os
import time
import types
import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import celery
import celery.exceptions
import kombu.pools
import pytest

import amqptasks
import amqptasks.exceptions
from tests.interop import tasks
from tests.support import eventually

TIMEOUT_S = 20


@dataclass
class Client:
    """A program that calls tasks: its app, and the names its package has for what both have."""

    app: Any
    package: types.ModuleType
    errors: types.ModuleType
    queue: str

    def task(self, name: str) -> Any:
        """One of the tasks of `tests.interop.tasks`, by its short name."""
        return self.app.tasks[f"interop.{name}"]

    def close(self) -> None:
        """Close its connections."""
        if self.package is celery:
            # Celery's own close() leaves them to the garbage collector.
            listener = self.app.backend.result_consumer
            if listener._consumer is not None:
                listener.stop()
            kombu.pools.reset()
        self.app.close()


def celery_client(broker_url: str, queue: str, queue_type: str, **more: Any) -> Client:
    app = celery.Celery("interop", set_as_current=False)
    app.conf.update(tasks.settings(broker_url, queue, queue_type), **more)
    return Client(tasks.register(app), celery, celery.exceptions, queue)


def our_client(broker_url: str, queue: str, queue_type: str, **more: Any) -> Client:
    app = amqptasks.App("interop", set_as_current=False)
    app.conf.update({**tasks.settings(broker_url, queue, queue_type), **more})
    return Client(tasks.register(app), amqptasks, amqptasks.exceptions, queue)


def get(result: Any) -> Any:
    return result.get(timeout=TIMEOUT_S)


def failure(result: Any) -> BaseException:
    """Wait for a task to fail and return its error."""
    error = result.get(timeout=TIMEOUT_S, propagate=False)
    assert isinstance(error, BaseException)
    return error


def lines(path: Path, count: int) -> list[str]:
    """Wait until tasks have written so many lines, and return them sorted."""

    def written() -> list[str]:
        found = path.read_text().splitlines() if path.exists() else []
        assert len(found) >= count
        return found

    return sorted(eventually(written, within_s=TIMEOUT_S))


class Gate:
    """A named pipe: a task that reads it stays there until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def open(self, text: str = "") -> None:
        """Let the task through that waits, if one does."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO
            return
        os.write(descriptor, text.encode())
        os.close(descriptor)

    def open_at(self, state: str, result: Any) -> list[tuple[str, Any]]:
        """Wait for a result, let its task through when this state is seen, and return all states that were."""
        seen: list[tuple[str, Any]] = []

        def on_message(message: dict[str, Any]) -> None:
            if message["task_id"] != result.id:
                return  # Celery shows whatever comes in
            seen.append((message["status"], message["result"]))
            if message["status"] == state:
                with self.path.open("w") as opened:
                    opened.write("done")

        result.get(timeout=TIMEOUT_S, on_message=on_message)
        return seen


class Calls:
    """The list."""

    # -- values

    def test_a_call_returns_its_value(self, client: Client) -> None:
        # When a task is called
        result = client.task("add").delay(2, 3)

        # Then its value comes back, and the handle knows how it went
        assert get(result) == 5
        assert (result.state, result.ready(), result.successful(), result.failed()) == ("SUCCESS", True, True, False)

    def test_typed_values_and_keywords_go_both_ways_unharmed(self, client: Client) -> None:
        # Given values that JSON alone does not know
        values = [
            datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=timezone.utc), datetime(2024, 2, 29, 12, 30),
            date(2024, 2, 29), Decimal("1.10"), uuid.uuid4(), b"\x00\xff", b"text", None, True, 2**60, -1.5, "naïve 🐇",
            [1, [2]], {"a": {"b": []}},
        ]  # fmt: skip

        # When they are sent as arguments and as keyword arguments, and come back
        args, kwargs = get(client.task("echo").apply_async(values, {"when": values[0], "raw": values[5]}))

        # Then they are what they were, types included
        assert args == values
        assert [type(each) for each in args] == [type(each) for each in values]
        assert kwargs == {"when": values[0], "raw": values[5]}

    def test_a_body_larger_than_a_frame_goes_both_ways(self, client: Client) -> None:
        text = "0123456789abcdef" * 30_000

        assert get(client.task("echo").delay(text)) == [[text], {}]

    @pytest.mark.parametrize("compression", ["gzip", "zlib", "bzip2"])
    def test_compressed_bodies_are_read(self, client: Client, compression: str) -> None:
        assert get(client.task("echo").apply_async(("x" * 5000,), compression=compression)) == [["x" * 5000], {}]

    def test_msgpack_bodies_are_read(self, client: Client) -> None:
        values = [1, "two", [3.0, None], {"four": True}]

        assert get(client.task("echo").apply_async(values, serializer="msgpack")) == [values, {}]

    def test_many_calls_in_flight_get_each_their_own_answer(self, client: Client) -> None:
        results = [client.task("add").delay(number, 1) for number in range(100)]

        assert [get(each) for each in results] == list(range(1, 101))

    # -- what the task sees

    def test_the_task_sees_what_was_said_of_its_call(self, client: Client) -> None:
        # When a call says everything there is to say
        result = client.task("request").apply_async(
            (1,), {"two": 2}, headers={"tenant": "acme"}, shadow="other", priority=3, time_limit=50, soft_time_limit=40,
        )  # fmt: skip

        # Then the task finds it in its request
        seen = get(result)
        assert seen["id"] == seen["root_id"] == seen["correlation_id"] == result.id
        assert seen["parent_id"] is None and seen["group"] is None
        assert (seen["args"], seen["kwargs"], seen["retries"]) == ([1], {"two": 2}, 0)
        assert (seen["argsrepr"], seen["kwargsrepr"]) == ("(1,)", "{'two': 2}")
        assert (seen["task"], seen["shadow"], seen["called_directly"]) == ("interop.request", "other", False)
        assert (seen["timelimit"], seen["priority"], seen["routing_key"]) == ([50, 40], 3, client.queue)
        # A header of the caller's own is found in both places where Celery has it.
        assert seen["headers"] == {"tenant": "acme"} and seen["tenant"] == "acme"
        assert seen["reply_to"]

    # -- errors

    def test_an_error_comes_back_as_its_own_class_with_the_remote_traceback(self, client: Client) -> None:
        # When a task raises an error of the project's own
        result = client.task("refuse").delay("no", 7)

        # Then the caller gets that class with its arguments, and can read where it came from
        with pytest.raises(tasks.Refused) as raised:
            get(result)
        assert raised.value.args == ("no", 7)
        assert "in refuse" in result.traceback and "tests.interop.tasks.Refused" in result.traceback
        assert (result.state, result.failed(), result.successful()) == ("FAILURE", True, False)

    def test_builtin_errors_come_back_as_themselves(self, client: Client) -> None:
        assert repr(failure(client.task("raises").delay("KeyError", "key"))) == "KeyError('key')"
        assert repr(failure(client.task("raises").delay("ZeroDivisionError"))) == "ZeroDivisionError()"

    def test_an_unknown_task_is_an_error_of_the_caller(self, client: Client) -> None:
        # When a task is called that the worker does not know
        result = client.app.send_task("interop.nobody_has_it", (1,))

        # Then the caller is told at once, by the class that its own package has for it
        with pytest.raises(client.errors.NotRegistered, match="interop.nobody_has_it"):
            get(result)

    def test_arguments_that_do_not_fit_fail_the_task(self, client: Client) -> None:
        with pytest.raises(TypeError, match=r"add\(\)"):
            get(client.app.send_task("interop.add", (1, 2, 3)))

    # -- states

    def test_states_of_the_tasks_own_are_seen(self, client: Client, gate: Gate) -> None:
        # Given a task that reports a state of its own, and goes on when that was seen
        result = client.task("report").delay(str(gate.path))

        # Then who waits sees the state and its data, and then the value
        seen = gate.open_at("HALFWAY", result)
        assert seen == [("HALFWAY", {"done": 1, "of": 2}), ("SUCCESS", "done")]
        assert result.state == "SUCCESS"

    def test_a_tracked_task_says_that_it_has_started(self, client: Client, gate: Gate) -> None:
        result = client.task("wait").delay(str(gate.path))

        (state, meta), end = gate.open_at("STARTED", result)
        assert state == "STARTED"
        assert set(meta) == {"pid", "hostname"} and meta["hostname"].endswith("@test")
        assert end == ("SUCCESS", "done")

    @pytest.mark.parametrize("how", ["by the task", "by the call"])
    def test_an_ignored_result_is_not_sent(self, client: Client, tmp_path: Path, how: str) -> None:
        # When a task is called whose result nobody wants
        path = tmp_path / "written"
        if how == "by the task":
            result = client.task("write_quietly").delay("x", str(path))
        else:
            result = client.task("write").apply_async(("x", str(path)), ignore_result=True)

        # Then get() does not wait, and the task runs all the same
        assert result.get(timeout=0.0) is None
        assert lines(path, 1) == ["x"]

    def test_an_ignored_error_is_not_sent_either(self, client: Client) -> None:
        result = client.task("refuse").apply_async(("no",), ignore_result=True)

        assert result.get(timeout=0.0) is None
        assert get(client.task("add").delay(1, 1)) == 2

    # -- times

    def test_a_countdown_is_kept(self, client: Client) -> None:
        asked = time.time()

        assert get(client.task("now").apply_async(countdown=0.4)) >= asked + 0.4

    def test_an_eta_is_kept(self, client: Client) -> None:
        when = datetime.now(timezone.utc) + timedelta(seconds=0.4)

        assert get(client.task("now").apply_async(eta=when)) >= when.timestamp()

    def test_a_call_that_came_too_late_is_revoked(self, client: Client) -> None:
        # When a call has expired before it reaches a worker
        result = client.task("add").apply_async((1, 1), expires=datetime.now(timezone.utc) - timedelta(seconds=60))

        # Then its caller is told so
        with pytest.raises(client.errors.TaskRevokedError, match="expired"):
            get(result)
        assert result.state == "REVOKED"

    def test_a_call_that_has_time_left_runs(self, client: Client) -> None:
        assert get(client.task("add").apply_async((1, 1), expires=600)) == 2
        assert get(client.task("add").apply_async((1, 2), expires=datetime.now(timezone.utc) + timedelta(hours=1))) == 3

    # -- what follows

    def test_a_link_is_called_with_the_value(self, client: Client, tmp_path: Path) -> None:
        # Given a callback whose result the caller wants too
        path = tmp_path / "written"
        callback = client.task("write").s(str(path))
        callback_result = callback.freeze()

        # When a task with that link succeeds
        result = client.task("add").apply_async((2, 3), link=callback)

        # Then the callback gets the value, and its own result comes back
        assert get(result) == 5
        assert lines(path, 1) == ["5"]
        assert get(callback_result) == 5
        assert [child.id for child in result.children] == [callback_result.id]

    def test_several_links_of_every_shape_are_called(self, client: Client, tmp_path: Path) -> None:
        # Given callbacks that are a call, an immutable call, a chain and a group
        path = str(tmp_path / "written")
        write, add = client.task("write"), client.task("add")
        links = [
            write.s(path), write.si("fixed", path), client.package.chain(add.s(10), write.s(path)),
            client.package.group(write.si("first", path), write.si("second", path)),
        ]  # fmt: skip

        # When the task succeeds
        add.apply_async((2, 3), link=links)

        # Then each gets the value in its own way
        assert lines(Path(path), 5) == ["15", "5", "first", "fixed", "second"]

    def test_a_link_is_not_called_after_a_failure(self, client: Client, tmp_path: Path) -> None:
        # When a task fails that has a link and two errbacks
        path = tmp_path / "written"
        result = client.task("refuse").apply_async(
            ("no",),
            link=client.task("write").si("linked", str(path)),
            link_error=[client.task("write").si("failed", str(path)), client.task("on_error_id").s(str(path))],
        )

        # Then only the errbacks run
        failure(result)
        assert lines(path, 2) == ["failed", f"id {result.id}"]

    def test_an_errback_of_the_old_style_gets_the_id(self, client: Client, tmp_path: Path) -> None:
        # An argument that is stored in the errback is not one that the failure fills.
        path = tmp_path / "written"
        result = client.task("refuse").apply_async(("no",), link_error=client.task("on_error_id").s(str(path)))

        assert lines(path, 1) == [f"id {result.id}"]

    def test_an_errback_of_the_new_style_gets_the_request_the_error_and_the_traceback(
        self, client: Client, tmp_path: Path
    ) -> None:
        path = tmp_path / "written"
        result = client.task("refuse").apply_async(("no",), link_error=client.task("on_error_full").s(str(path)))

        assert lines(path, 1) == [f"full {result.id} Refused('no') True"]

    def test_a_bound_errback_gets_the_id(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "written"
        result = client.task("refuse").apply_async(("no",), link_error=client.task("on_error_bound").s(str(path)))

        assert lines(path, 1) == [f"bound {result.id} interop.on_error_bound"]

    # -- canvas

    def test_a_group_gives_the_values_in_order(self, client: Client) -> None:
        result = client.package.group(client.task("add").s(number, number) for number in range(8)).apply_async()

        assert get(result) == [0, 2, 4, 6, 8, 10, 12, 14]
        assert result.successful() and result.completed_count() == 8

    def test_members_of_a_group_know_their_group(self, client: Client) -> None:
        request = client.task("request")
        result = client.package.group(request.s(), request.s()).apply_async()

        assert [each["group"] for each in get(result)] == [result.id, result.id]

    def test_a_group_with_a_failed_member_fails(self, client: Client) -> None:
        result = client.package.group(client.task("add").s(1, 1), client.task("refuse").s("no")).apply_async()

        with pytest.raises(tasks.Refused):
            get(result)
        assert get(result[0]) == 2

    def test_a_chain_hands_each_value_on(self, client: Client) -> None:
        # When three calls run one after another
        add = client.task("add")
        result = (add.s(1, 2) | add.s(10) | add.si(5, 5) | add.s(100)).apply_async()

        # Then the last value comes back, and each step's result can be read
        assert get(result) == 110
        assert get(result.parent) == 10
        assert get(result.parent.parent) == 13
        assert get(result.parent.parent.parent) == 3

    def test_steps_of_a_chain_know_where_they_came_from(self, client: Client) -> None:
        request = client.task("request")
        result = (request.si() | request.si() | request.si()).apply_async()

        last, middle, head = get(result), get(result.parent), get(result.parent.parent)
        assert head["parent_id"] is None
        assert (middle["parent_id"], last["parent_id"]) == (head["id"], middle["id"])
        assert {each["root_id"] for each in (last, middle, head)} == {head["id"]}

    def test_a_chain_that_fails_in_the_middle_fails_its_caller(self, client: Client, tmp_path: Path) -> None:
        # Given a chain whose second step fails, with an errback
        path = tmp_path / "written"
        add, refuse = client.task("add"), client.task("refuse")
        chain = add.s(1, 2) | refuse.s() | add.s(10) | add.s(100)
        chain.link_error(client.task("on_error_id").s(str(path)))

        # When it runs
        result = chain.apply_async()

        # Then who waits for the last step gets the error of the second, and the errback its id
        with pytest.raises(tasks.Refused):
            get(result)
        failed = result.parent.parent
        assert lines(path, 1) == [f"id {failed.id}"]
        assert get(failed.parent) == 3
        assert failed.state == "FAILURE"

    def test_a_step_that_nobody_reached_is_failed_too(self, client: Client) -> None:
        # Asked alone, without its parents: the worker must have told it.
        add, refuse = client.task("add"), client.task("refuse")
        result = (refuse.s("no") | add.s(10) | add.s(100)).apply_async()

        for step in (result, result.parent):
            with pytest.raises(tasks.Refused):
                step.get(timeout=TIMEOUT_S, follow_parents=False)

    def test_a_chain_may_end_in_a_group(self, client: Client) -> None:
        add = client.task("add")
        result = (add.s(1, 2) | client.package.group(add.s(10), add.s(20))).apply_async()

        assert get(result) == [13, 23]

    def test_a_group_may_hold_chains(self, client: Client) -> None:
        add = client.task("add")
        result = client.package.group(add.s(1, 1) | add.s(10), add.s(2, 2) | add.s(20) | add.s(200)).apply_async()

        assert get(result) == [12, 224]

    def test_a_step_of_a_chain_may_wait(self, client: Client) -> None:
        asked = time.time()
        result = (client.task("add").s(1, 2) | client.task("now").si().set(countdown=0.4)).apply_async()

        assert get(result) >= asked + 0.4
