"""What settling means for chords: a part's end is told to its collector and counted, a chord is begun in order.

Imported with the first chord that a worker has to do with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from amqptasks.app.chords import poke
from amqptasks.app.sender import Sender
from amqptasks.broker.chord_queues import collector_need
from amqptasks.broker.confirms import ConfirmChannel, Interrupted, Outgoing
from amqptasks.broker.counting import QueueCounter
from amqptasks.broker.loop import Loop
from amqptasks.broker.needs import Need
from amqptasks.exceptions import EncodeError, OperationalError, Unroutable
from amqptasks.wire.chord import is_collector
from amqptasks.wire.message import EncodedMessage
from amqptasks.worker.outcome import Next, Opening, Part

logger = logging.getLogger(__name__)

#: How many collectors are remembered that were poked.
MAX_REMEMBERED = 1000

#: Told once: None, or why it could not be done.
Done = Callable[["str | None"], None]
#: Publishes a message for as long as that takes: the message, what it needs, what it is, what to do then.
Publish = Callable[[EncodedMessage, "tuple[Need, ...]", str, Callable[[], None]], None]


class ChordSettlement:
    """Settles parts and beginnings of chords. Belongs to the loop's thread.

    Args:
        publish: Publishes what must get through.
        settle: Does one thing that follows a task.
        again: Sends a message once more.
    """

    def __init__(
        self, loop: Loop, channel: ConfirmChannel, sender: Sender, publish: Publish,
        settle: Callable[[Any, Next, Done], None], again: Callable[[Outgoing, bool], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._channel = channel
        self._sender = sender
        self._publish = publish
        self._settle = settle
        self._again = again
        self._counter = QueueCounter(loop, lambda: channel.connection)
        # Collectors that are to be poked at the end of the turn, and who waits for that.
        self._poking: dict[str, list[Done]] = {}
        # How many messages the collectors had that were poked last.
        self._poked: dict[str, int] = {}

    def count(self, collector: Any, done: Callable[[int | None], None]) -> None:
        """Count what is in a collector; None if there is none, 1 if this cannot be one."""
        if is_collector(collector):
            self._counter.count(collector, done)
        else:
            done(1)

    # -- parts

    def end_part(self, request: Any, part: Part, done: Done) -> None:
        """Tell a collector of a part's end; once it has that, count, and ask for the join if it is the last."""
        collector = part.message.routing_key

        def on_done(out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if error is None:
                self._counter.count(collector, counted)
            elif isinstance(error, Unroutable):
                logger.debug("The chord of task %s is over", request.id)
                done(None)
            elif isinstance(error, Interrupted):
                self._again(out, error.written)
            else:
                logger.error("The end of task %s cannot be told to its chord: %s", request.id, error)
                done(str(error))

        def counted(count: int | None) -> None:
            # One message more than parts: the manifest. One that comes again makes the count too large, never too
            # small; then who joins finds that something is missing, and leaves it to the next.
            if count is not None and (not part.size or count > part.size) and self._is_news(collector, count):
                self._poke(collector, done)
            else:
                done(None)

        self._channel.send(Outgoing(part.message, (), on_done))

    def _is_news(self, collector: str, count: int) -> bool:
        """Whether nobody was called yet to join what this is the number of. If somebody was, he finds it all."""
        before = self._poked.pop(collector, None)
        self._poked[collector] = count
        if len(self._poked) > MAX_REMEMBERED:
            del self._poked[next(iter(self._poked))]
        return before != count

    def _poke(self, collector: str, done: Done) -> None:
        waiting = self._poking.get(collector)
        if waiting is not None:
            waiting.append(done)
            return
        self._poking[collector] = [done]
        self._loop.at_turn_end(lambda: self._publish_poke(collector))

    def _publish_poke(self, collector: str) -> None:
        # Whoever comes after this needs another one: this one may be read before that part's end is there.
        waiting = self._poking.pop(collector)
        call = poke(self._sender, collector)
        needs = tuple(self._sender.need(self._sender.routing.queue(name)) for name in call.queues)

        def poked() -> None:
            for done in waiting:
                done(None)

        self._publish(call.message, needs, f"the call that joins {collector}", poked)

    # -- beginnings

    def begin(self, request: Any, opening: Opening, done: Done) -> None:
        """Publish a chord's manifest and sweep, and once those are confirmed its header."""
        failures: list[str] = []
        left = len(opening.first)

        def first_done(failure: str | None) -> None:
            nonlocal left
            left -= 1
            if failure is not None:
                failures.append(failure)
            if left == 0:
                if failures or not opening.header:
                    done("; ".join(failures) or None)
                else:
                    self._send_header(request, opening, done)

        manifest, sweep = opening.first
        self._send_manifest(request, opening, manifest.queues, first_done)
        self._settle(request, sweep, first_done)

    def _send_manifest(self, request: Any, opening: Opening, queues: tuple[str, ...], done: Done) -> None:
        sender = self._sender
        needs: tuple[Need, ...] = (collector_need(opening.collector, opening.expires_s),)
        needs += tuple(sender.sending_need(sender.routing.queue(name)) for name in queues)

        def on_done(out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if isinstance(error, Interrupted):
                self._again(out, error.written)
                return
            if error is not None:
                logger.error("The chord that follows task %s cannot begin: %s", request.id, error)
            done(None if error is None else str(error))

        self._channel.send(Outgoing(opening.first[0].message, needs, on_done))

    def _send_header(self, request: Any, opening: Opening, done: Done) -> None:
        failures: list[str] = []
        left = len(opening.header)

        def one_done(failure: str | None) -> None:
            nonlocal left
            left -= 1
            if failure is not None:
                failures.append(failure)
            if left == 0:
                done("; ".join(failures) or None)

        for each in opening.header:
            self._settle(request, each, one_done)
