"""Options that a program adds to the commands, as in Celery: ``app.user_options["preload"].add(click.Option(…))`` for
every command, ``app.user_options["worker"]`` for one. What is given reaches receivers of ``user_preload_options``.

The app is imported late by most commands, after they have become another user or left their terminal. So it is asked
for its options only when a command line has an option that nobody knows, or when it is there anyway.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import click

from amqptasks import signals
from amqptasks.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["added", "extend", "extend_for_help", "take", "tell_defaults"]

PRELOAD: Final = "preload"
#: Names in click's memory of one run: the options that were added; and the values of those of the command alone.
_ADDED: Final = "amqptasks.user_options"


def _options_of(app: App, name: str) -> list[click.Parameter]:
    options = list(app.user_options.get(name, ()))
    for each in options:
        if not isinstance(each, click.Parameter):
            raise ImproperlyConfigured(
                f"expected app.user_options[{name!r}] to hold options of click, such as "
                f"click.Option(['--mine']), got: {each!r:.80}"
            )
    # They come from a set: the order in the help should not be that of a run.
    return sorted(options, key=lambda each: each.name or "")


def added(ctx: click.Context) -> list[click.Parameter]:
    """Return the options that the app has added to this command."""
    found: list[click.Parameter] = ctx.meta.get(_ADDED, [])
    return found


def extend(ctx: click.Context) -> bool:
    """Add the options of the app, if one is named; False if there are none, or they were there already."""
    if _ADDED in ctx.meta or not getattr(ctx.obj, "app_name", None):
        return False
    # Whoever makes the app meanwhile does not tell of values that are not known yet.
    ctx.meta[_ADDED] = []
    app = ctx.obj.app()
    ctx.meta[_ADDED] = [*_options_of(app, PRELOAD), *_options_of(app, ctx.info_name or "")]
    return bool(ctx.meta[_ADDED])


def extend_for_help(ctx: click.Context) -> None:
    """Do as `extend`, but without a word if there is no such app: help is for whoever does not know."""
    with contextlib.suppress(Exception):
        extend(ctx)


def take(ctx: click.Context) -> None:
    """Take the values of added options out of those of the command: it does not know them. The ones for every command
    are told, the others kept for it."""
    options = added(ctx)
    if not options:
        return
    app = ctx.obj.app()
    preload = {each.name for each in _options_of(app, PRELOAD)}
    values = {each.name: ctx.params.pop(each.name) for each in options if each.name in ctx.params}
    _tell(ctx, app, {name: value for name, value in values.items() if name in preload})
    ctx.obj.user_values = {str(name): value for name, value in values.items()}


def tell_defaults(app: App) -> None:
    """Tell what holds if none of the added options is on the command line. Called with the app once it is there."""
    ctx = click.get_current_context(silent=True)
    if ctx is None or _ADDED in ctx.meta:
        return
    ctx.meta[_ADDED] = []
    kept = dict(ctx.params)
    values = {}
    for name in (PRELOAD, ctx.info_name or ""):
        for each in _options_of(app, name):
            # By its environment variable and default, as click would.
            value, _rest = each.handle_parse_result(ctx, {}, [])
            values[str(each.name)] = value
    ctx.params.clear()
    ctx.params.update(kept)
    ctx.obj.user_values = values
    preload = {each.name for each in _options_of(app, PRELOAD)}
    _tell(ctx, app, {name: value for name, value in values.items() if name in preload})


def _tell(ctx: click.Context, app: App, values: dict[Any, Any]) -> None:
    if values:
        signals.user_preload_options.send(ctx.command.callback, app=app, options=values)
