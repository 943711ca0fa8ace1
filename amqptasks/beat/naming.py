"""What beat declares on the broker, by name. One schedule has one set of these, however many beats there are.

- ``<prefix>.beat.v1.<name>``: the queue of the token, with a single active consumer: whoever that is leads.
- ``<prefix>.beat.v1.<name>.orders``: what the leader is asked to do (`orders`).
- ``<prefix>.beat.v1.<name>.news``: an exchange on which the leader says who it is, to those who stand by.

The name is ``beat_schedule_name``, or else the app's.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.broker.needs import Need
from amqptasks.broker.topology import (
    DEAD_LETTER_DELIVERIES,
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    Step,
    dead_queue,
    plan,
)
from amqptasks.entities import Queue

__all__ = ["Names", "names_of"]

#: An app without a name.
NAMELESS: Final = "default"
_MAX_NAME: Final = 150
#: How long an order waits for a leader at most, seconds. Who gave it has given up long before.
ORDER_TTL_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one schedule's queues, and how they are declared.

    Attributes:
        title: The schedule's name.
        token: The queue of the token.
        orders: The queue of the orders.
        news: The exchange of the news.
    """

    conf: Any
    title: str
    token: str
    orders: str
    news: str

    def token_need(self) -> Need:
        """Return what declares the queue of the token."""
        return self._need(Queue(self.token, queue_arguments=self._arguments({"x-single-active-consumer": True})))

    def orders_need(self) -> Need:
        """Return what declares the queue of the orders."""
        return self._need(Queue(self.orders, queue_arguments=self._arguments({}), message_ttl=ORDER_TTL_S))

    def dead_need(self) -> Need:
        """Return what declares the queue for what was found in that of the token, and is no record."""
        conf, token = self.conf, self.token
        return Need(f"queue {token}{conf.task_dead_letter_suffix}", lambda version: (dead_queue(conf, token, version),))

    def news_need(self) -> Need:
        """Return what declares the exchange of the news."""
        steps: Sequence[Step] = (DeclareExchange(self.news, "fanout"),)
        return Need(f"exchange {self.news}", lambda _version: steps)

    def listener(self) -> tuple[str, Need]:
        """Return the name of a queue of one's own that gets the news, and what declares it."""
        queue = f"{self.news}.{uuid.uuid4().hex[:12]}"
        steps: Sequence[Step] = (
            DeclareExchange(self.news, "fanout"),
            DeclareQueue(queue, durable=False, exclusive=True, auto_delete=True, arguments={"x-queue-type": "classic"}),
            BindQueue(queue, self.news),
        )
        return queue, Need(f"queue {queue}", lambda _version: steps)

    def _arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self.conf.task_default_queue_type == "quorum":
            # A takeover counts as a delivery; RabbitMQ 4 deletes what was delivered 21 times.
            arguments["x-delivery-limit"] = DEAD_LETTER_DELIVERIES
        return arguments

    def _need(self, queue: Queue) -> Need:
        default_type = self.conf.task_default_queue_type
        return Need(f"queue {queue.name}", lambda version: plan(queue, default_type=default_type, version=version))


def names_of(app: Any) -> Names:
    """Return the names of an app's schedule."""
    conf = app.conf
    title = conf.beat_schedule_name or app.main or NAMELESS
    # What stands in the name of a queue is seen in other programs' lists.
    shown = re.sub(r"[^\w.-]", "_", title)[:_MAX_NAME]
    token = f"{conf.task_queue_prefix}.beat.v1.{shown}"
    return Names(conf, title, token, f"{token}.orders", f"{token}.news")
