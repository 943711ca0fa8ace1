"""``amqptasks inspect``: asks workers what they do, and changes nothing."""

from __future__ import annotations

import click

from amqptasks.cli.common import Globals
from amqptasks.cli.remote import (
    TIMEOUT_S,
    Question,
    RemoteCommand,
    asking_options,
    complete_argument,
    complete_command,
    known_command,
    print_commands,
)

__all__ = ["inspect"]


@click.command(
    cls=RemoteCommand, short_help="Ask workers what they do.",
    examples=(
        "amqptasks -A proj inspect active",
        "amqptasks -A proj inspect stats -d mail@one --json",
        "amqptasks -A proj inspect query_task 4b6e7c0a-8f7e-4f0c-9d5a-2f1f5b7f6a3d",
        "amqptasks -A proj inspect --list",
    ),
)  # fmt: skip
@click.argument("command", required=False, shell_complete=complete_command)
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, shell_complete=complete_argument)
@asking_options
@click.option("--list", "listing", is_flag=True, help="Name all commands, your app's own among them.")
@click.pass_context
def inspect(
    ctx: click.Context, /, command: str | None, arguments: tuple[str, ...], destination: tuple[str, ...] | None,
    timeout: float | None, as_json: bool, listing: bool,
) -> None:  # fmt: skip
    """Ask the workers with a COMMAND, and print each one's answer.

    Celery's workers answer too. The exit code is 69 if nobody does, 1 if a worker answers with an error, or one of
    those that -d names does not answer.
    """
    obj: Globals = ctx.obj
    if listing:
        print_commands(obj, "inspect", as_json)
        return
    known = known_command(obj, "inspect", command)
    made = known.arguments(arguments)
    question = Question(obj, destination, timeout or TIMEOUT_S, as_json)
    if timeout is None and known.timeout_s > TIMEOUT_S and question.find_present():
        question.timeout_s = known.timeout_s
    question.finish(ctx, question.ask(known.name, made), as_map=True)
