"""The queues that a worker consumes: those it was started with, less and more as it is told while it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from amqptasks.app.app import App
from amqptasks.broker.consumer import QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.entities import Queue, worker_direct
from amqptasks.exceptions import TopologyConflict

__all__ = ["Consumers", "chosen_queues"]

logger = logging.getLogger("amqptasks.worker")

#: Queues of one worker at most: each takes a channel.
MAX_QUEUES: Final = 1000
#: How often it is looked whether the last task of a queue that is consumed no longer is settled, seconds.
LOOK_S: Final = 0.5


class Consumers:
    """The consumers of a worker. Belongs to the loop's thread.

    Args:
        make: Makes the consumer of a queue.

    Attributes:
        pairs: The queues that are consumed, and their consumers. Changes as queues come and go.
        all: Their consumers, those of queues that are consumed no longer and have tasks unsettled, and others that
            come and go with the connection. Changes likewise.
        on_change: Called when a queue has come or gone.
    """

    def __init__(self, loop: Loop, make: Callable[[Queue], QueueConsumer]) -> None:
        self.pairs: list[tuple[Queue, QueueConsumer]] = []
        self.all: list[QueueConsumer] = []
        self.on_change: Callable[[], None] = lambda: None
        self._loop = loop
        self._make = make
        #: Those of queues that are consumed no longer, by queue.
        self._leaving: dict[str, tuple[Queue, QueueConsumer]] = {}
        self._connection: tuple[Connection, Declarer, tuple[int, ...] | None] | None = None
        #: Who is to hear what becomes of queues that were added, by consumer.
        self._added: dict[QueueConsumer, Callable[[TopologyConflict | None], None]] = {}

    @property
    def are_consuming(self) -> bool:
        """Whether the broker may send deliveries of every queue now."""
        return all(consumer.is_consuming for _queue, consumer in self.pairs)

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Consume over this connection from now on."""
        self._connection = connection, declarer, version
        for consumer in list(self.all):
            consumer.up(connection, declarer, version)

    def down(self, reason: str) -> None:
        """Forget the connection."""
        self._connection = None
        for consumer in list(self.all):
            consumer.down(reason)

    def each(self) -> list[QueueConsumer]:
        """Return the consumers of the queues that are consumed, as of now."""
        return [consumer for _queue, consumer in self.pairs]

    def queue(self, name: str) -> Queue | None:
        """Return the queue of this name or alias, if it is consumed."""
        return next((queue for queue, _consumer in self.pairs if name in (queue.name, queue.alias)), None)

    def add(self, queue: Queue, then: Callable[[TopologyConflict | None], None] | None = None) -> bool:
        """Consume a queue; False if it is consumed already.

        Args:
            then: Called when it is consumed, or cannot be and is left alone again. Without, that is the worker's fault.

        Raises:
            ValueError: There are too many.
        """
        if any(each.name == queue.name for each, _consumer in self.pairs):
            return False
        if len(self.pairs) >= MAX_QUEUES:
            raise ValueError(f"expected a worker to consume at most {MAX_QUEUES} queues")
        pair = self._leaving.pop(queue.name, None)
        if pair is not None:
            self.pairs.append(pair)
            self._tell(pair[1], then)
            pair[1].resume()
        else:
            consumer = self._make(queue)
            self._tell(consumer, then)
            self.pairs.append((queue, consumer))
            self.all.append(consumer)
            if self._connection is not None:
                consumer.up(*self._connection)
        self.on_change()
        return True

    def _tell(self, consumer: QueueConsumer, then: Callable[[TopologyConflict | None], None] | None) -> None:
        if then is not None:
            self._added[consumer] = then

    def remove(self, queue: Queue) -> None:
        """Consume a queue no longer. Its tasks that are here are run and settled."""
        pair = next((each for each in self.pairs if each[0].name == queue.name), None)
        if pair is None:
            return
        self.began(pair[1])
        self.pairs.remove(pair)
        self._leaving[queue.name] = pair
        pair[1].stop_consuming()
        self.on_change()
        self._loop.call_later(LOOK_S, lambda: self._look(pair))

    def began(self, consumer: QueueConsumer) -> None:
        """Take note that a queue is consumed."""
        then = self._added.pop(consumer, None)
        if then is not None:
            then(None)

    def refused(self, consumer: QueueConsumer, conflict: TopologyConflict) -> bool:
        """Leave a queue alone that was just added and cannot be declared; False for any other.

        Tried again and again it would fill the log, and whoever has added it is told.
        """
        then = self._added.pop(consumer, None)
        if then is None:
            return False
        self.pairs[:] = [pair for pair in self.pairs if pair[1] is not consumer]
        self.all.remove(consumer)
        consumer.stop_consuming()
        consumer.end()
        self.on_change()
        then(conflict)
        return True

    def _look(self, pair: tuple[Queue, QueueConsumer]) -> None:
        queue, consumer = pair
        if self._leaving.get(queue.name) is not pair:
            return
        if consumer.outstanding:
            self._loop.call_later(LOOK_S, lambda: self._look(pair))
            return
        del self._leaving[queue.name]
        self.all.remove(consumer)
        consumer.end()


def chosen_queues(app: App, hostname: str, names: Iterable[str] | None) -> list[Queue]:
    """Return the queues to consume: those of these names, or the declared ones.

    Raises:
        QueueNotFound: There is none of a name, and missing queues are not made.
    """
    routing = app.sender.routing
    # A name and its alias are one queue.
    queues = {queue.name: queue for queue in map(routing.queue, routing.queues if names is None else names)}
    if app.conf.worker_direct:
        direct = worker_direct(hostname)
        queues.setdefault(direct.name, direct)
    return list(queues.values())
