"""``amqptasks status``: which workers are there."""

from __future__ import annotations

import click

from amqptasks.cli.common import Globals
from amqptasks.cli.elements import Command
from amqptasks.cli.remote import TIMEOUT_S, Question, asking_options

__all__ = ["status"]


@click.command(
    cls=Command, short_help="Show which workers are online.",
    examples=(
        "amqptasks -A proj status",
        "amqptasks -b amqp://rabbit status -d mail@one,mail@two --timeout 5",
        "amqptasks -A proj status --json",
    ),
)  # fmt: skip
@asking_options
@click.pass_context
def status(
    ctx: click.Context, /, destination: tuple[str, ...] | None, timeout: float | None, as_json: bool
) -> None:  # fmt: skip
    """Show the workers that answer, Celery's too.

    The exit code is 69 if none does, 1 if one of those that -d names does not.
    """
    obj: Globals = ctx.obj
    question = Question(obj, destination, timeout or TIMEOUT_S, as_json, with_body=False)
    question.finish(ctx, question.ask("ping"), as_map=True)
