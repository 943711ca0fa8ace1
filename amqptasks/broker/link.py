"""One AMQP connection that comes back: connects, notices its end, reconnects with jitter for as long as it is wanted.

The users of a link open their channels in `on_up` and forget them in `on_down`; between the two nothing else tells them
that a connection is gone. Nothing here waits on an old connection: its socket is dropped first, for a dead peer never
answers.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from amqptasks.broker.failover import turns
from amqptasks.broker.incoming import OnConfirm, OnDeliver, is_delivery, read_confirm, read_delivery, read_frame
from amqptasks.broker.loop import Loop, LoopThread
from amqptasks.broker.parameters import Endpoint
from amqptasks.broker.topology import server_version
from amqptasks.broker.trouble import alert_behind, describe
from amqptasks.clock import monotonic

logger = logging.getLogger(__name__)

#: Bytes taken from a socket at once; what is left is read in the next turn of the loop.
READ_BYTES = 1 << 16
#: How long a polite close may take before the socket is dropped, seconds.
CLOSE_GRACE_S = 0.5
#: How often a stopped link looks whether its sockets are closed, seconds.
CLOSE_LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the n-th attempt to connect: doubling, bounded, jittered so that a fleet spreads out.

    Most outages are restarts, and are over within a minute: for that long the waits stay below a second.
    """

    base_s: float = 0.1
    max_s: float = 10.0
    quick_max_s: float = 0.7
    quick_failures: int = 80

    def delay_s(self, failures: int, rand: Callable[[], float] = random.random) -> float:
        """Return the wait after this many failures in a row: the nominal time, half less to half more."""
        if failures < self.quick_failures:
            most_s, doublings = min(self.max_s, self.quick_max_s), failures
        else:
            most_s, doublings = self.max_s, failures - self.quick_failures + 3
        nominal = min(most_s, self.base_s * 2.0 ** min(doublings, 30))
        return min(self.max_s, nominal * (0.5 + rand()))


