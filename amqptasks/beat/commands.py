"""What the leader does when it is asked to (`orders`): list, show, run, pause, resume, add, remove.

A command gets the scheduler and the order, and may

- read ``scheduler.schedule`` (entries by name), ``scheduler.next_run(name)``, ``scheduler.added``;
- send an entry now: ``scheduler.run_now(name)``;
- hold an entry back or let it go: set ``entry.is_paused``, then ``scheduler.touch(name)``;
- add an entry: ``scheduler.add_definition(name, definition)``; remove one: ``scheduler.remove_added(name)``;
- raise `OrderError` to refuse.

What the arguments hold comes from anybody. An order may come twice, `Order.is_again`: to do it again must do no harm.
"""

from __future__ import annotations

import logging
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Final

from amqptasks.beat.additions import checked, checked_name, nearest, room_left, size_of, warnings_of
from amqptasks.beat.entries import ScheduleEntry
from amqptasks.beat.handing_over import Sendable
from amqptasks.beat.orders import Order, OrderError, read_order, write_answer
from amqptasks.beat.scheduler import Scheduler, SchedulingError
from amqptasks.beat.state import MAX_ENTRIES, to_us
from amqptasks.beat.timing import next_after
from amqptasks.beat.views import CONFIG, RUN_TIME, plain_copy, words
from amqptasks.exceptions import AmqptasksError, DecodeError, EncodeError
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.reprs import printable

__all__ = ["COMMANDS", "Carried", "Command", "carry_out"]

logger = logging.getLogger("amqptasks.beat")

#: Entries in one answer at most. Who lists asks again for those after the last.
PAGE: Final = 500
#: An answer ends after so long, seconds: what is due must not wait for it.
PAGE_S: Final = 0.02
#: How many next runs are shown of one entry.
UPCOMING: Final = 5

Command = Callable[[Scheduler, Order], Any]


class Carried:
    """An order that was carried out, as far as this thread can: what it sends is not confirmed yet.

    Args:
        order: The order; None if it was none.
        answer: What its command returned, or why it was refused.
        sends: What it sends. If that is refused, the order has failed.
    """

    def __init__(self, order: Order | None, answer: dict[str, Any], sends: list[Sendable]) -> None:
        self._order = order
        self._answer = answer
        self._sends = sends

    def answer(self) -> EncodedMessage | None:
        """Return the answer, if there is anybody to answer. To be asked once everything was sent. Never raises."""
        if self._order is None:
            return None
        failed = next((each.error for each in self._sends if each.error is not None), None)
        answer = self._answer if failed is None else {"error": f"it was not sent: {printable(str(failed), 900)}"}
        try:
            return write_answer(self._order, answer)
        except EncodeError as error:
            logger.error("beat: cannot answer an order: %s", printable(str(error), 300))
            return None


def carry_out(scheduler: Scheduler, body: bytes, properties: Any, *, is_again: bool = False) -> Carried:
    """Carry out an order. Never raises."""
    try:
        order = read_order(body, properties, is_again=is_again)
    except DecodeError as error:
        logger.error("beat: threw away what is no order: %s", printable(str(error), 300))
        return Carried(None, {}, [])
    before = len(scheduler.outbox)
    answer = _answer(scheduler, order)
    return Carried(order, answer, scheduler.outbox[before:])


def _answer(scheduler: Scheduler, order: Order) -> dict[str, Any]:
    shown = printable(order.command, 80)
    command = COMMANDS.get(order.command)
    if command is None:
        return {"error": f"the beat that leads does not know the order '{shown}'"}
    try:
        answer = {"ok": command(scheduler, order)}
    except (AmqptasksError, ValueError, SchedulingError) as error:
        logger.info("beat: refused the order %s: %s", shown, printable(str(error), 300))
        return {"error": printable(str(error), 1000)}
    except Exception as error:
        logger.exception("beat: the order %s failed", shown)
        return {"error": printable(f"{type(error).__name__}: {error}", 1000)}
    level = logging.DEBUG if order.command in _READS else logging.INFO
    logger.log(level, "beat: carried out the order %s %s", shown, printable(order.arguments.get("name", ""), 255))
    return answer


# -- reading


def _ping(scheduler: Scheduler, _order: Order) -> Any:
    return {"entries": len(scheduler.schedule)}


def _list(scheduler: Scheduler, order: Order) -> Any:
    """A page of the entries by name: those behind ``after``, and where the next page begins."""
    after = order.arguments.get("after")
    if after is not None and not isinstance(after, str):
        raise OrderError(f"expected after to be the name of an entry, got: {after!r:.80}")
    schedule = scheduler.schedule
    names = sorted({*schedule, *scheduler.unusable})
    at = 0 if after is None else bisect_right(names, after)
    until = time.monotonic() + PAGE_S
    entries: list[Any] = []
    while at < len(names) and len(entries) < PAGE and (not entries or time.monotonic() < until):
        entries.append(_row(scheduler, names[at]))
        at += 1
    return {"entries": entries, "after": names[at - 1] if at < len(names) else None, "total": len(names)}


def _row(scheduler: Scheduler, name: str) -> dict[str, Any]:
    entry = scheduler.schedule.get(name)
    if entry is None:
        definition = scheduler.added[name]
        return {
            "name": name, "task": definition.get("task"), "schedule": definition.get("schedule"),
            "words": str(definition.get("schedule")), "source": RUN_TIME, "problem": scheduler.unusable[name],
        }  # fmt: skip
    rule, upcoming = entry.schedule, scheduler.next_run(name)
    return {
        "name": name, "task": str(entry.task), "schedule": rule.describe() if hasattr(rule, "describe") else repr(rule),
        "words": words(rule), "source": RUN_TIME if name in scheduler.added else CONFIG, "paused": entry.is_paused,
        "runs": entry.total_run_count, "last_run": to_us(entry.last_run_at) if entry.has_run else None,
        "next_run": None if upcoming is None else to_us(upcoming),
        "missed": entry.missed or scheduler.app.conf.beat_missed_runs,
    }  # fmt: skip


