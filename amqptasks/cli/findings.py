"""What ``amqptasks doctor`` has found, and what it finds in settings and versions alone, without asking a broker."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.results.backend import DisabledBackend
from amqptasks.wire.serializers import accepted

__all__ = ["BAD", "OK", "WARN", "Finding", "of_address", "of_settings", "of_version"]

OK: Final = "ok"
WARN: Final = "warn"
BAD: Final = "bad"

Version = tuple[int, ...]

#: The oldest RabbitMQ that this was written for.
OLDEST: Final[Version] = (3, 10)
#: Content types whose reader runs what is in the message.
_RUNS_CODE: Final = frozenset({"application/x-python-serialize", "application/x-python-pickle"})
#: Redeliveries after which RabbitMQ 4 deletes a message of a quorum queue.
_BROKER_LIMIT: Final = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        check: What was looked at, one word or two.
        status: `OK`, `WARN` or `BAD`.
        text: What was found.
        remedy: What to do about it; empty if nothing.
    """

    check: str
    status: str
    text: str
    remedy: str = ""


def of_version(version: Version) -> Iterator[Finding]:
    """Tell what a version of RabbitMQ can do, and what must be minded; ``()`` is another server."""
    if not version:
        yield Finding(
            "version", WARN, "this server is not RabbitMQ", "expect differences: only RabbitMQ is tested"
        )  # fmt: skip
        return
    name = ".".join(map(str, version))
    if version < OLDEST:
        yield Finding("version", BAD, f"RabbitMQ {name} is older than 3.10", "upgrade: quorum queues lack what we need")
        return
    yield Finding("version", OK, f"RabbitMQ {name}")
    if (3, 13) <= version < (3, 13, 3):
        yield Finding(
            "version", WARN, f"{name} drops dead-lettered messages wrongly: delays may lose tasks", "upgrade to 3.13.3"
        )
    if (4, 3) <= version < (4, 3, 6):
        yield Finding(
            "version", WARN, f"in {name} a quorum queue with a single active consumer can lock up for good after "
            "timeouts", "upgrade to 4.3.6",
        )  # fmt: skip
    yield Finding(
        "features", OK,
        "delivery timeout per queue: "
        + ("no (from 3.12)" if version < (3, 12) else "quorum queues only" if version >= (4, 3) else "yes")
        + "; delivery limit of its own: "
        + ("no (from 4.0)" if version < (4, 0) else f"{_BROKER_LIMIT}")
        + "; priorities in quorum queues: "
        + ("no (from 4.0)" if version < (4, 0) else "0-31" if version >= (4, 3) else "two bands"),
    )  # fmt: skip


def of_address(parameters: Any, label: str) -> Iterator[Finding]:
    """Tell what is unsafe about the way to a broker: its ``ConnectionParameters``, and its name without a password."""
    if _is_local(parameters.host):
        return
    credentials = parameters.credentials
    if getattr(credentials, "username", "") == "guest":
        yield Finding(
            "user", WARN, f"{label}: user guest over the network",
            "make a user of its own: rabbitmqctl add_user; guest is for the same machine",
        )  # fmt: skip
    if parameters.ssl_options is None:
        yield Finding(
            "network", WARN, f"{label}: password and tasks travel unencrypted", "use amqps:// or broker_use_ssl"
        )  # fmt: skip


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def of_settings(app: Any, version: Version) -> Iterator[Finding]:
    """Tell which settings of an app are unsafe. One `OK` if none is."""
    found = [*_content(app.conf), *_losses(app, version), *_pace(app.conf)]
    yield from found
    if not found:
        yield Finding("settings", OK, "nothing unsafe")


def _content(conf: Any) -> Iterator[Finding]:
    for name in ("accept_content", "result_accept_content"):
        if accepted(conf[name] or ()) & _RUNS_CODE:
            yield Finding(
                name, BAD, "pickle is accepted: whoever can publish can run code here",
                f"take pickle out of {name}, and send json or msgpack",
            )  # fmt: skip


def _losses(app: Any, version: Version) -> Iterator[Finding]:
    conf = app.conf
    if not conf.broker_publish_confirm:
        yield Finding(
            "broker_publish_confirm", WARN, "sends are not confirmed: a task can be lost without an error",
            "leave it on; app.bulk() makes many confirmed sends fast",
        )  # fmt: skip
    keeps_nothing = conf.task_ignore_result or isinstance(app.backend, DisabledBackend)
    if not conf.task_acks_late and keeps_nothing:
        yield Finding(
            "task_acks_late", WARN,
            "tasks are acknowledged when they begin, and no results are kept: one that is lost with its worker leaves "
            "no trace",
            "set task_acks_late for tasks that may run twice, or a result_backend",
        )  # fmt: skip
    if conf.task_default_delivery_mode != 2 and conf.task_default_queue_type == "classic":
        yield Finding(
            "task_default_delivery_mode", WARN, "messages are lost when the broker restarts", "leave it persistent"
        )
    if conf.delay_queue_type == "classic":
        yield Finding(
            "delay_queue_type", WARN, "delayed tasks that change queues are lost when the broker is killed",
            "use quorum, unless speed matters more",
        )  # fmt: skip
    if conf.chord_join == "store" and not app.backend.persistent:
        yield Finding(
            "chord_join", BAD, f"chords are refused: {app.backend.as_uri()} keeps no results to count their parts by",
            "set result_backend to a store that all workers share, or chord_join to 'broker'",
        )  # fmt: skip
    limit = conf.task_delivery_limit
    if version >= (4, 0) and (limit is None or limit > _BROKER_LIMIT):
        yield Finding(
            "task_delivery_limit", BAD,
            f"{limit} is beyond RabbitMQ's own limit of {_BROKER_LIMIT}: it deletes such a message without a word",
            f"set task_delivery_limit to {_BROKER_LIMIT} or less",
        )  # fmt: skip


def _pace(conf: Any) -> Iterator[Finding]:
    if conf.worker_prefetch_multiplier == 0:
        yield Finding(
            "worker_prefetch_multiplier", WARN, "0 is without limit: one worker takes the whole queue into its memory",
            "leave it at 4, or 1 for long tasks",
        )  # fmt: skip
    if not conf.broker_heartbeat:
        yield Finding(
            "broker_heartbeat", WARN, "without heartbeats a connection that is dead is not noticed", "leave it at 10"
        )
