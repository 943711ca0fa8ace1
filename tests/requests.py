"""Real requests and deliveries, of a consumer that is not connected, for tests of what a worker does with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.incoming import Properties
from amqptasks.broker.loop import Loop
from amqptasks.worker.request import Request


class Deliverer:
    """Makes requests as they come in from one queue."""

    def __init__(self, loop: Loop) -> None:
        self.consumer = QueueConsumer(loop, "queue", need=None, prefetch=0, on_delivery=lambda delivery: None)
        self._tag = 0

    def request(
        self, task_id: str, body: bytes = b"", *, headers: Mapping[str, Any] | None = None, is_late: bool = False
    ) -> Request:
        """Make the next request."""
        self._tag += 1
        delivery = Delivery(
            self.consumer, self.consumer.epoch, self._tag, "", "queue", False, Properties(), body
        )  # fmt: skip
        return Request(delivery, task_id, "proj.work", None, dict(headers or {}), is_late)
