"""Beat as it runs: waits to lead, and while it does, sends what is due.

One thread decides, the one that calls `Beat.run`; the broker's affairs are those of another (`leadership`). Code of
users, such as the functions behind arguments, runs here, and may take its time without losing the lead.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from amqptasks import signals
from amqptasks.app.discovery import named_object
from amqptasks.beat.commands import Carried, carry_out
from amqptasks.beat.handing_over import Batch, LeadLost, Led, Lost, Ordered, Sendable
from amqptasks.beat.leadership import Leadership
from amqptasks.beat.naming import names_of
from amqptasks.beat.ping import LEAST_AGE_S, Busyness, Ping, node_of
from amqptasks.beat.scheduler import PersistentScheduler, Scheduler
from amqptasks.beat.state import BASE, CHANGES, EntryState, Journal, Record, State, assemble, to_us
from amqptasks.broker.link import Backoff
from amqptasks.clock import utcnow
from amqptasks.exceptions import ImproperlyConfigured

__all__ = ["Beat", "make_scheduler"]

logger = logging.getLogger("amqptasks.beat")

#: Ticks are at least so far apart, seconds: where entries are due all the time, several share a record.
LEAST_TICK_S: Final = 0.02
#: What fails in a tick for a reason that nobody thought of is tried again after so long, seconds.
AFTER_FAULT_S: Final = 1.0
_STOP: Final = "stop"


def make_scheduler(
    app: Any, chosen: Any = None, *, title: str = "", max_interval: float | None = None, filename: str | None = None,
    lazy: bool = False,
) -> Scheduler:  # fmt: skip
    """Make the scheduler: the class that is chosen, or ``beat_scheduler``, or ours.

    Raises:
        ImproperlyConfigured: There is no such class, or the schedule is none.
    """
    kind = chosen or app.conf.beat_scheduler or PersistentScheduler
    if isinstance(kind, str):
        kind = SHORT_NAMES.get(kind) or named_object(kind, "the scheduler of beat")
    if not isinstance(kind, type) or not issubclass(kind, Scheduler):
        raise ImproperlyConfigured(
            f"expected the scheduler of beat to be a class derived from amqptasks.beat.Scheduler, got: {kind!r:.100}"
        )
    return kind(
        app=app, title=title, max_interval=max_interval, lazy=lazy,
        schedule_filename=filename or app.conf.beat_schedule_filename,
    )  # fmt: skip


#: Schedulers of Celery's that ours stands for.
SHORT_NAMES: Final[dict[str, type[Scheduler]]] = {
    "celery.beat:PersistentScheduler": PersistentScheduler, "celery.beat.PersistentScheduler": PersistentScheduler,
    "celery.beat:Scheduler": Scheduler, "celery.beat.Scheduler": Scheduler,
}  # fmt: skip


class Beat:
    """Sends what is due while it leads, until it is told to stop. Several for one schedule are simply safe.

    Args:
        app: The app, finalized.
        scheduler: A class, or its dotted name, in place of ours.
        max_interval: How long to sleep at most, seconds.
        filename: The file that remembers.
        embedded: It runs beside a worker.
        remote_control: Answer pings; None for ``beat_enable_remote_control``.
        hostname: The name to answer them by.
    """

    def __init__(
        self, app: Any, *, scheduler: Any = None, max_interval: float | None = None, filename: str | None = None,
        embedded: bool = False, remote_control: bool | None = None, hostname: str | None = None,
    ) -> None:  # fmt: skip
        self.app = app
        self.names = names_of(app)
        self.embedded = embedded
        self.scheduler = make_scheduler(
            app, scheduler, title=self.names.title, max_interval=max_interval, filename=filename
        )
        conf = app.conf
        age_s = conf.beat_remote_control_max_tick_age
        self._busyness = Busyness(max(LEAST_AGE_S, 2 * self.scheduler.max_interval) if age_s is None else age_s)
        is_answering = conf.beat_enable_remote_control if remote_control is None else remote_control
        self.ping = Ping(app, node_of(hostname), self._busyness) if is_answering else None
        # Read here, where a mistake in a URL can be told.
        self._endpoints = app.endpoints("beat")
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._journal = Journal()
        self._leadership: Leadership | None = None
        self._term = ""
        self._state = State(uuid.uuid4().hex)
        self._orders: list[Ordered] = []
        #: Names of the entries that have changed since the file was written.
        self._unsaved: set[str] = set()

    @property
    def label(self) -> str:
        """The broker, without its password."""
        return self._endpoints[0].label  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Have `run` end. Safe from any thread, and from a signal handler."""
        self._stopped.set()
        self._inbox.put(_STOP)

    def install_signals(self) -> Callable[[], None]:
        """Let TERM, INT and QUIT stop it; returns what undoes that."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    def run(self) -> int:
        """Stand by, lead, send; returns the exit code when it was told to stop."""
        logger.info("beat: Starting...")
        conf = self.app.conf
        (signals.beat_embedded_init if self.embedded else signals.beat_init).send(self)
        logger.debug("beat: Ticking with max interval->%g s", self.scheduler.max_interval)
        leadership = self._leadership = Leadership(
            self._endpoints, self.names, self._inbox.put, conf.task_message_max_bytes,
            Backoff(max_s=conf.broker_connection_retry_interval_max), self.ping, self._digest(),
        )  # fmt: skip
        leadership.start()
        wait_s: float | None = None
        try:
            while not self._stopped.is_set():
                self._hear(wait_s)
                wait_s = self._turn()
        finally:
            logger.info("beat: Shutting down...")
            # First what was sent, then the good-bye: the next one leads from here on.
            self._save()
            leadership.close()
            self._close_scheduler()
        return 0

    def _digest(self) -> str:
        names = sorted(name for name in self.scheduler.schedule if name not in self.scheduler.added)
        return hashlib.sha1("\0".join(names).encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:12]

    def _close_scheduler(self) -> None:
        try:
            self.scheduler.close()
        except Exception:
            logger.exception("beat: the scheduler's close() failed")

    # -- hearing

    def _hear(self, wait_s: float | None) -> None:
        """Wait so long for something to happen, and take in all that has."""
        try:
            self._busyness.end()
            event = self._inbox.get(timeout=wait_s)
            self._busyness.begin()
            while True:
                self._take_in(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take_in(self, event: Any) -> None:
        if isinstance(event, Led):
            try:
                self._begin(event)
            except Exception:
                logger.exception("beat: cannot lead; leaving that to another")
                self._term = ""
                assert self._leadership is not None
                self._leadership.give_up("this beat cannot lead")
        elif isinstance(event, Lost):
            if event.term == self._term:
                self._end_term(event.reason)
        elif isinstance(event, Ordered) and event.term == self._term:
            self._orders.append(event)

    def _begin(self, event: Led) -> None:
        found, is_torn = assemble(event.records)
        if is_torn:
            logger.warning("beat: some of what the last leader wrote is missing; going on from what there is")
        kept = self.scheduler.load()
        if kept is not None and (found is None or kept.is_newer(found)):
            if found is not None:
                logger.warning("beat: the file is newer than what the broker has; going on from the file")
            found = kept
        self._state = State(found.lineage, found.number, found.at) if found is not None else State(uuid.uuid4().hex)
        self.scheduler.restore(found)
        self._journal.begin()
        self._term = event.term
        logger.warning("beat: Leading the schedule %r: %d entries", self.names.title, len(self.scheduler.schedule))
        # The last leader's file may be on another machine.
        self._save()

    def _end_term(self, reason: str) -> None:
        self._term = ""
        self._orders.clear()
        logger.warning("beat: Leading no more: %s. Standing by.", reason)

    # -- leading

    def _turn(self) -> float | None:
        """Do what is to be done now; returns for how long there is nothing more, None for any time."""
        if not self._term or self._stopped.is_set():
            return None
        began = time.monotonic()
        self._busyness.begin()
        try:
            wait_s = self._tick()
        except LeadLost as lost:
            if self._term:
                self._end_term(str(lost))
            return None
        return max(wait_s, LEAST_TICK_S - (time.monotonic() - began), 0.0)

    def _tick(self) -> float:
        scheduler = self.scheduler
        try:
            wait_s = scheduler.tick()
        except Exception:
            # A scheduler of a user's own, most likely: its database is away. What it has decided by then is sent.
            logger.exception("beat: a tick failed; trying again")
            wait_s = AFTER_FAULT_S
        orders = list(self._orders)
        carried = []
        for each in orders:
            delivery = each.delivery
            carried.append(carry_out(scheduler, delivery.body, delivery.properties, is_again=delivery.redelivered))
            wait_s = 0.0
        messages, scheduler.outbox = scheduler.outbox, []
        record = self._record()
        if messages or record is not None:
            self._commit(Batch(messages, record))
        if orders:
            self._answer(orders, carried)
            if record is not None:
                # What was added must not depend on the broker alone.
                self._save_changes()
        self._sync_if_due()
        return wait_s

    def _commit(self, batch: Batch) -> None:
        assert self._leadership is not None
        self._leadership.commit(self._term, batch, self._stopped)
        if batch.record is not None:
            self._journal.wrote(batch.record.kind, batch.record_bytes, time.monotonic())
        for what, error in batch.failures:
            logger.error("Message Error: %s was not sent: %s", what, error)

    def _answer(self, orders: list[Ordered], carried: list[Carried]) -> None:
        # Apart from what the orders send: the answer tells whether the broker took that.
        made = [each.answer() for each in carried]
        answers = [Sendable(each, (), "an answer", mandatory=False) for each in made if each is not None]
        self._commit(Batch(answers=answers, orders=[each.delivery for each in orders]))
        # Not before: what fails until then is tried again with the next tick.
        del self._orders[: len(orders)]

    def _record(self) -> Record | None:
        """Return what is to be written after this tick."""
        scheduler, state, now = self.scheduler, self._state, time.monotonic()
        changes = scheduler.take_changes()
        if not changes and not self._journal.is_old(now):
            return None
        self._unsaved.update(changes.entries, changes.gone)
        state.number += 1
        state.at = to_us(utcnow())
        is_base = self._journal.wants_base(now)
        return Record(
            BASE if is_base else CHANGES, self._leadership.who if self._leadership else "", self._term, state.lineage,
            state.number, state.at, scheduler.all_states() if is_base else changes.entries,
            dict(scheduler.added) if is_base else changes.added, () if is_base else changes.gone,
        )  # fmt: skip

    # -- the file

    def _sync_if_due(self) -> None:
        if self.scheduler.should_sync():
            logger.debug("beat: Synchronizing schedule...")
            self._save_changes()
            try:
                self.scheduler.sync()
            except Exception:
                logger.exception("beat: the scheduler's sync() failed")

    def _save(self) -> None:
        """Write all of what is remembered."""
        if self._term:
            self._unsaved.clear()
            self.scheduler.save(self._remembered(self.scheduler.all_states()))
            self.scheduler.synced()

    def _save_changes(self) -> None:
        """Write what has changed since the last time: of 10,000 entries all take a tenth of a second."""
        scheduler = self.scheduler
        entries = {name: scheduler.state_of(name) for name in self._unsaved if name in scheduler.schedule}
        if scheduler.save(self._remembered(entries), self._unsaved - entries.keys()):
            self._unsaved.clear()
            scheduler.synced()
        else:
            self._save()

    def _remembered(self, entries: dict[str, EntryState]) -> State:
        state = self._state
        return State(state.lineage, state.number, state.at, entries, dict(self.scheduler.added))


def banner(beat: Beat, logfile: str | None, loglevel: str) -> str:
    """Return what beat says about itself when it starts."""
    scheduler, kind = beat.scheduler, type(beat.scheduler)
    most = scheduler.max_interval
    lines = [
        "__    -    ... __   -        _",
        f"LocalTime -> {time.strftime('%Y-%m-%d %H:%M:%S')}",
        "Configuration ->",
        f"    . broker -> {beat.label}",
        f"    . app -> {beat.app!r}",
        f"    . schedule -> {beat.names.title}, {len(scheduler.schedule)} entries",
        f"    . scheduler -> {kind.__module__}.{kind.__qualname__}",
        *([scheduler.info] if scheduler.info else []),
        f"    . logfile -> {logfile or '[stderr]'}@%{loglevel}",
        f"    . maxinterval -> {timedelta(seconds=most)} ({most:g}s)",
        *([f"    . remote control -> {beat.ping.hostname}"] if beat.ping is not None else []),
    ]
    return "\n".join(lines)
