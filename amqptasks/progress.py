"""Progress of several tasks, for people who wait: `track` goes with a loop, `ResultSet.progress` waits for values."""

from __future__ import annotations

from amqptasks.results.bar import Bar
from amqptasks.results.progress import track

__all__ = ["Bar", "track"]
