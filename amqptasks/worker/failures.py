"""What follows the failure of a task that no child can speak for: it never began, or its child has died.

Nothing is sent here.
"""

from __future__ import annotations

import logging

from amqptasks import signals
from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.app.handlers import ExceptionInfo
from amqptasks.exceptions import AmqptasksError, ContentError, InvalidTaskError, TimeLimitExceeded, WorkerLostError
from amqptasks.logs import TASK_LOGGER
from amqptasks.states import FAILURE
from amqptasks.wire.binding import SIGNED_TYPE
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import accepted
from amqptasks.wire.task import TaskBody, read_body
from amqptasks.worker.follow_ups import FollowUps, wants_result
from amqptasks.worker.intake import context_of
from amqptasks.worker.outcome import Next
from amqptasks.worker.request import Request
from amqptasks.worker.services import TaskWatcher
from amqptasks.worker.time_limits import tell_timeout

logger = logging.getLogger(TASK_LOGGER + ".trace.worker")


class Failures:
    """Makes what follows such failures, for one app. Belongs to the loop's thread.

    Args:
        follow_ups: Makes the messages.
        events: Tells of each of them.
    """

    def __init__(self, app: App, follow_ups: FollowUps, events: TaskWatcher) -> None:
        self._app = app
        self._follow_ups = follow_ups
        self._events = events
        self._accept = accepted(app.conf.accept_content)

    def follow_ups(self, request: Request, error: Exception, state: str = FAILURE) -> tuple[Next, ...]:
        """Make all that follows a failure; what of it cannot be made is logged and left out."""
        context = context_of(request)
        if not request.id:
            return ()
        is_read = self.add_body(context, request)
        if not is_read and request.delivery.properties.content_type == SIGNED_TYPE:
            # It was not signed by anybody trusted, or not for this: an answer would be in our name.
            return ()
        if self._events.enabled and state == FAILURE:
            self._events.failed(request, error)
        if request.task is None:
            # As in Celery.
            context.errbacks = None
        else:
            if isinstance(error, TimeLimitExceeded):
                tell_timeout(request.task, context, error)
            elif isinstance(error, WorkerLostError) and signals.task_failure:
                signals.task_failure.send(
                    request.task, task_id=request.id, exception=error, args=context.args, kwargs=context.kwargs,
                    traceback=None, einfo=ExceptionInfo(error, str(error)),
                )  # fmt: skip
        store = wants_result(self._app, request.task, context, state)
        try:
            follow_ups = self._follow_ups.failure(context, error, None, state=state, store=store)
            return follow_ups if is_read else follow_ups + self._follow_ups.unreadable_part(context, error)
        except AmqptasksError as trouble:
            logger.error("The failure of task %s cannot be told: %s", printable(request.id, 64), trouble)
            return ()

    def add_body(self, context: Context, request: Request) -> bool:
        """Complete a request by its body; False if that cannot be read."""
        delivery = request.delivery
        properties = delivery.properties
        try:
            body: TaskBody = read_body(
                request.headers, properties.content_type, properties.content_encoding, delivery.body, self._accept,
                self._app.limits(),
            )  # fmt: skip
        except (ContentError, InvalidTaskError):
            # Then it names no errbacks either; the caller is told all the same.
            return False
        context.update(
            args=body.args, kwargs=body.kwargs, callbacks=body.callbacks, errbacks=body.errbacks, chain=body.chain,
            chord=body.chord,
        )  # fmt: skip
        return True
