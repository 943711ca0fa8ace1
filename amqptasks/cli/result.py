"""``amqptasks result``: what a task returned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from amqptasks.cli.common import EXIT_FAILED, EXIT_UNAVAILABLE, CliError, Globals, did_you_mean, plain
from amqptasks.cli.completion import complete_task
from amqptasks.cli.elements import Command, json_option
from amqptasks.exceptions import ResultUnreachable, TimeoutError
from amqptasks.results.record import ResultRecord
from amqptasks.states import FAILURE, PENDING
from amqptasks.wire.failures import from_plain

if TYPE_CHECKING:
    from amqptasks.results.handles import AsyncResult

__all__ = ["result"]

#: How long it waits before it says what for, seconds.
SILENT_S = 1.0


@click.command(
    cls=Command, short_help="Print what a task returned, by its id.",
    examples=(
        "amqptasks -A proj result 4b6e7c0a-8f7e-4f0c-9d5a-2f1f5b7f6a3d",
        "amqptasks -A proj result --timeout 10 --json ID",
    ),
)  # fmt: skip
@click.argument("task_id", metavar="ID")
@click.option("-t", "--task", metavar="NAME", shell_complete=complete_task, help="The task, if its backend is its own.")
@click.option("--traceback", "trace", is_flag=True, help="Print the traceback of a failed task instead.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long at most.")
@json_option()
@click.pass_context
def result(
    ctx: click.Context, /, task_id: str, task: str | None, trace: bool, timeout: float | None, as_json: bool
) -> None:  # fmt: skip
    """Print what the task with this ID returned, once it has; or its error.

    It needs a backend that keeps results: those of rpc:// reach only the process that sent the task.
    The exit code is 1 if the task failed, 69 if it has not finished in time.
    """
    obj: Globals = ctx.obj
    handle = _handle(obj, task_id, task)
    try:
        # With --traceback as it is now: Celery does not wait there either.
        record = _look(handle) if trace else _wait(obj, handle, timeout)
    except ResultUnreachable as error:
        raise _elsewhere(task_id) from error
    finally:
        obj.app().close()
    if as_json:
        click.echo(json.dumps(record.to_plain(), indent=2, default=plain))
    elif trace:
        _print_traceback(obj, record)
    elif not record.is_exception:
        click.echo(record.result)
    else:
        where = " (--traceback shows where)" if record.traceback else ""
        raise CliError(f"task {task_id} {_how(record)}: {_reason(record)}{where}", EXIT_FAILED)
    if record.is_final and record.is_exception:
        ctx.exit(EXIT_FAILED)


def _handle(obj: Globals, task_id: str, name: str | None) -> AsyncResult:
    app = obj.app()
    app.import_modules()
    if not name:
        return app.AsyncResult(task_id)
    if name not in app.tasks:
        raise CliError(f"-t: this app has no task {name!r}{did_you_mean(name, app.tasks)}")
    handle: AsyncResult = app.tasks[name].AsyncResult(task_id)
    return handle


def _look(handle: AsyncResult) -> ResultRecord:
    """Return what is known now.

    Raises:
        ResultUnreachable: This process can never know.
    """
    try:
        return handle.backend.wait(handle.id, 0)
    except TimeoutError:
        return handle.backend.fetch(handle.id) or ResultRecord(handle.id, PENDING)


def _wait(obj: Globals, handle: AsyncResult, timeout_s: float | None) -> ResultRecord:
    """Wait, and say so if it takes long."""
    silent_s = SILENT_S if timeout_s is None else min(SILENT_S, timeout_s)
    try:
        return handle.backend.wait(handle.id, silent_s)
    except TimeoutError:
        state = _look(handle).status
    left_s = None if timeout_s is None else timeout_s - silent_s
    if left_s is None or left_s > 0:
        if not obj.quiet:
            limit = "for ever; --timeout sets an end" if left_s is None else f"for {left_s:g} s more"
            click.echo(f"task {handle.id} is {state}; waiting {limit}", err=True)
        try:
            return handle.backend.wait(handle.id, left_s)
        except TimeoutError:
            state = _look(handle).status
    hint = ": not finished, or no task that this backend knows" if state == PENDING else ": not finished"
    raise CliError(f"task {handle.id} is {state} after {timeout_s:g} s{hint}", EXIT_UNAVAILABLE)


def _elsewhere(task_id: str) -> CliError:
    return CliError(
        f"the result of task {task_id} is not here: rpc:// sends results to the process that sent the task, and this "
        f"is another. Give the task persist_result=True, or the app a result store such as db+sqlite:///results.db",
        EXIT_FAILED,
    )


def _print_traceback(obj: Globals, record: ResultRecord) -> None:
    if record.traceback:
        click.echo(record.traceback.rstrip("\n"))
    elif not obj.quiet:
        click.echo(f"task {record.task_id} has no traceback: it is {record.status}", err=True)


def _how(record: ResultRecord) -> str:
    return "failed" if record.status == FAILURE else f"is {record.status}"


def _reason(record: ResultRecord) -> str:
    error = from_plain(record.result, None)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
