"""Handles: what a caller holds of a task that was sent."""

from __future__ import annotations

import copy
import pickle
import threading
from datetime import datetime, timezone

import pytest

from amqptasks.exceptions import DecodeError, ImproperlyConfigured, IncompleteStream, TaskRevokedError, TimeoutError
from amqptasks.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    ResultSet,
    allow_join_result,
    denied_join_result,
    result_from_tuple,
)
from amqptasks.results import context
from amqptasks.results.backend import DisabledBackend
from amqptasks.results.context import set_default_app
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord
from amqptasks.wire.failures import to_plain


class App:
    """An app is a place to find a backend."""

    def __init__(self, backend) -> None:
        self.backend = backend


@pytest.fixture
def backend():
    """A backend in memory."""
    return MemoryBackend()


@pytest.fixture
def succeed(backend):
    """A function that ends a task well."""
    return lambda task_id, value=None, **fields: backend.store(ResultRecord.now(task_id, "SUCCESS", value, **fields))


@pytest.fixture
def fail(backend):
    """A function that ends a task with an exception."""
    return lambda task_id, error: backend.store(
        ResultRecord.now(task_id, "FAILURE", to_plain(error), traceback="Traceback of the worker")
    )


@pytest.fixture
def result(backend):
    """A function that makes a handle."""
    return lambda task_id, **options: AsyncResult(task_id, backend=backend, **options)


def test_a_task_of_which_nothing_is_known_is_pending(result):
    pending = result("t")
    assert (pending.state, pending.status, pending.result, pending.info) == ("PENDING", "PENDING", None, None)
    assert (pending.ready(), pending.successful(), pending.failed(), pending.exists()) == (False, False, False, False)
    assert (pending.traceback, pending.children, pending.date_done, pending.name) == (None, None, None, None)


def test_a_finished_task_gives_its_value_as_often_as_asked(result, succeed):
    done = result("t")
    succeed("t", 4)
    assert [done.get(), done.get(timeout=0), done.wait(), done.result] == [4, 4, 4, 4]
    assert (done.ready(), done.successful(), done.failed(), done.exists()) == (True, True, False, True)


def test_a_wait_ends_with_celerys_words_when_time_is_over(result):
    with pytest.raises(TimeoutError, match=r"The operation timed out\."):
        result("t").get(timeout=0.01)
    with pytest.raises(result("t").TimeoutError):
        result("t").get(timeout=0)


def test_a_failure_is_raised_as_its_own_class_with_the_workers_traceback(result, fail):
    fail("t", KeyError("missing"))
    with pytest.raises(KeyError, match="missing") as caught:
        result("t").get()
    assert "Traceback of the worker" in str(caught.value.__cause__)
    assert result("t").traceback == "Traceback of the worker"


def test_a_failure_is_returned_on_request(result, fail):
    fail("t", ValueError("no"))
    failed = result("t")
    assert isinstance(failed.get(propagate=False), ValueError)
    assert isinstance(failed.result, ValueError)
    assert failed.failed()
    with pytest.raises(ValueError, match="no"):
        failed.maybe_throw()
    with pytest.raises(ValueError, match="no"):
        failed.maybe_reraise()


def test_each_raise_is_an_exception_of_its_own(result, fail):
    fail("t", ValueError("no"))
    failed = result("t")
    assert failed.get(propagate=False) is not failed.get(propagate=False)


def test_a_custom_state_shows_its_meta_and_a_retry_its_error(result, backend):
    backend.store(ResultRecord.now("t", "PROGRESS", {"done": 3}))
    assert (result("t").state, result("t").info) == ("PROGRESS", {"done": 3})
    backend.store(ResultRecord.now("r", "RETRY", to_plain(OSError("again"))))
    assert isinstance(result("r").result, OSError)
    assert not result("r").ready()


def test_a_revoked_task_raises(result, backend):
    backend.store(ResultRecord.now("t", "REVOKED", to_plain(TaskRevokedError("revoked"))))
    with pytest.raises(TaskRevokedError):
        result("t").get()


def test_callbacks_hear_of_the_value_and_of_states(result, succeed):
    heard, seen = [], []
    succeed("t", 4)
    result("t").get(callback=lambda task_id, value: heard.append((task_id, value)), on_message=seen.append)
    assert heard == [("t", 4)]
    assert [message["status"] for message in seen] == ["SUCCESS"]


