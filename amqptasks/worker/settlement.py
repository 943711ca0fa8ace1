"""Settling deliveries. The order is law: publish what follows, wait for its confirms, then ack.

A crash between two steps repeats work and loses none. What cannot be sent for lack of a connection waits for the next
one; nothing is given up for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from amqptasks.app.sender import Sender
from amqptasks.broker.confirms import ConfirmChannel, Interrupted, Outgoing
from amqptasks.broker.loop import Loop
from amqptasks.broker.needs import Need
from amqptasks.broker.topology import dead_queue
from amqptasks.entities import Broadcast
from amqptasks.exceptions import EncodeError, OperationalError, QueueNotFound, TopologyConflict, Unroutable
from amqptasks.results.kept import kept_need
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.reprs import printable
from amqptasks.worker import dead_letters
from amqptasks.worker.outcome import FollowUp, Keep, Next, Part
from amqptasks.worker.request import Request
from amqptasks.worker.storer import Storer

if TYPE_CHECKING:
    from amqptasks.worker.chord_settlement import ChordSettlement

logger = logging.getLogger(__name__)

Then = Callable[[], None]

#: With more messages than this waiting for the broker, states that are not final are left out.
MAX_WAITING_FOR_STATES = 10_000


class Settlement:
    """Publishes for the worker and tells when everything of one delivery is confirmed. Belongs to the loop's thread.

    Args:
        storer: Stores the results that are not messages.
        on_change: Called when the number of unsettled deliveries has changed, so that the worker can pause or go on.
    """

    def __init__(
        self, loop: Loop, channel: ConfirmChannel, sender: Sender, storer: Storer, hostname: str,
        on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._chords: ChordSettlement | None = None
        self._channel = channel
        self._storer = storer
        self._sender = sender
        self._hostname = hostname
        self._on_change = on_change
        self._dead_needs: dict[str, Need] = {}
        #: Called with each message that is sent into the delay ladder.
        self.on_delayed: Callable[[FollowUp], None] = lambda follow_up: None
        #: Queues of dead letters that were found with other arguments, and told of.
        self._conflicts: set[str] = set()
        #: Deliveries whose messages are not all confirmed.
        self.unsettled = 0
        #: How many dead letters there were, by reason.
        self.buried: dict[str, int] = {}

    def settle(self, request: Request, follow_ups: tuple[Next, ...], then: Then, *, is_lost: bool = False) -> None:
        """Publish and store what follows a task, then call ``then``, once, when all of it is confirmed.

        What cannot be sent or stored takes the message to the dead letters first, unless ``then`` does (``is_lost``).
        """
        if not follow_ups:
            then()
            return
        self.unsettled += 1
        self._on_change()
        request.pending = len(follow_ups)

        def one_done(failure: str | None) -> None:
            request.pending -= 1
            if failure is not None:
                failures.append(failure)
            if request.pending == 0:
                self.unsettled -= 1
                if failures and not is_lost:
                    self._bury_unsent(request, "; ".join(failures), then)
                else:
                    then()
                self._on_change()

        failures: list[str] = []
        for each in follow_ups:
            self._settle_one(request, each, one_done)

    def _bury_unsent(self, request: Request, why: str, then: Then) -> None:
        # Of what follows may hang a chord, whose part then never ends.
        from amqptasks.worker.parts import unsent

        self.settle(
            request, unsent(self._sender.conf, request, why),
            lambda: self.bury(request, dead_letters.UNSENDABLE, why, then), is_lost=True,
        )  # fmt: skip

    def _settle_one(self, request: Request, each: Next, done: Callable[[str | None], None]) -> None:
        if isinstance(each, FollowUp):
            self._send_follow_up(request, each, done)
        elif isinstance(each, Keep):
            self._storer.store(each.record, done)
        elif isinstance(each, Part):
            self._for_chords().end_part(request, each, done)
        else:
            self._for_chords().begin(request, each, done)

    def count_collector(self, request: Request, done: Callable[[int | None], None]) -> None:
        """Count what is in the collector that a call to join a chord names; None if there is none. What cannot be said
        is 1: whoever looks closer will see."""
        from amqptasks.worker.parts import body_of

        body = body_of(self._sender.conf, request)
        self._for_chords().count(body.args[0] if body is not None and body.args else None, done)

    def _for_chords(self) -> ChordSettlement:
        chords = self._chords
        if chords is None:
            # With the first of them: most workers never see one.
            from amqptasks.worker.chord_settlement import ChordSettlement

            chords = self._chords = ChordSettlement(
                self._loop, self._channel, self._sender, self.publish, self._settle_one,
                lambda out, immediately: self._again(out, immediately=immediately),
            )  # fmt: skip
        return chords

    def settle_dead(self, request: Request, follow_ups: tuple[Next, ...], detail: str, then: Then) -> None:
        """Settle a task that failed, and whose message is to be kept among the dead letters for that."""
        self.settle(
            request, follow_ups, lambda: self.bury(request, dead_letters.FAILED, detail, then), is_lost=True
        )  # fmt: skip

    def send_state(self, request: Request, follow_up: FollowUp) -> None:
        """Publish a state that is not the last; nothing waits for it, and under pressure it is left out."""
        if self._channel.waiting > MAX_WAITING_FOR_STATES:
            logger.debug("Left out a state of task %s: too much waits for the broker", request.id)
            return
        self._send_follow_up(request, follow_up, lambda _failure: None)

    def bury(self, request: Request, reason: str, detail: str, then: Then) -> None:
        """Copy a delivery to its queue's dead letters, confirmed, then call ``then``."""
        self.buried[reason] = self.buried.get(reason, 0) + 1
        queue = request.delivery.consumer.queue
        need = self._dead_need(queue)
        dead_queue = need.key.partition(" ")[2]
        message = dead_letters.dead_letter(request.delivery, queue, dead_queue, reason, detail, self._hostname)
        logger.error(
            "Moved a message to %s: %s, %s (task %s[%s])",
            dead_queue, reason, printable(detail, 300), printable(request.task_name, 80), printable(request.id, 64),
        )  # fmt: skip
        what = f"the dead letter of task {printable(request.id, 64)}"
        self.publish(message, (need,), what, then, despite_conflict=True)

    def publish(
        self, message: EncodedMessage, needs: tuple[Need, ...], what: str, then: Then, *, despite_conflict: bool = False
    ) -> None:
        """Publish a message that must get through, for as long as that takes, then call ``then``.

        Args:
            despite_conflict: Put it into its queue even if that was declared with other arguments.
        """
        self.unsettled += 1
        self._on_change()

        def on_done(out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if error is None:
                self.unsettled -= 1
                then()
                self._on_change()
                return
            if despite_conflict and isinstance(error, TopologyConflict):
                # A limit was changed after the queue was made. Better there than nowhere; and it says so once.
                if message.routing_key not in self._conflicts:
                    self._conflicts.add(message.routing_key)
                    logger.error("%s\nUntil then dead letters are put into it as it is.", error)
                out.needs = ()
                self._again(out, immediately=True)
                return
            if not out.needs and isinstance(error, Unroutable):
                # The queue it was not to declare has gone meanwhile.
                out.needs = needs
            if not isinstance(error, Interrupted):
                # Without this message the original must not be acked: keep both, and keep trying, slowly.
                logger.error("Cannot send %s: %s; trying again", what, error)
            self._again(out, immediately=isinstance(error, Interrupted) and error.written)

        self._channel.send(Outgoing(message, needs, on_done))

    def _send_follow_up(self, request: Request, follow_up: FollowUp, done: Callable[[str | None], None]) -> None:
        try:
            needs = self._needs(follow_up)
        except QueueNotFound as error:
            done(str(error))
            return

        def on_done(out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if error is None:
                done(None)
            elif isinstance(error, Interrupted):
                self._again(out, immediately=error.written)
            elif follow_up.is_kept and out.needs and isinstance(error, TopologyConflict):
                # It was declared where result_expires is another: it is there, and that is enough.
                out.needs = ()
                self._again(out, immediately=True)
            elif follow_up.is_answer and isinstance(error, Unroutable):
                logger.debug("Nobody waits for the result of task %s any more", request.id)
                done(None)
            elif follow_up.is_answer:
                # Its caller learns nothing, but the work is done: burying the task would only invite a second run.
                logger.error("The result of task %s cannot be sent: %s", request.id, error)
                done(None)
            else:
                logger.error("What follows task %s cannot be sent: %s", request.id, error)
                done(str(error))

        self._channel.send(Outgoing(follow_up.message, needs, on_done))

    def _again(self, out: Outgoing, *, immediately: bool) -> None:
        out.release()
        out.returned = None
        if immediately:
            self._channel.send(out)
        else:
            self._channel.send_later(out, 1.0)

    def _needs(self, follow_up: FollowUp) -> tuple[Need, ...]:
        needs = tuple(self._sender.sending_need(self._sender.routing.queue(name)) for name in follow_up.queues)
        if follow_up.delayed is not None:
            needs += self._sender.delay_needs(follow_up.delayed)
            self.on_delayed(follow_up)
        if follow_up.is_kept:
            needs += (kept_need(follow_up.message.routing_key, self._sender.conf.result_expires),)
        return needs

    def _dead_need(self, consumed: str) -> Need:
        queue = consumed
        need = self._dead_needs.get(consumed)
        if need is None:
            conf = self._sender.conf
            suffix = conf.task_dead_letter_suffix
            declared = self._sender.routing.queues.get(queue)
            if isinstance(declared, Broadcast):
                # The name of its queue ends with this process.
                queue, declared = declared.title, None
            need = Need(
                f"queue {queue}{suffix}",
                lambda version: (dead_queue(conf, declared or queue, version),),
            )
            self._dead_needs[consumed] = need
        return need
