"""Declares queues on an open connection, once each, and tells why when it cannot.

Runs on a channel of its own, so that a refused declaration closes nothing that carries messages. What to declare is
decided in `topology`; this only carries it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika.channel import Channel

from amqptasks.broker.link import Connection
from amqptasks.broker.topology import BindQueue, DeclareExchange, DeclareQueue, Step, conflict
from amqptasks.exceptions import OperationalError

Done = Callable[["OperationalError | None"], None]


class Declarer:
    """Carries out declarations in order, for one connection. Belongs to the loop's thread; dies with its connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Channel | None = None
        self._opening = False
        self._waiting: deque[tuple[str, Sequence[Step], Done]] = deque()
        self._step: Step | None = None
        self._done: set[str] = set()
        self._busy = False

    def has(self, key: str) -> bool:
        """Whether these steps were carried out on this connection."""
        return key in self._done

    def forget(self, key: str) -> None:
        """Carry the steps out again next time: what they declared has gone."""
        self._done.discard(key)

    def ensure(self, key: str, steps: Sequence[Step], done: Done) -> None:
        """Carry out the steps unless that was done before under this key, then call ``done`` with None or the error."""
        if key in self._done:
            done(None)
            return
        self._waiting.append((key, steps, done))
        self._next()

    def fail(self, reason: str) -> None:
        """Tell everyone who waits that the connection is gone."""
        waiting, self._waiting = self._waiting, deque()
        for _key, _steps, done in waiting:
            done(OperationalError(f"the connection was lost while declaring: {reason}"))

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        key, steps, done = self._waiting[0]
        if key in self._done:
            self._waiting.popleft()
            done(None)
            self._next()
            return
        if self._channel is None or not self._channel.is_open:
            if not self._opening:
                self._opening = True
                self._connection.channel(on_open_callback=self._opened)
            return
        self._busy = True
        self._carry_out(self._channel, list(steps), 0)

    def _opened(self, channel: Channel) -> None:
        self._opening = False
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._next()

    def _carry_out(self, channel: Channel, steps: Sequence[Step], index: int) -> None:
        if index == len(steps):
            key, _steps, done = self._waiting.popleft()
            self._busy = False
            self._done.add(key)
            done(None)
            self._next()
            return
        self._step = step = steps[index]

        def then(_frame: Any) -> None:
            self._carry_out(channel, steps, index + 1)

        perform(channel, step, then)

    def _closed(self, _channel: Channel, error: Exception) -> None:
        self._channel = None
        self._opening = False
        if not self._busy or not self._waiting:
            return
        self._busy = False
        _key, _steps, done = self._waiting.popleft()
        text = getattr(error, "reply_text", "") or str(error)
        code = getattr(error, "reply_code", 0)
        if code == 406 and self._step is not None:
            done(conflict(text, self._step))
        else:
            method = self._step.method if self._step is not None else "declare"
            done(OperationalError(f"the broker refused {method}: {code} {text}"))
        if self._connection.is_open:
            self._next()


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
