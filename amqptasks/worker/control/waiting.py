"""What waits in the broker: delayed calls as they were noted, and the dead letters of a worker's queues."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from amqptasks.broker.confirms import Outgoing
from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.dead_look import look
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.delay_index import DelayIndex, note_message, stream_name, stream_need
from amqptasks.broker.delays import UNIT_MS
from amqptasks.broker.incoming import read_properties
from amqptasks.broker.link import Connection
from amqptasks.broker.needs import Need
from amqptasks.entities import Broadcast
from amqptasks.exceptions import ContentError, EncodeError, OperationalError, TopologyConflict
from amqptasks.wire.delayed import Delayed, read_notes
from amqptasks.wire.message import EncodedMessage
from amqptasks.worker.control.state import ControlState
from amqptasks.worker.outcome import FollowUp
from amqptasks.worker.request import Request

__all__ = ["DelayReader", "dead_ids", "delayed_info", "described", "noting", "stored_states"]

logger = logging.getLogger("amqptasks.worker.control")

#: Messages with notes that the broker sends ahead.
PREFETCH: Final = 20
#: How long the notes are read before what is known by then is told, seconds.
PATIENCE_S: Final = 5.0
#: Delayed calls remembered between two looks; of more, those that are due last are forgotten.
MAX_REMEMBERED: Final = 20_000
#: Questions that wait for the notes at once.
MAX_ASKING: Final = 100
#: Dead letters of one queue that are looked at.
MAX_DEAD: Final = 200
#: Ids looked up in the result store for one question, and how long that is waited for, seconds.
MAX_LOOKED_UP: Final = 100
STORE_PATIENCE_S: Final = 0.6
#: Celery's number for a task in its worker's timer.
PRIORITY: Final = 6


class DelayReader:
    """Reads the notes of delayed calls when somebody asks: from where it has stopped to the end, which a marker of its
    own shows. Belongs to the loop's thread.
    """

    def __init__(self, state: ControlState) -> None:
        conf = state.app.conf
        self._state = state
        self._prefix: str = conf.task_queue_prefix
        self._need = stream_need(self._prefix)
        self._calls: dict[str, Delayed] = {}
        self._asking: list[Callable[[list[Delayed]], None]] = []
        self._connection: tuple[Connection, Declarer, tuple[int, ...] | None] | None = None
        self._consumer: QueueConsumer | None = None
        self._marker = ""
        self._next_offset: int | None = None
        self._timer: Any = None

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Read over this connection from now on."""
        self._connection = connection, declarer, version

    def down(self) -> None:
        """Forget the connection."""
        self._connection = None
        self._finish()

    def ask(self, then: Callable[[list[Delayed]], None]) -> None:
        """Call ``then`` with the calls that wait for queues of this worker, those that are due first in front."""
        if self._connection is None or len(self._asking) >= MAX_ASKING:
            then(self._known())
            return
        self._asking.append(then)
        if self._consumer is None:
            self._begin(*self._connection)

    def _begin(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        self._marker = uuid.uuid4().hex
        self._timer = self._state.loop.call_later(PATIENCE_S, self._finish)
        offset = "first" if self._next_offset is None else self._next_offset
        self._consumer = QueueConsumer(
            self._state.loop, stream_name(self._prefix), need=self._need, prefetch=PREFETCH,
            on_delivery=self._on_delivery, on_consuming=self._on_consuming, on_refused=self._on_refused,
            arguments={"x-stream-offset": offset}, tag_prefix="delayed",
        )  # fmt: skip
        self._consumer.up(connection, declarer, version)

    def _on_consuming(self, _consumer: QueueConsumer) -> None:
        send_note(self._state, note_message(self._prefix, (), self._marker), (self._need,))

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        headers = delivery.properties.headers
        offset = headers.get("x-stream-offset") if isinstance(headers, dict) else None
        if isinstance(offset, int):
            self._next_offset = max(self._next_offset or 0, offset + 1)
        try:
            notes = read_notes(delivery.body)
        except ContentError as error:
            logger.error("Passed over notes of delayed calls that cannot be read: %s", error)
            return
        if notes.calls:
            self._take_in(notes.calls)
        if notes.marker is not None and notes.marker == self._marker:
            self._finish()

    def _take_in(self, calls: Iterable[Delayed]) -> None:
        now, names = time.time(), self._names()
        for call in calls:
            if call.due_at > now and (call.queue in names or call.queue.startswith(names.exchanges)):
                self._calls[call.id] = call
            else:
                # What was delayed anew counts as it is now.
                self._calls.pop(call.id, None)
        if len(self._calls) > MAX_REMEMBERED:
            self._calls = {call.id: call for call in self._soonest()[:MAX_REMEMBERED]}

    def _names(self) -> _Names:
        ladder = self._state.app.sender.ladder
        queues = [queue for queue, _consumer in self._state.consumers.pairs]
        own = {ladder.all_of(each.exchange.name) if isinstance(each, Broadcast) else each.name for each in queues}
        exchanges = {binding.exchange.name for each in queues for binding in each.all_bindings()}
        return _Names(own, tuple(ladder.through(name, "") for name in exchanges))

    def _soonest(self) -> list[Delayed]:
        return sorted(self._calls.values(), key=lambda call: call.due_at)

    def _known(self) -> list[Delayed]:
        now, names, revoked = time.time(), self._names(), self._state.deliveries.revoked
        self._calls = {call.id: call for call in self._soonest() if call.due_at > now}
        return [
            call
            for call in self._calls.values()
            if (call.queue in names or call.queue.startswith(names.exchanges)) and not revoked.covers(call.id, {})
        ]

    def _on_refused(self, _consumer: QueueConsumer, conflict: TopologyConflict) -> None:
        logger.error("Delayed calls cannot be told: %s", conflict)
        self._finish()

    def _finish(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._state.loop.remove_timeout(timer)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.stop_consuming()
            consumer.end()
        asking, self._asking = self._asking, []
        if asking:
            known = self._known()
            for then in asking:
                then(known)


class _Names(set[str]):
    """The names under which calls wait that are for a worker.

    Attributes:
        exchanges: How the names begin of those that are to go through its exchanges.
    """

    def __init__(self, names: Iterable[str], exchanges: tuple[str, ...]) -> None:
        super().__init__(names)
        self.exchanges = exchanges


def send_note(state: ControlState, message: EncodedMessage, needs: tuple[Need, ...]) -> None:
    """Send a message that nobody waits for."""

    def done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
        if error is not None:
            logger.debug("A note of delayed calls was lost: %s", error)

    state.confirms.send(Outgoing(message, needs, done, is_impatient=True))


def noting(state: ControlState) -> tuple[DelayIndex, Callable[[Request, float], None], Callable[[FollowUp], None]]:
    """Make what notes the calls that the worker itself delays: the index, and who is to be told of tasks that are put
    off, and of messages that tasks have made."""
    index = DelayIndex(
        state.app.conf.task_queue_prefix, lambda message, needs: send_note(state, message, needs), state.loop.call_later
    )

    def postponed(request: Request, delay_ms: float) -> None:
        headers = request.headers.get
        due_at = time.time() + delay_ms / 1000
        queue = request.delivery.consumer.queue
        index.add((request.id, request.task_name, due_at, queue, headers("argsrepr"), headers("kwargsrepr")))

    def delayed(follow_up: FollowUp) -> None:
        message = follow_up.message
        data = message.properties
        headers = read_properties(data, 2, len(data), int.from_bytes(data[:2], "big")).headers
        task_id, name = (headers.get("id"), headers.get("task")) if isinstance(headers, dict) else (None, None)
        if not isinstance(task_id, str) or not isinstance(name, str) or headers is None:
            return
        units = int(message.routing_key[:12].replace(".", ""), 16)
        due_at, queue = time.time() + units * UNIT_MS / 1000, message.routing_key[12:]
        index.add((task_id, name, due_at, queue, headers.get("argsrepr"), headers.get("kwargsrepr")))

    return index, postponed, delayed


def delayed_info(state: ControlState, call: Delayed) -> dict[str, Any]:
    """Describe a delayed call as Celery describes a task that waits in its worker's memory."""
    eta = datetime.fromtimestamp(call.due_at, timezone.utc).astimezone(state.app.timezone or timezone.utc)
    request = described(state, call.id, call.name, call.args, call.kwargs, call.queue)
    return {"eta": eta.isoformat(), "priority": PRIORITY, "request": request}


def described(
    state: ControlState, task_id: str, name: Any = None, args: Any = None, kwargs: Any = None,
    queue: str | None = None, *, acknowledged: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Describe a task that the worker does not have, with the fields of one that it has."""
    return {
        "id": task_id, "name": name, "args": args, "kwargs": kwargs, "type": name, "hostname": state.hostname,
        "time_start": None, "acknowledged": acknowledged,
        "delivery_info": {"exchange": "", "routing_key": queue, "priority": 0, "redelivered": False},
        "worker_pid": None,
    }  # fmt: skip


def stored_states(state: ControlState, wanted: set[str], then: Callable[[Mapping[str, str]], None]) -> None:
    """Call ``then``, soon and once, with the states that the result store has of tasks: of `MAX_LOOKED_UP` at most."""
    look_up = state.look_up
    if look_up is None or not wanted:
        then({})
        return
    is_answered = False

    def answer(states: Mapping[str, str]) -> None:
        nonlocal is_answered
        if not is_answered:
            is_answered = True
            then(states)

    # The store may be away for long; who asks waits for a second.
    state.loop.call_later(STORE_PATIENCE_S, lambda: answer({}))
    look_up(sorted(wanted)[:MAX_LOOKED_UP], answer)


def dead_ids(state: ControlState, wanted: set[str], then: Callable[[dict[str, Any]], None]) -> None:
    """Call ``then`` with what is found of these ids in the queues of dead letters of this worker's queues."""
    connection = state.link.connection
    suffix = state.app.conf.task_dead_letter_suffix
    names = [
        f"{queue.title if isinstance(queue, Broadcast) else queue.name}{suffix}"
        for queue, _consumer in state.consumers.pairs
    ]
    found: dict[str, Any] = {}
    left = [len(names)]
    if connection is None or not names:
        then(found)
        return

    def take(queue: str, properties: Any) -> None:
        headers = properties.headers if isinstance(properties.headers, dict) else {}
        task_id = headers.get("id")
        if task_id in wanted:
            name, args, kwargs = (headers.get(key) for key in ("task", "argsrepr", "kwargsrepr"))
            found[task_id] = described(state, task_id, name, args, kwargs, queue)

    def done() -> None:
        left[0] -= 1
        if left[0] == 0:
            then(found)

    for name in names:
        look(connection, name, MAX_DEAD, lambda properties, name=name: take(name, properties), done)  # type: ignore[misc]
