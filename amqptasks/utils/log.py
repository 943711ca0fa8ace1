"""Loggers for tasks: ``from amqptasks.utils.log import get_task_logger``."""

from __future__ import annotations

from amqptasks.logs import get_logger, get_task_logger

__all__ = ["get_logger", "get_task_logger"]
