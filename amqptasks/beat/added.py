"""The part of the scheduler that keeps the entries added at run time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from amqptasks.beat.descriptions import rebuild
from amqptasks.beat.entries import ScheduleEntry, from_config
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.wire.reprs import printable

__all__ = ["Additions"]

logger = logging.getLogger("amqptasks.beat")


class Additions:
    """The entries that were added at run time, beside those of the config."""

    app: Any
    Entry: type[ScheduleEntry]
    schedule: Any
    #: Their definitions, by name.
    added: dict[str, dict[str, Any]]
    #: Why some of them cannot be used here, by name. They are kept for a beat that can.
    unusable: dict[str, str]

    def touch(self, name: str) -> None:
        """Look at an entry anew."""
        raise NotImplementedError

    def now(self) -> datetime:
        """Return what time it is."""
        raise NotImplementedError

    def define(self, name: str, definition: Mapping[str, Any]) -> ScheduleEntry:
        """Make an entry of plain data: as in ``beat_schedule``, but the schedule as its ``describe`` has it.

        Raises:
            ImproperlyConfigured, ValueError: It is none.
        """
        return from_config(name, {**definition, "schedule": rebuild(definition.get("schedule"))}, self.app, self.Entry)

    def add_definition(self, name: str, definition: dict[str, Any]) -> None:
        """Add an entry, or replace one that was added. Of that, what is remembered stays.

        Raises:
            ImproperlyConfigured, ValueError: It is none, or this scheduler's entries cannot be added to.
        """
        made, old, now = self.define(name, definition), self.schedule.get(name), self.now()
        made.last_run_at = made.due_at = now
        if old is not None:
            made.has_run, made.last_run_at, made.total_run_count = old.has_run, old.last_run_at, old.total_run_count
            made.is_paused = old.is_paused
            # The same times go on; others begin now.
            made.due_at = old.due_at if made.schedule == old.schedule else now
        self.schedule[name] = made
        if self.schedule.get(name) is not made:
            raise ValueError(
                f"the scheduler {type(self).__name__} takes its entries from elsewhere, and keeps none that is added "
                f"at run time: add it there"
            )
        self.added[name] = definition
        self.unusable.pop(name, None)
        self.touch(name)

    def remove_added(self, name: str) -> None:
        """Take out an entry that was added."""
        self.schedule.pop(name, None)
        self.unusable.pop(name, None)
        del self.added[name]
        self.touch(name)

    def _restore_added(self, added: Mapping[str, dict[str, Any]]) -> None:
        """Put these in place of those that are there."""
        schedule = self.schedule
        for name in self.added:
            schedule.pop(name, None)
        self.added, self.unusable = {}, {}
        for name, definition in added.items():
            if name in schedule:
                logger.warning("beat: the entry %r, added at run time, gives way to that of the config", name)
                continue
            self.added[name] = definition
            try:
                schedule[name] = self.define(name, definition)
            except (ImproperlyConfigured, ValueError) as error:
                self.unusable[name] = printable(str(error), 300)
                logger.error("beat: the entry %r, added at run time, cannot be used: %s", name, self.unusable[name])
