"""Whatever arrives at a worker: the parent decides what becomes of it, the child makes a call of it or refuses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amqptasks import App
from amqptasks.broker.consumer import Delivery
from amqptasks.exceptions import AmqptasksError
from amqptasks.results.record import ResultRecord
from amqptasks.worker.executor import Executor, with_ids
from amqptasks.worker.follow_ups import FollowUps
from amqptasks.worker.intake import Accept, Bury, Expire, Intake, Postpone, context_of
from amqptasks.worker.outcome import Outcome

# What AMQP's header tables can carry.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=30)
    | st.binary(max_size=20) | st.just(Decimal("1.5")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = [
    "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id", "argsrepr",
    "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "compression",
    "x-amqptasks-crashes", "x-death", "x-delivery-count", "x-acquired-count", "id", "task", "__class__", "_queue",
]  # fmt: skip
headers = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), values, max_size=6).map(
    lambda table: {"id": "1", "task": "proj.add", **table}
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
signatures = plain | st.fixed_dictionaries(
    {"task": st.just("proj.add") | plain},
    optional={
        "args": plain, "kwargs": plain, "options": plain, "immutable": plain, "chord_size": plain,
        "subtask_type": plain | st.sampled_from(["chain", "group", "chord", "xmap", "xstarmap", "chunks", None]),
    },
)  # fmt: skip
embeds = plain | st.fixed_dictionaries(
    {},
    optional={
        "callbacks": plain | st.lists(signatures, max_size=2), "errbacks": plain | st.lists(signatures, max_size=2),
        "chain": plain | st.lists(signatures, max_size=2), "chord": plain | signatures,
    },
)  # fmt: skip
bodies = st.one_of(
    plain, st.tuples(plain | st.lists(plain, max_size=3), plain | st.dictionaries(st.text(max_size=5), plain), embeds)
)
#: Protocol 1: everything in the body.
old_bodies = st.builds(
    lambda fields, embed: {"id": "1", "task": "proj.add", **(embed if isinstance(embed, dict) else {}), **fields},
    st.dictionaries(
        st.sampled_from([*NAMES, "args", "kwargs", "taskset", "utc", "chunks_left"]) | st.text(max_size=5), plain,
        max_size=6,
    ),
    embeds,
)  # fmt: skip
KINDS = st.sampled_from(["application/json", "application/x-msgpack", "application/data", None]) | st.text(max_size=20)

anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    made = App("proj", broker="amqp://nowhere", backend="rpc://", set_as_current=False)

    @made.task(name="proj.add")
    def add(x: int, y: int) -> int:
        return x + y

    made.finalize()
    yield made
    made.close()


def deliver(table: Any, body: bytes, kind: Any, **properties: Any) -> Delivery:
    fields: dict[str, Any] = {
        "headers": table, "content_type": kind, "content_encoding": "utf-8", "correlation_id": None, "reply_to": None,
        "priority": None, "delivery_mode": 2, "message_id": None, "type": None, "user_id": None, "app_id": None,
        "timestamp": None, "expiration": None, **properties,
    }  # fmt: skip
    consumer: Any = SimpleNamespace(queue="work", epoch=1)
    made: Any = SimpleNamespace(**fields)
    return Delivery(consumer, 1, 1, "", "work", True, made, body)


def goes_well(app: App, delivery: Delivery) -> None:
    """Lead a delivery as far as its call."""
    decision = Intake(app).examine(delivery)
    assert isinstance(decision, (Accept, Bury, Expire, Postpone))
    # What is said of it in the dead letters and to its caller can be made
    context_of(decision.request)
    if not isinstance(decision, Accept):
        if isinstance(decision, Bury):
            assert len(str(decision.error)) < 1000
        return
    request = decision.request
    assert request.crashes >= 0 and isinstance(request.key[1], int)
    executor = Executor(app, "worker@test")
    call = executor.read(request.to_frame(1))
    if isinstance(call, Outcome):
        assert call.reason
        return
    assert isinstance(call.args, (list, tuple)) and isinstance(call.kwargs, dict)
    assert call.id == request.id and call.task == "proj.add" and call.called_directly is False
    repr(call)
    call.as_execution_options()
    # What a child makes of it, callbacks and all: an outcome that can travel
    outcome = executor.run(request.to_frame(1), lambda _frame: None)
    assert Outcome.from_frame(outcome.to_frame(1)).kind == outcome.kind
    # And what the parent says for a child that has died
    try:
        FollowUps(app, "worker@test").failure(call, ValueError("no"), None)
    except AmqptasksError as error:
        assert len(str(error)) < 2000


@anywhere
@given(headers | values, st.binary(max_size=100) | bodies.map(lambda value: json.dumps(value).encode()), KINDS)
def test_any_message_of_protocol_2_is_run_or_refused(app: App, table: Any, body: bytes, kind: Any) -> None:
    goes_well(app, deliver(table, body, kind))


@anywhere
@given(headers, bodies)
def test_any_message_in_msgpack_is_run_or_refused(app: App, table: Any, value: Any) -> None:
    try:
        body = msgpack.packb(value)
    except (OverflowError, ValueError):
        return
    goes_well(app, deliver(table, body, "application/x-msgpack"))


@anywhere
@given(bodies)
def test_any_body_under_good_headers_is_run_or_refused(app: App, value: Any) -> None:
    goes_well(app, deliver({"id": "1", "task": "proj.add"}, json.dumps(value).encode(), "application/json"))


@anywhere
@given(old_bodies | plain, st.none() | st.dictionaries(st.text(max_size=5), values, max_size=3))
def test_any_message_of_protocol_1_is_run_or_refused(app: App, value: Any, table: Any) -> None:
    goes_well(app, deliver(table, json.dumps(value).encode(), "application/json"))


@given(
    plain | st.fixed_dictionaries(
        {"task_id": st.just("1") | plain, "status": st.sampled_from(["SUCCESS", "FAILURE", "MINE"]) | plain},
        optional={
            "result": plain, "traceback": plain, "children": plain, "date_done": plain, "group_id": plain,
            "parent_id": plain, "follow_ups": plain,
        },
    )
)  # fmt: skip
def test_any_result_is_a_record_or_refused(value: Any) -> None:
    # When any decoded value comes as a result / Then it is a record that can be passed on, or the one error
    try:
        record = ResultRecord.from_plain(value)
    except AmqptasksError as error:
        assert len(str(error)) < 1000
        return
    assert json.loads(json.dumps(record.to_plain()))["task_id"] == record.task_id
    # And its children, whatever they are, can be asked for the ids that callbacks had
    assert len(with_ids([{"task": "a"}, {"task": "b"}], record.children or (), True)) == 2
