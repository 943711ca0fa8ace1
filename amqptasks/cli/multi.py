"""``amqptasks multi``: starts and stops several workers in the background, as ``celery multi`` does."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from amqptasks._version import __version__
from amqptasks.cli.cluster import Cluster, Talk, places
from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, did_you_mean
from amqptasks.cli.elements import Command, Group, json_option
from amqptasks.cli.nodes import CommandLine, Node, nodes_of, read

__all__ = ["multi"]

HELP = """\
Nodes are a number of them, or names; options are those of `amqptasks worker`.

  3 workers, with 3 processes each:
    amqptasks multi start 3 -A proj -c 3          # celery1@host, celery2@host, …
    amqptasks multi start 3 -A proj --range-prefix worker
    amqptasks multi start mail images data@%h -A proj

  Options for some of them, by number, range or name:
    amqptasks multi start 10 -A proj -c:1-3 5 -Q:4,5 mail -Q default
    amqptasks multi start mail images -A proj -c 3 -c:images 10

  Where each keeps its number and writes its log (%n name, %h host, %i, %I child):
    amqptasks multi start Leslie -A proj \\
        --pidfile=/var/run/proj/%n.pid --logfile=/var/log/proj/%n%I.log
  Without: /var/run/amqptasks and /var/log/amqptasks for root, for a user
  ~/.local/state/amqptasks. stop, restart and kill need the same ones, for
  nothing else is kept of a start.

  Stop, by TERM or the signal given; wait for it; start anew; end at once:
    amqptasks multi stop 3
    amqptasks multi stop 3 -QUIT
    amqptasks multi stopwait 3 --timeout 60
    amqptasks multi restart 3 -A proj -c 3
    amqptasks multi kill 3

  What would be done:
    amqptasks multi show 3 -A proj -c:1 10
    amqptasks multi names 3
    amqptasks multi get celery1@host 3 -A proj
    amqptasks multi expand '%n at %h' 3

  Naming: --hostname (-n) HOST, --prefix, --suffix, --range-prefix. What is run:
  --executable PYTHON, --cmd '-m amqptasks worker --detach', --append 'more words'.
  Settings for all stand behind --: amqptasks multi start 3 -- task_acks_late=yes"""


class NodesCommand(Command):
    """A command whose words are nodes and options of workers; its own options may stand anywhere among them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Tell our own options from those of workers, which click does not know."""
        own: list[str] = []
        others: list[str] = []
        flags = {name: each for each in self.get_params(ctx) if isinstance(each, click.Option) for name in each.opts}
        words = iter(args)
        for word in words:
            if word == "--":
                others += [word, *words]
                break
            name = word.partition("=")[0]
            if name not in flags:
                others.append(word)
                continue
            own.append(word)
            if not flags[name].is_flag and "=" not in word:
                own += [each for each in [next(words, None)] if each is not None]
        return super().parse_args(ctx, [*own, "--", *others])


@click.group(
    cls=Group, short_help="Start and stop several workers in the background.",
    examples=(
        "amqptasks multi start 4 -A proj -l INFO -c 2",
        "amqptasks multi start mail images -A proj -Q:mail mail -Q:images images",
        "amqptasks multi restart 4 -A proj -l INFO -c 2",
        "amqptasks multi stopwait 4",
    ),
)  # fmt: skip
def multi() -> None:
    """Start and stop several workers in the background, each with its own options.

    A worker is known by its pidfile: give --pidfile to each command alike, or to none. `amqptasks multi help` shows
    how nodes and options are written.
    """


def _nodes_command(
    name: str, short_help: str, *examples: str, is_read: bool = False, waits: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:  # fmt: skip
    """Make a command of `multi`, with the options that all of them have."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        options = [
            click.option("--verbose", is_flag=True, help="Show each command that is run, and what it prints."),
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
            click.option("--nosplash", is_flag=True, help="Do not say who speaks."),
            click.option("--no-color", is_flag=True, help="No colours."),
        ]
        if is_read:
            options = [json_option()]
        if waits:
            options.append(
                click.option(
                    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=600.0, show_default=True,
                    metavar="SECONDS", help="Wait so long for workers to stop.",
                )
            )  # fmt: skip
        wrapped: Callable[..., Any] = click.pass_obj(function)
        wrapped = click.argument("words", nargs=-1, metavar="NODES [OPTIONS]", type=click.UNPROCESSED)(wrapped)
        for each in reversed(options):
            wrapped = each(wrapped)
        return multi.command(name, cls=NodesCommand, short_help=short_help, examples=examples)(wrapped)

    return decorate


@_nodes_command("start", "Start them.", "amqptasks multi start 4 -A proj -c:1 10 -l INFO")
def start(obj: Globals, /, words: Sequence[str], **options: Any) -> None:
    """Start workers in the background, one after the other.

    The exit code is 1 if one did not start.
    """
    _end(_cluster(obj, words, **options)[0].start())


@_nodes_command("stop", "Tell them to stop.", "amqptasks multi stop 4", "amqptasks multi stop 4 -QUIT")
def stop(obj: Globals, /, words: Sequence[str], **options: Any) -> None:
    """Tell workers to stop after their running tasks, by TERM or by the signal that is given, and do not wait."""
    cluster, line = _cluster(obj, words, **options)
    _end(cluster.stop(line.signal or signal.SIGTERM, wait=False))


@_nodes_command("stopwait", "Tell them to stop, and wait.", "amqptasks multi stopwait 4 --timeout 60", waits=True)
def stopwait(obj: Globals, /, words: Sequence[str], **options: Any) -> None:
    """Tell workers to stop after their running tasks, and wait until they have.

    The exit code is 1 if one still runs when the time is over.
    """
    cluster, line = _cluster(obj, words, **options)
    _end(cluster.stop(line.signal or signal.SIGTERM, wait=True))


