"""What a setting is, and the kinds of value it may have: what each accepts, in code and as text, and how it says so.

A kind turns what a user wrote into the one form the rest of the package reads: durations become seconds, lists of
names become tuples. It knows no setting by name: `settings_table.py` gives each setting its kind, `settings.py` turns a
`Mismatch` into an error that names the setting and its source. Queues, routes and policies: `settings_queues.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta, tzinfo
from functools import partial
from typing import Any, Final, Literal

__all__ = [
    "Kind",
    "Mismatch",
    "Setting",
    "Since",
    "accept_seconds",
    "accept_text",
    "anything",
    "boolean",
    "concurrency",
    "delivery_mode",
    "failover",
    "fraction",
    "heartbeat",
    "log_level",
    "names",
    "one_of",
    "parse_json",
    "parse_names",
    "reference",
    "seconds",
    "secret",
    "table",
    "text",
    "timezone",
    "tls",
    "url",
    "urls",
    "whole",
]

_WORDS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "y": True,
    "t": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "n": False,
    "f": False,
}
_NONE_WORDS: Final = ("none", "null")
_LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Mismatch(ValueError):
    """The value is not of this kind. The text, if any, is a hint that helps to mend it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    Attributes:
        expects: What is accepted, as the end of the sentence "expected … to be".
        accept: Turns a value set in code into its final form, or raises `Mismatch`.
        parse: Turns text (environment, command line) into something for `accept`.
        nullable: Whether None is a value too.
        is_url: Whether the value is shown with its passwords hidden by `mask_url`.
    """

    expects: str
    accept: Callable[[Any], Any]
    parse: Callable[[str], Any] = str
    nullable: bool = False
    is_url: bool = False

    def or_none(self) -> Kind:
        """The same kind, accepting None too."""
        return replace(self, expects=f"{self.expects}, or None", nullable=True)

    def convert(self, value: Any) -> Any:
        """Return the final form of a value set in code. Raises `Mismatch`."""
        if value is None and self.nullable:
            return None
        return self.accept(value)

    def convert_text(self, value: str) -> Any:
        """Return the final form of a value given as text. Raises `Mismatch`."""
        if self.nullable and value.strip().lower() in _NONE_WORDS:
            return None
        return self.accept(self.parse(value))


#: ``now``: it acts. ``later``: accepted and checked, acts in a later version. ``never``: accepted so that Celery's
#: configurations load, with nothing to do here; its `doc` says why.
Since = Literal["now", "later", "never"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        ours: Empty if Celery has it with this default; ``new`` if it is our own; else how Celery differs.
        secret: The value itself is never shown, only that there is one.
    """

    name: str
    kind: Kind
    default: Any
    doc: str
    since: Since = "now"
    ours: str = ""
    secret: bool = False


# ---- Plain values


def _as_is(value: Any) -> Any:
    return value


def parse_json(value: str) -> Any:
    """Read a collection given as text. Raises `Mismatch`."""
    import json

    try:
        return json.loads(value)
    except ValueError as error:
        raise Mismatch(f"as text it is written in JSON: {error}") from error


def _parse_number(cast: Callable[[str], Any], value: str) -> Any:
    try:
        return cast(value.strip())
    except ValueError:
        # Left as text, which `accept` refuses: the error then shows what was written.
        return value


def _accept_bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    if type(value) is int and value in (0, 1):
        return bool(value)
    raise Mismatch


def _parse_bool(value: str) -> Any:
    return _WORDS.get(value.strip().lower(), value)


