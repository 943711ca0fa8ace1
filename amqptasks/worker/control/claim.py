"""That two workers do not have one name.

The name is claimed by an exclusive queue, which ends with its connection. If somebody else has it, that may be another
worker of the name, or the ghost of one: a connection that the broker has not noticed to be dead. A worker that lives
answers when it is asked; then the newcomer ends. A ghost does not, and the newcomer goes to work.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from amqptasks.broker.confirms import Outgoing
from amqptasks.broker.declarer import Declarer, Locked
from amqptasks.broker.mailbox import MailboxNames, lock_name, lock_need, request_need
from amqptasks.exceptions import EncodeError, OperationalError
from amqptasks.wire.pidbox import ControlRequest, encode_request
from amqptasks.worker.control.state import ControlState

__all__ = ["NameClaim"]

logger = logging.getLogger("amqptasks.worker.control")

#: How long another worker of the name has to answer, and how often it is asked, seconds.
PATIENCE_S: Final = 3.0
ASK_AGAIN_S: Final = 0.5
#: How often a name that a ghost has is claimed again, seconds.
CLAIM_AGAIN_S: Final = 5.0


class NameClaim:
    """Claims the name of one worker, over each connection. Belongs to the loop's thread.

    Args:
        refuse: Called with the reason if another worker of the name has answered.
    """

    def __init__(
        self, state: ControlState, names: MailboxNames, serializer: str, refuse: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._state = state
        self._names = names
        self._serializer = serializer
        self._refuse = refuse
        self._need = lock_need(names.namespace, state.hostname)
        self._declarer: Declarer | None = None
        self._version: tuple[int, ...] | None = None
        #: What the questions to another worker carry; None while there are none.
        self._ticket: str | None = None
        self._then: Callable[[], None] | None = None
        #: Whether this worker has been at work: then whoever has its name is a ghost, or came later.
        self._is_proven = False
        self._timer: Any = None

    def up(self, declarer: Declarer, version: tuple[int, ...] | None, queue: str, then: Callable[[], None]) -> None:
        """Claim the name over this connection, and call ``then`` once it is known that nobody else lives by it.

        Args:
            queue: Where answers reach this worker.
        """
        self._cancel()
        self._declarer, self._version, self._then = declarer, version, then
        declarer.ensure(self._need.key, self._need.steps(version), lambda error: self._claimed(queue, error))
        if self._is_proven:
            self._go()

    def down(self) -> None:
        """Forget the connection, and the claim with it."""
        self._cancel()
        self._declarer = self._then = self._ticket = None

    def release(self) -> None:
        """Let another worker have the name from now on."""
        self._cancel()
        declarer, self._declarer = self._declarer, None
        self._then = self._ticket = None
        if declarer is not None and declarer.has(self._need.key):
            declarer.delete(lock_name(self._names.namespace, self._state.hostname), self._need.key)

    def takes(self, headers: Mapping[str, Any]) -> bool:
        """Whether a message is the answer to a question of this one."""
        if self._ticket is None or headers.get("ticket") != self._ticket:
            return False
        self._cancel()
        self._ticket = self._then = None
        name = self._state.hostname
        self._refuse(f"a worker named {name!r} is at work already; give each worker a name of its own, with -n")
        return True

    def is_own(self, request: ControlRequest) -> bool:
        """Whether a command is a question of this one, which goes to all."""
        return self._ticket is not None and request.ticket == self._ticket

    def _claimed(self, queue: str, error: OperationalError | None) -> None:
        if self._declarer is None:
            return
        if isinstance(error, Locked):
            if self._is_proven:
                self._later(queue)
            else:
                self._ticket = uuid.uuid4().hex
                self._timer = self._state.loop.call_later(PATIENCE_S, lambda: self._unanswered(queue))
                self._ask(queue, self._ticket)
            return
        if error is not None:
            # That commands cannot be answered is said already.
            logger.info("The name %s could not be claimed: %s", self._state.hostname, error)
        self._go()

    def _ask(self, queue: str, ticket: str) -> None:
        """Ask whoever has the name to show that it lives; again and again, for it may be about to begin."""
        if self._ticket != ticket:
            return
        state, namespace = self._state, self._names.namespace
        request = ControlRequest(
            "ping", {}, (state.hostname,), ticket=ticket, reply_to=("", queue), clock=state.app.clock.forward()
        )

        def done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if error is not None:
                logger.debug("Whether %s lives was not asked: %s", state.hostname, error)

        message = encode_request(request, namespace, self._serializer)
        needs = (request_need(namespace),)
        state.confirms.send(Outgoing(message, needs, done, mandatory=False, is_impatient=True))
        state.loop.call_later(ASK_AGAIN_S, lambda: self._ask(queue, ticket))

    def _unanswered(self, queue: str) -> None:
        self._timer = self._ticket = None
        logger.warning(
            "The name %s is still claimed by a connection that does not answer; going to work without",
            self._state.hostname,
        )
        self._go()
        self._later(queue)

    def _later(self, queue: str) -> None:
        declarer = self._declarer
        if declarer is None:
            return

        def again() -> None:
            if self._declarer is declarer:
                declarer.ensure(
                    self._need.key, self._need.steps(self._version), lambda error: self._claimed(queue, error)
                )

        self._timer = self._state.loop.call_later(CLAIM_AGAIN_S, again)

    def _go(self) -> None:
        self._is_proven = True
        then, self._then = self._then, None
        if then is not None:
            then()

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._state.loop.remove_timeout(timer)
