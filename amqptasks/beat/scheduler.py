"""The scheduler: the entries, what is due of them, and the messages that sends. Its surface is Celery's.

It neither leads nor publishes: `tick` puts what is to be sent into `outbox`, and `service` hands that to the leadership
together with what has changed. So a tick that could not be sent is not half done: the next leader, this one perhaps,
decides it anew from the same memory.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from amqptasks.beat.added import Additions
from amqptasks.beat.entries import ScheduleEntry, aware, firing_id, from_config, mark_of
from amqptasks.beat.handing_over import Sendable
from amqptasks.beat.messages import SchedulingError, messages_of
from amqptasks.beat.state import EntryState, State, from_us, to_us
from amqptasks.beat.store import DEFAULT_FILENAME, StateFile
from amqptasks.beat.timing import Firing, Timetable
from amqptasks.clock import utcnow
from amqptasks.wire.reprs import printable

__all__ = ["PersistentScheduler", "Scheduler", "SchedulingError"]

logger = logging.getLogger("amqptasks.beat")

#: How long beat sleeps at most, seconds: a clock that is set is noticed by then. Celery's is 300.
DEFAULT_MAX_INTERVAL: Final = 5.0
#: How many tasks are sent before the record of them is.
MOST_AT_ONCE: Final = 500
#: A schedule that is the user's own property is compared this often, seconds.
COMPARE_EVERY_S: Final = 1.0


@dataclass(slots=True)
class Changes:
    """What has changed since it was asked last."""

    entries: dict[str, EntryState]
    added: dict[str, dict[str, Any]]
    gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.entries or self.added or self.gone)


class Scheduler(Additions):
    """Decides what is sent. Belongs to one thread.

    Derive from it to take the entries from elsewhere: override `setup_schedule`, or `schedule` itself.

    Args:
        app: The app.
        schedule: The entries by name, to begin with.
        max_interval: How long to sleep at most, seconds.
        lazy: Do not set up the schedule.
        sync_every_tasks: Write the file after so many tasks; 0: every three minutes.
        title: The schedule's name; ids of tasks are made of it.
    """

    Entry: type[ScheduleEntry] = ScheduleEntry
    max_interval: float = DEFAULT_MAX_INTERVAL
    #: How often `sync` is called, seconds.
    sync_every: float = 180.0
    sync_every_tasks: int | None = None
    logger = logger

    def __init__(
        self, app: Any, schedule: Any = None, max_interval: float | None = None, Producer: Any = None,
        lazy: bool = False, sync_every_tasks: int | None = None, title: str = "", **kwargs: Any,
    ) -> None:  # fmt: skip
        del Producer, kwargs  # Celery's
        self.app = app
        self.title = title
        self.data: dict[str, ScheduleEntry] = (schedule() if callable(schedule) else schedule) or {}
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or self.max_interval
        self.sync_every_tasks = app.conf.beat_sync_every if sync_every_tasks is None else sync_every_tasks
        #: What is to be sent: filled by `tick`.
        self.outbox: list[Sendable] = []
        self.added, self.unusable = {}, {}
        self._table = Timetable(self._failed, self._missed)
        self._known: dict[str, ScheduleEntry] = {}
        self._is_stale = True
        self._compared_at = 0.0
        self._changed: set[str] = set()
        self._gone: set[str] = set()
        self._touched: set[str] = set()
        self._firing_id: str | None = None
        self._left_out: dict[str, int] = {}
        self._marks: dict[str, str] = {}
        self._last_sync = time.monotonic()
        self._tasks_since_sync = 0
        if not lazy:
            self.setup_schedule()

    # -- the entries

    def setup_schedule(self) -> None:
        """Take the entries from the settings."""
        self.install_default_entries(self.schedule)
        self.merge_inplace(self.app.conf.beat_schedule)

    def install_default_entries(self, data: Any) -> None:
        """Add entries that every app has: none. What is old is deleted without beat."""

    def get_schedule(self) -> dict[str, ScheduleEntry]:
        """Return the entries by name."""
        return self.data

    def set_schedule(self, schedule: dict[str, ScheduleEntry]) -> None:
        """Replace all entries."""
        self.data = schedule
        self._is_stale = True

    schedule = property(get_schedule, set_schedule)

    def _maybe_entry(self, name: str, entry: Any) -> ScheduleEntry:
        if isinstance(entry, self.Entry):
            entry.app = self.app
            return entry
        return from_config(name, entry, self.app, self.Entry)

    def add(self, **kwargs: Any) -> ScheduleEntry:
        """Add an entry, given as for `ScheduleEntry`, until this beat ends."""
        entry = self.Entry(app=self.app, **kwargs)
        self.schedule[entry.name] = entry
        self._is_stale = True
        return entry

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Add entries as ``beat_schedule`` has them.

        Raises:
            ImproperlyConfigured: One of them is none.
        """
        self.schedule.update({name: self._maybe_entry(name, entry) for name, entry in dict_.items()})
        self._is_stale = True

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Make the entries those of ``b``, and keep what is remembered of those that stay."""
        schedule = self.schedule
        for name in set(schedule) - set(b) - set(self.added):
            schedule.pop(name, None)
        for name, value in b.items():
            entry = self._maybe_entry(name, value)
            if schedule.get(name):
                schedule[name].update(entry)
            else:
                schedule[name] = entry
        self._is_stale = True

    def schedule_changed(self) -> bool:
        """Whether the entries have changed elsewhere, such as in a database. Asked about once a second."""
        return False

    @property
    def info(self) -> str:
        """What is said of it at the start."""
        return ""

    # -- ticking

    def tick(self) -> float:
        """Put what is due into the outbox; returns in how many seconds to look again."""
        self.refresh()
        now = self.now()
        for firing in self._table.take(now, MOST_AT_ONCE):
            self._fire(firing, now)
        if self._left_out:
            self._tell_missed()
        wakes_at = self._table.wakes_at
        if wakes_at is None:
            return self.max_interval
        return min(max((wakes_at - self.now()).total_seconds(), 0.0), self.max_interval)

    def now(self) -> datetime:
        """Return what time it is."""
        return utcnow()

    def _fire(self, firing: Firing, now: datetime) -> None:
        entry = self.schedule.get(firing.name)
        if entry is None:
            return
        # Of a schedule that must be asked it is known which run is the next, but not when that was due.
        which = firing.due or f"after {entry.anchor.isoformat()}"
        self._firing_id = firing_id(self.title, firing.name, which)
        try:
            self.apply_entry(self.fired(entry, firing.due or now))
        finally:
            self._firing_id = None

    def fired(self, entry: ScheduleEntry, due: datetime) -> ScheduleEntry:
        """Take note that an entry is sent for a due time; returns it as it is after that."""
        made = self.reserve(entry)
        made.due_at, made.last_run_at, made.has_run = due, self.now(), True
        self._known[made.name] = made
        self._changed.add(made.name)
        return made

    def run_now(self, name: str, task_id: str | None = None) -> str:
        """Send an entry now, whenever it is due; returns the task's id. Its next run is when it was.

        Args:
            name: The entry.
            task_id: The id to send it with, unless its options say one.

        Raises:
            KeyError: There is no such entry.
            SchedulingError: It cannot be sent.
        """
        entry = self.schedule[name]
        self._firing_id = task_id or str(uuid.uuid4())
        try:
            made = self.fired(entry, self._table.anchor(name) or entry.anchor)
            result = self.apply_async(made, advance=False)
            return getattr(result, "id", None) or self._firing_id
        finally:
            self._firing_id = None

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """Put the entry, as it is after it was sent, in its place."""
        made = self.schedule[entry.name] = next(entry)
        return made

    def is_due(self, entry: ScheduleEntry) -> Any:
        """Return whether an entry is due, and in how many seconds to look again."""
        return entry.is_due()

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Send an entry. What goes wrong is logged."""
        logger.info("Scheduler: Sending due task %s (%s)", printable(entry.name, 200), printable(str(entry.task), 200))
        try:
            result = self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:
            logger.exception("Message Error: %s", error)
        else:
            logger.debug("%s sent. id->%s", entry.task, getattr(result, "id", None))

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Make the message of an entry, and put it into the outbox.

        Raises:
            SchedulingError: It cannot be made.
        """
        entry = self.fired(entry, self.now()) if advance else entry
        try:
            result, messages = messages_of(self.app, entry, self._firing_id, kwargs, self.send_task)
        except Exception as error:
            raise SchedulingError(f"Couldn't apply scheduled task {entry.name}: {error}") from error
        finally:
            self._tasks_since_sync += 1
        self.outbox += messages
        return result

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """Send a task that is not known here."""
        return self.app.send_task(*args, **kwargs)

    def _failed(self, name: str, error: Exception) -> None:
        # One entry whose next run cannot be told must not stop the others.
        logger.error(
            "beat: Cannot calculate the next run of %r, trying again in a minute: %r", name, error, exc_info=error
        )

    def _missed(self, name: str, count: int) -> None:
        self._left_out[name] = count

    def _tell_missed(self) -> None:
        """Tell of the runs that are left out: in one line, for after a night it may be thousands of entries."""
        left_out, self._left_out = self._left_out, {}
        names = ", ".join(map(repr, list(left_out)[:5])) + (", …" if len(left_out) > 5 else "")
        logger.warning(
            "beat: %d or more missed runs of %d entries are left out: %s",
            sum(left_out.values()), len(left_out), printable(names, 500),
        )  # fmt: skip

    # -- keeping the table in step with the entries

    def refresh(self) -> None:
        """Take over what has changed in the entries."""
        schedule = self.schedule
        touched, self._touched = self._touched, set()
        for name in touched:
            if name in schedule:
                self._enter(name, schedule[name], self.now())
        if not self._is_stale and schedule is self._watched():
            return
        if not self._is_stale:
            clock = time.monotonic()
            if clock - self._compared_at < COMPARE_EVERY_S and not self.schedule_changed():
                return
            self._compared_at = clock
        self._is_stale = False
        now = self.now()
        for name in self._known.keys() - schedule.keys():
            del self._known[name]
            self._marks.pop(name, None)
            self._table.remove(name)
            self._changed.discard(name)
            self._gone.add(name)
        for name, entry in schedule.items():
            self._enter(name, entry, now)

    def _watched(self) -> Any:
        # Another class's `schedule` may be another mapping each time, or be changed behind our back.
        return self.data if type(self).schedule is Scheduler.schedule else None

    def _enter(self, name: str, entry: ScheduleEntry, now: datetime) -> None:
        known, mark = self._known.get(name), mark_of(entry.schedule)
        is_same = known is not None and known.is_paused == entry.is_paused and (known is entry or known == entry)
        if is_same and self._marks.get(name) == mark:
            self._known[name] = entry
            return
        if known is None or self._marks.get(name) != mark:
            self._changed.add(name)
        self._known[name] = entry
        self._marks[name] = mark
        self._gone.discard(name)
        if entry.is_paused:
            self._table.remove(name)
        else:
            self._table.set(name, entry.plan(self.app.conf), entry.anchor, now)

    def touch(self, name: str) -> None:
        """Look at an entry anew: it was changed, added, or taken out."""
        self._changed.add(name)
        self._known.pop(name, None)
        self._table.remove(name)
        self._touched.add(name)
        if name not in self.schedule:
            self._gone.add(name)

    def next_run(self, name: str) -> datetime | None:
        """Return when an entry is due next; None if it is held back, or nobody can tell."""
        return self._table.next(name)

    # -- memory

    def restore(self, state: State | None) -> None:
        """Take over what is remembered of the entries. Those that are not remembered begin now."""
        now = self.now()
        schedule = self.schedule
        self._restore_added(state.added if state is not None else {})
        known = state.entries if state is not None else {}
        for name, entry in schedule.items():
            self._restore_one(entry, known.get(name), now)
        self._gone = {name for name in known if name not in schedule and name not in self.added}
        self._known.clear()
        self._marks.clear()
        self._table = Timetable(self._failed, self._missed)
        self._is_stale = True
        self.refresh()
        self._changed = {name for name in schedule if self.state_of(name) != known.get(name)}

    @staticmethod
    def _restore_one(entry: ScheduleEntry, known: EntryState | None, now: datetime) -> None:
        if known is None and entry.has_memory:
            # A class of a user's own remembers too, and before we do.
            entry.due_at, entry.has_run = None, entry.total_run_count > 0
            return
        if known is None or known.mark != mark_of(entry.schedule):
            entry.last_run_at, entry.due_at = now, now
            entry.has_run, entry.is_paused = False, bool(known and known.paused)
            if known is not None:
                entry.total_run_count = known.count
            return
        entry.due_at = from_us(known.anchor)
        entry.has_run = known.sent is not None
        entry.last_run_at = from_us(known.anchor if known.sent is None else known.sent)
        entry.total_run_count = known.count
        entry.is_paused = known.paused

    def state_of(self, name: str) -> EntryState:
        """Return what is to be remembered of an entry."""
        entry = self.schedule[name]
        anchor = self._table.anchor(name) or entry.anchor
        sent = to_us(aware(entry.last_run_at)) if entry.has_run else None
        return EntryState(to_us(anchor), sent, entry.total_run_count, self._marks.get(name, ""), entry.is_paused)

    def all_states(self) -> dict[str, EntryState]:
        """Return what is to be remembered of every entry."""
        return {name: self.state_of(name) for name in self.schedule}

    def take_changes(self) -> Changes:
        """Return what has changed since this was asked last."""
        schedule = self.schedule
        changed, self._changed = self._changed, set()
        gone, self._gone = self._gone, set()
        entries = {name: self.state_of(name) for name in changed if name in schedule}
        added = {name: self.added[name] for name in entries if name in self.added}
        return Changes(entries, added, tuple(name for name in gone if name not in schedule))

    # -- the file

    def should_sync(self) -> bool:
        """Whether it is time to write the file."""
        if self.sync_every_tasks and self._tasks_since_sync >= self.sync_every_tasks:
            return True
        return time.monotonic() - self._last_sync > self.sync_every

    def synced(self) -> None:
        """Take note that it was written."""
        self._last_sync = time.monotonic()
        self._tasks_since_sync = 0

    def load(self) -> State | None:
        """Return what was remembered in a file, to be used where the broker remembers nothing newer."""
        return None

    def save(self, state: State, gone: Collection[str] | None = None) -> bool:
        """Write what is to be remembered into a file; returns whether that was done.

        Args:
            gone: If these are given, the state has only the entries that have changed since the last time, and these
                are no more.
        """
        return True

    def sync(self) -> None:
        """Do what is to be done now and then: for classes that keep things of their own."""

    def close(self) -> None:
        """End it."""
        self.sync()


class PersistentScheduler(Scheduler):
    """The scheduler that is used unless another is named: it remembers in a file what the broker might forget."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.schedule_filename: str = kwargs.pop("schedule_filename", None) or DEFAULT_FILENAME
        self._file: StateFile | None = None
        super().__init__(*args, **kwargs)

    def _opened(self) -> StateFile:
        if self._file is None:
            self._file = StateFile(self.schedule_filename, self.title)
        return self._file

    def load(self) -> State | None:
        """Return what the file holds."""
        return self._opened().load()

    def save(self, state: State, gone: Collection[str] | None = None) -> bool:
        """Write the file."""
        return self._opened().save(state, gone)

    def close(self) -> None:
        """Write what there is, and close the file."""
        super().close()
        if self._file is not None:
            self._file.close()

    @property
    def info(self) -> str:
        """Where the file is."""
        return f"    . db -> {self.schedule_filename}"
