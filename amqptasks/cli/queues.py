"""``amqptasks queues``: lists, declares and deletes queues."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, did_you_mean, plain, plural, print_table
from amqptasks.cli.completion import complete_queue
from amqptasks.cli.elements import Group, json_option
from amqptasks.entities import Broadcast, Queue
from amqptasks.exceptions import OperationalError, TopologyConflict

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.broker.admin import Admin

__all__ = ["queues"]


@click.group(cls=Group, short_help="List, show, declare and delete queues.")
def queues() -> None:
    """List, show, declare and delete queues."""


@queues.command(
    "list", short_help="Show the app's queues and what is in them.",
    examples=("amqptasks -A proj queues list", "amqptasks -A proj queues list --json"),
)  # fmt: skip
@json_option()
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
    missing = sum(not row["exists"] and row["type"] != "broadcast" for row in rows)
    if missing:
        obj.say(
            f"{plural(missing, 'queue')} not declared yet (-): workers and senders do that, "
            f"or: amqptasks queues declare"
        )


def _describe(admin: Admin, queue: Queue, conf: Any) -> dict[str, Any]:
    from amqptasks.broker.topology import queue_type

    # The queues of a broadcast belong to the workers: only its exchange is known here.
    is_broadcast = isinstance(queue, Broadcast)
    name = queue.title if isinstance(queue, Broadcast) else queue.name
    counts = None if is_broadcast else admin.counts(name)
    dead = admin.counts(name + conf.task_dead_letter_suffix)
    return {
        "name": name,
        "type": "broadcast" if is_broadcast else queue_type(queue, conf.task_default_queue_type),
        "exists": counts is not None,
        "messages": counts[0] if counts else None,
        "consumers": counts[1] if counts else None,
        "dead": dead[0] if dead else 0,
    }


def _by_title(app: App) -> dict[str, Queue]:
    """Return the app's queues by the names that its users know them by."""
    return {queue.title if isinstance(queue, Broadcast) else name: queue for name, queue in app.queues.items()}


def _cell(value: int | None) -> str:
    return "-" if value is None else str(value)


@queues.command("show", short_help="Show one queue in detail.", examples=("amqptasks -A proj queues show mail",))
@click.argument("name", shell_complete=complete_queue)
@json_option()
@click.pass_context
def show_queue(ctx: click.Context, /, name: str, as_json: bool) -> None:
    """Show one queue: how the app declares it, and what the broker has.

    Any queue may be named, the app's or not. The exit code is 1 if the broker has none of this name.
    """
    obj: Globals = ctx.obj
    app = obj.app()
    known = _by_title(app)
    with obj.admin("queues") as admin:
        counts = admin.counts(name)
        if counts is None and name not in known:
            raise CliError(f"there is no queue {name!r}{did_you_mean(name, known)}", EXIT_FAILED)
        facts = _describe(admin, known.get(name) or Queue(name), app.conf)
        if name in known:
            facts["declared"] = _declaration(known[name], app.conf, admin.version)
        else:
            facts |= {"type": None, "declared": None}
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=plain))
    else:
        _print_queue(facts, app.conf)
    if not facts["exists"] and facts["type"] != "broadcast":
        ctx.exit(EXIT_FAILED)


def _declaration(queue: Queue, conf: Any, version: tuple[int, ...]) -> dict[str, Any]:
    """Return what this app declares for a queue."""
    from amqptasks.broker.topology import BindQueue, DeclareQueue, plan

    steps = plan(queue, default_type=conf.task_default_queue_type, version=version)
    found: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, DeclareQueue):
            found |= {
                "durable": step.durable, "exclusive": step.exclusive, "auto_delete": step.auto_delete,
                "arguments": dict(step.arguments),
            }  # fmt: skip
    kinds = {each.exchange.name: each.exchange.type for each in queue.all_bindings()}
    found["bindings"] = [
        {
            "exchange": step.exchange, "type": kinds.get(step.exchange), "routing_key": step.routing_key,
            "arguments": dict(step.arguments),
        }
        for step in steps if isinstance(step, BindQueue)
    ]  # fmt: skip
    return found


def _print_queue(facts: dict[str, Any], conf: Any) -> None:
    lines = [("queue", facts["name"])]
    if facts["exists"]:
        lines += [("messages", f"{facts['messages']} waiting"), ("consumers", str(facts["consumers"]))]
    elif facts["type"] != "broadcast":
        lines.append(("on broker", "not declared yet"))
    if facts["dead"]:
        lines.append(("dead", f"{facts['dead']} in {facts['name']}{conf.task_dead_letter_suffix}"))
    declared = facts["declared"]
    if declared is None:
        lines.append(("declared", "not by this app"))
    elif "durable" not in declared:
        lines.append(("declared", "left alone (no_declare)"))
    else:
        traits = [facts["type"], "durable" if declared["durable"] else "lost in a restart of the broker"]
        traits += [name.replace("_", "-") for name in ("exclusive", "auto_delete") if declared[name]]
        lines.append(("declared", ", ".join(traits)))
        lines += [("", f"{key}: {value}") for key, value in declared["arguments"].items() if key != "x-queue-type"]
        for each in declared["bindings"]:
            words = [each["exchange"], f"({each['type']})" if each["type"] else "", f"key {each['routing_key']!r}"]
            words += [f"{key}={value!r}" for key, value in each["arguments"].items()]
            lines.append(("bound to", " ".join(filter(None, words))))
    for name, text in lines:
        click.echo(f"{name:<10} {text}".rstrip())


@queues.command(
    "declare", short_help="Declare the app's queues on the broker.",
    examples=("amqptasks -A proj queues declare", "amqptasks -A proj queues declare mail"),
)  # fmt: skip
@click.argument("names", nargs=-1, shell_complete=complete_queue)
@click.pass_context
def declare_queues(ctx: click.Context, /, names: tuple[str, ...]) -> None:
    """Declare the app's queues, or those named, with their exchanges and bindings.

    A queue that exists with other arguments is shown side by side with its declaration, and the exit code is 1.
    """
    from amqptasks.broker.topology import exchanges, plan, queue_type

    obj: Globals = ctx.obj
    app = obj.app()
    known = _by_title(app)
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
            is_broadcast = isinstance(queue, Broadcast)
            steps = plan(queue, default_type=default_type, version=admin.version)
            try:
                admin.declare(exchanges(queue) if is_broadcast else steps)
            except TopologyConflict as error:
                failed = True
                CliError(str(error)).show()
            else:
                kind = "broadcast" if is_broadcast else queue_type(queue, default_type)
                obj.say(f"declared {name} ({kind})")
    if failed:
        ctx.exit(EXIT_FAILED)


@queues.command(
    "delete", short_help="Delete queues and the messages in them.",
    examples=("amqptasks -A proj queues delete mail.dead", "amqptasks queues delete -f --if-empty old-queue"),
)  # fmt: skip
@click.argument("names", nargs=-1, required=True, shell_complete=complete_queue)
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
