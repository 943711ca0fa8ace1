"""The database itself: its engine, and each thing that is done in it, once and without trying again.

Everything of SQLAlchemy that `database.py` needs is here and in `database_tables.py`, which are imported with the first
use. Errors are SQLAlchemy's; `may_pass` and `reason` judge and name them.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.database_tables import Put, Rows, make_tables, put_statements, store_statements
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store
from amqptasks.results.record import ResultRecord
from amqptasks.states import READY_STATES
from amqptasks.urls import mask_url
from amqptasks.wire.reprs import printable

__all__ = ["Database", "DatabaseOptions", "is_refused", "may_pass", "reason"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Ids that one statement names at most: databases bound the parameters of a statement.
IDS_PER_STATEMENT: Final = 500
#: How often creating the tables is tried: of two processes that create one at once, one is told that it exists.
CREATE_TRIES: Final = 10
#: Drivers of PostgreSQL, the one to prefer first, for URLs that name none.
_POSTGRESQL_DRIVERS: Final = ("psycopg", "psycopg2", "pg8000")


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """What the database store takes from the settings.

    Attributes:
        engine_options: For SQLAlchemy's ``create_engine``.
        engine_callback: Called with each new engine.
        short_lived: Open a connection for each operation and close it again, instead of pooling.
        names, schemas: Of the tables, under "task" and "group".
        create: Create the tables when a worker starts; otherwise with the first result.
        expires_s: How long finished results are kept; None or 0 for ever.
        upsert: Use the database's own insert-or-update where it is known to have one.
    """

    engine_options: Mapping[str, Any] = field(default_factory=dict)
    engine_callback: Callable[[Any], Any] | None = None
    short_lived: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    schemas: Mapping[str, str] = field(default_factory=dict)
    create: bool = True
    expires_s: float | None = 86_400.0
    upsert: bool = True


class Database(Store):
    """One database and the two tables in it. Safe from any thread, useless after a fork.

    Args:
        url: SQLAlchemy's.

    Raises:
        ImproperlyConfigured: The driver is missing, or SQLAlchemy refuses the URL or the options.
    """

    def __init__(self, url: str, options: DatabaseOptions, payloads: Payloads) -> None:
        self._options = options
        self._payloads = payloads
        self._tables = make_tables(options.names, options.schemas)
        self._lock = threading.Lock()
        self._known_rows: Rows | None = None
        self._is_set_up = False
        self._is_disposed = False
        self._engine = _make_engine(url, options)
        self._dialect = self._engine.dialect.name if options.upsert else ""

    def dispose(self) -> None:
        """Close the connections: those in use as soon as they are not."""
        self._is_disposed = True
        self._engine.dispose()

    @contextmanager
    def _connect(self) -> Iterator[sa.Connection]:
        # Disposing forgets the pool, and with it the connections that come back to it later.
        pool = self._engine.pool
        try:
            with self._engine.connect() as connection:
                yield connection
        finally:
            if self._is_disposed:
                pool.dispose()

    def look_again(self) -> None:
        """Forget what is known of the tables: they may have been dropped, or the database replaced."""
        self._is_set_up = False
        self._known_rows = None

    # -- results

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless the row that is there says more (`record.supersedes`)."""
        rows = self.set_up()
        put = rows.puts.get(record.is_final)
        if put is None:
            put = store_statements(self._tables.tasks, rows.columns, record.is_final, self._dialect)
            rows.puts[record.is_final] = put
        self._put(put, rows.of_record(record), record.task_id)

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks; of those that are not known, none."""
        rows = self._rows()
        if rows is None:
            return []
        query = rows.queries.get(only_final)
        if query is None:
            table = self._tables.tasks
            query = sa.select(*(table.c[name] for name in sorted(rows.columns)))
            query = query.where(table.c.task_id.in_(sa.bindparam("ids", expanding=True)))
            if only_final:
                query = query.where(table.c.status.in_(sorted(READY_STATES)))
            rows.queries[only_final] = query
        found: list[dict[str, Any]] = []
        with self._connect() as connection:
            for chunk in _chunks(ids):
                found += [dict(row) for row in connection.execute(query, {"ids": chunk}).mappings()]
        return [rows.to_record(row) for row in found]

    def delete(self, task_id: str) -> None:
        """Drop the row of a task."""
        self._delete(self._tables.tasks, "task_id", task_id)

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple, instead of any that was kept before."""
        self.set_up()
        table = self._tables.groups
        row = {"taskset_id": group_id, "result": self._payloads.dumps(plain), "date_done": _now()}
        self._put(put_statements(table, "taskset_id", row, self._dialect), row, group_id)

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        if self._rows() is None:
            return None
        table = self._tables.groups
        with self._connect() as connection:
            data = connection.execute(sa.select(table.c.result).where(table.c.taskset_id == group_id)).scalar()
        return None if data is None else self._payloads.loads(data)

    def delete_group(self, group_id: str) -> None:
        """Drop the row of a group."""
        self._delete(self._tables.groups, "taskset_id", group_id)

    # -- both

    def delete_expired(self, most: int) -> int:
        """Drop up to so many rows of each table that have expired; return how many of both."""
        if not self._options.expires_s or self._rows() is None:
            return 0
        before = _now() - timedelta(seconds=self._options.expires_s)
        deleted = 0
        with self._connect() as connection:
            for table in (self._tables.tasks, self._tables.groups):
                # Ids first: not every database can limit a deletion.
                expired = sa.select(table.c.id).where(table.c.date_done < before).limit(most)
                for chunk in _chunks([row.id for row in connection.execute(expired)]):
                    deleted += connection.execute(sa.delete(table).where(table.c.id.in_(chunk))).rowcount
        return deleted

    def _delete(self, table: sa.Table, key: str, value: str) -> None:
        if self._rows() is None:
            return
        with self._connect() as connection:
            connection.execute(sa.delete(table).where(table.c[key] == value))

    def _put(self, put: Put, row: dict[str, Any], key: str) -> None:
        with self._connect() as connection:
            if put.one is not None:
                connection.execute(put.one, row)
            elif not connection.execute(put.update, row | {"key": key}).rowcount:
                try:
                    connection.execute(put.insert, row)
                except sa.exc.IntegrityError:
                    # It is there: another process was quicker, or the update left it alone. It decides again.
                    connection.execute(put.update, row | {"key": key})

    # -- the tables

    def set_up(self) -> Rows:
        """Create the tables unless they are there, and add the columns that Celery 5.7 added."""
        rows = self._known_rows
        if rows is not None and self._is_set_up:
            return rows
        with self._lock:
            if not self._is_set_up:
                with self._connect() as connection:
                    self._complete(connection)
                # Whoever only read before knows the table as it was.
                self._known_rows, self._is_set_up = None, True
        rows = self._rows()
        if rows is None:
            raise sa.exc.NoSuchTableError(self._tables.tasks.name)
        return rows

    def _complete(self, connection: sa.Connection) -> None:
        _create(connection, self._tables.metadata)
        for table in (self._tables.tasks, self._tables.groups):
            found = _columns(connection, table)
            for column in table.columns:
                if column.name not in found:
                    _add_column(connection, table, column)

    def _rows(self) -> Rows | None:
        """Return how rows are written and read; None when there are no tables, so that nothing was ever kept."""
        rows = self._known_rows
        if rows is None:
            table = self._tables.tasks
            try:
                with self._connect() as connection:
                    found = _columns(connection, table)
            except sa.exc.NoSuchTableError:
                return None
            columns = frozenset(column.name for column in table.columns if column.name in found and column.name != "id")
            rows = self._known_rows = Rows(self._payloads, columns)
        return rows


