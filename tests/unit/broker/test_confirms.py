"""Publishing on a loop, over a real connection: every message has exactly one outcome, whatever becomes of others."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from amqptasks.broker.confirms import TIMED_IN_FLIGHT, ConfirmChannel, Interrupted, Outgoing
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Backoff, Link
from amqptasks.broker.loop import Loop
from amqptasks.broker.needs import Need
from amqptasks.broker.parameters import endpoints
from amqptasks.broker.topology import DeclareQueue, Step
from amqptasks.exceptions import (
    BrokerUnavailable,
    ContentError,
    EncodeError,
    NotSent,
    OperationalError,
    TopologyConflict,
    Unroutable,
)
from amqptasks.wire.message import EncodedMessage, Message, encode
from tests.loops import turn, turn_until


class Sender:
    """A channel that publishes over a supervised connection, on a loop that the test turns."""

    def __init__(self, broker_url: str, queue: str) -> None:
        self.loop = Loop()
        self.queue = queue
        self.channel = ConfirmChannel(self.loop)
        self.outcomes: dict[Outgoing, list[object]] = {}
        ends = endpoints([broker_url], heartbeat_s=0, connection_timeout_s=4.0, name="test of confirms")
        self.link = Link(self.loop, ends, on_up=self._up, on_down=self._down, backoff=Backoff(base_s=0.01))
        step = DeclareQueue(queue, durable=False, auto_delete=False, arguments={"x-expires": 60_000})
        self.need = Need(queue, lambda _version: (step,))

    def _up(self, connection: object) -> None:
        self.declarer = Declarer(connection)  # type: ignore[arg-type]
        self.channel.up(connection, self.declarer, self.link.version)  # type: ignore[arg-type]

    def _down(self, reason: str) -> None:
        self.channel.down(reason)
        self.declarer.fail(reason)

    def out(self, exchange: str = "", key: str | None = None, *needs: Need, impatient: bool = False) -> Outgoing:
        """Make a message that notes its outcomes."""
        message = encode(Message(b"[]", correlation_id=f"id-{len(self.outcomes)}"), exchange, key or self.queue)
        return self.of(message, *needs, impatient=impatient)

    def of(self, message: EncodedMessage, *needs: Need, impatient: bool = False) -> Outgoing:
        out = Outgoing(message, needs, self._done, is_impatient=impatient)
        self.outcomes[out] = []
        return out

    def _done(self, out: Outgoing, error: OperationalError | ContentError | None) -> None:
        self.outcomes[out].append(error)

    def send(self, *outs: Outgoing) -> None:
        for out in outs:
            self.channel.send(out)

    def finish(self) -> None:
        """Turn until every message has had its outcome, and a little longer: there must be no second one."""
        turn_until(self.loop, lambda: all(self.outcomes.values()))
        for _ in range(3):
            turn(self.loop)
        assert {len(each) for each in self.outcomes.values()} == {1}
        assert self.channel.waiting == 0

    def outcome(self, out: Outgoing) -> object:
        (found,) = self.outcomes[out]
        return found

    def close(self) -> None:
        closed: list[bool] = []
        self.link.stop(lambda: closed.append(True))
        turn_until(self.loop, lambda: closed)
        self.loop.close()


@pytest.fixture
def sender(broker_url: str, queue_name: str) -> Iterator[Sender]:
    sender = Sender(broker_url, queue_name)
    sender.link.start()
    yield sender
    sender.close()


def test_what_is_sent_before_there_is_a_connection_is_sent_then(sender: Sender) -> None:
    # Given messages that are sent before the loop has turned at all / When it turns / Then each is confirmed
    outs = [sender.out("", None, sender.need) for _ in range(50)]
    sender.send(*outs)
    assert sender.channel.waiting == 50
    sender.finish()
    assert {sender.outcome(out) for out in outs} == {None}


def test_delayed_messages_are_addressed_when_the_broker_is_about_to_take_them_in(sender: Sender) -> None:
    # Given many messages whose address is made when they are written, and some others behind them
    most: list[int] = []

    def address() -> tuple[str, str]:
        most.append(len(sender.channel._unconfirmed))
        return "", sender.queue

    outs = [sender.out("", None, sender.need) for _ in range(3 * TIMED_IN_FLIGHT)]
    for out in outs:
        out.message.readdress = address
    outs += [sender.out("", None, sender.need) for _ in range(50)]
    # When they are sent together
    sender.send(*outs)
    sender.finish()
    # Then each was addressed once, with few others under way in front of it, and all are confirmed
    assert len(most) == 3 * TIMED_IN_FLIGHT and max(most) < TIMED_IN_FLIGHT
    assert {sender.outcome(out) for out in outs} == {None}


def test_each_message_has_its_own_outcome_in_any_mixture(sender: Sender) -> None:
    # Given a few hundred messages of every kind, mixed
    def unroutable() -> Outgoing:
        return sender.out("amq.topic", "nowhere")

    def refused() -> Outgoing:
        return sender.out("no-such-exchange", "key")

    def oversized() -> Outgoing:
        headers = {"x": "x" * 200_000}
        return sender.of(encode(Message(b"", headers=headers), "", sender.queue), sender.need)

    def good() -> Outgoing:
        return sender.out("", None, sender.need)

    kinds: list[tuple[Callable[[], Outgoing], type | None]] = [(good, None)] * 50
    kinds += [(unroutable, Unroutable), (refused, NotSent), (oversized, EncodeError)] * 3
    random.shuffle(kinds)
    made = [(make(), expected) for make, expected in kinds]
    # When they are sent together, so that the broker closes the channel on some
    sender.send(*(out for out, _expected in made))
    sender.finish()
    # Then each has the outcome of its own kind, once
    for out, expected in made:
        found = sender.outcome(out)
        assert (found is None) if expected is None else type(found) is expected


def test_a_connection_lost_among_suspects_answers_them(sender: Sender) -> None:
    # Given a connection that is lost in the moment when the broker has closed the channel on one of several messages
    sender.send(sender.out("", None, sender.need))
    sender.finish()
    logger = logging.getLogger("amqptasks.broker.confirms")
    seen: list[str] = []

    def drop(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        sender.link.drop("by a test")
        return True

    logger.addFilter(drop)
    # When they are sent
    sender.send(*(sender.out() for _ in range(3)), sender.out("no-such-exchange"), *(sender.out() for _ in range(3)))
    turn_until(sender.loop, lambda: seen)
    logger.removeFilter(drop)
    # Then none of them is forgotten: each is told that it may have been sent
    sender.finish()
    told = [each[0] for each in list(sender.outcomes.values())[1:]]
    assert len(told) == 7
    for error in told:
        assert error is None or isinstance(error, NotSent) or (isinstance(error, Interrupted) and error.written)
    assert any(isinstance(error, Interrupted) for error in told)


def test_a_connection_lost_while_declaring_loses_nothing(sender: Sender) -> None:
    # Given a message whose queue is just being declared / When the connection is lost in that moment
    asked: list[int] = []

    def steps(version: tuple[int, ...] | None) -> Sequence[Step]:
        asked.append(sender.channel.waiting)
        if len(asked) == 1:
            sender.loop.at_turn_end(lambda: sender.link.drop("by a test"))
        return sender.need.steps(version)

    out = sender.out("", None, Need(sender.queue, steps))
    sender.send(out)
    # Then it goes over the next one; until then it counts as waiting
    sender.finish()
    assert sender.outcome(out) is None
    assert asked == [1, 1]


def test_a_queue_that_cannot_be_declared_fails_its_messages_alone(sender: Sender) -> None:
    step = DeclareQueue(sender.queue, durable=True, arguments={})
    conflicting = Need("the same otherwise", lambda _version: (step,))
    forbidden = Need("forbidden", lambda _version: (DeclareQueue("amq.mine"),))
    good, conflict, refused = (sender.out("", None, need) for need in (sender.need, conflicting, forbidden))
    sender.send(good, conflict, refused)
    sender.finish()
    assert sender.outcome(good) is None
    assert type(sender.outcome(conflict)) is TopologyConflict
    assert type(sender.outcome(refused)) is NotSent and "403" in str(sender.outcome(refused))


def test_equal_messages_that_are_returned_are_told_apart_by_their_place(sender: Sender) -> None:
    # Given several messages alike in everything the broker returns / When none has a queue / Then each is told so
    message = encode(Message(b"", correlation_id="same"), "amq.topic", "nowhere")
    outs = [sender.of(message) for _ in range(5)]
    sender.send(*outs)
    sender.finish()
    assert {type(sender.outcome(out)) for out in outs} == {Unroutable}


def test_only_one_may_decide_the_fate_of_a_message(sender: Sender) -> None:
    # Given a message that its sender has given up / When the channel comes to it / Then it is neither sent nor told
    out, other = sender.out("", None, sender.need), sender.out("", None, sender.need)
    assert out.claim() and not out.claim()
    sender.send(out, other)
    turn_until(sender.loop, lambda: sender.outcomes[other])
    assert sender.outcomes.pop(out) == []
    assert out.is_claimed and not out.was_written
    sender.finish()
    # And when it is given back, it can be sent
    out.release()
    sender.outcomes[out] = []
    sender.send(out)
    sender.finish()


def test_the_impatient_and_the_given_up_do_not_wait_for_a_broker(broker_url: str, queue_name: str) -> None:
    # Given a channel without a connection / When there is none to be had / Then who would try once only is told
    sender = Sender(broker_url, queue_name)
    impatient, patient, given_up = sender.out(impatient=True), sender.out(), sender.out()
    sender.send(impatient, patient, given_up)
    sender.channel.fail_impatient(BrokerUnavailable("nobody there"))
    assert type(sender.outcome(impatient)) is BrokerUnavailable
    assert given_up.claim()
    sender.channel.forget_claimed()
    assert sender.channel.waiting == 1
    assert sender.outcomes[patient] == sender.outcomes[given_up] == []
    sender.close()
