"""Which app is the current one, which apps there are, and the tasks that every app gets.

For users of `current_app` and `shared_task`, whose code does not know its app. Nothing else in this package leans on
it: an app is handed to whoever needs it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.context import set_default_app

#: Makes a task in an app that is given to it.
Maker = Callable[[Any], Any]

_lock = threading.Lock()
_current: weakref.ReferenceType[Any] | None = None
_apps: weakref.WeakSet[Any] = weakref.WeakSet()
_makers: list[Maker] = []


def announce(app: Any) -> None:
    """Take note of a new app."""
    with _lock:
        _apps.add(app)


def choose(app: Any) -> None:
    """Make this the current app, of all threads."""
    global _current
    _current = weakref.ref(app)
    set_default_app(current_app_or_none)


def current_app_or_none() -> Any:
    """Return the app made or chosen last, if it still lives."""
    return None if _current is None else _current()


def require_app(what: str) -> Any:
    """Return the current app.

    Raises:
        ImproperlyConfigured: There is none. (Celery would make one here, which sends to localhost.)
    """
    app = current_app_or_none()
    if app is None:
        raise ImproperlyConfigured(
            f"{what} needs an app, and none has been made: import the module that makes your App before using it "
            "(in Django, in the project's __init__.py)"
        )
    return app


def share(maker: Maker) -> None:
    """Have a task made in every app: now in those that are finalized, in the others when they will be."""
    with _lock:
        _makers.append(maker)
        finalized = [app for app in _apps if app.is_finalized]
    for app in finalized:
        maker(app)


def makers() -> tuple[Maker, ...]:
    """Return what `share` was given so far."""
    with _lock:
        return tuple(_makers)
