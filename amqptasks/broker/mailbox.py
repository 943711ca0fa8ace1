"""Where remote control meets the broker: its exchanges and queues, and a short session that asks and gathers answers.

The exchanges are Celery's, so that programs of either reach the other's workers. A queue is its owner's alone, and its
name is made up: what an old connection of the same worker has left at the broker is in nobody's way.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.broker.admin import Admin, _turn
from amqptasks.broker.frames import publish_frames
from amqptasks.broker.needs import Need
from amqptasks.broker.topology import BindQueue, DeclareExchange, DeclareQueue, Step
from amqptasks.clock import monotonic
from amqptasks.exceptions import ImproperlyConfigured, OperationalError
from amqptasks.settings import Conf
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.pidbox import reply_exchange, request_exchange

__all__ = ["Mailbox", "MailboxNames", "lock_name", "lock_need", "reply_need", "request_need"]

#: Commands that wait for one worker; of more the oldest are dropped by the broker.
MAX_WAITING: Final = 10_000
#: Answers to one command that are kept.
MAX_REPLIES: Final = 100_000
#: From this version on RabbitMQ has no queues that are neither durable nor exclusive.
NO_TRANSIENT: Final = (4, 3)


@dataclass(frozen=True, slots=True)
class MailboxNames:
    """What the settings say of the queues of remote control: names, and how long they and their messages live."""

    namespace: str
    ttl_s: float | None = 300.0
    expires_s: float | None = 10.0
    exclusive: bool = True
    durable: bool = False

    @classmethod
    def of(cls, conf: Conf) -> MailboxNames:
        """Take them from the settings.

        Raises:
            ImproperlyConfigured: The queues were to be both exclusive and durable.
        """
        exclusive, durable = bool(conf.control_queue_exclusive), bool(conf.control_queue_durable)
        if exclusive and durable:
            raise ImproperlyConfigured(
                "expected control_queue_durable and control_queue_exclusive not to be set both: a queue that belongs "
                "to one connection ends with it. Set control_queue_exclusive = False for a durable one"
            )
        return cls(
            conf.control_exchange, conf.control_queue_ttl, conf.control_queue_expires, exclusive, durable
        )  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        """The arguments of each queue."""
        arguments: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": MAX_WAITING}
        if self.ttl_s is not None:
            arguments["x-message-ttl"] = int(self.ttl_s * 1000)
        if self.expires_s:
            arguments["x-expires"] = max(1, int(self.expires_s * 1000))
        return arguments

    def queue_name(self, hostname: str) -> str:
        """Return the name of a queue for the commands to a worker: a new one each time, unless it is to outlive the
        worker."""
        if self.durable:
            return f"{hostname}.{request_exchange(self.namespace)}.durable"
        return f"{hostname}.{request_exchange(self.namespace)}.{uuid.uuid4().hex[:12]}"

    def queue_need(self, queue: str) -> Need:
        """Return what must be declared before a worker's commands can be consumed."""

        def steps(version: tuple[int, ...] | None) -> Sequence[Step]:
            exchange = request_exchange(self.namespace)
            return (
                DeclareExchange(exchange, "fanout", durable=False), self._queue(queue, version),
                BindQueue(queue, exchange),
            )  # fmt: skip

        return Need(f"queue {queue}", steps)

    def reply_steps(self, queue: str, key: str, version: tuple[int, ...] | None) -> Sequence[Step]:
        """Return what must be declared before answers can come."""
        exchange = reply_exchange(self.namespace)
        return (
            DeclareExchange(request_exchange(self.namespace), "fanout", durable=False),
            DeclareExchange(exchange, "direct", durable=False), self._queue(queue, version),
            BindQueue(queue, exchange, key),
        )  # fmt: skip

    def _queue(self, queue: str, version: tuple[int, ...] | None) -> DeclareQueue:
        durable = self.durable or (not self.exclusive and version is not None and version >= NO_TRANSIENT)
        return DeclareQueue(queue, durable, self.exclusive, not self.durable, self.arguments())


