"""The picture that events draw of workers and tasks: complete, in order, bounded, and safe from whoever draws."""

from __future__ import annotations

import pickle
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.events.state import State, Task, Worker, heartbeat_expires

_clock = iter(range(1, 10**9))


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """An event as a receiver hands it over."""
    told = {
        "type": kind, "hostname": "w1@box", "pid": 7, "clock": next(_clock), "timestamp": time.time(), "utcoffset": 0,
        "local_received": time.time(),
    }  # fmt: skip
    return {**told, **fields}


def tell(state: State, task_id: str, *kinds: str, **fields: Any) -> Task:
    for kind in kinds:
        named = {"name": "mail", "args": "(1,)", "kwargs": "{}", "retries": 0} if kind == "received" else {}
        state.event(event(f"task-{kind}", uuid=task_id, **{**named, **fields}))
    task: Task = state.tasks[task_id]
    return task


def test_a_task_is_followed_to_its_end() -> None:
    # Given a state / When a task is sent, received, started and has succeeded
    state = State()
    state.event(event("task-sent", uuid="a", hostname="gen1@box", name="mail", args="(1,)", kwargs="{}", queue="q"))
    task = tell(state, "a", "received", "started")
    state.event(event("task-succeeded", uuid="a", result="42", runtime=0.5))
    # Then it knows all of it
    assert (task.state, task.name, task.args, task.result, task.runtime) == ("SUCCESS", "mail", "(1,)", "42", 0.5)
    assert task.client == "gen1@box" and task.worker is state.workers["w1@box"]
    assert task.sent <= task.received <= task.started <= task.succeeded == task.timestamp
    assert task.ready and task.origin == "w1@box.None" and task.failed is None
    assert task.info() == {"args": "(1,)", "kwargs": "{}", "retries": 0, "result": "42", "runtime": 0.5}
    assert task.info(["result"], extra=["state"]) == {"result": "42", "state": "SUCCESS"}
    assert (state.event_count, state.task_count, state.task_types()) == (4, 1, ["mail"])
    assert repr(task) == f"<Task: mail(a) SUCCESS clock:{task.clock}>"


def test_an_event_that_comes_late_does_not_undo_what_is_known() -> None:
    # Given a task that has succeeded, of which nothing else was heard / When its first events come after all
    state = State()
    tell(state, "a", "succeeded", result="42")
    task = tell(state, "a", "received")
    tell(state, "a", "started")
    # Then its state stays, and what was called is known
    assert (task.state, task.result, task.name, task.args) == ("SUCCESS", "42", "mail", "(1,)")
    # But another try is another try
    tell(state, "a", "retried", exception="KeyError()")
    assert task.state == "RETRY"
    tell(state, "a", "started")
    assert task.state == "STARTED"


def test_states_of_ones_own_are_shown() -> None:
    # Given a task that tells an event of its own / When that comes / Then it is its state
    task = tell(State(), "a", "received", "started", "halfway", percent=50)
    assert (task.state, task.percent) == ("HALFWAY", 50)  # type: ignore[attr-defined]


def test_workers_come_live_and_go() -> None:
    # Given who wants to know of workers
    told: list[tuple[str, str]] = []
    state = State(
        on_node_join=lambda worker: told.append(("join", worker.hostname)),
        on_node_leave=lambda worker: told.append(("leave", worker.hostname)),
    )
    # When one comes and lives
    state.event(event("worker-online", freq=2.0, active=0, processed=0, loadavg=[1, 2, 3], sw_ident="py-amqptasks"))
    state.event(event("worker-heartbeat", freq=2.0, active=1, processed=5, loadavg=[1, 2, 3]))
    worker = state.workers["w1@box"]
    # Then it is alive, with what it has said
    assert worker.alive and list(state.alive_workers()) == [worker] and worker.status_string == "ONLINE"
    assert (worker.active, worker.processed, worker.freq, worker.pid, worker.id) == (1, 5, 2.0, 7, "w1@box.7")
    assert worker.heartbeat_expires == heartbeat_expires(worker.heartbeats[-1], 2.0)
    # When it goes / Then that is told, and it is forgotten
    state.event(event("worker-offline"))
    assert not worker.alive and told == [("join", "w1@box"), ("leave", "w1@box")] and "w1@box" not in state.workers


