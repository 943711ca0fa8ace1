"""The ``amqptasks`` command: its global options, its commands, and how errors end it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from amqptasks._version import __version__
from amqptasks.cli.common import EXIT_FAILED, CliError, Globals
from amqptasks.cli.completion import complete_modules
from amqptasks.cli.elements import ENVIRONMENT_PREFIX, Group, name_variables
from amqptasks.cli.errors import is_plain, show, show_warnings

__all__ = ["cli", "run"]

#: Names in click's memory of one run: where the program was started, and its whole command line.
START_DIRECTORY = "amqptasks.start_directory"
ARGUMENTS = "amqptasks.arguments"


#: Each stands in a module of its name, imported when it is asked for: a worker keeps no other command in its memory.
COMMANDS = (
    "amqp",
    "beat",
    "call",
    "completion",
    "control",
    "dead",
    "doctor",
    "events",
    "graph",
    "health",
    "inspect",
    "list",
    "logtool",
    "migrate",
    "multi",
    "purge",
    "queues",
    "report",
    "result",
    "schedule",
    "shell",
    "status",
    "upgrade",
    "worker",
)


class Root(Group):
    """The program itself. It remembers its command line, for a command that hands it on."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is no such."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            command: click.Command = getattr(importlib.import_module(f"amqptasks.cli.{cmd_name}"), cmd_name)
            name_variables(command, f"{ENVIRONMENT_PREFIX}_{cmd_name.upper()}")
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, as click does."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


def _change_directory(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value:
        ctx.meta[START_DIRECTORY] = os.getcwd()
        try:
            os.chdir(value)
        except OSError as error:
            raise CliError(f"cannot work in --workdir {value!r}: {error.strerror}") from error
    return value


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=(
        "amqptasks -A proj worker -l INFO",
        "amqptasks -A proj call proj.tasks.add -a '[2, 2]'",
        "amqptasks -A proj queues list",
    ),
)
@click.option(
    "-A", "--app", "app_name", metavar="MODULE[:NAME]", shell_complete=complete_modules,
    help="The app, or the module that holds it.",
)  # fmt: skip
@click.option("-b", "--broker", metavar="URL", help="RabbitMQ's URL, or several separated by ';'.")
@click.option("--result-backend", metavar="URL", help="Where results go.")
@click.option("--config", metavar="MODULE", help="A settings module to read on top of the app's.")
@click.option(
    "--workdir", metavar="DIR", is_eager=True, callback=_change_directory, expose_value=False,
    help="Change to this directory first.",
)  # fmt: skip
@click.option("-C", "--no-color", is_flag=True, help="No colours; also the NO_COLOR variable.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what was asked for, and errors.")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.version_option(__version__, message="amqptasks %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, no_color: bool, **options: Any) -> None:
    """Distributed tasks on RabbitMQ."""
    if no_color or is_plain(()):
        no_color, ctx.color = True, False
    given = ctx.ensure_object(Globals)
    given.no_color, given.argv = no_color, ctx.meta.get(ARGUMENTS, ())
    given.start_directory = ctx.meta.get(START_DIRECTORY)
    for name, value in options.items():
        setattr(given, name, value)


name_variables(cli)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code. A user's mistake is told on one line of standard error."""
    arguments, given = list(argv), Globals()
    show_warnings(arguments)
    try:
        code = cli.main(arguments, prog_name="amqptasks", standalone_mode=False, obj=given)
        return code if isinstance(code, int) else 0
    except click.Abort:
        click.echo("Aborted.", err=True)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return show(error, arguments, with_traceback=given.traceback)
