"""What a message asks of the publisher: what must be declared before it, and how long to try.

Apart from the publisher, so that a program which only defines tasks does not import pika.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amqptasks.broker.topology import Step


@dataclass(frozen=True, slots=True)
class Need:
    """What must be declared before a message can be sent: a name to remember it by, and how to get the steps.

    The steps depend on the broker's version, which only an open connection knows.
    """

    key: str
    steps: Callable[[tuple[int, ...] | None], Sequence[Step]]


@dataclass(frozen=True, slots=True)
class PublishPolicy:
    """How long and how often a send is tried. The total time rules; the rest spaces the tries within it.

    Args:
        max_retries: Tries after the first; None for as many as the time allows.
        interval_start_s: The wait before the first retry; each further one grows by ``interval_step_s`` up to
        ``interval_max_s``.
    """

    timeout_s: float = 10.0
    retry: bool = True
    max_retries: int | None = 3
    interval_start_s: float = 0.0
    interval_step_s: float = 0.2
    interval_max_s: float = 1.0
