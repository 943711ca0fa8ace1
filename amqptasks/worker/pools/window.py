"""The window in which a task with a time limit may be interrupted: while its own code runs, neither before nor after.

What interrupts comes from outside, at any moment, and the next task may have begun by then. So each window knows the
number of its task: who interrupts names the number, and one that is not the window's does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from amqptasks.app import coroutines
from amqptasks.exceptions import SoftTimeLimitExceeded

T = TypeVar("T")


class Abandoned(BaseException):
    """Nobody waits any more for what this thread runs; raised in it so that it ends, if it can."""


class SignalWindow:
    """The window of a child process: a signal handler looks into it. Belongs to the main thread.

    Args:
        running: Returns the number of the task that runs.
        interrupted: Returns the number of the task that is to be interrupted.
    """

    def __init__(self, running: Callable[[], int], interrupted: Callable[[], int]) -> None:
        self._running = running
        self._interrupted = interrupted
        self._number = 0

    def enter(self) -> None:
        """Use it for the tasks of this thread."""
        _own.window = self

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function; `SoftTimeLimitExceeded` may be raised in it."""
        self._number = number = self._running()
        try:
            if self._interrupted() == number:
                # The signal was here first.
                self._number = 0
                raise SoftTimeLimitExceeded
            return function(*args)
        finally:
            self._number = 0

    def on_signal(self, _number: int, _frame: Any) -> None:
        """Interrupt the task that the parent has marked, if that is still the one that runs."""
        number = self._number
        if not number or self._interrupted() != number:
            return
        self._number = 0
        error = SoftTimeLimitExceeded()
        # A coroutine gets it at its await, rather than the loop under it.
        if not coroutines.interrupt(threading.get_ident(), error):
            raise error


class ThreadWindow:
    """The window of a thread: another thread raises exceptions in it.

    Args:
        running: Returns the number of the task that runs.
    """

    def __init__(self, running: Callable[[], int]) -> None:
        self._running = running
        self._lock = threading.Lock()
        self._number = 0
        self._thread_id = 0
        self._is_raised = False
        self._is_abandoned = False

    def enter(self) -> None:
        """Use it for the tasks of this thread."""
        self._thread_id = threading.get_ident()
        _own.window = self

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function; `SoftTimeLimitExceeded` may be raised in it.

        Raises:
            Abandoned: It was given up meanwhile. What it has returned must go nowhere.
        """
        with self._lock:
            self._number = self._running()
        try:
            return function(*args)
        finally:
            is_closed = False
            while not is_closed:
                try:
                    self._close()
                    is_closed = True
                except (SoftTimeLimitExceeded, Abandoned):
                    # It comes when the task has ended by itself: too late to say so.
                    continue
            if self._is_abandoned:
                raise Abandoned

    def interrupt(self, number: int) -> bool:
        """Raise `SoftTimeLimitExceeded` in the task of this number, at its next step in Python. False if it is not in
        the window."""
        return self._raise(number, SoftTimeLimitExceeded)

    def abandon(self, number: int) -> bool:
        """Give the task of this number up, and the thread with it. False if it is not in the window."""
        return self._raise(number, Abandoned)

    def _raise(self, number: int, error: type[BaseException]) -> bool:
        with self._lock:
            if self._number != number:
                return False
            self._is_abandoned = self._is_abandoned or error is Abandoned
            # A coroutine gets it at its await: in the loop under it, nothing takes a step before the loop wakes.
            if not coroutines.interrupt(self._thread_id, error()):
                self._is_raised = True
                _raise_in(self._thread_id, error)
        return True

    def _close(self) -> None:
        with self._lock:
            self._number = 0
            if self._is_raised:
                # It may not have arrived yet, and must not arrive in what comes next.
                self._is_raised = False
                _raise_in(self._thread_id, None)


def _raise_in(thread_id: int, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread at its next step in Python; None takes back one that has not arrived."""
    # Here, for a megabyte of it is nothing that children need.
    import ctypes

    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), raised)


class _Own(threading.local):
    """The window of one thread."""

    window: SignalWindow | ThreadWindow | None = None


_own = _Own()


def run_limited(function: Callable[..., T], *args: Any) -> T:
    """Call a function within this thread's window, where it has one."""
    window = _own.window
    return function(*args) if window is None else window.run(function, *args)