class Connection(pika.SelectConnection):  # type: ignore[misc,unused-ignore]
    """pika's connection, with a faster way in and out.

    It can hold back what it writes, so that one turn's frames leave in one system call, and it hands deliveries over
    without making pika's objects of them (see `incoming`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: When the broker has last said anything, on the monotonic clock, seconds.
        self.heard_at = monotonic()
        #: Who takes the deliveries of a channel straight from the buffer, by channel number.
        self.on_deliver: dict[int, OnDeliver] = {}
        #: Who takes the confirms of a channel, likewise.
        self.on_confirm: dict[int, OnConfirm] = {}
        self._corked: list[bytes] | None = None
        # Held by whoever writes to the socket. The loop's thread never waits for it: what it cannot write now it keeps.
        self._write_lock = threading.Lock()
        #: Threads in `begin_direct` to `end_direct`, by their idents.
        self._writers: set[int] = set()
        self._is_exclusive = False
        self._kept: list[bytes] = []
        self._frame_buffer = b""
        super().__init__(*args, **kwargs)

    def cork(self) -> None:
        """Collect frames instead of sending them, until `uncork`."""
        if self._corked is None:
            self._corked = []

    def cork_exclusively(self) -> bool:
        """As `cork`, and keep other threads from writing until `uncork`; False if one is writing now."""
        if not self._write_lock.acquire(False):
            return False
        self._is_exclusive = True
        self._corked = []
        return True

    def uncork(self) -> None:
        """Send what was collected."""
        corked, self._corked = self._corked, None
        if corked:
            self._kept.extend(corked)
        if self._is_exclusive:
            self._is_exclusive = False
            try:
                self._write_locked()
            finally:
                self._write_lock.release()
        elif corked:
            self._write_kept()

    def emit(self, frames: bytes) -> None:
        """Send encoded frames as they are."""
        if self._corked is not None:
            self._corked.append(frames)
        else:
            self._adapter_emit_data(frames)

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        if self._corked is not None:
            self._corked.extend(marshaled_frames)
        else:
            self._adapter_emit_data(b"".join(marshaled_frames))

    def _adapter_connect_stream(self) -> None:
        super()._adapter_connect_stream()
        _end_with_errors(self._connection_workflow)

    def _proto_connection_made(self, transport: Any) -> None:
        if type(transport) is _AsyncPlaintextTransport:
            # In place of pika's, which reads 4 KiB at a time and goes on until the socket says that there is no more.
            transport._consume = lambda: self._read_once(transport)
        else:
            abort = transport._initiate_abort
            transport._initiate_abort = lambda error: abort(alert_behind(error, transport._sock))
        super()._proto_connection_made(transport)

    def _read_once(self, transport: Any) -> None:
        data = transport._sock.recv(READ_BYTES)
        if not data:
            raise transport.RxEndOfFile
        self._on_data_available(data)

    def _on_data_available(self, data_in: bytes) -> None:
        self.heard_at = monotonic()
        waiting: bytes = self._frame_buffer
        buffer = waiting + data_in if waiting else data_in
        at, end, on_deliver = 0, len(buffer), self.on_deliver
        while end - at >= 8:
            if on_deliver and is_delivery(buffer, at, end):
                behind = read_delivery(buffer, at, end, on_deliver)
                if behind > 0:
                    at = behind
                    self.frames_received += 3
                    continue
                if behind == 0:
                    break
            elif behind := read_confirm(buffer, at, end, self.on_confirm):
                at = behind
                self.frames_received += 1
                continue
            consumed, frame = read_frame(buffer, at, end)
            if not consumed:
                break
            at += consumed
            self._process_frame(frame)
        self.bytes_received += at
        self._frame_buffer = buffer[at:]

    def _adapter_emit_data(self, data: bytes) -> None:
        self._kept.append(data)
        self._write_kept()

    def _write_kept(self) -> None:
        if not self._write_lock.acquire(False):
            # Another thread is writing a message: a matter of microseconds.
            self._nbio.call_later(0.001, self._write_kept)
            return
        try:
            self._write_locked()
        finally:
            self._write_lock.release()

    def _write_locked(self) -> None:
        kept, self._kept = self._kept, []
        transport = self._transport
        if not kept or transport is None:
            return
        data = b"".join(kept)
        # Most of the time the socket takes everything at once: writing here saves a turn of the loop and two changes to
        # its poll set. What it does not take waits in pika's buffer, as everything does where there is TLS.
        if type(transport) is _AsyncPlaintextTransport and not transport.get_write_buffer_size():
            data = data[_send(transport._sock, data) :]
        if data:
            transport.write(data)

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait here for the socket to take them."""
        transport = self._transport
        return bool(self._kept) or (transport is not None and transport.get_write_buffer_size() > 0)

    # -- writing from other threads

    def begin_direct(self) -> bool:
        """Take the right to write one message from any thread, if nothing is waiting to be written; end with
        `end_direct`.

        False where that cannot be had now: hand the message to the loop's thread then.

        Raises:
            Reentered: This very thread is in the middle of writing: the caller is a signal handler.
        """
        me = threading.get_ident()
        if me in self._writers:
            raise Reentered
        # In this order a signal handler finds its thread here whenever that may hold the lock.
        self._writers.add(me)
        if self._write_lock.acquire(False):
            transport = self._transport
            if not self._kept and type(transport) is _AsyncPlaintextTransport and not transport.get_write_buffer_size():
                return True
            self._write_lock.release()
        self._writers.discard(me)
        return False

    def write_direct(self, frames: bytes) -> None:
        """Write to the socket, between `begin_direct` and `end_direct`. What it does not take follows from the loop."""
        transport = self._transport
        sent = 0 if transport is None else _send(transport._sock, frames)
        if sent < len(frames):
            self._kept.insert(0, frames[sent:])

    def end_direct(self) -> None:
        """Give the right to write back."""
        self._write_lock.release()
        self._writers.discard(threading.get_ident())
        if self._kept:
            self._nbio.add_callback_threadsafe(self._write_kept)

    def drop(self, reason: str) -> None:
        """Close the socket at once, without AMQP's good-bye."""
        self._terminate_stream(pika.exceptions.AMQPConnectionError(reason))


