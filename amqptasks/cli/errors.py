"""How errors and warnings end up on a terminal: one line each that says what to do; a traceback only for our own bugs.

`show` is the one place that writes them.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from amqptasks.cli.common import EXIT_FAILED, did_you_mean, exit_code
from amqptasks.exceptions import AmqptasksError

__all__ = ["is_plain", "place_of", "render", "show", "show_warnings"]

_PACKAGE = str(Path(__file__).parent.parent) + os.sep
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\.]+)")
#: Libraries that this package calls. An error that comes out of one, and through no code of the user's, is our bug.
_OURS = frozenset({"amqptasks", "click", "msgpack", "pika", "sqlalchemy", "tenacity"})


def show(error: BaseException, argv: Sequence[str], *, with_traceback: bool = False) -> int:
    """Tell an error on standard error, and return the exit code it ends the command with."""
    if with_traceback:
        traceback.print_exception(error, file=sys.__stderr__)
    elif not isinstance(error, click.ClickException | AmqptasksError) and place_of(error) is None:
        traceback.print_exception(error, file=sys.__stderr__)
        _say("Error", f"this is a bug of amqptasks, please report it: {_named(error)}", argv)
        return EXIT_FAILED
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        # A group without a command: click's answer is the whole help.
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        _say("Error", render(error), argv)
        return error.exit_code
    if isinstance(error, AmqptasksError):
        _say("Error", str(error), argv)
        return exit_code(error)
    _say("Error", f"{_named(error)}, at {place_of(error)} (--traceback shows the whole way there)", argv)
    return EXIT_FAILED


def render(error: click.ClickException) -> str:
    """Put a mistake of usage into one line; what is said in several on purpose, such as a conflict, stays."""
    if not isinstance(error, click.UsageError):
        return error.format_message()
    context = error.ctx
    where = context.command_path if context is not None else "amqptasks"
    if isinstance(error, click.NoSuchOption):
        if context is not None and context.parent is not None and _is_option(context.find_root(), error.option_name):
            own = context.command_path.partition(" ")[2]
            value = " proj" if error.option_name in ("-A", "--app") else " …"
            value = "" if _is_flag(context.find_root(), error.option_name) else value
            return f"{error.option_name} belongs before the command: amqptasks {error.option_name}{value} {own}"
        known = [] if context is None else [name for each in context.command.get_params(context) for name in each.opts]
        text = f"no option {error.option_name!r}{did_you_mean(error.option_name, known)}"
    elif isinstance(error, click.MissingParameter):
        text = f"missing {_parameter(error)}"
    elif isinstance(error, click.BadParameter) and error.param is not None:
        # click says "is not a valid float range".
        no_number = re.match(r"(.*) is not a valid (?:float|integer)", error.message)
        why = f"expected a number, got: {no_number[1]}" if no_number else _lower(error.message)
        text = f"{_parameter(error)}: {why}"
    else:
        text = _lower(error.format_message())
    return f"{' '.join(text.split())}; see: {where} --help"


def place_of(error: BaseException) -> str | None:
    """Return file and line of the innermost code of the user's that an error came through, or None."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return None


def show_warnings(argv: Sequence[str]) -> None:
    """Tell warnings meant for users on one line too; those for programmers stay as Python shows them."""
    usual = warnings.showwarning

    def tell(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if issubclass(category, UserWarning) and file is None:
            _say("Warning", str(message), argv, "yellow")
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = tell


def is_plain(argv: Sequence[str]) -> bool:
    """Tell whether colours are not wanted, also where the command line could not be read."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    wanted = "--no-color" in options or "-C" in options
    return wanted or any(os.environ.get(name) for name in ("NO_COLOR", "AMQPTASKS_NO_COLOR"))


def _say(head: str, text: str, argv: Sequence[str], color: str = "red") -> None:
    plain = is_plain(argv)
    # Not sys.stderr: that may be a worker's log by now, and this is for who typed the command.
    click.echo(
        f"{head if plain else click.style(head, fg=color)}: {text}", sys.__stderr__, color=False if plain else None
    )


def _named(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _parameter(error: click.BadParameter) -> str:
    """Name a parameter as it is typed, and its variable if the value came from there."""
    parameter = error.param
    if parameter is None:
        return "a parameter"
    if not isinstance(parameter, click.Option):
        return parameter.human_readable_name
    name = "/".join(parameter.opts)
    if error.ctx is not None and parameter.name is not None:
        source = error.ctx.get_parameter_source(parameter.name)
        variable = parameter.envvar
        if isinstance(variable, str) and (source is click.core.ParameterSource.ENVIRONMENT):
            return f"{name} (from the environment variable {variable})"
    return name


def _lower(text: str) -> str:
    text = text.rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _is_option(root: click.Context, name: str) -> bool:
    return any(name in each.opts for each in root.command.params if isinstance(each, click.Option))


def _is_flag(root: click.Context, name: str) -> bool:
    return any(each.is_flag for each in root.command.params if isinstance(each, click.Option) and name in each.opts)


def _is_users(filename: str) -> bool:
    if not os.path.isabs(filename) or filename.startswith(_PACKAGE):
        return False
    installed = _INSTALLED.search(filename)
    if installed is not None:
        return installed[1] not in _OURS
    return not filename.startswith(_STANDARD)
