"""``amqptasks logtool``: what the logs of workers tell of tasks, ours and Celery's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

import click

from amqptasks.cli.common import CliError, Globals, plural, print_table
from amqptasks.cli.elements import Group, json_option

__all__ = ["Audit", "Line", "logtool", "read_lines"]

#: Where a line of a log begins; others belong to the one before, as those of a traceback do.
_START = re.compile(r"\[\d{4}-\d\d-\d\d[ T][\d:,.]+: (?P<level>[A-Z]+)/[^\]]*\] ?(?P<text>.*)", re.DOTALL)
_TASK = re.compile(r"Task (?P<task>[^\s\[]+)\[(?P<id>[^\]]+)\] (?P<what>.*)", re.DOTALL)
_REVOKED = re.compile(r"Discarding revoked task: (?P<task>[^\s\[]+)\[(?P<id>[^\]]+)\]")
_RUNTIME = re.compile(r"succeeded in (\d+(?:\.\d+)?)s")
#: What becomes of a task, by how the line about it goes on. Celery's words, and ours.
_ENDS = (
    ("succeeded in ", "succeeded"), ("has succeeded before", "succeeded"), ("raised unexpected", "failed"),
    ("raised expected", "failed"), ("raised an internal error", "failed"), ("was lost: ", "failed"),
    ("has ended ", "failed"), ("INTERNAL ERROR", "failed"), ("ignored", "ignored"), ("rejected", "rejected"),
    ("has expired", "revoked"), ("revoked", "revoked"),
)  # fmt: skip
KINDS = ("succeeded", "failed", "ignored", "rejected", "revoked")
#: The longest line that is read whole, characters.
MOST_CHARACTERS = 1024 * 1024


@dataclass(slots=True)
class Line:
    """A line of a log, with those that belong to it."""

    text: str
    level: str = ""
    message: str = ""
    more: list[str] = field(default_factory=list)

    @property
    def whole(self) -> str:
        """The line and what belongs to it."""
        return "\n".join([self.text, *self.more])


@dataclass(slots=True)
class Counts:
    """What became of the tasks of one name."""

    received: int = 0
    retries: int = 0
    ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: float = 0.0
    longest_s: float = 0.0
    runs: int = 0


@dataclass(slots=True)
class Audit:
    """What a log tells of tasks."""

    tasks: dict[str, Counts] = field(default_factory=dict)
    #: Those that were received and have not ended, with the task's name.
    open: dict[str, str] = field(default_factory=dict)

    def feed(self, line: Line) -> str:
        """Count a line; return what it says: ``received``, ``retry``, one of `KINDS`, or nothing of a task."""
        found = _TASK.match(line.message) or _REVOKED.match(line.message)
        if found is None:
            return ""
        task, task_id = found["task"], found["id"]
        what = found["what"] if "what" in found.re.groupindex else "revoked"
        counts = self.tasks.setdefault(task, Counts())
        if what.startswith("received"):
            counts.received += 1
            self.open[task_id] = task
            return "received"
        if what.startswith("retry:"):
            counts.retries += 1
            # The next try is another message, which is received anew.
            self.open.pop(task_id, None)
            return "retry"
        for words, kind in _ENDS:
            if what.startswith(words):
                counts.ends[kind] += 1
                self.open.pop(task_id, None)
                self._time(counts, what)
                return kind
        return ""

    @staticmethod
    def _time(counts: Counts, what: str) -> None:
        runtime = _RUNTIME.match(what)
        if runtime is not None:
            seconds = float(runtime[1])
            counts.runs += 1
            counts.seconds += seconds
            counts.longest_s = max(counts.longest_s, seconds)


def read_lines(files: Iterable[IO[str]]) -> Iterator[Line]:
    """Return the lines of logs, of text or of JSON, each with those that belong to it."""
    for file in files:
        held: Line | None = None
        while text := file.readline(MOST_CHARACTERS):
            text = text.rstrip("\r\n")
            line = _start(text)
            if line is None and held is not None:
                held.more.append(text)
                continue
            if held is not None:
                yield held
            held = line
        if held is not None:
            yield held


def _start(text: str) -> Line | None:
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(found, dict) and "message" in found:
            more = str(found["exception"]).splitlines() if found.get("exception") else []
            return Line(text, str(found.get("level", "")), str(found["message"]), more)
        return None
    match = _START.match(text)
    return None if match is None else Line(text, match["level"], match["text"])


# -- commands


@click.group(
    cls=Group, short_help="Tell what workers' logs say of tasks.",
    examples=("amqptasks logtool stats log/*.log", "journalctl -u amqptasks-worker -o cat | amqptasks logtool errors"),
)  # fmt: skip
def logtool() -> None:
    """Tell what the logs of workers say of tasks.

    Workers must log at INFO, in the usual format or as JSON; Celery's logs do too. Without files, standard input is
    read.
    """


def _files(stack: ExitStack, names: Sequence[str]) -> list[IO[str]]:
    opened: list[IO[str]] = []
    for name in names or ("-",):
        try:
            file = sys.stdin if name == "-" else open(name, encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise CliError(f"cannot read {name!r}: {error.strerror}") from error
        if file is not sys.stdin:
            stack.enter_context(file)
        opened.append(file)
    return opened


@logtool.command(
    "stats", short_help="Count tasks and what became of them.",
    examples=("amqptasks logtool stats log/*.log", "amqptasks logtool stats --json < worker.log"),
)  # fmt: skip
@click.argument("files", nargs=-1, type=click.Path())
@json_option()
@click.pass_obj
def stats(obj: Globals, /, files: Sequence[str], as_json: bool) -> None:
    """Count the tasks of each name: how many came, what became of them, how long they ran."""
    audit = Audit()
    with ExitStack() as stack:
        for line in read_lines(_files(stack, files)):
            audit.feed(line)
    rows = [_row(name, counts) for name, counts in sorted(audit.tasks.items(), key=lambda each: -each[1].received)]
    if as_json:
        click.echo(json.dumps({"tasks": rows, "incomplete": len(audit.open)}, indent=2))
        return
    print_table(
        ["TASK", "RECEIVED", *(kind.upper() for kind in KINDS), "RETRIES", "MEAN", "LONGEST"],
        [
            [
                row["task"], *(str(row[key]) for key in ("received", *KINDS, "retries")),
                *("-" if row[key] is None else f"{row[key]:.3f}s" for key in ("mean_s", "longest_s")),
            ]
            for row in rows
        ],
    )  # fmt: skip
    total = sum(row["received"] for row in rows)
    obj.say(f"{plural(total, 'task')} received, {len(audit.open)} not completed")


def _row(name: str, counts: Counts) -> dict[str, Any]:
    return {
        "task": name, "received": counts.received, **counts.ends, "retries": counts.retries,
        "mean_s": counts.seconds / counts.runs if counts.runs else None,
        "longest_s": counts.longest_s if counts.runs else None,
    }  # fmt: skip


@logtool.command(
    "errors", short_help="Show the lines of tasks that failed.",
    examples=("amqptasks logtool errors worker.log",),
)  # fmt: skip
@click.argument("files", nargs=-1, type=click.Path())
@json_option()
def errors(files: Sequence[str], as_json: bool) -> None:
    """Show the lines of tasks that failed, each without its traceback."""
    audit = Audit()
    with ExitStack() as stack:
        _show((each for each in read_lines(_files(stack, files)) if audit.feed(each) == "failed"), as_json)


@logtool.command(
    "traces", short_help="Show lines that have a traceback.",
    examples=("amqptasks logtool traces worker.log | less",),
)  # fmt: skip
@click.argument("files", nargs=-1, type=click.Path())
@json_option()
def traces(files: Sequence[str], as_json: bool) -> None:
    """Show the lines that have a traceback, with it."""
    with ExitStack() as stack:
        lines = read_lines(_files(stack, files))
        _show((each for each in lines if any("Traceback" in part for part in each.more)), as_json, whole=True)


@logtool.command(
    "incomplete", short_help="Show the tasks that came and did not end.",
    examples=("amqptasks logtool incomplete worker.log",),
)  # fmt: skip
@click.argument("files", nargs=-1, type=click.Path())
@json_option()
def incomplete(files: Sequence[str], as_json: bool) -> None:
    """Show the tasks that were received and did not end: they run, or their worker was lost."""
    audit = Audit()
    with ExitStack() as stack:
        for line in read_lines(_files(stack, files)):
            audit.feed(line)
    if as_json:
        click.echo(json.dumps([{"id": task_id, "task": task} for task_id, task in audit.open.items()], indent=2))
        return
    for task_id, task in audit.open.items():
        click.echo(f"Did not complete: {task_id}  {task}")


@logtool.command(
    "debug", short_help="Show the lines that are not of tasks.",
    examples=("amqptasks logtool debug worker.log",),
)  # fmt: skip
@click.argument("files", nargs=-1, type=click.Path())
@json_option()
def debug(files: Sequence[str], as_json: bool) -> None:
    """Show the lines that tell nothing of what becomes of a task."""
    audit = Audit()
    with ExitStack() as stack:
        _show((each for each in read_lines(_files(stack, files)) if not audit.feed(each)), as_json)


def _show(lines: Iterable[Line], as_json: bool, *, whole: bool = False) -> None:
    """Print lines as they come; with JSON one object for each, so that a log without end can be followed."""
    for line in lines:
        if as_json:
            click.echo(json.dumps({"level": line.level, "message": line.message, "more": line.more}))
        else:
            click.echo(line.whole if whole else line.text)
