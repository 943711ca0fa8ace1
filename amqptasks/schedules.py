"""When periodic tasks run, under the names Celery's users import: ``from amqptasks.schedules import crontab``."""

from __future__ import annotations

from amqptasks.beat.crontab import crontab
from amqptasks.beat.crontab_grammar import ParseException, crontab_parser
from amqptasks.beat.schedules import BaseSchedule, maybe_schedule, schedstate, schedule
from amqptasks.beat.solar import solar

__all__ = [
    "BaseSchedule", "ParseException", "crontab", "crontab_parser", "maybe_schedule", "schedstate", "schedule", "solar",
]  # fmt: skip
