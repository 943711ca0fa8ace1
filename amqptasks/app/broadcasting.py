"""Commands to workers, and their answers: what `app.control` and its ``inspect`` are made of."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from amqptasks.app.options import policy_of
from amqptasks.exceptions import ContentError, Unroutable
from amqptasks.wire.pidbox import (
    GLOB,
    ControlReply,
    ControlRequest,
    encode_request,
    name_matches,
    read_reply,
)
from amqptasks.wire.revocation import MAX_DESTINATIONS
from amqptasks.wire.serializers import accepted

__all__ = ["Broadcaster", "destinations"]

logger = logging.getLogger(__name__)

#: How long answers are waited for where the caller says no time, seconds. Celery waits for ever.
LONGEST_WAIT_S: Final = 60.0


class ControlledApp(Protocol):
    """What control needs of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""

    @property
    def publisher(self) -> Any:
        """The process's publisher."""

    @property
    def clock(self) -> Any:
        """The logical clock."""

    def endpoints(self, purpose: str, *, reads: bool = False) -> Any:
        """The brokers to connect to."""

    def limits(self) -> Any:
        """The limits on what is decoded."""

    @property
    def sender(self) -> Any:
        """The door out, which knows the queues."""


class Broadcaster:
    """Sends commands, and gathers answers over a connection of its own for each. Safe from any thread."""

    def __init__(self, app: ControlledApp) -> None:
        self._app = app

    def cast(self, request: ControlRequest) -> None:
        """Send a command that nobody is to answer. That no worker listens is no error.

        Raises:
            NotSent, MaybeSent: The broker does not have it, or may not.
        """
        from amqptasks.broker.mailbox import request_need

        conf = self._app.conf
        namespace = conf.control_exchange
        message = encode_request(request, namespace, conf.task_serializer)
        try:
            self._app.publisher.publish(message, (request_need(namespace),), policy_of(conf))
        except Unroutable:
            logger.debug("No worker listens to %s", request.method)

    def call(
        self, request: ControlRequest, timeout_s: float | None, limit: int | None,
        on_reply: Callable[[dict[str, Any]], Any] | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Send a command and return the answers, each ``{worker: answer}``.

        Args:
            timeout_s: How long to wait for them, in all.
            limit: How many to wait for at most; None: as many as workers are named, or all that come.
            on_reply: Called with each as it comes.

        Raises:
            OperationalError: The broker could not be asked, or was lost meanwhile.
        """
        from amqptasks.broker.mailbox import Mailbox, MailboxNames

        app = self._app
        conf, clock = app.conf, app.clock
        if timeout_s is None:
            timeout_s = LONGEST_WAIT_S
        if limit is None and request.destination:
            limit = len(request.destination)
        names = MailboxNames.of(conf)
        accept, limits, ticket = accepted(conf.accept_content), app.limits(), str(uuid.uuid4())
        replies: list[dict[str, Any]] = []

        def ask(reply_to: tuple[str, str]) -> Any:
            full = replace(request, ticket=ticket, reply_to=reply_to)
            return encode_request(full, names.namespace, conf.task_serializer)

        def take(properties: Any, body: bytes) -> bool:
            try:
                reply: ControlReply = read_reply(
                    properties.headers, properties.content_type, properties.content_encoding, body, accept, limits
                )
            except ContentError as error:
                logger.error("Passed over an answer to %s that cannot be read: %s", request.method, error)
                return True
            clock.adjust(reply.clock)
            if reply.ticket not in (None, ticket):
                return True
            each = dict(reply.nodes)
            replies.append(each)
            if on_reply is not None:
                on_reply(each)
            return not limit or len(replies) < limit

        timeout = float(conf.broker_connection_timeout)
        with Mailbox(app.endpoints("control"), timeout_s=timeout) as mailbox:
            mailbox.ask(names, ask, max(0.0, timeout_s), take)
        return replies

    def request(
        self, command: str, arguments: Mapping[str, Any] | None, destination: Any, timeout_s: float | None,
        pattern: str | None, matcher: str | None,
    ) -> ControlRequest:  # fmt: skip
        """Make a command.

        Raises:
            ValueError: The destination is no list of names, or the pattern cannot be used.
        """
        if not isinstance(command, str) or not command:
            raise ValueError(f"expected the command to be its name, got: {command!r:.80}")
        for each in (pattern, matcher):
            if each is not None and not isinstance(each, str):
                raise ValueError(f"expected pattern and matcher to be texts, got: {each!r:.80}")
        if pattern:
            matcher = matcher or GLOB
            try:
                name_matches("", pattern, matcher)
            except ContentError as error:
                raise ValueError(str(error)) from None
        return ControlRequest(
            command, dict(arguments or {}), destinations(destination), pattern or None, matcher if pattern else None,
            clock=self._app.clock.forward(), expires=time.time() + timeout_s if timeout_s else 0.0,
        )  # fmt: skip


def destinations(destination: Iterable[str] | None) -> tuple[str, ...]:
    """Check the workers that a command is for; none stands for all.

    Raises:
        ValueError: It is no list, or an empty one: Celery takes that for all workers, which hardly anybody means.
    """
    if destination is None:
        return ()
    names = () if isinstance(destination, (str, Mapping)) else tuple(destination)
    if not 0 < len(names) <= MAX_DESTINATIONS or not all(isinstance(each, str) and each for each in names):
        raise ValueError(
            f"expected the destination to be a list of 1 to {MAX_DESTINATIONS} names of workers, got: "
            f"{destination!r:.80}"
        )
    return names
