"""A bounded number of threads for work that may block. Unlike Python's own pool they end with the process: a worker
that is told to stop at once does not wait for what somebody's library does in one of them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class DaemonThreads(ThreadPoolExecutor):
    """Runs calls in at most ``size`` threads, started when they are needed. Safe from any thread."""

    # Python asks for a ThreadPoolExecutor where it could do with any executor; nothing else of it is used.
    def __init__(self, size: int, name: str) -> None:
        super().__init__(1, name)
        self.size = size
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Any, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._unfinished = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call when a thread is free."""
        future: Future[Any] = Future()
        with self._lock:
            self._unfinished += 1
            starts = self._count < min(self.size, self._unfinished)
            self._count += starts
        self._jobs.put((future, fn, args, kwargs))
        if starts:
            threading.Thread(target=self._work, name=f"{self._name}-{self._count}", daemon=True).start()
        return future

    def replace_one(self) -> None:
        """Count one thread as lost, for it does not come back from its call: another may take its place."""
        with self._lock:
            self.size += 1

    def take_again(self) -> None:
        """Undo `replace_one`: it came back after all."""
        with self._lock:
            self.size -= 1
            is_over = self._count > self.size
        if is_over:
            self._jobs.put(None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end once nothing is left to do. Never waits."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                with self._lock:
                    self._count -= 1
                return
            future, function, args, kwargs = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)
            with self._lock:
                self._unfinished -= 1
            # What it returned should not live until the next job comes.
            del job, future, function, args, kwargs
