"""The screen of ``amqptasks events``, in a terminal: draws what `top` says, and hands it the keys.

However it ends, the terminal is as it was before.
"""

from __future__ import annotations

import contextlib
import curses
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from amqptasks.cli.capturing import heard
from amqptasks.cli.common import CliError
from amqptasks.cli.top import BEEP, QUIT, Top
from amqptasks.exceptions import AmqptasksError

if TYPE_CHECKING:
    from amqptasks.app.app import App

__all__ = ["show"]

#: Drawn at most this often while events come, and at least this often while none does: workers fall silent. Seconds.
DRAW_S: Final = 0.1
IDLE_S: Final = 0.25

_COLORS: Final = {
    "good": curses.COLOR_GREEN, "bad": curses.COLOR_RED, "revoked": curses.COLOR_MAGENTA,
    "running": curses.COLOR_YELLOW,
}  # fmt: skip
_ATTRIBUTES: Final = {
    "bold": curses.A_BOLD, "dim": curses.A_DIM, "head": curses.A_BOLD | curses.A_UNDERLINE,
    "chosen": curses.A_STANDOUT,
}  # fmt: skip


def show(app: App, *, color: bool) -> None:
    """Show events until somebody presses q or ^C, or the process is asked to end.

    Raises:
        CliError: The terminal cannot show a screen.
        OperationalError: The broker cannot be reached.
    """
    state = app.events.State()

    def revoke(task_id: str) -> str:
        try:
            app.control.revoke(task_id)
        except (AmqptasksError, ValueError) as error:
            return f"{task_id} was not revoked: {error}"
        return f"{task_id} is revoked"

    top = Top(state, revoke)
    # What is logged would be written across the screen.
    logging.getLogger().addHandler(logging.NullHandler())

    def lost(error: AmqptasksError) -> None:
        top.message = f"Connection lost, attempting reconnect: {error}"

    capture = heard(
        app, state.event, on_lost=lost, on_up=lambda connection: connection.wake_by(sys.stdin.fileno()), every_s=IDLE_S
    )
    # Before the screen: whether the broker is there is told in the terminal as it is.
    next(capture)
    with _screen(color) as (window, styles):
        _loop(capture, top, window, styles)


def _loop(capture: Iterator[None], top: Top, window: Any, styles: dict[str, int]) -> None:
    drawn_at = 0.0
    while True:
        had_key = False
        while (key := _key(window)) is not None:
            had_key = True
            asked = top.key(key)
            if asked == QUIT:
                return
            if asked == BEEP:
                curses.beep()
        if had_key or time.monotonic() - drawn_at >= DRAW_S:
            _draw(top, window, styles)
            drawn_at = time.monotonic()
        next(capture)


def _key(window: Any) -> str | None:
    try:
        key: str = window.getkey()
    except curses.error:
        return None
    return key


def _draw(top: Top, window: Any, styles: dict[str, int]) -> None:
    height, width = window.getmaxyx()
    window.erase()
    for span in top.spans(width, height):
        # The window may have become smaller since.
        with contextlib.suppress(curses.error):
            window.addstr(span.y, span.x, span.text, styles.get(span.style, curses.A_NORMAL))
    window.refresh()


@contextlib.contextmanager
def _screen(color: bool) -> Iterator[tuple[Any, dict[str, int]]]:
    # The terminal knows its size better: these do not follow it.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    # A key that begins like an arrow is a key after so many milliseconds.
    os.environ.setdefault("ESCDELAY", "25")
    try:
        curses.setupterm()
        window = curses.initscr()
    except curses.error as error:
        raise CliError(
            f"this terminal ({os.environ.get('TERM') or 'TERM is not set'}) cannot show a screen: {error}; add --dump "
            "or --json"
        ) from error
    try:
        curses.noecho()
        curses.cbreak()
        window.keypad(True)
        window.nodelay(True)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        yield window, _styles(color)
    finally:
        # Whatever ends it, and whatever fails here: all the rest is put back too.
        for restore in (lambda: curses.curs_set(1), lambda: window.keypad(False), curses.nocbreak, curses.echo):
            with contextlib.suppress(curses.error):
                restore()
        curses.endwin()


def _styles(color: bool) -> dict[str, int]:
    styles = dict(_ATTRIBUTES)
    if color and curses.has_colors():
        curses.start_color()
        with contextlib.suppress(curses.error):
            curses.use_default_colors()
        for number, (name, value) in enumerate(_COLORS.items(), 1):
            curses.init_pair(number, value, -1)
            styles[name] = curses.color_pair(number)
    return styles
