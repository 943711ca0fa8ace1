"""Tasks as their users write and call them: decorators, names, requests, options, delays, bulk. On one real worker."""

from __future__ import annotations

import ast
import datetime
import os
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import EncodeError, NotRegistered, TaskRevokedError
from tests.running import Workshop

pytestmark = pytest.mark.broker

SOURCE = """
    import datetime, time
    from amqptasks import Task

    @app.task
    def add(x, y=1):
        return x + y

    @app.task(name="shop.renamed", serializer="msgpack")
    def named(*args, **kwargs):
        return [list(args), kwargs]

    @app.task(bind=True)
    def request(self, *args, **kwargs):
        fields = dict(self.request.as_dict())
        fields.update(
            utc=self.request.utc, logfile=self.request.logfile, loglevel=self.request.loglevel,
            taskset=self.request.taskset, time_limit=self.request.time_limit,
            soft_time_limit=self.request.soft_time_limit, children=list(self.request.children),
        )
        return fields

    @app.task(bind=True)
    def show(self, x, y):
        print(f"self -> {self}")
        print(f"self.request -> {self.request}")
        return x + y

    @app.task(bind=True)
    def family(self):
        return [self.request.root_id, self.request.parent_id]

    @app.task(bind=True)
    def outer(self):
        result = family.delay()
        return [self.request.id, self.request.root_id, result.id, [each.id for each in self.request.children]]

    @app.task(bind=True)
    def nested(self):
        return [add(20, 22), self.request.id, add.request.id]

    @app.task
    def moment():
        return time.time()

    @app.task
    def tick(text):
        note(f"tick {text}")

    @app.task(typing=False)
    def unchecked(x):
        return x

    @app.task(expires=datetime.timedelta(seconds=-1))
    def stale():
        note("stale ran")

    class Counter(Task):
        count = 0

        def run(self, by):
            self.count += by
            return [os.getpid(), self.count]

    class Doubling(Task):
        def doubled(self, value):
            return 2 * value

    counter = app.register_task(Counter())

    @app.task(bind=True, base=Doubling)
    def based(self, value):
        return self.doubled(value)
"""

