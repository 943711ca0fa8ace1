"""``amqptasks dead``: lists, shows, replays and discards dead letters."""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, commas, did_you_mean, plain, plural, visible
from amqptasks.cli.completion import complete_queue, complete_queues, complete_task
from amqptasks.cli.elements import Group, json_option
from amqptasks.exceptions import ContentError, InvalidTaskError
from amqptasks.wire.dead_letter import DeadLetter
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import accepted
from amqptasks.wire.task import read_body

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.broker.dead_letters import DeadLetters, Held
    from amqptasks.broker.topology import DeclareQueue

__all__ = ["dead"]

#: Serializers whose bodies are shown decoded. Never pickle, whatever the settings accept: reading it runs code.
SHOWN = ("json", "msgpack")
#: How often a long command says how far it is, messages.
PROGRESS_EVERY = 1000

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant. What is not given does not matter."""

    task: str | None = None
    reason: str | None = None
    ids: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.task or self.reason or self.ids)

    def __call__(self, letter: DeadLetter) -> bool:
        return (
            (not self.task or fnmatch.fnmatchcase(letter.task, self.task))
            and (not self.reason or fnmatch.fnmatchcase(letter.reason, self.reason))
            and (not self.ids or not letter.ids.isdisjoint(self.ids))
        )


@dataclass(slots=True)
class Tally:
    """What a command did: how many letters it dealt with, which ids, and which letters stayed, with the reason."""

    done: int = 0
    ids: set[str] = field(default_factory=set)
    failed: list[tuple[DeadLetter, str]] = field(default_factory=list)


def _filters(command: F) -> F:
    """Add the options that choose dead letters."""
    for option in (
        click.option("--id", "wanted_ids", multiple=True, metavar="ID", help="Only of this task. Repeatable."),
        click.option("--reason", metavar="REASON", help="Only these, such as unknown-task; * stands for anything."),
        click.option(
            "--task", metavar="NAME", shell_complete=complete_task, help="Only of these tasks; * stands for anything."
        ),
        click.option(
            "-Q", "--queue", "--queues", "queues", callback=commas, metavar="A,B", shell_complete=complete_queues,
            help="Only these queues', separated by commas; the app's without.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(cls=Group, short_help="List, show, replay and discard dead letters.")
def dead() -> None:
    """List, show, replay and discard dead letters: messages that could not be run.

    While one of these commands has a dead letter in hand, no other sees it. What was looked at in a quorum queue
    stands behind the rest afterwards.
    """


# -- looking


@dead.command(
    "list", short_help="Show what could not be run, and why.",
    examples=("amqptasks -A proj dead list", "amqptasks -A proj dead list --reason unknown-task --json"),
)  # fmt: skip
@_filters
@click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, metavar="COUNT", help="Show so many at most."
)
@json_option()
@click.pass_obj
def list_letters(
    obj: Globals, /, queues: tuple[str, ...] | None, task: str | None, reason: str | None,
    wanted_ids: tuple[str, ...], limit: int, as_json: bool,
) -> None:  # fmt: skip
    """Show the dead letters of the app's queues: when, which task, why, and how often each has come here."""
    wanted = Filter(task, reason, wanted_ids)
    rows: list[dict[str, Any]] = []
    left = limit
    with _session(obj) as session:
        for queue, declaration in _places(obj, session, queues):
            counts = session.counts(declaration.queue)
            found = [letter for letter, _body in session.find(declaration, wanted, left)] if counts else []
            left -= len(found)
            rows.append(
                {
                    "queue": queue,
                    "dead_queue": declaration.queue,
                    "exists": counts is not None,
                    "count": max(counts[0], len(found)) if counts else 0,
                    "letters": [_facts(each) for each in found],
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=plain))
    else:
        _print_list(obj, rows, wanted, limit)


