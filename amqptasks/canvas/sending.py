"""What the canvas needs of an app to send calls, and to be ready for their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from amqptasks.exceptions import EncodeError, NotSent
from amqptasks.results.backend import ResultBackend
from amqptasks.results.context import answers_go_to

__all__ = ["Sender", "expect_answer", "expecting", "send_each"]


class Sender(Protocol):
    """What the canvas needs of an app."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The registered tasks by name; each has ``apply_async``."""

    @property
    def backend(self) -> ResultBackend:
        """Where results come in."""

    @property
    def is_eager(self) -> bool:
        """Whether calls run at once, in the caller."""

    @property
    def current_worker_task(self) -> Any:
        """The task that is running here, whose children the calls made here are; None outside tasks."""

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a task by name and return its AsyncResult."""

    def AsyncResult(self, id: str) -> Any:
        """Make a handle of an id."""

    def bulk(self) -> AbstractContextManager[Any]:
        """Let the sends of a block share round trips to the broker. May be nested."""

    async def asend(self, send: Callable[[], Any], options: Mapping[str, Any]) -> Any:
        """Do what sends, and wait for the broker without holding the event loop up."""


def expect_answer(app: Sender, task_id: str) -> str | None:
    """Be ready for the answer of a call that is sent later; returns the queue that it is to come to, if there is one.

    While a worker makes what follows a task that is the queue of who waits for the task, and nobody waits here.
    """
    elsewhere = answers_go_to()
    if elsewhere is not None:
        return elsewhere[0]
    reply_to = app.backend.reply_to()
    if reply_to is not None:
        app.backend.expect(task_id)
    return reply_to


def send_each(calls: Sequence[Any], part: str, options: Mapping[str, Any]) -> list[Any]:
    """Send the parts of a canvas, such as the ``member`` of a group, and return their results.

    Raises:
        EncodeError: An argument cannot be serialized; the message says which, of which part.
    """
    results = []
    for number, call in enumerate(calls, 1):
        try:
            results.append(call.apply_async(**options))
        except EncodeError as error:
            raise EncodeError(f"{error} ({part} {number} of {len(calls)}, {call!r:.200})") from error
    return results


class expecting(AbstractContextManager[None]):
    """Have the app's backend get ready for answers, and take it back if the block could not send for them."""

    def __init__(self, app: Sender, results: Iterable[Any]) -> None:
        self._backend = app.backend
        self._ids = [] if answers_go_to() is not None else [result.id for result in results if not result.ignored]

    def __enter__(self) -> None:
        for task_id in self._ids:
            self._backend.expect(task_id)

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if isinstance(error, (NotSent, EncodeError)):
            for task_id in self._ids:
                self._backend.unexpect(task_id)
