"""What all calls of one task have in common when they are sent, and what monitors are told of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from amqptasks.app.routing import Route
from amqptasks.broker.needs import Need, PublishPolicy

__all__ = ["Plan", "sent_event"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What all calls of one task by one route have in common, under one state of the settings."""

    route: Route
    needs: tuple[Need, ...]
    serializer: str
    compression: str | None
    delivery_mode: int
    priority: int | None
    ignore_result: bool
    keeps_errors: bool
    inherits_priority: bool
    is_mandatory: bool
    wants_answer: bool
    is_kept: bool
    expires: Any
    policy: PublishPolicy
    headers: Mapping[str, Any]
    #: Whether monitors are told of each call (``task_send_sent_event``, and the task's ``send_events``).
    is_told: bool
    #: Writes arguments for people to read (``task_repr_maxlevels``).
    show: Callable[[Any], str]


def sent_event(
    plan: Plan, name: str, task_id: str, headers: Mapping[str, Any], exchange: str, routing_key: str
) -> dict[str, Any]:  # fmt: skip
    """Return what the event ``task-sent`` tells of a call, whose message goes by this exchange and key."""
    get = headers.get
    return {
        "uuid": task_id, "root_id": get("root_id"), "parent_id": get("parent_id"), "name": name,
        "args": get("argsrepr"), "kwargs": get("kwargsrepr"), "retries": get("retries") or 0, "eta": get("eta"),
        "expires": get("expires"), "queue": plan.route.queue_name, "exchange": exchange, "routing_key": routing_key,
    }  # fmt: skip
