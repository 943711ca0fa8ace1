"""What every command shares: the global options, the app they lead to, errors on one line, exit codes, small types.

Exit codes: 0 done, 1 some of it failed or was declined, 2 wrong usage or configuration, 69 the broker cannot be
reached.
"""

from __future__ import annotations

import decimal
import difflib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.user_options import tell_defaults
from amqptasks.exceptions import (
    AlreadyRegistered,
    AmqptasksError,
    BrokerUnavailable,
    ImproperlyConfigured,
    MaybeSent,
    NotSent,
    OperationalError,
    TopologyConflict,
    Unroutable,
)

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.broker.admin import Admin

__all__ = [
    "CliError", "Globals", "commas", "did_you_mean", "exit_code", "json_array", "json_object", "plain", "plural",
    "print_table", "text_of", "visible",
]  # fmt: skip

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69


class CliError(click.ClickException):
    """A user's mistake: shown on one line, without a traceback."""

    def __init__(self, message: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        # click's own is a variable of the class.
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Print it to standard error."""
        click.echo(f"{click.style('Error', fg='red')}: {self.format_message()}", err=True)


@dataclass(slots=True)
class Globals:
    """The global options, and the app once it is asked for. A command gets it by ``@click.pass_obj``."""

    app_name: str | None = None
    broker: str | None = None
    result_backend: str | None = None
    config: str | None = None
    no_color: bool = False
    quiet: bool = False
    traceback: bool = False
    #: Where the program was started, if ``--workdir`` then led elsewhere.
    start_directory: str | None = None
    #: The whole command line, for a command that hands it on.
    argv: Sequence[str] = ()
    #: The values of the options that the app has added, by name.
    user_values: Mapping[str, Any] = field(default_factory=dict)
    _app: App | None = None

    def app(self, *, required: bool = False) -> App:
        """Return the app that ``-A`` names; without one an app of settings only, unless it is ``required``.

        The command line's broker and backend win over every other source.
        """
        if self._app is None:
            if required and not self.app_name:
                raise CliError("which app? Give the module that holds it before the command: amqptasks -A proj …")
            self._app = self._find()
            tell_defaults(self._app)
        return self._app

    def _find(self) -> App:
        from amqptasks.app.app import App
        from amqptasks.app.configuring import CONFIG_MODULE_VARIABLE
        from amqptasks.cli.finder import find_app

        if self.app_name:
            app = find_app(self.app_name)
        else:
            app = App("amqptasks", set_as_current=False)
            # Celery's default module: a directory with a celeryconfig.py needs no -A to list its queues.
            if not os.environ.get(CONFIG_MODULE_VARIABLE):
                app.config_from_object("celeryconfig", silent=True)
        if self.config:
            app.conf.load_object(self.config, on_top=True, named_by="--config")
        overrides: dict[str, Any] = {}
        if self.broker:
            # The one broker for this command, whatever the settings say of reading and writing.
            overrides |= {"broker_url": self.broker, "broker_read_url": None, "broker_write_url": None}
        if self.result_backend:
            overrides["result_backend"] = self.result_backend
        if self.no_color:
            overrides["worker_log_color"] = False
        if overrides:
            app.conf.override(overrides)
        return app

    def admin(self, purpose: str = "queues") -> Admin:
        """Return a management session on the app's broker, to be entered with ``with``."""
        from amqptasks.broker.admin import Admin

        return Admin(self.app().endpoints(purpose))

    def say(self, text: str) -> None:
        """Print what ``--quiet`` leaves out."""
        if not self.quiet:
            click.echo(text)


def commas(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Read ``a,b`` as names; a click callback."""
    if value is None:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not names:
        raise click.BadParameter(f"expected names separated by commas, got: {value!r}")
    return names


def json_array(_ctx: click.Context, _param: click.Parameter, value: str) -> list[Any]:
    """Read a JSON array; a click callback."""
    found = _json(value)
    if not isinstance(found, list):
        raise click.BadParameter(f"expected a JSON array, got: {text_of(value)}")
    return found


def json_object(_ctx: click.Context, _param: click.Parameter, value: str) -> dict[str, Any]:
    """Read a JSON object; a click callback."""
    found = _json(value)
    if not isinstance(found, dict):
        raise click.BadParameter(f"expected a JSON object, got: {text_of(value)}")
    return found


def _json(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"expected JSON, got: {text_of(value)} ({error})") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def text_of(value: object, most: int = 80) -> str:
    """Return a value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def visible(text: str) -> str:
    """Return a text with everything escaped that could move a cursor or hide something; lines stay lines."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def plain(value: object) -> Any:
    """Return what JSON has no words for in a form that it has: the ``default`` of `json.dumps`."""
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    if isinstance(value, uuid.UUID | decimal.Decimal):
        return str(value)
    return repr(value)


def plural(count: int, noun: str) -> str:
    """Return ``1 message``, ``2 messages``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, or nothing."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if not near and "." not in name:
        # A task is often called by its function's name alone.
        tails = {each.rpartition(".")[2]: each for each in names}
        near = [tails[tail] for tail in difflib.get_close_matches(name, tails, n=1)]
    return f" (did you mean {near[0]!r}?)" if near else ""


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns; numbers to the right."""
    table = [head, *rows]
    columns = range(len(head))
    widths = [max(len(row[column]) for row in table) for column in columns]
    numbers = [all(row[column].isdigit() or row[column] == "-" for row in rows) for column in columns]
    for row in table:
        cells = (row[at].rjust(widths[at]) if numbers[at] else row[at].ljust(widths[at]) for at in columns)
        click.echo("  ".join(cells).rstrip())


def exit_code(error: AmqptasksError) -> int:
    """Return the exit code that an error of the package ends a command with."""
    if isinstance(error, ImproperlyConfigured | AlreadyRegistered):
        return EXIT_USAGE
    if isinstance(error, BrokerUnavailable | MaybeSent):
        return EXIT_UNAVAILABLE
    if isinstance(error, TopologyConflict | Unroutable | NotSent) or not isinstance(error, OperationalError):
        return EXIT_FAILED
    return EXIT_UNAVAILABLE if "did not answer" in str(error) or "was lost" in str(error) else EXIT_FAILED
