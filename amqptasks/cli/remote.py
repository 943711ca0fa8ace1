"""What ``status``, ``inspect`` and ``control`` share: their options, one question to the workers, and how it ends.

Exit codes: 0 every worker did it, 1 one said that it could not, or one that was named did not answer, 69 none answered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from amqptasks.cli.catalogue import AMONG_WORKERS, BUILT_IN, Known, find, of_kind
from amqptasks.cli.common import EXIT_FAILED, EXIT_UNAVAILABLE, CliError, Globals, commas, did_you_mean
from amqptasks.cli.completion import complete_queue, complete_task
from amqptasks.cli.elements import Command
from amqptasks.cli.replies import count_line, is_error, reply_lines, to_json
from amqptasks.wire.reprs import printable

__all__ = [
    "TIMEOUT_S", "Nodes", "Question", "RemoteCommand", "asking_options", "complete_argument", "complete_command",
    "confirm", "known_command", "print_commands",
]  # fmt: skip

#: How long answers are waited for, unless the command or its user says otherwise. Seconds.
TIMEOUT_S = 1.0

Nodes = dict[str, Any]

F = TypeVar("F", bound=Callable[..., Any])


def asking_options(command: F) -> F:
    """Add the options of a question to workers."""
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "-d", "--destination", callback=commas, metavar="A,B",
            help="Only these workers, by their full names, separated by commas.",
        ),
        click.option(
            "-t", "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
            help="Wait this long for answers, 1 without. With -d it ends when all have answered.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


class RemoteCommand(Command):
    """A command whose help names the commands that every worker has."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the commands."""
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_text(", ".join(each.name for each in of_kind(str(self.name), ())))


@dataclass(slots=True)
class Question:
    """One question to workers, its answers, and what is said of them.

    Args:
        obj: The global options.
        with_body: Print what each worker said below its name.
        with_count: Print how many have answered.
        present: The workers that are known to be there, of those meant: only they are asked.
    """

    obj: Globals
    destination: tuple[str, ...] | None
    timeout_s: float
    as_json: bool
    with_body: bool = True
    with_count: bool = True
    present: Sequence[str] = ()

    def ask(self, name: str, arguments: Mapping[str, Any] | None = None) -> list[Nodes]:
        """Send a command, print the answers as they come, and return them."""
        control = self.obj.app().control
        return self.answered(lambda options: control.broadcast(name, dict(arguments or {}), **options))

    def answered(self, send: Callable[[dict[str, Any]], Any]) -> list[Nodes]:
        """Do as `ask`, with what sends the command, given what `app.control` takes."""
        options: dict[str, Any] = {"reply": True, "timeout": self.timeout_s, "destination": self._names()}
        if not self.as_json:
            options["callback"] = self.show
        try:
            return send(options) or []
        except ValueError as error:
            raise CliError(str(error)) from error

    def find_present(self) -> Sequence[str]:
        """Find out which of the workers that are meant are there: with a longer time, nobody waits for the others."""
        replies = self.obj.app().control.ping(self._names(), self.timeout_s) or []
        self.present = sorted({node for each in replies for node in each})
        return self.present

    def show(self, nodes: Nodes) -> None:
        """Print an answer."""
        for node, reply in nodes.items():
            click.echo(reply_lines(node, reply, with_body=self.with_body, arrow=not self.obj.quiet))

    def finish(self, ctx: click.Context, replies: Sequence[Nodes], *, as_map: bool, kept: str = "") -> None:
        """Say what remains to be said, and end with the exit code that the answers call for.

        Args:
            as_map: JSON is a map of all workers, not a list with a map of each.
            kept: What holds although nobody answered.
        """
        nodes = {node: reply for each in replies for node, reply in each.items()}
        if self.as_json:
            click.echo(to_json(nodes if as_map else list(replies)))
        if not nodes:
            raise self._nobody(kept)
        if self.with_count and not self.as_json and not self.obj.quiet:
            click.echo(f"\n{count_line(len(nodes))}")
        missing = [name for name in self.destination or () if name not in nodes]
        for name in missing:
            CliError(f"no answer from {printable(name, 255)!r}{self._hint(name)}").show()
        if missing or any(is_error(reply) for reply in nodes.values()):
            ctx.exit(EXIT_FAILED)

    def _names(self) -> list[str] | None:
        return list(self.present or self.destination or ()) or None

    def _nobody(self, kept: str) -> CliError:
        where = self.obj.app().endpoints("control")[0].label
        text = f"No nodes replied within time constraint: nobody at {where} answered in {self.timeout_s:g} s"
        if self.destination:
            text = f"{text}, asked: {', '.join(f'{name}{self._hint(name)}' for name in self.destination)}"
        return CliError(f"{text}{kept}", EXIT_UNAVAILABLE)

    def _hint(self, name: str) -> str:
        """Name the worker that is there and may be meant. Asks all, once there is reason to."""
        there = Question(self.obj, None, TIMEOUT_S, as_json=True).find_present()
        short = [node for node in there if node.partition("@")[0] == name]
        return f" (did you mean {short[0]!r}?)" if len(short) == 1 else did_you_mean(name, there)


def known_command(obj: Globals, kind: str, name: str | None) -> Known:
    """Return the command that was typed, one of every worker or one of the app's.

    Raises:
        CliError: There is no such.
    """
    if not name:
        raise CliError(f"which command? amqptasks {kind} --list names all; see: amqptasks {kind} --help")
    return find(kind, name, lambda: own_commands(obj))


def own_commands(obj: Globals) -> Iterable[Known]:
    """Return the app's own commands. Imports its modules."""
    from amqptasks.worker.control.registry import Panel

    if obj.app_name:
        obj.app().import_modules()
    return [
        Known(
            name, info.type, info.help, info.signature or "", tuple(info.args or ()), info.variadic,
            timeout_s=info.default_timeout,
        )
        for name, info in Panel.meta.items()
        if info.visible and name not in BUILT_IN and name not in AMONG_WORKERS
    ]  # fmt: skip


def print_commands(obj: Globals, kind: str, as_json: bool) -> None:
    """Print all commands of a kind, the app's own among them."""
    commands = of_kind(kind, own_commands(obj))
    if as_json:
        facts = [{"name": each.name, "signature": each.signature, "help": each.help} for each in commands]
        click.echo(json.dumps(facts, indent=2))
        return
    formatter = click.HelpFormatter()
    with formatter.section(f"{kind.capitalize()} Commands"):
        formatter.write_dl([(f"{each.name} {each.signature}".strip(), each.help) for each in commands])
    click.echo(formatter.getvalue(), nl=False)


def confirm(text: str, *, force: bool, as_json: bool) -> None:
    """Ask whether to go on, where somebody sits who can answer. A script of Celery's is not held up."""
    if not force and sys.stdin.isatty():
        click.confirm(text, abort=True, err=as_json)


def complete_command(ctx: click.Context, _param: click.Parameter, part: str) -> list[str]:
    """Complete the name of a command that every worker has."""
    return [each.name for each in of_kind(str(ctx.info_name), ()) if each.name.startswith(part)]


def complete_argument(ctx: click.Context, param: click.Parameter, part: str) -> list[str]:
    """Complete the first argument of a command where it is the name of a task or of a queue."""
    if ctx.params.get("arguments"):
        return []
    command = ctx.params.get("command")
    if command in ("rate_limit", "time_limit"):
        return complete_task(ctx, param, part)
    return complete_queue(ctx, param, part) if command in ("add_consumer", "cancel_consumer") else []
