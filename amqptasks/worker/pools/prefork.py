"""Tasks in child processes, forked from the worker so that they share its memory.

The parent notices a child's end by its process, not only by its socket: a grandchild may still hold that open. A child
notices the parent's end within a second and goes, so that no orphan works on for nobody.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from amqptasks import logs, signals
from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.pools.recycling import Recycling
from amqptasks.worker.pools.slot import Mark, Slot, serve
from amqptasks.worker.pools.window import SignalWindow
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

#: What interrupts a task at its soft limit, as in Celery.
SOFT_LIMIT_SIGNAL = signal.SIGUSR1
#: How long a child may live on after a signal that is to end its task, seconds.
TERMINATE_GRACE_S = 1.0
#: How often a child looks whether its parent is still there, seconds.
PARENT_CHECK_S = 1.0


class PreforkPool(Pool):
    """One child process a slot.

    Attributes:
        close_in_child: Called in each new child to close the parent's sockets.
        runs_tasks: False for a helper of the worker's own, of which nobody else is told.
        alive_timeout_s: A child that is not ready to run tasks after so many seconds is replaced; None: never.
        max_tasks, max_memory_kib: After so many tasks, or with so much memory, a child is replaced; None: never.
    """

    can_kill = True
    can_resize = True
    can_restart = True
    close_in_child: Callable[[], None] | None = None
    nodename: str | None = None
    runs_tasks = True
    alive_timeout_s: float | None = None
    max_tasks: int | None = None
    max_memory_kib: int | None = None
    child_name = "ForkPoolWorker"

    def start(self) -> None:
        """Fork the children."""
        import multiprocessing

        self._context = multiprocessing.get_context("fork")
        self._children: dict[int, Slot] = {}
        # What is alive now will be shared: keep the collector from touching, and so copying, its pages.
        gc.collect()
        gc.freeze()
        super().start()

    def spawn(self, index: int) -> Slot:
        """Fork a child."""
        if self.runs_tasks:
            signals.worker_before_create_process.send(self)
        ours, theirs = socket.socketpair()
        name = f"{self.child_name}-{index + 1}"
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        parent = os.getpid()
        try:
            mark, gate = Mark(), self._context.Lock()
            pid = os.fork()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            code = 1
            try:
                logs.enter_child(index + 1 if self.runs_tasks else 0)
                self._child_main(parent, ours, theirs, mark, gate, name)
                code = 0
            except BaseException:
                logger.exception("%s failed", name)
            finally:
                with contextlib.suppress(Exception):
                    logging.shutdown()
                os._exit(code)
        theirs.close()
        slot = Slot(self.loop, self, ours, mark, gate, name)
        slot.pid = pid
        self._children[pid] = slot
        if self.alive_timeout_s is not None:
            self.loop.call_later(self.alive_timeout_s, lambda: self._end_unready(slot))
        return slot

    def _end_unready(self, slot: Slot) -> None:
        if self._children.get(slot.pid) is slot and not slot.mark.is_ready() and not self.is_stopping:
            logger.error("%s is not ready after %g s (worker_proc_alive_timeout)", slot.name, self.alive_timeout_s)
            self._kill(slot)

    def _child_main(
        self, parent: int, ours: socket.socket, theirs: socket.socket, mark: Mark, gate: Any, name: str
    ) -> None:
        ours.close()
        self.close_slots_in_child()
        if self.close_in_child is not None:
            self.close_in_child()
        # Ctrl-C and service managers signal the whole group: the parent decides what it means. A handler that does
        # nothing, rather than "ignore", which programs started by a task would inherit.
        leave_to_parent = _leaving_to_parent(mark)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, leave_to_parent)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        window = SignalWindow(lambda: mark.begun()[0], mark.interrupted)
        window.enter()
        signal.signal(SOFT_LIMIT_SIGNAL, window.on_signal)
        is_recycled = self.max_tasks is not None or self.max_memory_kib is not None
        recycling = Recycling(self.max_tasks, self.max_memory_kib) if is_recycled else None
        self._context.current_process().name = name
        threading.Thread(target=_end_with_parent, args=(parent,), name="amqptasks-parent", daemon=True).start()
        if self.runs_tasks:
            signals.worker_process_init.send(self.nodename)
        mark.ready()
        try:
            serve(theirs, mark, gate, self._run, recycling)
        finally:
            if self.runs_tasks:
                signals.worker_process_shutdown.send(None, pid=os.getpid(), exitcode=0)

    def close_slots_in_child(self) -> None:
        """Close, in a new child, the parent's ends of all slots: while any process holds one, its child sees no end."""
        for slot in self.slots:
            with contextlib.suppress(OSError):
                os.close(slot.fileno())

    def reap(self) -> None:
        """Look which children have ended. Called when the process gets SIGCHLD."""
        for pid, slot in list(self._children.items()):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, 0
            if done:
                del self._children[pid]
                slot.drain()
                self.lose(slot, _how(status))

    def on_broken(self, slot: Slot) -> None:
        """Wait for the process itself to end: only that says how it did."""
        if slot.pid in self._children:
            # A child that closed its socket without ending can run nothing more.
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.pid, signal.SIGKILL)
            self.reap()

    def interrupt(self, slot: Slot, request: Request, limit_s: float) -> bool:
        """Send a signal, on which the child raises if the task runs still."""
        slot.mark.interrupt(request.number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, SOFT_LIMIT_SIGNAL)
        self._events.on_soft_limit(request, limit_s)
        return True

    def end(self, slot: Slot, request: Request, limit_s: float) -> bool:
        """Kill the child, whatever it does. What it has reported until then counts."""
        if slot.timed_out is None:
            if not slot.freeze(request):
                return False
            slot.timed_out = request, limit_s
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.pid, signal.SIGKILL)
        return True

    def terminate(self, slot: Slot, request: Request, number: int) -> bool:
        """Send the signal to the child, and kill it if it is still there after a while."""
        if slot.timed_out is None:
            if not slot.freeze(request):
                return False
            slot.timed_out = request, 0.0
            slot.mark.condemn(request.number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.pid, number)
            self.loop.call_later(TERMINATE_GRACE_S, lambda: self._kill(slot))
        return True

    def _kill(self, slot: Slot) -> None:
        if self._children.get(slot.pid) is slot:
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Close the sockets: each child ends after its task."""
        self.is_stopping = True
        for slot in self.slots:
            slot.close()

    def kill(self) -> None:
        """Kill the children."""
        self.is_stopping = True
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def is_stopped(self) -> bool:
        """Whether every child was reaped."""
        self.reap()
        return not self._children

    def describe(self) -> str:
        """Name the pool."""
        return "prefork"


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"signal {number}"
    return f"exit code {os.WEXITSTATUS(status)}"


def _leaving_to_parent(mark: Mark) -> Callable[[int, Any], None]:
    """Make a handler that does nothing, unless the signal is meant for the task that runs here."""

    def handle(number: int, _frame: Any) -> None:
        if mark.is_condemned():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handle


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
