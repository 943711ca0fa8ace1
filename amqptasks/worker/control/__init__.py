"""Remote control of a worker: the commands it answers, and how to add your own.

``from amqptasks.worker.control import control_command, inspect_command``
"""

from __future__ import annotations

from amqptasks.worker.control.registry import Panel, control_command, inspect_command

__all__ = ["Panel", "control_command", "inspect_command"]
