"""``amqptasks call``: sends one task."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import CliError, Globals, did_you_mean, json_array, json_object
from amqptasks.cli.completion import complete_queue, complete_task
from amqptasks.cli.elements import Command
from amqptasks.cli.purge import warn_of_slips

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["call"]


@click.command(
    cls=Command, short_help="Send a task and print its id.",
    examples=(
        "amqptasks -A proj call proj.tasks.add -a '[2, 2]'",
        "amqptasks -A proj call proj.tasks.add -k '{\"x\": 2, \"y\": 2}' --countdown 60",
        "amqptasks -b amqp://rabbit call other.task --queue other",
    ),
)  # fmt: skip
@click.argument("name", shell_complete=complete_task)
@click.option("-a", "--args", callback=json_array, default="[]", metavar="JSON", help="Positional arguments, an array.")
@click.option(
    "-k", "--kwargs", callback=json_object, default="{}", metavar="JSON", help="Keyword arguments, an object."
)
@click.option("--eta", metavar="TIME", help="Run at this time, ISO 8601.")
@click.option("--countdown", type=float, metavar="SECONDS", help="Run after this time.")
@click.option("--expires", metavar="SECONDS|TIME", help="Do not run later than this.")
@click.option("--serializer", metavar="NAME", help="How the message is written, such as json or msgpack.")
@click.option("--priority", type=click.IntRange(0, 255), metavar="N", help="The message's priority.")
@click.option("--queue", metavar="NAME", shell_complete=complete_queue, help="Send to this queue.")
@click.option("--exchange", metavar="NAME", help="Send to this exchange.")
@click.option("--routing-key", metavar="KEY", help="Send with this routing key.")
@click.pass_obj
def call(obj: Globals, /, name: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> None:
    """Send the task NAME and print its id.

    It is sent whether or not this program knows it: a worker elsewhere may.
    """
    app = obj.app()
    app.import_modules()
    given = {key: value for key, value in options.items() if value is not None}
    if "eta" in given:
        if "countdown" in given:
            raise CliError("--eta and --countdown say the same thing twice: give one of them")
        given["eta"] = _moment("--eta", given["eta"], app.timezone)
    if "expires" in given:
        given["expires"] = _seconds_or_moment("--expires", given["expires"], app.timezone)
    if app.backend.in_message and not _is_kept(app, name):
        # The answer would go to this process alone, which is about to end.
        given["ignore_result"] = True
    if name not in app.tasks:
        hint = did_you_mean(name, app.tasks)
        if hint:
            click.echo(f"Warning: this app has no task {name!r}{hint}; sent all the same", err=True)
    if "queue" in given:
        warn_of_slips(app, [given["queue"]])
    try:
        task_id = app.send_task(name, args, kwargs, **given).id
    finally:
        app.close()
    click.echo(task_id)


def _is_kept(app: App, name: str) -> bool:
    """Whether the broker keeps the task's result for any process."""
    own = getattr(app.tasks.get(name), "persist_result", None)
    return bool(app.conf.task_persist_result if own is None else own)


def _moment(option: str, text: str, zone: Any) -> datetime:
    from amqptasks.clock import parse_moment

    try:
        return parse_moment(text, zone)
    except ValueError as error:
        raise CliError(f"{option}: {error}") from error


def _seconds_or_moment(option: str, text: str, zone: Any) -> float | datetime:
    try:
        return float(text)
    except ValueError:
        return _moment(option, text, zone)
