"""Whether waiting for a result is allowed here, and which app a handle made without one belongs to.

A task that waits for another task holds its slot while that one may need it: the worker runs tasks under
`denied_join_result`, and handles ask `assert_will_not_block` before they wait. The flag is a context variable, so that
threads and coroutines do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured

__all__ = [
    "allow_join_result", "answering_to", "answers_go_to", "assert_will_not_block", "default_app", "denied_join_result",
    "set_default_app", "task_join_will_block",
]  # fmt: skip

_join_will_block: ContextVar[bool] = ContextVar("amqptasks_join_will_block", default=False)

E_WOULDBLOCK = (
    "Never call result.get() within a task! It holds a worker's slot while it waits for another, and enough of them "
    "wait for ever. Chain the tasks instead, or, if you must, wrap the call in `with allow_join_result():`."
)


def task_join_will_block() -> bool:
    """Whether waiting for a result is denied in this context."""
    return _join_will_block.get()


def assert_will_not_block() -> None:
    """Raise RuntimeError where waiting for a result is denied."""
    if _join_will_block.get():
        raise RuntimeError(E_WOULDBLOCK)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let results be waited for inside a task, for the length of the block. Only this context is touched."""
    token = _join_will_block.set(False)
    try:
        yield
    finally:
        _join_will_block.reset(token)


class denied_join_result:
    """Make waiting for a result an error, for the length of the block. Only this context is touched."""

    # A class and not a generator: every task runs in such a block.
    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _join_will_block.set(True)

    def __exit__(self, *_error: object) -> None:
        _join_will_block.reset(self._token)


_answers_go_to: ContextVar[tuple[str | None] | None] = ContextVar("amqptasks_answers_go_to", default=None)


def answers_go_to() -> tuple[str | None] | None:
    """Say where answers to the calls made here go: the name of a reply queue, or None for nowhere, in a tuple of one;
    without a tuple, here."""
    return _answers_go_to.get()


class answering_to:
    """Have the answers to calls that are made in the block go to a queue, rather than to this process."""

    __slots__ = ("_queue", "_token")

    def __init__(self, queue: str | None) -> None:
        self._queue = queue

    def __enter__(self) -> None:
        self._token = _answers_go_to.set((self._queue,))

    def __exit__(self, *_error: object) -> None:
        _answers_go_to.reset(self._token)


_app_provider: Callable[[], Any] | None = None


def set_default_app(provider: Callable[[], Any] | None) -> None:
    """Say how handles and signatures that were made without an app find one. The app layer calls this once."""
    global _app_provider
    _app_provider = provider


def default_app(what: str) -> Any:
    """Return the app to use for `what`, something that was made without one.

    Raises:
        ImproperlyConfigured: There is none.
    """
    app = None if _app_provider is None else _app_provider()
    if app is None:
        raise ImproperlyConfigured(f"{what} belongs to no app: pass app=…, or make an App before using it")
    return app
