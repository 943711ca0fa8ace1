"""What becomes of a task whose child has died: it comes back, it is tried again as by ``retry()``, or it is given up.

Decides and makes messages; `worker/deliveries.py` carries it out.
"""

from __future__ import annotations

from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.app.handlers import ExceptionInfo, told_retry
from amqptasks.app.retrying import call_again
from amqptasks.exceptions import Retry
from amqptasks.states import RETRY
from amqptasks.wire.failures import to_plain
from amqptasks.worker.dead_letters import CRASHES_HEADER
from amqptasks.worker.follow_ups import FollowUps, wants_result
from amqptasks.worker.outcome import FollowUp, Keep, Next
from amqptasks.worker.request import Request


def comes_back(app: App, request: Request) -> bool:
    """Whether a late-ack task is to be run again because its child died."""
    choice = request.task.reject_on_worker_lost
    if choice is None:
        choice = app.conf.task_reject_on_worker_lost
    # Late ack means late ack: only an explicit False gives the task up with its process.
    return choice is not False


def crash_limit(app: App, request: Request) -> int | None:
    """How many children a task may end."""
    own: int | None = request.task.crash_limit
    limit: int | None = app.conf.task_crash_limit
    return limit if own is None else own


def retries(app: App, request: Request) -> tuple[bool, bool]:
    """Whether a task is to be tried again as by ``retry()`` because its child died; and whether it would be, but has
    no retries left."""
    task = request.task
    choice = task.retry_on_worker_lost
    if not (app.conf.task_retry_on_worker_lost if choice is None else choice):
        return False, False
    if task.max_retries is None:
        # It retries for ever, but must not kill for ever: then it ends as any task does that kills.
        limit = crash_limit(app, request)
        return limit is None or request.crashes + 1 < limit, False
    is_over = (request.headers.get("retries") or 0) >= task.max_retries
    return not is_over, is_over


def next_attempt(
    app: App, follow_ups: FollowUps, request: Request, context: Context, error: Exception
) -> tuple[Next, ...]:
    """Make the next attempt of a task, and the state that tells of it.

    Args:
        context: All that is known of the call, its arguments included.

    Raises:
        AmqptasksError: They cannot be made.
    """
    task = request.task
    wait_s = task.default_retry_delay
    headers = {**(context.headers or {}), CRASHES_HEADER: request.crashes + 1}
    with app.sender.collecting(context.reply_to) as collected:
        call_again(task, context, countdown=wait_s, retries=context.retries + 1, headers=headers).apply_async()
    following: tuple[Next, ...] = ()
    if wants_result(app, task, context, RETRY):
        record = follow_ups.record(context, RETRY, to_plain(error, app.conf.result_serializer))
        # Not stored here: the loop does not wait for a store.
        following = follow_ups.answer(context, record) if app.backend.in_message else (Keep(record),)
    told_retry(task, context, Retry(exc=error, when=wait_s), ExceptionInfo(error, str(error)))
    return following + tuple(FollowUp(*each) for each in collected)