def _accept_whole(least: int, most: int | None, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise Mismatch
    return value


def accept_seconds(least: float, above: bool, value: Any) -> float:
    """Return a duration in seconds, or raise `Mismatch`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Mismatch
    if value < least or (above and value == least):
        raise Mismatch
    return value


def _accept_fraction(least: float, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < least:
        raise Mismatch
    return value


def accept_text(most_bytes: int | None, value: Any) -> str:
    """Return text that is not blank and not too long, or raise `Mismatch`."""
    if not isinstance(value, str) or not value.strip():
        raise Mismatch
    if most_bytes is not None and len(value.encode("utf-8", "surrogatepass")) > most_bytes:
        raise Mismatch(f"AMQP names end at {most_bytes} bytes")
    return value


def _accept_choice(choices: tuple[Any, ...], hints: Mapping[str, str], own: bool, value: Any) -> Any:
    # `type is` keeps True from passing for 1.
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    if own and (isinstance(value, type) or (isinstance(value, str) and ("." in value or ":" in value))):
        return value
    raise Mismatch(hints.get(value, "") if isinstance(value, str) else "")


anything: Final = Kind("anything", _as_is, nullable=True)
boolean: Final = Kind("True or False", _accept_bool, _parse_bool)


def whole(least: int = 0, most: int | None = None) -> Kind:
    """A whole number within bounds."""
    bounds = f">= {least}" if most is None else f"from {least} to {most}"
    return Kind(f"a whole number {bounds}", partial(_accept_whole, least, most), partial(_parse_number, int))


def seconds(least: float = 0, *, above: bool = False) -> Kind:
    """A finite number of seconds or a `timedelta`, at least (or, with `above`, more than) `least`."""
    sign = ">" if above else ">="
    expects = f"a number of seconds {sign} {least} or a timedelta"
    return Kind(expects, partial(accept_seconds, least, above), partial(_parse_number, float))


def fraction(least: float = 0) -> Kind:
    """A number, whole or not, infinity included."""
    return Kind(f"a number >= {least}", partial(_accept_fraction, least), partial(_parse_number, float))


def text(most_bytes: int | None = None) -> Kind:
    """Text that is not blank."""
    bound = f" of at most {most_bytes} bytes" if most_bytes else ""
    return Kind(f"a text{bound}", partial(accept_text, most_bytes))


def one_of(*choices: Any, hints: Mapping[str, str] | None = None, own: bool = False) -> Kind:
    """One of a few values. With `own`, also a user's class, itself or its dotted path."""
    expects = " or ".join(filter(None, (", ".join(map(repr, choices[:-1])), repr(choices[-1]))))
    if own:
        expects += ", or a class of your own, itself or as 'module:name'"
    parse = partial(_parse_number, int) if isinstance(choices[0], int) else str
    return Kind(expects, partial(_accept_choice, choices, hints or {}, own), parse)


def _accept_reference(value: Any) -> Any:
    if callable(value) or (isinstance(value, str) and value.strip()):
        return value
    raise Mismatch


reference: Final = Kind("a class or function, itself or as 'module:name'", _accept_reference)


def _accept_concurrency(value: Any) -> int | str:
    return "auto" if value == "auto" else _accept_whole(1, None, value)


concurrency: Final = Kind("a whole number >= 1, or 'auto'", _accept_concurrency, partial(_parse_number, int)).or_none()


def _accept_delivery_mode(value: Any) -> int:
    mode = {"transient": 1, "persistent": 2, 1: 1, 2: 2}.get(value) if isinstance(value, (int, str)) else None
    if mode is None or isinstance(value, bool):
        raise Mismatch
    return mode


delivery_mode: Final = Kind(
    "2 or 'persistent', or 1 or 'transient'", _accept_delivery_mode, partial(_parse_number, int)
)


def _accept_heartbeat(value: Any) -> int:
    # None is how Celery's users write "none"; for pika it would mean whatever the broker suggests.
    return 0 if value is None else _accept_whole(0, 65535, value)


heartbeat: Final = Kind(
    "a whole number of seconds from 0 to 65535, or None for 0", _accept_heartbeat, partial(_parse_number, int)
)


def _accept_log_level(value: Any) -> str | int:
    if isinstance(value, str) and value.upper() in _LOG_LEVELS:
        return value.upper()
    return _accept_whole(0, None, value)


log_level: Final = Kind(f"{', '.join(_LOG_LEVELS)} or a number", _accept_log_level, partial(_parse_number, int))


def _accept_timezone(value: Any) -> Any:
    if isinstance(value, tzinfo):
        return value
    if not isinstance(value, str) or not value.strip():
        raise Mismatch
    if value == "UTC":  # Needs no database of zones, which a slim container may lack.
        return value
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Mismatch(
            "this machine's time zone database has no such zone; without a database: pip install tzdata"
        ) from error
    return value


timezone: Final = Kind("the name of a time zone such as 'Europe/Oslo', or a tzinfo", _accept_timezone).or_none()


def _accept_secret(value: Any) -> str | bytes:
    if isinstance(value, (str, bytes)) and value:
        return value
    raise Mismatch


secret: Final = Kind("text or bytes", _accept_secret)


# ---- Collections


def parse_names(value: str) -> tuple[str, ...]:
    """Cut text at its commas."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _accept_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # One name: taking its letters for names would help nobody.
        value = (value,)
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise Mismatch
    found = tuple(value) if isinstance(value, (list, tuple)) else tuple(sorted(value, key=str))
    if not all(isinstance(name, str) and name.strip() for name in found):
        raise Mismatch
    return found


names: Final = Kind("a list of names", _accept_names, parse_names)


def _accept_table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Mismatch
    return value


table: Final = Kind("a mapping with text keys", _accept_table, parse_json)


def _accept_tls(value: Any) -> Any:
    # Looked at by name: who uses no TLS need not import it.
    if any((each.__module__, each.__name__) == ("ssl", "SSLContext") for each in type(value).__mro__):
        return value
    return _accept_table(value) if isinstance(value, Mapping) else _accept_bool(value)


def _parse_tls(value: str) -> Any:
    return parse_json(value) if value.lstrip().startswith("{") else _parse_bool(value)


tls: Final = Kind("True, False, a mapping of TLS options or an ssl.SSLContext", _accept_tls, _parse_tls)


def _accept_failover(value: Any) -> Any:
    if callable(value) or value in ("round-robin", "shuffle"):
        return value
    if isinstance(value, str) and ("." in value or ":" in value):
        return value
    raise Mismatch


failover: Final = Kind(
    "'round-robin', 'shuffle', or a function of your own, itself or as 'module:name'", _accept_failover
)


def _accept_urls(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        if not any(part.strip() for part in value.split(";")):
            raise Mismatch
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, str) and part.strip() for part in value):
        return tuple(value)
    raise Mismatch


urls: Final = Kind(
    "a broker URL such as 'amqp://user@host//', several joined by ';', or a list", _accept_urls, is_url=True
)


def _accept_url(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise Mismatch
    if isinstance(value, (bool, int, float, bytes, list, tuple, dict, set)):
        raise Mismatch
    return value


#: A store may also be given ready-made: as a class or an instance.
url: Final = Kind("a URL such as 'rpc://', or a result backend of your own", _accept_url, is_url=True)
