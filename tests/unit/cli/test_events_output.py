"""What ``amqptasks events`` shows: lines, and the contents of its screen."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.cli.dumping import Dumper, as_json
from amqptasks.cli.top import BEEP, QUIT, Top, fit, wrap
from amqptasks.events.state import State


def cells(text: str) -> int:
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


@given(st.text(max_size=40), st.integers(1, 30))
def test_text_takes_its_place_and_no_more(text: str, width: int) -> None:
    # Given any text / When it is fitted, or wrapped / Then it is as wide as it may be, and steers nothing
    assert cells(fit(text, width)) <= width and fit(text, width).isprintable()
    assert cells(fit(text, width, pad=True)) == width
    for line in wrap(text, max(2, width)):
        assert cells(line) <= max(2, width) and line.isprintable()


def told(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "hostname": "w@box", "timestamp": 1.5, "clock": 1, "local_received": 2.0, **fields}


def test_a_task_is_named_on_every_line() -> None:
    # Given a task whose coming was seen / When more is told of it / Then its name and arguments stand there too
    dumper = Dumper()
    first = dumper.line(told("task-received", uuid="a", name="mail", args="(1,)", kwargs="{}"))
    assert first == (
        "w@box [1970-01-01 00:00:01.500000+00:00] task received: mail(a) args=(1,) kwargs={} clock=1, "
        "local_received=2.0"
    )
    later = dumper.line(told("task-started", uuid="a"))
    assert "task started: mail(a) args=(1,) kwargs={} clock=1" in later
    # And of one that was not, its id
    assert "task started: b clock=1" in dumper.line(told("task-started", uuid="b"))


@pytest.mark.parametrize("event", [{}, {"type": None}, {"type": "task-sent", "timestamp": 1e300, "uuid": ["x"]}])
def test_any_event_is_a_line(event: dict[str, Any]) -> None:
    # Given an event that lacks everything / When it is written / Then that is a line
    assert Dumper().line(event).isprintable() and as_json(event).count("\n") == 0


def test_names_of_tasks_are_not_kept_for_ever() -> None:
    # Given very many tasks / When they are told / Then the first are forgotten
    dumper = Dumper()
    for number in range(5000):
        dumper.line(told("task-received", uuid=f"t{number}", name="n", args="", kwargs=""))
    assert len(dumper._names) == 4096


def top_of(*tasks: str) -> Top:
    state = State()
    for number, task_id in enumerate(tasks):
        state.event(told("task-received", uuid=task_id, name=f"n{number}", args="()", kwargs="{}", clock=100 - number))
    return Top(state, lambda task_id: f"{task_id} is revoked")


def shown(top: Top, width: int = 100, height: int = 24) -> list[str]:
    return [span.text for span in top.spans(width, height)]


@pytest.mark.parametrize("width", [1, 2, 5, 20, 79, 300])
@pytest.mark.parametrize("height", [1, 2, 6, 12, 50])
def test_nothing_is_drawn_beyond_the_edges(width: int, height: int) -> None:
    # Given a screen of any size, with tasks or a page on it / When it is drawn / Then everything is within
    top = top_of(*(f"task-{number}" for number in range(60)))
    for keys in ("", "j", "i"):
        for key in keys:
            top.key(key)
        for span in top.spans(width, height):
            assert 0 <= span.y < height and span.x >= 0 and span.x + cells(span.text) < width


def test_the_choice_goes_round() -> None:
    # Given three tasks / When keys are pressed / Then the choice goes down, up, and round
    top = top_of("a", "b", "c")
    assert top.key("i") == BEEP and top.chosen is None
    for key, chosen in (("j", "a"), ("J", "b"), ("KEY_DOWN", "c"), ("j", "a"), ("k", "c"), ("KEY_UP", "b")):
        assert top.key(key) is None and top.chosen == chosen
    assert top.key("q") == QUIT and top.key("z") is None


def test_a_task_that_was_forgotten_is_no_trouble() -> None:
    # Given a choice that the state has forgotten / When its keys are pressed / Then there is nothing to show
    top = top_of("a")
    top.key("j")
    top.state.clear_tasks(ready=False)
    assert top.key("i") == BEEP and top.key("c") == BEEP
    assert "No task selected" in shown(top)


def test_only_y_revokes() -> None:
    # Given a task that is to be revoked / When it is asked / Then only y is yes
    top = top_of("a")
    top.key("j")
    for key, said in (("q", "Nothing was revoked"), ("y", "a is revoked")):
        top.key("c")
        assert any("Revoke n0[a]?" in text for text in shown(top))
        assert top.key(key) is None
        assert said in shown(top)


def test_a_page_is_scrolled_within_its_ends() -> None:
    # Given a long traceback / When it is scrolled far / Then its end is the end
    top = top_of("a")
    top.state.event(told("task-failed", uuid="a", traceback="\n".join(f"line {n}" for n in range(100)), clock=200))
    top.key("j")
    top.key("t")
    for _ in range(30):
        top.key(" ")
        shown(top)
    assert "line 99" in shown(top) and "line 81" not in shown(top)
    for _ in range(30):
        top.key("KEY_PPAGE")
    assert "line 0" in shown(top)
    top.key("x")
    assert not any(text == "line 0" for text in shown(top))
