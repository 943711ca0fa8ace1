"""One delivery on its way through the worker. It is settled exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amqptasks.broker.consumer import Delivery


class Request:
    """A task message that was accepted: what to run, and the delivery to settle afterwards.

    Attributes:
        is_late: Ack after settlement rather than when a child begins.
        is_acked: The ack was sent, or the message was given back.
        is_done: An outcome came in; nothing else may settle it.
        number: Its place in its slot's sequence; 0 while it waits.
        telling: How far its events have been told: not at all, that it was received, that it has started.
        received_at, is_counted: When it came, and whether its start was counted. Only there where tasks are counted.
    """

    __slots__ = (
        "delivery", "expires_at", "headers", "id", "is_acked", "is_counted", "is_done", "is_late", "limits", "number",
        "pending", "received_at", "task", "task_name", "telling",
    )  # fmt: skip

    received_at: float
    is_counted: bool

    def __init__(
        self, delivery: Delivery, task_id: str, task_name: str, task: Any, headers: Mapping[str, Any], is_late: bool,
    ) -> None:  # fmt: skip
        self.delivery = delivery
        self.id = task_id
        self.task_name = task_name
        self.task = task
        self.headers = headers
        self.is_late = is_late
        self.is_acked = False
        self.is_done = False
        self.number = 0
        #: When it expires, by the monotonic clock; None: never.
        self.expires_at: float | None = None
        #: Hard and soft time limit, seconds; None for the many that have neither.
        self.limits: tuple[float | None, float | None] | None = None
        #: Messages published for it and not yet confirmed.
        self.pending = 0
        self.telling = 0

    @property
    def key(self) -> tuple[str, int]:
        """What makes two deliveries the same attempt: the id and the number of the retry."""
        return self.id, self.headers.get("retries") or 0

    @property
    def crashes(self) -> int:
        """How many worker processes this message has already ended."""
        return self.headers.get("x-amqptasks-crashes") or 0

    def ack(self) -> None:
        """Ack its delivery, once."""
        if not self.is_acked:
            self.is_acked = True
            self.delivery.ack()

    def give_back(self, *, has_run: bool = False) -> None:
        """Put its message back into the queue, once. That of a task which ``has_run`` is counted as delivered."""
        if not self.is_acked:
            self.is_acked = True
            self.delivery.give_back(has_run=has_run)

    def to_frame(self, number: int) -> list[Any]:
        """Return the frame that gives it to a child."""
        delivery = self.delivery
        properties = delivery.properties
        # Through the default exchange the routing key is the queue.
        queue = delivery.consumer.queue if delivery.exchange else None
        headers = self.headers if self.limits is None else self._limited()
        frame = [
            number, self.task_name, self.id, headers, delivery.body, properties.content_type,
            properties.content_encoding, properties.reply_to, properties.correlation_id, properties.priority,
            properties.delivery_mode, delivery.exchange, delivery.routing_key, delivery.redelivered,
            queue,
        ]  # fmt: skip
        if self.telling:
            # Then whoever runs it says how it has ended in words too.
            frame.append(True)
        return frame

    def _limited(self) -> Mapping[str, Any]:
        """The headers, with the limits that apply."""
        limits = list(self.limits or ())
        return self.headers if self.headers.get("timelimit") == limits else {**self.headers, "timelimit": limits}
