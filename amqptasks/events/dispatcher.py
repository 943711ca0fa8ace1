"""Sending events from a program: ``app.events.Dispatcher``.

Workers do not use this: they tell of their tasks by `amqptasks.worker.events`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol

from amqptasks.broker.needs import Need
from amqptasks.clock import LamportClock, utcoffset
from amqptasks.events import messages

__all__ = ["Dispatcher", "SendingApp"]

#: Events that a dispatcher keeps which buffers a group, at most.
MAX_BUFFERED = 10_000


class SendingApp(Protocol):
    """What a dispatcher needs of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""

    @property
    def clock(self) -> LamportClock:
        """The process's logical clock."""

    @property
    def publisher(self) -> Any:
        """The process's publisher."""


def event_need(exchange: str) -> Need:
    """Return what must be declared before events can be sent."""
    step = messages.exchange_of(exchange)
    return Need(f"exchange {exchange}", lambda _version: (step,))


class Dispatcher:
    """Sends events. Nobody waits for them: one that cannot leave is lost. Safe from any thread.

    Args:
        connection, channel, buffer_while_offline, delivery_mode: Accepted because Celery has them: events go over the
            process's own connection, and are not kept.
        hostname: Who says so, ``name@host``; this process without.
        enabled: Send, rather than do nothing.
        app: The app; ``app.events.Dispatcher`` knows it.
        serializer: Instead of the setting ``event_serializer``.
        groups: Send only events of these groups, such as ``task``; all without.
        buffer_group: Keep events of these groups until there are ``buffer_limit`` of them, or `flush` is called.
    """

    app: SendingApp

    def __init__(
        self, connection: Any = None, hostname: str | None = None, enabled: bool = True, channel: Any = None,
        buffer_while_offline: bool = True, app: SendingApp | None = None, serializer: str | None = None,
        groups: Iterable[str] | None = None, delivery_mode: int = 1, buffer_group: Iterable[str] | None = None,
        buffer_limit: int = 24, on_send_buffered: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        if app is not None:
            self.app = app
        conf = self.app.conf
        self.hostname = hostname or f"gen{os.getpid()}@{socket.gethostname()}"
        self.enabled = enabled
        self.serializer: str = serializer or conf.event_serializer
        self.groups = set(groups or ())
        self.buffer_group = frozenset(buffer_group or ())
        self.buffer_limit = min(buffer_limit, MAX_BUFFERED)
        self.on_send_buffered = on_send_buffered
        self.on_enabled: set[Callable[[], Any]] = set()
        self.on_disabled: set[Callable[[], Any]] = set()
        self.headers = {"hostname": self.hostname}
        self._exchange: str = conf.event_exchange
        self._needs = (event_need(self._exchange),)
        self._lock = threading.Lock()
        self._buffers: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(
        self, type: str, blind: bool = False, retry: bool = False, retry_policy: Any = None, **fields: Any
    ) -> None:  # fmt: skip
        """Send an event.

        Args:
            type: Its group and what has happened, with a dash between.
            blind: Do not count it on the logical clock.
            retry, retry_policy: Accepted because Celery has them.
            **fields: What it tells.

        Raises:
            EncodeError: A field cannot be serialized.
        """
        group = messages.group_from(type)
        if not self.enabled or (self.groups and group not in self.groups):
            return
        if group not in self.buffer_group:
            self.publish(type, fields, blind=blind)
            return
        with self._lock:
            kept = self._buffers.setdefault(group, [])
            kept.append(self._event(type, fields, blind))
            is_full = len(kept) >= self.buffer_limit
        if is_full:
            self.flush()
        elif self.on_send_buffered is not None:
            self.on_send_buffered()

    def publish(
        self, type: str, fields: Mapping[str, Any], producer: Any = None, blind: bool = False, **_options: Any
    ) -> None:  # fmt: skip
        """Send an event now, even if `enabled` is not set.

        Raises:
            EncodeError: A field cannot be serialized.
        """
        self._publish(self._event(type, fields, blind), messages.routing_key(type))

    def _event(self, type: str, fields: Mapping[str, Any], blind: bool) -> dict[str, Any]:
        return messages.new_event(
            type,
            {
                "hostname": self.hostname, "utcoffset": utcoffset(), "pid": os.getpid(),
                "clock": None if blind else self.app.clock.forward(), **fields,
            },
        )  # fmt: skip

    def _publish(self, events: Any, key: str) -> None:
        message = messages.event_message(
            events, key, exchange=self._exchange, hostname=self.hostname, serializer=self.serializer
        )
        self.app.publisher.tell(message, self._needs)

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what is kept of the groups that are buffered, each as one list."""
        with self._lock:
            kept, self._buffers = self._buffers, {}
        for group, events in kept.items():
            self._publish(events, f"{group}.multi")

    def enable(self) -> None:
        """Send from now on."""
        self.enabled = True
        for callback in self.on_enabled:
            callback()

    def disable(self) -> None:
        """Send nothing from now on."""
        if self.enabled:
            self.enabled = False
            self.close()
            for callback in self.on_disabled:
                callback()

    def close(self) -> None:
        """Send what is kept."""
        self.flush()
