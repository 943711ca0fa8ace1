"""How a worker fares, and a file that says so: `worker --health-file`. `amqptasks health` reads it.

What is looked at is what the worker knows by itself. Nothing is asked of the broker, and nothing is waited for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from amqptasks.clock import monotonic, utcnow
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.logs import expand_path

if TYPE_CHECKING:
    from amqptasks.broker.consumer import QueueConsumer
    from amqptasks.broker.declarer import Declarer
    from amqptasks.broker.link import Connection, Link
    from amqptasks.broker.loop import Loop
    from amqptasks.worker.pools.pool import Pool

__all__ = ["READY", "STARTING", "STOPPING", "UNFIT", "Condition", "HealthFile"]

logger = logging.getLogger(__name__)

#: How often the file is written, and the loop's lag measured, seconds.
EVERY_S: Final = 1.0
#: A loop that is later than this is in trouble, seconds: heartbeats of 10 s are soon missed.
LAG_LIMIT_S: Final = 5.0
#: So many queues that are not consumed are named.
MAX_NAMED: Final = 5

STARTING: Final = "starting"
READY: Final = "ready"
#: It cannot do what it is there for: the reasons say why.
UNFIT: Final = "unfit"
STOPPING: Final = "stopping"


@dataclass
class Condition:
    """Says how a worker fares: a `Service`. Belongs to the loop's thread.

    Attributes:
        links: The connections, by what they are for.
        consumers: Those of the task queues, as of now.
        lag_s: How late the loop was when that was last measured.
    """

    loop: Loop
    hostname: str
    links: dict[str, Link]
    consumers: Callable[[], Sequence[QueueConsumer]]
    pool: Pool
    lag_s: float = 0.0
    is_ready: bool = False
    is_stopping: bool = False
    _state: str = STARTING
    _since: str = field(default_factory=lambda: utcnow().isoformat())

    def __post_init__(self) -> None:
        self._measure(monotonic())

    def _measure(self, due: float) -> None:
        now = monotonic()
        self.lag_s = max(0.0, now - due)
        # Since when it is as it is, is to be known though nobody asks.
        self.look()
        self.loop.call_later(EVERY_S, lambda: self._measure(now + EVERY_S))

    def reasons(self) -> list[str]:
        """Say what keeps the worker from its work, in sentences; nothing if all is well."""
        found = [
            f"not connected to {link.label} for {purpose}" + (f": {link.last_error}" if link.last_error else "")
            for purpose, link in self.links.items()
            if not link.is_up
        ]
        if not found and not self.is_stopping:
            idle = [each.queue for each in self.consumers() if not each.is_consuming]
            found += [f"not consuming from queue {name!r}" for name in idle[:MAX_NAMED]]
            if len(idle) > MAX_NAMED:
                found.append(f"nor from {len(idle) - MAX_NAMED} more queues")
        if self.pool.slots and not any(slot.is_open for slot in self.pool.slots):
            found.append("no place of the pool can take tasks")
        if self.lag_s > LAG_LIMIT_S:
            found.append(f"its loop was {self.lag_s:.1f} s late")
        return found

    def look(self) -> dict[str, Any]:
        """Return the worker's state, since when it is that, and the reasons, if it is unfit or starting."""
        reasons = self.reasons()
        if self.is_stopping:
            state = STOPPING
        elif reasons:
            state = UNFIT if self.is_ready else STARTING
        else:
            state = READY if self.is_ready else STARTING
        now = utcnow().isoformat()
        if state != self._state:
            self._state, self._since = state, now
        found = {"time": now, "node": self.hostname, "pid": os.getpid(), "state": state, "since": self._since}
        return {**found, "reasons": reasons} if reasons else found

    # -- the service

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Nothing: it looks by itself."""

    def down(self, reason: str) -> None:
        """Nothing, as `up`."""

    def ready(self) -> None:
        """Know that it once consumed all queues."""
        self.is_ready = True

    def stopping(self) -> None:
        """Know that it is to end."""
        self.is_stopping = True

    def close(self) -> None:
        """Nothing."""


class HealthFile:
    """Writes a file every second while the worker is fit, and deletes it at the end: a `Service`.

    It ages when the loop hangs, or when the worker has no broker: whoever looks at it sees that by its time. While the
    worker stops, and what runs goes on, it is written too.

    Args:
        path: What `expand_path` takes.

    Raises:
        ImproperlyConfigured: It cannot be written.
    """

    def __init__(self, path: str, condition: Condition) -> None:
        self.path = os.path.abspath(expand_path(path, condition.hostname))
        self._condition = condition
        self._trouble: str | None = None
        self._is_over = False
        self._pid = os.getpid()
        try:
            # What a former worker left would speak for this one; and it is seen now whether one can be written.
            self._write("")
            os.unlink(self.path)
        except OSError as error:
            raise ImproperlyConfigured(f"cannot write the health file {self.path!r}: {error.strerror}") from error

    def _write(self, text: str) -> None:
        beside = f"{self.path}.{self._pid}"
        with open(beside, "w", encoding="utf-8") as opened:
            opened.write(text)
        # Whoever reads it finds a whole one.
        os.replace(beside, self.path)

    def _tick(self) -> None:
        if self._is_over:
            return
        self._condition.loop.call_later(EVERY_S, self._tick)
        found = self._condition.look()
        if found["state"] not in (READY, STOPPING) or found.get("reasons"):
            return
        try:
            self._write(json.dumps(found) + "\n")
        except OSError as error:
            if self._trouble is None:
                logger.error("The health file %s cannot be written: %s", self.path, error)
            self._trouble = str(error)
        else:
            if self._trouble is not None:
                logger.warning("The health file %s can be written again", self.path)
            self._trouble = None

    # -- the service

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Nothing: it looks by itself."""

    def down(self, reason: str) -> None:
        """Nothing, as `up`."""

    def ready(self) -> None:
        """Begin to write."""
        self._tick()

    def stopping(self) -> None:
        """Nothing: it says so from now on."""

    def close(self) -> None:
        """Delete it: this worker speaks no more."""
        self._is_over = True
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # it was never ready
        except OSError as error:
            logger.error("The health file %s cannot be deleted: %s", self.path, error)
