"""What a worker does besides running tasks: answering commands, telling events, showing its health.

Each is a `Service`. It lives on the worker's loop and connections, is told when they come and go, and knows nothing of
the other ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from amqptasks.broker.declarer import Declarer
    from amqptasks.broker.link import Connection


class Service(Protocol):
    """Something that a worker does besides running tasks. Every method is called on the loop's thread."""

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Work over this consuming connection from now on. What was revoked is known, the queues are about to be
        consumed."""

    def down(self, reason: str) -> None:
        """Forget the consuming connection: it has gone."""

    def ready(self) -> None:
        """The worker consumes its queues for the first time."""

    def stopping(self) -> None:
        """The worker begins to stop: it takes no more tasks; what runs goes on."""

    def close(self) -> None:
        """The worker ends: say good-bye over what connections there are, without waiting for anything."""
