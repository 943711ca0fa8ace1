"""A signature is a call as plain data."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from amqptasks.canvas import Signature, group, maybe_signature, signature
from amqptasks.canvas import signature as signature_function
from amqptasks.exceptions import ImproperlyConfigured, InvalidTaskError
from amqptasks.results import context


def test_a_call_is_a_dict_with_celerys_keys(add):
    assert dict(add.s(2, y=3)) == {
        "task": "tasks.add", "args": (2,), "kwargs": {"y": 3}, "options": {}, "subtask_type": None, "immutable": False,
    }  # fmt: skip


def test_it_shows_as_a_call(add):
    assert repr(add.s(2, 2)) == "tasks.add(2, 2)"
    assert repr(add.s(2, y="a")) == "tasks.add(2, y='a')"
    assert add.s(8).reprcall(4) == "tasks.add(4, 8)"


def test_new_arguments_go_before_the_stored_ones(app, note):
    # Given a partial call / When it is sent with one more argument / Then that one comes first
    assert note.s(1, 2).delay(0).id
    app.run()
    assert app.ran[0]["args"] == [0, 1, 2]


def test_new_keyword_arguments_and_options_win(app, note):
    note.s(a=1, b=1).set(queue="slow", priority=3).apply_async((), {"b": 2}, queue="fast", priority=None)
    assert app.messages[0]["kwargs"] == {"a": 1, "b": 2}
    assert app.messages[0]["options"] == {"queue": "fast", "priority": 3}


def test_an_immutable_call_ignores_new_arguments_but_not_options(app, note):
    note.si(1).apply_async((0,), {"a": 1}, queue="fast")
    assert (app.messages[0]["args"], app.messages[0]["kwargs"]) == ([1], {})
    assert app.messages[0]["options"]["queue"] == "fast"


def test_the_group_a_call_belongs_to_cannot_be_changed_by_an_option(app, add):
    add.s(1, 1).set(group_id="g").apply_async(group_id="other")
    assert app.messages[0]["options"]["group_id"] == "g"


def test_calling_it_runs_the_task_here(app, add):
    assert add.s(8)(2) == 10
    assert app.messages == []


def test_a_copy_shares_nothing_that_the_canvas_changes(add, double):
    original = add.s(1, 2)
    original.link(double.s())
    copied = original.clone()
    copied.link(double.s(5))
    copied.kwargs["z"] = 1
    copied.options["link"][0].set(queue="q")
    assert original.options == {"link": [double.s()]}
    assert original.kwargs == {}
    assert copy.deepcopy(original) == original == pickle.loads(pickle.dumps(original))


def test_replace_puts_parts_in_the_place_of_the_old(add):
    assert add.s(1).set(queue="q").replace(args=(9,), options={}) == add.s(9)


def test_a_task_nobody_registered_here_is_sent_by_name(app):
    result = Signature("elsewhere.task", (1,), app=app).apply_async()
    assert app.messages[0]["task"] == "elsewhere.task"
    assert result.id == app.messages[0]["id"]


def test_links_are_kept_once_and_sent_along(app, add, double, note):
    call = add.s(2, 2)
    assert call.link(double.s()) == double.s()
    call.link(double.s())
    assert call.on_error(note.s()) is call
    result = call.delay()
    app.run()
    assert result.get() == 4
    assert [message["task"] for message in app.ran] == ["tasks.add", "tasks.double"]
    assert app.ran[1]["args"] == [4]


def test_an_errback_gets_the_id_of_the_task_that_failed(app, fail, note):
    call = fail.s()
    call.link_error(note.s("more"))
    result = call.delay()
    app.run()
    assert result.failed()
    assert app.ran[1]["args"] == [result.id, "more"]


def test_flatten_links_finds_all_that_follows(add, double, note):
    call = add.s(1, 1)
    second = double.s()
    second.link(note.s())
    call.link(second)
    assert call.flatten_links() == [call, second, note.s()]


def test_freezing_fixes_the_id_and_says_where_the_answer_goes(app, add):
    call = add.s(1, 1)
    result = call.freeze(group_id="g", group_index=3, root_id="r", parent_id="p")
    assert call.id == result.id
    assert call.options == {
        "task_id": result.id, "group_id": "g", "group_index": 3, "root_id": "r", "parent_id": "p",
        "reply_to": "reply-queue",
    }  # fmt: skip
    assert (call.root_id, call.parent_id) == ("r", "p")
    assert call.freeze("another").id == result.id
    assert call.delay().id == result.id


def test_a_call_whose_result_is_ignored_asks_for_no_answer(app, add):
    call = add.s(1, 1).set(ignore_result=True)
    assert call.freeze().get() is None
    assert "reply_to" not in call.options


def test_inverting_sends_and_waits(app, add, monkeypatch):
    send = app.send_task

    def send_and_run(*args, **kwargs):
        result = send(*args, **kwargs)
        app.run()
        return result

    monkeypatch.setattr(app, "send_task", send_and_run)
    assert ~add.s(2, 3) == 5


def test_signature_reads_names_dicts_and_copies_signatures(app, add):
    assert signature("tasks.add", args=(1, 2), app=app) == add.s(1, 2)
    assert signature(json.loads(json.dumps(add.s(1, 2)))).task == "tasks.add"
    original = add.s(1)
    assert signature(original) == original
    assert signature(original) is not original


def test_maybe_signature_leaves_none_and_binds_the_app(app):
    assert maybe_signature(None, app=app) is None
    bound = maybe_signature({"task": "tasks.add"}, app=app)
    assert bound.app is app
    assert bound == Signature("tasks.add")
    assert maybe_signature(bound) is bound
    assert maybe_signature(bound, clone=True) is not bound


def test_a_call_without_an_app_says_what_to_do(monkeypatch):
    # Given no app, whatever other tests have made
    monkeypatch.setattr(context, "_app_provider", None)
    with pytest.raises(ImproperlyConfigured, match=r"tasks\.add\(1\).*app="):
        signature_function("tasks.add", args=(1,)).delay()


def test_a_dict_of_a_registered_type_becomes_that_type(add):
    plain = json.loads(json.dumps(group([add.s(1), add.s(2)])))
    assert isinstance(Signature.from_dict(plain), group)
    assert isinstance(maybe_signature(plain).tasks[0], Signature)


@pytest.mark.parametrize(
    "hostile",
    [
        5, "tasks.add", [], {}, {"task": 5}, {"task": "a", "args": 5}, {"task": "a", "args": "text"},
        {"task": "a", "kwargs": [1]}, {"task": "a", "kwargs": {1: 2}}, {"task": "a", "options": "x"},
        {"task": "a", "options": {None: 1}}, {"task": "a", "subtask_type": ["chain"]},
        {"task": "a", "subtask_type": "chain"}, {"task": "a", "subtask_type": "chain", "kwargs": {"tasks": 5}},
        {"task": "a", "subtask_type": "group", "kwargs": {"tasks": [5]}},
        {"task": "a", "subtask_type": "group", "kwargs": {"tasks": [None]}},
        {"task": "a", "subtask_type": "chord", "kwargs": {"header": 5}},
        {"task": "a", "subtask_type": "chord", "kwargs": {"header": [{"task": "b"}], "body": 5}},
    ],
)  # fmt: skip
def test_what_is_no_call_is_refused_and_does_no_harm(hostile):
    with pytest.raises(InvalidTaskError):
        maybe_signature(hostile)


def test_options_of_a_dict_cannot_reach_into_the_constructor():
    # Given a chain whose options bear the names of constructor arguments
    options = {"app": 1, "args": [1], "type": 2, "immutable": True, "self": 3, "task": "x", "options": {"a": 1}}
    hostile = {"task": "celery.chain", "subtask_type": "chain", "kwargs": {"tasks": [{"task": "a"}]}}
    hostile["options"] = options
    # When it is read / Then they are options and nothing else
    made = maybe_signature(hostile)
    assert made.options == options
    assert not made.immutable
