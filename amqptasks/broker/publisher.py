"""Publishing from any thread: one connection per process, a deadline for every call, and the truth about its outcome.

`Publisher.publish` returns when the broker has confirmed the message, or raises one of two kinds of error: `NotSent`,
it
is surely not stored, or `MaybeSent`, it may be. There is no third end and no call without a deadline.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from amqptasks.broker.confirms import ConfirmChannel, Interrupted, Outgoing
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Backoff, Connection, Link, Reentered
from amqptasks.broker.loop import Loop, LoopThread
from amqptasks.broker.needs import Need, PublishPolicy
from amqptasks.broker.parameters import Endpoint
from amqptasks.exceptions import BrokerUnavailable, EncodeError, MaybeSent, NotSent, OperationalError
from amqptasks.wire.message import EncodedMessage

if TYPE_CHECKING:
    from amqptasks.broker.delay_index import DelayIndex

logger = logging.getLogger(__name__)

#: How long the exit of the program waits for messages sent without confirms to leave, seconds.
EXIT_FLUSH_S = 10.0
#: How long a call that was given up waits for the loop to drop its dead link, seconds.
DROP_S = 0.2
#: How long closing waits for the connection's end, seconds.
CLOSE_TIMEOUT_S = 1.0


class Sending:
    """A message handed over and not yet confirmed. ``Publisher.finish`` waits for it."""

    __slots__ = ("_lock", "_watcher", "error", "out", "policy")

    def __init__(
        self, message: EncodedMessage, needs: tuple[Need, ...], policy: PublishPolicy, done: Callable[[], None]
    ) -> None:
        self.error: OperationalError | EncodeError | None = None
        self.policy = policy
        self._watcher: Callable[[], None] | None = None
        lock = self._lock = threading.Lock()
        lock.acquire()

        def on_done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            self.error = error
            done()
            lock.release()
            watcher = self._watcher
            if watcher is not None:
                watcher()

        self.out = Outgoing(message, needs, on_done, is_impatient=not policy.retry)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the outcome; True when it is there. Once only."""
        return self._lock.acquire(timeout=max(0.0, timeout_s))

    @property
    def is_done(self) -> bool:
        """Whether the outcome is there, and not waited for yet."""
        return not self._lock.locked()

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Call this, on any thread, when the outcome is there; None ends that."""
        self._watcher = watcher
        if watcher is not None and self.is_done:
            watcher()

    def again(self) -> None:
        """Make ready for another try of the same message."""
        self.error = None
        self.out.returned = None
        self.out.release()


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


class Publisher:
    """Sends messages over the process's one publishing connection. Every method is safe from any thread, and after a
    fork.

    Args:
        thread: The loop's thread, shared with other users of this process.
        endpoints: Called at first use.
        confirm: Without confirms a send returns when the message is handed over; nothing is promised of it.
        buffer: Messages handed over and unfinished; further ones wait, within their deadline.
    """

    def __init__(
        self,
        thread: LoopThread,
        endpoints: Callable[[], Sequence[Endpoint]],
        *,
        confirm: bool = True,
        buffer: int = 10_000,
        backoff: Backoff | None = None,
    ) -> None:
        self._thread = thread
        self._endpoints = endpoints
        self._confirm = confirm
        self._buffer = buffer
        self._backoff = backoff or Backoff(max_s=1.0)
        #: What notes delayed calls, once there are any. Whoever sends them makes it.
        self.index: DelayIndex | None = None
        self._reset()
        thread.on_fork(self._forget_after_fork)
        _publishers.add(self)

    def _reset(self) -> None:
        self._second: Publisher | None = None
        self._targets: Sequence[Endpoint] | None = None
        self._link: Link | None = None
        self._channel: ConfirmChannel | None = None
        self._declarer: Declarer | None = None
        self._inbox: deque[Outgoing] = deque()
        # Is there while the loop has been asked to drain the inbox; not empty once the asking is done.
        self._ticket: list[None] | None = None
        self._has_given_up = False
        # SimpleQueue is a semaphore in C: a place per unfinished message.
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._buffer):
            self._places.put(None)

    def _forget_after_fork(self) -> None:
        if self._link is not None:
            self._link.abandon()
        # What it has collected is the parent's to send.
        self.index = None
        self._reset()

    # -- sending

    def publish(self, message: EncodedMessage, needs: tuple[Need, ...], policy: PublishPolicy) -> None:
        """Send one message and return when the broker holds it (or, without confirms, when it is handed over).

        Raises:
            NotSent: It is surely not stored. `Unroutable` and `BrokerUnavailable` are kinds of it.
            MaybeSent: It left and was not confirmed in time. Sending the same id again is safe.
            TopologyConflict: Its queue exists with other arguments.
            EncodeError: AMQP cannot carry its headers.
        """
        deadline = time.monotonic() + policy.timeout_s
        try:
            sending = self.submit(message, needs, policy, direct=self._confirm)
        except Reentered:
            # A signal handler in the middle of this thread's own send: that one cannot go on before the handler is
            # done, and holds the connection. A second connection serves such calls.
            self._aside().publish(message, needs, policy)
            return
        if self._confirm:
            self.finish(sending, deadline)

    @property
    def is_full(self) -> bool:
        """Whether a message would have to wait for another to be confirmed before it could be handed over."""
        return self._places.empty()

    def _aside(self) -> Publisher:
        if self._second is None:
            self._second = Publisher(self._thread, self._endpoints, buffer=self._buffer, backoff=self._backoff)
        return self._second

    def submit(
        self, message: EncodedMessage, needs: tuple[Need, ...], policy: PublishPolicy, *, direct: bool = False
    ) -> Sending:
        """Hand one message over without waiting for its confirm; pass what this returns to `finish`.

        Args:
            direct: Write it from this thread if that can be done at once: quicker for one message, dearer for many.

        Raises:
            NotSent: The buffer stayed full until the deadline.
        """
        if self._targets is None:
            # Read here, where a mistake in a URL can be told to the caller.
            self._targets = self._endpoints()
        places = self._places
        try:
            places.get(timeout=policy.timeout_s)
        except queue.Empty:
            raise NotSent(
                f"{self._buffer} messages are waiting for the broker already (broker_publish_buffer), "
                "none was confirmed "
                f"within {policy.timeout_s:g} s: {self._trouble()}"
            ) from None
        sending = Sending(message, needs, policy, lambda: places.put(None))
        channel = self._channel
        try:
            if not direct or self._inbox or channel is None or not channel.send_direct(sending.out):
                self._hand_over(sending.out)
        except (Reentered, EncodeError):
            places.put(None)
            raise
        return sending

    def tell(self, message: EncodedMessage, needs: tuple[Need, ...]) -> bool:
        """Hand over a message that nobody waits for and that need not reach a queue, such as an event.

        It is tried once. False, and it is lost, while half of the buffer is full: the rest is for what must arrive.
        """
        if self._targets is None:
            self._targets = self._endpoints()
        places = self._places
        try:
            if places.qsize() * 2 < self._buffer:
                return False
            places.get_nowait()
        except queue.Empty:
            return False

        def on_done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            places.put(None)
            if error is not None:
                logger.debug("A message that nobody waits for was lost: %s", error)

        self._hand_over(Outgoing(message, needs, on_done, mandatory=False, is_impatient=True))
        return True

    def note(self, message: EncodedMessage, needs: tuple[Need, ...]) -> None:
        """Hand over a message that nobody waits for, and that is one for many others: it takes no place of theirs."""
        if self._targets is None:
            self._targets = self._endpoints()
        self._hand_over(Outgoing(message, needs, _on_noted))

    def call_later(self, wait_s: float, callback: Callable[[], None]) -> None:
        """Call from the connection's thread after so many seconds."""
        self._thread.call(lambda: self._thread.loop().call_later(wait_s, callback))

    def finish(self, sending: Sending, deadline: float) -> None:
        """Wait until a submitted message is confirmed, trying again as its policy says. ``deadline`` is monotonic
        seconds.

        Raises:
            NotSent, MaybeSent, TopologyConflict, EncodeError: As `publish`.
        """
        if sending.wait(deadline - time.monotonic()):
            if sending.error is None:
                return
        else:
            self._give_up(sending)
        error = sending.error
        if isinstance(error, Interrupted) and sending.policy.retry:
            error = self._try_again(sending, error, deadline)
        if error is None:
            return
        if isinstance(error, Interrupted):
            kind = MaybeSent if error.written else NotSent
            raise kind(f"{self._name(sending)}: {error}; {self._trouble()}")
        if isinstance(error, NotSent) and not isinstance(error, BrokerUnavailable):
            raise type(error)(f"{self._name(sending)}: {error}")
        raise error

    def _try_again(
        self, sending: Sending, first: Interrupted, deadline: float
    ) -> OperationalError | EncodeError | None:
        # tenacity costs 20 µs a call, so only a send in trouble pays for it.
        try:
            from tenacity import (
                RetryError,
                Retrying,
                retry_if_result,
                stop_after_attempt,
                stop_never,
                wait_incrementing,
            )
        except OSError as shortage:
            # A program that may open nothing more cannot read modules either.
            return Interrupted(f"{first}; it cannot be tried again: {shortage}", written=first.written)

        policy = sending.policy
        may_be_stored = first.written
        stop = stop_never if policy.max_retries is None else stop_after_attempt(policy.max_retries)

        def attempt() -> OperationalError | EncodeError | None:
            nonlocal may_be_stored
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return Interrupted("no time was left for another try", written=may_be_stored)
            try:
                self._places.get(timeout=left_s)
            except queue.Empty:
                return Interrupted("the buffer stayed full", written=may_be_stored)
            sending.again()
            self._hand_over(sending.out)
            if not sending.wait(deadline - time.monotonic()):
                self._give_up(sending)
            error = sending.error
            if isinstance(error, Interrupted):
                may_be_stored = may_be_stored or error.written
            return error

        retrying = Retrying(
            retry=retry_if_result(lambda error: isinstance(error, Interrupted) and time.monotonic() < deadline),
            stop=stop,
            wait=wait_incrementing(policy.interval_start_s, policy.interval_step_s, policy.interval_max_s),
            sleep=lambda seconds: time.sleep(max(0.0, min(seconds, deadline - time.monotonic()))),
        )
        error: OperationalError | EncodeError | None
        try:
            error = retrying(attempt)
        except RetryError as gave_up:
            error = gave_up.last_attempt.result()
        if error is None or not may_be_stored or isinstance(error, MaybeSent):
            return error
        return MaybeSent(f"{self._name(sending)} was sent but not confirmed: {first}; a further try failed: {error}")

    def _give_up(self, sending: Sending) -> None:
        """Decide the fate of a message whose time is up: withdrawn if it never left, else perhaps stored."""
        seconds = f"within {sending.policy.timeout_s:g} s"
        link = self._link
        if not sending.out.claim():
            if sending.wait(0):
                return
            error = MaybeSent(f"{self._name(sending)} was sent but not confirmed {seconds}: {self._trouble()}")
            if link is not None:
                self._drop_if_silent(link, sending.policy.timeout_s)
            # Now: the end of the link is an outcome of this message too, and would be taken for its last.
            sending.error = error
            return
        self._places.put(None)
        self._has_given_up = True
        self._ask_to_drain()
        if sending.out.was_written:
            sending.error = MaybeSent(
                f"{self._name(sending)} may have been sent, and was not confirmed {seconds}: {self._trouble()}"
            )
        elif link is not None and link.is_up and link.blocked:
            sending.error = NotSent(
                f"{self._name(sending)}: the broker {link.label} accepts no messages ({link.blocked}) "
                f"and did not recover {seconds}"
            )
        else:
            sending.error = BrokerUnavailable(f"{self._name(sending)}: no broker answered {seconds}: {self._trouble()}")

    def _drop_if_silent(self, link: Link, seconds: float) -> None:
        """Drop a link that has said nothing in all this time, before the next call can write to it."""
        dropped = threading.Event()

        def drop() -> None:
            link.drop_if_silent(seconds)
            # Its users are told in the loop's next turn.
            self._thread.call(dropped.set)

        self._thread.call(drop)
        dropped.wait(DROP_S)

    @staticmethod
    def _name(sending: Sending) -> str:
        message = sending.out.message
        target = f"exchange {message.exchange!r}" if message.exchange else f"queue {message.routing_key!r}"
        return f"message {message.correlation_id} to {target}" if message.correlation_id else f"message to {target}"

    def _trouble(self) -> str:
        link = self._link
        if link is None:
            return "the connection was never started"
        if link.is_up:
            return f"blocked by {link.label}: {link.blocked}" if link.blocked else f"connected to {link.label}"
        return f"{link.label}: {link.last_error or 'connecting'}"

    def _hand_over(self, out: Outgoing) -> None:
        self._inbox.append(out)
        self._ask_to_drain()

    def _ask_to_drain(self) -> None:
        # Once for many messages. Whoever sees an empty ticket asks again: it may be a signal handler which interrupted
        # the asking, and then waits in vain for what it interrupted.
        if not self._ticket:
            ticket = self._ticket = []
            loop = self._thread.loop()
            loop.call_threadsafe(lambda: self._drain(loop))
            ticket.append(None)

    # -- on the loop's thread

    def _drain(self, loop: Loop) -> None:
        self._ticket = None
        inbox, channel = self._inbox, self._channel
        if channel is None:
            channel = self._open(loop)
        if self._has_given_up:
            self._has_given_up = False
            channel.forget_claimed()
        while inbox:
            channel.add(inbox.popleft())
        channel.pump()

    def _open(self, loop: Loop) -> ConfirmChannel:
        channel = self._channel = ConfirmChannel(loop, confirm=self._confirm)
        self._link = Link(
            loop, self._targets or self._endpoints(), on_up=self._on_up, on_down=self._on_down,
            on_attempt_failed=self._on_attempt_failed, backoff=self._backoff,
        )  # fmt: skip
        self._link.start()
        return channel

    def _on_up(self, connection: Connection) -> None:
        assert self._link is not None and self._channel is not None
        self._declarer = Declarer(connection)
        self._channel.up(connection, self._declarer, self._link.version)

    def _on_down(self, reason: str) -> None:
        logger.warning("Lost the connection for sending: %s", reason)
        # The channel first: what waits for a declaration then stays queued for the next connection.
        if self._channel is not None:
            self._channel.down(reason)
        if self._declarer is not None:
            self._declarer.fail(reason)

    def _on_attempt_failed(self, label: str, error: str, wait_s: float) -> None:
        if self._channel is not None:
            self._channel.fail_impatient(BrokerUnavailable(f"cannot reach {label}: {error}"))
        logger.info("Cannot reach %s for sending: %s; trying again in %.1f s", label, error, wait_s)

    # -- ending

    def close(self, timeout_s: float = EXIT_FLUSH_S) -> None:
        """Let what was handed over leave, then close the connection; all within ``timeout_s``. Safe twice.

        A later send opens a new connection.
        """
        if self._targets is None or self._thread.is_current:
            return
        if self.index is not None:
            self.index.flush()
        idle = threading.Event()
        deadline = time.monotonic() + timeout_s

        def look() -> None:
            channel, link = self._channel, self._link
            connection = None if link is None else link.connection
            # Without confirms a message counts as sent once it is in the buffer: that must leave too.
            has_unsent = connection is not None and connection.has_unsent
            if not self._inbox and (channel is None or not channel.waiting) and not has_unsent:
                idle.set()
            elif time.monotonic() < deadline:
                self._thread.loop().call_later(0.005, look)

        self._thread.call(look)
        idle.wait(timeout_s)
        if self._second is not None:
            self._second.close(timeout_s)
        if self._link is not None:
            if self._confirm:
                self._link.close(self._thread, CLOSE_TIMEOUT_S)
            else:
                # Only the broker's answer to the good-bye says that it has read everything: a socket that is dropped
                # before may take what has not been read with it.
                left_s = max(CLOSE_TIMEOUT_S, deadline - time.monotonic())
                self._link.close(self._thread, left_s, grace_s=left_s)
        self._link = self._channel = self._declarer = self._targets = None


def _on_noted(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
    if error is not None:
        logger.debug("A message that nobody waits for was lost: %s", error)


def _close_all() -> None:
    for each in list(_publishers):
        each.close()


atexit.register(_close_all)
