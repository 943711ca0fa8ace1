"""Celery's way of waiting for a chord where its result store does not count: a task that asks again and again.

A Celery program sends it with the header of its chord. Our own chords need none of this: RabbitMQ counts them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from amqptasks.app.chords import chord_expires_s
from amqptasks.app.options import policy_of
from amqptasks.app.sender import Sender
from amqptasks.canvas.signature import Signature
from amqptasks.exceptions import AmqptasksError, ChordError, InvalidTaskError, MaxRetriesExceededError, OperationalError
from amqptasks.results.context import allow_join_result
from amqptasks.results.handles import GroupResult, result_from_tuple
from amqptasks.wire.chord import Manifest
from amqptasks.wire.failures import format_traceback
from amqptasks.wire.reprs import printable
from amqptasks.worker.bodies import celery_body, fail_body
from amqptasks.worker.follow_ups import FollowUps
from amqptasks.worker.outcome import FollowUp, Next

__all__ = ["unlock"]

logger = logging.getLogger(__name__)

#: Between two looks not less than this, whatever the message asks for, seconds.
LEAST_INTERVAL_S: Final = 0.05
#: All results are there: this bounds how long reading them may take. Seconds.
JOIN_S: Final = 10.0


def unlock(
    task: Any, group_id: Any, callback: Any, interval: Any = None, max_retries: Any = None, result: Any = None
) -> None:
    """Call a chord's body if all of its header has ended, else have another look in `interval` seconds.

    Raises:
        Retry: It has another look.
        InvalidTaskError: The message does not say what to wait for, or for what.
    """
    app = task.app
    body, group = _body(app, callback), _header(app, group_id, result)
    wait_s = float(interval) if type(interval) in (int, float) else float(app.conf.result_chord_retry_interval)
    wait_s = max(wait_s, LEAST_INTERVAL_S)
    most = max_retries if type(max_retries) is int else None
    reason: BaseException | None = None
    try:
        is_ready = group.ready()
    except AmqptasksError as error:
        is_ready, reason = False, error
    if not is_ready:
        # Celery's goes on for ever where a part is lost.
        patience_s = chord_expires_s(app.conf, None)
        if task.request.retries * wait_s < patience_s:
            try:
                raise task.retry(countdown=wait_s, max_retries=most)
            except MaxRetriesExceededError as error:
                reason = reason or error
        else:
            reason = reason or ChordError(f"its parts did not all end within {patience_s:g} s (result_chord_expires)")
        _fail(task, body, group, ChordError(f"chord_unlock could not be retried: {reason!r}"), reason)
        return
    try:
        with allow_join_result():
            values = group.get(timeout=JOIN_S, propagate=True)
    except Exception as error:
        culprit = next((each for each in group.results if each.failed()), None)
        _fail(task, body, group, ChordError(_why(culprit, error)), error)
        return
    try:
        body.apply_async((values,))
    except OperationalError:
        # The broker's trouble passes, and the body has one id.
        raise task.retry(countdown=wait_s, max_retries=None) from None
    except Exception as error:
        _fail(task, body, group, ChordError(f"Callback error: {error!r}"), error)


def _why(culprit: Any, error: Exception) -> str:
    return repr(error) if culprit is None else f"Dependency {culprit.id} raised {error!r}"


def _body(app: Any, callback: Any) -> Signature:
    if not isinstance(callback, Mapping):
        raise InvalidTaskError(f"expected the body of a chord to be a call, got: {callback!r:.80}")
    return celery_body(app, callback)


def _header(app: Any, group_id: Any, result: Any) -> GroupResult:
    if not isinstance(group_id, str) or not isinstance(result, (list, tuple)):
        raise InvalidTaskError(f"expected the results of a chord's header, got: {result!r:.80}")
    try:
        return GroupResult(group_id, [result_from_tuple(each, app) for each in result], app=app)
    except (AmqptasksError, TypeError, ValueError) as error:
        raise InvalidTaskError(f"expected the results of a chord's header, got: {result!r:.80}") from error


def _fail(task: Any, body: Signature, group: GroupResult, error: ChordError, cause: BaseException | None) -> None:
    """Fail a body that has not run: store that, call its errbacks, fail what would have followed it."""
    error.__cause__ = cause
    logger.error("Chord %s has failed: %s", printable(str(group.id), 64), error)
    request = task.request
    manifest = Manifest("", 0, body, str(group.id), time.time(), request.root_id)
    follow_ups = FollowUps(task.app, request.hostname or "")
    _send(task.app.sender, fail_body(body, manifest, error, format_traceback(error), follow_ups.never_run))


def _send(sender: Sender, follow_ups: Iterable[Next]) -> None:
    """Publish what follows a failure, confirmed.

    Raises:
        OperationalError: The broker did not take it.
    """
    policy = policy_of(sender.conf)
    deadline = time.monotonic() + policy.timeout_s
    sendings = []
    for each in follow_ups:
        if not isinstance(each, FollowUp):
            logger.error("What follows the failure of a chord of Celery's is a chord, and is not begun")
            continue
        needs = [sender.sending_need(sender.routing.queue(name)) for name in each.queues]
        needs += sender.delay_needs(each.delayed) if each.delayed is not None else ()
        sendings.append(sender.publisher.submit(each.message, tuple(needs), policy))
    for sending in sendings:
        sender.publisher.finish(sending, deadline)
