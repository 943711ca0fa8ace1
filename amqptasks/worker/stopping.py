"""How a worker ends: warm, soft, or cold; by a signal, a deadline, or because it cannot go on.

- Warm: nothing more is consumed, what has not begun goes back at once, what runs ends and is settled.
- Soft: the same for a limited time (``worker_soft_shutdown_timeout``), then cold. A cold stop begins so, if it is set.
- Cold: what runs is killed. Late-ack tasks go back to their queues; of early-ack ones it is told that they are lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from amqptasks import signals
from amqptasks.broker.confirms import ConfirmChannel
from amqptasks.broker.consumer import QueueConsumer
from amqptasks.broker.link import Link
from amqptasks.broker.loop import Loop
from amqptasks.clock import monotonic
from amqptasks.settings import Conf
from amqptasks.worker.deliveries import Deliveries
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.helper import Helper
from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.services import Service
from amqptasks.worker.settlement import Settlement

logger = logging.getLogger("amqptasks.worker")

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
#: How long a cold stop goes on telling how the killed tasks have ended, seconds.
LAST_WORDS_S: Final = 1.0
#: How long a stopping worker waits for its last acks and good-byes, seconds.
FAREWELL_S: Final = 1.0
#: How often a stopping worker looks whether it is done, seconds.
LOOK_S: Final = 0.02
#: With this variable set to SIGQUIT, TERM does what QUIT does: for platforms that send only TERM. As in Celery.
REMAP_VARIABLE: Final = "REMAP_SIGTERM"

RUNNING, WARM, SOFT, COLD, OVER = range(5)


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is to stop."""

    loop: Loop
    hostname: str
    conf: Conf
    pool: Pool
    helpers: Sequence[Helper]
    dispatcher: Dispatcher
    deliveries: Deliveries
    settlement: Settlement
    confirms: ConfirmChannel
    consumers: Sequence[QueueConsumer]
    links: Sequence[Link]
    stop_revocations: Callable[[], None]
    services: Sequence[Service]


