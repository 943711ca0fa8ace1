"""Options that all daemons have: how much to log, and where."""

from __future__ import annotations

import os
from typing import Final

import click

from amqptasks.cli.common import CliError, did_you_mean
from amqptasks.logs import expand_path

__all__ = ["LOG_LEVELS", "checked_log", "log_level", "seconds"]

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")


def log_level(_ctx: click.Context, _param: click.Parameter, value: str) -> str | int:
    """Read the name or number of a level; a click callback."""
    text = value.upper()
    if text.isdigit():
        return int(text)
    if text not in LOG_LEVELS:
        near = did_you_mean(text, LOG_LEVELS)
        raise click.BadParameter(f"expected one of {', '.join(LOG_LEVELS)} or a number, got: {value!r}{near}")
    return text


def seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Read a number of seconds above 0; a click callback."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise click.BadParameter(f"expected a number of seconds above 0, got: {value!r}")
    return number


def checked_log(logfile: str, node: str) -> str:
    """Return the full path of a log file that can be written.

    Raises:
        CliError: It cannot be.
    """
    path = expand_path(logfile, node)
    try:
        with open(path, "a", encoding="utf-8"):
            return os.path.abspath(path)
    except OSError as error:
        raise CliError(f"cannot write the log file {path!r}: {error.strerror}") from error
