"""One I/O loop: pika's, with an end-of-turn hook, and a thread to run it in where a program has its own main thread.

A worker runs a `Loop` in its main thread; every other process runs one in the background thread of `LoopThread`,
started by the first send. Nothing here knows AMQP.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from pika.adapters.select_connection import EPollPoller, IOLoop

logger = logging.getLogger(__name__)

Callback = Callable[[], None]

ERROR = "The I/O loop hit an error and goes on"


class Loop(IOLoop):  # type: ignore[misc, unused-ignore]  # pika ships no types that mypy reads
    """pika's I/O loop, plus `at_turn_end`. All methods but `call_threadsafe` belong to the loop's own thread."""

    def __init__(self) -> None:
        self._ending: list[Callback] = []
        self._is_stopping = False
        super().__init__()
        # Signal handlers wake the loop too, and may interrupt its own thread while that holds pika's plain lock.
        self._poller._waking_mutex = threading.RLock()
        self._is_epoll = isinstance(self._poller, EPollPoller)
        # From here on any thread may wake the loop.
        self.activate_poller()

    def run(self) -> None:
        """Handle events until `stop`. A fault in one callback is logged and does not end the process's way to the
        broker."""
        while not self._is_stopping:
            try:
                self.poll()
                self.process_timeouts()
            except Exception:
                logger.exception(ERROR)
        self.deactivate_poller()
        self.close()

    def stop(self) -> None:
        """End `run` after the present turn."""
        self._is_stopping = True

    def abandon(self) -> None:
        """Close this process's copies of the loop's descriptors, in a forked child whose parent's loop goes on."""
        poller: Any = self._poller
        # Not by the poller's own closing: that would unregister them, in the epoll which the parent uses too.
        for each in (poller._r_interrupt, poller._w_interrupt, getattr(poller, "_poll", None)):
            if each is not None:
                each.close()

    def at_turn_end(self, callback: Callback) -> None:
        """Call once when every event of the present turn has been handled.

        This is where work of one turn is put together: acks, frames, messages to children.
        """
        self._ending.append(callback)

    def call_later(self, delay: float, callback: Callback) -> Any:
        """Call after so many seconds; returns what `remove_timeout` takes."""

        def call() -> None:
            # pika would forget what else is due in this turn, such as the next attempt to connect.
            try:
                callback()
            except Exception:
                logger.exception(ERROR)

        return super().call_later(delay, call)

    def call_threadsafe(self, callback: Callback) -> None:
        """Call from the loop's thread, as soon as possible. The one method that any thread may use."""
        self.add_callback_threadsafe(callback)

    def poll(self) -> None:
        """Wait for events and handle them."""
        poller: Any = self._poller
        if not self._is_epoll:
            poller.poll()
            return
        events = poller._poll.poll(poller._get_max_wait())
        if len(events) == 1 and events[0][1] == self.READ:
            # By far the most: nothing else happens in this turn that could have removed its handler.
            fileno = events[0][0]
            poller._fd_handlers[fileno](fileno, self.READ)
        elif events:
            poller._dispatch_fd_events(dict(events))

    def process_timeouts(self) -> None:
        """Run what waited for the turn's end, then what is due."""
        # In this order: somebody waits for what came in, and what is due is housekeeping for the most part.
        self._end_turn()
        super().process_timeouts()
        self._end_turn()

    def _end_turn(self) -> None:
        while self._ending:
            ending, self._ending = self._ending, []
            for callback in ending:
                try:
                    callback()
                except Exception:
                    logger.exception(ERROR)

    def _get_remaining_interval(self) -> float | None:
        if self._ending:
            return 0
        interval: float | None = super()._get_remaining_interval()
        return interval


_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()


class LoopThread:
    """A background daemon thread that runs one `Loop`, started on first use and again in each forked child.

    Safe from any thread. After a fork the child's copy forgets the parent's loop without touching its sockets: owners
    register with `on_fork` to drop theirs too.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        # Holds the running loop and its thread under "it". A dict, for `setdefault` decides in one step.
        self._running: dict[str, tuple[Loop, threading.Thread]] = {}
        self._fork_hooks: list[weakref.WeakMethod[Any]] = []
        _threads.add(self)

    def on_fork(self, hook: Callable[[], None]) -> None:
        """Call a bound method in a forked child, before anything else there can use this thread. Held weakly."""
        self._fork_hooks.append(weakref.WeakMethod(hook))

    def loop(self) -> Loop:
        """Return the running loop, starting the thread if need be."""
        running = self._running.get("it")
        if running is not None:
            return running[0]
        with self._lock:
            running = self._running.get("it")
            if running is None:
                loop = Loop()
                thread = threading.Thread(target=loop.run, name=self.name, daemon=True)
                thread.start()
                # A signal handler may have come through here meanwhile: the lock lets its own thread in.
                running = self._running.setdefault("it", (loop, thread))
                if running[0] is not loop:
                    loop.call_threadsafe(loop.stop)
            return running[0]

    @property
    def is_current(self) -> bool:
        """Whether the caller is the loop's own thread, which must never wait for it."""
        running = self._running.get("it")
        return running is not None and running[1] is threading.current_thread()

    def call(self, callback: Callback) -> None:
        """Call from the loop's thread, as soon as possible."""
        self.loop().call_threadsafe(callback)

    def stop(self, timeout_s: float) -> bool:
        """End the loop and its thread; False when the thread did not end in time. Safe twice and before any use."""
        running = self._running.pop("it", None)
        if running is None:
            return True
        loop, thread = running
        loop.call_threadsafe(loop.stop)
        thread.join(timeout_s)
        return not thread.is_alive()

    def _forget_after_fork(self) -> None:
        self._lock = threading.RLock()
        running = self._running.pop("it", None)
        if running is not None:
            running[0].abandon()
        for reference in self._fork_hooks:
            hook = reference()
            if hook is not None:
                hook()


def _after_fork_in_child() -> None:
    for each in list(_threads):
        each._forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
