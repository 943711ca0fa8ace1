"""Events: what workers and programs tell of tasks to whoever watches. Celery's protocol, field by field.

Programs come here by ``app.events``. For Celery's sake its names are here too, read when they are asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Event", "EventDispatcher", "EventReceiver", "State", "group_from"]


def __getattr__(name: str) -> Any:
    # A worker needs none of these, and should not have them in its memory.
    if name in ("Event", "group_from"):
        from amqptasks.events import messages

        return {"Event": messages.new_event, "group_from": messages.group_from}[name]
    if name == "EventReceiver":
        from amqptasks.events.receiver import Receiver

        return Receiver
    if name == "EventDispatcher":
        from amqptasks.events.dispatcher import Dispatcher

        return Dispatcher
    if name == "State":
        from amqptasks.events.state import State

        return State
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