class Reentered(Exception):
    """A signal handler interrupted this thread while it was writing to the connection."""


def _end_with_errors(workflow: Any) -> None:
    """Let an attempt to connect fail where no socket or no thread can be had: pika would leave it hanging for ever."""

    def guard(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                step()
            except (OSError, RuntimeError) as error:
                workflow._connector = None
                # What it does where a host's name has no address.
                workflow._on_getaddrinfo_async_done(error)

        return run

    workflow._try_next_config_async = guard(workflow._try_next_config_async)
    workflow._try_next_resolved_address = guard(workflow._try_next_resolved_address)


def _send(sock: Any, data: bytes) -> int:
    try:
        sent: int = sock.send(data)
    except (OSError, AttributeError):
        # Full, broken, or closed meanwhile (pika then forgets the socket): the loop's own next step finds out which.
        return 0
    return sent


class Link:
    """A supervised connection on a loop. Every method belongs to the loop's thread.

    Args:
        on_up: Called with the open connection, each time there is a new one.
        on_down: Called with the reason when the open connection has ended without `stop`.
        on_attempt_failed: Called with the endpoint's label, the error and the wait in seconds after a failed attempt.
    """

    def __init__(
        self,
        loop: Loop,
        endpoints: Sequence[Endpoint],
        *,
        on_up: Callable[[Connection], None],
        on_down: Callable[[str], None],
        on_attempt_failed: Callable[[str, str, float], None] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._loop = loop
        self._endpoints = endpoints
        self._on_up = on_up
        self._on_down = on_down
        self._on_attempt_failed = on_attempt_failed
        self._backoff = backoff or Backoff()
        self._wanted = False
        self._failures = 0
        self._turns = turns(self._endpoints)
        self._endpoint = next(self._turns)
        self._timer: Any = None
        self._silence_timer: Any = None
        self._connecting: Connection | None = None
        self.connection: Connection | None = None
        self.version: tuple[int, ...] | None = None
        #: The broker's words while an alarm keeps this connection from publishing, else None.
        self.blocked: str | None = None
        #: How many connections there were.
        self.opened = 0
        #: Why the last attempt or connection ended; None before any.
        self.last_error: str | None = None

    @property
    def label(self) -> str:
        """The endpoint in use or tried next, without its password."""
        return self._endpoint.label

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint in use or tried next."""
        return self._endpoint

    @property
    def is_up(self) -> bool:
        """Whether a connection is open now."""
        return self.connection is not None

    def start(self) -> None:
        """Begin to connect. Safe twice."""
        if not self._wanted:
            self._wanted = True
            self._attempt()

    def retry_now(self) -> None:
        """Skip the present wait between attempts, if there is one."""
        if self._wanted and self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._attempt()

    def stop(self, then: Callable[[], None] | None = None, grace_s: float = CLOSE_GRACE_S) -> None:
        """Close for good: politely for so long, then by dropping the socket. Returns at once.

        ``then`` is called when no socket is left.
        """
        self._wanted = False
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None
        closing = [each for each in (self.connection, self._connecting) if each is not None]
        for connection in closing:
            self._close(connection, grace_s)
        if then is not None:
            self._when_closed(closing, then)

    def close(self, thread: LoopThread, timeout_s: float, grace_s: float = CLOSE_GRACE_S) -> None:
        """`stop` it from another thread than its loop's, and wait until no socket is left, at most ``timeout_s``."""
        closed = threading.Event()
        thread.call(lambda: self.stop(closed.set, grace_s))
        closed.wait(timeout_s)

    def _when_closed(self, closing: list[Connection], then: Callable[[], None]) -> None:
        if all(each.is_closed for each in closing):
            then()
        else:
            self._loop.call_later(CLOSE_LOOK_S, lambda: self._when_closed(closing, then))

    def drop(self, reason: str) -> None:
        """End the present connection at once; a new one follows."""
        if self.connection is not None:
            self.connection.drop(reason)

    def drop_if_silent(self, seconds: float) -> None:
        """End the present connection if the broker has said nothing on it for this long, and is not in an alarm."""
        connection = self.connection
        if connection is not None and not self.blocked and monotonic() - connection.heard_at >= seconds:
            connection.drop(f"the broker has said nothing for {seconds:g} s")

    def abandon(self) -> None:
        """Forget every socket without a word, in a forked child whose parent still uses them."""
        self._wanted = False
        for connection in (self.connection, self._connecting):
            sock = getattr(getattr(connection, "_transport", None), "_sock", None)
            if sock is not None:
                sock.close()
        self.connection = self._connecting = None
        self._timer = self._silence_timer = None

    def _close(self, connection: Connection, grace_s: float = CLOSE_GRACE_S) -> None:
        if connection.is_open:
            connection.close()
            self._loop.call_later(grace_s, lambda: self._drop_if_open(connection))
        else:
            self._drop_if_open(connection)

    @staticmethod
    def _drop_if_open(connection: Connection) -> None:
        if not connection.is_closed:
            connection.drop("closing")

    def _attempt(self) -> None:
        self._timer = None
        if not self._wanted:
            return
        self._connecting = Connection(
            parameters=self._endpoint.parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._open_failed,
            on_close_callback=self._closed,
            custom_ioloop=self._loop,
        )

    def _opened(self, connection: Any) -> None:
        self._connecting = None
        if not self._wanted:
            self._close(connection)
            return
        self._failures = 0
        self.opened += 1
        self.connection = connection
        self.version = server_version(connection.server_properties or {})
        self.blocked = None
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        if connection.params.heartbeat:
            self._watch_silence(connection, 2 * connection.params.heartbeat)
        self._on_up(connection)

    def _watch_silence(self, connection: Connection, patience_s: float) -> None:
        # pika itself looks every heartbeat + 5 s, and wants to find nothing twice: 30 s where two heartbeats are 20.
        self._silence_timer = None
        if connection is not self.connection:
            return
        left_s = connection.heard_at + patience_s - monotonic()
        if left_s <= 0:
            connection.drop(f"the broker has said nothing for {patience_s:g} s, two heartbeats")
        else:
            self._silence_timer = self._loop.call_later(left_s, lambda: self._watch_silence(connection, patience_s))

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "resource alarm"
        logger.warning("The broker %s blocks publishing: %s", self.label, self.blocked)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = None
        logger.warning("The broker %s accepts messages again", self.label)

    def _open_failed(self, connection: Any, error: BaseException | str) -> None:
        if connection is not self._connecting:
            return
        self._connecting = None
        self.last_error = describe(error)
        label = self.label
        self._endpoint = next(self._turns)
        self._failures += 1
        # With several brokers, as many attempts as there are of them are made without waiting.
        passes, position = divmod(self._failures, len(self._endpoints))
        wait_s = 0.0 if position else self._backoff.delay_s(passes - 1)
        self._again(wait_s)
        if self._on_attempt_failed is not None and self._wanted:
            self._on_attempt_failed(label, self.last_error, wait_s)

    def _closed(self, connection: Any, error: BaseException | str) -> None:
        if connection is not self.connection:
            return
        self.connection = None
        self.blocked = None
        if self._silence_timer is not None:
            # It would keep what is left of the connection until it is due: where links are lost often, of many.
            self._loop.remove_timeout(self._silence_timer)
            self._silence_timer = None
        self.last_error = describe(error)
        if self._wanted:
            self._again(self._backoff.delay_s(0))
            self._on_down(self.last_error)

    def _again(self, wait_s: float) -> None:
        if self._wanted:
            self._timer = self._loop.call_later(wait_s, self._attempt)
