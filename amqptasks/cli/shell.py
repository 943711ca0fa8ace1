"""``amqptasks shell``: Python with the app and its tasks at hand."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from amqptasks._version import __version__
from amqptasks.cli.common import EXIT_FAILED, CliError, Globals
from amqptasks.cli.elements import Command

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["shell"]

#: In the order in which they are looked for; what is not installed here is passed over.
MODULES = {"ipython": "IPython", "bpython": "bpython"}
#: What code that was piped in is called in its tracebacks.
PIPED = "<stdin>"


@click.command(
    cls=Command, short_help="Open a Python shell with the app and its tasks.",
    examples=(
        "amqptasks -A proj shell",
        "amqptasks -A proj shell --python --without-tasks",
        "echo 'print(add.delay(2, 2).get(timeout=10))' | amqptasks -A proj shell",
    ),
)  # fmt: skip
@click.option("-I", "--ipython", is_flag=True, help="Use IPython.")
@click.option("-B", "--bpython", is_flag=True, help="Use bpython.")
@click.option("--python", is_flag=True, help="Use Python's own shell.")
@click.option("-T", "--without-tasks", is_flag=True, help="Leave the tasks out of the names.")
@click.pass_context
def shell(ctx: click.Context, /, without_tasks: bool, **kinds: bool) -> None:
    """Open a Python shell: IPython, else bpython, else Python's own.

    Its names are app (also celery), every task by its function's name, group, chain, chord, signature, AsyncResult
    and the like. If input does not come from a terminal, it is run as a program instead.
    """
    obj: Globals = ctx.obj
    wanted = [kind for kind, is_wanted in kinds.items() if is_wanted]
    if len(wanted) > 1:
        raise CliError(f"give one of {' and '.join(f'--{kind}' for kind in wanted)}")
    kind = wanted[0] if wanted else None
    app = obj.app()
    app.import_modules()
    names, hidden = _names(app, without_tasks)
    try:
        if sys.stdin is None or not sys.stdin.isatty():
            if kind in MODULES:
                raise CliError(f"--{kind} needs a terminal; input from elsewhere is run by Python itself")
            ctx.exit(_run_piped(names))
        _shell(kind)(names, "" if obj.quiet else _greeting(app, names, hidden))
    finally:
        app.close()


def _names(app: App, without_tasks: bool) -> tuple[dict[str, Any], list[str]]:
    """Return what the shell knows, and the tasks that it does not because their short name is taken."""
    from amqptasks import canvas
    from amqptasks.exceptions import AmqptasksError
    from amqptasks.results.handles import AsyncResult, GroupResult
    from amqptasks.results.sets import ResultSet

    names: dict[str, Any] = {"app": app, "celery": app, "Task": app.Task, "AmqptasksError": AmqptasksError}
    names |= {name: getattr(canvas, name) for name in canvas.__all__ if name != "Sender"}
    names["subtask"] = canvas.signature
    names |= {"AsyncResult": AsyncResult, "GroupResult": GroupResult, "ResultSet": ResultSet}
    hidden: list[str] = []
    for name, task in sorted(app.tasks.items()):
        short = task.__name__
        if without_tasks or name.startswith("celery."):
            continue
        if short in names:
            hidden.append(name)
        else:
            names[short] = task
    return names, hidden


def _greeting(app: App, names: dict[str, Any], hidden: list[str]) -> str:
    registered = list(app.tasks.values())
    tasks = [name for name, value in names.items() if any(value is task for task in registered)]
    lines = [f"amqptasks {__version__}, Python {sys.version.split()[0]}, app {app.main or '__main__'}"]
    lines.append(f"tasks: {', '.join(tasks) or 'none'}")
    lines += [f"under app.tasks[{name!r}] only: its short name is taken" for name in hidden]
    return "\n".join(lines)


def _shell(kind: str | None) -> Callable[[dict[str, Any], str], None]:
    """Return the shell that was asked for, or the best that there is."""
    if kind is None:
        kind = next((name for name, module in MODULES.items() if importlib.util.find_spec(module)), "python")
    elif kind in MODULES and importlib.util.find_spec(MODULES[kind]) is None:
        raise CliError(f"{MODULES[kind]} is not installed here: pip install {MODULES[kind].lower()}", EXIT_FAILED)
    return {"ipython": _ipython, "bpython": _bpython, "python": _python}[kind]


def _ipython(names: dict[str, Any], greeting: str) -> None:
    from IPython import start_ipython

    click.echo(greeting)
    start_ipython(argv=["--no-banner"], user_ns=names)


def _bpython(names: dict[str, Any], greeting: str) -> None:
    import bpython

    bpython.embed(names, args=["-q"], banner=greeting)


def _python(names: dict[str, Any], greeting: str) -> None:
    import code

    try:
        import readline
        import rlcompleter
    except ImportError:
        pass  # a Python built without it: the line is edited as the terminal does
    else:
        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    code.interact(banner=greeting, local={"__name__": "__console__", "__doc__": None} | names, exitmsg="")


def _run_piped(names: dict[str, Any]) -> int:
    """Run what comes in as Python would a script; its errors are its own, shown as Python shows them."""
    names = {"__name__": "__main__", "__doc__": None} | names
    try:
        exec(compile(sys.stdin.read() if sys.stdin else "", PIPED, "exec"), names)
    except Exception as error:
        # From the piped code on: the frames of this file say nothing to who wrote it.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != PIPED:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
        return EXIT_FAILED
    return 0