def test_a_worker_that_falls_silent_is_not_alive() -> None:
    # Given a worker whose last heartbeat is older than two of its intervals / Then it is not taken for alive
    state = State()
    state.event(event("worker-heartbeat", freq=2.0, local_received=time.time() - 4.5))
    assert not state.workers["w1@box"].alive and list(state.alive_workers()) == []


def test_tasks_are_found_by_time_name_and_worker() -> None:
    # Given tasks of two names from two workers, told in no order
    state = State()
    moments = [(number, event("task-received", uuid=f"t{number}", name=f"n{number % 2}", hostname=f"w{number % 3}@box"))
               for number in range(30)]  # fmt: skip
    random.Random(7).shuffle(moments)
    for _, each in moments:
        state.event(each)
    # Then they are found in the order of their clocks, last first
    order = [f"t{number}" for number in range(29, -1, -1)]
    assert [uuid for uuid, _ in state.tasks_by_time()] == order
    assert [uuid for uuid, _ in state.tasks_by_timestamp(limit=3)] == order[:3]
    assert [uuid for uuid, _ in state.tasks_by_time(reverse=False)] == order[::-1]
    assert [uuid for uuid, _ in state.tasks_by_type("n1", limit=2)] == ["t29", "t27"]
    assert [uuid for uuid, _ in state.tasks_by_worker("w0@box", limit=2)] == ["t27", "t24"]
    assert {task.uuid for task in state.tasks_by_type["n0"]} == {f"t{number}" for number in range(0, 30, 2)}
    assert {task.uuid for task in state.tasks_by_worker["w1@box"]} == {f"t{number}" for number in range(1, 30, 3)}
    assert [uuid for uuid, _ in state.itertasks(limit=4)].__len__() == 4


def test_relations_are_known_whichever_comes_first() -> None:
    # Given a child that is heard of before its parent / When both are there / Then they know each other
    state = State()
    child = tell(state, "child", "received", parent_id="parent", root_id="parent")
    assert child.parent is None
    parent = tell(state, "parent", "received")
    assert child.parent is parent and child.root is parent and list(parent.children) == [child]
    late = tell(state, "late", "received", parent_id="parent")
    assert set(parent.children) == {child, late}
    assert parent.as_dict()["children"].__len__() == 2 and child.as_dict()["parent"] == "parent"


def test_what_is_kept_is_bounded() -> None:
    # Given a small state / When far more is told than it keeps
    state = State(max_workers_in_memory=3, max_tasks_in_memory=10)
    for number in range(200):
        fields = {"parent_id": f"p{number}", "hostname": f"w{number}@box", "name": f"n{number}"}
        tell(state, f"t{number}", "received", "started", **fields)
    # Then it keeps what it has heard of last
    assert list(state.tasks) == [f"t{number}" for number in range(190, 200)]
    assert list(state.workers) == ["w197@box", "w198@box", "w199@box"]
    assert len(state._moments) <= 40 and len(state._children) <= 10 and len(state.task_types()) <= 10
    assert len(state.tasks_by_type) <= 11 and len(state.tasks_by_worker) <= 11
    assert (state.event_count, state.task_count) == (400, 200)


