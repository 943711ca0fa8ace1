"""Those who wait for results that come to this process by themselves: threads, and coroutines."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from amqptasks.results.record import ResultRecord

__all__ = ["Waiter", "Watcher"]


class Waiter:
    """One waiting thread. Released once for each thing worth waking for.

    Attributes:
        every: It wants to see every record, not the final one alone.
        news: The records that came since it looked, oldest first.
        unread: How many of its tasks nobody has looked at yet.
        error: Why it waits in vain.
    """

    __slots__ = ("_lock", "error", "every", "news", "unread")

    def __init__(self, *, every: bool) -> None:
        self.every = every
        self.news: deque[ResultRecord] = deque()
        self.unread = 0
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Let `wait` return. Twice in a row is once: who wakes looks at all of its news."""
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                return

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is woken; False if that took too long."""
        return self._lock.acquire(timeout=timeout_s)


class Watcher:
    """A waiting coroutine: woken by the final answer, and told nothing."""

    __slots__ = ("error", "every", "news", "unread", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.every = False
        self.news: deque[ResultRecord] = deque(maxlen=0)
        self.unread = 0
        self.error: Exception | None = None
        self.wake = wake
