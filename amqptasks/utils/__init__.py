"""Public helpers under Celery's names: `amqptasks.utils.log`, `amqptasks.utils.nodenames`, `amqptasks.utils.uuid`."""

from __future__ import annotations

import uuid as _uuid


def uuid() -> str:
    """Make a new task id."""
    return str(_uuid.uuid4())