@_nodes_command("restart", "Stop them, and start each anew.", "amqptasks multi restart 4 -A proj -c 2", waits=True)
def restart(obj: Globals, /, words: Sequence[str], **options: Any) -> None:
    """Tell workers to stop after their running tasks, and start each as soon as it has.

    Those that do not run are started too. Give all options again: nothing is kept of the start before.
    """
    cluster, line = _cluster(obj, words, **options)
    _end(cluster.restart(line.signal or signal.SIGTERM))


@_nodes_command("kill", "End them at once.", "amqptasks multi kill 4")
def kill(obj: Globals, /, words: Sequence[str], **options: Any) -> None:
    """End workers at once, by SIGKILL.

    Tasks with late acks that they ran go back to their queues; others are lost.
    """
    _end(_cluster(obj, words, **options)[0].kill())


@_nodes_command("show", "Show the commands that start them.", "amqptasks multi show 4 -A proj -c:1 10", is_read=True)
def show(obj: Globals, /, words: Sequence[str], as_json: bool) -> None:
    """Show the command that starts each worker."""
    nodes, _line = _read(obj, words)
    _print(as_json, {node.name: _command(node) for node in nodes}, shlex.join)


@_nodes_command("names", "Show their names.", "amqptasks multi names 4", is_read=True)
def names(obj: Globals, /, words: Sequence[str], as_json: bool) -> None:
    """Show the name of each worker."""
    found = [node.name for node in _read(obj, words)[0]]
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(found))


@_nodes_command("expand", "Fill in a template for each.", "amqptasks multi expand /var/run/%n.pid 4", is_read=True)
def expand(obj: Globals, /, words: Sequence[str], as_json: bool) -> None:
    """Fill in a template for each worker: the first word. %n is its name, %h its host, %d the domain, %p name@host."""
    template, rest = _first(obj, words, "which template? amqptasks multi expand /var/run/%n.pid 4")
    _print(as_json, {node.name: node.expand(template) for node in _read(obj, rest)[0]}, str)


@_nodes_command("get", "Show the command that starts one.", "amqptasks multi get celery2@host 4 -c:2 9", is_read=True)
def get(obj: Globals, /, words: Sequence[str], as_json: bool) -> None:
    """Show the command that starts the worker that the first word names, with its host or without.

    The exit code is 1 if it is not among the nodes.
    """
    wanted, rest = _first(obj, words, "which node? amqptasks multi get celery2@host 4")
    nodes = {node.name: node for node in _read(obj, rest)[0]}
    found = nodes.get(wanted) or next((each for name, each in nodes.items() if name.partition("@")[0] == wanted), None)
    if found is None:
        raise CliError(f"no node is called {wanted!r}{did_you_mean(wanted, nodes)}", EXIT_FAILED)
    click.echo(json.dumps(_command(found)) if as_json else shlex.join(_command(found)))


@multi.command("help", short_help="Show how nodes and options are written.", examples=("amqptasks multi help",))
def help_() -> None:
    """Show how nodes and options are written, by examples."""
    click.echo(HELP)


def _first(obj: Globals, words: Sequence[str], question: str) -> tuple[str, Sequence[str]]:
    """Return the first word, which is no node, and the others."""
    if words and words[0].startswith("-"):
        # A slip in an option is told as such.
        _read(obj, words)
    if not words or words[0].startswith("-"):
        raise CliError(question)
    return words[0], words[1:]


def _print(as_json: bool, found: dict[str, Any], shown: Callable[[Any], str]) -> None:
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(map(shown, found.values())))


def _command(node: Node) -> list[str]:
    return [node.options.get("--executable") or sys.executable, *node.words()]


def _end(ok: bool) -> None:
    if not ok:
        click.get_current_context().exit(EXIT_FAILED)


def _cluster(
    obj: Globals, words: Sequence[str], *, verbose: bool, quiet: bool, nosplash: bool, no_color: bool,
    timeout_s: float = 0.0,
) -> tuple[Cluster, CommandLine]:  # fmt: skip
    talk = Talk(quiet=quiet or obj.quiet, verbose=verbose, nosplash=nosplash, no_color=no_color or obj.no_color)
    nodes, line = _read(obj, words)
    talk.splash(__version__)
    return Cluster(nodes, talk, timeout_s), line


def _read(obj: Globals, words: Sequence[str]) -> tuple[list[Node], CommandLine]:
    from amqptasks.cli.worker import worker

    root = click.get_current_context().find_root().command
    outer = {name: _one_name(each) for each in root.params if isinstance(each, click.Option) for name in each.opts}
    known = {name: not each.is_flag for each in (*root.params, *worker.params) if isinstance(each, click.Option)
             for name in each.opts}  # fmt: skip
    # What stands before `multi` is for all nodes.
    before = [
        (name, value)
        for name, value in (
            ("-A", obj.app_name), ("-b", obj.broker), ("--result-backend", obj.result_backend),
            ("--config", obj.config),
        )
        if value
    ]  # fmt: skip
    if obj.start_directory is not None:
        # Not --workdir: we are there already, and so are the workers.
        known.pop("--workdir", None)
    line = read([word for name, value in before for word in (name, value)] + list(words), known)
    for each in line.options:
        if each.name in ("-D", "--detach"):
            raise CliError(f"{each.name}: they always go to the background; leave it out")
        each.name = outer.get(each.name, each.name)
    return nodes_of(line, places(), socket.gethostname(), {name: name for name in outer.values()}), line


def _one_name(option: click.Option) -> str:
    return min(option.opts, key=len)
