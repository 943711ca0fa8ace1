"""``amqptasks purge``: empties task queues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, commas, did_you_mean, plural
from amqptasks.cli.completion import complete_queues
from amqptasks.cli.elements import Command
from amqptasks.entities import Broadcast
from amqptasks.exceptions import QueueNotFound

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["choose_queues", "purge", "purge_queues", "warn_of_slips"]


@click.command(
    cls=Command, short_help="Delete all waiting messages of task queues.",
    examples=("amqptasks -A proj purge", "amqptasks -A proj purge -f -Q mail,images"),
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option(
    "-Q", "--queues", callback=commas, metavar="A,B", shell_complete=complete_queues,
    help="Only these queues, separated by commas.",
)  # fmt: skip
@click.option(
    "-X", "--exclude-queues", callback=commas, metavar="A,B", shell_complete=complete_queues, help="All but these."
)  # fmt: skip
@click.pass_obj
def purge(obj: Globals, /, force: bool, queues: tuple[str, ...] | None, exclude_queues: tuple[str, ...] | None) -> None:
    """Delete all waiting messages from the app's task queues.

    Messages that workers hold already are not deleted. There is no undo.
    """
    names = choose_queues(obj, queues, exclude_queues)
    if not force:
        click.confirm(
            f"{click.style('WARNING', fg='red')}: This deletes every waiting task of {plural(len(names), 'queue')}: "
            f"{', '.join(names)}.\nThere is no undo (-f skips this question). Delete them?",
            abort=True,
        )
    missing = purge_queues(obj, names)
    if missing and queues:
        known = obj.app().queues
        what = "; ".join(f"there is no queue {name!r}{did_you_mean(name, known)}" for name in missing)
        raise CliError(what, EXIT_FAILED)


def purge_queues(obj: Globals, names: tuple[str, ...]) -> list[str]:
    """Purge these queues, say how many messages that were, and return those that are not there."""
    total = 0
    missing = []
    known = obj.app().queues
    # What waits for a broadcast is in queues of the workers, whose names only they know.
    names = tuple(name for name in names if not isinstance(known.get(name), Broadcast))
    with obj.admin("purge") as admin:
        for name in names:
            count = admin.purge(name)
            if count is None:
                missing.append(name)
            total += count or 0
    if total:
        obj.say(f"Purged {plural(total, 'message')} from {len(names)} known task {_queues(len(names))}.")
    else:
        obj.say(f"No messages purged from {len(names)} {_queues(len(names))}.")
    return missing


def warn_of_slips(app: App, names: Iterable[str]) -> None:
    """Say of each name that is nearly that of a queue of the app's that it is not.

    Raises:
        CliError: There is no queue of a name, and missing queues are not made.
    """
    routing = app.sender.routing
    for name in names:
        try:
            routing.queue(name)
        except QueueNotFound as error:
            raise CliError(str(error)) from error
        hint = "" if routing.named(name) else did_you_mean(name, routing.names())
        if hint:
            click.echo(f"Warning: this app declares no queue {name!r}{hint}; taken as it is", err=True)


def choose_queues(
    obj: Globals, chosen: tuple[str, ...] | None, excluded: tuple[str, ...] | None
) -> tuple[str, ...]:  # fmt: skip
    """Return the names that ``-Q`` and ``-X`` leave, in order; without ``-Q`` the app's queues.

    Raises:
        CliError: A name to exclude is not among them, or none are left.
    """
    routing = obj.app().sender.routing
    named = {name: routing.named(name) for name in (*(chosen or routing.queues), *(excluded or ()))}
    # By its own name each, so that one that is chosen by its alias can be excluded by its name.
    real = {name: name if queue is None else queue.name for name, queue in named.items()}
    names = dict.fromkeys(real[name] for name in chosen or routing.queues)
    told = chosen or routing.names()
    for name in excluded or ():
        if real[name] not in names:
            raise CliError(f"-X: no queue {name!r}{did_you_mean(name, told)} among: {', '.join(told)}")
    left = tuple(name for name in names if name not in {real[each] for each in excluded or ()})
    if not left:
        raise CliError(f"-X leaves no queue of: {', '.join(told)}")
    return left


def _queues(count: int) -> str:
    return "queue" if count == 1 else "queues"
