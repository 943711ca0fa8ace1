"""``amqptasks worker``: runs a worker in this process until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from amqptasks import signals
from amqptasks.app.configuring import assignments
from amqptasks.cli.common import Globals, commas
from amqptasks.cli.completion import complete_queues, one_of
from amqptasks.cli.daemon import Detached, Owner, Pidfile, octal, run_again, run_by
from amqptasks.cli.elements import Command, Option
from amqptasks.cli.health import address
from amqptasks.cli.levels import LOG_LEVELS, checked_log, log_level
from amqptasks.cli.purge import choose_queues, purge_queues, warn_of_slips
from amqptasks.logs import expand_path

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.worker.worker import Worker

__all__ = ["worker"]

#: The kinds of pool, of `amqptasks.worker.worker.POOLS`; spelt out, for that module is slow to import.
POOLS = ("prefork", "solo", "threads")

#: What a worker that is started again by HUP does not do again: it is in the background, and its queues are not empty.
DONE_ONCE = (
    "-D", "--detach", "--purge", "--discard", "AMQPTASKS_WORKER_DETACH", "AMQPTASKS_WORKER_PURGE",
)  # fmt: skip

_queues = functools.partial(click.option, cls=Option, section="Queues")
_pool = functools.partial(click.option, cls=Option, section="Pool")
_health = functools.partial(click.option, cls=Option, section="Health")
_events = functools.partial(click.option, cls=Option, section="Events")
_beat = functools.partial(click.option, cls=Option, section="Beat")
_daemon = functools.partial(click.option, cls=Option, section="Daemon")


def _autoscale(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    words = value.split(",")
    numbers = sorted(int(word) for word in words if word.strip().isdecimal())
    if len(words) > 2 or len(numbers) != len(words) or numbers[-1] < 1:
        raise click.BadParameter(f"expected MAX,MIN or MAX, whole numbers, MAX above 0, got: {value!r}")
    # In either order, as in Celery.
    return numbers[-1], numbers[0] if len(numbers) == 2 else 0


@click.command(
    cls=Command, short_help="Run a worker.",
    examples=(
        "amqptasks -A proj worker -l INFO",
        "amqptasks -A proj worker -Q mail,images -c 8 -n images@%h",
        "amqptasks -A proj worker -- task_track_started=yes",
        "amqptasks -A proj worker -D --pidfile run/%n.pid -f log/%n%I.log",
    ),
)  # fmt: skip
@click.option("-n", "--hostname", metavar="NAME", help="The node's name; %h host, %n its first part, %d its domain.")
@click.option(
    "-l", "--loglevel", callback=log_level, default="WARNING", show_default=True, metavar="LEVEL",
    shell_complete=one_of(LOG_LEVELS), help="What to log.",
)  # fmt: skip
@click.option(
    "-f", "--logfile", metavar="FILE",
    help="Where to log. %n name, %h host, %d domain, %p name@host; %i number of the child process, %I the same with "
    "a dash, or nothing for the worker itself.",
)  # fmt: skip
@click.option("-I", "--include", callback=commas, metavar="A,B", help="More modules to import, separated by commas.")
@_queues(
    "-Q", "--queues", callback=commas, metavar="A,B", shell_complete=complete_queues,
    help="Consume from these queues, separated by commas.",
)  # fmt: skip
@_queues(
    "-X", "--exclude-queues", callback=commas, metavar="A,B", shell_complete=complete_queues,
    help="Consume from all but these.",
)  # fmt: skip
@_queues("--purge", "--discard", "purge_first", is_flag=True, help="Delete all waiting messages first. No undo.")
@_pool("-c", "--concurrency", metavar="N|auto", help="How many tasks run at once.")
@_pool(
    "--autoscale", metavar="MAX,MIN", callback=_autoscale,
    help="Let the pool have as many as there is work for, within these; MIN is 0 if left out.",
)  # fmt: skip
@_pool(
    "-P", "--pool", metavar="POOL", shell_complete=one_of(POOLS),
    help="What runs tasks: prefork, threads, asyncio or solo.",
)  # fmt: skip
@_pool("--prefetch-multiplier", metavar="N", help="Messages fetched ahead for each running task; 0: no limit.")
@_pool("--disable-prefetch", is_flag=True, help="Fetch as little ahead as can be: one message for each running task.")
@_pool(
    "--time-limit", metavar="SECONDS", envvar="AMQPTASKS_TASK_TIME_LIMIT",
    help="Kill a task after so long, unless it or its call says otherwise.",
)  # fmt: skip
@_pool(
    "--soft-time-limit", metavar="SECONDS", envvar="AMQPTASKS_TASK_SOFT_TIME_LIMIT",
    help="Raise SoftTimeLimitExceeded in a task after so long.",
)  # fmt: skip
@_pool("--max-tasks-per-child", metavar="N", help="Replace a child process after so many tasks.")
@_pool("--max-memory-per-child", metavar="KIB", help="Replace a child process that has more memory after a task.")
@_pool(
    "-O", "--optimization", type=click.Choice(["default", "fair"]), default="default", metavar="default|fair",
    help="Accepted for Celery's sake: dispatch is always fair.",
)  # fmt: skip
@_health("--health-file", metavar="FILE", help="Write this file every second while all is well. % as for --logfile.")
@_health(
    "--http", callback=address, metavar="[HOST:]PORT",
    help="Answer /healthz and /metrics over HTTP there; without HOST, to this machine only.",
)  # fmt: skip
@_events("-E", "--task-events", is_flag=True, help="Tell monitors what becomes of tasks.")
@_events("--without-heartbeat", is_flag=True, help="Do not tell monitors that this worker lives.")
@_events(
    "--heartbeat-interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS",
    help="How often to tell that.",
)  # fmt: skip
@_events("--without-gossip", is_flag=True, hidden=True, help="Accepted for Celery's sake: there is none.")
@_events("--without-mingle", is_flag=True, hidden=True, help="Accepted for Celery's sake: there is none.")
@_beat("-B", "--beat", "with_beat", is_flag=True, help="Send periodic tasks too, from a process beside the worker.")
@_beat("-s", "--schedule-filename", metavar="FILE", help="File that keeps the last runs, besides the broker.")
@_beat("--scheduler", metavar="CLASS", help="A scheduler of your own: package.module:Class.")
@_daemon("-D", "--detach", is_flag=True, help="Go to the background once it runs.")
@_daemon("--pidfile", metavar="FILE", help="Hold the process's id there; refuse to run twice. % as for --logfile.")
@_daemon("--uid", metavar="USER", help="Become this user first, by name or number.")
@_daemon("--gid", metavar="GROUP", help="Become this group first; without it, the user's own.")
@_daemon("--umask", callback=octal, metavar="OCTAL", help="Make files with this umask, such as 027.")
@_daemon("--executable", metavar="PYTHON", help="Run in this Python instead.")
@click.argument("settings", nargs=-1, metavar="[-- SETTING=VALUE…]")
@click.pass_context
def worker(
    ctx: click.Context, /, include: tuple[str, ...] | None, settings: tuple[str, ...], optimization: str,
    detach: bool, uid: str | None, gid: str | None, umask: int | None, executable: str | None, pidfile: str | None,
    concurrency: str | None, pool: str | None, prefetch_multiplier: str | None, disable_prefetch: bool,
    time_limit: str | None, soft_time_limit: str | None, max_tasks_per_child: str | None,
    max_memory_per_child: str | None, task_events: bool, without_gossip: bool, without_mingle: bool, **options: Any,
) -> None:  # fmt: skip
    """Run a worker.

    TERM or ^C stops it after the running tasks; a second one stops at once. The exit code is 0 after the first, 1
    after the second. HUP starts it anew after the running tasks, in the same process.
    """
    obj: Globals = ctx.obj
    if executable:
        run_by(executable, obj.argv, obj.start_directory)
    owner = Owner(uid, gid)
    background = Detached() if detach else None
    # Before the app is imported: its code shall have no more rights than the worker, and its threads no fork behind
    # their back.
    if umask is not None:
        os.umask(umask)
    owner.take_over()
    app = obj.app(required=True)
    values = {
        "worker_concurrency": concurrency, "worker_pool": pool, "worker_prefetch_multiplier": prefetch_multiplier,
        "worker_disable_prefetch": "yes" if disable_prefetch else None, "task_time_limit": time_limit,
        "task_soft_time_limit": soft_time_limit, "worker_max_tasks_per_child": max_tasks_per_child,
        "worker_max_memory_per_child": max_memory_per_child,
        "worker_send_task_events": "yes" if task_events else None,
    }  # fmt: skip
    _override(ctx, app, values, include, settings)
    code, is_restart = _run(obj, app, background, pidfile, **options)
    # The end of a terminal is no wish for another worker.
    if is_restart and not (sys.__stdout__ and sys.__stdout__.isatty()):
        run_again(obj.argv, obj.start_directory, DONE_ONCE)
    ctx.exit(code)


def _run(
    obj: Globals, app: App, background: Detached | None, pidfile: str | None, *, hostname: str | None,
    queues: tuple[str, ...] | None, exclude_queues: tuple[str, ...] | None, loglevel: str | int, logfile: str | None,
    purge_first: bool, autoscale: tuple[int, int] | None, health_file: str | None, http: tuple[str, int] | None,
    without_heartbeat: bool, heartbeat_interval: float, with_beat: bool, schedule_filename: str | None,
    scheduler: str | None,
) -> tuple[int, bool]:  # fmt: skip
    from amqptasks.worker.worker import Worker, node_name

    node = node_name(hostname)
    log = checked_log(logfile, node) if logfile else None
    with Pidfile(expand_path(pidfile, node)) if pidfile else contextlib.nullcontext():
        names = choose_queues(obj, queues, exclude_queues) if exclude_queues else queues
        warn_of_slips(app, names or ())
        if purge_first:
            purge_queues(obj, names or tuple(app.queues))
        running = Worker(
            app,
            hostname=node,
            queues=list(names) if names else None,
            concurrency=app.conf.worker_concurrency,
            pool=app.conf.worker_pool,
            loglevel=loglevel,
            logfile=logfile,
            quiet=obj.quiet,
            autoscale=autoscale,
            health_file=health_file,
            http=http,
            heartbeat_s=None if without_heartbeat else heartbeat_interval,
            options=obj.user_values,
        )
        if background is not None:
            # Sent when all that can be wrong from the start has been found, and before children are forked.
            signals.worker_init.connect(lambda *_args, **_kwargs: _let_go(obj, background, node, log), weak=False)
        if not with_beat:
            return running.run(), running.is_restart
        return _run_with_beat(app, running, schedule_filename, scheduler), running.is_restart


def _run_with_beat(app: App, running: Worker, filename: str | None, scheduler: str | None) -> int:
    from amqptasks.cli.embedded import CannotStart, EmbeddedBeat

    started: list[EmbeddedBeat] = []

    def start(**_: Any) -> None:
        started.append(EmbeddedBeat(app, filename=filename, scheduler=scheduler))
        started[0].start()

    # Sent when modules are imported and the log is set up, and before there are children or connections.
    signals.worker_init.connect(start, weak=False)
    try:
        return running.run()
    except CannotStart as problem:
        raise problem.error from None
    finally:
        for each in started:
            each.stop()


def _let_go(obj: Globals, background: Detached, node: str, log: str | None) -> None:
    # Not echo(): by now, what is printed may go to the log.
    if log is None and sys.__stderr__:
        print("Warning: --detach without --logfile: what this worker says is lost", file=sys.__stderr__)
    if not obj.quiet and sys.__stdout__:
        print(f"{node} runs in the background, process {os.getpid()}, log {log or 'nowhere'}", file=sys.__stdout__)
    background.let_go(log)


def _override(
    ctx: click.Context, app: App, values: dict[str, str | None], include: tuple[str, ...] | None,
    settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Put the options that are settings above all other sources of settings."""
    given: dict[str, Any] = dict(assignments(settings))
    if include:
        given["include"] = (*(app.conf.include or ()), *include)
    if given:
        app.conf.override(given)
    for name, option in values.items():
        if option is None:
            continue
        source = "the command line"
        if (
            ctx.get_parameter_source(name.removeprefix("worker_").removeprefix("task_"))
            is click.core.ParameterSource.ENVIRONMENT
        ):
            source = f"the environment variable AMQPTASKS_{name.upper()}"
        # Celery takes 0 as "as many as there are processors", our setting's None.
        is_all = name == "worker_concurrency" and option == "0"
        app.conf.override({name: None if is_all else option}, source)
