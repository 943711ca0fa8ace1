"""What commands can see and change of a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from amqptasks.app.app import App
from amqptasks.broker.confirms import ConfirmChannel
from amqptasks.broker.link import Link
from amqptasks.broker.loop import Loop
from amqptasks.wire.delayed import Delayed
from amqptasks.worker.consumers import Consumers
from amqptasks.worker.deliveries import Deliveries
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.settlement import Settlement
from amqptasks.worker.sizing import Sizing

__all__ = ["ControlState", "EventSwitch"]


class EventSwitch(Protocol):
    """What commands ask of the worker's events."""

    @property
    def enabled(self) -> bool:
        """Whether tasks are told of."""

    def enable(self) -> Any:
        """Tell of tasks from now on."""

    def disable(self) -> Any:
        """Tell of tasks no longer."""

    def heartbeat(self) -> None:
        """Send a heartbeat now."""


class DelayTeller(Protocol):
    """What commands ask of the notes of delayed calls."""

    def ask(self, then: Callable[[list[Delayed]], None]) -> None:
        """Call ``then`` with the calls that wait for this worker's queues."""


@dataclass(slots=True, eq=False)
class ControlState:
    """The first argument of every command. Belongs to the loop's thread.

    Your own commands may rely on ``app``, ``hostname``, ``sizing`` (how many tasks run at once) and ``loop``; the rest
    may change from one version to the next.

    Attributes:
        stop: Begins a warm stop; the text says why.
        events: Those of the worker; None where it has none.
        is_stopping: Whether the worker is about to end.
    """

    app: App
    hostname: str
    loop: Loop
    pool: Pool
    pool_name: str
    dispatcher: Dispatcher
    deliveries: Deliveries
    settlement: Settlement
    sizing: Sizing
    consumers: Consumers
    confirms: ConfirmChannel
    link: Link
    stop: Callable[[str], None]
    is_stopping: Callable[[], bool]
    events: EventSwitch | None = None
    #: What tells of delayed calls; None where they are not noted (``delay_index``).
    delays: DelayTeller | None = None
    started_at: float = field(default_factory=time.monotonic)
    #: Looks ids up in the result store; None where results are no store's.
    look_up: Callable[[Sequence[str], Callable[[dict[str, str]], None]], None] | None = None
    #: What commands keep between calls, by names of their own.
    memory: dict[str, Any] = field(default_factory=dict)
