"""Looking at what the broker delivered: a task to run, one that is not due, one that is too late, or nothing that can
run.

Decides only; `worker.py` carries it out. Every message passes here before anything else touches it, and whatever it
holds, the answer is one of four decisions and never an exception.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.app.registry import unknown_task
from amqptasks.broker.consumer import Delivery
from amqptasks.clock import monotonic, parse_moment, seconds_until
from amqptasks.exceptions import ContentError, DecodeError, InvalidTaskError, NotRegistered, UntrustedContent
from amqptasks.wire.binding import ARRIVAL_HEADER, SIGNED_TYPE, arrival
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import accepted
from amqptasks.wire.task import MAX_ID_CHARACTERS, TaskHead, read_body, read_head
from amqptasks.worker import dead_letters
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Accept:
    """Run it."""

    request: Request


@dataclass(frozen=True, slots=True)
class Postpone:
    """It is not due: back into the delay ladder with it."""

    request: Request
    delay_ms: float


@dataclass(frozen=True, slots=True)
class Expire:
    """Its time is over."""

    request: Request


@dataclass(frozen=True, slots=True)
class Bury:
    """It cannot be run: to the dead letters, and an error to its caller, if it says who that is."""

    request: Request
    reason: str
    error: Exception
    #: An answer would be signed by us, in the name of any task that the message claims to be: not for everybody.
    is_answered: bool = True


Decision = Accept | Postpone | Expire | Bury


class Intake:
    """Examines deliveries by one state of the settings."""

    def __init__(self, app: App) -> None:
        conf = app.conf
        self._tasks = app.tasks
        self._accept = accepted(conf.accept_content)
        self._signed_only = self._accept == {SIGNED_TYPE}
        self._limits = app.limits()
        self._acks_late = bool(conf.task_acks_late)
        self._delivery_limit: int | None = conf.task_delivery_limit
        self._zone = app.timezone

    def examine(self, delivery: Delivery) -> Decision:
        """Decide what becomes of a delivery. Never raises."""
        try:
            decision = self._examine(delivery)
            if type(decision) is not Accept and delivery.properties.content_type == SIGNED_TYPE:
                # No child will look at it: only what is signed may be answered, put off or thrown away.
                self._check_signature(decision.request)
            return decision
        except (ContentError, InvalidTaskError) as error:
            return self._unreadable(delivery, error)
        except Exception as error:
            # A hole in the checks above: the message must not take the worker with it.
            logger.exception("Examining a message failed")
            return self._unreadable(delivery, InvalidTaskError(f"{type(error).__name__}: {error}"))

    def _unreadable(self, delivery: Delivery, error: Exception) -> Bury:
        is_answered = not self._signed_only and delivery.properties.content_type != SIGNED_TYPE
        return Bury(_anonymous(delivery), dead_letters.UNREADABLE, error, is_answered)

    def _examine(self, delivery: Delivery) -> Decision:
        properties = delivery.properties
        if len(delivery.body) > self._limits.max_bytes:
            raise DecodeError(f"expected a body of at most {self._limits.max_bytes} bytes, got {len(delivery.body)}")
        is_signed = properties.content_type == SIGNED_TYPE
        if self._signed_only and not is_signed:
            raise UntrustedContent(
                f"the message is not signed (content type {ascii(properties.content_type)[:100]}), and accept_content "
                "lists 'auth' alone"
            )
        head = read_head(
            properties.headers,
            properties.content_type,
            properties.content_encoding,
            delivery.body,
            self._accept,
            self._limits,
        )
        if is_signed:
            head = _with_arrival(head, delivery)
        task = self._tasks.get(head.task)
        if task is None:
            error = NotRegistered(unknown_task(printable(head.task, 255), self._tasks))
            return Bury(_request(delivery, head, None, False), dead_letters.UNKNOWN_TASK, error)
        late = task.acks_late
        request = _request(delivery, head, task, self._acks_late if late is None else bool(late))
        if self._delivery_limit is not None and delivery.redelivered:
            count = dead_letters.delivery_count(delivery)
            # Not one later: at 20 RabbitMQ 4 deletes the message itself, without a word.
            if count >= self._delivery_limit:
                return Bury(
                    request, dead_letters.TOO_MANY_DELIVERIES,
                    InvalidTaskError(f"delivered {count + 1} times without being settled (task_delivery_limit)"),
                )  # fmt: skip
        headers = head.headers
        if headers.get("expires") is not None:
            left_s = self._seconds_until(headers["expires"], "expires")
            if left_s <= 0:
                return Expire(request)
            request.expires_at = monotonic() + left_s
        if headers.get("eta") is not None:
            delay_ms = self._seconds_until(headers["eta"], "eta") * 1000
            if delay_ms > 0:
                return Postpone(request, delay_ms)
        return Accept(request)

    def _check_signature(self, request: Request) -> None:
        properties = request.delivery.properties
        read_body(
            request.headers, properties.content_type, properties.content_encoding, request.delivery.body, self._accept,
            self._limits,
        )  # fmt: skip

    def _seconds_until(self, text: str, header: str) -> float:
        try:
            return seconds_until(parse_moment(text, self._zone))
        except ValueError as error:
            raise InvalidTaskError(f"header {header!r}: {error}") from error


def _with_arrival(head: TaskHead, delivery: Delivery) -> TaskHead:
    properties = delivery.properties
    came = arrival(
        head.headers, properties.reply_to, properties.correlation_id, delivery.consumer.queue, delivery.exchange,
        delivery.routing_key,
    )  # fmt: skip
    return TaskHead(head.id, head.task, {**head.headers, ARRIVAL_HEADER: came})


def _request(delivery: Delivery, head: TaskHead, task: Any, is_late: bool) -> Request:
    return Request(delivery, head.id, head.task, task, head.headers, is_late)


def _anonymous(delivery: Delivery) -> Request:
    """Make a request of a message that could not be read, with what little it says of itself."""
    headers = delivery.properties.headers
    task_id = headers.get("id") if isinstance(headers, dict) else None
    name = headers.get("task") if isinstance(headers, dict) else None
    if not isinstance(task_id, str) or not 0 < len(task_id) <= MAX_ID_CHARACTERS or not task_id.isprintable():
        # Whoever sent it may still be waiting under the id that Celery's protocol repeats there.
        task_id = delivery.properties.correlation_id or ""
    return Request(
        delivery, printable(task_id, 255), printable(name, 255) if isinstance(name, str) else "?", None, {}, True
    )


def context_of(request: Request) -> Context:
    """Make the task's request of a delivery that no child speaks for, without its body."""
    properties = request.delivery.properties
    headers = request.headers
    context = Context(
        id=request.id, task=request.task_name, reply_to=properties.reply_to, correlation_id=properties.correlation_id,
        called_directly=False,
    )  # fmt: skip
    for key in ("group", "group_index", "root_id", "parent_id", "retries", "argsrepr", "kwargsrepr", "shadow"):
        if headers.get(key) is not None:
            context.update({key: headers[key]})
    if headers.get("ignore_result") is not None:
        context.ignore_result = bool(headers["ignore_result"])
    context.delivery_info = {"exchange": request.delivery.exchange, "routing_key": request.delivery.routing_key}
    return context
