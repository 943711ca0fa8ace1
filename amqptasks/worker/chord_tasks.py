"""The tasks of every worker for chords: the one that joins ours, and the one of Celery's that waits for parts."""

from __future__ import annotations

from typing import Any

from amqptasks.app.app import App
from amqptasks.app.task import Task
from amqptasks.wire.chord import JOIN_TASK, UNLOCK_TASK

__all__ = ["add_chord_tasks"]


def add_chord_tasks(app: App) -> None:
    """Make the two tasks of an app. What settings say of all tasks does not reach them."""
    for name, function in ((JOIN_TASK, _join), (UNLOCK_TASK, _unlock)):
        app.define_task(
            function, name=name, bind=True, base=Task, typing=False, acks_late=True, ignore_result=True,
            store_errors_even_if_ignored=False, persist_result=False, track_started=False,
            dead_letter_on_failure=False, max_retries=None, rate_limit=0, send_events=False,
        )  # fmt: skip


def _join(self: Task[..., Any], collector: Any = None, sweep: Any = False) -> None:
    # With the first chord: most workers never see one.
    from amqptasks.worker.joining import join

    join(self, collector, bool(sweep))


def _unlock(
    self: Task[..., Any], group_id: Any = None, callback: Any = None, interval: Any = None, max_retries: Any = None,
    result: Any = None, **_options: Any,
) -> None:  # fmt: skip
    from amqptasks.worker.unlocking import unlock

    unlock(self, group_id, callback, interval, max_retries, result)
