"""``amqptasks queues``: lists, declares and deletes queues."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, did_you_mean, plural, print_table
from amqptasks.exceptions import OperationalError, TopologyConflict

if TYPE_CHECKING:
    from amqptasks.broker.admin import Admin
    from amqptasks.entities import Queue

__all__ = ["queues"]


@click.group()
def queues() -> None:
    """List, declare and delete queues."""


@queues.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_queues(obj: Globals, /, as_json: bool) -> None:
    """Show the app's queues: type, waiting messages, consumers, dead letters.

    Messages that workers hold and have not acknowledged are not counted.
    """
    app = obj.app()
    with obj.admin("queues") as admin:
        rows = [_describe(admin, queue, app.conf) for queue in app.queues.values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ["QUEUE", "TYPE", "MESSAGES", "CONSUMERS", "DEAD"],
        [
            [row["name"], row["type"], *(_cell(row[key]) for key in ("messages", "consumers", "dead"))]
            if row["exists"]
            else [row["name"], row["type"], "-", "-", _cell(row["dead"])]
            for row in rows
        ],
    )
    missing = sum(not row["exists"] for row in rows)
    if missing:
        obj.say(
            f"{plural(missing, 'queue')} not declared yet (-): workers and senders do that, "
            f"or: amqptasks queues declare"
        )


def _describe(admin: Admin, queue: Queue, conf: Any) -> dict[str, Any]:
    from amqptasks.broker.topology import queue_type

    counts = admin.counts(queue.name)
    dead = admin.counts(queue.name + conf.task_dead_letter_suffix)
    return {
        "name": queue.name,
        "type": queue_type(queue, conf.task_default_queue_type),
        "exists": counts is not None,
        "messages": counts[0] if counts else None,
        "consumers": counts[1] if counts else None,
        "dead": dead[0] if dead else 0,
    }


def _cell(value: int | None) -> str:
    return "-" if value is None else str(value)


@queues.command("declare")
@click.argument("names", nargs=-1)
@click.pass_context
def declare_queues(ctx: click.Context, /, names: tuple[str, ...]) -> None:
    """Declare the app's queues, or those named, with their exchanges and bindings.

    A queue that exists with other arguments is shown side by side with its declaration, and the exit code is 1.
    """
    from amqptasks.broker.topology import plan, queue_type

    obj: Globals = ctx.obj
    app = obj.app()
    known = app.queues
    for name in names:
        if name not in known:
            raise CliError(f"the app has no queue {name!r}{did_you_mean(name, known)}; it has: {', '.join(known)}")
    default_type = app.conf.task_default_queue_type
    failed = False
    with obj.admin("queues") as admin:
        for name in names or tuple(known):
            queue = known[name]
            if queue.no_declare:
                obj.say(f"left {name} alone (no_declare)")
                continue
            try:
                admin.declare(plan(queue, default_type=default_type, version=admin.version))
            except TopologyConflict as error:
                failed = True
                CliError(str(error)).show()
            else:
                obj.say(f"declared {name} ({queue_type(queue, default_type)})")
    if failed:
        ctx.exit(EXIT_FAILED)


@queues.command("delete")
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--if-empty", is_flag=True, help="Only if no messages wait in it.")
@click.option("--if-unused", is_flag=True, help="Only if it has no consumers.")
@click.pass_context
def delete_queues(ctx: click.Context, /, names: tuple[str, ...], force: bool, if_empty: bool, if_unused: bool) -> None:
    """Delete queues on the broker, with the messages in them.

    Any queue may be named, the app's or not. There is no undo.
    """
    obj: Globals = ctx.obj
    failed = False
    with obj.admin("queues") as admin:
        there = {}
        for name in dict.fromkeys(names):
            counts = admin.counts(name)
            if counts is None:
                failed = True
                CliError(f"there is no queue {name!r}{did_you_mean(name, obj.app().queues)}").show()
            else:
                there[name] = counts
        if there and not force:
            for name, (messages, consumers) in there.items():
                click.echo(f"{name}: {plural(messages, 'message')}, {plural(consumers, 'consumer')}")
            click.confirm(f"Delete {plural(len(there), 'queue')} and what is in there? There is no undo", abort=True)
        for name in there:
            try:
                count = admin.delete(name, if_unused=if_unused, if_empty=if_empty)
            except OperationalError as error:
                failed = True
                CliError(str(error)).show()
            else:
                obj.say(f"deleted {name} with {plural(count or 0, 'message')}")
    if failed:
        ctx.exit(EXIT_FAILED)
