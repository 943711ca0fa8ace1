"""What a worker does besides running tasks: answering commands, telling events, showing its health.

Each is a `Service`. It lives on the worker's loop and connections, is told when they come and go, and knows nothing of
the other ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from amqptasks.broker.declarer import Declarer
    from amqptasks.broker.link import Connection
    from amqptasks.worker.outcome import Outcome, Told
    from amqptasks.worker.request import Request


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


class TaskWatcher(Protocol):
    """Who is told what becomes of tasks. Every method is called on the loop's thread, and only while `enabled` is true;
    `said` always.

    Attributes:
        enabled: Whether it wants to be told. Whoever has something to tell looks here first.
    """

    enabled: bool

    def received(self, request: Request) -> None:
        """A task is here, and is going to run."""

    def started(self, request: Request, ago_s: float = 0.0) -> None:
        """It has begun, so long ago. Safe twice."""

    def ended(self, request: Request, outcome: Outcome) -> None:
        """Its run has ended."""

    def failed(self, request: Request, error: Exception) -> None:
        """It has failed, and no run can tell of it."""

    def retried(self, request: Request, error: Exception) -> None:
        """Its run was lost, and it is tried again."""

    def rejected(self, request: Request) -> None:
        """Its run was lost, and it is put back."""

    def revoked(self, request: Request, terminated: bool, signum: int | None, expired: bool) -> None:
        """It does not run, or not to its end, because it was revoked or is too late."""

    def cancelled(self, request: Request) -> None:
        """It was ended because the connection was lost that it came by."""

    def said(self, request: Request, told: Told) -> None:
        """A running task says something itself."""
