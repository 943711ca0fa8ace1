"""Answers commands: the worker's end of remote control."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from amqptasks.broker.confirms import Outgoing
from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.delay_index import DelayIndex
from amqptasks.broker.link import Connection
from amqptasks.broker.mailbox import MailboxNames, reply_need
from amqptasks.exceptions import ContentError, EncodeError, OperationalError
from amqptasks.wire.pidbox import ControlReply, ControlRequest, encode_reply, matches, read_request, reply_exchange
from amqptasks.wire.reprs import printable, short_repr
from amqptasks.wire.serializers import accepted
from amqptasks.worker.control import controlling, describing, inspecting
from amqptasks.worker.control.claim import NameClaim
from amqptasks.worker.control.registry import Later, Panel
from amqptasks.worker.control.state import ControlState
from amqptasks.worker.control.waiting import DelayReader, noting

__all__ = ["ControlService"]

logger = logging.getLogger("amqptasks.worker.control")

#: Commands that the broker sends ahead: a flood of them waits there, and tasks get their turns.
PREFETCH: Final = 10
#: How soon it is tried again to declare the queue of commands, seconds.
DECLARE_AGAIN_S: Final = 60.0
#: Answers on their way at once; further ones are not given.
MAX_REPLIES: Final = 500
#: Bytes of one answer.
MAX_REPLY_BYTES: Final = 15 << 20

# What they register is all there is to them here.
_COMMANDS: Final = (controlling, inspecting)


class ControlService:
    """Consumes commands over the connections it is given, carries them out, and sends the answers. A `Service`.

    Args:
        refuse: Called with the reason if another worker of this name is at work.
    """

    def __init__(self, state: ControlState, refuse: Callable[[str], None]) -> None:
        conf = state.app.conf
        self.state = state
        self._names = MailboxNames.of(conf)
        self._accept = accepted(conf.accept_content)
        self._limits = state.app.limits()
        self._serializer: str = conf.task_serializer
        self._consumer: QueueConsumer | None = None
        self._replies = 0
        self._is_over = False
        #: Whether it was said that commands cannot be answered.
        self._is_told = False
        self._delays: DelayReader | None = None
        self._index: DelayIndex | None = None
        if conf.delay_index:
            state.delays = self._delays = DelayReader(state)
            self._index, state.deliveries.on_postponed, state.settlement.on_delayed = noting(state)
        self._claim = NameClaim(state, self._names, self._serializer, refuse)

    # -- the connection

    def claim(
        self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None, then: Callable[[], None]
    ) -> None:
        """Listen to commands, and call ``then`` when it is known that no other worker has this name."""
        # A new queue for each connection: the old one may be locked by the old connection for a while.
        queue = self._names.queue_name(self.state.hostname)
        need = self._names.queue_need(queue)
        consumer = self._consumer = QueueConsumer(
            self.state.loop, queue, need=need, prefetch=PREFETCH, on_delivery=self._on_delivery, tag_prefix="control"
        )

        def declare() -> None:
            if self._consumer is consumer and not self._is_over:
                declarer.ensure(need.key, need.steps(version), declared)

        def declared(error: OperationalError | None) -> None:
            if self._consumer is not consumer:
                return
            if error is None:
                consumer.up(connection, declarer, version)
                return
            if not self._is_told:
                self._is_told = True
                logger.error(
                    "Remote commands cannot be answered: %s. Give the user the rights, or set "
                    "worker_enable_remote_control to False", error,
                )  # fmt: skip
            self.state.loop.call_later(DECLARE_AGAIN_S, declare)

        declare()
        self._claim.up(declarer, version, queue, then)

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Read notes of delayed calls over this connection too. What else there is to do, `claim` has done."""
        if self._delays is not None:
            self._delays.up(connection, declarer, version)

    def down(self, reason: str) -> None:
        """Forget the connection."""
        self._claim.down()
        if self._delays is not None:
            self._delays.down()
        if self._consumer is not None:
            self._consumer.down(reason)
            self._consumer = None

    def ready(self) -> None:
        """Nothing: commands are answered already."""

    def stopping(self) -> None:
        """Take no more commands, and leave the name to another worker. What was asked is answered."""
        self._is_over = True
        self._claim.release()
        if self._delays is not None:
            self._delays.down()
        if self._consumer is not None:
            self._consumer.stop_consuming()

    def close(self) -> None:
        """Send off the last notes of delayed calls. The queue ends with the connection."""
        if self._index is not None:
            self._index.flush()

    # -- commands

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        if self._is_over:
            return
        properties, app = delivery.properties, self.state.app
        headers = properties.headers if isinstance(properties.headers, dict) else {}
        if self._claim.takes(headers):
            return
        try:
            request = read_request(
                headers, properties.content_type, properties.content_encoding, delivery.body, self._accept,
                self._limits,
            )  # fmt: skip
            app.clock.adjust(request.clock)
            if not matches(request, self.state.hostname) or self._claim.is_own(request):
                return
        except ContentError as error:
            logger.error("Passed over a command that cannot be read: %s", printable(error, 500))
            return
        self._carry_out(request)

    def _carry_out(self, request: ControlRequest) -> None:
        method = printable(request.method, 100)
        logger.debug("pidbox received method %s [reply_to:%s ticket:%s]", method, request.reply_to, request.ticket)
        handler = Panel.data.get(request.method)
        if handler is None:
            logger.error("No such control command: %s", method)
            self._answer(request, {"error": repr(KeyError(request.method))})
            return
        try:
            answer = handler(self.state, **request.arguments)
            if isinstance(answer, Later):
                answer.begin(lambda value: self._answer(request, value))
                return
        except Exception as error:
            logger.error("Control command %s failed: %s", method, short_repr(error), exc_info=not _is_misuse(error))
            answer = {"error": short_repr(error)}
        self._answer(request, answer)

    # -- answers

    def _answer(self, request: ControlRequest, value: Any) -> None:
        state = self.state
        if request.reply_to is None:
            return
        if request.reply_to[0] not in ("", reply_exchange(self._names.namespace)):
            # Any name that somebody makes up would be declared, and stay for good.
            logger.error("No answer goes to exchange %r", printable(request.reply_to[0]))
            return
        if state.confirms.connection is None or self._replies >= MAX_REPLIES:
            logger.warning("The answer to %s is not sent: %s", printable(request.method), self._trouble())
            return
        clock = state.app.clock.forward()
        message = self._encode(ControlReply(request.ticket, {state.hostname: value}, clock), request.reply_to)

        def done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            self._replies -= 1
            if error is not None:
                logger.warning("The answer to %s was not sent: %s", printable(request.method), error)

        self._replies += 1
        needs = (reply_need(self._names.namespace),) if request.reply_to[0] else ()
        # That nobody waits for it any more is no error.
        state.confirms.send(Outgoing(message, needs, done, mandatory=False, is_impatient=True))

    def _trouble(self) -> str:
        if self.state.confirms.connection is None:
            return "there is no connection"
        return f"{self._replies} others are on their way"

    def _encode(self, reply: ControlReply, reply_to: tuple[str, str]) -> Any:
        try:
            message = encode_reply(reply, reply_to, self._serializer)
        except EncodeError:
            message = encode_reply(self._with(reply, describing.plain), reply_to, self._serializer)
        size = len(message.body)
        if size > min(MAX_REPLY_BYTES, self._limits.max_bytes):
            too_large = {"error": f"the answer has {size} bytes, more than anybody reads (task_message_max_bytes)"}
            message = encode_reply(self._with(reply, lambda _value: too_large), reply_to, self._serializer)
        return message

    @staticmethod
    def _with(reply: ControlReply, change: Callable[[Any], Any]) -> ControlReply:
        nodes: Mapping[str, Any] = {name: change(value) for name, value in reply.nodes.items()}
        return ControlReply(reply.ticket, nodes, reply.clock)


def _is_misuse(error: Exception) -> bool:
    return isinstance(error, (TypeError, ValueError, ImportError))
