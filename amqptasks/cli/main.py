"""The ``amqptasks`` command: its global options, its commands, and how errors end it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from amqptasks._version import __version__
from amqptasks.cli.call import call
from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, did_you_mean, exit_code
from amqptasks.cli.purge import purge
from amqptasks.cli.queues import queues
from amqptasks.cli.worker import worker
from amqptasks.exceptions import AmqptasksError

__all__ = ["cli", "run"]


class Commands(click.Group):
    """A group that answers a wrong name with the nearest right one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, as click does."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def _change_directory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value:
        try:
            os.chdir(value)
        except OSError as error:
            raise CliError(f"cannot work in --workdir {value!r}: {error.strerror}") from error
    return value


@click.group(
    cls=Commands, context_settings={"auto_envvar_prefix": "AMQPTASKS", "help_option_names": ["-h", "--help"]}
)  # fmt: skip
@click.option(
    "-A", "--app", "app_name", metavar="MODULE[:NAME]", envvar="AMQPTASKS_APP", help="The app, or where it is."
)
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
    """Distributed tasks on RabbitMQ.

    Every option can be given as an environment variable: AMQPTASKS_APP, AMQPTASKS_WORKER_QUEUES and so on.
    """
    no_color = no_color or bool(os.environ.get("NO_COLOR"))
    if no_color:
        ctx.color = False
    ctx.obj = Globals(no_color=no_color, **options)


for _command in (call, purge, queues, worker):
    cli.add_command(_command)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code. A user's mistake is told on one line of standard error."""
    arguments = list(argv)
    try:
        code = cli.main(arguments, prog_name="amqptasks", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.NoSuchOption as error:
        if error.option_name in ("-A", "--app"):
            name = error.ctx.info_name if error.ctx else "COMMAND"
            _show(CliError(f"-A belongs before the command: amqptasks -A proj {name}"), arguments)
        else:
            _show(error, arguments)
        return error.exit_code
    except click.ClickException as error:
        _show(error, arguments)
        return error.exit_code
    except click.Abort:
        click.echo("Aborted.", err=True)
        return EXIT_FAILED
    except AmqptasksError as error:
        _show(CliError(str(error)), arguments, cause=error)
        return exit_code(error)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _show(error: click.ClickException, argv: Sequence[str], cause: BaseException | None = None) -> None:
    if "--traceback" in argv or os.environ.get("AMQPTASKS_TRACEBACK"):
        traceback.print_exception(cause or error)
    error.show()