def test_on_interval_is_called_while_waiting(result, succeed):
    calls = []

    def on_interval():
        calls.append(1)
        if len(calls) == 3:
            succeed("t", 4)

    assert result("t").get(timeout=10, interval=0.01, on_interval=on_interval) == 4


def test_a_wait_is_ended_from_another_thread(result, succeed):
    timer = threading.Timer(0.02, succeed, ("t", 4))
    timer.start()
    assert result("t").get(timeout=10) == 4
    timer.join()


def test_a_failed_parent_ends_the_wait_for_its_child(result, fail):
    # Given a chain whose first step fails while the caller waits for the last
    first = result("first")
    last = result("last", parent=result("middle", parent=first))
    timer = threading.Timer(0.02, fail, ("first", ValueError("early")))
    timer.start()
    # Then the error is raised, not waited past
    with pytest.raises(ValueError, match="early"):
        last.get(timeout=10, interval=0.01)
    timer.join()
    with pytest.raises(TimeoutError):
        last.get(timeout=0.01, follow_parents=False)
    with pytest.raises(TimeoutError):
        last.get(timeout=0.01, propagate=False)


def test_an_ignored_result_is_none_at_once(result):
    ignored = result("t")
    ignored.ignored = True
    assert ignored.get() is None


def test_waiting_inside_a_task_is_refused_unless_allowed(result, succeed):
    succeed("t", 4)
    group = GroupResult("g", [result("t")])
    with denied_join_result():
        for handle in (result("t"), group, EagerResult("e", 4, "SUCCESS")):
            with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
                handle.get()
            assert handle.get(disable_sync_subtasks=False) in (4, [4])
        with allow_join_result():
            assert result("t").get() == 4
        with pytest.raises(RuntimeError):
            result("t").get()
    assert result("t").get() == 4


def test_denying_is_of_one_thread(result, succeed):
    succeed("t", 4)
    values = []
    with denied_join_result():
        thread = threading.Thread(target=lambda: values.append(result("t").get()))
        thread.start()
        thread.join()
    assert values == [4]


def test_forgetting_reaches_the_steps_before(result, succeed, backend):
    succeed("a")
    succeed("b")
    last = result("b", parent=GroupResult("g", [result("a")]))
    assert last.get() is None
    last.forget()
    assert backend.fetch("a") is backend.fetch("b") is None
    assert last.state == "PENDING"


def test_a_very_long_chain_of_parents_breaks_no_stack(result):
    node = None
    for number in range(5000):
        node = result(str(number), parent=node)
    assert len(node.as_list()) == 5000
    node.forget()
    with pytest.raises(TimeoutError):
        node.get(timeout=0)
    assert node.as_tuple()[0][0] == "4999"


def test_children_are_handles_and_can_be_walked(result, succeed):
    # Given a task that started a task and a group
    succeed("root", 0, children=[[["a", None], None], [["g", None], [[["b", None], None], [["c", None], None]]]])
    for task_id, value in (("a", 1), ("b", 2), ("c", 3)):
        succeed(task_id, value)
    root = result("root")
    assert root.children == [AsyncResult("a"), GroupResult("g", [AsyncResult("b"), AsyncResult("c")])]
    # When it is walked / Then all of them are met, level by level
    assert [str(node.id) for _parent, node in root.iterdeps()] == ["root", "a", "g", "b", "c"]
    assert [value for _node, value in root.collect()] == [0, 1, [2, 3], 2, 3]
    assert root.get_leaf() == 3


def test_walking_needs_finished_results_unless_told_otherwise(result):
    with pytest.raises(IncompleteStream, match="not finished"):
        list(result("t").iterdeps())
    assert len(list(result("t").iterdeps(intermediate=True))) == 1


def test_extended_results_say_how_the_task_ran(result, backend):
    extra = {"name": "tasks.add", "args": [1], "kwargs": {}, "worker": "w@h", "retries": 1, "queue": "q"}
    backend.store(ResultRecord("t", "SUCCESS", 4, date_done="2026-01-02T03:04:05Z", extra=extra))
    done = result("t")
    assert [done.name, done.args, done.kwargs, done.worker, done.retries, done.queue] == list(extra.values())
    assert done.date_done == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    backend.store(ResultRecord("u", "SUCCESS", 4, date_done="yesterday"))
    assert result("u").date_done is None


