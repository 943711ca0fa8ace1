"""Blocks of code whose sends are gathered: to share their confirms (`Bulk`), to leave together (`Held`), or to be kept
instead of sent (`Collector`).

`app/sender.py` makes the blocks and asks in each send whether it stands in one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from amqptasks.exceptions import BulkError, Unroutable
from amqptasks.results.context import answering_to
from amqptasks.wire.message import EncodedMessage

if TYPE_CHECKING:
    # At run time it comes in with the first send: a program that only defines tasks should not pay for pika.
    from amqptasks.broker.publisher import Sending

#: Waits for the confirms of (task id, task name, sending) and returns the errors by task id.
FinishAll = Callable[[list[tuple[str, str, "Sending"]], "float | None"], dict[str, BaseException]]


class Letter(NamedTuple):
    """A message that is ready to be handed over.

    Attributes:
        submit: Does it.
    """

    task_id: str
    name: str
    submit: Callable[[], Sending]
    is_mandatory: bool


class Bulk:
    """The sends of a ``with app.bulk():`` block, confirmed together at its end."""

    def __init__(self, finish_all: FinishAll) -> None:
        self._finish_all = finish_all
        self._waiting: list[tuple[str, str, Sending]] = []
        self._optional: set[str] = set()
        self._token: Any = None
        #: Nothing joins it any more; coroutines started in it may still see it.
        self.is_ended = False

    @property
    def sendings(self) -> list[Sending]:
        """What was handed over in this block."""
        return [sending for _id, _name, sending in self._waiting]

    def __enter__(self) -> Bulk:
        # A block within a block leaves the waiting to the outer one.
        outer = current_bulk.get()
        if outer is not None and not outer.is_ended:
            return outer
        self._token = current_bulk.set(self)
        return self

    def take(self, letter: Letter) -> None:
        """Hand a message over, and take note of it."""
        self.add(letter.task_id, letter.name, letter.submit(), is_mandatory=letter.is_mandatory)

    def add(self, task_id: str, name: str, sending: Sending, *, is_mandatory: bool) -> None:
        """Take note of a message handed over in this block."""
        self._waiting.append((task_id, name, sending))
        if not is_mandatory:
            self._optional.add(task_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is None:
            return
        current_bulk.reset(self._token)
        self.is_ended = True
        failures = self.finish()
        if error is None:
            self.throw(failures)

    def finish(self, deadline: float | None = None) -> dict[str, BaseException]:
        """Wait for the confirms; returns the errors by task id.

        Args:
            deadline: Until when, in monotonic seconds; as long as the sends' policies say without.
        """
        return {
            task_id: failure
            for task_id, failure in self._finish_all(self._waiting, deadline).items()
            if not (isinstance(failure, Unroutable) and task_id in self._optional)
        }

    def throw(self, failures: dict[str, BaseException]) -> None:
        """Raise the BulkError of these failures, if there are any."""
        if failures:
            names = {task_id: name for task_id, name, _sending in self._waiting}
            listed = "; ".join(f"{names[task_id]}[{task_id}]: {each}" for task_id, each in list(failures.items())[:10])
            more = f"; and {len(failures) - 10} more (see .failures)" if len(failures) > 10 else ""
            raise BulkError(
                f"{len(failures)} of {len(self._waiting)} tasks were not confirmed: {listed}{more}", failures
            )


class Held(Bulk):
    """The sends of a block that leave together at its end, once all of them could be made; none if one could not.

    A block within it leaves both to the outer one.

    Args:
        give_up: Told the id of each call that was made and is not sent.
    """

    def __init__(self, finish_all: FinishAll, give_up: Callable[[str], None]) -> None:
        super().__init__(finish_all)
        self._give_up = give_up
        self._before: list[Callable[[], None]] = []
        self._letters: list[Letter] = []
        self._outer: Bulk | None = None

    def __enter__(self) -> Held:
        outer = current_bulk.get()
        if isinstance(outer, Held) and not outer.is_ended:
            return outer
        self._outer = None if outer is None or outer.is_ended else outer
        self._token = current_bulk.set(self)
        return self

    def before(self, act: Callable[[], None]) -> None:
        """Have something done at the end, before anything of the block is sent."""
        self._before.append(act)

    def take(self, letter: Letter) -> None:
        """Keep a message for the end."""
        self._letters.append(letter)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is None:
            return
        current_bulk.reset(self._token)
        self.is_ended = True
        target = self if self._outer is None else self._outer
        sent = 0
        try:
            if error is None:
                for act in self._before:
                    act()
                for letter in self._letters:
                    target.add(letter.task_id, letter.name, letter.submit(), is_mandatory=letter.is_mandatory)
                    sent += 1
        finally:
            for letter in self._letters[sent:]:
                self._give_up(letter.task_id)
            failures = self.finish()
        self.throw(failures)


current_bulk: ContextVar[Bulk | None] = ContextVar("amqptasks_bulk", default=None)


class Collected(NamedTuple):
    """A message that was made instead of sent, and what must be declared before it can be."""

    message: EncodedMessage
    queues: tuple[str, ...]
    delayed: str | None


class CollectedChord(NamedTuple):
    """A chord that was begun where messages are made instead of sent.

    Attributes:
        manifest, sweep: To be published, and confirmed, before anything of the header.
        header: Everything else, in order; chords in it are `CollectedChord` too.
    """

    collector: str
    expires_s: float
    manifest: Collected
    sweep: Collected
    header: list[Any]


class Collector:
    """Takes the messages of a block instead of the broker; see `Sender.collecting`."""

    def __init__(self, reply_to: str | None) -> None:
        self.reply_to = reply_to
        self.messages: list[Collected | CollectedChord] = []
        self._token: Any = None
        self._answering = answering_to(reply_to)

    def __enter__(self) -> list[Collected | CollectedChord]:
        self._token = current_collector.set(self)
        self._answering.__enter__()
        return self.messages

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answering.__exit__()
        current_collector.reset(self._token)


current_collector: ContextVar[Collector | None] = ContextVar("amqptasks_collector", default=None)
