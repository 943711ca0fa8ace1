"""The kinds of setting that say where tasks go: queues, routes, and how often sending is tried.

Queues become a tuple of `Queue`, whichever of Celery's forms they were written in. Used by `settings_table.py` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from re import Pattern
from typing import Any, Final

from amqptasks.entities import MAX_NAME_BYTES, Exchange, Queue
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.settings_kinds import Kind, Mismatch, accept_seconds, accept_text, parse_json, parse_names

__all__ = ["queues", "retry_policy", "routes"]

_POLICY_KEYS: Final = ("max_retries", "interval_start", "interval_step", "interval_max")


def _accept_policy(fallback: Mapping[str, Any], value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Mismatch
    for key, number in value.items():
        if key not in _POLICY_KEYS and key != "retry_errors":
            raise Mismatch(f"it has no key {key!r}")
        if number is None and key != "max_retries":
            raise Mismatch(f"{key!r} cannot be None")
        if number is not None and key in _POLICY_KEYS:
            try:
                accept_seconds(0, False, number)
            except Mismatch:
                raise Mismatch(f"{key!r} must be a number >= 0") from None
    return {**fallback, **value}


def retry_policy(fallback: Mapping[str, Any]) -> Kind:
    """A retry policy with Celery's keys; those left out are taken from `fallback`."""
    return Kind(
        f"a mapping with any of the keys {', '.join(_POLICY_KEYS)}", partial(_accept_policy, fallback), parse_json
    )


def _accept_routes(value: Any) -> Any:
    if isinstance(value, str) or callable(value) or callable(getattr(value, "route_for_task", None)):
        return value
    if isinstance(value, Mapping):
        _check_routes(value.items())
        return value
    if isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, (list, tuple)):
                _check_routes([part])
            else:
                _accept_routes(part)
        return value
    raise Mismatch


def _check_routes(pairs: Iterable[Any]) -> None:
    for pair in pairs:
        if len(pair) != 2:
            raise Mismatch(f"a route is a pair (pattern, route), not {pair!r}")
        pattern, route = pair
        if not isinstance(pattern, (str, Pattern)):
            raise Mismatch(f"the pattern {pattern!r} is neither text nor a compiled regular expression")
        if not isinstance(route, (str, Mapping)) and not callable(route):
            raise Mismatch(f"the route of {pattern!r} is neither a queue name nor a mapping of options")


routes: Final = Kind(
    "a mapping of task names or patterns to {'queue': …}, a list of such pairs, or a router function",
    _accept_routes,
    parse_json,
)


# ---- Queues

_QUEUE_OPTIONS: Final = frozenset(
    {
        "routing_key",
        "bindings",
        "durable",
        "exclusive",
        "auto_delete",
        "alias",
        "queue_arguments",
        "binding_arguments",
        "consumer_arguments",
        "expires",
        "message_ttl",
        "max_length",
        "max_length_bytes",
        "max_priority",
        "no_declare",
    }
)


def _queue_from_options(name: str, options: Mapping[str, Any]) -> Queue:
    """Read Celery's short form: ``{'mail': {'exchange': 'mail', 'exchange_type': 'topic', 'binding_key': '#'}}``."""
    given = dict(options)
    exchange = given.pop("exchange", None)
    kind = given.pop("exchange_type", None)
    key = given.pop("binding_key", None)
    if key is not None and not given.get("routing_key"):
        given["routing_key"] = key
    unknown = sorted(set(given) - _QUEUE_OPTIONS)
    if unknown:
        raise Mismatch(f"queue {name!r} has no option {unknown[0]!r}")
    if isinstance(exchange, str) and kind is not None:
        exchange = Exchange(exchange, kind)
    return Queue(name, exchange, **given)


def _one_queue(name: str | None, value: Any) -> Queue:
    if isinstance(value, Queue):
        queue = value if value.name or name is None else value.clone(name=name)
    elif name is not None and isinstance(value, Mapping):
        queue = _queue_from_options(name, value)
    elif name is None and isinstance(value, str):
        queue = Queue(value)
    else:
        raise Mismatch(f"this is not a queue: {value!r}")
    if not queue.name:
        raise Mismatch("a queue has no name")
    return queue


def _accept_queues(value: Any) -> tuple[Queue, ...]:
    try:
        if isinstance(value, Mapping):
            found = tuple(_one_queue(accept_text(MAX_NAME_BYTES, name), each) for name, each in value.items())
        elif isinstance(value, (list, tuple, set, frozenset)):
            found = tuple(_one_queue(None, each) for each in value)
        else:
            raise Mismatch
    except (ImproperlyConfigured, TypeError) as error:
        raise Mismatch(str(error)) from error
    seen: set[str] = set()
    for queue in found:
        if queue.name in seen:
            raise Mismatch(f"queue {queue.name!r} is declared twice")
        seen.add(queue.name)
    return found


queues: Final = Kind("a list of Queue, or a mapping of names to Queue or to options", _accept_queues, parse_names)
