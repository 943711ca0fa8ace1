"""What is due on the loop happens, whatever another callback raises."""

from __future__ import annotations

import logging

import pytest

from amqptasks.broker.loop import Loop


def test_an_error_in_one_callback_keeps_no_other_from_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    # Given callbacks of which every other one fails: due at the same time, and at the end of the same turn
    loop, called = Loop(), []

    def fail() -> None:
        called.append("failed")
        raise ValueError("on purpose")

    def end() -> None:
        for each in (fail, lambda: called.append("at the end"), fail, loop.stop):
            loop.at_turn_end(each)

    for each in (fail, lambda: called.append("due"), fail, end):
        loop.call_later(0, each)
    # When the loop runs / Then all of them are called, and each error is told
    with caplog.at_level(logging.ERROR):
        loop.run()
    assert called == ["failed", "due", "failed", "failed", "at the end", "failed"]
    assert caplog.text.count("ValueError: on purpose") == 4


def test_a_callback_that_was_taken_back_is_not_called() -> None:
    loop, called = Loop(), []
    timer = loop.call_later(0, lambda: called.append("taken back"))
    loop.call_later(0.01, loop.stop)
    loop.remove_timeout(timer)
    loop.run()
    assert called == []
