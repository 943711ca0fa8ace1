"""Calls one after another."""

from __future__ import annotations

import pytest

from amqptasks.canvas import Signature, chain, chord, group
from amqptasks.exceptions import BrokerUnavailable


def test_each_step_gets_the_result_of_the_one_before(app, add, mul):
    # Given a chain / When its tasks have run / Then the last one's value comes back
    result = chain(add.s(2, 2), mul.s(8), mul.s(10))()
    app.run()
    assert result.get(timeout=1) == 320


def test_parents_lead_back_to_the_first_step(app, add, mul):
    result = (add.s(2, 2) | mul.s(8) | mul.s(10)).delay()
    app.run()
    assert [result.get(), result.parent.get(), result.parent.parent.get()] == [320, 32, 4]
    assert result.parent.parent.parent is None
    assert result.as_list() == [result.id, result.parent.id, result.parent.parent.id]


def test_the_rest_travels_reversed_with_the_first_task(app, add, mul, double):
    (add.s(1, 1) | mul.s(3) | double.s()).delay()
    assert len(app.messages) == 1
    assert [call["task"] for call in app.messages[0]["options"]["chain"]] == ["tasks.double", "tasks.mul"]


def test_every_answer_is_expected_before_anything_is_sent(app, add, mul, double):
    result = (add.s(1, 1) | mul.s(3) | group(double.s(), double.s())).delay()
    ids = {leaf.id for node in (result, result.parent, result.parent.parent) for leaf in node.leaves()}
    assert set(app.backend.expected) == ids
    assert len(ids) == 4


def test_nothing_is_expected_of_a_chain_that_was_surely_not_sent(app, add, mul):
    app.is_away = True
    with pytest.raises(BrokerUnavailable):
        (add.s(1, 1) | mul.s(3)).delay()
    assert app.backend.expected == []


def test_the_error_of_an_early_step_is_raised_without_waiting_for_the_last(app, add, fail, double):
    result = (add.s(1, 1) | fail.s() | double.s()).delay()
    app.run()
    with pytest.raises(ValueError, match="broken"):
        result.get(timeout=5)
    assert result.state == "PENDING"
    assert result.parent.failed()


def test_an_errback_of_the_chain_belongs_to_every_step(app, add, fail, double, note):
    call = add.s(1, 1) | fail.s() | double.s()
    call.link_error(note.s())
    result = call.delay()
    app.run()
    assert app.ran[-1]["task"] == "tasks.note"
    assert app.ran[-1]["args"] == [result.parent.id]


def test_a_callback_of_the_chain_belongs_to_the_last_step(app, add, double, note):
    call = add.s(1, 1) | double.s()
    call.link(note.s())
    call.apply_async()
    app.run()
    assert [message["task"] for message in app.ran] == ["tasks.add", "tasks.double", "tasks.note"]
    assert app.ran[-1]["args"] == [4]


def test_options_go_to_the_first_step_and_the_id_to_the_last(app, add, double):
    result = (add.s(1, 1) | double.s()).apply_async(task_id="mine", queue="slow", countdown=3, root_id="root")
    assert result.id == "mine"
    options = app.messages[0]["options"]
    assert (options["queue"], options["countdown"], options["root_id"]) == ("slow", 3, "root")
    assert "queue" not in options["chain"][0]["options"]
    assert options["chain"][0]["options"]["task_id"] == "mine"


def test_arguments_go_to_the_first_step(app, add, double):
    result = chain(add.s(1), double.s())(4)
    app.run()
    assert result.get() == 10
    with_keyword = chain(add.s(1), double.s())(y=4)
    app.run()
    assert with_keyword.get() == 10


def test_the_same_chain_can_be_sent_again(app, add, double):
    call = add.s(1, 1) | double.s()
    first, second = call.delay(), call.delay()
    app.run()
    assert first.id != second.id
    assert (first.get(), second.get()) == (4, 4)


