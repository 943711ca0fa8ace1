"""Names of workers, and the queues that lead to one: ``from amqptasks.utils.nodenames import worker_direct``."""

from __future__ import annotations

from amqptasks.entities import worker_direct

__all__ = ["nodename", "nodesplit", "worker_direct"]


def nodename(name: str, hostname: str) -> str:
    """Return the full name of a worker, ``name@hostname``."""
    return f"{name}@{hostname}"


def nodesplit(name: str) -> tuple[str | None, str]:
    """Return the two parts of a worker's full name; the first is None where there is no ``@``."""
    first, at, rest = name.partition("@")
    return (first, rest) if at else (None, first)
