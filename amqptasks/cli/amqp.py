"""``amqptasks amqp``: single AMQP methods from the command line, and a shell of them, as ``celery amqp`` has."""

from __future__ import annotations

import base64
import contextlib
import json
import pprint
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, did_you_mean, json_object, plain, plural, text_of
from amqptasks.cli.completion import complete_queue, one_of
from amqptasks.cli.elements import Group, json_option
from amqptasks.cli.errors import show

if TYPE_CHECKING:
    from amqptasks.broker.by_hand import ByHand, Got

__all__ = ["amqp"]

#: The shell's own session, in click's memory of a run.
SESSION = "amqptasks.amqp.session"
#: Short names, for those who do not think in AMQP's classes.
SHORT = {"ack": "basic.ack", "bind": "queue.bind", "declare": "queue.declare", "delete": "queue.delete",
         "get": "basic.get", "purge": "queue.purge", "unbind": "queue.unbind"}  # fmt: skip
EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")
WORDS_OF_LEAVING = ("exit", "quit", "bye", ":q")


class Methods(Group):
    """The methods, under AMQP's names and short ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by either name."""
        return super().get_command(ctx, SHORT.get(cmd_name, cmd_name))


def _arguments(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read ``x-max-length=10``; the value is JSON if it can be read as such, else text."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"expected NAME=VALUE, got: {text_of(value)}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _argument_option() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "-a", "--argument", "arguments", multiple=True, callback=_arguments, metavar="NAME=VALUE",
        help="An argument, such as x-max-length=10. Repeatable.",
    )  # fmt: skip


