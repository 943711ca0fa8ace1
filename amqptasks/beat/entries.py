"""The entries of a schedule: which task is sent when, with what, and what is remembered of it."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, Final

from amqptasks.beat.schedules import BaseSchedule, maybe_schedule
from amqptasks.beat.timing import MISSED, Plan
from amqptasks.exceptions import ImproperlyConfigured

__all__ = ["BeatLazyFunc", "ScheduleEntry", "aware", "evaluated", "firing_id", "from_config", "mark_of"]

#: Ids of what beat sends are made in this namespace (RFC 4122, version 5).
NAMESPACE: Final = uuid.UUID("5d3f4c1e-2f7b-5a64-9c0e-0b7d1f6f8a11")
_KEYS: Final = frozenset({"task", "schedule", "args", "kwargs", "options", "relative", "missed"})
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


class BeatLazyFunc:
    """An argument of an entry that is worked out each time the entry is sent.

    Args:
        func: What is called, with the other arguments.
    """

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._func = func
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        """Return the value."""
        return self.delay()

    def delay(self) -> Any:
        """Return the value."""
        return self._func(*self._args, **self._kwargs)


def evaluated(args: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with every `BeatLazyFunc` replaced by its value."""
    return (
        tuple(each() if isinstance(each, BeatLazyFunc) else each for each in args or ()),
        {key: each() if isinstance(each, BeatLazyFunc) else each for key, each in (kwargs or {}).items()},
    )


class ScheduleEntry:
    """One entry. Its surface is Celery's.

    Args:
        name: Its name in the schedule.
        task: The task's name.
        last_run_at: When it was sent last, or first seen; now without.
        total_run_count: How often it was sent.
        schedule: When it is due: seconds, a timedelta, or a schedule.
        args, kwargs: What the task is called with.
        options: What `Task.apply_async` takes besides.
        relative: For seconds and timedeltas: by the clock.
        app: The app.
        missed: What becomes of runs that were missed, "skip", "once" or "all"; None for ``beat_missed_runs``.
    """

    _FIELDS: ClassVar = (
        "name", "task", "last_run_at", "total_run_count", "schedule", "args", "kwargs", "options", "app",
    )  # fmt: skip

    name: Any = None
    task: Any = None
    schedule: Any = None
    args: Any = None
    kwargs: Any = None
    options: Any = None
    last_run_at: Any = None
    total_run_count: int = 0
    #: What becomes of missed runs; None for the setting.
    missed: str | None = None
    #: The due time that was dealt with last, or when the entry was first seen; None for ``last_run_at``.
    due_at: datetime | None = None
    #: Whether it has been sent.
    has_run: bool = False
    #: Whether it is held back.
    is_paused: bool = False

    def __init__(
        self, name: str | None = None, task: str | None = None, last_run_at: datetime | None = None,
        total_run_count: int | None = None, schedule: Any = None, args: Any = (),
        kwargs: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None, relative: bool = False,
        app: Any = None, missed: str | None = None,
    ) -> None:  # fmt: skip
        self.app = app
        self.name = name
        self.task = task
        self.args = args
        self.kwargs = kwargs or {}
        self.options = options or {}
        self.schedule = maybe_schedule(schedule, relative, app=app)
        #: Whether it was said when it ran last, as by a class that remembers in a database.
        self.has_memory = last_run_at is not None
        self.last_run_at = last_run_at or self.default_now()
        self.total_run_count = total_run_count or 0
        self.missed = missed

    def default_now(self) -> datetime:
        """Return what time it is for its schedule."""
        now: datetime = self.schedule.now() if self.schedule else self.app.now()
        return now

    _default_now = default_now

    @property
    def anchor(self) -> datetime:
        """The moment from which its next run is counted."""
        return aware(self.due_at or self.last_run_at)

    def plan(self, conf: Any) -> Plan:
        """Return what decides when it is due, by these settings."""
        deadline_s = conf.beat_cron_starting_deadline
        return Plan(
            self.schedule, self.missed or conf.beat_missed_runs, conf.beat_missed_runs_max,
            None if deadline_s is None else timedelta(seconds=deadline_s),
        )  # fmt: skip

    def _next_instance(self, last_run_at: datetime | None = None) -> ScheduleEntry:
        """Return this entry as it is after it was sent."""
        made = type(self)(**dict(self, last_run_at=last_run_at or self.default_now(),
                                 total_run_count=self.total_run_count + 1))  # fmt: skip
        made.missed, made.due_at, made.is_paused, made.has_run = self.missed, self.due_at, self.is_paused, True
        return made

    __next__ = next = _next_instance

    def update(self, other: ScheduleEntry) -> None:
        """Take over what another entry says: task, schedule, args, kwargs, options, missed."""
        for field in ("task", "schedule", "args", "kwargs", "options", "missed"):
            setattr(self, field, getattr(other, field))

    def is_due(self) -> Any:
        """Return whether it is due, and in how many seconds to look again."""
        return self.schedule.is_due(self.last_run_at)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter([(field, getattr(self, field)) for field in self._FIELDS])

    def __repr__(self) -> str:
        call = ", ".join([*map(repr, self.args or ()), *(f"{key}={each!r}" for key, each in self.kwargs.items())])
        return f"<{type(self).__name__}: {self.name} {self.task}({call}) {self.schedule}>"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, ScheduleEntry):
            return NotImplemented
        return id(self) < id(other)

    def editable_fields_equal(self, other: Any) -> bool:
        """Whether another entry sends the same at the same times."""
        return all(
            getattr(self, field) == getattr(other, field) for field in ("task", "args", "kwargs", "options", "schedule")
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScheduleEntry) and self.editable_fields_equal(other)

    __hash__ = None  # type: ignore[assignment]


