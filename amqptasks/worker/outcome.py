"""How a run of a task ended, as it travels from a child to its parent.

Whatever must follow (callbacks, the next element of a chain, the result's message) is already encoded: the parent only
publishes it, waits for the confirms, and acks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.app.gathering import Collected, CollectedChord
from amqptasks.results.record import ResultRecord
from amqptasks.wire.message import EncodedMessage

#: Kinds of frames from child to parent: the first item of each.
OUTCOME: Final = 0
MESSAGE: Final = 1
#: The child begins nothing any more. Its number is 0, which no task has.
RETIRED: Final = 2

SUCCEEDED: Final = 0
FAILED: Final = 1
RETRYING: Final = 2
REJECTED: Final = 3
IGNORED: Final = 4
#: The message could not be read or is no valid call: to the dead letters with it.
UNREADABLE: Final = 5
#: It ran, and its result cannot be stored: to the dead letters, rather than out of the world.
UNSTORED: Final = 6


@dataclass(slots=True)
class FollowUp:
    """A message to publish before the delivery is acked.

    Attributes:
        queues: Names of the queues that must be declared first.
        delayed: The queue it waits for in the delay ladder, if it is delayed.
        is_answer: It goes to a caller's reply queue; a caller that has gone is no error.
        is_kept: It goes to the queue that keeps the states of its task.
    """

    message: EncodedMessage
    queues: tuple[str, ...] = ()
    delayed: str | None = None
    is_answer: bool = False
    is_kept: bool = False

    def to_plain(self) -> list[Any]:
        """Return what crosses the socket."""
        message = self.message
        return [
            message.exchange, message.routing_key, message.properties, message.body, message.correlation_id,
            list(self.queues), self.delayed, self.is_answer, self.is_kept,
        ]  # fmt: skip

    @classmethod
    def from_plain(cls, plain: Any) -> FollowUp:
        """Read what crossed the socket."""
        exchange, routing_key, properties, body, correlation_id, queues, delayed, is_answer, is_kept = plain
        return cls(
            EncodedMessage(exchange, routing_key, properties, body, correlation_id), tuple(queues), delayed, is_answer,
            is_kept,
        )  # fmt: skip


@dataclass(slots=True)
class Told:
    """An event of a running task's own.

    Attributes:
        type: Its type, such as ``task-halfway``.
        content_type, body: Its fields, serialized.
    """

    type: str
    content_type: str
    body: bytes

    def to_plain(self) -> list[Any]:
        """Return what crosses the socket."""
        return [self.type, self.content_type, self.body]


def said_from_plain(plain: Any) -> FollowUp | Told:
    """Read what a running task has said. Its kinds differ in length."""
    return Told(*plain) if len(plain) == 3 else FollowUp.from_plain(plain)


@dataclass(slots=True)
class Keep:
    """A result to store before the delivery is acked. Only the parent makes them: children store their own."""

    record: ResultRecord

    def to_plain(self) -> list[Any]:
        """Refuse."""
        raise TypeError("a result that is to be stored does not travel: who runs a task stores its result")


@dataclass(slots=True)
class Part:
    """The end of a chord's part, for its collector.

    Attributes:
        message: For the collector, which is there unless the chord is over.
        size: How many parts the chord has; 0 if that is not known.
    """

    message: EncodedMessage
    size: int

    def to_plain(self) -> list[Any]:
        """Return what crosses the socket."""
        message = self.message
        return [message.routing_key, message.properties, message.body, message.correlation_id, self.size]


@dataclass(slots=True)
class Opening:
    """A chord that begins.

    Attributes:
        first: The manifest and the sweep: confirmed before anything of the header is published.
        header: All else.
    """

    collector: str
    expires_s: float
    first: tuple[FollowUp, ...]
    header: tuple[Next, ...]

    def to_plain(self) -> list[Any]:
        """Return what crosses the socket."""
        first, header = ([each.to_plain() for each in some] for some in (self.first, self.header))
        return [self.collector, self.expires_s, first, header]


#: One thing that must be done before the delivery is acked.
Next = FollowUp | Keep | Part | Opening


def made(collected: Iterable[Collected | CollectedChord]) -> tuple[FollowUp | Opening, ...]:
    """Return what was collected in place of sending it, as what is to follow."""
    return tuple(FollowUp(*each) if isinstance(each, Collected) else _opening(each) for each in collected)


def _opening(chord: CollectedChord) -> Opening:
    first = (FollowUp(*chord.manifest), FollowUp(*chord.sweep))
    return Opening(chord.collector, chord.expires_s, first, made(chord.header))


def next_from_plain(plain: Any) -> Next:
    """Read what crossed the socket. Its kinds differ in length."""
    if len(plain) == 9:
        return FollowUp.from_plain(plain)
    if len(plain) == 5:
        collector, properties, body, correlation_id, size = plain
        return Part(EncodedMessage("", collector, properties, body, correlation_id), size)
    collector, expires_s, first, header = plain
    return Opening(
        collector, expires_s, tuple(FollowUp.from_plain(each) for each in first),
        tuple(next_from_plain(each) for each in header),
    )  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """The end of one run.

    Attributes:
        runtime_s: How long the task itself ran.
        reason: For REJECTED, UNREADABLE and UNSTORED, why. For FAILED the error, if its message is to be among the
            dead letters.
        requeue: For REJECTED, back into its queue rather than to the dead letters.
        told: What an event tells of it, where that was asked for: the result, or the error and its traceback, as texts.
    """

    kind: int
    runtime_s: float = 0.0
    follow_ups: tuple[Next, ...] = ()
    reason: str = ""
    requeue: bool = False
    told: Sequence[str] | None = None

    def to_frame(self, number: int) -> list[Any]:
        """Return the frame that reports it. Most runs have nothing to follow and no reason: those send four items."""
        if not self.follow_ups and not self.reason and self.told is None:
            return [OUTCOME, number, self.kind, self.runtime_s]
        follow_ups = [each.to_plain() for each in self.follow_ups]
        return [OUTCOME, number, self.kind, self.runtime_s, follow_ups, self.reason, self.requeue, self.told]

    @classmethod
    def from_frame(cls, frame: Any) -> Outcome:
        """Read the frame."""
        if len(frame) == 4:
            return cls(frame[2], frame[3])
        follow_ups = tuple(next_from_plain(each) for each in frame[4])
        return cls(frame[2], frame[3], follow_ups, frame[5], frame[6], frame[7])
