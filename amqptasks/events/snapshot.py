"""Snapshots: what a `State` knows is handed to a function of yours again and again, for instance to be stored.

A camera is a subclass of `Polaroid` with its own ``on_shutter``. ``amqptasks events --camera proj.Camera`` runs one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Protocol

from amqptasks.events.receiver import ReceivingApp
from amqptasks.events.state import State
from amqptasks.exceptions import ImproperlyConfigured, OperationalError
from amqptasks.signals import Signal

__all__ = ["Polaroid", "evcam"]

logger = logging.getLogger("amqptasks.evcam")

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class WatchingApp(ReceivingApp, Protocol):
    """What a camera needs of the app."""

    @property
    def events(self) -> Any:
        """Its events."""


def seconds_between(rate: Any) -> float:
    """Read a rate, ``"10/m"``, ``"2/s"``, ``"100/h"`` or a number a second, as the seconds between two; 0 without one.

    Raises:
        ImproperlyConfigured: It is none.
    """
    if rate is None or rate == "":
        return 0.0
    number, _, unit = str(rate).partition("/")
    try:
        count, seconds = float(number), _SECONDS[unit or "s"]
    except (ValueError, KeyError):
        count = -1.0
    if not 0 <= count < float("inf"):
        raise ImproperlyConfigured(f"expected a rate like 10/m, 2/s or 100/h, got: {rate!r:.80}")
    return seconds / count if count else 0.0


class Polaroid:
    """Takes snapshots of a state from a thread of its own: ``with Camera(state, freq=1.0): receiver.capture()``.

    The state stands still while ``on_shutter`` runs. What that raises is logged, and the next one comes all the same.

    Args:
        freq: Seconds between two.
        maxrate: Most of them in a time, such as ``"10/m"``.
        cleanup_freq: Seconds between two calls of ``on_cleanup``.
        timer: Accepted because Celery has it.

    Attributes:
        clear_after: Forget workers and tasks that have ended after each snapshot.
    """

    shutter_signal: ClassVar[Signal] = Signal("shutter_signal", frozenset({"state"}))
    cleanup_signal: ClassVar[Signal] = Signal("cleanup_signal")
    clear_after = False

    def __init__(
        self, state: State, freq: float = 1.0, maxrate: Any = None, cleanup_freq: float = 3600.0, timer: Any = None,
        app: Any = None,
    ) -> None:  # fmt: skip
        if not freq > 0:
            raise ImproperlyConfigured(f"expected the frequency of a camera to be seconds above 0, got: {freq!r:.40}")
        self.app = app
        self.state = state
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        self.maxrate = maxrate
        self.logger = logger
        self._least_s = seconds_between(maxrate)
        self._last: float | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Polaroid:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def on_shutter(self, state: State) -> None:
        """Do something with the state. Yours to define."""

    def on_cleanup(self) -> None:
        """Do something from time to time, such as delete what is old. Yours to define."""

    def install(self) -> None:
        """Begin to take snapshots."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="amqptasks-camera", daemon=True)
            self._thread.start()

    def cancel(self) -> None:
        """Take a last one, and end."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            thread.join()
            self._call(self.capture)

    def capture(self) -> None:
        """Take a snapshot now."""
        self.state.freeze_while(self.shutter, clear_after=self.clear_after)

    def shutter(self) -> None:
        """Tell of the state, if it is not too soon."""
        now = time.monotonic()
        if self._last is not None and now - self._last < self._least_s:
            return
        self._last = now
        logger.debug("Shutter: %s", self.state)
        self.shutter_signal.send(self.state)
        self.on_shutter(self.state)

    def cleanup(self) -> None:
        """Clean up now."""
        logger.debug("Cleanup: Running...")
        self.cleanup_signal.send(self.state)
        self.on_cleanup()

    def _run(self) -> None:
        clean_at = time.monotonic() + self.cleanup_freq
        while not self._ended.wait(self.freq):
            self._call(self.capture)
            if time.monotonic() >= clean_at:
                clean_at = time.monotonic() + self.cleanup_freq
                self._call(self.cleanup)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:
            logger.exception("The camera %s raised an error", type(self).__name__)


def evcam(
    camera: Any, freq: float = 1.0, maxrate: Any = None, loglevel: Any = 0, logfile: str | None = None,
    pidfile: str | None = None, timer: Any = None, app: WatchingApp | None = None,
    on_started: Callable[[], object] = lambda: None, **kwargs: Any,
) -> None:  # fmt: skip
    """Run a camera until the program is interrupted. A lost connection is opened again.

    Args:
        camera: A subclass of `Polaroid`.
        freq, maxrate: As of `Polaroid`.
        loglevel, logfile, pidfile, timer: Accepted because Celery has them; the command sees to the first three.
        on_started: Called once the first connection stands.

    Raises:
        ImproperlyConfigured: The camera does not take what it should.
        BrokerUnavailable: The first connection fails.
    """
    if app is None:
        raise TypeError("evcam() needs the app: evcam(Camera, app=app)")
    state: State = app.events.State()
    cam = camera(state, app=app, freq=freq, maxrate=maxrate, timer=timer)
    with app.connection_for_read() as connection:
        connection.connect()
        cam.install()
        on_started()
        receiver = app.events.Receiver(connection, handlers={"*": state.event})
        try:
            while True:
                try:
                    receiver.capture()
                except OperationalError as error:
                    logger.warning("Connection lost, connecting again: %s", error)
                    connection.ensure_connection(lambda error, wait_s: logger.error("%s", error))
        finally:
            cam.cancel()