class Stopping:
    """Leads a worker to its end. Belongs to the loop's thread.

    Attributes:
        exit_code: What the process is to end with.
        is_restart: It is to be started again then: it stops because of HUP.
    """

    def __init__(self, parts: Parts) -> None:
        self.exit_code = EXIT_OK
        self.is_restart = False
        self._parts = parts
        self._phase = RUNNING
        self._deadline: float | None = None
        self._is_patient = False
        self._are_services_told = False
        self._old_signals: dict[int, Any] = {}

    @property
    def has_begun(self) -> bool:
        """Whether the worker is to end."""
        return self._phase != RUNNING

    # -- signals

    def install_signals(self) -> None:
        """Let the signals that stop a process ask the loop to, and let the loop notice children that have ended."""

        def ask(number: int, _frame: Any) -> None:
            self._parts.loop.call_threadsafe(lambda: self.on_signal(number))

        def child(_number: int, _frame: Any) -> None:
            self._parts.loop.call_threadsafe(self._reap)

        for number, handler in (
            (signal.SIGTERM, ask), (signal.SIGINT, ask), (signal.SIGQUIT, ask), (signal.SIGCHLD, child),
            (signal.SIGHUP, ask),
        ):  # fmt: skip
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                # It was started by nohup.
                continue
            self._old_signals[number] = signal.signal(number, handler)

    def restore_signals(self) -> None:
        """Undo `install_signals`."""
        for number, handler in self._old_signals.items():
            signal.signal(number, handler)

    def _reap(self) -> None:
        reap = getattr(self._parts.pool, "reap", None)
        if reap is not None:
            reap()
        for helper in self._parts.helpers:
            helper.reap()

    def on_signal(self, number: int) -> None:
        """Do what a signal asks for: first to stop warmly, then more and more impatiently."""
        if number == signal.SIGTERM and os.environ.get(REMAP_VARIABLE, "").upper() == "SIGQUIT":
            number = signal.SIGQUIT
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            if self._phase == RUNNING:
                self.is_restart = True
                self.warm(name)
            return
        # Whoever wants it to end now does not want it to begin again.
        self.is_restart = False
        if self._phase == RUNNING and number != signal.SIGQUIT:
            self.warm(name, is_interrupt=number == signal.SIGINT)
        elif self._phase in (RUNNING, WARM):
            self.soft(name)
        elif self._phase == SOFT:
            self.cold(name)
        elif self._phase == COLD:
            self._farewell()

    # -- the ways to stop

    def warm(self, why: str, *, is_interrupt: bool = False) -> None:
        """Stop once what runs has ended, or ``worker_shutdown_timeout`` is over."""
        parts = self._parts
        self._phase = WARM
        logger.warning("%s: warm shutdown, waiting for %d running tasks", why, parts.dispatcher.running)
        if is_interrupt:
            self._say("worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!")
        self._announce("Warm", why, EXIT_OK)
        timeout_s = parts.conf.worker_shutdown_timeout
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        self._begin_nothing()
        self._wait_for_end()

    def soft(self, why: str) -> None:
        """Stop cold, but give what runs the time that the settings say."""
        parts = self._parts
        timeout_s: float = parts.conf.worker_soft_shutdown_timeout
        self._is_patient = bool(parts.conf.worker_enable_soft_shutdown_on_idle)
        if not timeout_s or not (self._is_busy or self._is_patient):
            self.cold(why)
            return
        was_waiting, self._phase = self._phase == WARM, SOFT
        logger.warning("%s: Initiating Soft Shutdown, terminating in %g seconds", why, timeout_s)
        self._say("worker: Hitting Ctrl+C again will terminate all running tasks!")
        self._announce("Soft", why, EXIT_OK)
        self._deadline = monotonic() + timeout_s
        self._begin_nothing()
        if not was_waiting:
            self._wait_for_end()

    def cold(self, why: str, exit_code: int = EXIT_FAILURE) -> None:
        """Stop now."""
        parts = self._parts
        if self._phase >= COLD:
            return
        self._phase = COLD
        self.exit_code = exit_code
        logger.warning("%s: cold shutdown, %d running tasks are abandoned", why, parts.dispatcher.running)
        self._announce("Cold", why, exit_code)
        # First of all: what is put back would come again at once, and count as delivered each time.
        self._consume_no_more()
        parts.deliveries.abandon("cold shutdown")
        # A child's last report may be on its way: of those it is told when they are gone. Threads only go with the
        # process.
        left = [] if parts.pool.can_kill else self._begun()
        parts.pool.kill()
        for request in left:
            parts.deliveries.on_lost(request, True, "cold shutdown")
        self._deadline = monotonic() + LAST_WORDS_S
        self._wait_for_last_words()

    def _begun(self) -> list[Any]:
        return [each for slot in self._parts.pool.slots for each in slot.assigned if slot.started(each) is not None]

    def _begin_nothing(self) -> None:
        self._consume_no_more()
        self._parts.deliveries.take_no_more()

    def _consume_no_more(self) -> None:
        self._parts.stop_revocations()
        for consumer in self._parts.consumers:
            consumer.stop_consuming()
        if not self._are_services_told:
            self._are_services_told = True
            for service in self._parts.services:
                service.stopping()

    @property
    def _is_unsettled(self) -> bool:
        parts = self._parts
        return bool(
            parts.settlement.unsettled or parts.confirms.waiting or any(helper.is_busy for helper in parts.helpers)
        )

    @property
    def _is_busy(self) -> bool:
        return bool(self._parts.dispatcher.running) or self._is_unsettled

    def _wait_for_end(self) -> None:
        if self._phase >= COLD:
            return
        is_over = self._deadline is not None and monotonic() > self._deadline
        if not self._is_busy and (is_over or self._phase == WARM or not self._is_patient):
            self._farewell()
        elif is_over:
            self.cold("worker_shutdown_timeout" if self._phase == WARM else "worker_soft_shutdown_timeout")
        else:
            self._parts.loop.call_later(LOOK_S, self._wait_for_end)

    def _wait_for_last_words(self) -> None:
        if self._phase != COLD:
            return
        are_dead = not self._parts.pool.can_kill or self._parts.pool.is_stopped
        if (are_dead and not self._is_unsettled) or monotonic() > (self._deadline or 0.0):
            self._farewell()
        else:
            self._parts.loop.call_later(LOOK_S, self._wait_for_last_words)

    # -- the end

    def _farewell(self) -> None:
        """Close what is open; the broker takes back what was not acked."""
        parts = self._parts
        if self._phase == COLD:
            for helper in parts.helpers:
                helper.kill()
        self._phase = OVER
        for consumer in parts.consumers:
            consumer.flush()
        for service in parts.services:
            service.close()
        parts.pool.stop()
        for helper in parts.helpers:
            helper.stop()
        for link in parts.links:
            link.stop()
        self._last_look(monotonic() + FAREWELL_S)

    def _last_look(self, deadline: float) -> None:
        parts = self._parts
        links_open = any(link.is_up for link in parts.links)
        children_left = parts.pool.can_kill and not parts.pool.is_stopped
        children_left = children_left or not all(helper.is_stopped for helper in parts.helpers)
        if (links_open or children_left) and monotonic() < deadline:
            parts.loop.call_later(LOOK_S, lambda: self._last_look(deadline))
        else:
            parts.loop.stop()

    def _announce(self, how: str, why: str, exit_code: int) -> None:
        hostname = self._parts.hostname
        self._say(f"\nworker: {how} shutdown ({hostname})")
        signals.worker_shutting_down.send(hostname, sig=why, how=how, exitcode=exit_code)

    @staticmethod
    def _say(text: str) -> None:
        if sys.__stdout__:
            # Where it goes may be full, or gone: that is no reason not to stop.
            with contextlib.suppress(OSError, ValueError):
                print(text, file=sys.__stdout__, flush=True)