def test_chains_in_chains_are_one_chain(add, double):
    a, b = add.s(1, 1), double.s()
    assert chain(a, chain(b, b)).tasks == ((a | b) | b).tasks == (a | (b | b)).tasks == chain([a, b, b]).tasks
    assert chain(call for call in (a, b)) == (a | b)


def test_joining_moves_the_links_of_the_left_chain_to_its_steps(add, double, note):
    left = add.s(1, 1) | double.s()
    left.link(note.s())
    left.set(queue="slow")
    joined = left | double.s()
    assert joined.tasks[1].options["link"] == [note.s()]
    assert joined.options == {"queue": "slow"}
    assert left.tasks[1].options == {}


def test_in_place_or_composes_too(add, double):
    call = add.s(1, 1)
    call |= double.s()
    assert isinstance(call, chain)
    assert len(call.tasks) == 2


def test_an_empty_chain_sends_nothing(app):
    assert chain(app=app)() is None
    assert app.messages == []
    assert "empty" in repr(chain())
    with pytest.raises(ValueError, match="empty chain"):
        chain(app=app).freeze()


def test_it_shows_without_repeating_the_module(add, double):
    assert repr(add.s(2, 2) | double.s() | double.s()) == "tasks.add(2, 2) | double() | double()"


def test_a_group_may_come_last(app, add, double):
    result = (add.s(1, 1) | group(double.s(), add.s(10))).delay()
    app.run()
    assert result.get(timeout=1) == [4, 12]
    assert result.parent.get() == 2
    assert [message["options"].get("group_index") for message in app.ran] == [None, 0, 1]
    assert {message["options"].get("group_id") for message in app.ran[1:]} == {result.id}


def test_a_group_of_one_is_its_member_and_an_empty_one_is_nothing(add, double):
    assert (add.s(1, 1) | group([double.s()])).tasks == [add.s(1, 1), double.s()]
    assert (add.s(1, 1) | double.s() | group([])) == (add.s(1, 1) | double.s())
    assert chain(group([]), add.s(1, 1), group([]), double.s()).tasks == [add.s(1, 1), double.s()]
    assert (add.s(1, 1) | group([double.s() | double.s()])).tasks == [add.s(1, 1), double.s(), double.s()]


def test_a_group_followed_by_a_task_is_a_chord(add, total):
    for call in (group(add.s(1, 1), add.s(2, 2)) | total.s(), chord([add.s(1, 1), add.s(2, 2)], total.s())):
        assert isinstance(call, chord)
        assert repr(call) == "%tasks.total([add(1, 1), add(2, 2)])"
    steps = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s()).tasks
    assert [type(step) is chord for step in steps] == [False, True]


def test_a_task_after_a_chord_follows_its_body(add, total, double):
    call = group(add.s(1, 1), add.s(2, 2)) | total.s() | double.s()
    assert isinstance(call, chord)
    assert call.body.tasks == [total.s(), double.s()]
    assert repr(call) == "%(tasks.total([add(1, 1), add(2, 2)]) | double())"


def test_a_frozen_chain_keeps_its_ids_when_sent(app, add, double):
    call = add.s(1, 1) | double.s()
    frozen = call.freeze()
    sent = call.apply_async()
    app.run()
    assert sent.id == frozen.id == call.id
    assert sent.parent.id == frozen.parent.id
    assert frozen.get() == 4


def test_an_outer_chain_goes_on_after_an_inner_one(app, add, double, note):
    # Given a worker that starts a chain with the rest of an outer one
    Signature.from_dict(dict(add.s(1, 1) | double.s()), app=app).apply_async(chain=[note.s(), double.s()])
    app.run()
    # Then the inner steps run first, then the outer ones from the end
    assert [message["task"] for message in app.ran] == ["tasks.add", "tasks.double", "tasks.double", "tasks.note"]
    assert app.ran[-1]["args"] == [8]
