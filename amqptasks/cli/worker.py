"""``amqptasks worker``: runs a worker in this process until it is told to stop."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import CliError, Globals, commas, did_you_mean
from amqptasks.cli.purge import choose_queues, purge_queues

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["worker"]

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")


def _log_level(_ctx: click.Context, _param: click.Parameter, value: str) -> str | int:
    text = value.upper()
    if text.isdigit():
        return int(text)
    if text not in LOG_LEVELS:
        near = did_you_mean(text, LOG_LEVELS)
        raise click.BadParameter(f"expected one of {', '.join(LOG_LEVELS)} or a number, got: {value!r}{near}")
    return text


@click.command()
@click.option("-n", "--hostname", metavar="NAME", help="The node's name; %h host, %n its first part, %d its domain.")
@click.option("-Q", "--queues", callback=commas, metavar="A,B", help="Consume from these queues, separated by commas.")
@click.option("-X", "--exclude-queues", callback=commas, metavar="A,B", help="Consume from all but these.")
@click.option("-c", "--concurrency", metavar="N|auto", help="How many tasks run at once.")
@click.option("-P", "--pool", metavar="POOL", help="What runs tasks: prefork, threads or solo.")
@click.option("--prefetch-multiplier", metavar="N", help="Messages fetched ahead for each running task; 0: no limit.")
@click.option(
    "-O", "--optimization", type=click.Choice(["default", "fair"]), default="default", show_default=True,
    help="Accepted for Celery's sake: dispatch is always fair.",
)  # fmt: skip
@click.option(
    "-l", "--loglevel", callback=_log_level, default="WARNING", show_default=True, metavar="LEVEL", help="What to log."
)
@click.option("-f", "--logfile", metavar="FILE", help="Where to log; %n node, %h host, %d domain, %p process id.")
@click.option("-I", "--include", callback=commas, metavar="A,B", help="More modules to import, separated by commas.")
@click.option("--purge", "--discard", "purge_first", is_flag=True, help="Delete all waiting messages first. No undo.")
@click.argument("settings", nargs=-1, metavar="[-- SETTING=VALUE…]")
@click.pass_context
def worker(
    ctx: click.Context, /, hostname: str | None, queues: tuple[str, ...] | None, exclude_queues: tuple[str, ...] | None,
    loglevel: str | int, logfile: str | None, include: tuple[str, ...] | None, purge_first: bool,
    settings: tuple[str, ...], optimization: str, **overrides: str | None,
) -> None:  # fmt: skip
    """Run a worker.

    TERM or ^C stops it after the running tasks; a second one stops at once.

    \b
    amqptasks -A proj worker -l INFO
    amqptasks -A proj worker -Q mail,images -c 8 -n images@%h
    amqptasks -A proj worker -- task_track_started=yes
    """
    obj: Globals = ctx.obj
    app = obj.app(required=True)
    _override(app, overrides, include, settings)
    names: tuple[str, ...] | None = queues
    if exclude_queues:
        names = choose_queues(obj, queues, exclude_queues)
    if purge_first:
        purge_queues(obj, names or tuple(app.queues))
    from amqptasks.worker.worker import Worker, node_name

    running = Worker(
        app,
        hostname=hostname,
        queues=list(names) if names else None,
        concurrency=app.conf.worker_concurrency,
        pool=app.conf.worker_pool,
        loglevel=loglevel,
        logfile=_log_file(logfile, node_name(hostname)) if logfile else None,
        quiet=obj.quiet,
    )
    ctx.exit(running.run())


def _override(
    app: App, options: dict[str, str | None], include: tuple[str, ...] | None, settings: tuple[str, ...]
) -> None:  # fmt: skip
    values: dict[str, Any] = {}
    for each in settings:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise CliError(f"expected SETTING=VALUE after --, got: {each!r}")
        values[name] = value
    values.update({f"worker_{option}": value for option, value in options.items() if value is not None})
    # Celery takes 0 as "as many as there are processors", our setting's None.
    if values.get("worker_concurrency") == "0":
        values["worker_concurrency"] = None
    if include:
        values["include"] = (*(app.conf.include or ()), *include)
    if values:
        app.conf.override(values)


def _log_file(text: str, node: str) -> str:
    name, _, host = node.partition("@")
    values = {"n": name, "h": host, "d": host.partition(".")[2], "p": str(os.getpid()), "%": "%"}
    path = re.sub(r"%(.)", lambda match: values.get(match[1], match[0]), text)
    try:
        with open(path, "a", encoding="utf-8"):
            return path
    except OSError as error:
        raise CliError(f"cannot write the log file {path!r}: {error.strerror}") from error
