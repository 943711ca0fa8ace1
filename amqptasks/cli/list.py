"""``amqptasks list``: what the app binds."""

from __future__ import annotations

import json
from typing import Any

import click

from amqptasks.cli.common import Globals, print_table
from amqptasks.cli.elements import Group, json_option
from amqptasks.entities import Binding, Broadcast, Exchange, Queue

__all__ = ["list"]


@click.group(cls=Group, name="list", short_help="List bindings.")
def list() -> None:  # noqa: A001 (commands are found by their names)
    """List what the app declares. `amqptasks queues list` shows its queues and what is in them."""


@list.command(
    "bindings", short_help="Show the bindings of the app's queues.",
    examples=("amqptasks -A proj list bindings", "amqptasks -A proj list bindings --json"),
)  # fmt: skip
@json_option()
@click.pass_obj
def bindings(obj: Globals, /, as_json: bool) -> None:
    """Show how the app's queues are bound to exchanges, by its own declarations. No broker is asked.

    AMQP cannot list what others have bound: `rabbitmqctl list_bindings` can. The default exchange knows each queue by
    its name.
    """
    rows = [_facts(queue, each) for queue in obj.app().queues.values() for each in _bindings(queue)]
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=repr))
        return
    print_table(["QUEUE", "EXCHANGE", "TYPE", "ROUTING KEY"], [_cells(row) for row in rows])
    obj.say("As this app declares them. What others have bound, AMQP cannot list: rabbitmqctl list_bindings")


def _bindings(queue: Queue) -> tuple[Binding, ...]:
    # The queues of a broadcast have names that their workers make up.
    own = () if isinstance(queue, Broadcast) else (Binding(Exchange(""), queue.name),)
    return (*own, *queue.all_bindings())


def _facts(queue: Queue, each: Binding) -> dict[str, Any]:
    return {
        "queue": queue.title if isinstance(queue, Broadcast) else queue.name,
        "exchange": each.exchange.name,
        "type": each.exchange.type,
        "routing_key": each.routing_key,
        "arguments": dict(each.arguments or {}),
    }


def _cells(row: dict[str, Any]) -> Any:
    words = [row["routing_key"], *(f"{key}={value!r}" for key, value in row["arguments"].items())]
    return [row["queue"], row["exchange"] or "(default)", row["type"], " ".join(words)]