def aware(moment: datetime) -> datetime:
    """Return a moment as it is; a naive one, as databases have them, is in UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def from_config(name: str, entry: Any, app: Any, kind: type[ScheduleEntry] = ScheduleEntry) -> ScheduleEntry:
    """Make the entry that a value of ``beat_schedule`` describes.

    Raises:
        ImproperlyConfigured: It describes none.
    """
    if isinstance(entry, ScheduleEntry):
        return entry
    where = f"beat_schedule[{name!r:.100}]"
    if not isinstance(name, str) or not name:
        raise ImproperlyConfigured(f"expected the names in beat_schedule to be texts, got: {name!r:.80}")
    if not isinstance(entry, Mapping):
        raise ImproperlyConfigured(f"expected {where} to be a mapping with task and schedule, got: {entry!r:.80}")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        hint = "; options of the call go into 'options'" if kind is ScheduleEntry else ""
        raise ImproperlyConfigured(
            f"{where} has {unknown[0]!r}, which is not known: expected {', '.join(sorted(_KEYS))}{hint}"
        )
    values = dict(entry)
    missed = values.pop("missed", None)
    if not isinstance(values.get("task"), str) or not values["task"]:
        raise ImproperlyConfigured(f"expected {where} to name its task, got: {values.get('task')!r:.80}")
    if values.get("schedule") is None:
        raise ImproperlyConfigured(f"expected {where} to have a schedule: seconds, a timedelta, crontab(…)")
    if missed is not None and missed not in MISSED:
        raise ImproperlyConfigured(f"expected missed of {where} to be one of {', '.join(MISSED)}, got: {missed!r:.80}")
    for key, kinds, what in (("args", (list, tuple), "a list"), ("kwargs", Mapping, "a mapping"),
                             ("options", Mapping, "a mapping")):  # fmt: skip
        if values.get(key) is not None and not isinstance(values[key], kinds):
            raise ImproperlyConfigured(f"expected {key} of {where} to be {what}, got: {values[key]!r:.80}")
    try:
        made = kind(name=name, app=app, **values)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"{where}: {error}") from error
    made.missed = missed
    return made


def mark_of(rule: Any) -> str:
    """Return a short text that differs where schedules do: an entry with another one begins anew."""
    if isinstance(rule, BaseSchedule):
        described = json.dumps(rule.describe(), sort_keys=True, default=str)
    else:
        described = f"{type(rule).__module__}.{type(rule).__qualname__} {rule!r}"
    # Of a class without a repr of its own, that names a place in memory.
    return hashlib.sha1(_ADDRESS.sub("", described).encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:12]


def firing_id(title: str, name: str, due: datetime | str) -> str:
    """Return the id of the task that an entry sends for a due time: the same, whoever sends it, and however often."""
    moment = due if isinstance(due, str) else due.isoformat()
    return str(uuid.uuid5(NAMESPACE, f"{title}\0{name}\0{moment}"))
