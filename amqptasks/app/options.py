"""What the options of a call mean: which header, which property, which moment. Pure.

The order of precedence (call, route, task, setting) is kept where a `Plan` is made, in `sender.py`; here one call's own
options are checked and written.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from amqptasks.broker.needs import PublishPolicy
from amqptasks.canvas.explaining import explain_call
from amqptasks.clock import as_utc, parse_moment, utcnow
from amqptasks.exceptions import EncodeError
from amqptasks.wire.serializers import dumps

#: Call options that become AMQP properties as they are.
PROPERTY_OPTIONS = ("message_id", "timestamp", "type", "user_id", "app_id")
#: Everything a call may say besides; an unknown option is a mistake, not a property.
KNOWN_OPTIONS = frozenset(
    {
        "task_id", "countdown", "eta", "expires", "retry", "retry_policy", "queue", "exchange", "exchange_type",
        "routing_key", "priority", "serializer", "compression", "link", "link_error", "shadow", "time_limit",
        "soft_time_limit", "ignore_result", "add_to_parent", "headers", "group_id", "group_index", "root_id",
        "parent_id", "chord", "chain", "reply_to", "replaced_task_nesting", "stamped_headers", "stamps", "argsrepr",
        "kwargsrepr", "delivery_mode", "mandatory", "declare", "timeout", "confirm_timeout", "retries",
        "correlation_id", "expiration", "origin", "immutable", "route_name", *PROPERTY_OPTIONS,
    }
)  # fmt: skip
#: Celery's options that have no meaning here, and why. None, which means "not given", is let pass.
_NOT_HERE: Mapping[str, str] = {
    "connection": "each process sends over one connection of its own",
    "producer": "each process sends over one connection of its own",
    "publisher": "each process sends over one connection of its own",
    "immediate": "RabbitMQ has not had it since version 3.0",
}


#: What a call without anything to follow embeds: Celery writes the four keys always.
EMPTY_EMBED: Mapping[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def first(value: Any, otherwise: Any) -> Any:
    """Return a value, or the other one where it is None."""
    return otherwise if value is None else value


def _listed(value: Any) -> list[Any] | None:
    if not value:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]


def embedded(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is embedded in the body beside the arguments: the signatures of what follows."""
    return {
        "callbacks": _listed(options.get("link")),
        "errbacks": _listed(options.get("link_error")),
        "chain": _listed(options.get("chain")),
        "chord": options.get("chord"),
    }


def encode_body(args: Any, kwargs: Any, embed: Mapping[str, Any], serializer: str) -> tuple[str, str, bytes]:
    """Serialize the body of a call; gives its content type, its content encoding and the bytes.

    Raises:
        EncodeError: It cannot be; the message says which argument, its own or of what follows it.
    """
    try:
        return dumps((args, kwargs, embed), serializer)
    except EncodeError as error:
        raise EncodeError(explain_call(args, kwargs, embed, serializer)) from error


#: Options that are headers of the same value.
_HEADERS: Final = {
    "root_id": "root_id", "parent_id": "parent_id", "group_id": "group", "group_index": "group_index",
    "shadow": "shadow", "retries": "retries", "replaced_task_nesting": "replaced_task_nesting",
    "stamped_headers": "stamped_headers", "stamps": "stamps", "argsrepr": "argsrepr", "kwargsrepr": "kwargsrepr",
    "origin": "origin",
}  # fmt: skip


def write_options(
    headers: dict[str, Any], options: Mapping[str, Any], task_expires: Any, zone: tzinfo | None
) -> datetime | None:
    """Write what a call's options put into its headers; returns the moment it is to run at, if it said one."""
    stamps = {key: options[key] for key in _listed(options.get("stamped_headers")) or () if key in options}
    if stamps:
        headers["stamps"] = stamps
    unknown = options.keys() - KNOWN_OPTIONS
    if unknown:
        _check_unknown(unknown - stamps.keys(), options)
    hard, soft = options.get("time_limit"), options.get("soft_time_limit")
    if hard is not None or soft is not None:
        # What the call does not say, the task's own limits do.
        of_task = headers.get("timelimit") or (None, None)
        hard, soft = first(hard, of_task[0]), first(soft, of_task[1])
        if hard is not None and soft is not None and soft > hard:
            raise ValueError(f"soft_time_limit must be at most time_limit, got: {soft} > {hard}")
        headers["timelimit"] = [hard, soft]
    for key, value in options.items():
        header = _HEADERS.get(key)
        if header is not None and value is not None:
            headers[header] = value
    expires = first(options.get("expires"), task_expires)
    if expires is not None:
        headers["expires"] = _moment(expires, zone).isoformat()
    if options.get("headers"):
        headers.update(options["headers"])
    when = options.get("eta")
    if when is None and options.get("countdown"):
        when = options["countdown"]
    if when is None:
        return None
    moment = _moment(when, zone)
    headers["eta"] = moment.isoformat()
    return moment


def _check_unknown(unknown: Set[str], options: Mapping[str, Any]) -> None:
    for key in sorted(unknown):
        if key not in _NOT_HERE:
            raise TypeError(
                f"apply_async() got an unexpected option {key!r}; known: {', '.join(sorted(KNOWN_OPTIONS))}"
            )
        if options[key]:
            raise TypeError(f"apply_async() does not take {key!r}: {_NOT_HERE[key]}")


def _moment(value: Any, zone: tzinfo | None) -> datetime:
    if isinstance(value, datetime):
        return as_utc(value, zone)
    if isinstance(value, str):
        return parse_moment(value, zone)
    if isinstance(value, timedelta):
        return utcnow() + value
    return utcnow() + timedelta(seconds=value)


def policy_of(conf: Any) -> PublishPolicy:
    """Return how the settings want sends to be tried."""
    policy = conf.task_publish_retry_policy or {}
    return PublishPolicy(
        timeout_s=float(conf.broker_publish_timeout),
        # Not one retry is what retry=False means: then nothing is waited for either.
        retry=bool(conf.task_publish_retry) and policy.get("max_retries", 3) != 0,
        max_retries=policy.get("max_retries", 3),
        interval_start_s=policy.get("interval_start", 0) or 0,
        interval_step_s=policy.get("interval_step", 0.2) or 0,
        interval_max_s=policy.get("interval_max", 1) or 0,
    )


def call_policy(policy: PublishPolicy, options: Mapping[str, Any]) -> PublishPolicy:
    """Return how one call wants to be tried, where it says so itself."""
    own = options.get("retry_policy") or {}
    return PublishPolicy(
        timeout_s=first(first(options.get("timeout"), options.get("confirm_timeout")), policy.timeout_s),
        retry=first(options.get("retry"), policy.retry) and own.get("max_retries", policy.max_retries) != 0,
        max_retries=own.get("max_retries", policy.max_retries),
        interval_start_s=first(own.get("interval_start"), policy.interval_start_s),
        interval_step_s=first(own.get("interval_step"), policy.interval_step_s),
        interval_max_s=first(own.get("interval_max"), policy.interval_max_s),
    )


def delivery_mode_of(mode: int | str) -> int:
    """Return AMQP's number of a delivery mode."""
    return 1 if mode in (1, "transient") else 2


def task_headers(name: str, task: Any) -> Mapping[str, Any]:
    """Return the headers that all calls of a task have."""
    headers: dict[str, Any] = {"lang": "py", "task": name}
    hard, soft = getattr(task, "time_limit", None), getattr(task, "soft_time_limit", None)
    if hard is not None or soft is not None:
        headers["timelimit"] = [hard, soft]
    return headers
