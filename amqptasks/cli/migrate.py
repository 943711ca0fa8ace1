"""``amqptasks migrate``: moves waiting tasks from one broker to another, or from queue to queue."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, commas, did_you_mean, plural
from amqptasks.cli.completion import complete_queues, complete_task
from amqptasks.cli.elements import Command, json_option
from amqptasks.entities import Broadcast

if TYPE_CHECKING:
    from amqptasks.broker.moving import Destination, Source, Taken
    from amqptasks.broker.parameters import Endpoint
    from amqptasks.broker.topology import Step

__all__ = ["migrate"]

#: How long ``--forever`` waits for messages before it looks whether it was told to end.
LOOK_EVERY_S = 1.0
#: How often it says there how far it is, messages.
PROGRESS_EVERY = 1000


@dataclass(slots=True)
class Move:
    """What is to be moved, and what was."""

    #: From queue to queue.
    queues: dict[str, str]
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    timeout_s: float = 1.0
    is_copy: bool = False
    is_forever: bool = False
    moved: Counter[str] = field(default_factory=Counter)
    is_ended: bool = False

    @property
    def left(self) -> int | None:
        """How many may still be moved; None without a limit."""
        return None if self.limit is None else self.limit - self.moved.total()

    def wants(self, taken: Taken) -> bool:
        """Whether this message is meant."""
        return not self.tasks or any(fnmatch.fnmatchcase(_task_of(taken), each) for each in self.tasks)


@click.command(
    cls=Command, short_help="Move waiting tasks to another broker, or another queue.",
    examples=(
        "amqptasks -A proj migrate amqp://old amqp://new",
        "amqptasks -A proj migrate amqp://old amqp://new -Q mail,images:pictures -F",
        "amqptasks -A proj migrate amqp://old amqp://new -Q mail.dead",
        "amqptasks migrate amqp://rabbit amqp://rabbit -Q mail:slow -T 'mail.*' -n 9",
    ),
)  # fmt: skip
@click.argument("source")
@click.argument("destination")
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="COUNT", help="Move so many at most.")
@click.option(
    "-t", "--timeout", "timeout_s", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="SECONDS",
    help="End when no message has come for so long.",
)  # fmt: skip
@click.option("-a", "--ack-messages", is_flag=True, help="Accepted for Celery's sake: messages are moved, not copied.")
@click.option("--copy", "is_copy", is_flag=True, help="Leave them at the source too. Both will be run.")
@click.option(
    "-T", "--tasks", callback=commas, metavar="A,B", shell_complete=complete_task,
    help="Only these tasks; * stands for anything.",
)  # fmt: skip
@click.option(
    "-Q", "--queues", callback=commas, metavar="A,B:C", shell_complete=complete_queues,
    help="Only these queues; B:C moves what is in B to C. The app's queues without.",
)  # fmt: skip
@click.option("-F", "--forever", is_flag=True, help="Go on with what comes, until ^C or TERM.")
@json_option()
@click.pass_obj
def migrate(
    obj: Globals, /, source: str, destination: str, limit: int | None, timeout_s: float, ack_messages: bool,
    is_copy: bool, tasks: tuple[str, ...] | None, queues: tuple[str, ...] | None, forever: bool, as_json: bool,
) -> None:  # fmt: skip
    """Move the messages that wait in the app's queues at SOURCE to the queues of the same names at DESTINATION.

    Both are URLs of brokers. Missing queues are declared at DESTINATION, as the app declares them. A message leaves
    SOURCE only after DESTINATION has confirmed it, whatever happens: a kill in between leaves a few in both places and
    loses none. Run it again to go on. Body, properties and headers stay as they are, to the byte.

    Not moved: tasks that workers run, dead letters unless their queue is named by -Q, results, and delayed tasks and
    retries before they are due. With -F those follow as soon as they are. Stop those who send to SOURCE first, or
    keep -F until they have moved too.
    """
    if ack_messages and is_copy:
        raise CliError("--ack-messages moves messages, --copy leaves them: give one of them")
    app = obj.app()
    move = Move(_pairs(obj, queues), tasks or (), limit, timeout_s, is_copy, forever)
    ends = [_endpoint(obj, url) for url in (source, destination)]
    if _place(ends[0]) == _place(ends[1]):
        same = [name for name, target in move.queues.items() if name == target]
        if same:
            raise CliError(f"source and destination are the same broker, so -Q {same[0]}:OTHER must say where to")
    from amqptasks.broker.moving import Destination, Source

    with Source([ends[0]]) as taking, Destination([ends[1]]) as putting:
        counts = _look(app, taking, move, explicit=queues is not None)
        for name in move.queues:
            _declare(app, putting, move.queues[name])
        try:
            _move_all(obj, taking, putting, move, sum(counts.values()))
        except BaseException:
            click.echo(f"{_told(move)} before this. Run it again to go on:", err=True)
            raise
        remains = {} if move.is_copy else _remains(app, taking, move)
    if as_json:
        facts = {"copied" if is_copy else "moved": move.moved.total(), "queues": dict(move.moved), **remains}
        click.echo(json.dumps(facts, indent=2))
        return
    obj.say(f"{_told(move)}.")
    if remains.get("delayed"):
        obj.say(f"{plural(remains['delayed'], 'delayed task')} still at the source: -F moves them when they are due")
    for name, count in remains.get("dead", {}).items():
        obj.say(f"{plural(count, 'dead letter')} still in {name} at the source: -Q {name} moves them")


def _told(move: Move) -> str:
    parts = ", ".join(f"{name} {count}" for name, count in move.moved.items())
    word = "Copied" if move.is_copy else "Moved"
    return f"{word} {plural(move.moved.total(), 'message')}{f': {parts}' if parts else ''}"


# -- what, from where


def _pairs(obj: Globals, queues: tuple[str, ...] | None) -> dict[str, str]:
    app = obj.app()
    if queues is None:
        # What waits for a broadcast is in queues of the workers, whose names only they know.
        return {name: name for name, queue in app.queues.items() if not isinstance(queue, Broadcast)}
    pairs = {}
    for each in queues:
        name, colon, target = each.partition(":")
        if not name or (colon and not target):
            raise CliError(f"-Q: expected QUEUE or FROM:TO, got: {each!r}")
        known = app.sender.routing.named(name)
        name = known.name if known is not None else name
        pairs[name] = target or name
    return pairs


def _endpoint(obj: Globals, url: str) -> Endpoint:
    from amqptasks.broker.parameters import endpoints

    conf = obj.app().conf
    is_tls = url.partition(":")[0].lower() == "amqps"
    return endpoints(
        [url], heartbeat_s=None, connection_timeout_s=conf.broker_connection_timeout,
        # What the settings say of TLS is of the app's own broker; of these, it is in the URLs.
        ssl=conf.broker_use_ssl if is_tls else None, name=f"amqptasks migrate {os.getpid()}@{socket.gethostname()}",
    )[0]  # fmt: skip


def _place(endpoint: Endpoint) -> tuple[Any, ...]:
    return endpoint.parameters.host, endpoint.parameters.port, endpoint.parameters.virtual_host


def _look(app: Any, taking: Source, move: Move, *, explicit: bool) -> dict[str, int]:
    """Return how many messages wait in each queue, and leave out those that are not there."""
    counts = {}
    for name in list(move.queues):
        found = taking.counts(name)
        if found is not None:
            counts[name] = found[0]
        elif explicit:
            raise CliError(f"there is no queue {name!r} at {taking.label}{did_you_mean(name, app.queues)}", EXIT_FAILED)
        else:
            del move.queues[name]
    return counts


def _declare(app: Any, putting: Destination, name: str) -> None:
    """Declare a queue at the destination, unless there is one."""
    if putting.counts(name) is None:
        putting.declare(_steps(app, name, putting.version))


def _steps(app: Any, name: str, version: tuple[int, ...]) -> tuple[Step, ...]:
    from amqptasks.broker.topology import dead_queue, plan
    from amqptasks.entities import Queue

    suffix = app.conf.task_dead_letter_suffix
    known = app.sender.routing.named(name)
    if known is None and suffix and name.endswith(suffix):
        return (dead_queue(app.conf, name.removesuffix(suffix), version),)
    # A queue that the app does not know is reached by its name alone.
    queue = known or Queue(name)
    return plan(queue, default_type=app.conf.task_default_queue_type, version=version)


def _remains(app: Any, taking: Source, move: Move) -> dict[str, Any]:
    """Count what stays behind: delayed tasks, and dead letters."""
    from amqptasks.broker.topology import DeclareQueue

    delayed = 0
    for step in app.sender.ladder.steps():
        if isinstance(step, DeclareQueue) and step.queue != app.sender.ladder.unroutable:
            counts = taking.counts(step.queue)
            if counts is None:
                # They are declared all together, or none.
                break
            delayed += counts[0]
    dead = {}
    for name in move.queues:
        counts = taking.counts(name + app.conf.task_dead_letter_suffix)
        if counts and counts[0] and name + app.conf.task_dead_letter_suffix not in move.queues:
            dead[name + app.conf.task_dead_letter_suffix] = counts[0]
    return {"delayed": delayed, "dead": dead}


# -- moving


def _move_all(obj: Globals, taking: Source, putting: Destination, move: Move, total: int) -> None:
    from amqptasks.broker.moving import WINDOW
    from amqptasks.results.bar import Bar

    # As many as are meant, so that none is taken in vain: what goes back to a quorum queue stands behind the others.
    window = min(WINDOW, move.limit or WINDOW)
    expected = total if move.limit is None else min(total, move.limit)
    with _until_told(move), contextlib.ExitStack() as stack:
        bar = None
        if expected and not obj.quiet and not move.is_forever:
            bar = stack.enter_context(Bar(expected, "messages"))
        for name in move.queues:
            taking.consume(name, window)
        while not move.is_ended and (move.left is None or move.left > 0):
            batch = taking.take(
                window if move.left is None else min(window, move.left),
                LOOK_EVERY_S if move.is_forever else move.timeout_s,
            )
            if not batch and not move.is_forever:
                return
            done = _move_some(taking, putting, move, batch)
            if bar is not None:
                bar.advance(done)
            elif done and not obj.quiet and _is_past(move.moved.total(), done):
                click.echo(f"{_told(move)} so far", err=True)


def _is_past(total: int, more: int) -> bool:
    """Whether the last of these made another round number full."""
    return total // PROGRESS_EVERY > (total - more) // PROGRESS_EVERY


def _move_some(taking: Source, putting: Destination, move: Move, batch: list[Taken]) -> int:
    """Move those of a batch that are meant; return how many those are."""
    from amqptasks.broker.moving import copied_properties

    meant = []
    for each in batch:
        if move.wants(each):
            meant.append(each)
        else:
            taking.keep(each)
    if not meant:
        return 0
    confirmed = putting.put_all(
        [(move.queues[each.queue], each.body, copied_properties(each.properties)) for each in meant]
    )
    for each, is_there in zip(meant, confirmed, strict=True):
        if not is_there:
            continue
        move.moved[each.queue] += 1
        if move.is_copy:
            taking.keep(each)
        else:
            taking.ack(each)
    taking.settle()
    if not all(confirmed):
        count = plural(confirmed.count(False), "message")
        raise CliError(
            f"{putting.label} did not take {count}, which stay at the source: {putting.problem}", EXIT_FAILED
        )
    return len(meant)


@contextlib.contextmanager
def _until_told(move: Move) -> Iterator[None]:
    """Let ^C and TERM end it behind the messages that are under way."""

    def end(_number: int, _frame: Any) -> None:
        move.is_ended = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _task_of(taken: Taken) -> str:
    """Return the name of the task that a message is for, empty if that cannot be told."""
    headers = taken.properties.headers
    name = headers.get("task") if isinstance(headers, dict) else None
    if name is None:
        # Of protocol 1, where it is in the body.
        try:
            body = json.loads(taken.body)
        except (ValueError, RecursionError):
            return ""
        name = body.get("task") if isinstance(body, dict) else None
    return name if isinstance(name, str) else ""
