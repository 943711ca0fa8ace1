"""``app.events``: the classes of `amqptasks.events`, bound to one app."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from amqptasks.events.dispatcher import Dispatcher as DispatcherClass
from amqptasks.events.receiver import Receiver as ReceiverClass
from amqptasks.events.state import State as StateClass

__all__ = ["Events"]


class Events:
    """Events of one app. Safe from any thread."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._own: tuple[int, DispatcherClass] | None = None

    @cached_property
    def Dispatcher(self) -> type[DispatcherClass]:
        """Sends events: ``app.events.Dispatcher(hostname="me@here").send("task-halfway", uuid=…)``."""
        return type("Dispatcher", (DispatcherClass,), {"app": self.app})

    @cached_property
    def Receiver(self) -> type[ReceiverClass]:
        """Hears events: ``app.events.Receiver(connection, handlers={"task-failed": report}).capture()``."""
        return type("Receiver", (ReceiverClass,), {"app": self.app})

    @cached_property
    def State(self) -> type[StateClass]:
        """Keeps what events tell: ``state = app.events.State()``, then ``state.event(event)`` for each."""
        return type("State", (StateClass,), {"app": self.app})

    @contextmanager
    def default_dispatcher(
        self, hostname: str | None = None, enabled: bool = True, buffer_while_offline: bool = False
    ) -> Iterator[DispatcherClass]:
        """Make a dispatcher for a block: ``with app.events.default_dispatcher() as dispatcher: …``."""
        with self.Dispatcher(None, hostname, enabled, None, buffer_while_offline) as dispatcher:
            yield dispatcher

    def tell(self, type: str, fields: Mapping[str, Any], hostname: str | None = None) -> None:
        """Send an event over this process's own connection.

        Raises:
            EncodeError: A field cannot be serialized.
        """
        if hostname is not None:
            self.Dispatcher(None, hostname).publish(type, fields)
            return
        pid = os.getpid()
        if self._own is None or self._own[0] != pid:
            self._own = (pid, self.Dispatcher())
        self._own[1].publish(type, fields)
