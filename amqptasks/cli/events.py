"""``amqptasks events``: shows what workers tell, as a screen, as lines, or to a camera."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import CliError, Globals
from amqptasks.cli.completion import one_of
from amqptasks.cli.daemon import Detached, Owner, Pidfile, octal
from amqptasks.cli.elements import Command, Option, json_option
from amqptasks.cli.levels import LOG_LEVELS, log_level
from amqptasks.exceptions import OperationalError

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["events"]

_camera = functools.partial(click.option, cls=Option, section="Camera")
_daemon = functools.partial(click.option, cls=Option, section="Daemon of a camera")


@click.command(
    cls=Command, short_help="Show what workers tell of their tasks.",
    examples=(
        "amqptasks -A proj events",
        "amqptasks -A proj events --dump",
        "amqptasks -A proj events --json | jq -r .type",
        "amqptasks -A proj events -c proj.Camera -F 10 -D -f cam.log",
    ),
)  # fmt: skip
@click.option("-d", "--dump", is_flag=True, help="Print one line for each event, as they come.")
@json_option()
@_camera("-c", "--camera", metavar="CLASS", help="Hand what is known to this class, package.module.Class.")
@_camera(
    "-F", "--frequency", "--freq", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
    metavar="SECONDS", help="How often.",
)  # fmt: skip
@_camera("-r", "--max-rate", "--maxrate", metavar="RATE", help="Not more often than this, such as 10/m.")
@_camera(
    "-l", "--loglevel", callback=log_level, default="WARNING", show_default=True, metavar="LEVEL",
    shell_complete=one_of(LOG_LEVELS), help="What to log.",
)  # fmt: skip
@_camera("-f", "--logfile", metavar="FILE", help="Where to log; standard error without.")
@_daemon("-D", "--detach", is_flag=True, help="Go to the background once it runs.")
@_daemon("--pidfile", metavar="FILE", help="Hold the process's id there; refuse to run twice.")
@_daemon("--uid", metavar="USER", help="Become this user first, by name or number.")
@_daemon("--gid", metavar="GROUP", help="Become this group first; without it, the user's own.")
@_daemon("--umask", callback=octal, metavar="OCTAL", help="Make files with this umask, such as 027.")
@click.pass_obj
def events(
    obj: Globals, /, dump: bool, as_json: bool, camera: str | None, detach: bool, uid: str | None, gid: str | None,
    umask: int | None, **options: Any,
) -> None:  # fmt: skip
    """Show what workers tell of themselves and of their tasks, until ^C.

    Without options this is a screen of the last tasks, with keys. Workers tell of tasks only with -E, or once they are
    told to: amqptasks control enable_events.
    """
    if sum((dump, as_json, camera is not None)) > 1:
        raise CliError("--dump, --json and --camera exclude each other")
    if camera is None and (detach or options["pidfile"]):
        raise CliError("--detach and --pidfile are for a camera: add --camera")
    owner = Owner(uid, gid)
    background = Detached() if detach else None
    if umask is not None:
        os.umask(umask)
    owner.take_over()
    # A service manager's TERM ends it as ^C does: with the terminal, the queue and the pidfile left in order.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    app = obj.app()
    with contextlib.suppress(KeyboardInterrupt):
        if camera is not None:
            _run_camera(obj, app, camera, background, **options)
        elif dump or as_json:
            _print(obj, app, as_json)
        else:
            _show(obj, app)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print(obj: Globals, app: App, as_json: bool) -> None:
    from amqptasks.cli import dumping
    from amqptasks.cli.capturing import heard
    from amqptasks.cli.dumping import Dumper

    line = dumping.as_json if as_json else Dumper().line

    def lost(error: OperationalError) -> None:
        click.echo(f"-> Connection lost, attempting reconnect: {error}", err=True)

    if not as_json:
        obj.say("-> evdump: starting capture...")
    for _ in heard(app, lambda event: click.echo(line(event)), on_lost=lost):
        sys.stdout.flush()


def _show(obj: Globals, app: App) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CliError("the screen needs a terminal: add --dump or --json to print lines")
    try:
        from amqptasks.cli.screen import show
    except ModuleNotFoundError as error:
        raise CliError(f"the screen needs Python's module curses ({error}): add --dump or --json") from error
    show(app, color=not obj.no_color)


def _run_camera(
    obj: Globals, app: App, camera: str, background: Detached | None, *, frequency: float, max_rate: str | None,
    loglevel: int | str, logfile: str | None, pidfile: str | None,
) -> None:  # fmt: skip
    from amqptasks.app.discovery import named_object
    from amqptasks.events.snapshot import evcam

    if not ("." in camera or ":" in camera):
        raise CliError(f"expected --camera to be package.module.Class, got: {camera!r}")
    kind = named_object(camera, "--camera")
    if not callable(kind):
        raise CliError(f"expected --camera {camera!r} to be a class, got: {kind!r:.80}")
    log = os.path.abspath(logfile) if logfile else None
    try:
        app.log.setup(loglevel, log)
    except OSError as error:
        raise CliError(f"cannot write the log file {log!r}: {error.strerror}") from error

    def started() -> None:
        obj.say(f"-> evcam: Taking snapshots with {camera} (every {frequency:g} secs.)")
        if background is not None:
            background.let_go(log)

    with Pidfile(pidfile) if pidfile else contextlib.nullcontext():
        evcam(kind, frequency, max_rate, app=app, on_started=started)
