"""Tasks, queues, pools and brokers as Celery's answers show them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from amqptasks._version import __version__
from amqptasks.entities import Exchange, Queue
from amqptasks.exceptions import ContentError, InvalidTaskError
from amqptasks.wire.reprs import short_repr
from amqptasks.wire.serializers import accepted
from amqptasks.wire.task import read_body
from amqptasks.worker.control.state import ControlState
from amqptasks.worker.request import Request

__all__ = ["broker", "plain", "pool", "queue", "report", "rusage", "task"]

#: The arguments of a larger call are shown as text. Bytes.
MAX_BODY_BYTES: Final = 1 << 16
#: How deep an answer goes.
MAX_DEPTH: Final = 50
#: What Celery calls its kinds of pools.
_IMPLEMENTATIONS: Final = {
    "prefork": "amqptasks.worker.pools.prefork:PreforkPool", "threads": "amqptasks.worker.pools.threads:ThreadPool",
    "solo": "amqptasks.worker.pools.threads:ThreadPool", "asyncio": "amqptasks.worker.pools.asyncio_pool:AsyncioPool",
}  # fmt: skip
_RUSAGE: Final = (
    "utime", "stime", "maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt", "nswap", "inblock", "oublock", "msgsnd",
    "msgrcv", "nsignals", "nvcsw", "nivcsw",
)  # fmt: skip


def task(
    state: ControlState, request: Request, *, safe: bool = False, started: float | None = None, pid: int | None = None
) -> dict[str, Any]:
    """Describe a task that the worker has.

    Args:
        safe: Show its arguments as texts, rather than as what they are.
        started: When it has begun, on the monotonic clock.
        pid: The process that it runs in.
    """
    args, kwargs = _arguments(state, request, safe)
    delivery = request.delivery
    return {
        "id": request.id, "name": request.task_name, "args": args, "kwargs": kwargs, "type": request.task_name,
        "hostname": state.hostname,
        "time_start": None if started is None else time.time() - (time.monotonic() - started),
        "acknowledged": request.is_acked,
        "delivery_info": {
            "exchange": delivery.exchange, "routing_key": delivery.routing_key,
            "priority": delivery.properties.priority or 0, "redelivered": delivery.redelivered,
        },
        "worker_pid": pid,
    }  # fmt: skip


def _arguments(state: ControlState, request: Request, safe: bool) -> tuple[Any, Any]:
    headers, delivery = request.headers, request.delivery
    texts = headers.get("argsrepr"), headers.get("kwargsrepr")
    if safe and None not in texts:
        return texts
    if len(delivery.body) <= MAX_BODY_BYTES:
        properties, app = delivery.properties, state.app
        try:
            body = read_body(
                headers, properties.content_type, properties.content_encoding, delivery.body,
                accepted(app.conf.accept_content), app.limits(),
            )  # fmt: skip
        except (ContentError, InvalidTaskError):
            return texts
        return (short_repr(tuple(body.args)), short_repr(body.kwargs)) if safe else (body.args, body.kwargs)
    return texts


def queue(entity: Queue) -> dict[str, Any]:
    """Describe a queue, with kombu's fields."""
    return {
        "name": entity.name, "exchange": exchange(entity.exchange), "routing_key": entity.routing_key,
        "queue_arguments": _mapping(entity.queue_arguments), "binding_arguments": _mapping(entity.binding_arguments),
        "consumer_arguments": _mapping(entity.consumer_arguments), "durable": entity.durable,
        "exclusive": entity.exclusive, "auto_delete": entity.auto_delete, "no_ack": False, "alias": entity.alias,
        "bindings": [
            {
                "exchange": exchange(each.exchange), "routing_key": each.routing_key,
                "arguments": _mapping(each.arguments), "unbind_arguments": None,
            }
            for each in entity.bindings
        ],
        "no_declare": entity.no_declare or None, "expires": entity.expires, "message_ttl": entity.message_ttl,
        "max_length": entity.max_length, "max_length_bytes": entity.max_length_bytes,
        "max_priority": entity.max_priority,
    }  # fmt: skip