def test_handles_are_their_ids(result):
    assert result("t") == result("t") == "t"
    assert result("t") != result("u")
    assert result("t") != 5
    assert {result("t"): 1}["t"] == 1
    assert (str(result("t")), repr(result("t")), result("t").task_id) == ("t", "<AsyncResult: t>", "t")
    assert AsyncResult[int] is not None
    with pytest.raises(ValueError, match="requires the id"):
        AsyncResult(None)


def test_handles_are_copied_and_pickled_without_their_backend(result, backend, succeed):
    succeed("t", 4)
    parent = result("p")
    assert copy.copy(result("t", parent=parent)).get() == 4
    back = pickle.loads(pickle.dumps(result("t", parent=parent)))
    assert (back, back.parent) == (result("t"), parent)
    set_default_app(lambda: App(backend))
    try:
        assert back.get() == 4
    finally:
        set_default_app(None)


def test_a_handle_without_an_app_says_what_to_do(monkeypatch):
    # Given that no app of another test is still there
    monkeypatch.setattr(context, "_app_provider", None)
    with pytest.raises(ImproperlyConfigured, match=r"task t .*app="):
        AsyncResult("t").ready()


def test_an_app_without_a_backend_says_what_to_do():
    orphan = AsyncResult("t", app=App(DisabledBackend()))
    for ask in (orphan.get, lambda: orphan.state, orphan.ready):
        with pytest.raises(NotImplementedError, match=r"No result backend is configured.*rpc://"):
            ask()
    orphan.forget()


# -- sets and groups


def test_a_set_gives_values_in_order(result, succeed):
    for task_id, value in (("b", 2), ("a", 1)):
        succeed(task_id, value)
    both = ResultSet([result("a"), result("b")])
    assert both.get() == both.join() == both.join_native() == [1, 2]
    assert (both.ready(), both.successful(), both.failed(), both.waiting(), both.completed_count()) == (
        True, True, False, False, 2,
    )  # fmt: skip


def test_the_timeout_of_a_set_is_for_all_of_it(result, succeed):
    succeed("a", 1)
    with pytest.raises(TimeoutError):
        ResultSet([result("a"), result("b"), result("c")]).get(timeout=0.02)


def test_a_failed_member_ends_the_wait_before_its_turn(result, fail):
    fail("second", ValueError("no"))
    waiting = ResultSet([result("first"), result("second")])
    with pytest.raises(ValueError, match="no"):
        waiting.get(timeout=10, interval=0.01)
    assert waiting.failed()
    assert waiting.waiting()


def test_failures_stand_in_the_list_on_request(result, succeed, fail):
    succeed("a", 1)
    fail("b", ValueError("no"))
    values = ResultSet([result("a"), result("b")]).get(propagate=False)
    assert values[0] == 1
    assert isinstance(values[1], ValueError)


def test_a_callback_gets_the_values_instead(result, succeed):
    heard = []
    succeed("a", 1)
    assert ResultSet([result("a")]).get(callback=lambda task_id, value: heard.append((task_id, value))) == []
    assert heard == [("a", 1)]


def test_results_can_be_taken_as_they_come(result, succeed, fail, backend):
    # Given a group of which one member is done
    succeed("b", 2)
    group = GroupResult("g", [result("a"), result("b"), GroupResult("h", [result("c")])])
    stream = group.iter_native(timeout=10)
    assert next(stream)[1]["result"] == 2
    # When the others finish in another order / Then they come in that order
    fail("c", ValueError("no"))
    task_id, meta = next(stream)
    assert (task_id, type(meta["result"])) == ("c", ValueError)
    succeed("a", 1)
    assert next(stream)[1]["result"] == 1
    assert list(stream) == []


