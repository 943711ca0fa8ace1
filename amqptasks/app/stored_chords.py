"""Starting a chord whose parts the result store counts, as Celery does (``chord_join = "store"``).

What is sent, and what is written to the store before, is what a Celery program sends and writes: each part carries the
whole body as its chord. So workers of both kinds may run the header and the body, if all of them keep their results in
one store. Where a store cannot count, the task ``celery.chord_unlock`` is sent too, which asks for the results again
and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from amqptasks.app.chords import HeaderBlock, address, beginning
from amqptasks.app.gathering import current_collector
from amqptasks.app.sender import Sender
from amqptasks.results.backend import NoResultBackend, ResultBackend
from amqptasks.results.handles import GroupResult
from amqptasks.wire.chord import UNLOCK_TASK

__all__ = ["StoredStart"]

#: How long the header is first left alone where nothing counts, as in Celery. Seconds.
FIRST_LOOK_S: Final = 1.0
#: What a body says of where it goes. Who waits for its header goes there too.
_PLACE: Final = ("queue", "exchange", "routing_key", "exchange_type", "priority")


class StoredStart(HeaderBlock):
    """A block that sends the header of a chord whose parts the result store counts.

    Args:
        header: The results of the header.
        parts: The calls that count; each gets the body.
        body: The call to make with their results; frozen.
        polling: ``interval`` and ``max_retries`` of the task that asks, where the store cannot count.

    Raises:
        NoResultBackend: There is no store.
        BackendStoreError: At the end: the store could not be told of it, and nothing was sent.
        OperationalError: At the end: the broker did not take all of the header; see `ChordStart`.
    """

    def __init__(
        self, sender: Sender, backend: ResultBackend, header: GroupResult, parts: Sequence[Any], body: Any,
        polling: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(sender)
        if not backend.persistent:
            raise NoResultBackend(
                f"chord_join is 'store', but the result backend {backend.as_uri()} keeps no results in which workers "
                "could count the parts of a chord: use a store that all of them share, such as redis://, or let "
                "RabbitMQ count (chord_join = 'broker')"
            )
        self._backend = backend
        self._header = header
        self._size = len(parts)
        self._is_nested = any(isinstance(result, GroupResult) for result in header.results)
        self._polling = polling
        self._body = body
        address(sender, body)
        for call in beginning(body):
            # Celery's routers take None for an answer.
            call["options"] = {key: value for key, value in call.options.items() if value is not None}
        if body.subtask_type != "chord":
            # Celery's workers take the number of results for that of parts else, where the store does not know it.
            body["chord_size"] = self._size
        for part in parts:
            # That of what it stands in if it is a member of a group at the end of a chain.
            part.options["group_id"] = header.id
            part.options["chord"] = body
            if not backend.counts_chords or backend.joins_stored or self._is_nested:
                # Its result is read from the store.
                part.options["ignore_result"] = False

    def _prepare(self) -> None:
        self._is_again = current_collector.get() is not None

    def _collect(self) -> None:
        self._ask()

    def __enter__(self) -> None:
        super().__enter__()
        if self._held is not None:
            self._ask()

    def _collected(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._open()

    def _open(self) -> None:
        """Tell the store what is to be counted."""
        self._backend.begin_chord(
            str(self._header.id), self._size, self._header.as_tuple(), is_nested=self._is_nested,
            is_again=self._is_again,
        )  # fmt: skip

    def _ask(self) -> None:
        """Send what asks for the results, if nothing counts them."""
        if self._backend.counts_chords:
            return
        place: dict[str, Any] = {}
        for call in beginning(self._body)[:1]:
            place = {key: call.options[key] for key in _PLACE if key in call.options}
        said = {**self._polling, "result": [result.as_tuple() for result in self._header.results]}
        if "exchange_type" in place:
            said["_chord_unlock_exchange_type"] = place["exchange_type"]
        options = {**place, "countdown": FIRST_LOOK_S, "ignore_result": True, "add_to_parent": False}
        self._sender.send(UNLOCK_TASK, (self._header.id, self._body), said, options)
