"""What has been read of a chord: its manifest, and the first end of each of its parts. Pure."""

from __future__ import annotations

from typing import Any

from amqptasks.wire.chord import Manifest, PartEnd

__all__ = ["Gathered"]

#: What a part's message weighs beside its result, roughly, bytes.
_OVERHEAD = 160


class Gathered:
    """Takes the messages of a collector in, in any order, and says what they amount to.

    Args:
        max_bytes: The most that the results may weigh together: the body's message could not be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.manifest: Manifest | None = None
        self._max_bytes = max_bytes
        self._parts: dict[int, PartEnd] = {}
        self._bytes = 0
        self._last: PartEnd | None = None

    def add(self, message: Manifest | PartEnd, size: int) -> None:
        """Take a message of so many bytes in. Of two that say the same, and of two manifests, the first counts."""
        if isinstance(message, Manifest):
            if self.manifest is None:
                self.manifest = message
            return
        if message.index in self._parts:
            return
        self._bytes += max(1, size - _OVERHEAD - len(message.collector))
        self._last = message
        # What is too much already is only counted.
        self._parts[message.index] = message if not self.is_too_large else _emptied(message)

    @property
    def is_too_large(self) -> bool:
        """Whether the results are more than any message could carry."""
        return self._bytes > self._max_bytes

    @property
    def size(self) -> int:
        """How many parts there are to be; 0 while that is not known."""
        return 0 if self.manifest is None else self.manifest.size

    @property
    def missing(self) -> list[int]:
        """The indexes of which nothing is known, in order."""
        return [index for index in range(self.size) if index not in self._parts]

    @property
    def is_complete(self) -> bool:
        """Whether every part has ended."""
        size = self.size
        return 0 < size <= len(self._parts) and all(index in self._parts for index in range(size))

    def is_overdue(self, now: float) -> bool:
        """Whether the time of the chord is over, by seconds since 1970."""
        return self.manifest is not None and not now < self.manifest.until

    @property
    def values(self) -> list[Any]:
        """The results, in the header's order. Only of what is complete and has not failed."""
        return [self._parts[index].value for index in range(self.size)]

    @property
    def failed(self) -> PartEnd | None:
        """The first part, in the header's order, that has ended badly."""
        ends = (self._parts[index] for index in range(self.size) if index in self._parts)
        return next((end for end in ends if not end.is_success), None)

    @property
    def last(self) -> PartEnd | None:
        """The part that has ended last."""
        return self._last


def _emptied(end: PartEnd) -> PartEnd:
    return PartEnd(end.collector, end.index, end.task_id, end.is_success, None)
