"""Beat: what is to be sent when, by whom, and what is remembered of it.

`schedules.py`, `crontab.py` and `solar.py` say when, as pure functions of time; `timing.py` decides what is due;
`scheduler.py` makes the messages; `leadership.py` and `state.py` are about who sends them, and what the next one must
know; `service.py` runs it all. `orders.py`, `commands.py` and `additions.py` are what it can be asked to do meanwhile,
`remote.py` is who asks.

Users find here what Celery has under ``celery.beat``: `Scheduler`, `PersistentScheduler`, `ScheduleEntry`,
`BeatLazyFunc`, `SchedulingError`; and `RemoteSchedule`, which asks and changes a schedule while beat runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amqptasks.beat.entries import BeatLazyFunc, ScheduleEntry
    from amqptasks.beat.messages import SchedulingError
    from amqptasks.beat.remote import RemoteSchedule
    from amqptasks.beat.scheduler import PersistentScheduler, Scheduler

__all__ = ["BeatLazyFunc", "PersistentScheduler", "RemoteSchedule", "ScheduleEntry", "Scheduler", "SchedulingError"]

_HOMES = {
    "BeatLazyFunc": "entries", "PersistentScheduler": "scheduler", "RemoteSchedule": "remote",
    "ScheduleEntry": "entries", "Scheduler": "scheduler", "SchedulingError": "messages",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Late: whoever only wants a crontab is spared the rest.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"amqptasks.beat.{home}"), name)
