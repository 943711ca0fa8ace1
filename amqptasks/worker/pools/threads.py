"""Tasks in threads of the worker's own process: `solo` is one of them, `threads` several.

The loop keeps the connections alive while they run. A thread cannot be killed from outside: at its hard time limit a
task is given up, its thread gets an exception that ends it if it still takes steps in Python, and another takes its
place.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.pools.slot import Mark, Slot, serve
from amqptasks.worker.pools.window import Abandoned, ThreadWindow
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)


class ThreadPool(Pool):
    """One thread a slot."""

    can_resize = True

    def spawn(self, index: int) -> Slot:
        """Start a thread."""
        ours, theirs = socket.socketpair()
        mark, gate = Mark(), threading.Lock()
        name = f"ThreadPoolWorker-{index + 1}"
        slot = Slot(self.loop, self, ours, mark, gate, name)
        slot.pid = os.getpid()
        window = ThreadWindow(lambda: mark.begun()[0])
        thread = threading.Thread(target=self._serve, args=(theirs, mark, gate, window), name=name, daemon=True)
        self._threads = {each: runner for each, runner in self._threads.items() if runner[0].is_alive()}
        self._threads[slot] = thread, window
        thread.start()
        return slot

    _threads: dict[Slot, tuple[threading.Thread, ThreadWindow]]

    def start(self) -> None:
        """Start the threads."""
        self._threads = {}
        super().start()

    def _serve(self, sock: socket.socket, mark: Mark, gate: threading.Lock, window: ThreadWindow) -> None:
        with sock:
            window.enter()
            try:
                serve(sock, mark, gate, self._run)
            except Abandoned:
                logger.info("A task has ended that was given up at its time limit; so has its thread")
            except Exception:
                # Closing the socket is what tells the pool; the log is to tell why.
                logger.exception("%s failed", threading.current_thread().name)

    def interrupt(self, slot: Slot, request: Request, limit_s: float) -> bool:
        """Raise in the task's thread, at its next step in Python."""
        if not self._threads[slot][1].interrupt(request.number):
            return False
        self._events.on_soft_limit(request, limit_s)
        return True

    def end(self, slot: Slot, request: Request, limit_s: float) -> bool:
        """Give the task up, and its thread."""
        if not self._threads[slot][1].abandon(request.number):
            return False
        slot.timed_out = request, limit_s
        # The pool waits for it no more.
        del self._threads[slot]
        slot.drain()
        self.lose(slot, "its task was given up")
        return True

    def stop(self) -> None:
        """Close the slots: each thread ends after its task."""
        self.is_stopping = True
        for slot in list(self.slots):
            slot.close()
        self.slots.clear()

    @property
    def is_stopped(self) -> bool:
        """Whether no thread runs any more."""
        return not any(thread.is_alive() for thread, _window in self._threads.values())

    def describe(self) -> str:
        """Name the pool."""
        return "solo" if self.size == 1 else "threads"
