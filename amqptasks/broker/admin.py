"""Looks at and changes queues from a program's own thread: the commands' way to the broker, not the worker's.

One short-lived connection with a loop of its own, driven only while a call waits. Every call has a deadline, and a
refused one costs its channel, never the session.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import pika.exceptions
import pika.spec
from pika.channel import Channel

from amqptasks.broker.declarer import perform
from amqptasks.broker.failover import one_pass
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.parameters import Endpoint
from amqptasks.broker.topology import DeclareQueue, Step, conflict, server_version
from amqptasks.broker.trouble import describe
from amqptasks.exceptions import BrokerUnavailable, OperationalError

__all__ = ["Admin", "Refused"]

#: How long a polite close may take before the socket is dropped, seconds.
CLOSE_GRACE_S = 0.5

ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED, NOT_IMPLEMENTED = 403, 404, 405, 406, 540


class Refused(Exception):
    """The broker closed the channel, or the connection, with this code in answer to a request."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class Admin:
    """A management session: ``with Admin(app.endpoints("queues")) as admin: admin.purge("mail")``.

    Belongs to the thread that made it. Connects on entering, or at the first call; after a lost connection the next
    call opens another. Passwords appear in none of its errors.

    Args:
        endpoints: Brokers, each tried once.
        timeout_s: The longest that any one call waits for the broker.

    Raises:
        BrokerUnavailable: By every method: no broker could be reached.
        OperationalError: By every method: the broker refused, did not answer in time, or went away.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, timeout_s: float = 10.0) -> None:
        self._endpoints = endpoints
        self._timeout_s = timeout_s
        self._loop: Loop | None = None
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._label = ""
        self._ended: str | None = None
        self._refusal: Refused | None = None
        self._on_empty: Callable[[], None] = lambda: None

    def __enter__(self) -> Admin:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def label(self) -> str:
        """The broker in use, without its password; empty before there is one."""
        return self._label

    @property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's version, ``()`` for another server."""
        return server_version(self._connected().server_properties or {})

    # -- what it does

    def declare(self, steps: Iterable[Step]) -> None:
        """Carry out declarations in order.

        Raises:
            TopologyConflict: One exists with other arguments. Those before it were carried out.
        """
        for step in steps:
            try:
                self._carry_out(step)
            except Refused as refusal:
                if refusal.code == PRECONDITION_FAILED:
                    raise conflict(refusal.text, step) from None
                raise self._error(f"{step.method} of {_named(step)}", refusal) from None

    def counts(self, queue: str) -> tuple[int, int] | None:
        """Return how many messages wait in a queue and how many consumers it has; None if there is no such queue.

        Messages that consumers hold and have not acknowledged are not counted.
        """
        try:
            frame = self._look(queue)
        except Refused as refusal:
            if refusal.code == NOT_FOUND:
                return None
            raise self._error(f"to look at queue {queue!r}", refusal) from None
        return frame.method.message_count, frame.method.consumer_count

    def exists(self, queue: str) -> bool:
        """Whether there is such a queue, another connection's exclusive one included."""
        try:
            self._look(queue)
        except Refused as refusal:
            if refusal.code in (NOT_FOUND, RESOURCE_LOCKED):
                return refusal.code == RESOURCE_LOCKED
            raise self._error(f"to look at queue {queue!r}", refusal) from None
        return True

    def peek(self, queue: str, most: int = 1) -> list[tuple[Any, bytes]] | None:
        """Return the oldest messages of a queue, (properties, body) each, and leave them there in their order.

        None if there is no such queue. While the call lasts, nobody else gets these messages. Not for quorum queues:
        they count it as a delivery, and bury a message that was looked at too often.
        """
        found: list[tuple[Any, bytes]] = []
        try:
            while len(found) < most:
                answer = self._request("basic.get", lambda channel, then: self._get(channel, queue, then))
                if answer is None:
                    break
                found.append(answer)
            if found and self._channel is not None:
                self._channel.basic_nack(0, multiple=True, requeue=True)
                # Waiting for an answer sends it off.
                self._look(queue)
        except Refused as refusal:
            if refusal.code == NOT_FOUND:
                return None
            raise self._error(f"to look into queue {queue!r}", refusal) from None
        return found

    def _get(self, channel: Channel, queue: str, then: Callable[[Any], None]) -> None:
        self._on_empty = lambda: then(None)
        channel.basic_get(queue, lambda _channel, _method, properties, body: then((properties, body)))

    def purge(self, queue: str) -> int | None:
        """Delete the messages that wait in a queue; return how many, None if there is no such queue."""
        try:
            frame = self._request("queue.purge", lambda channel, then: channel.queue_purge(queue, callback=then))
        except Refused as refusal:
            if refusal.code == NOT_FOUND:
                return None
            raise self._error(f"to purge queue {queue!r}", refusal) from None
        return int(frame.method.message_count)

    def delete(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int | None:
        """Delete a queue and the messages in it; return how many waited, None if there was no such queue.

        Args:
            if_unused: Refuse while it has consumers.
            if_empty: Refuse while messages wait in it. Quorum queues know neither condition: for them it is looked at
                just before, and a message that arrives in between is lost with the queue.
        """
        counts = self.counts(queue)
        if counts is None:
            return None
        messages, consumers = counts
        if if_unused and consumers:
            raise OperationalError(f"queue {queue!r} was not deleted: expected no consumers, it has {consumers}")
        if if_empty and messages:
            raise OperationalError(
                f"queue {queue!r} was not deleted: expected it to be empty, {messages} message(s) wait in it"
            )
        try:
            frame = self._delete(queue, if_unused, if_empty)
        except Refused as refusal:
            if refusal.code != NOT_IMPLEMENTED or not (if_unused or if_empty):
                raise self._error(f"to delete queue {queue!r}", refusal) from None
            try:
                frame = self._delete(queue, False, False)
            except Refused as second:
                raise self._error(f"to delete queue {queue!r}", second) from None
        return int(frame.method.message_count)

    def _delete(self, queue: str, if_unused: bool, if_empty: bool) -> Any:
        return self._request(
            "queue.delete",
            lambda channel, then: channel.queue_delete(queue, if_unused=if_unused, if_empty=if_empty, callback=then),
        )

    def _look(self, queue: str) -> Any:
        return self._carry_out(DeclareQueue(queue, passive=True))

    def _carry_out(self, step: Step) -> Any:
        return self._request(step.method, lambda channel, then: perform(channel, step, then))

    # -- the session

    def connect(self) -> None:
        """Open the connection now rather than at the first call."""
        self._connected()

    def close(self) -> None:
        """End the session. Waits half a second at most for the broker's good-bye. Safe twice."""
        connection, self._connection = self._connection, None
        loop, self._loop = self._loop, None
        self._channel = None
        if loop is None:
            return
        if connection is not None and connection.is_open:
            connection.close()
            _turn(loop, lambda: connection.is_closed, CLOSE_GRACE_S)
        if connection is not None and not connection.is_closed:
            connection.drop("closing")
            # The socket is closed in the next turn.
            _turn(loop, lambda: connection.is_closed, CLOSE_GRACE_S)
        loop.deactivate_poller()
        loop.close()

    def _connected(self) -> Connection:
        if self._connection is not None and self._connection.is_open:
            return self._connection
        self.close()
        problems = []
        for endpoint in one_pass(self._endpoints):
            problem = self._try(endpoint)
            if problem is None and self._connection is not None:
                return self._connection
            problems.append(f"{endpoint.label}: {problem}")
        raise BrokerUnavailable("no broker could be reached: " + "; ".join(problems))

    def _try(self, endpoint: Endpoint) -> str | None:
        """Connect to one broker; return why it failed, or None."""
        parameters = self._parameters(endpoint)
        loop = self._loop = Loop()
        outcome: list[str | None] = []
        self._connection = Connection(
            parameters=parameters,
            on_open_callback=lambda _connection: outcome.append(None),
            on_open_error_callback=lambda _connection, error: outcome.append(describe(error)),
            on_close_callback=self._on_close,
            custom_ioloop=loop,
        )
        self._label, self._ended = endpoint.label, None
        if not _turn(loop, lambda: bool(outcome), self._timeout_s):
            outcome = [f"no answer in {self._timeout_s:g} s"]
        problem = outcome[0]
        if problem is not None:
            self.close()
        return problem

    def _parameters(self, endpoint: Endpoint) -> Any:
        parameters = copy.copy(endpoint.parameters)
        # Nobody serves heartbeats while the program asks its user something; each call has its deadline instead.
        parameters.heartbeat = 0
        parameters.tcp_options = None
        return parameters

    def _on_close(self, _connection: Any, error: BaseException | str) -> None:
        self._ended = describe(error)
        self._channel = None

    def _open_channel(self) -> Channel:
        connection = self._connected()
        self._refusal = None
        if self._channel is not None and self._channel.is_open:
            return self._channel
        opened: list[Channel] = []
        connection.channel(on_open_callback=opened.append)
        self._await(lambda: bool(opened), "channel.open")
        self._channel = opened[0]
        self._channel.add_on_close_callback(self._on_channel_close)
        self._channel.add_callback(lambda _frame: self._on_empty(), [pika.spec.Basic.GetEmpty], one_shot=False)
        return self._channel

    def _request(self, method: str, send: Callable[[Channel, Callable[[Any], None]], object]) -> Any:
        """Send one request and wait for its answer.

        Raises:
            Refused: The broker said no. The next request gets a new channel.
        """
        channel = self._open_channel()
        answers: list[Any] = []
        send(channel, answers.append)
        self._await(lambda: bool(answers) or self._refusal is not None, method)
        if self._refusal is not None:
            raise self._refusal
        return answers[0]

    def _on_channel_close(self, _channel: Channel, error: BaseException) -> None:
        self._channel = None
        if isinstance(error, (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker)):
            self._refusal = Refused(error.reply_code, error.reply_text)

    def _await(self, done: Callable[[], bool], method: str) -> None:
        assert self._loop is not None and self._connection is not None
        in_time = _turn(self._loop, lambda: done() or self._ended is not None, self._timeout_s)
        if done():
            return
        if not in_time:
            self._connection.drop("no answer")
            raise OperationalError(f"the broker {self._label} did not answer {method} within {self._timeout_s:g} s")
        raise OperationalError(f"the connection to {self._label} was lost during {method}: {self._ended}")

    def _error(self, what: str, refusal: Refused) -> OperationalError:
        return OperationalError(f"the broker {self._label} refused {what}: {refusal.code} {refusal.text}")


def _turn(loop: Loop, done: Callable[[], bool], timeout_s: float) -> bool:
    """Run the loop in this thread until `done`, for at most that long; return whether it is."""
    deadline = time.monotonic() + timeout_s
    # The timer only wakes the poller: without one it would sleep until the broker speaks.
    timer = loop.call_later(timeout_s, lambda: None)
    while not done():
        if time.monotonic() >= deadline:
            return False
        loop.poll()
        loop.process_timeouts()
    loop.remove_timeout(timer)
    return True


def _named(step: Step) -> str:
    for kind in ("queue", "exchange", "destination"):
        if hasattr(step, kind):
            return f"{kind} {getattr(step, kind)!r}"
    return repr(step)