#: Every field of a request that Celery's users may read.
FIELDS = {
    "id", "task", "args", "kwargs", "group", "group_index", "chord", "chain", "callbacks", "errbacks", "root_id",
    "parent_id", "retries", "eta", "expires", "utc", "hostname", "is_eager", "called_directly", "delivery_info",
    "reply_to", "correlation_id", "timelimit", "time_limit", "soft_time_limit", "origin", "lang", "shadow", "argsrepr",
    "kwargsrepr", "logfile", "loglevel", "headers", "properties", "ignore_result", "replaced_task_nesting",
    "stamped_headers", "stamps", "taskset", "children",
}  # fmt: skip
#: The fields of a printed request, in Celery's order.
PRINTED = (
    "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
    "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "properties", "reply_to", "correlation_id",
    "hostname", "delivery_info", "args", "kwargs", "is_eager", "callbacks", "errbacks", "chain", "chord",
    "called_directly", "_protected",
)  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project and one worker with two children, for all tests of this module."""
    with Workshop(tmp_path_factory.mktemp("tasks"), broker_url, SOURCE) as made:
        made.start("-c", "2")
        yield made


def get(result: Any) -> Any:
    return result.get(timeout=20)


# -- decorators and names


def test_a_bare_decorator_makes_a_task_named_after_its_function(shop: Workshop) -> None:
    # Given a function decorated bare / Then it is named by module and function, and stays a function
    add = shop.tasks.add
    assert add.name == f"{shop.project.name}.add"
    assert add(2, 2) == 4
    # When it is sent / Then a worker runs it
    assert get(add.delay(2, 2)) == 4
    assert get(add.delay(x=2, y=3)) == 5
    assert get(add.apply_async((2,), {"y": 5})) == 7


def test_a_decorator_with_options_sets_them(shop: Workshop) -> None:
    named = shop.tasks.named
    assert (named.name, named.serializer) == ("shop.renamed", "msgpack")
    # When it is sent with types that plain JSON does not know / Then they arrive as they were
    when = datetime.datetime(2026, 2, 28, 12, tzinfo=datetime.timezone.utc)
    assert get(named.delay(b"\x00\xff", when, key="ü")) == [[b"\x00\xff", when], {"key": "ü"}]


def test_a_task_of_the_main_module_is_named_after_the_app() -> None:
    # Given a program whose file runs as __main__ / Then workers, which import it by name, know its tasks all the same
    app = App("proj", set_as_current=False)
    space: dict[str, Any] = {"__name__": "__main__", "app": app}
    exec("@app.task\ndef add(x, y): return x + y", space)
    assert space["add"].name == "proj.add"


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="takes one function"):
        App(set_as_current=False).task("add")  # type: ignore[call-overload]


def test_an_instance_of_a_task_class_keeps_its_state_in_each_process(shop: Workshop) -> None:
    # When a class-based task runs several times / Then each child counts its own runs
    answers = [get(shop.tasks.counter.delay(1)) for _ in range(6)]
    last = dict(answers)
    assert sum(last.values()) == 6
    assert set(last) <= set(shop.workers[0].children())


def test_a_task_uses_the_methods_of_its_base(shop: Workshop) -> None:
    assert get(shop.tasks.based.delay(21)) == 42


# -- the request


def test_a_request_carries_every_field_of_the_reference(shop: Workshop) -> None:
    result = shop.tasks.request.delay(1, key="value")
    fields = get(result)
    assert fields.keys() >= FIELDS
    name = f"{shop.project.name}.request"
    expected = {
        "id": result.id, "task": name, "args": [1], "kwargs": {"key": "value"}, "root_id": result.id, "lang": "py",
        "correlation_id": result.id, "retries": 0, "argsrepr": "(1,)", "kwargsrepr": "{'key': 'value'}",
        "timelimit": [None, None], "is_eager": False, "called_directly": False, "ignore_result": False, "utc": True,
        "replaced_task_nesting": 0, "children": [], "reply_to": shop.app.backend.reply_to(),
        "delivery_info": {"exchange": "", "routing_key": shop.queue, "priority": None, "redelivered": False},
    }  # fmt: skip
    assert {key: fields[key] for key in expected} == expected
    assert re.fullmatch(rf"gen{os.getpid()}@\S+", fields["origin"])
    assert re.fullmatch(r"w0-\w+@test", fields["hostname"])
    assert fields["properties"].items() >= {"delivery_mode": 2, "content_type": "application/json"}.items()
    unset = FIELDS - expected.keys() - {"origin", "hostname", "properties"}
    assert {key: fields[key] for key in unset} == dict.fromkeys(unset)


def test_options_of_a_call_are_seen_in_its_request(shop: Workshop) -> None:
    task_id, group = str(uuid.uuid4()), str(uuid.uuid4())
    add = shop.tasks.add
    expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    fields = get(
        shop.tasks.request.apply_async(
            task_id=task_id, expires=expires, group_id=group, group_index=3, root_id="root", parent_id="parent",
            shadow="other name", priority=7, time_limit=60, soft_time_limit=50, headers={"tenant": "blue"},
            link=add.s(1), link_error=add.s(), argsrepr="(hidden)", kwargsrepr="{hidden}", serializer="msgpack",
            correlation_id="other",
        )
    )  # fmt: skip
    expected = {
        "id": task_id, "expires": expires.isoformat(), "group": group, "taskset": group, "group_index": 3,
        "root_id": "root", "parent_id": "parent", "shadow": "other name", "timelimit": [60, 50], "time_limit": 60,
        "soft_time_limit": 50, "headers": {"tenant": "blue"}, "argsrepr": "(hidden)", "kwargsrepr": "{hidden}",
        "correlation_id": "other",
    }  # fmt: skip
    assert {key: fields[key] for key in expected} == expected
    assert fields["delivery_info"]["priority"] == fields["properties"]["priority"] == 7
    assert fields["properties"]["content_type"] == "application/x-msgpack"
    assert [each["task"] for each in fields["callbacks"] + fields["errbacks"]] == [add.name, add.name]


def test_a_printed_request_reads_as_celerys(shop: Workshop) -> None:
    # When a task prints itself and its request / Then the log shows them
    result = shop.tasks.show.delay(5, 5)
    assert get(result) == 10
    name = f"{shop.project.name}.show"
    worker = shop.workers[0]
    worker.wait_for(rf"WARNING/ForkPoolWorker-\d\] self -> <@task: {name} of {shop.project.name} at 0x[0-9a-f]+>")
    found = worker.wait_for(rf"self\.request -> <Context: (\{{.*'id': '{result.id}'.*\}})>")
    shown = ast.literal_eval(found[1])
    assert [key for key in shown if key in PRINTED] == list(PRINTED)
    assert (shown["args"], shown["argsrepr"], shown["timelimit"]) == ([5, 5], "(5, 5)", [None, None])


def test_a_task_started_by_a_task_knows_its_parent_and_root(shop: Workshop) -> None:
    result = shop.tasks.outer.apply_async(root_id="the-root")
    own_id, root_id, child_id, children = get(result)
    assert (own_id, root_id, children) == (result.id, "the-root", [child_id])
    # Then the child's request, told in the worker's log, names them
    shop.workers[0].wait_for(rf"\[{child_id}\] succeeded in .*: \['the-root', '{own_id}'\]")
    assert [each.id for each in result.children] == [child_id]


def test_a_task_called_as_a_function_has_a_request_of_its_own(shop: Workshop) -> None:
    result = shop.tasks.nested.delay()
    assert get(result) == [42, result.id, None]
    assert shop.tasks.request()["called_directly"] is True


# -- sending


def test_a_task_is_sent_by_name(shop: Workshop) -> None:
    # Given an app that knows no tasks / When it sends one by name / Then it runs
    with App(broker=shop.broker_url, backend="rpc://", set_as_current=False) as stranger:
        result = stranger.send_task(f"{shop.project.name}.add", (2,), {"y": 3}, queue=shop.queue, task_id="my-own-id")
        assert result.id == "my-own-id"
        assert get(result) == 5


def test_an_unknown_task_name_is_answered_with_the_nearest(shop: Workshop) -> None:
    result = shop.app.send_task(f"{shop.project.name}.ad", (1,))
    with pytest.raises(NotRegistered, match=rf"did you mean '{shop.project.name}\.add'"):
        get(result)
    assert shop.dead_letter_of(result.id).headers["x-amqptasks-reason"] == "unknown-task"


def test_a_bulk_block_shares_its_round_trips_and_keeps_every_task(shop: Workshop) -> None:
    with shop.app.bulk():
        results = [shop.tasks.add.delay(number, number) for number in range(500)]
    assert [get(each) for each in results] == [2 * number for number in range(500)]


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"z": 2}, "unexpected keyword argument 'z'"),
        ((1, 2), {"y": 2}, "multiple values for argument 'y'"),
    ],
)
def test_arguments_are_checked_against_the_signature_before_sending(
    shop: Workshop, args: tuple[Any, ...], kwargs: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint) as caught:
        shop.tasks.add.delay(*args, **kwargs)
    assert f"{shop.project.name}.add(x, y=1)" in str(caught.value)


def test_the_self_of_a_bound_task_is_no_argument_of_a_call(shop: Workshop) -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        shop.tasks.show.delay(1)
    assert get(shop.tasks.based.delay(value=1)) == 2


def test_a_task_without_typing_is_checked_by_its_call(shop: Workshop) -> None:
    with pytest.raises(TypeError, match="unchecked"):
        get(shop.tasks.unchecked.delay(1, 2, 3))


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"cuntdown": 1}, TypeError, "unexpected option 'cuntdown'"),
        ({"time_limit": 1, "soft_time_limit": 2}, ValueError, "soft_time_limit must be at most time_limit"),
        ({"args": (object(),)}, EncodeError, "argument 1"),
        ({"args": (1,), "kwargs": {"y": float("nan")}}, EncodeError, "y"),
    ],
)
def test_options_that_cannot_be_are_refused(
    shop: Workshop, options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        shop.tasks.add.apply_async(**{"args": (1,), **options})


# -- delays


def test_a_delayed_task_never_runs_before_its_time(shop: Workshop) -> None:
    # Given tasks with a countdown, an aware, a naive and a written moment, sent after one that is due much later
    shop.tasks.tick.apply_async(("late",), countdown=30)
    now = datetime.datetime.now(datetime.timezone.utc)
    at = now + datetime.timedelta(seconds=0.6)
    asked: list[tuple[float, dict[str, Any]]] = [
        (time.time() + 0.3, {"countdown": 0.3}),
        (time.time() + 0.5, {"countdown": datetime.timedelta(seconds=0.5)}),
        (at.timestamp(), {"eta": at}),
        (at.timestamp(), {"eta": at.replace(tzinfo=None)}),
        (at.timestamp(), {"eta": at.astimezone(datetime.timezone(datetime.timedelta(hours=5))).isoformat()}),
    ]
    results = [(due, shop.tasks.moment.apply_async(**options)) for due, options in asked]
    # Then each runs at its time or after it, and the late one is in nobody's way
    for due, result in results:
        assert get(result) >= due
    assert "tick late" not in shop.ledger()


def test_a_message_that_comes_before_its_time_is_put_off(shop: Workshop) -> None:
    # Given a message that another program has put straight into the queue, as Celery does / Then it waits all the same
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.8)
    name, task_id = f"{shop.project.name}.moment", str(uuid.uuid4())
    shop.tasks.add.delay(1).get(timeout=20)
    shop.app.backend.expect(task_id)
    shop.publish(
        b"[[],{},{}]", {"task": name, "id": task_id, "eta": at.isoformat()}, content_type="application/json",
        content_encoding="utf-8", correlation_id=task_id, reply_to=shop.app.backend.reply_to(),
    )  # fmt: skip
    assert get(shop.app.AsyncResult(task_id)) >= at.timestamp()


def test_a_moment_that_has_passed_means_now(shop: Workshop) -> None:
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    moments: list[dict[str, Any]] = [{"eta": past}, {"countdown": 0}, {"countdown": -5}]
    for options in moments:
        assert get(shop.tasks.moment.apply_async(**options)) > 0


def test_a_request_tells_when_it_was_due(shop: Workshop) -> None:
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.1)
    fields = get(shop.tasks.request.apply_async(eta=at))
    assert fields["eta"] == at.isoformat()
    assert fields["delivery_info"]["redelivered"] is False


def test_an_expired_task_does_not_run_and_says_so(shop: Workshop) -> None:
    for result in (shop.tasks.tick.apply_async(("expired",), expires=-1), shop.tasks.stale.delay()):
        with pytest.raises(TaskRevokedError, match="expired"):
            get(result)
        assert result.state == "REVOKED"
        assert not result.failed() and result.ready()
    assert not {"tick expired", "stale ran"} & set(shop.ledger())
