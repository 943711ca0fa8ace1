"""What a worker says about itself when it starts."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from amqptasks._version import __version__
from amqptasks.entities import Broadcast, Queue

#: How the names of the package's own tasks begin: not shown, as in Celery.
OWN_TASKS = "amqptasks."


def banner(
    *,
    hostname: str,
    app: str,
    brokers: str,
    results: str,
    concurrency: str,
    queues: Iterable[Queue],
    tasks: Iterable[str] | None,
) -> str:
    """Return the text. ``tasks`` None leaves the list of tasks out."""
    lines = [
        "",
        f" {hostname} amqptasks v{__version__}",
        f" {platform.platform()}, Python {platform.python_version()}",
        "",
        "[config]",
        f".> app:         {app}",
        f".> transport:   {brokers}",
        f".> results:     {results}",
        f".> concurrency: {concurrency}",
        "",
        "[queues]",
    ]
    for queue in queues:
        kind = (
            f" exchange={queue.exchange.name}({queue.exchange.type}) key={queue.routing_key}"
            if queue.exchange.name
            else ""
        )
        title = queue.title if isinstance(queue, Broadcast) else queue.name
        lines.append(f".> {title:<16}{kind}")
    if tasks is not None:
        lines += ["", "[tasks]", *(f"  . {name}" for name in sorted(tasks) if not name.startswith(OWN_TASKS))]
    lines.append("")
    return "\n".join(lines)