def _make_engine(url: str, options: DatabaseOptions) -> sa.Engine:
    given: dict[str, Any] = {"hide_parameters": True, **options.engine_options}
    if options.short_lived:
        given = {key: value for key, value in given.items() if not key.startswith(("pool_", "max_overflow"))}
        given["poolclass"] = sa.NullPool
    name = mask_url(f"db+{url}")
    try:
        engine = sa.create_engine(_with_driver(url), **given)
    except ModuleNotFoundError as error:
        raise ImproperlyConfigured(
            f"the result backend {name} needs a driver that is not installed: {error}. Try: pip install {error.name}"
        ) from error
    except (TypeError, sa.exc.ArgumentError) as error:
        raise ImproperlyConfigured(
            f"SQLAlchemy refuses the result backend {name} or its database_engine_options: {error}"
        ) from error
    # Each statement stands for itself: without a transaction around it there is less to send, and to undo.
    engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    if options.engine_callback is not None:
        options.engine_callback(engine)
    return engine


def _with_driver(url: str) -> str:
    """Name a driver that is installed, where the URL leaves it to SQLAlchemy and that might take another."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        return url
    driver = next((each for each in _POSTGRESQL_DRIVERS if importlib.util.find_spec(each)), None)
    return f"postgresql+{driver}://{rest}" if driver else f"postgresql://{rest}"


def _columns(connection: sa.Connection, table: sa.Table) -> set[str]:
    return {column["name"] for column in sa.inspect(connection).get_columns(table.name, schema=table.schema)}


def _create(connection: sa.Connection, metadata: sa.MetaData) -> None:
    for left in reversed(range(CREATE_TRIES)):
        try:
            metadata.create_all(connection)
            return
        except sa.exc.DatabaseError:
            # Looking and creating are two steps, and another process may have come between.
            if not left:
                raise
            time.sleep(random.uniform(0.01, 0.1))


def _add_column(connection: sa.Connection, table: sa.Table, column: sa.Column[Any]) -> None:
    preparer = connection.dialect.identifier_preparer
    kind = column.type.compile(connection.dialect)
    statement = f"ALTER TABLE {preparer.format_table(table)} ADD COLUMN {preparer.format_column(column)} {kind}"
    try:
        connection.execute(sa.text(statement))
    except sa.exc.DatabaseError as error:
        logger.warning(
            "The table %s has no column %r, and adding it failed; what it holds will not be kept. Have it added by "
            "someone who may: %s (%s)", table.name, column.name, statement, reason(error),
        )  # fmt: skip


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + IDS_PER_STATEMENT] for start in range(0, len(items), IDS_PER_STATEMENT)]


def _now() -> datetime:
    """Return the moment as the columns have it: UTC, without a zone."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def may_pass(error: Exception, retry: int) -> bool:
    """Whether trying again may help: the database was away, busy, or has to be looked at anew."""
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, (sa.exc.ProgrammingError, sa.exc.NoSuchTableError)):
        # Perhaps a table or a column that has gone: the second try has looked again.
        return retry == 0
    return isinstance(
        error, (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError)
    )


def is_refused(error: BaseException) -> bool:
    """Whether the database takes no such value, now or ever."""
    cause = getattr(error, "orig", None) or error
    return isinstance(error, sa.exc.DataError) or isinstance(cause, (UnicodeError, OverflowError))


def reason(error: BaseException) -> str:
    """Say why in one line, without the statement and its values."""
    return printable(" ".join(str(getattr(error, "orig", None) or error).split()), 300)
