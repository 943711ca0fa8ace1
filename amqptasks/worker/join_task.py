"""The task that joins a chord: what a poke, or a sweep, is a call of. Every worker has it."""

from __future__ import annotations

from typing import Any

from amqptasks.app.app import App
from amqptasks.app.task import Task
from amqptasks.wire.chord import JOIN_TASK

__all__ = ["add_join_task"]


def add_join_task(app: App) -> None:
    """Make the join a task of an app. What settings say of all tasks does not reach it."""
    app.define_task(
        _join, name=JOIN_TASK, bind=True, base=Task, typing=False, acks_late=True, ignore_result=True,
        store_errors_even_if_ignored=False, persist_result=False, track_started=False, dead_letter_on_failure=False,
        max_retries=None, rate_limit=0, send_events=False,
    )  # fmt: skip


def _join(self: Task[..., Any], collector: Any = None, sweep: Any = False) -> None:
    # With the first chord: most workers never see one.
    from amqptasks.worker.joining import join

    join(self, collector, bool(sweep))
