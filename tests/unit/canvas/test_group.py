"""Calls side by side."""

from __future__ import annotations

import json

import pytest

from amqptasks.canvas import chain, group
from amqptasks.results.handles import GroupResult


def test_results_come_back_in_order(app, add):
    result = group(add.s(i, i) for i in range(5))()
    app.messages.reverse()
    app.run()
    assert isinstance(result, GroupResult)
    assert result.get(timeout=1) == [0, 2, 4, 6, 8]
    assert result.completed_count() == 5


def test_members_know_their_group_and_place(app, add):
    result = group([add.s(1, 1), add.s(2, 2)]).apply_async()
    assert [message["options"]["group_index"] for message in app.messages] == [0, 1]
    assert {message["options"]["group_id"] for message in app.messages} == {result.id}
    assert [message["id"] for message in app.messages] == [member.id for member in result]


def test_the_sends_share_their_round_trips(app, add):
    group(add.s(i, i) for i in range(5))()
    assert app.bulks == 1


def test_partial_arguments_go_to_every_member(app, add, note):
    result = group(add.s(1), add.s(2))(10)
    app.run()
    assert result.get() == [11, 12]
    named = group(note.si(1), add.s(x=1)).apply_async((), {"y": 5})
    app.run()
    assert named.get() == [[1], 6]


def test_options_hold_for_every_member_and_the_id_is_the_groups(app, add):
    result = group(add.s(1, 1), add.s(2, 2)).set(priority=3).apply_async(queue="slow", task_id="mine")
    assert result.id == "mine"
    assert [(m["options"]["queue"], m["options"]["priority"]) for m in app.messages] == [("slow", 3), ("slow", 3)]
    assert "mine" not in [message["id"] for message in app.messages]


def test_groups_in_groups_are_one_group(app, add):
    result = group(add.s(1, 1), group(add.s(2, 2), group(add.s(3, 3))), group([])).delay()
    app.run()
    assert result.get() == [2, 4, 6]
    assert [message["options"]["group_index"] for message in app.ran] == [0, 1, 2]


def test_a_member_may_be_a_chain(app, add, double):
    result = group(add.s(1, 1) | double.s(), add.s(5, 5))()
    app.run()
    assert result.get(timeout=1) == [4, 10]
    assert result[0].parent.get() == 2
    last_step = next(message for message in app.ran if message["id"] == result[0].id)
    assert (last_step["options"]["group_id"], last_step["options"]["group_index"]) == (result.id, 0)


def test_a_group_whose_only_member_ends_in_a_group_gives_that_one(app, add, double):
    result = group(add.s(1, 1) | group(double.s(), double.s()))()
    app.run()
    assert result.get(timeout=1) == [4, 4]


def test_an_empty_group_is_done_at_once(app):
    result = group([], app=app)()
    assert result.get() == []
    assert result.successful()
    assert repr(group()) == "group(<empty>)"


def test_the_same_group_can_be_sent_again(app, add):
    call = group(add.s(1, 1), add.s(2, 2))
    assert call().id != call().id
    assert call.tasks == [add.s(1, 1), add.s(2, 2)]


def test_freezing_gives_members_their_ids_and_sending_keeps_them(app, add):
    call = group(add.s(1, 1), group(add.s(2, 2)))
    frozen = call.freeze()
    plain = json.loads(json.dumps(call))
    sent = group.from_dict(plain, app=app).apply_async()
    assert sent.id == frozen.id
    assert [member.id for member in sent] == [member.id for member in frozen]


def test_linking_a_callback_to_a_group_says_how_to_do_it(add, double):
    with pytest.raises(TypeError, match="Cannot add link to group"):
        group(add.s(1, 1)).apply_async(link=double.s())


def test_a_link_runs_without_a_value_after_the_first_member(app, add, note):
    call = group(add.s(1, 1), add.s(2, 2))
    call.link(note.s("done"))
    call()
    app.run()
    assert [message["args"] for message in app.ran if message["task"] == "tasks.note"] == [["done"]]


def test_an_errback_belongs_to_every_member(app, fail, note):
    call = group(fail.s(), fail.s())
    call.link_error(note.s())
    result = call()
    app.run()
    assert [m["args"] for m in app.ran if m["task"] == "tasks.note"] == [[member.id] for member in result]


def test_immutability_is_the_members(add, note):
    call = group(note.s(1), note.s(2))
    call.set_immutable(True)
    assert all(member.immutable for member in call.tasks)


def test_skew_spreads_the_start(add):
    skewed = group(add.s(i) for i in range(4)).skew(start=1, stop=5, step=2)
    assert [call.options["countdown"] for call in skewed.tasks] == [1, 3, 5, 5]


def test_it_shows_without_repeating_the_module(add, double):
    assert repr(group(add.s(1, 1), double.s(2))) == "group([tasks.add(1, 1), double(2)])"


def test_a_large_group_in_a_chain_travels_whole(app, add, double):
    # Given a chain that ends in a wide group / When the message went through JSON
    result = chain(add.s(0, 1), group(add.s(i) for i in range(500))).delay()
    app.run()
    # Then every member ran once
    assert result.get(timeout=5) == [1 + i for i in range(500)]
