"""``amqptasks purge``: empties task queues."""

from __future__ import annotations

import click

from amqptasks.cli.common import CliError, Globals, commas, did_you_mean, plural

__all__ = ["choose_queues", "purge", "purge_queues"]


@click.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("-Q", "--queues", callback=commas, metavar="A,B", help="Only these queues, separated by commas.")
@click.option("-X", "--exclude-queues", callback=commas, metavar="A,B", help="All but these.")
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
    purge_queues(obj, names)


def purge_queues(obj: Globals, names: tuple[str, ...]) -> None:
    """Purge these queues and say how many messages that were."""
    total = 0
    with obj.admin("purge") as admin:
        for name in names:
            count = admin.purge(name)
            if count is None:
                click.echo(f"there is no queue {name!r}{did_you_mean(name, obj.app().queues)}", err=True)
            total += count or 0
    if total:
        obj.say(f"Purged {plural(total, 'message')} from {len(names)} known task {_queues(len(names))}.")
    else:
        obj.say(f"No messages purged from {len(names)} {_queues(len(names))}.")


def choose_queues(
    obj: Globals, chosen: tuple[str, ...] | None, excluded: tuple[str, ...] | None
) -> tuple[str, ...]:  # fmt: skip
    """Return the names that ``-Q`` and ``-X`` leave, in order; without ``-Q`` the app's queues.

    Raises:
        CliError: A name to exclude is not among them, or none are left.
    """
    names = chosen or tuple(obj.app().queues)
    for name in excluded or ():
        if name not in names:
            raise CliError(f"-X: no queue {name!r}{did_you_mean(name, names)} among: {', '.join(names)}")
    left = tuple(name for name in names if name not in (excluded or ()))
    if not left:
        raise CliError(f"-X leaves no queue of: {', '.join(names)}")
    return left


def _queues(count: int) -> str:
    return "queue" if count == 1 else "queues"