def test_taking_as_they_come_has_a_timeout_and_an_interval(result, succeed):
    with pytest.raises(TimeoutError):
        list(ResultSet([result("a")]).iter_native(timeout=0.02))
    calls = []

    def on_interval():
        calls.append(1)
        succeed("a", 1)

    found = list(ResultSet([result("a")]).iter_native(timeout=10, interval=0.01, on_interval=on_interval))
    assert found[0][1]["result"] == 1
    with pytest.raises(TimeoutError):
        list(ResultSet([result("b")]).iter_native(timeout=0.03, interval=0.01, on_interval=lambda: None))


def test_a_set_is_a_list(result):
    a, b = result("a"), result("b")
    members = ResultSet([a])
    members.add(a)
    members.update([a, b])
    assert (len(members), list(members), members[1], members.index("b")) == (2, [a, b], b, 1)
    members.remove("a")
    members.discard("a")
    with pytest.raises(KeyError):
        members.remove("a")
    assert members == ResultSet([b])
    members.clear()
    assert members.get() == []
    with pytest.raises(TypeError, match="unhashable"):
        hash(members)


def test_a_group_is_saved_restored_and_deleted(result, backend, succeed):
    app = App(backend)
    group = GroupResult("g", [result("a"), result("b")], parent=result("p"), app=app)
    group.save()
    restored = GroupResult.restore("g", app=app)
    assert restored == group
    assert restored.parent == "p"
    succeed("a", 1)
    succeed("b", 2)
    assert restored.get() == [1, 2]
    group.delete()
    assert GroupResult.restore("g", app=app) is None


def test_a_backend_that_cannot_keep_groups_says_so(result):
    with pytest.raises(ImproperlyConfigured, match="cannot save groups"):
        GroupResult("g", []).save(DisabledBackend())


def test_groups_compare_show_and_pickle(result):
    group = GroupResult("g", [result("a")])
    assert group == GroupResult("g", [result("a")]) == "g"
    assert group != GroupResult("g", [result("b")])
    assert (str(group), repr(group), hash(group)) == ("g", "<GroupResult: g [a]>", hash("g"))
    assert bool(group) and not bool(GroupResult())
    assert pickle.loads(pickle.dumps(group)) == group
    assert group.children == [result("a")]


# -- plain tuples


def test_handles_come_back_from_their_tuples(result):
    for handle in (result("a"), result("b", parent=result("a")), GroupResult("g", [result("a")], parent=result("p"))):
        back = result_from_tuple(handle.as_tuple())
        assert (back, back.parent) == (handle, handle.parent)
    assert result_from_tuple(["a", None]) == "a"
    assert result_from_tuple(result("a")) == "a"


@pytest.mark.parametrize(
    "hostile", [None, 5, "ab", [], [1], [None, None], [5, None], [["a", 5], None], [["a", None], 5], [[], None],
                [["a", None], ["x"]], {"a": 1, "b": 2}],
)  # fmt: skip
def test_what_is_no_result_is_refused(hostile):
    with pytest.raises(DecodeError):
        result_from_tuple(hostile)


# -- eager results


def test_an_eager_result_is_ready():
    eager = EagerResult("t", 4, "SUCCESS", name="tasks.add")
    assert (eager.get(), eager.result, eager.info, eager.state, eager.name) == (4, 4, 4, "SUCCESS", "tasks.add")
    assert eager.ready() and eager.exists() and eager.successful()
    assert eager.as_tuple() == (("t", None), None)
    eager.forget()
    assert eager.get() == 4
    assert (copy.copy(eager).get(), pickle.loads(pickle.dumps(eager)).get()) == (4, 4)


def test_an_eager_failure_is_raised_as_it_was():
    error = ValueError("no")
    eager = EagerResult("t", error, "FAILURE", traceback="Traceback …")
    with pytest.raises(ValueError, match="no") as caught:
        eager.get()
    assert caught.value is error
    assert eager.get(propagate=False) is error
    assert eager.traceback == "Traceback …"


def test_revoking_an_eager_result_replaces_its_value():
    eager = EagerResult("t", 4, "SUCCESS")
    eager.revoke()
    assert eager.state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        eager.get()


def test_eager_results_join_with_others(result, succeed):
    succeed("a", 1)
    group = GroupResult("g", [EagerResult("e", 0, "SUCCESS"), result("a")])
    assert group.get() == [0, 1]
    assert [meta["result"] for _id, meta in group.iter_native(timeout=1)] == [0, 1]