def _show(scheduler: Scheduler, order: Order) -> Any:
    name = _known(scheduler, order)
    row, entry = _row(scheduler, name), scheduler.schedule.get(name)
    if entry is None:
        definition = scheduler.added[name]
        return row | {key: definition.get(key) for key in ("args", "kwargs", "options", "missed")}
    return row | {
        "args": plain_copy(list(entry.args or ())), "kwargs": plain_copy(dict(entry.kwargs or {})),
        "options": plain_copy(dict(entry.options or {})), "next_runs": _upcoming(scheduler, name, entry),
    }  # fmt: skip


def _upcoming(scheduler: Scheduler, name: str, entry: ScheduleEntry) -> list[int]:
    found: list[int] = []
    moment = scheduler.next_run(name)
    while moment is not None and len(found) < UPCOMING:
        found.append(to_us(moment))
        try:
            moment = next_after(entry.schedule, moment)
        except Exception:
            # A schedule of the user's own; when it is due, that is logged.
            break
    return found


# -- changing


def _run(scheduler: Scheduler, order: Order) -> Any:
    """Send an entry now. Who asks chooses the id, so that the same order, carried out twice, is one task."""
    _entry, name = _usable(scheduler, order)
    given = order.arguments.get("id")
    try:
        task_id = None if given is None else str(uuid.UUID(given))
    except (ValueError, TypeError, AttributeError) as error:
        raise OrderError(f"expected id to be a UUID, got: {given!r:.80}") from error
    return {"name": name, "id": scheduler.run_now(name, task_id)}


def _pause(scheduler: Scheduler, order: Order) -> Any:
    return _hold(scheduler, order, is_paused=True)


def _resume(scheduler: Scheduler, order: Order) -> Any:
    return _hold(scheduler, order, is_paused=False)


def _hold(scheduler: Scheduler, order: Order, *, is_paused: bool) -> Any:
    entry, name = _usable(scheduler, order)
    was = entry.is_paused
    if was != is_paused:
        entry.is_paused = is_paused
        if not is_paused:
            # What would have been due meanwhile is not missed: nobody wanted it.
            entry.due_at = scheduler.now()
        scheduler.touch(name)
        scheduler.refresh()
    return {"name": name, "changed": was != is_paused, **_next(scheduler, name)}


def _add(scheduler: Scheduler, order: Order) -> Any:
    arguments = order.arguments
    name = checked_name(arguments.get("name"))
    definition = checked(arguments.get("definition"))
    warnings = warnings_of(scheduler.app, definition)
    old = scheduler.added.get(name)
    if old is None and name in scheduler.schedule:
        raise OrderError(
            f"there is an entry {name!r} in the config, which counts: choose another name, or change it there"
        )
    if old is not None and arguments.get("replace") is not True and not (order.is_again and old == definition):
        raise OrderError(f"there is an entry {name!r} already, added at run time: --replace replaces it")
    if len(scheduler.schedule) >= MAX_ENTRIES:
        raise OrderError(f"the schedule is full: it has {MAX_ENTRIES} entries")
    left = room_left(scheduler.added, name, scheduler.app.conf.task_message_max_bytes)
    if size_of(name, definition) > left:
        raise OrderError(
            f"there is no room for it: the entries added at run time may take a quarter of task_message_max_bytes, and "
            f"{max(left, 0)} bytes of that are left. Remove some, or put entries into the config"
        )
    scheduler.add_definition(name, definition)
    scheduler.refresh()
    return {"name": name, "replaced": old is not None, "warnings": warnings, **_next(scheduler, name)}


def _remove(scheduler: Scheduler, order: Order) -> Any:
    given = order.arguments.get("name")
    if order.is_again and isinstance(given, str) and given not in scheduler.schedule and given not in scheduler.added:
        return {"name": given}
    name = _known(scheduler, order)
    if name not in scheduler.added:
        raise OrderError(
            f"{name!r} comes from the config: take it out of beat_schedule (or add_periodic_task) and start beat "
            f"anew, or hold it back: schedule pause"
        )
    scheduler.remove_added(name)
    scheduler.refresh()
    return {"name": name}


def _known(scheduler: Scheduler, order: Order) -> str:
    """Return the name of the entry that is meant.

    Raises:
        OrderError: There is none.
    """
    name = order.arguments.get("name")
    if not isinstance(name, str):
        raise OrderError(f"expected name to be the name of an entry, got: {name!r:.80}")
    if name not in scheduler.schedule and name not in scheduler.unusable:
        raise OrderError(f"there is no entry {name!r:.200}{nearest(name, [*scheduler.schedule, *scheduler.unusable])}")
    return name


def _usable(scheduler: Scheduler, order: Order) -> tuple[ScheduleEntry, str]:
    name = _known(scheduler, order)
    problem = scheduler.unusable.get(name)
    if problem is not None:
        raise OrderError(f"the entry {name!r} cannot be used: {problem}")
    return scheduler.schedule[name], name


def _next(scheduler: Scheduler, name: str) -> Mapping[str, Any]:
    moment = scheduler.next_run(name)
    return {"next_run": None if moment is None else to_us(moment)}


#: What can be ordered, by name.
COMMANDS: dict[str, Command] = {
    "add": _add, "list": _list, "pause": _pause, "ping": _ping, "remove": _remove, "resume": _resume, "run": _run,
    "show": _show,
}  # fmt: skip
_READS: Final = frozenset({"list", "ping", "show"})
