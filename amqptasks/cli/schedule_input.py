"""What a user types to describe a periodic task: how often, a crontab, a solar event, options."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import click

from amqptasks.cli.common import CliError, text_of
from amqptasks.exceptions import ImproperlyConfigured

__all__ = ["interval", "options_of", "schedule_of"]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_MOST_S: Final = 1e10


def interval(text: str) -> float:
    """Read ``10s``, ``1h30m``, ``500ms`` or a plain number of seconds.

    Raises:
        ValueError: It is none, or not more than zero.
    """
    compact = text.strip().lower().replace(" ", "")
    try:
        total = float(compact)
    except ValueError:
        parts = _PART.findall(compact)
        if not parts or "".join(number + unit for number, unit in parts) != compact:
            raise ValueError(f"expected a time such as 10s, 5m, 1h30m or 2d, got: {text_of(text)}") from None
        total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < total < _MOST_S:
        raise ValueError(f"expected a time above 0, got: {text_of(text)}")
    return total


def schedule_of(every: str | None, crontab: str | None, solar: str | None, plain: str | None) -> Any:
    """Return the description of the one schedule that was typed.

    Raises:
        CliError: There is not exactly one, or it cannot be read.
    """
    given = {"--every": every, "--crontab": crontab, "--solar": solar, "--schedule": plain}
    typed = [name for name, value in given.items() if value is not None]
    if len(typed) != 1:
        wrong = f"got {' and '.join(typed)}" if typed else "got none"
        raise CliError(f"when? Give one of {', '.join(given)}; {wrong}")
    option = typed[0]
    try:
        return _READERS[option](str(given[option]))
    except (ValueError, TypeError, RecursionError) as error:
        raise CliError(f"{option}: {' '.join(str(error).split())}") from error
    except ImproperlyConfigured as error:
        raise CliError(f"{option}: {error}") from error


def _every(text: str) -> Any:
    return {"type": "schedule", "every": interval(text), "relative": False}


def _crontab(text: str) -> Any:
    from amqptasks.beat.crontab import crontab

    return crontab.from_string(text).describe()


def _solar(text: str) -> Any:
    from amqptasks.beat.solar import solar

    parts = [part.strip() for part in text.split(",")]
    try:
        event, lat, lon = parts[0], float(parts[1]), float(parts[2])
        if len(parts) > 3:
            raise ValueError(text)
    except (ValueError, IndexError):
        raise ValueError(f"expected EVENT,LATITUDE,LONGITUDE, such as sunset,52.5,13.4, got: {text_of(text)}") from None
    return solar(event, lat, lon).describe()


def _plain(text: str) -> Any:
    from amqptasks.beat.descriptions import rebuild

    try:
        plain = json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected JSON, got: {text_of(text)} ({error})") from None
    return rebuild(plain).describe()


_READERS: Final = {"--every": _every, "--crontab": _crontab, "--solar": _solar, "--schedule": _plain}


def options_of(pairs: Sequence[str], **named: Any) -> dict[str, Any]:
    """Put the options of a call together: those with a name of their own, and ``K=V``, where V may be JSON.

    Raises:
        click.BadParameter: One is no K=V, or is given twice.
    """
    made = {name: value for name, value in named.items() if value is not None}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise click.BadParameter(f"expected NAME=VALUE, got: {text_of(pair)}", param_hint="--option")
        if name in made:
            raise click.BadParameter(f"the option {name} is given twice", param_hint="--option")
        made[name] = _value(text)
    return made


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
