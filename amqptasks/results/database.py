"""Results in a database: ``db+`` and any URL of SQLAlchemy's, such as ``db+postgresql://host/name``.

The tables are Celery's, so that workers and callers of both can share a database, and a success is never overwritten.
What is done in the database is in `database_engine.py`, imported with the first use, so that programs which only send
tasks do not pay for SQLAlchemy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import StoreBackend
from amqptasks.results.registry import BackendApp, resolve
from amqptasks.results.retries import StoreRetries
from amqptasks.urls import mask_url

if TYPE_CHECKING:
    from amqptasks.results.database_engine import Database

__all__ = ["DatabaseBackend", "from_app"]

_TABLES: Final = ("task", "group")


def from_app(url: str, app: BackendApp) -> DatabaseBackend:
    """Make the backend that the settings ask for; ``url`` is SQLAlchemy's, or empty for ``database_url``."""
    conf = app.conf
    url = url or str(conf.database_url or "").removeprefix("db+")
    if not url:
        raise ImproperlyConfigured("the result backend 'database' needs database_url, or write db+sqlite:///results.db")
    callback = conf.database_engine_callback
    options = {
        "engine_options": conf.database_engine_options or {},
        "engine_callback": resolve(callback, "database_engine_callback") if isinstance(callback, str) else callback,
        "short_lived": conf.database_short_lived_sessions,
        "names": _of_tables(conf, "database_table_names"),
        "schemas": _of_tables(conf, "database_table_schemas"),
        "create": conf.database_create_tables_at_setup,
        "expires_s": conf.result_expires,
    }
    return DatabaseBackend(url, options, Payloads.of(conf, app.limits()), StoreRetries.of(conf))


def _of_tables(conf: Any, setting: str) -> Mapping[str, str]:
    given: Mapping[str, str] = conf[setting] or {}
    for key, value in given.items():
        if key not in _TABLES or not isinstance(value, str) or not value:
            raise ImproperlyConfigured(
                f"expected {setting} to map 'task' and 'group' to names, got: {key!r}: {value!r}"
            )
    return given


class DatabaseBackend(StoreBackend):
    """A result store in two tables. Safe from any thread; a forked child opens connections of its own.

    Args:
        url: SQLAlchemy's.
        options: Fields of `database_engine.DatabaseOptions`.

    Raises:
        ImproperlyConfigured: The URL cannot be used, or SQLAlchemy is not installed.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, payloads: Payloads | None = None,
        retries: StoreRetries | None = None,
    ) -> None:  # fmt: skip
        self._url = _checked(url)
        self._options = dict(options or {})
        self._payloads = payloads or Payloads()
        super().__init__(retries)

    def open(self) -> Database:
        """Make the engine."""
        from amqptasks.results.database_engine import Database, DatabaseOptions

        return Database(self._url, DatabaseOptions(**self._options), self._payloads)

    def prepare(self) -> None:
        """Connect and create the tables, unless the settings leave that to the first result."""
        if self._options.get("create", True):
            super().prepare()

    def as_uri(self) -> str:
        """Return the URL without its password."""
        return mask_url(f"db+{self._url}")

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether the database was away, busy, or has to be looked at anew."""
        from amqptasks.results.database_engine import may_pass

        return may_pass(error, retry)

    def is_refused(self, error: BaseException) -> bool:
        """Whether the database takes no such value, now or ever."""
        from amqptasks.results.database_engine import is_refused

        return is_refused(error)

    def reason(self, error: BaseException) -> str:
        """Say why in one line, without the statement and its values."""
        from amqptasks.results.database_engine import reason

        return reason(error)


def _checked(url: str) -> str:
    if importlib.util.find_spec("sqlalchemy") is None:
        raise ImproperlyConfigured(
            f"the result backend {mask_url(f'db+{url}')} needs SQLAlchemy: pip install 'amqptasks[sqlalchemy]'"
        )
    scheme, found, rest = url.partition("://")
    if not found or not scheme:
        raise ImproperlyConfigured(
            f"expected an SQLAlchemy URL such as sqlite:///results.db or postgresql://host/name, got: {mask_url(url)!r}"
        )
    if scheme.partition("+")[0] == "sqlite" and rest.partition("?")[0] in ("", "/", "/:memory:"):
        raise ImproperlyConfigured(
            f"the result backend db+{url} is a database in memory, which no other process sees: name a file, as in "
            "db+sqlite:///results.db, or use memory://"
        )
    return url
