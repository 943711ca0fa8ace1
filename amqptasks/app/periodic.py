"""Periodic tasks that code adds to the schedule: ``app.add_periodic_task``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from amqptasks.canvas.signature import Signature
from amqptasks.settings import Conf
from amqptasks.signals import Signal

__all__ = ["PeriodicTasks"]

logger = logging.getLogger(__name__)


class PeriodicTasks:
    """The part of `App` that adds entries to ``beat_schedule``."""

    _conf: Conf | None
    on_after_configure: Signal
    signature: Callable[..., Signature]

    def add_periodic_task(
        self, schedule: Any, sig: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None,
        name: str | None = None, missed: str | None = None, **opts: Any,
    ) -> str:  # fmt: skip
        """Have a task sent again and again, by beat. Best called by a receiver of `on_after_configure` or
        `on_after_finalize`: then it is done in every process.

        Args:
            schedule: When: seconds, a timedelta, `crontab`, or another schedule.
            sig: A task, or a signature of one.
            args, kwargs: Put in front of, and into, those of the signature.
            name: The entry's name; without one it is made of the call, and the same call replaces it.
            missed: What becomes of runs that were missed: "skip", "once" or "all"; ``beat_missed_runs`` without.
            **opts: What `Task.apply_async` takes besides, such as ``queue`` and ``expires``.

        Returns:
            The entry's name.
        """
        call = sig.clone(args, kwargs or {}) if isinstance(sig, Signature) else self.signature(sig.name, args, kwargs)
        key = name or repr(call)
        entry: dict[str, Any] = {
            "schedule": schedule, "task": call.task, "args": call.args, "kwargs": call.kwargs,
            "options": {**call.options, **opts},
        }  # fmt: skip
        if missed is not None:
            entry["missed"] = missed
        if self._conf is not None:
            _add(self._conf, key, entry, is_named=name is not None)
        else:
            # The settings, once they are read, would replace it. (Not by `conf`: this must not read them.)
            def add(source: Conf, **_: Any) -> None:
                _add(source, key, entry, is_named=name is not None)

            self.on_after_configure.connect(add, weak=False)
        return key


def _add(conf: Conf, key: str, entry: dict[str, Any], *, is_named: bool) -> None:
    schedule = conf.beat_schedule
    if not is_named and key in schedule and schedule[key] != entry:
        logger.warning(
            "Periodic task %r replaces another without a name. Pass name=… to add_periodic_task to keep both.", key
        )
    schedule[key] = entry
