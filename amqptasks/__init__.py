"""amqptasks: a distributed task system whose only broker is RabbitMQ, with the API that Celery's users know.

    from amqptasks import App

    app = App("proj", broker="amqp://localhost", backend="rpc://")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

Names are imported when first used, so that ``import amqptasks`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amqptasks._version import __version__

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.app.app import App as Celery
    from amqptasks.app.shared import current_app, current_task, shared_task
    from amqptasks.app.task import Task
    from amqptasks.canvas.chain import chain as chain
    from amqptasks.canvas.chord import chord as chord
    from amqptasks.canvas.group import group as group
    from amqptasks.canvas.mapping import chunks, xmap, xstarmap
    from amqptasks.canvas.signature import Signature, maybe_signature, signature
    from amqptasks.entities import Binding, Broadcast, Exchange, Queue, binding
    from amqptasks.result import AsyncResult, GroupResult, ResultSet
    from amqptasks.utils import uuid

_HOMES = {
    "App": ("amqptasks.app.app", "App"),
    "Celery": ("amqptasks.app.app", "App"),
    "current_app": ("amqptasks.app.shared", "current_app"),
    "current_task": ("amqptasks.app.shared", "current_task"),
    "shared_task": ("amqptasks.app.shared", "shared_task"),
    "Task": ("amqptasks.app.task", "Task"),
    "chain": ("amqptasks.canvas", "chain"),
    "chord": ("amqptasks.canvas", "chord"),
    "chunks": ("amqptasks.canvas", "chunks"),
    "group": ("amqptasks.canvas", "group"),
    "xmap": ("amqptasks.canvas", "xmap"),
    "xstarmap": ("amqptasks.canvas", "xstarmap"),
    "Signature": ("amqptasks.canvas.signature", "Signature"),
    "maybe_signature": ("amqptasks.canvas.signature", "maybe_signature"),
    "signature": ("amqptasks.canvas.signature", "signature"),
    "Binding": ("amqptasks.entities", "Binding"),
    "Broadcast": ("amqptasks.entities", "Broadcast"),
    "Exchange": ("amqptasks.entities", "Exchange"),
    "Queue": ("amqptasks.entities", "Queue"),
    "binding": ("amqptasks.entities", "binding"),
    "AsyncResult": ("amqptasks.result", "AsyncResult"),
    "GroupResult": ("amqptasks.result", "GroupResult"),
    "ResultSet": ("amqptasks.result", "ResultSet"),
    "uuid": ("amqptasks.utils", "uuid"),
}

__all__ = [
    "App", "AsyncResult", "Binding", "Broadcast", "Celery", "Exchange", "GroupResult", "Queue", "ResultSet",
    "Signature", "Task", "__version__", "binding", "chain", "chord", "chunks", "current_app", "current_task", "group",
    "maybe_signature", "shared_task", "signature", "uuid", "xmap", "xstarmap",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'amqptasks' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
