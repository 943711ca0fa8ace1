"""Driving a real I/O loop from a test, turn by turn."""

from __future__ import annotations

from collections.abc import Callable

from amqptasks.broker.loop import Loop
from tests.support import eventually

#: The longest a turn waits for something to happen, seconds.
TURN_S = 0.02


def turn(loop: Loop) -> None:
    """Handle what has happened, or wait a moment for something to happen."""
    timer = loop.call_later(TURN_S, lambda: None)
    loop.poll()
    loop.process_timeouts()
    loop.remove_timeout(timer)


def turn_until(loop: Loop, condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Turn the loop until the condition holds; fail after ``within_s`` seconds."""

    def holds() -> bool:
        if condition():
            return True
        turn(loop)
        return False

    eventually(holds, within_s, every_s=0)