def _print_list(obj: Globals, rows: list[dict[str, Any]], wanted: Filter, limit: int) -> None:
    shown = sum(len(row["letters"]) for row in rows)
    total = sum(row["count"] for row in rows)
    for row in rows:
        if not row["count"]:
            continue
        count = plural(row["count"], "dead letter")
        some = f"{len(row['letters'])} of " if wanted else ""
        click.echo(f"{row['dead_queue']}: {some}{count}")
        for letter in row["letters"]:
            click.echo(f"  {(letter['time'] or '-')[:19]:<19}  {letter['id'] or '-'}  {letter['task'] or '-'}")
            again = f", death {letter['deaths']}" if letter["deaths"] > 1 else ""
            click.echo(f"    {letter['reason'] or 'no reason given'}{again}: {letter['detail'] or '-'}")
    if not total:
        obj.say(f"No dead letters of {plural(len(rows), 'queue')}: {', '.join(row['queue'] for row in rows)}")
    elif shown == limit and shown < total:
        obj.say(f"Shown: {shown} of {total}; --limit shows more")


@dead.command(
    "show", short_help="Show a whole dead letter.",
    examples=("amqptasks -A proj dead show 4b6e7c0a-8f7e-4f0c-9d5a-2f1f5b7f6a3d",),
)  # fmt: skip
@click.argument("task_id", metavar="ID")
@click.option(
    "-Q", "--queue", "--queues", "queues", callback=commas, metavar="A,B", shell_complete=complete_queues,
    help="Only these queues', separated by commas; the app's without.",
)  # fmt: skip
@json_option()
@click.pass_obj
def show_letter(obj: Globals, /, task_id: str, queues: tuple[str, ...] | None, as_json: bool) -> None:
    """Show the dead letters of the task with this ID whole: story, properties, headers, arguments.

    Bodies of JSON and msgpack are decoded; of others, and of those that cannot be read, the bytes are shown.
    """
    wanted = Filter(ids=(task_id,))
    with _session(obj) as session:
        places = list(_places(obj, session, queues))
        found = [each for _queue, declaration in places for each in session.find(declaration, wanted)]
    if not found:
        raise _none_of(task_id, places)
    letters = [_whole(obj.app(), letter, body) for letter, body in found]
    if as_json:
        click.echo(json.dumps(letters, indent=2, default=plain))
        return
    for number, facts in enumerate(letters):
        if number:
            click.echo()
        _print_letter(facts)


def _facts(letter: DeadLetter) -> dict[str, Any]:
    return {
        "time": letter.time.isoformat() if letter.time else None,
        "task": letter.task or None,
        "id": letter.id or None,
        "reason": letter.reason or None,
        "detail": letter.detail or None,
        "deaths": letter.deaths,
        "crashes": letter.crashes,
        "worker": letter.worker or None,
        "bytes": letter.bytes,
    }


