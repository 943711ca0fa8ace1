"""Beat beside a worker (``worker -B``): in a process of its own, kept alive for as long as the worker lives.

The worker forks a keeper, the keeper beat: so the worker, which forks children of its own, has no part in starting beat
again when that dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from amqptasks.exceptions import AmqptasksError

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["CannotStart", "EmbeddedBeat"]

logger = logging.getLogger("amqptasks.beat")

#: How long the worker's end waits for beat's, seconds.
STOP_S: Final = 5.0
#: How often it is looked whether the process that keeps this one still lives, seconds.
LOOK_S: Final = 0.5
#: Beat that has died is started again after this, seconds.
AGAIN_S: Final = 1.0


class CannotStart(BaseException):
    """Something is wrong with the schedule. No `Exception`: receivers of signals may raise those, and nothing stops."""

    def __init__(self, error: AmqptasksError) -> None:
        super().__init__(str(error))
        self.error = error


class EmbeddedBeat:
    """Beat in a process beside this one.

    Args:
        filename, scheduler: As for `Beat`.

    Raises:
        CannotStart: Something is wrong with the schedule.
    """

    def __init__(self, app: App, *, filename: str | None = None, scheduler: Any = None) -> None:
        from amqptasks.beat.service import Beat

        self._app = app
        self._options = {"filename": filename, "scheduler": scheduler, "embedded": True}
        self._keeper = 0
        try:
            # Made once here: a mistake in the schedule ends the worker's start, and is told in the terminal.
            Beat(app, **self._options)
        except AmqptasksError as error:
            raise CannotStart(error) from error

    def start(self) -> None:
        """Start it. To be called before this process has threads or connections."""
        parent = os.getpid()
        self._keeper = os.fork()
        if not self._keeper:
            code = 1
            try:
                code = _keep(parent, self._run)
            finally:
                os._exit(code)

    def stop(self) -> None:
        """Stop it, and wait for its end, but not for ever."""
        keeper, self._keeper = self._keeper, 0
        if not keeper:
            return
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 1.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, number)
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline:
                try:
                    if os.waitpid(keeper, os.WNOHANG)[0]:
                        return
                except ChildProcessError:
                    return
                time.sleep(0.01)

    def _run(self) -> int:
        from amqptasks.beat.service import Beat

        beat = Beat(self._app, **self._options)
        beat.install_signals()
        _while_alive(os.getppid(), beat.stop)
        return beat.run()


def _while_alive(parent: int, then: Any) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        then()

    threading.Thread(target=watch, name="amqptasks beat's parent", daemon=True).start()


def _keep(parent: int, run: Any) -> int:
    """Run beat in a child, again whenever it dies; end when told to, or when the worker has ended."""
    stopped = False
    child = 0

    def stop(_number: int, _frame: Any) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, stop)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while not stopped and os.getppid() == parent:
        child = os.fork()
        if not child:
            code = 1
            try:
                _rename("Beat")
                code = run()
            except Exception:
                logger.exception("beat: ended with an error")
            finally:
                logging.shutdown()
                os._exit(code)
        status = _await(child, lambda: stopped or os.getppid() != parent)
        if not stopped and os.getppid() == parent:
            logger.error("beat: its process ended with %s; starting it again", status)
            time.sleep(AGAIN_S)
    return 0


def _await(child: int, is_over: Any) -> int:
    """Wait for a process to end, and ask it to when this is over; returns its exit code."""
    deadline = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if is_over():
            if deadline is None:
                deadline = time.monotonic() + STOP_S - 1
                os.kill(child, signal.SIGTERM)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02 if deadline is not None else LOOK_S / 5)


def _rename(name: str) -> None:
    import multiprocessing

    multiprocessing.current_process().name = name
