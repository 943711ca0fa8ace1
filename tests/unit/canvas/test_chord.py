"""Chords as data: what is frozen, what is counted, and what runs at once."""

from __future__ import annotations

import json

import pytest

from amqptasks import App
from amqptasks.canvas import chain, chord, group
from amqptasks.canvas.chord import counted
from amqptasks.canvas.parts import begins_chord


@pytest.fixture
def eager():
    app = App("chords", set_as_current=False, task_always_eager=True)

    @app.task(name="add")
    def add(x, y):
        return x + y

    @app.task(name="total")
    def total(values):
        return sum(values)

    @app.task(name="listed")
    def listed(values):
        return values

    @app.task(name="fail")
    def fail():
        raise ValueError("no")

    return app


def test_what_counts_of_a_header(add, total, double):
    # Given calls of each kind
    one, two, three = add.s(1, 1), add.s(2, 2), add.s(3, 3)
    # Then of a chain its last step counts, of a chord its body, of a group every member
    assert list(counted(one)) == [one]
    assert list(counted(chain(one, two, three))) == [three]
    assert len(list(counted(chain(one, group(two, three))))) == 2
    assert list(counted(chord([one, two], total.s()))) == [total.s()]
    assert list(counted(chord([one, two], group(three, two)))) == [three, two]
    assert list(counted(group())) == []


def test_which_calls_begin_a_chord(add, total):
    one, header = add.s(1, 1), group(add.s(1, 1), add.s(2, 2))
    for call in (header | total.s(), chain(header, total.s(), one), group(one, header | total.s())):
        assert begins_chord(call), call
    for call in (one, header, one | header | total.s(), chain(one, one), group(), chain()):
        assert not begins_chord(call), call


def test_freezing_gives_every_call_its_id_and_keeps_it(app, add, total, double):
    # Given a chord that is frozen
    call = chord([add.s(1, 1), chain(add.s(2, 2), double.s())], total.s() | double.s())
    result = call.freeze()
    # Then its result is the body's, and the header's results stand above the body's first step
    header = result.parent.parent
    assert [result.id, result.parent.id] == [call.body.tasks[-1].id, call.body.tasks[0].id]
    assert [each.id for each in header.results] == [call.tasks[0].id, call.tasks[1].tasks[-1].id]
    assert call.id == header.id == call.tasks[0].options["group_id"]
    # And after a journey it has the same ids
    again = chord.from_dict(json.loads(json.dumps(call)), app=app)
    assert again.freeze().as_tuple() == result.as_tuple()


def test_a_chord_needs_a_body(add):
    for act in (lambda call: call.delay(), lambda call: call.freeze()):
        with pytest.raises(TypeError, match="needs a body"):
            act(chord([add.s(1, 1)]))


def test_error_callbacks_reach_the_header_if_wanted(eager):
    add, total, fail = (eager.tasks[name] for name in ("add", "total", "fail"))
    for wanted in (False, True):
        eager.conf.task_allow_error_cb_on_chord_header = wanted
        call = chord([add.s(1, 1), add.s(2, 2)], total.s(), app=eager)
        # When a chord gets an error callback
        call.link_error(fail.si())
        # Then its body has it, and its header if the setting says so
        assert [bool(part.options.get("link_error")) for part in call.tasks] == [wanted, wanted]
        assert call.body.options["link_error"] == [fail.si()]


def test_eager_chords_run_here(eager):
    add, total, listed, fail = (eager.tasks[name] for name in ("add", "total", "listed", "fail"))
    # Given calls that run at once / When chords are sent / Then their results are there
    result = chord(add.s(number, number) for number in range(5))(total.s())
    assert (result.get(), result.parent.get()) == (20, [0, 2, 4, 6, 8])
    ends_in_group = chain(add.s(1), group(add.s(1), add.s(2)))
    assert chord([add.s(1), ends_in_group], listed.s()).apply((1,)).get() == [2, [3, 4]]
    assert chord([ends_in_group], listed.s()).apply((1,)).get() == [[3, 4]]
    assert (add.s(1, 1) | group(add.s(1), add.s(2)) | total.s() | add.s(1)).delay().get() == 8
    # And what fails in the header is raised
    with pytest.raises(ValueError, match="no"):
        chord([add.s(1, 1), fail.s()], total.s()).delay()
    value, error = chord([add.s(1, 1), fail.s()], listed.s()).apply(propagate=False).get()
    assert value == 2
    assert isinstance(error, ValueError)
