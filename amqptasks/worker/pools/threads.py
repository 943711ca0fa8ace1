"""Tasks in threads of the worker's own process: `solo` is one of them, `threads` several.

The loop keeps the connections alive while they run. A thread cannot be killed from outside.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.pools.slot import Mark, Slot, serve

logger = logging.getLogger(__name__)


class ThreadPool(Pool):
    """One thread a slot."""

    def spawn(self, index: int) -> Slot:
        """Start a thread."""
        ours, theirs = socket.socketpair()
        mark, gate = Mark(), threading.Lock()
        name = f"ThreadPoolWorker-{index + 1}"
        slot = Slot(self.loop, self, ours, mark, gate, name)
        slot.pid = os.getpid()
        thread = threading.Thread(target=self._serve, args=(theirs, mark, gate), name=name, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()
        return slot

    _threads: list[threading.Thread]

    def start(self) -> None:
        """Start the threads."""
        self._threads = []
        super().start()

    def _serve(self, sock: socket.socket, mark: Mark, gate: threading.Lock) -> None:
        with sock:
            try:
                serve(sock, mark, gate, self._run)
            except Exception:
                # Closing the socket is what tells the pool; the log is to tell why.
                logger.exception("%s failed", threading.current_thread().name)

    def stop(self) -> None:
        """Close the slots: each thread ends after its task."""
        self.is_stopping = True
        for slot in list(self.slots):
            slot.close()
        self.slots.clear()

    @property
    def is_stopped(self) -> bool:
        """Whether no thread runs any more."""
        return not any(thread.is_alive() for thread in self._threads)

    def describe(self) -> str:
        """Name the pool."""
        return "solo" if self.size == 1 else "threads"
