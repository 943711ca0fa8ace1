"""Django: what an app does where ``DJANGO_SETTINGS_MODULE`` says that it belongs to a Django project.

Loaded only there, and by the ``…_on_commit`` methods of tasks. Database connections live by Django's own rules
(``CONN_MAX_AGE``, ``CONN_HEALTH_CHECKS``): a task is to them what a web request is.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from amqptasks import signals
from amqptasks.exceptions import ImproperlyConfigured

logger = logging.getLogger(__name__)

SETTINGS_VARIABLE = "DJANGO_SETTINGS_MODULE"

_prepared: weakref.WeakSet[Any] = weakref.WeakSet()
#: What a child got from its parent and must not touch. Held for ever: a finalizer would talk to the parent's server.
_inherited: list[Any] = []


def prepare(app: Any) -> None:
    """Make a Django project ready for its tasks to be imported, and its workers for running them. Safe twice.

    The working directory becomes importable, and Django is set up. A worker of this app will check the project, and
    look after its database connections.
    """
    if app in _prepared:
        return
    if importlib.util.find_spec("django") is None:
        logger.warning("%s is set, and Django is not installed: nothing is done for it", SETTINGS_VARIABLE)
        return
    _prepared.add(app)
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    _set_up()
    mine = weakref.ref(app)

    def on_worker_init(sender: Any, **_: Any) -> None:
        if sender.app is mine():
            _serve()

    signals.worker_init.connect(on_worker_init, weak=False)


def _set_up() -> None:
    import django

    ours = [
        each
        for name, each in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] == "amqptasks" and isinstance(each, logging.Logger) and not each.disabled
    ]
    django.setup()
    # LOGGING silences every logger there is, unless it says "disable_existing_loggers": False. A worker that says
    # nothing at all is not what its author had in mind.
    for each in ours:
        each.disabled = False


def _serve() -> None:
    """Get a worker's process ready: nothing open that a child could inherit, and an eye on the tasks."""
    if not os.environ.get("AMQPTASKS_SKIP_CHECKS"):
        _check()
    signals.task_prerun.connect(_before_task, dispatch_uid=f"{__name__}.before")
    signals.task_postrun.connect(_after_task, dispatch_uid=f"{__name__}.after")
    signals.worker_process_init.connect(_enter_child, dispatch_uid=f"{__name__}.child")
    connections = _connections()
    for connection in connections.all(initialized_only=True):
        _quietly(connection, connection.close)
        # A pool's threads do not survive a fork.
        _quietly(connection, getattr(connection, "close_pool", _nothing))
    _close_caches()


def _check() -> None:
    from django.core import checks

    for message in checks.run_checks():
        if message.level >= checks.ERROR and not message.is_silenced():
            logger.error("Django's system check: %s", message)


def _enter_child(**_: Any) -> None:
    """Forget the parent's connections, without a word to the server: it would end them for the parent too."""
    connections = _connections()
    for connection in connections.all(initialized_only=True):
        _inherited.append(connection)
        pools = getattr(connection, "_connection_pools", None)
        if pools:
            _inherited.append(pools.pop(connection.alias, None))
        del connections[connection.alias]
    _close_caches()


def _before_task(sender: Any, **_: Any) -> None:
    if not sender.request.is_eager:
        from django.db import reset_queries

        # With DEBUG, Django keeps the text of every query until it is told that a new request begins.
        reset_queries()
        _close_old_connections()


def _after_task(sender: Any, **_: Any) -> None:
    if not sender.request.is_eager:
        _close_old_connections()
        _close_caches()


def _close_old_connections() -> None:
    for connection in _connections().all(initialized_only=True):
        _quietly(connection, connection.close_if_unusable_or_obsolete)


def _quietly(connection: Any, close: Callable[[], Any]) -> None:
    """Close one connection; that it has broken already must not keep the others open."""
    from django.db import Error

    try:
        close()
    except Error as error:
        logger.warning("The database connection %r was broken when it was closed: %s", connection.alias, error)


def _nothing() -> None:
    pass


def _close_caches() -> None:
    from django.core.cache import close_caches

    close_caches()


def _connections() -> Any:
    from django.db import connections

    return connections


def _has_settings() -> bool:
    """Whether Django knows its settings here: a program may have Django imported and be no project of it."""
    conf = sys.modules.get("django.conf")
    return bool(os.environ.get(SETTINGS_VARIABLE)) or (conf is not None and bool(conf.settings.configured))


def on_commit(what: str, send: Callable[[], Any]) -> None:
    """Call a function once the running transaction is committed, at once outside of one, and never if it is undone.

    Raises:
        ImproperlyConfigured: This is no Django project.
    """
    if not _has_settings():
        raise ImproperlyConfigured(f"{what} waits for Django's transaction to end, and this is no Django project")
    transaction: Any = importlib.import_module("django.db.transaction")
    transaction.on_commit(send)


def installed_apps() -> Iterable[str]:
    """Return the packages of Django's installed apps.

    Raises:
        ImproperlyConfigured: This is no Django project.
    """
    if not _has_settings():
        raise ImproperlyConfigured(
            "autodiscover_tasks() without packages looks into Django's installed apps, and this is no Django project: "
            "name the packages"
        )
    apps: Any = importlib.import_module("django.apps").apps
    return [config.name for config in apps.get_app_configs()]
