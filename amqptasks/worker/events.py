"""What a worker tells whoever watches: that it lives, and what becomes of its tasks.

Nobody is waited for. Events of tasks leave in lists, unconfirmed, over the publishing connection; while they cannot
leave, the newest are kept. Heartbeats that cannot leave are left out: late ones would be wrong.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from amqptasks import signals
from amqptasks._version import __version__
from amqptasks.app.app import App
from amqptasks.broker.confirms import ConfirmChannel
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.unconfirmed import UnconfirmedChannel
from amqptasks.clock import utcoffset
from amqptasks.events import messages
from amqptasks.exceptions import AmqptasksError, EncodeError, NotRegistered
from amqptasks.wire.reprs import printable, short_repr, shown_name
from amqptasks.wire.serializers import Limits, loads
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.outcome import FAILED, REJECTED, RETRYING, SUCCEEDED, UNREADABLE, UNSTORED, Outcome, Told
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

#: Events of tasks in one message at most, as in Celery, and how long the first of them waits for others, seconds.
BATCH: Final = 24
DELAY_S: Final = 0.05
#: Events that are kept while they cannot leave; beyond, the oldest go.
MAX_WAITING: Final = 10_000
#: How often it is looked whether they can leave again, seconds.
LOOK_S: Final = 0.25
#: How often a worker says that it lives, seconds.
HEARTBEAT_S: Final = 2.0
#: What a heartbeat that was asked for promises, where there are no others, seconds. As in Celery.
ASKED_HEARTBEAT_S: Final = 5.0

#: How far the events of a request have been told.
RECEIVED, STARTED = 1, 2

#: An event of a task's own comes from this same worker: it is read without limits.
_NO_LIMITS = Limits(max_bytes=1 << 40, max_items=1 << 40, max_depth=10_000)


class WorkerEvents:
    """Sends the events of one worker: a `Service`. Belongs to the loop's thread.

    Args:
        confirms: Publishes for the worker; its connections are used.
        heartbeat_s: How often the worker says that it lives; None: never, unless it is asked.

    Attributes:
        enabled: Whether what becomes of tasks is told. Whoever has something to tell looks here first.
        dropped: How many events of tasks could not be kept until they could leave.
    """

    def __init__(
        self, app: App, hostname: str, loop: Loop, confirms: ConfirmChannel, dispatcher: Dispatcher,
        heartbeat_s: float | None = HEARTBEAT_S,
    ) -> None:  # fmt: skip
        conf = app.conf
        self.enabled = bool(conf.worker_send_task_events)
        self.dropped = 0
        self._hostname = hostname
        self._loop = loop
        self._dispatcher = dispatcher
        self._heartbeat_s = heartbeat_s
        self._exchange: str = conf.event_exchange
        self._serializer: str = conf.event_serializer
        self._channel = UnconfirmedChannel(
            loop, confirms, messages.exchange_of(self._exchange), "events", self._on_channel
        )
        self._forward = app.clock.forward
        self._pid = os.getpid()
        self._utcoffset = utcoffset()
        self._waiting: deque[dict[str, Any]] = deque()
        self._is_scheduled = False
        self._is_stuck = False
        #: How many were dropped when that was last told.
        self._dropped_before = 0
        self._is_up = False
        self._timer: Any = None

    # -- for whoever controls the worker

    def enable(self) -> bool:
        """Tell what becomes of tasks from now on; False if that was so."""
        was, self.enabled = self.enabled, True
        if not was:
            logger.info("Events of tasks are sent from now on")
            for request in self._dispatcher.waiting:
                request.telling = RECEIVED if request.task.send_events else 0
        return not was

    def disable(self) -> bool:
        """Tell nothing of tasks from now on; False if that was so."""
        was, self.enabled = self.enabled, False
        if was:
            logger.info("Events of tasks are not sent any more")
            for request in self._dispatcher.waiting:
                request.telling = 0
        return was

    def heartbeat(self) -> None:
        """Say now that the worker lives."""
        self._tell_of_worker(messages.WORKER_HEARTBEAT)

    # -- what becomes of tasks. Only to be called while `enabled`

    def received(self, request: Request) -> None:
        """Tell that a task is here, and is going to run."""
        if not request.task.send_events:
            return
        request.telling = RECEIVED
        headers = request.headers.get
        self._tell(
            messages.TASK_RECEIVED, request, name=shown_name(request.task_name, headers("shadow")),
            args=headers("argsrepr"), kwargs=headers("kwargsrepr"), root_id=headers("root_id"),
            parent_id=headers("parent_id"), retries=headers("retries") or 0, eta=headers("eta"),
            expires=headers("expires"),
        )  # fmt: skip

    def started(self, request: Request, ago_s: float = 0.0) -> None:
        """Tell that a task has begun, once."""
        if request.telling < STARTED and request.task.send_events:
            request.telling = STARTED
            self._tell(messages.TASK_STARTED, request, timestamp=time.time() - ago_s)

    def ended(self, request: Request, outcome: Outcome) -> None:
        """Tell how a run has ended."""
        if not request.task.send_events:
            return
        kind = outcome.kind
        if kind != UNREADABLE:
            self.started(request, outcome.runtime_s)
        if kind == SUCCEEDED:
            result = outcome.told[0] if outcome.told else None
            self._tell(messages.TASK_SUCCEEDED, request, result=result, runtime=outcome.runtime_s)
        elif kind in (FAILED, RETRYING):
            error, traceback = outcome.told or (outcome.reason or None, None)
            name = messages.TASK_FAILED if kind == FAILED else messages.TASK_RETRIED
            self._tell(name, request, exception=error, traceback=traceback)
        elif kind == REJECTED:
            # What was acked when it began does not come again, whatever it asks for.
            self._tell(messages.TASK_REJECTED, request, requeue=outcome.requeue and request.is_late)
        elif kind in (UNREADABLE, UNSTORED):
            self._tell(messages.TASK_FAILED, request, exception=outcome.reason, traceback=None)

    def failed(self, request: Request, error: Exception) -> None:
        """Tell that a task has failed of which no run can tell."""
        self._tell_error(messages.TASK_FAILED, request, error)

    def retried(self, request: Request, error: Exception) -> None:
        """Tell that a task is tried again whose run was lost."""
        self._tell_error(messages.TASK_RETRIED, request, error)

    def rejected(self, request: Request) -> None:
        """Tell that a task is put back whose run was lost."""
        if request.task.send_events:
            self._had_begun(request)
            self._tell(messages.TASK_REJECTED, request, requeue=True)

    def revoked(self, request: Request, terminated: bool, signum: int | None, expired: bool) -> None:
        """Tell that a task does not run because it was revoked, or is too late."""
        if request.task is not None and request.task.send_events:
            self._tell(messages.TASK_REVOKED, request, terminated=terminated, signum=signum, expired=expired)

    def cancelled(self, request: Request) -> None:
        """Tell that a task was ended because the connection was lost that it came by."""
        if request.task.send_events:
            self._tell(messages.TASK_CANCELLED, request)

    def said(self, request: Request, told: Told) -> None:
        """Tell an event of a running task's own, whether others are told or not."""
        if self.enabled:
            self.started(request)
            self._flush()
        try:
            fields = loads(told.body, told.content_type, None, frozenset((told.content_type,)), _NO_LIMITS)
            self._publish_one(self._event(told.type, {"uuid": request.id, **fields}))
        except AmqptasksError as error:
            logger.error("An event of task %s is not sent: %s", request.id, error)

    def _had_begun(self, request: Request) -> None:
        if request.telling == RECEIVED and request.number:
            # Nobody has looked between its beginning and its end.
            self.started(request)

    def _tell_error(self, type: str, request: Request, error: Exception) -> None:
        # As in Celery, of a task that is not known here it is told.
        if request.task is None or request.task.send_events:
            self._had_begun(request)
            text = short_repr(error)
            if isinstance(error, NotRegistered):
                text = f"NotRegistered({request.task_name!r})"
            traceback = f"{error.__class__.__name__}: {printable(error, 1024)}\n"
            self._tell(type, request, exception=printable(text, 1024), traceback=traceback)

    def _tell(self, type: str, request: Request, **fields: Any) -> None:
        waiting = self._waiting
        waiting.append(self._event(type, {"uuid": request.id, **fields}))
        if len(waiting) >= BATCH and not self._is_stuck:
            self._flush()
        elif not self._is_scheduled:
            self._schedule(DELAY_S)
        if len(waiting) > MAX_WAITING:
            waiting.popleft()
            self.dropped += 1

    def _event(self, type: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": type, "hostname": self._hostname, "utcoffset": self._utcoffset, "pid": self._pid,
            "clock": self._forward(), "timestamp": time.time(), **fields,
        }  # fmt: skip

    # -- sending

    def _schedule(self, wait_s: float) -> None:
        self._is_scheduled = True
        self._loop.call_later(wait_s, self._flush_later)

    def _flush_later(self) -> None:
        self._is_scheduled = False
        self._flush()

    def _flush(self) -> None:
        waiting = self._waiting
        while waiting:
            self._is_stuck = not self._channel.is_ready
            if self._is_stuck:
                if not self._is_scheduled:
                    self._schedule(LOOK_S)
                return
            batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
            try:
                self._publish(batch, messages.TASKS_KEY)
            except EncodeError as error:
                self.dropped += len(batch)
                logger.error("%d events are not sent: %s", len(batch), error)
        if self.dropped > self._dropped_before:
            logger.warning("%d events of tasks were dropped: they could not be sent in time", self.dropped)
            self._dropped_before = self.dropped

    def _publish(self, events: dict[str, Any] | list[dict[str, Any]], key: str) -> bool:
        return self._channel.send(
            messages.event_message(
                events, key, exchange=self._exchange, hostname=self._hostname, serializer=self._serializer
            )
        )

    def _publish_one(self, event: dict[str, Any]) -> bool:
        return self._publish(event, messages.routing_key(event["type"]))

    # -- that the worker lives

    def _on_channel(self) -> None:
        if self._is_up and self._heartbeat_s is not None:
            self._tell_of_worker(messages.WORKER_ONLINE)
        self._flush()

    def _tell_of_worker(self, type: str) -> None:
        if signals.heartbeat_sent:
            signals.heartbeat_sent.send(self)
        if not self._channel.is_ready:
            return
        dispatcher = self._dispatcher
        active = dispatcher.active
        self._publish_one(
            self._event(
                type,
                {
                    "freq": self._heartbeat_s or ASKED_HEARTBEAT_S, "active": active,
                    "processed": dispatcher.ended + active, "loadavg": _load_average(),
                    "sw_ident": messages.SOFTWARE, "sw_ver": __version__, "sw_sys": platform.system(),
                },
            )
        )  # fmt: skip

    def _beat(self) -> None:
        if self._heartbeat_s is None:
            return
        self._timer = self._loop.call_later(self._heartbeat_s, self._beat)
        # It may be summer time by now.
        self._utcoffset = utcoffset()
        self._tell_of_worker(messages.WORKER_HEARTBEAT)

    # -- the service

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Nothing: events leave by the other connection."""

    def down(self, reason: str) -> None:
        """Nothing, as `up`."""

    def ready(self) -> None:
        """Say that the worker is there, and again and again that it lives."""
        self._is_up = True
        if self._channel.is_ready:
            self._on_channel()
        if self._heartbeat_s is not None:
            self._timer = self._loop.call_later(self._heartbeat_s, self._beat)

    def stopping(self) -> None:
        """Nothing: what runs goes on, and so does the worker until it has ended."""

    def close(self) -> None:
        """Say what is left to say, and that the worker goes."""
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None
        self._flush()
        if self._is_up and self._heartbeat_s is not None:
            self._tell_of_worker(messages.WORKER_OFFLINE)
        self._is_up = False


_load_average: Callable[[], list[float]] = (
    (lambda: [round(each, 2) for each in os.getloadavg()]) if hasattr(os, "getloadavg") else (lambda: [0.0] * 3)
)
