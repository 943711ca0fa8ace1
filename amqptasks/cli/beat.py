"""``amqptasks beat``: sends periodic tasks, from this process, until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import Globals
from amqptasks.cli.completion import one_of
from amqptasks.cli.daemon import Detached, Owner, Pidfile, octal, run_by
from amqptasks.cli.elements import Command, Option
from amqptasks.cli.levels import LOG_LEVELS, checked_log, log_level, seconds
from amqptasks.logs import expand_path

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["beat"]

_daemon = functools.partial(click.option, cls=Option, section="Daemon")


@click.command(
    cls=Command, short_help="Send periodic tasks.",
    examples=(
        "amqptasks -A proj beat -l INFO",
        "amqptasks -A proj beat -s /var/lib/proj/amqptasks-schedule",
        "amqptasks -A proj beat --detach --pidfile run/beat.pid -f log/beat.log",
    ),
)  # fmt: skip
@click.option(
    "-s", "--schedule", "filename", metavar="FILE",
    help="File that keeps the last runs, besides the broker.",
)  # fmt: skip
@click.option("-S", "--scheduler", metavar="CLASS", help="A scheduler of your own: package.module:Class.")
@click.option("--max-interval", metavar="SECONDS", callback=seconds, help="Look at the schedule at least so often.")
@click.option(
    "-l", "--loglevel", callback=log_level, default="WARNING", show_default=True, metavar="LEVEL",
    shell_complete=one_of(LOG_LEVELS), help="What to log.",
)  # fmt: skip
@click.option("-f", "--logfile", metavar="FILE", help="Where to log. %h host, %n its first part, %d its domain.")
@click.option(
    "--enable-remote-control/--no-enable-remote-control", "remote_control", default=None,
    help="Answer inspect ping, while ticks do not take too long.",
)  # fmt: skip
@click.option("-n", "--hostname", metavar="NAME", help="The name to answer by; celerybeat@ and the host without.")
@_daemon("-D", "--detach", is_flag=True, help="Go to the background once it runs.")
@_daemon("--pidfile", metavar="FILE", help="Hold the process's id there; refuse to run twice. % as for --logfile.")
@_daemon("--uid", metavar="USER", help="Become this user first, by name or number.")
@_daemon("--gid", metavar="GROUP", help="Become this group first; without it, the user's own.")
@_daemon("--umask", callback=octal, metavar="OCTAL", help="Make files with this umask, such as 027.")
@_daemon("--executable", metavar="PYTHON", help="Run in this Python instead.")
@click.pass_context
def beat(
    ctx: click.Context, /, detach: bool, uid: str | None, gid: str | None, umask: int | None, executable: str | None,
    pidfile: str | None, **options: Any,
) -> None:  # fmt: skip
    """Send periodic tasks.

    Run as many as you like: one leads and sends, the others stand by and take over when it ends. TERM or ^C stops it.
    """
    obj: Globals = ctx.obj
    if executable:
        run_by(executable, obj.argv, obj.start_directory)
    owner = Owner(uid, gid)
    background = Detached() if detach else None
    if umask is not None:
        os.umask(umask)
    owner.take_over()
    ctx.exit(_run(obj, obj.app(required=True), background, pidfile, **options))


def _run(
    obj: Globals, app: App, background: Detached | None, pidfile: str | None, *, filename: str | None,
    loglevel: str | int, logfile: str | None, **chosen: Any,
) -> int:  # fmt: skip
    from amqptasks.beat.service import Beat, banner

    node = f"beat@{socket.gethostname()}"
    log = checked_log(logfile, node) if logfile else None
    with Pidfile(expand_path(pidfile, node)) if pidfile else contextlib.nullcontext():
        app.prepare()
        app.log.setup(
            loglevel, logfile, app.conf.worker_redirect_stdouts, app.conf.worker_redirect_stdouts_level, hostname=node
        )
        app.import_modules()
        running = Beat(app, filename=filename, **chosen)
        if not obj.quiet and sys.__stdout__:
            with contextlib.suppress(OSError):
                print(banner(running, log, str(loglevel)), file=sys.__stdout__, flush=True)
        if background is not None:
            if log is None and sys.__stderr__:
                print("Warning: --detach without --logfile: what this beat says is lost", file=sys.__stderr__)
            if not obj.quiet and sys.__stdout__:
                print(
                    f"beat runs in the background, process {os.getpid()}, log {log or 'nowhere'}", file=sys.__stdout__
                )
            background.let_go(log)
        restore = running.install_signals()
        try:
            return running.run()
        finally:
            restore()
