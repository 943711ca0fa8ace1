"""Results as answers: each program has one reply queue, workers send every result to the queue of who asked.

The queue is durable, classic and not exclusive, so that it outlives a lost connection; the broker deletes it once
nobody has used it for longer than results are kept. A background thread takes answers in and wakes who waits for them.
An answer can be read as often as wanted, by any thread, but only in the process that sent the task.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Backoff, Connection, Link
from amqptasks.broker.loop import LoopThread
from amqptasks.broker.needs import Need
from amqptasks.broker.parameters import Endpoint
from amqptasks.broker.topology import DeclareQueue, Step
from amqptasks.exceptions import BackendError, ContentError, ResultUnreachable
from amqptasks.results.backend import OnRecord, ResultBackend, timed_out
from amqptasks.results.kept import KeptResults
from amqptasks.results.payload import accepted_results
from amqptasks.results.record import FOLLOWERS, ResultRecord, supersedes
from amqptasks.results.registry import BackendApp
from amqptasks.results.waiting import Waiter, Watcher
from amqptasks.states import FAILURE
from amqptasks.wire.binding import SIGNED_TYPE
from amqptasks.wire.failures import to_plain
from amqptasks.wire.message import PERSISTENT, TRANSIENT, Message
from amqptasks.wire.serializers import Limits, dumps, loads

logger = logging.getLogger(__name__)

#: The broker keeps an unused reply queue this much longer than the results in it, seconds.
QUEUE_GRACE_S = 3600.0
#: Answers the broker may send ahead of their acks.
PREFETCH = 1000
#: Acks wait this long, so that whoever was woken by an answer runs first. Seconds.
ACK_DELAY_S = 0.02
#: So many old places are looked at to find one that can be given up.
OLD_PLACES = 16
#: So many ids are remembered whose results were forgotten.
MAX_FORGOTTEN = 1_000
#: How long closing waits for the connection's end, seconds.
CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class RpcOptions:
    """What the rpc backend takes from the settings."""

    prefix: str = "amqptasks"
    expires_s: float | None = 86400.0
    serializer: str = "json"
    accept: frozenset[str] = frozenset({"application/json"})
    persistent: bool = False
    cache_max: int = 50_000
    queue_max_length: int = 100_000
    limits: Limits = Limits()


def from_app(_url: str, app: BackendApp) -> RpcBackend:
    """Make the backend that the settings ask for."""
    conf = app.conf
    return RpcBackend(
        app.thread,
        lambda: app.endpoints("results"),
        RpcOptions(
            prefix=conf.task_queue_prefix,
            expires_s=conf.result_expires,
            serializer=conf.result_serializer,
            accept=accepted_results(conf),
            persistent=bool(conf.result_persistent),
            cache_max=conf.result_cache_max,
            queue_max_length=conf.rpc_queue_max_length,
            limits=app.limits(),
        ),
        keeps=lambda: (
            bool(conf.task_persist_result)
            or any(getattr(task, "persist_result", None) for task in list(app.tasks.values()))
        ),
    )


class _Slot:
    """What is known of one task, and the locks of those who wait for it."""

    __slots__ = ("record", "waiters")

    def __init__(self) -> None:
        self.record: ResultRecord | None = None
        self.waiters: list[Waiter | Watcher] | None = None


def _wake_all(slot: _Slot) -> None:
    for waiter in tuple(slot.waiters or ()):
        waiter.wake()


class RpcBackend(ResultBackend):
    """The ``rpc://`` backend. Safe from any thread; a forked child begins with a reply queue of its own and no
    results."""

    persistent = False
    in_message = True

    def __init__(
        self,
        thread: LoopThread,
        endpoints: Callable[[], Sequence[Endpoint]],
        options: RpcOptions,
        backoff: Backoff | None = None,
        keeps: Callable[[], bool] = lambda: False,
    ) -> None:
        self.options = options
        self._thread = thread
        self._endpoints = endpoints
        self._backoff = backoff or Backoff(max_s=1.0)
        self._kept = KeptResults(endpoints, options.prefix, self._read, keeps)
        self._reset()
        thread.on_fork(self._forget_after_fork)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        # Ordered by age: a plain dict takes long to find its oldest key after many were removed.
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        # In the order they were forgotten in.
        self._forgotten: dict[str, None] = {}
        self._link: Link | None = None
        self._consumer: QueueConsumer | None = None
        self._declarer: Declarer | None = None
        self.queue = f"{self.options.prefix}.reply.{uuid.uuid4()}"
        self.need = Need(self.queue, self._steps)

    def _forget_after_fork(self) -> None:
        if self._link is not None:
            self._link.abandon()
        self._reset()

    def _steps(self, _version: tuple[int, ...] | None) -> Sequence[Step]:
        options = self.options
        # Classic: a quorum queue takes three times as long for an answer, and its lease is not renewed by declaring.
        arguments: dict[str, object] = {"x-queue-type": "classic", "x-max-length": options.queue_max_length}
        if options.expires_s:
            arguments["x-message-ttl"] = int(options.expires_s * 1000)
            arguments["x-expires"] = int((options.expires_s + QUEUE_GRACE_S) * 1000)
        return (DeclareQueue(self.queue, durable=True, exclusive=False, auto_delete=False, arguments=arguments),)

    # -- the worker's side

    def store(self, record: ResultRecord) -> None:
        """Take a record for this process itself, as when an answer came in."""
        self._take(record)

    def message(self, record: ResultRecord, reply_to: str | None, correlation_id: str | None) -> Message | None:
        """Make the answer to ``reply_to``; None when the caller named no queue."""
        if not reply_to:
            return None
        options = self.options
        content_type, content_encoding, body = dumps(record.to_plain(), options.serializer)
        return Message(
            body,
            content_type=content_type,
            content_encoding=content_encoding,
            correlation_id=correlation_id or record.task_id,
            delivery_mode=PERSISTENT if options.persistent else TRANSIENT,
        )

    # -- the caller's side

    def reply_to(self) -> str:
        """Return the name of this process's reply queue."""
        return self.queue

    def expect(self, task_id: str) -> None:
        """Keep a place for an answer.

        The oldest place is given up when there are more than ``cache_max``, unless somebody waits there.
        """
        slots = self._slots
        if task_id in slots:
            return
        if self._forgotten:
            self._forgotten.pop(task_id, None)
        slots[task_id] = _Slot()
        if len(slots) > self.options.cache_max:
            self._give_up_old(slots)

    def _give_up_old(self, slots: OrderedDict[str, _Slot]) -> None:
        for _ in range(OLD_PLACES):
            try:
                task_id, slot = next(iter(slots.items()))
                if slot.waiters:
                    # Its turn comes again after all others. There are no more of these than who waits.
                    slots.move_to_end(task_id)
                    continue
                del slots[task_id]
            except (StopIteration, RuntimeError, KeyError):
                # Another thread gives up places too, and was quicker.
                continue
            _wake_all(slot)
            if len(slots) <= self.options.cache_max:
                return

    def fetch(self, task_id: str) -> ResultRecord | None:
        """Return the newest answer that has come in; the first call begins to take answers in."""
        slot = self._slots.get(task_id)
        if slot is None:
            return self._kept.fetch(task_id) if self._kept.is_used() else None
        self._listen()
        return slot.record

    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None = None) -> ResultRecord:
        """Wait for the final answer, or for the one that the broker keeps if the task was sent by another process."""
        if task_id not in self._slots and self._kept.is_used():
            return self._kept.wait(task_id, timeout_s, on_record)
        slot = self._slot(task_id)
        record = slot.record
        if record is not None and record.is_final:
            if on_record is not None:
                on_record(record)
            return record
        waiter = Waiter(every=on_record is not None)
        self._add_waiter(slot, waiter)
        self._listen()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        told: ResultRecord | None = None
        slots, news = self._slots, waiter.news
        # What came before the waiter was there is not among its news; what came just then may be, once or twice.
        early = slot.record
        if early is not None and not any(each is early for each in tuple(news)):
            news.appendleft(early)
        try:
            while True:
                if self._slots is not slots:
                    raise BackendError("the result backend was closed while a result was waited for")
                while news:
                    record = news.popleft()
                    if record is told:
                        continue
                    told = record
                    if on_record is not None:
                        on_record(record)
                    if record.is_final:
                        return record
                if slots.get(task_id) is not slot:
                    raise self._unreachable(task_id)
                self._pause(waiter, deadline)
        finally:
            self._remove_waiter(slot, waiter)

    def wait_any(
        self, task_ids: Collection[str], timeout_s: float | None, on_record: OnRecord | None = None
    ) -> list[ResultRecord]:
        """Wait until one of several answers is final; return all that are."""
        table = self._slots
        if self._kept.is_used() and any(task_id not in table for task_id in task_ids):
            return super().wait_any(task_ids, timeout_s, on_record)
        slots = [self._slot(task_id) for task_id in task_ids]
        self._listen()
        waiter = Waiter(every=on_record is not None)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        told: list[ResultRecord] = []
        for slot in slots:
            self._add_waiter(slot, waiter)
        try:
            while True:
                if self._slots is not table:
                    raise BackendError("the result backend was closed while results were waited for")
                ready = [slot.record for slot in slots if slot.record is not None and slot.record.is_final]
                if on_record is not None:
                    # What came before the waiter was there is not among its news, and is older.
                    known = ready if told else [slot.record for slot in slots if slot.record is not None]
                    came = [waiter.news.popleft() for _ in range(len(waiter.news))]
                    for record in (*(each for each in known if each not in came), *came):
                        if not any(record is each for each in told):
                            told.append(record)
                            on_record(record)
                if ready:
                    return ready
                gone = next((task_id for task_id in task_ids if task_id not in table), None)
                if gone is not None:
                    raise self._unreachable(gone)
                self._pause(waiter, deadline)
        finally:
            for slot in slots:
                self._remove_waiter(slot, waiter)

    def subscribe(self, task_id: str, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Wake a coroutine when the final answer has come in."""
        if task_id not in self._slots and self._kept.is_used():
            return None
        slot, watcher = self._slot(task_id), Watcher(wake)
        self._add_waiter(slot, watcher)
        self._listen()
        return lambda: self._remove_waiter(slot, watcher)

    def unexpect(self, task_id: str) -> None:
        """Give up the place of an answer."""
        self._slots.pop(task_id, None)

    def forget(self, task_id: str) -> None:
        """Drop what came in for a task, and what the broker keeps of it; what comes later is thrown away, unless 1,000
        other results were forgotten since."""
        forgotten = self._forgotten
        forgotten[task_id] = None
        if len(forgotten) > MAX_FORGOTTEN:
            with contextlib.suppress(StopIteration, RuntimeError):
                # Another thread may forget too.
                forgotten.pop(next(iter(forgotten)), None)
        slot = self._slots.pop(task_id, None)
        if slot is not None:
            _wake_all(slot)
        if self._kept.is_used():
            self._kept.forget(task_id)

    def as_uri(self) -> str:
        """Return ``rpc://``."""
        return "rpc://"

    def close(self) -> None:
        """Stop taking answers in, wake who waits, and close the connection."""
        with self._lock:
            link, self._link = self._link, None
            slots, self._slots = self._slots, OrderedDict()
        for slot in list(slots.values()):
            _wake_all(slot)
        if link is not None and not self._thread.is_current:
            link.close(self._thread, CLOSE_TIMEOUT_S)

    def _slot(self, task_id: str) -> _Slot:
        slot = self._slots.get(task_id)
        if slot is None:
            raise self._unreachable(task_id)
        return slot

    def _unreachable(self, task_id: str) -> ResultUnreachable:
        return ResultUnreachable(
            f"the result of task {task_id} cannot reach this process: rpc:// answers only the process that sent the "
            f"task, before forget(), and for its last {self.options.cache_max} tasks (result_cache_max). Give the task "
            "persist_result=True, or use a result store such as db+postgresql://, to read results from anywhere"
        )

    def _pause(self, waiter: Waiter, deadline: float | None) -> None:
        if deadline is None:
            waiter.wait(threading.TIMEOUT_MAX)
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not waiter.wait(left_s):
            raise timed_out()

    @staticmethod
    def _add_waiter(slot: _Slot, waiter: Waiter | Watcher) -> None:
        waiters = slot.waiters
        if waiters is None:
            waiters = slot.waiters = []
        waiters.append(waiter)

    @staticmethod
    def _remove_waiter(slot: _Slot, waiter: Waiter | Watcher) -> None:
        if slot.waiters is not None and waiter in slot.waiters:
            slot.waiters.remove(waiter)

    # -- taking answers in, on the loop's thread

    def _listen(self) -> None:
        with self._lock:
            if self._link is None:
                self._begin_to_listen()

    def _begin_to_listen(self) -> None:
        loop = self._thread.loop()
        self._link = Link(
            loop, self._endpoints(), on_up=self._on_up, on_down=self._on_down,
            on_attempt_failed=self._on_attempt_failed,
            backoff=self._backoff,
        )  # fmt: skip
        self._consumer = QueueConsumer(
            loop,
            self.queue,
            need=self.need,
            prefetch=PREFETCH,
            on_delivery=self._on_delivery,
            tag_prefix="reply",
            ack_delay_s=ACK_DELAY_S,
        )
        self._thread.call(self._link.start)

    def _on_up(self, connection: Connection) -> None:
        if self._link is not None and self._consumer is not None:
            self._declarer = Declarer(connection)
            self._consumer.up(connection, self._declarer, self._link.version)

    def _on_down(self, reason: str) -> None:
        logger.warning("Lost the connection for results: %s", reason)
        if self._consumer is not None:
            self._consumer.down(reason)
        if self._declarer is not None:
            self._declarer.fail(reason)

    def _on_attempt_failed(self, label: str, error: str, wait_s: float) -> None:
        logger.info("Cannot reach %s for results: %s; trying again in %.1f s", label, error, wait_s)

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        properties = delivery.properties
        try:
            record = self._read(properties, delivery.body)
        except ContentError as error:
            task_id = properties.correlation_id
            logger.error("An answer cannot be read (for task %.64r): %s", task_id, error)
            # Whoever waits for it would wait for ever. But where answers are signed, nobody's word can end a wait.
            if task_id is None or task_id not in self._slots or SIGNED_TYPE in self.options.accept:
                return
            record = ResultRecord.now(task_id, FAILURE, to_plain(error, self.options.serializer))
        self._take(record)

    def _read(self, properties: Any, body: bytes) -> ResultRecord:
        options = self.options
        content_type, content_encoding = properties.content_type or "", properties.content_encoding or ""
        return ResultRecord.from_plain(loads(body, content_type, content_encoding, options.accept, options.limits))

    def _take(self, record: ResultRecord) -> None:
        if record.task_id in self._forgotten:
            return
        # The queue is this process's own: an answer nobody expected belongs to a task that one of ours has started.
        self.expect(record.task_id)
        slot = self._slots.get(record.task_id)
        if slot is None:
            return
        if not supersedes(record, slot.record):
            return
        slot.record = record
        # Callbacks and the next step of a chain answer to this queue too, and may be asked for before they have.
        followers = record.extra.get(FOLLOWERS)
        if isinstance(followers, list):
            for task_id in followers:
                if isinstance(task_id, str):
                    self.expect(task_id)
        is_final = record.is_final
        for waiter in tuple(slot.waiters or ()):
            if is_final or waiter.every:
                waiter.news.append(record)
                waiter.wake()
