"""Trying again when a result store fails: how often, and how long to wait between.

Waits grow twofold from ``result_backend_base_sleep_between_retries_ms`` to
``result_backend_max_sleep_between_retries_ms``, and each is drawn at random from nothing to that, so that the processes
of a fleet do not come back in step.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

__all__ = ["StoreRetries", "persist"]

T = TypeVar("T")

#: Tries of what somebody waits for, or of what may be left out: reads, states that are not final.
BRIEF: Final = 5
# Doubling further would only overflow: any sensible longest wait is reached long before.
_MAX_DOUBLINGS: Final = 40


@dataclass(frozen=True, slots=True)
class StoreRetries:
    """When to try again.

    Attributes:
        limit: Tries after the first; infinity for as many as it takes.
    """

    limit: float = float("inf")
    base_ms: int = 10
    max_ms: int = 10_000

    @classmethod
    def of(cls, conf: Any) -> StoreRetries:
        """Take it from the settings."""
        return cls(
            conf.result_backend_max_retries if conf.result_backend_always_retry else 0,
            conf.result_backend_base_sleep_between_retries_ms,
            conf.result_backend_max_sleep_between_retries_ms,
        )

    def brief(self) -> StoreRetries:
        """The same for what must not take long."""
        return replace(self, limit=min(self.limit, BRIEF))

    def longest_wait_s(self, retry: int) -> float:
        """Return the longest wait before this retry, the first being 1. Seconds."""
        return min(float(self.max_ms), self.base_ms * 2.0 ** min(retry, _MAX_DOUBLINGS)) / 1000.0


def persist(
    operation: Callable[[], T],
    retries: StoreRetries,
    is_transient: Callable[[Exception, int], bool],
    on_retry: Callable[[Exception, float], None],
    pause: Callable[[float], Any],
) -> T:
    """Call ``operation`` until it does not fail, and return what it returns.

    Args:
        is_transient: Whether an error may pass; also told how often it was tried again before.
        on_retry: Told of an error and the wait that follows.
        pause: Waits; if it returns true, nobody wants the outcome any more and the error is raised.

    Raises:
        Exception: The error of the last try, or one that will not pass.
    """
    retry = 0
    while True:
        try:
            return operation()
        except Exception as error:
            if retry >= retries.limit or not is_transient(error, retry):
                raise
            retry += 1
            wait_s = random.uniform(0.0, retries.longest_wait_s(retry))
            on_retry(error, wait_s)
            if pause(wait_s):
                raise
