"""``amqptasks control``: gives workers orders."""

from __future__ import annotations

from typing import Any

import click

from amqptasks.cli.catalogue import Known
from amqptasks.cli.common import CliError, Globals, plural, text_of
from amqptasks.cli.remote import (
    TIMEOUT_S,
    Nodes,
    Question,
    RemoteCommand,
    asking_options,
    complete_argument,
    complete_command,
    confirm,
    known_command,
    print_commands,
)
from amqptasks.wire.reprs import printable

__all__ = ["control"]

#: Workers that a question names at most.
NAMED = 10


@click.command(
    cls=RemoteCommand, short_help="Give workers orders.",
    examples=(
        "amqptasks -A proj control rate_limit proj.add 10/m",
        "amqptasks -A proj control pool_grow 2 -d mail@one",
        "amqptasks -A proj control revoke 4b6e7c0a-8f7e-4f0c-9d5a-2f1f5b7f6a3d",
        "amqptasks -A proj control shutdown -d mail@one -f",
        "amqptasks -A proj control --list",
    ),
)  # fmt: skip
@click.argument("command", required=False, shell_complete=complete_command)
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, shell_complete=complete_argument)
@asking_options
@click.option("-f", "--force", "--yes", "force", is_flag=True, help="Do not ask before shutdown and terminate.")
@click.option("--list", "listing", is_flag=True, help="Name all commands, your app's own among them.")
@click.pass_context
def control(
    ctx: click.Context, /, command: str | None, arguments: tuple[str, ...], destination: tuple[str, ...] | None,
    timeout: float | None, as_json: bool, force: bool, listing: bool,
) -> None:  # fmt: skip
    """Give the workers a COMMAND, and print each one's answer.

    shutdown and terminate ask first in a terminal, and go ahead in a script. Celery's workers obey too. The exit code
    is 69 if nobody answers, 1 if a worker answers with an error, or one of those that -d names does not answer.
    """
    obj: Globals = ctx.obj
    if listing:
        print_commands(obj, "control", as_json)
        return
    known = known_command(obj, "control", command)
    made = known.arguments(arguments)
    question = Question(obj, destination, timeout or max(TIMEOUT_S, known.timeout_s), as_json, with_count=False)
    try:
        if known.name == "shutdown":
            question.finish(ctx, _shut_down(question, force), as_map=False)
        elif known.name in _REVOKING:
            replies = _revoke(question, known, made, force)
            question.finish(ctx, replies, as_map=False, kept=". RabbitMQ keeps it for workers that start later")
        else:
            question.finish(ctx, question.ask(known.name, made), as_map=False)
    finally:
        obj.app().close()


# -- what ends workers and tasks

_REVOKING = ("revoke", "revoke_by_stamped_headers", "terminate")


def _shut_down(question: Question, force: bool) -> list[Nodes]:
    """Tell those that are there to stop. A worker of Celery's never answers that, so who is there is asked before."""
    names = question.find_present()
    if not names:
        return []
    workers = ", ".join(printable(name, 80) for name in names) if len(names) <= NAMED else plural(len(names), "worker")
    confirm(f"Shut down {workers}? What runs there ends first.", force=force, as_json=question.as_json)
    replies = question.ask("shutdown")
    answered = {node for each in replies for node in each}
    silent = [{name: {"ok": "told to shut down"}} for name in names if name not in answered]
    if not question.as_json:
        for each in silent:
            question.show(each)
    return replies + silent


def _revoke(question: Question, known: Known, made: dict[str, Any], force: bool) -> list[Nodes]:
    """Let RabbitMQ keep the order, and tell the workers."""
    control = question.obj.app().control
    if known.name == "revoke_by_stamped_headers":
        stamps = _stamps(made["headers"])
        return question.answered(lambda options: control.revoke_by_stamped_headers(stamps, **options))
    ids = made["task_id"]
    if known.name == "revoke":
        return question.answered(lambda options: control.revoke(ids, **options))
    confirm(f"Terminate {plural(len(ids), 'task')}? What runs is killed.", force=force, as_json=question.as_json)
    return question.answered(lambda options: control.terminate(ids, signal=made["signal"], **options))


def _stamps(texts: list[str]) -> dict[str, list[str]]:
    stamps: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise CliError(f"revoke_by_stamped_headers: expected key=value, got: {text_of(text)}")
        stamps.setdefault(name, []).append(value)
    return stamps