def test_two_hundred_workers_are_followed() -> None:
    # Given 200 workers that beat every two seconds, and run tasks / When an hour of that is told
    state = State()
    for _ in range(1800 // 20):
        for number in range(200):
            state.event(event("worker-heartbeat", hostname=f"w{number}@box", freq=2.0, active=1, processed=9))
        for number in range(50):
            tell(state, f"t{next(_clock)}", "received", "started", "succeeded", hostname=f"w{number}@box")
    # Then each is known, alive, and no heavier than at first
    assert len(list(state.alive_workers())) == 200
    assert all(len(worker.heartbeats) <= 4 for worker in state.workers.values())
    assert len(state.tasks) == 4500 and len(state._moments) == 13500


def test_it_can_be_forgotten() -> None:
    # Given a state with a task that has ended and one that has not / When tasks are cleared
    state = State()
    tell(state, "a", "received", "succeeded")
    tell(state, "b", "received")
    state.clear_tasks()
    # Then what has ended is gone; with ready=False the rest too; clear() begins anew
    assert list(state.tasks) == ["b"]
    state.clear_tasks(ready=False)
    assert not state.tasks and state.event_count == 3
    state.clear()
    assert not state.workers and state.event_count == 0
    # And a function may see it stand still, and leave it empty
    tell(state, "c", "received", "succeeded")
    assert state.freeze_while(lambda: len(state.tasks), clear_after=True) == 1
    assert not state.tasks


def test_handlers_and_callbacks_of_ones_own() -> None:
    # Given a handler for a group of events, and a callback for all / When events come / Then each is told
    heard: list[Any] = []
    state = State(callback=lambda state, event: heard.append(event["type"]))
    state.handlers["custom"] = lambda subject, event: heard.append((subject, event["type"]))
    state.event(event("custom-thing-done"))
    state.event(event("worker-online"))
    assert heard == ["custom-thing-done", ("thing-done", "custom-thing-done"), "worker-online"]


def test_a_state_survives_pickling() -> None:
    # Given a state / When it is stored and read again / Then it is the same, and goes on
    state = State(max_tasks_in_memory=50)
    tell(state, "a", "received", "started")
    again = pickle.loads(pickle.dumps(state))
    assert again.tasks["a"].state == "STARTED" and again.tasks["a"].worker == again.workers["w1@box"]
    assert [uuid for uuid, _ in again.tasks_by_type("mail")] == ["a"] and again.max_tasks_in_memory == 50
    assert tell(again, "a", "succeeded").state == "SUCCESS"


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    [
        "uuid", "hostname", "timestamp", "local_received", "clock", "freq", "name", "parent_id", "root_id", "state",
        "heartbeats", "children", "cluster_state", "event", "take", "info", "worker", "client", "__class__", "__dict__",
        "_known", "loadavg", "pid", "id", "ready", "parent", "as_dict", "merge_rules", "received", "retries", "a b",
    ]
)  # fmt: skip
TYPES = st.sampled_from(
    [
        "task-received",
        "task-succeeded",
        "task-sent",
        "task-",
        "worker-online",
        "worker-offline",
        "worker-",
        "x",
        "-",
        "",
    ]
)


@given(st.lists(st.tuples(TYPES, st.dictionaries(FIELDS, VALUES, max_size=6)), max_size=12))
def test_no_event_breaks_a_state(events: list[tuple[str, dict[str, Any]]]) -> None:
    # Given events of somebody who means no good, among honest ones / When they are told
    state = State(max_workers_in_memory=5, max_tasks_in_memory=5)
    tell(state, "good", "received")
    state.event(event("worker-heartbeat", freq=2.0))
    for kind, fields in events:
        state.event({**event(kind, uuid="good"), **fields, "type": kind})
    state.event({})
    # Then everything that it offers still works
    for _, task in state.tasks_by_time():
        repr(task), task.info(extra=["state"]), task.as_dict(), task.ready, task.parent, task.root, task.origin
    for worker in state.workers.values():
        repr(worker), worker.alive, worker.id
    list(state.alive_workers()), state.task_types(), repr(state)
    assert type(tell(state, "honest", "received", "succeeded")) is Task
    assert state.tasks["honest"].state == "SUCCESS"


@pytest.mark.parametrize("kind", [Worker, Task])
def test_texts_and_fields_are_bounded(kind: Any) -> None:
    # Given an event with a huge text and very many fields / When it is taken in / Then little of that is kept
    thing = kind("x")
    thing.take({"note": "y" * 10**6, **{f"field_{number}": number for number in range(10_000)}})
    assert len(thing.note) == 100_000 and len(thing.__dict__) < 300