def exchange(entity: Exchange) -> dict[str, Any]:
    """Describe an exchange, with kombu's fields."""
    return {
        "name": entity.name, "type": entity.type, "arguments": _mapping(entity.arguments), "durable": entity.durable,
        "passive": False, "auto_delete": entity.auto_delete, "delivery_mode": entity.delivery_mode,
        "no_declare": entity.no_declare,
    }  # fmt: skip


def _mapping(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def pool(state: ControlState) -> dict[str, Any]:
    """Describe the pool, with the fields of Celery's pool of that kind."""
    conf, slots = state.app.conf, state.pool.slots
    shown: dict[str, Any] = {
        "implementation": _IMPLEMENTATIONS[state.pool_name], "max-concurrency": state.sizing.concurrency
    }  # fmt: skip
    if state.pool_name == "threads":
        return {**shown, "threads": len(slots)}
    if state.pool_name == "prefork":
        writes = [slot.written for slot in slots]
        total = sum(writes)
        shares = [f"{count / total if count else 0:.2f}" for count in writes]
        busy = sum(1 for slot in slots if slot.assigned)
        return {
            **shown, "processes": [slot.pid for slot in slots],
            "max-tasks-per-child": conf.worker_max_tasks_per_child or "N/A", "put-guarded-by-semaphore": False,
            "timeouts": [conf.task_soft_time_limit or 0, conf.task_time_limit or 0],
            "writes": {
                "total": total, "avg": f"{1 / len(slots) if slots and total else 0:.2f}", "all": ", ".join(shares),
                "raw": ", ".join(map(str, writes)), "strategy": "fair",
                "inqueues": {"total": len(slots), "active": busy},
            },
        }  # fmt: skip
    return {
        **shown, "processes": [os.getpid()], "max-tasks-per-child": None, "put-guarded-by-semaphore": True,
        "timeouts": [],
    }  # fmt: skip


def broker(state: ControlState) -> dict[str, Any]:
    """Describe the broker in use, with kombu's fields and without its password."""
    conf = state.app.conf
    parameters = state.link.endpoint.parameters
    others = [each.label for each in state.app.endpoints("control", reads=True)]
    strategy = conf.broker_failover_strategy
    return {
        "hostname": parameters.host, "userid": getattr(parameters.credentials, "username", None),
        "virtual_host": parameters.virtual_host, "port": parameters.port, "insist": False,
        "ssl": parameters.ssl_options is not None, "transport": "amqp",
        "connect_timeout": conf.broker_connection_timeout, "transport_options": {},
        "login_method": conf.broker_login_method or "PLAIN", "uri_prefix": None, "heartbeat": conf.broker_heartbeat,
        "failover_strategy": strategy if isinstance(strategy, str) else "round-robin",
        "alternates": [label for label in others if label != state.link.label], "credential_provider": None,
    }  # fmt: skip


def rusage() -> Any:
    """Return what this process has used."""
    try:
        import resource
    except ImportError:
        return "N/A"
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {name: getattr(used, f"ru_{name}") for name in _RUSAGE}


def report(state: ControlState) -> str:
    """Return versions and settings as text, in the form of Celery's reports."""
    import platform

    conf = state.app.conf
    bits = 64 if sys.maxsize > 1 << 32 else 32
    lines = [
        "",
        f"software -> amqptasks:{__version__} py:{platform.python_version()}",
        f"platform -> system:{platform.system()} arch:{bits}bit",
        f"            kernel version:{platform.release()} imp:{platform.python_implementation()}",
        f"settings -> transport:amqp results:{state.app.backend.as_uri()}",
        "",
    ]
    return "\n".join([*lines, conf.humanize(), ""])


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value with everything that JSON has no word for as its text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0.0 else repr(value)
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return {key if isinstance(key, str) else str(key): plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [plain(each, depth + 1) for each in value]
    return short_repr(value)
