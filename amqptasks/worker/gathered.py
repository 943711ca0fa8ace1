"""What has been read of a chord: its manifest, and the first end of each of its parts. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from amqptasks.wire.chord import Addition, Manifest, PartEnd

__all__ = ["Gathered"]

#: What a part's message weighs beside its result, roughly, bytes.
_OVERHEAD = 160

#: The place of a part: its index, or that of the part which has added it and what tells it from others.
Place = tuple[int, "str | None"]


class Gathered:
    """Takes the messages of a collector in, in their order, and says what they amount to.

    That order matters where parts are added: each is in the collector before the end of the part that added it, so who
    has read the ends of all that he knows of knows of all.

    Args:
        max_bytes: The most that the results may weigh together: the body's message could not be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.manifest: Manifest | None = None
        self._max_bytes = max_bytes
        self._parts: dict[Place, PartEnd] = {}
        # By the index of the part that has added them, in the order in which it did.
        self._added: dict[int, dict[str, None]] = {}
        self._expected = 0
        self._bytes = 0
        self._last: PartEnd | None = None

    def add(self, message: Manifest | PartEnd | Addition, size: int) -> None:
        """Take a message of so many bytes in. Of two that say the same, and of two manifests, the first counts."""
        if isinstance(message, Manifest):
            if self.manifest is None:
                self.manifest = message
            return
        if isinstance(message, Addition):
            self._expect(message)
            return
        place = message.index, message.added
        if place in self._parts:
            return
        self._bytes += max(1, size - _OVERHEAD - len(message.collector))
        self._last = message
        # What is too much already is only counted.
        self._parts[place] = message if not self.is_too_large else _emptied(message)

    def _expect(self, addition: Addition) -> None:
        keys = self._added.setdefault(addition.index, {})
        if addition.added not in keys:
            keys[addition.added] = None
            self._expected += 1

    @property
    def is_too_large(self) -> bool:
        """Whether the results are more than any message could carry."""
        return self._bytes > self._max_bytes

    @property
    def size(self) -> int:
        """How many parts there are to be; 0 while that is not known."""
        return 0 if self.manifest is None else self.manifest.size + self._expected

    def _places(self) -> Iterator[Place]:
        """Yield the places in the order of the results: those that were added right after the part that added them."""
        for index in range(0 if self.manifest is None else self.manifest.size):
            yield index, None
            for key in self._added.get(index, ()):
                yield index, key

    @property
    def missing(self) -> list[int]:
        """The indexes of which something is not known, in order. That of an added part is its adder's."""
        return [place[0] for place in self._places() if place not in self._parts]

    @property
    def is_complete(self) -> bool:
        """Whether every part has ended."""
        return 0 < self.size <= len(self._parts) and all(place in self._parts for place in self._places())

    def is_overdue(self, now: float) -> bool:
        """Whether the time of the chord is over, by seconds since 1970."""
        return self.manifest is not None and not now < self.manifest.until

    @property
    def values(self) -> list[Any]:
        """The results, in the header's order. Only of what is complete and has not failed."""
        form = None if self.manifest is None else self.manifest.form
        if form is None:
            return [self._parts[place].value for place in self._places()]
        return self._formed(form, itertools.count())

    def _formed(self, form: list[Any], indexes: Iterator[int]) -> list[Any]:
        values: list[Any] = []
        for each in form:
            if each is not None:
                values.append(self._formed(each, indexes))
                continue
            index = next(indexes)
            keys = (None, *self._added.get(index, ()))
            values.extend(self._parts[index, key].value for key in keys)
        return values

    @property
    def failed(self) -> PartEnd | None:
        """The first part, in the header's order, that has ended badly."""
        ends = (self._parts[place] for place in self._places() if place in self._parts)
        return next((end for end in ends if not end.is_success), None)

    @property
    def last(self) -> PartEnd | None:
        """The part that has ended last."""
        return self._last


def _emptied(end: PartEnd) -> PartEnd:
    return PartEnd(end.collector, end.index, end.task_id, end.is_success, None, added=end.added)