def request_need(namespace: str) -> Need:
    """Return what must be declared before a command can be sent."""
    name = request_exchange(namespace)
    return Need(f"exchange {name}", lambda _version: (DeclareExchange(name, "fanout", durable=False),))


def reply_need(namespace: str) -> Need:
    """Return what must be declared before an answer can be sent."""
    name = reply_exchange(namespace)
    return Need(f"exchange {name}", lambda _version: (DeclareExchange(name, "direct", durable=False),))


def lock_name(namespace: str, hostname: str) -> str:
    """Return the name of the queue that claims a worker's name: the one that Celery's worker of that name would
    consume. Nothing is ever in it."""
    return f"{hostname}.{request_exchange(namespace)}"


def lock_need(namespace: str, hostname: str) -> Need:
    """Return what a worker must be able to declare if no other has its name."""
    name = lock_name(namespace, hostname)

    def steps(_version: tuple[int, ...] | None) -> Sequence[Step]:
        # As Celery declares it, so that its worker is refused for the one reason only.
        return (DeclareQueue(name, False, True, True, {"x-max-length": 0}),)

    return Need(f"queue {name}", steps)


class Mailbox(Admin):
    """A session that sends a command and gathers the answers. Belongs to the thread that made it, as every `Admin`."""

    def __enter__(self) -> Mailbox:
        self.connect()
        return self

    def ask(
        self, names: MailboxNames, request: Callable[[tuple[str, str]], EncodedMessage], timeout_s: float,
        take: Callable[[Any, bytes], bool],
    ) -> None:  # fmt: skip
        """Send a command, and hand the answers over until enough have come, or the time is over.

        Args:
            request: Makes the command, given the exchange and routing key for the answers.
            timeout_s: How long answers are waited for, from when the broker has the command. Seconds.
            take: Gets the properties and the body of each message; returns whether to wait for more.

        Raises:
            OperationalError: The broker could not be asked, or was lost meanwhile.
        """
        key = uuid.uuid4().hex
        exchange = reply_exchange(names.namespace)
        queue = f"{key}.{exchange}"
        self.declare(names.reply_steps(queue, key, self.version))
        inbox: list[tuple[Any, bytes]] = []
        self._consume(queue, inbox)
        self._send(request((exchange, key)))
        loop, deadline, count = self._loop, monotonic() + timeout_s, 0
        assert loop is not None
        while (left_s := deadline - monotonic()) > 0 and count < MAX_REPLIES:
            _turn(loop, lambda: bool(inbox) or self._ended is not None, left_s)
            came = inbox[:]
            del inbox[: len(came)]
            for properties, body in came:
                count += 1
                if not take(properties, body):
                    return
            if self._ended is not None:
                raise OperationalError(f"the connection to {self._label} was lost while answers came: {self._ended}")

    def _consume(self, queue: str, inbox: list[tuple[Any, bytes]]) -> None:
        channel, connection = self._open_channel(), self._connected()

        def on_message(*delivered: Any) -> None:
            inbox.append(delivered[-2:])

        # Small messages come by the short way, large ones by pika's.
        connection.on_deliver[int(channel.channel_number)] = on_message
        self._request(
            "basic.consume",
            lambda channel, then: channel.basic_consume(queue, on_message, auto_ack=True, callback=then),
        )

    def _send(self, message: EncodedMessage) -> None:
        """Publish, and wait until the broker has it: in an alarm it takes nothing, and no answer would mean nothing."""
        channel, connection = self._open_channel(), self._connected()
        confirmed: list[bool] = []
        number = int(channel.channel_number)
        connection.on_confirm[number] = lambda _tag, _multiple, is_ack: confirmed.append(is_ack)
        self._request(
            "confirm.select",
            lambda channel, then: channel.confirm_delivery(
                lambda frame: confirmed.append(frame.method.NAME == "Basic.Ack"), callback=then
            ),
        )
        frame_max = int(connection.params.frame_max or 131072)
        connection.emit(publish_frames(number, message, frame_max, mandatory=False))
        self._await(lambda: bool(confirmed), "basic.publish")
        if not confirmed[0]:
            raise OperationalError(f"the broker {self._label} refused a command")