def _flag(name: str, default: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.argument(name, type=bool, default=default, metavar=f"[{name.upper()}]")


@click.group(
    cls=Methods, short_help="Single AMQP methods, and a shell of them.", invoke_without_command=True,
    examples=(
        "amqptasks amqp queue.declare mail",
        "amqptasks amqp exchange.declare shop topic",
        "amqptasks amqp bind mail shop 'order.*'",
        "amqptasks amqp publish 'hello' mail",
        "amqptasks amqp get mail",
        "echo queue.declare mail | amqptasks amqp",
    ),
)  # fmt: skip
@click.pass_context
def amqp(ctx: click.Context) -> None:
    """Single AMQP methods on the app's broker; without one, a shell of them.

    declare, bind, unbind, purge, delete, get and ack are short for the methods of queues and messages. Words such as
    yes and no stand where AMQP has flags. An exchange or queue that exists is never changed.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(repl)


@contextlib.contextmanager
def _session(ctx: click.Context) -> Iterator[ByHand]:
    """The shell's session, or one for this method alone."""
    from amqptasks.broker.by_hand import ByHand

    open_one = ctx.meta.get(SESSION)
    if open_one is not None:
        yield open_one
        return
    obj: Globals = ctx.obj
    with ByHand(obj.app().endpoints("amqp")) as session:
        yield session


def _ok(ctx: click.Context, text: str = "") -> None:
    obj: Globals = ctx.obj
    obj.say(text or click.style("OK", fg="green"))


# -- exchanges


@amqp.command(
    "exchange.declare", short_help="Declare an exchange.", examples=("amqptasks amqp exchange.declare shop topic",)
)
@click.argument("exchange")
@click.argument("kind", metavar="[TYPE]", default="direct", shell_complete=one_of(EXCHANGE_TYPES))
@_flag("passive")
@_flag("durable", True)
@_flag("auto_delete")
@_argument_option()
@click.pass_context
def exchange_declare(
    ctx: click.Context, /, exchange: str, kind: str, passive: bool, durable: bool, auto_delete: bool,
    arguments: dict[str, Any],
) -> None:  # fmt: skip
    """Declare an exchange: direct, topic, fanout or headers.

    With PASSIVE it is only looked whether it is there. Without DURABLE=no it survives a restart of the broker.
    """
    from amqptasks.broker.topology import DeclareExchange

    with _session(ctx) as session:
        session.carry_out(DeclareExchange(exchange, kind, durable, auto_delete, arguments, passive))
    _ok(ctx)


@amqp.command(
    "exchange.delete", short_help="Delete an exchange.", examples=("amqptasks amqp exchange.delete shop yes",)
)
@click.argument("exchange")
@_flag("if_unused")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def exchange_delete(ctx: click.Context, /, exchange: str, if_unused: bool, force: bool) -> None:
    """Delete an exchange and its bindings; with IF_UNUSED, only if nothing is bound to it."""
    if not force and not if_unused:
        click.confirm(f"Delete the exchange {exchange!r} and all that is bound to it", abort=True)
    with _session(ctx) as session:
        session.delete_exchange(exchange, if_unused=if_unused)
    _ok(ctx)


# -- queues


@amqp.command(
    "queue.declare", short_help="Declare a queue, and look at it.",
    examples=("amqptasks amqp queue.declare mail", "amqptasks amqp declare jobs --type classic -a x-max-priority=9"),
)  # fmt: skip
@click.argument("queue", shell_complete=complete_queue)
@_flag("passive")
@_flag("durable", True)
@_flag("auto_delete")
@click.option(
    "--type", "kind", metavar="TYPE", shell_complete=one_of(("quorum", "classic", "stream")),
    help="quorum, classic or stream; without, the vhost's default.",
)  # fmt: skip
@_argument_option()
@json_option()
@click.pass_context
def queue_declare(
    ctx: click.Context, /, queue: str, passive: bool, durable: bool, auto_delete: bool, kind: str | None,
    arguments: dict[str, Any], as_json: bool,
) -> None:  # fmt: skip
    """Declare a queue, and show what is in it.

    With PASSIVE it is only looked at. `amqptasks queues declare` declares the app's queues as workers do.
    """
    from amqptasks.broker.topology import DeclareQueue

    if kind:
        arguments = {**arguments, "x-queue-type": kind}
    with _session(ctx) as session:
        found = session.carry_out(DeclareQueue(queue, durable, False, auto_delete, arguments, passive))
    if as_json:
        facts = {"queue": found.queue, "messages": found.message_count, "consumers": found.consumer_count}
        click.echo(json.dumps(facts))
        return
    click.echo(f"queue:{found.queue} messages:{found.message_count} consumers:{found.consumer_count}")
    _ok(ctx)


@amqp.command(
    "queue.bind", short_help="Bind a queue to an exchange.", examples=("amqptasks amqp queue.bind mail shop 'order.*'",)
)
@click.argument("queue", shell_complete=complete_queue)
@click.argument("exchange")
@click.argument("routing_key", default="")
@_argument_option()
@click.pass_context
def queue_bind(ctx: click.Context, /, queue: str, exchange: str, routing_key: str, arguments: dict[str, Any]) -> None:
    """Bind a queue to an exchange: what comes there with this key, or a key like it, goes into the queue too."""
    from amqptasks.broker.topology import BindQueue

    with _session(ctx) as session:
        session.carry_out(BindQueue(queue, exchange, routing_key, arguments))
    _ok(ctx)


@amqp.command(
    "queue.unbind", short_help="Undo a binding.", examples=("amqptasks amqp queue.unbind mail shop 'order.*'",)
)
@click.argument("queue", shell_complete=complete_queue)
@click.argument("exchange")
@click.argument("routing_key", default="")
@_argument_option()
@click.pass_context
def queue_unbind(ctx: click.Context, /, queue: str, exchange: str, routing_key: str, arguments: dict[str, Any]) -> None:
    """Undo a binding; key and arguments must be those that it was made with."""
    with _session(ctx) as session:
        session.unbind(queue, exchange, routing_key, arguments)
    _ok(ctx)


@amqp.command(
    "queue.delete",
    short_help="Delete a queue.",
    examples=("amqptasks amqp queue.delete mail", "amqptasks amqp delete -f mail yes yes"),
)
@click.argument("queue", shell_complete=complete_queue)
@_flag("if_unused")
@_flag("if_empty")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def queue_delete(ctx: click.Context, /, queue: str, if_unused: bool, if_empty: bool, force: bool) -> None:
    """Delete a queue and the messages in it; only if it has no consumers, or no messages, if so said."""
    _change(
        ctx, queue, force, "Delete the queue {queue} with {messages}, which {consumers}", "deleted",
        lambda session: session.delete(queue, if_unused=if_unused, if_empty=if_empty),
    )  # fmt: skip


@amqp.command(
    "queue.purge", short_help="Delete what waits in a queue.", examples=("amqptasks amqp queue.purge -f mail",)
)
@click.argument("queue", shell_complete=complete_queue)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def queue_purge(ctx: click.Context, /, queue: str, force: bool) -> None:
    """Delete the messages that wait in a queue."""
    _change(ctx, queue, force, "Delete {messages} from {queue}", "deleted", lambda session: session.purge(queue))


def _change(
    ctx: click.Context, queue: str, force: bool, question: str, done: str, act: Callable[[ByHand], int | None]
) -> None:
    """Ask, unless there is nothing to lose, and do it."""
    with _session(ctx) as session:
        counts = session.counts(queue)
        if counts is None:
            raise CliError(f"there is no queue {queue!r}", EXIT_FAILED)
        messages, consumers = counts
        if not force and (messages or consumers):
            used = f"{plural(consumers, 'consumer')} {'uses' if consumers == 1 else 'use'}"
            text = question.format(queue=repr(queue), messages=plural(messages, "message"), consumers=used)
            click.confirm(f"{text}? There is no undo", abort=True)
        count = act(session)
    click.echo(f"{plural(count or 0, 'message')} {done}.")
    _ok(ctx)


# -- messages


def _publish(ctx: click.Context, message: str, exchange: str, key: str, options: dict[str, Any]) -> None:
    body = sys.stdin.buffer.read() if message == "-" and ctx.meta.get(SESSION) is None else message.encode()
    properties = {name: value for name, value in options.items() if value not in (None, {})}
    with _session(ctx) as session:
        session.put(exchange, key, body, properties)
    _ok(ctx)


def _message_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--headers", callback=json_object, default="{}", metavar="JSON", help="Headers, an object."),
        click.option("--content-type", metavar="TYPE", help="Such as application/json."),
        click.option("--content-encoding", metavar="NAME", help="Such as utf-8."),
        click.option("--correlation-id", metavar="ID", help="What it answers to."),
        click.option("--reply-to", metavar="QUEUE", help="Where answers go."),
        click.option("--priority", type=click.IntRange(0, 255), metavar="N", help="The message's priority."),
        click.option("--expiration", metavar="MILLISECONDS", help="Drop it after so long in the queue."),
        click.option(
            "--transient", "delivery_mode", flag_value=1, type=int, default=2, help="Not to be kept on disk."
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@amqp.command("publish", short_help="Publish to a queue.", examples=(
    "amqptasks amqp publish 'hello' mail", "cat message | amqptasks amqp publish - order.new -e shop",
))  # fmt: skip
@click.argument("message")
@click.argument("routing_key", metavar="QUEUE|KEY", shell_complete=complete_queue)
@click.option("-e", "--exchange", default="", metavar="NAME", help="To this exchange, by this key.")
@_message_options
@click.pass_context
def publish(ctx: click.Context, /, message: str, routing_key: str, exchange: str, **options: Any) -> None:
    """Publish a message to a queue, or with -e to an exchange; - reads it from standard input.

    RabbitMQ has confirmed it when this ends. No queue for it is an error. `amqptasks call` is for tasks.
    """
    _publish(ctx, message, exchange, routing_key, options)


@amqp.command(
    "basic.publish",
    short_help="Publish to an exchange.",
    examples=("amqptasks amqp basic.publish 'hello' shop order.new",),
)
@click.argument("message")
@click.argument("exchange")
@click.argument("routing_key")
@_message_options
@click.pass_context
def basic_publish(ctx: click.Context, /, message: str, exchange: str, routing_key: str, **options: Any) -> None:
    """Publish a message to an exchange by a key; '' is the exchange whose keys are queues.

    RabbitMQ has confirmed it when this ends. No queue for it is an error.
    """
    _publish(ctx, message, exchange, routing_key, options)


@amqp.command(
    "basic.get",
    short_help="Show the oldest message.",
    examples=("amqptasks amqp basic.get mail", "amqptasks amqp get mail yes --json"),
)
@click.argument("queue", shell_complete=complete_queue)
@_flag("no_ack")
@json_option()
@click.pass_context
def basic_get(ctx: click.Context, /, queue: str, no_ack: bool, as_json: bool) -> None:
    """Show the oldest message of a queue; with NO_ACK take it out.

    Without, it goes back when the command ends; in the shell it is held until basic.ack. A quorum queue puts it behind
    the others then, and counts it as delivered.
    """
    with _session(ctx) as session:
        found = session.get(queue, no_ack=no_ack)
    if as_json:
        click.echo(json.dumps(None if found is None else _facts(found), indent=2, default=plain))
    elif found is None:
        click.echo("No messages in queue. basic.publish something.")
    else:
        click.echo(pprint.pformat(_facts(found), sort_dicts=False))
        _ok(ctx)


def _facts(found: Got) -> dict[str, Any]:
    facts: dict[str, Any]
    try:
        facts = {"body": found.body.decode()}
    except UnicodeDecodeError:
        facts = {"body": base64.b64encode(found.body).decode(), "body_encoding": "base64"}
    facts["properties"] = found.properties
    facts["delivery_info"] = {
        name: getattr(found, name)
        for name in ("delivery_tag", "redelivered", "exchange", "routing_key", "message_count")
    }
    return facts


@amqp.command("basic.ack", short_help="Take a shown message out (shell).", examples=("amqptasks amqp basic.ack 1",))
@click.argument("delivery_tag", type=int)
@click.pass_context
def basic_ack(ctx: click.Context, /, delivery_tag: int) -> None:
    """Take a message that basic.get has shown out of its queue. In the shell only: it is the session that holds it."""
    if ctx.meta.get(SESSION) is None:
        raise CliError("basic.ack is for the shell, which holds what basic.get has shown; here: basic.get QUEUE yes")
    with _session(ctx) as session:
        session.ack(delivery_tag)
    _ok(ctx)


# -- the shell


@amqp.command("repl", short_help="Open a shell of these methods.", examples=("amqptasks amqp repl",))
@click.pass_context
def repl(ctx: click.Context) -> None:
    """Open a shell in which each line is one of these methods; help lists them, and ^D ends it.

    What is piped in is run line by line; the exit code is 1 if a line failed.
    """
    from amqptasks.broker.by_hand import ByHand

    obj: Globals = ctx.obj
    group = ctx.parent if ctx.info_name == "repl" and ctx.parent is not None else ctx
    is_typed = sys.stdin.isatty()
    failed = False
    with ByHand(obj.app().endpoints("amqp")) as session:
        ctx.meta[SESSION] = session
        if is_typed:
            obj.say(f"-> connected to {session.label}; help lists the methods, ^D ends.")
            _complete_words()
        try:
            for line in _lines(is_typed):
                failed = not _run(group, line) or failed
        finally:
            del ctx.meta[SESSION]
    if failed and not is_typed:
        ctx.exit(EXIT_FAILED)


def _lines(is_typed: bool) -> Iterator[list[str]]:
    """Read lines until the end, or a word of leaving."""
    while True:
        try:
            # input() writes its prompt to where readline can count its columns.
            line = input("amqp> ") if is_typed else input()
        except EOFError:
            if is_typed:
                click.echo()
            return
        except KeyboardInterrupt:
            if not is_typed:
                raise
            click.echo()
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            CliError(f"{error}: {text_of(line)}").show()
            continue
        if words and words[0] in WORDS_OF_LEAVING:
            return
        if words:
            yield words


def _run(ctx: click.Context, words: list[str]) -> bool:
    """Run one line of the shell; tell whether it went well."""
    try:
        if words[0] in ("help", "?"):
            if len(words) == 1:
                click.echo(ctx.get_help())
                return True
            words = [words[1], "--help"]
        if words[0] == "repl":
            raise CliError("this is the shell already")
        command = amqp.get_command(ctx, words[0])
        if command is None:
            raise click.UsageError(f"no method {words[0]!r}{did_you_mean(words[0], (*amqp.commands, *SHORT))}", ctx)
        code = command.main(words[1:], prog_name=words[0], standalone_mode=False, parent=ctx)
    except click.Abort:
        click.echo("Aborted.", err=True)
        return False
    except Exception as error:
        show(error, ctx.obj.argv, with_traceback=ctx.obj.traceback)
        return False
    return not (isinstance(code, int) and code)


def _complete_words() -> None:
    """Let the terminal edit lines, remember them, and complete methods."""
    try:
        import readline
    except ImportError:
        return
    words = sorted((*amqp.commands, *SHORT, "help", "exit"))

    def complete(text: str, state: int) -> str | None:
        found = [word for word in words if word.startswith(text)]
        return f"{found[state]} " if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
