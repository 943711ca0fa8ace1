"""``amqptasks completion``: the script that makes a shell complete commands, and what it completes them with.

The names of tasks and queues are the app's: completing them imports it, silently. What cannot be found out is not
completed, and never an error: the user is in the middle of a line.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amqptasks.cli.common import CliError, Globals, did_you_mean
from amqptasks.cli.elements import Command

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = [
    "complete_entry",
    "complete_modules",
    "complete_queue",
    "complete_queues",
    "complete_task",
    "completion",
    "one_of",
]

SHELLS = ("bash", "fish", "zsh")

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def one_of(names: Iterable[str]) -> Complete:
    """Make what completes these words."""
    return lambda _ctx, _param, part: [name for name in names if name.lower().startswith(part.lower())]


@click.command(
    cls=Command,
    short_help="Print the completion script of a shell.",
    examples=(
        'eval "$(amqptasks completion bash)"      # in ~/.bashrc',
        'eval "$(amqptasks completion zsh)"       # in ~/.zshrc, after compinit',
        "amqptasks completion fish | source       # in ~/.config/fish/config.fish",
    ),
)
@click.argument("shell", required=False, metavar="[bash|fish|zsh]", shell_complete=one_of(SHELLS))
@click.pass_context
def completion(ctx: click.Context, /, shell: str | None) -> None:
    """Print the script that makes a shell complete commands, options, tasks and queues.

    Without a name it is for the shell that $SHELL says. To name tasks and queues it imports the app that -A or
    AMQPTASKS_APP names.
    """
    from click.shell_completion import get_completion_class

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    if name not in SHELLS:
        known = ", ".join(SHELLS)
        if not shell:
            raise CliError(f"which shell? $SHELL is {os.environ.get('SHELL', '')!r}; give one of: {known}")
        raise CliError(f"no completion for shell {name!r}{did_you_mean(name, SHELLS)}; there is: {known}")
    kind = get_completion_class(name)
    if kind is None:
        raise CliError(f"this version of click does not know the shell {name!r}")
    root = ctx.find_root().command
    click.echo(kind(root, {}, "amqptasks", "_AMQPTASKS_COMPLETE").source())


def complete_modules(_ctx: click.Context, _param: click.Parameter, part: str) -> list[str]:
    """Name the modules and packages of the working directory."""
    parent, dot, last = part.rpartition(".")
    directory = Path(*parent.split(".")) if parent else Path()
    with contextlib.suppress(OSError):
        names = [
            each.stem
            for each in directory.iterdir()
            if (each.suffix == ".py" or (each / "__init__.py").exists()) and each.stem.isidentifier()
        ]
        return sorted(f"{parent}{dot}{name}" for name in names if name.startswith(last) and not name.startswith("__"))
    return []


def _of_app(names: Callable[[App], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, _param: click.Parameter, part: str) -> list[str]:
        options = ctx.find_root().params
        globals_ = Globals(options.get("app_name"), options.get("broker"), config=options.get("config"))
        # What the app prints must not reach the shell.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                return sorted(name for name in names(globals_.app()) if name.startswith(part))
            except (Exception, SystemExit):
                # An app that cannot be imported now: the command itself will say why.
                return []

    return complete


def _task_names(app: App) -> list[str]:
    app.import_modules()
    return [name for name in app.tasks if not name.startswith("celery.")]


#: The app's tasks.
complete_task = _of_app(_task_names)
#: The app's queues.
complete_queue = _of_app(lambda app: app.sender.routing.names())
#: The entries of the schedule that the config has: to find the others, beat would have to be asked.
complete_entry = _of_app(lambda app: app.conf.beat_schedule)


def complete_queues(ctx: click.Context, param: click.Parameter, part: str) -> list[str]:
    """Complete the last of several queue names separated by commas."""
    done, comma, last = part.rpartition(",")
    taken = done.split(",")
    return [f"{done}{comma}{name}" for name in complete_queue(ctx, param, last) if name not in taken]
