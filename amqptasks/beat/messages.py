"""The messages of an entry: those that ``apply_async`` would send, made and kept instead of sent."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from amqptasks.app.gathering import Collected
from amqptasks.beat.entries import ScheduleEntry, evaluated
from amqptasks.beat.handing_over import Sendable

__all__ = ["SchedulingError", "messages_of"]


class SchedulingError(Exception):
    """A task could not be sent."""


def messages_of(
    app: Any, entry: ScheduleEntry, task_id: str | None, more: Mapping[str, Any], send_task: Callable[..., Any]
) -> tuple[Any, list[Sendable]]:
    """Make the messages of an entry; returns what `apply_async` returned, and them.

    Args:
        task_id: The id made of the due time; None for a new one. An id among the entry's own options wins.
        more: Options on top of the entry's.
        send_task: Sends a task that is not known here.

    Raises:
        Exception: They cannot be made.
    """
    args, kwargs = evaluated(entry.args, entry.kwargs)
    options = {**entry.options, **more}
    headers = {"celery_beat_task": True, "periodic_task_name": entry.name}
    options["headers"] = {**(options.get("headers") or {}), **headers}
    if options.get("task_id") is None:
        options["task_id"] = task_id or str(uuid.uuid4())
        # By which workers know that the id is of this one firing: what they have just run they do not run again.
        options.setdefault("message_id", options["task_id"])
    with app.sender.collecting(None) as collected:
        task = app.tasks.get(entry.task)
        if task is not None:
            result = task.apply_async(args, kwargs, **options)
        else:
            result = send_task(entry.task, args, kwargs, **options)
    is_mandatory = options.get("mandatory") is not False
    return result, [_sendable(app.sender, each, f"{entry.name} ({entry.task})", is_mandatory) for each in collected]


def _sendable(sender: Any, each: Any, what: str, is_mandatory: bool) -> Sendable:
    if not isinstance(each, Collected):
        raise SchedulingError("a chord cannot be sent by beat: send a task that starts it")
    needs = tuple(sender.sending_need(sender.routing.queue(name)) for name in each.queues)
    if each.delayed is not None:
        needs += sender.delay_needs(each.delayed)
    return Sendable(each.message, needs, what, is_mandatory)