def _whole(app: App, letter: DeadLetter, body: bytes) -> dict[str, Any]:
    properties = letter.properties
    names = (
        "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
        "message_id", "timestamp", "type", "user_id", "app_id",
    )  # fmt: skip
    facts = {"dead_queue": letter.queue, **_facts(letter), "is_whole": letter.is_whole}
    facts["properties"] = {
        name: getattr(properties, name) for name in names if getattr(properties, name, None) is not None
    }  # fmt: skip
    facts["headers"] = dict(letter.headers)
    try:
        read = read_body(
            letter.headers, properties.content_type, properties.content_encoding, body, accepted(SHOWN), app.limits()
        )
    except (ContentError, InvalidTaskError) as error:
        facts |= {"args": None, "kwargs": None, "unreadable": printable(str(error), 1000)}
    else:
        facts |= {"args": read.args, "kwargs": read.kwargs, "unreadable": None}
    try:
        facts |= {"body": body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        facts |= {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}
    return facts


def _print_letter(facts: dict[str, Any]) -> None:
    def line(name: str, value: object) -> None:
        click.echo(f"{name:<12} {value}".rstrip())

    line("queue", facts["dead_queue"])
    for name in ("time", "task", "id", "reason", "detail", "deaths", "crashes", "worker"):
        line(name, facts[name] if facts[name] is not None else "-")
    if not facts["is_whole"]:
        line("", "its headers were not kept whole: it cannot be replayed")
    for title in ("properties", "headers"):
        for number, (key, value) in enumerate(facts[title].items()):
            line("" if number else title, f"{printable(str(key), 255)}: {_one_line(value)}")
    if facts["unreadable"] is None:
        line("args", _one_line(facts["args"]))
        line("kwargs", _one_line(facts["kwargs"]))
    else:
        line("unreadable", facts["unreadable"])
    line("body", f"{facts['bytes']} bytes, {facts['body_encoding']}")
    click.echo(visible(facts["body"]))


def _one_line(value: object) -> str:
    return json.dumps(value, default=plain)


# -- moving


@dead.command(
    "replay", short_help="Put dead letters back to work.",
    examples=(
        "amqptasks -A proj dead replay 4b6e7c0a-8f7e-4f0c-9d5a-2f1f5b7f6a3d",
        "amqptasks -A proj dead replay --reason unknown-task -f",
        "amqptasks -A proj dead replay --all -Q mail --to mail-slow",
    ),
)  # fmt: skip
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--to", metavar="QUEUE", shell_complete=complete_queue, help="Into this queue, not the one it was in.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option()
@click.pass_context
def replay(
    ctx: click.Context, /, ids: tuple[str, ...], queues: tuple[str, ...] | None, task: str | None,
    reason: str | None, wanted_ids: tuple[str, ...], every: bool, to: str | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put dead letters back into the queue that they were in: by ID, by filter, or --all.

    Each has the body, the properties and the headers of the message that died. RabbitMQ has confirmed it in its queue
    before it leaves the dead letters, so an interruption loses none; at worst one is in both places.
    The exit code is 1 if some stayed, or a named ID is not among them.
    """
    wanted = _chosen(Filter(task, reason, tuple(ids) + wanted_ids), every)

    def put(held: Held, queue: str) -> None:
        held.replay(to or queue)

    _move(ctx, wanted, queues, put, "replay", "replayed", f" to {to}" if to else "", force, as_json, target=to)


@dead.command(
    "discard", short_help="Delete dead letters.",
    examples=(
        "amqptasks -A proj dead discard 4b6e7c0a-8f7e-4f0c-9d5a-2f1f5b7f6a3d",
        "amqptasks -A proj dead discard --reason unreadable -Q mail -f",
    ),
)  # fmt: skip
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option()
@click.pass_context
def discard(
    ctx: click.Context, /, ids: tuple[str, ...], queues: tuple[str, ...] | None, task: str | None,
    reason: str | None, wanted_ids: tuple[str, ...], every: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Delete dead letters: by ID, by filter, or --all. There is no undo.

    The exit code is 1 if a named ID is not among them.
    """
    wanted = _chosen(Filter(task, reason, tuple(ids) + wanted_ids), every)

    def drop(held: Held, _queue: str) -> None:
        held.discard()

    _move(ctx, wanted, queues, drop, "discard", "discarded", "", force, as_json)


def _chosen(wanted: Filter, every: bool) -> Filter:
    if not wanted and not every:
        raise CliError("which dead letters? Give ids, --task, --reason, or --all")
    if wanted and every:
        raise CliError("--all is all of them: leave it out, or the ids, --task and --reason")
    return wanted


def _move(
    ctx: click.Context, wanted: Filter, queues: tuple[str, ...] | None, act: Callable[[Held, str], None], verb: str,
    done: str, where: str, force: bool, as_json: bool, *, target: str | None = None,
) -> None:  # fmt: skip
    """Deal with the chosen letters of every queue, one by one, and tell the counts."""
    obj: Globals = ctx.obj
    tallies: dict[str, Tally] = {}
    with _session(obj) as session:
        places = list(_places(obj, session, queues))
        for _queue, declaration in places:
            if declaration.queue == target:
                raise CliError(f"--to: {target!r} is the queue they are in")
        if not force:
            places = _ask(session, places, wanted, verb, where, as_json)
        try:
            for queue, declaration in places:
                tallies[queue] = Tally()
                _move_all(obj, session, queue, declaration, wanted, act, done, tallies[queue])
        except BaseException:
            moved = sum(each.done for each in tallies.values())
            click.echo(f"{done} {plural(moved, 'dead letter')} before this:", err=True)
            raise
    _tell(ctx, tallies, wanted, done, where, as_json)


def _ask(
    session: DeadLetters, places: list[tuple[str, DeclareQueue]], wanted: Filter, verb: str, where: str, as_json: bool
) -> list[tuple[str, DeclareQueue]]:  # fmt: skip
    """Count what is meant, ask, and return the places where there is some."""
    chosen = []
    total = 0
    for queue, declaration in places:
        counts = session.counts(declaration.queue)
        if wanted:
            count = sum(1 for _each in session.find(declaration, wanted))
        else:
            count = counts[0] if counts else 0
        if count:
            total += count
            chosen.append((queue, declaration))
            click.echo(f"{declaration.queue}: {count} of {plural(counts[0] if counts else 0, 'dead letter')}", err=True)
    if total:
        undo = ". There is no undo" if verb == "discard" else ""
        click.confirm(f"{verb.capitalize()} {plural(total, 'dead letter')}{where}{undo}?", abort=True, err=as_json)
    return chosen


def _move_all(
    obj: Globals, session: DeadLetters, queue: str, declaration: DeclareQueue, wanted: Filter,
    act: Callable[[Held, str], None], done: str, tally: Tally,
) -> None:  # fmt: skip
    from amqptasks.broker.dead_letters import NotMoved

    with closing(session.letters(declaration)) as letters:
        for held in letters:
            if not wanted(held.letter):
                continue
            if done == "replayed" and not held.letter.is_whole:
                tally.failed.append((held.letter, "its headers were not kept whole, so it would not be what it was"))
                continue
            try:
                act(held, queue)
            except NotMoved as error:
                tally.failed.append((held.letter, str(error)))
                continue
            tally.done += 1
            tally.ids |= held.letter.ids
            if tally.done % PROGRESS_EVERY == 0 and not obj.quiet:
                click.echo(f"{done} {tally.done} of {declaration.queue}", err=True)


def _tell(
    ctx: click.Context, tallies: dict[str, Tally], wanted: Filter, done: str, where: str, as_json: bool
) -> None:  # fmt: skip
    obj: Globals = ctx.obj
    seen = {each for tally in tallies.values() for each in tally.ids}
    failed = [each for tally in tallies.values() for each in tally.failed]
    for letter, _why in failed:
        seen |= letter.ids
    missing = [each for each in wanted.ids if each not in seen]
    total = sum(each.done for each in tallies.values())
    if as_json:
        facts = {
            done: total,
            "queues": {queue: tally.done for queue, tally in tallies.items()},
            "failed": [{"id": letter.id, "dead_queue": letter.queue, "error": why} for letter, why in failed],
            "missing": missing,
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        for letter, why in failed:
            CliError(f"{letter.queue}: {letter.id or '-'} stays: {why}").show()
        for each in missing:
            CliError(f"no dead letter has the id {printable(each, 80)!r}").show()
        if total or not missing:
            stays = f", {len(failed)} stayed" if failed else ""
            obj.say(f"{done.capitalize()} {plural(total, 'dead letter')}{where}{stays}.")
    if failed or missing:
        ctx.exit(EXIT_FAILED)


# -- places


def _session(obj: Globals) -> DeadLetters:
    from amqptasks.broker.dead_letters import DeadLetters

    return DeadLetters(obj.app().endpoints("dead letters"))


def _places(
    obj: Globals, session: DeadLetters, queues: Sequence[str] | None
) -> Iterator[tuple[str, DeclareQueue]]:  # fmt: skip
    """Return the queues that are meant, each with its queue of dead letters."""
    from amqptasks.broker.topology import dead_queue

    app = obj.app()
    suffix = app.conf.task_dead_letter_suffix
    # A broadcast's own queues come and go: its dead letters are under its title.
    known = [str(getattr(each, "title", each.name)) for each in app.queues.values()]
    for name in dict.fromkeys(queues or known):
        # Whoever has just read "mail.dead" types that.
        base = name[: -len(suffix)] if suffix and name.endswith(suffix) and name not in known else name
        declaration = dead_queue(app.conf, base, session.version)
        if queues and base not in known and session.counts(declaration.queue) is None:
            raise CliError(f"there is no queue {declaration.queue!r}{did_you_mean(base, known)}", EXIT_FAILED)
        yield base, declaration


def _none_of(task_id: str, places: Sequence[tuple[str, DeclareQueue]]) -> CliError:
    looked = ", ".join(declaration.queue for _queue, declaration in places)
    return CliError(f"no dead letter has the id {printable(task_id, 80)!r} in: {looked}", EXIT_FAILED)
