"""How long tasks may take: what the call says, else the task, else the settings; above all of them, what an operator
has ordered since.

Decides only. `pools.guard` watches the time, and each kind of pool ends what has run too long in its own way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from amqptasks import signals
from amqptasks.app.context import Context
from amqptasks.app.handlers import ExceptionInfo, told_return
from amqptasks.exceptions import ImproperlyConfigured, NotRegistered, TimeLimitExceeded
from amqptasks.states import FAILURE
from amqptasks.wire.failures import format_traceback
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

#: Hard and soft, seconds, in the order in which they travel; None for none.
Limits = tuple[float | None, float | None]
NONE: Limits = (None, None)


class TimeLimits:
    """The limits of one worker's tasks. Belongs to the loop's thread.

    Args:
        hard, soft: Those of tasks which have none of their own (``task_time_limit``, ``task_soft_time_limit``).
    """

    def __init__(self, hard: float | None, soft: float | None) -> None:
        if hard is not None and soft is not None and soft > hard:
            raise ImproperlyConfigured(
                f"expected task_soft_time_limit to be at most task_time_limit, got: {soft:g} > {hard:g}"
            )
        self._default: Limits = (hard, soft)
        #: What holds for calls that say nothing, by name of the task: found out at its first call.
        self._by_task: dict[str, Limits | None] = {}
        self._ordered: set[str] = set()

    def apply(self, request: Request) -> None:
        """Give a task that has not begun its limits."""
        name = request.task_name
        if name in self._by_task:
            default = self._by_task[name]
        else:
            default = self._by_task[name] = self._or_default(request.task.time_limit, request.task.soft_time_limit)
        own = request.headers.get("timelimit")
        if own is None or name in self._ordered:
            request.limits = default
            return
        hard, soft = own
        if default is not None:
            hard, soft = hard or default[0], soft or default[1]
        request.limits = (hard, soft) if hard or soft else None

    def order(self, tasks: Mapping[str, Any], name: str, hard: float | None, soft: float | None) -> None:
        """Set the limits of a task for every call that begins from now on, whatever the call says.

        Where both are None, the settings' hold.

        Raises:
            NotRegistered: There is no such task here.
            ValueError: A limit is no number of seconds above 0, or the soft one is above the hard one.
        """
        if name not in tasks:
            raise NotRegistered(name)
        for limit in (hard, soft):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
                raise ValueError(f"expected a number of seconds above 0, or None, got: {limit!r}")
        if hard is not None and soft is not None and soft > hard:
            raise ValueError(f"expected the soft time limit to be at most the hard one, got: {soft:g} > {hard:g}")
        self._ordered.add(name)
        self._by_task[name] = self._or_default(hard, soft)
        logger.info("New time limits for tasks of type %s: soft=%s hard=%s", name, soft, hard)

    def _or_default(self, hard: float | None, soft: float | None) -> Limits | None:
        limits = hard or self._default[0], soft or self._default[1]
        return None if limits == NONE else limits


def tell_timeout(task: Any, request: Context, error: TimeLimitExceeded) -> None:
    """Tell of a task that was ended: its handlers and the signal. They run here, for what ran it is gone."""
    einfo = ExceptionInfo(error, format_traceback(error))
    hooks = task.hooks
    try:
        if hooks is not None and hooks.on_failure is not None:
            hooks.on_failure(error, request.id, request.args, request.kwargs, einfo)
    except Exception:
        logger.exception("on_failure of task %s[%s] raised an error", request.task, request.id)
    if signals.task_failure:
        signals.task_failure.send(
            task, task_id=request.id, exception=error, args=request.args, kwargs=request.kwargs, traceback=None,
            einfo=einfo,
        )  # fmt: skip
    told_return(task, request, FAILURE, error, einfo)
