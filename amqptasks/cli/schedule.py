"""``amqptasks schedule``: the periodic tasks as beat runs them now: listed, fired, held back, added, removed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone, tzinfo
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amqptasks.cli.common import (
    EXIT_UNAVAILABLE,
    CliError,
    Globals,
    json_array,
    json_object,
    print_table,
    visible,
)
from amqptasks.cli.completion import complete_entry, complete_queue, complete_task, one_of
from amqptasks.cli.elements import Group, json_option
from amqptasks.cli.schedule_input import options_of, schedule_of
from amqptasks.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from amqptasks.beat.remote import RemoteSchedule
    from amqptasks.beat.views import EntryView

__all__ = ["schedule"]

F = TypeVar("F", bound=Callable[..., Any])

_MISSED = ("skip", "once", "all")


@click.group(cls=Group, short_help="List, fire, pause, add and remove periodic tasks.")
def schedule() -> None:
    """List, fire, pause, add and remove periodic tasks, while beat runs.

    The beat that leads does it, wherever it is. What is paused or added stays so, whatever restarts.
    """


def _timeout(command: F) -> F:
    return click.option(
        "-t", "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True, max=600), metavar="SECONDS",
        help="Wait so long for beat, also for one to come. Without it 5, and not at all if none runs.",
    )(command)  # fmt: skip


_name = click.argument("name", shell_complete=complete_entry)


@contextlib.contextmanager
def _asking(obj: Globals, timeout_s: float | None) -> Iterator[RemoteSchedule]:
    from amqptasks.beat.remote import NoLeader, RemoteSchedule

    app = obj.app(required=True)
    with RemoteSchedule(app, timeout_s) as remote:
        try:
            yield remote
        except NoLeader as error:
            raise CliError(str(error), EXIT_UNAVAILABLE) from error


# -- reading


@schedule.command(
    "list", short_help="Show all entries, with their last and next runs.",
    examples=("amqptasks -A proj schedule list", "amqptasks -A proj schedule list --json"),
)  # fmt: skip
@json_option()
@_timeout
@click.pass_obj
def list_entries(obj: Globals, /, as_json: bool, timeout_s: float | None) -> None:
    """Show all entries by name: task, schedule, last and next run, how often it ran, where it comes from.

    Times are those of the app's zone, the setting timezone.
    """
    with _asking(obj, timeout_s) as remote:
        entries = list(remote.list())
        title = remote.title
    zone = _zone(obj)
    if as_json:
        click.echo(json.dumps([_facts(each, zone) for each in entries], indent=2))
        return
    if not entries:
        obj.say(f"The schedule {title!r} has no entries: set beat_schedule, or: amqptasks schedule add")
        return
    print_table(
        ["NAME", "TASK", "SCHEDULE", "LAST RUN", "NEXT RUN", "RUNS", "FROM"],
        [
            [visible(each.name), visible(each.task), each.words, _last(each, zone), _next(each, zone),
             str(each.runs), each.source]
            for each in entries
        ],
    )  # fmt: skip
    paused = sum(each.paused for each in entries)
    count = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"
    obj.say(f"\n{count}{f', {paused} paused' if paused else ''}. Times are those of {zone}.")


@schedule.command(
    "show", short_help="Show one entry in detail.", examples=("amqptasks -A proj schedule show nightly-report",)
)
@_name
@json_option()
@_timeout
@click.pass_obj
def show_entry(obj: Globals, /, name: str, as_json: bool, timeout_s: float | None) -> None:
    """Show all of one entry: what it sends, and its next five runs."""
    with _asking(obj, timeout_s) as remote:
        entry = remote.show(name)
    zone = _zone(obj)
    if as_json:
        click.echo(json.dumps(_facts(entry, zone, in_full=True), indent=2))
        return
    lines = [
        ("name", visible(entry.name)), ("task", visible(entry.task)), ("schedule", entry.words),
        ("from", entry.source), ("args", _json(entry.args)), ("kwargs", _json(entry.kwargs)),
        ("options", _json(entry.options)), ("missed runs", entry.missed or ""), ("runs", str(entry.runs)),
        ("last run", _last(entry, zone)),
    ]  # fmt: skip
    if entry.problem or entry.paused or not entry.next_runs:
        lines.append(("next run", entry.problem or ("paused" if entry.paused else "-")))
    for at, moment in enumerate(entry.next_runs):
        lines.append(("" if at else "next runs", _when(moment, zone)))
    for label, text in lines:
        click.echo(f"{label:<12} {text}".rstrip())
    obj.say(f"\nTimes are those of {zone}.")


# -- changing


@schedule.command(
    "run", short_help="Send an entry's task now.", examples=("amqptasks -A proj schedule run nightly-report",)
)
@_name
@_timeout
@click.pass_obj
def run_entry(obj: Globals, /, name: str, timeout_s: float | None) -> None:
    """Send an entry's task now, and print its id.

    The entry's regular times stay as they are. One that is paused is sent too, and stays paused.
    """
    with _asking(obj, timeout_s) as remote:
        click.echo(remote.run(name))


@schedule.command(
    "pause", short_help="Hold an entry back.", examples=("amqptasks -A proj schedule pause nightly-report",)
)
@_name
@_timeout
@click.pass_obj
def pause_entry(obj: Globals, /, name: str, timeout_s: float | None) -> None:
    """Hold an entry back until it is resumed, whatever restarts meanwhile."""
    with _asking(obj, timeout_s) as remote:
        changed = remote.pause(name)
    obj.say(f"paused {name}" if changed else f"{name} is paused already")


@schedule.command(
    "resume", short_help="Let a paused entry go on.", examples=("amqptasks -A proj schedule resume nightly-report",)
)
@_name
@_timeout
@click.pass_obj
def resume_entry(obj: Globals, /, name: str, timeout_s: float | None) -> None:
    """Let a paused entry go on.

    It goes on from now. Runs that would have been due meanwhile are not made up for, whatever its policy for missed
    runs is.
    """
    with _asking(obj, timeout_s) as remote:
        changed = remote.resume(name)
    obj.say(f"resumed {name}" if changed else f"{name} is not paused")


@schedule.command(
    "add", short_help="Add an entry.",
    examples=(
        "amqptasks -A proj schedule add poll --task proj.poll --every 10s --queue web",
        "amqptasks -A proj schedule add mail --task proj.mail --crontab '30 7 * * 1-5'",
        "amqptasks -A proj schedule add lamp --task proj.lamp --solar sunset,52.5,13.4",
        "amqptasks -A proj schedule add poll --replace --task proj.poll --every 1m",
    ),
)  # fmt: skip
@click.argument("name")
@click.option("--task", metavar="TASK", shell_complete=complete_task, help="The task's name.")
@click.option("--every", metavar="TIME", help="Every so often: 10s, 5m, 1h30m, 2d.")
@click.option("--crontab", metavar="LINE", help="Minute, hour, day of month, month, day of week: '30 7 * * mon-fri'.")
@click.option("--solar", metavar="EVENT,LAT,LON", help="When the sun does something: sunset,52.5,13.4.")
@click.option("--schedule", "plain", metavar="JSON", help="A schedule as schedule show --json prints it.")
@click.option("-a", "--args", callback=json_array, default="[]", metavar="JSON", help="Positional arguments, an array.")
@click.option(
    "-k", "--kwargs", callback=json_object, default="{}", metavar="JSON", help="Keyword arguments, an object."
)
@click.option("--queue", metavar="NAME", shell_complete=complete_queue, help="Send to this queue.")
@click.option("--expires", type=float, metavar="SECONDS", help="Do not run later than this after it was sent.")
@click.option("--priority", type=click.IntRange(0, 255), metavar="N", help="The messages' priority.")
@click.option("--option", "pairs", multiple=True, metavar="NAME=VALUE", help="Another option of the call. May repeat.")
@click.option(
    "--missed", type=click.Choice(_MISSED), metavar="POLICY", shell_complete=one_of(_MISSED),
    help="What becomes of missed runs: skip, once or all. Without it, what beat_missed_runs says.",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace the entry of this name, if it was added at run time.")
@_timeout
@click.pass_obj
def add_entry(
    obj: Globals, /, name: str, task: str | None, every: str | None, crontab: str | None, solar: str | None,
    plain: str | None, args: list[Any], kwargs: dict[str, Any], queue: str | None, expires: float | None,
    priority: int | None, pairs: tuple[str, ...], missed: str | None, replace: bool, timeout_s: float | None,
) -> None:  # fmt: skip
    """Add an entry NAME. It stays until it is removed, whatever restarts.

    A name that is taken is refused.
    """
    if not task:
        raise CliError("which task? Give its name: --task proj.tasks.report")
    described = schedule_of(every, crontab, solar, plain)
    options = options_of(pairs, queue=queue, expires=expires, priority=priority)
    with _asking(obj, timeout_s) as remote:
        try:
            added = remote.add(name, task, described, args, kwargs, options, missed, replace)
        except (ValueError, ImproperlyConfigured) as error:
            raise CliError(str(error)) from error
    for warning in added.warnings:
        click.echo(f"Warning: {warning}", err=True)
    upcoming = f", first due {_when(added.next_run, _zone(obj))}" if added.next_run else ""
    obj.say(f"{'replaced' if added.replaced else 'added'} {name}{upcoming}")


@schedule.command(
    "remove", short_help="Remove an entry that was added.",
    examples=("amqptasks -A proj schedule remove poll", "amqptasks -A proj schedule remove -f poll"),
)  # fmt: skip
@_name
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@_timeout
@click.pass_obj
def remove_entry(obj: Globals, /, name: str, force: bool, timeout_s: float | None) -> None:
    """Remove an entry that was added at run time.

    One of the config is refused: take it out there, or pause it.
    """
    from amqptasks.beat.views import RUN_TIME

    with _asking(obj, timeout_s) as remote:
        entry = remote.show(name)
        # One of the config is refused by beat, which knows why: there is nothing to ask.
        if entry.source == RUN_TIME and not force:
            click.echo(f"{visible(entry.name)}: {visible(entry.task)}, {entry.words}")
            click.confirm("Remove it? There is no undo", abort=True)
        remote.remove(name)
    obj.say(f"removed {name}")


# -- showing


def _zone(obj: Globals) -> tzinfo:
    return obj.app().timezone or timezone.utc


def _when(moment: datetime | None, zone: tzinfo) -> str:
    return "-" if moment is None else moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def _last(entry: EntryView, zone: tzinfo) -> str:
    return _when(entry.last_run, zone) if entry.last_run else "never"


def _next(entry: EntryView, zone: tzinfo) -> str:
    if entry.problem:
        return "cannot be used"
    return "paused" if entry.paused else _when(entry.next_run, zone)


def _json(value: Any) -> str:
    return visible(json.dumps(value, ensure_ascii=False))


def _facts(entry: EntryView, zone: tzinfo, *, in_full: bool = False) -> dict[str, Any]:
    def moment(value: datetime | None) -> str | None:
        return None if value is None else value.astimezone(zone).isoformat()

    facts = {
        "name": entry.name, "task": entry.task, "schedule": entry.schedule, "schedule_text": entry.words,
        "source": entry.source, "paused": entry.paused, "runs": entry.runs, "last_run": moment(entry.last_run),
        "next_run": moment(entry.next_run), "missed": entry.missed, "problem": entry.problem,
    }  # fmt: skip
    if in_full:
        facts |= {
            "args": entry.args, "kwargs": entry.kwargs, "options": entry.options,
            "next_runs": [moment(each) for each in entry.next_runs],
        }  # fmt: skip
    return facts
