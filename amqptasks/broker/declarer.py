"""Declares queues on an open connection, once each, and tells why when it cannot.

Runs on a channel of its own, so that a refused declaration closes nothing that carries messages. What to declare is
decided in `topology`; this only carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pika.channel import Channel

from amqptasks.broker.link import Connection
from amqptasks.broker.topology import BindQueue, DeclareExchange, DeclareQueue, Step, conflict
from amqptasks.exceptions import OperationalError

Done = Callable[["OperationalError | None"], None]

#: What was declared is remembered for so many names; what was declared longest ago is declared again when needed.
MAX_REMEMBERED = 10_000


class Locked(OperationalError):
    """Another connection has the queue for itself."""


class Declarer:
    """Carries out lists of declarations, one after another, for one connection. Belongs to the loop's thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Channel | None = None
        self._opening = False
        # In order. Queues for single results come without end, so it is bounded.
        self._done: dict[str, None] = {}
        # What waits, by key: its steps, and everyone to tell. The first is being carried out while `_step` is set.
        self._waiting: dict[str, tuple[Sequence[Step], list[Done]]] = {}
        self._step: Step | None = None

    def has(self, key: str) -> bool:
        """Whether these steps were carried out on this connection."""
        return key in self._done

    def forget(self, key: str) -> None:
        """Carry the steps out again next time: what they declared has gone."""
        self._done.pop(key, None)

    def ensure(self, key: str, steps: Sequence[Step], done: Done) -> None:
        """Carry out the steps unless that was done before under this key, then call ``done`` with None or the error."""
        if key in self._done:
            done(None)
            return
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting[1].append(done)
            return
        self._waiting[key] = (steps, [done])
        if self._step is None:
            self._begin()

    def delete(self, queue: str, key: str) -> None:
        """Delete a queue that was declared under this key, without waiting for the broker's answer."""
        self.forget(key)
        if self._channel is not None and self._channel.is_open:
            self._channel.queue_delete(queue)

    def fail(self, reason: str) -> None:
        """Tell everyone who waits that the connection is gone."""
        waiting, self._waiting = self._waiting, {}
        self._step = None
        for _steps, dones in waiting.values():
            for done in dones:
                done(OperationalError(f"the connection was lost while declaring: {reason}"))

    def _begin(self) -> None:
        if not self._waiting or not self._connection.is_open:
            return
        if self._channel is None or not self._channel.is_open:
            if not self._opening:
                self._opening = True
                self._connection.channel(on_open_callback=self._opened)
            return
        key = next(iter(self._waiting))
        self._carry_out(self._channel, key, self._waiting[key][0], 0)

    def _opened(self, channel: Channel) -> None:
        self._opening = False
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._begin()

    def _carry_out(self, channel: Channel, key: str, steps: Sequence[Step], index: int) -> None:
        if index == len(steps):
            self._done[key] = None
            if len(self._done) > MAX_REMEMBERED:
                del self._done[next(iter(self._done))]
            self._finish(key, None)
            return
        self._step = step = steps[index]
        perform(channel, step, lambda _frame: self._carry_out(channel, key, steps, index + 1))

    def _finish(self, key: str, error: OperationalError | None) -> None:
        self._step = None
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            for done in waiting[1]:
                done(error)
        if self._step is None:
            self._begin()

    def _closed(self, channel: Channel, error: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        self._opening = False
        step = self._step
        if step is None or not self._connection.is_open:
            # Nothing was under way, or the whole connection goes: `fail` tells those who wait.
            return
        text = getattr(error, "reply_text", "") or str(error)
        code = getattr(error, "reply_code", 0)
        refusal: OperationalError = OperationalError(f"the broker refused {step.method}: {code} {text}")
        if code == 406:
            refusal = conflict(text, step)
        elif code == 405:
            refusal = Locked(str(refusal))
        self._finish(next(iter(self._waiting)), refusal)


def perform(channel: Channel, step: Step, then: Callable[[Any], None]) -> None:
    """Send one declaration; ``then`` is called with the broker's answer."""
    if isinstance(step, DeclareExchange):
        channel.exchange_declare(
            step.exchange, step.type, passive=step.passive, durable=step.durable,
            auto_delete=step.auto_delete, arguments=dict(step.arguments or {}), callback=then,
        )  # fmt: skip
    elif isinstance(step, DeclareQueue):
        channel.queue_declare(
            step.queue, passive=step.passive, durable=step.durable, exclusive=step.exclusive,
            auto_delete=step.auto_delete, arguments=dict(step.arguments or {}), callback=then,
        )  # fmt: skip
    elif isinstance(step, BindQueue):
        channel.queue_bind(
            step.queue, step.exchange, routing_key=step.routing_key,
            arguments=dict(step.arguments or {}), callback=then,
        )  # fmt: skip
    else:
        channel.exchange_bind(
            step.destination, step.source, routing_key=step.routing_key,
            arguments=dict(step.arguments or {}), callback=then,
        )  # fmt: skip
