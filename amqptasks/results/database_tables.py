"""The tables of the database store, and records as their rows: column for column what Celery 5.7 makes and writes, so
that both can share a database.

Whatever a record holds that Celery has no column for travels in ``stamps``, a map in which Celery's reader looks for
two keys and passes over all others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from amqptasks.exceptions import DecodeError
from amqptasks.results.payload import Payloads
from amqptasks.results.record import ResultRecord
from amqptasks.states import READY_STATES, SUCCESS

__all__ = ["Put", "Rows", "Tables", "make_tables", "put_statements", "store_statements"]

TASKS_NAME: Final = "celery_taskmeta"
GROUPS_NAME: Final = "celery_tasksetmeta"
#: Length of the columns that hold names, in characters.
NAME_LENGTH: Final = 155

# Columns that `result_extended` fills. Arguments are serialized, all others stand as they are.
_PLAIN_EXTRAS: Final = ("name", "worker", "retries", "queue")
_SERIALIZED_EXTRAS: Final = ("args", "kwargs")
_EXTRAS: Final = frozenset(_PLAIN_EXTRAS + _SERIALIZED_EXTRAS)


@dataclass(frozen=True, slots=True)
class Tables:
    """Both tables, and the collection that creates them."""

    tasks: sa.Table
    groups: sa.Table
    metadata: sa.MetaData


def make_tables(names: Mapping[str, str] | None = None, schemas: Mapping[str, str] | None = None) -> Tables:
    """Describe the tables. ``names`` and ``schemas`` may rename and place each, under "task" and "group"."""
    names, schemas = names or {}, schemas or {}
    metadata = sa.MetaData()
    tasks = sa.Table(
        names.get("task") or TASKS_NAME, metadata,
        _id_column("task_id_sequence", schemas.get("task")),
        sa.Column("task_id", sa.String(NAME_LENGTH), unique=True),
        sa.Column("status", sa.String(50)),
        sa.Column("result", sa.LargeBinary),
        sa.Column("date_done", sa.DateTime, index=True),
        sa.Column("traceback", sa.Text),
        sa.Column("children", sa.LargeBinary),
        sa.Column("name", sa.String(NAME_LENGTH)),
        sa.Column("args", sa.LargeBinary),
        sa.Column("kwargs", sa.LargeBinary),
        sa.Column("worker", sa.String(NAME_LENGTH)),
        sa.Column("retries", sa.Integer),
        sa.Column("queue", sa.String(NAME_LENGTH)),
        sa.Column("stamps", sa.LargeBinary),
        schema=schemas.get("task"), sqlite_autoincrement=True,
    )  # fmt: skip
    groups = sa.Table(
        names.get("group") or GROUPS_NAME, metadata,
        _id_column("taskset_id_sequence", schemas.get("group")),
        sa.Column("taskset_id", sa.String(NAME_LENGTH), unique=True),
        sa.Column("result", sa.LargeBinary),
        sa.Column("date_done", sa.DateTime, index=True),
        schema=schemas.get("group"), sqlite_autoincrement=True,
    )  # fmt: skip
    return Tables(tasks, groups, metadata)


def _id_column(sequence: str, schema: str | None) -> sa.Column[int]:
    kind = sa.Integer().with_variant(sa.BigInteger, "mssql")
    return sa.Column("id", kind, sa.Sequence(sequence, schema=schema), primary_key=True, autoincrement=True)


# ---- Statements

_UPSERTS: Final[dict[str, Callable[[sa.Table], Any]]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def _may_be_replaced(tasks: sa.Table, by_final: bool) -> sa.ColumnElement[bool]:
    """Return `record.supersedes` as a condition on the row that is there."""
    status = tasks.c.status
    if by_final:
        return sa.or_(status.is_(None), status != SUCCESS)
    return sa.or_(status.is_(None), status.not_in(sorted(READY_STATES)))


@dataclass(frozen=True, slots=True)
class Put:
    """Statements that together put a row in place, for any values: made once, for building them costs more than that.

    Attributes:
        one: Inserts or updates at once; None for a database of which no such statement is known.
        update, insert: Otherwise: update; insert if that found no row; update again if there was one after all. Each
            decides by itself, so no lock and no transaction is needed between them. The key of ``update`` is the
            parameter ``key``.
    """

    one: Any
    update: Any
    insert: Any


def put_statements(table: sa.Table, key: str, columns: Collection[str], dialect: str, condition: Any = None) -> Put:
    """Make what puts rows with these columns in place, if the row that is there meets the condition."""
    update = sa.update(table).where(table.c[key] == sa.bindparam("key"))
    if condition is not None:
        update = update.where(condition)
    make = _UPSERTS.get(dialect)
    if make is None:
        return Put(None, update, sa.insert(table))
    insert = make(table)
    changes = {name: insert.excluded[name] for name in columns if name != key}
    return Put(insert.on_conflict_do_update(index_elements=[table.c[key]], set_=changes, where=condition), None, None)


def store_statements(tasks: sa.Table, columns: Collection[str], is_final: bool, dialect: str) -> Put:
    """Make what stores results without ever undoing more than they may (`record.supersedes`)."""
    return put_statements(tasks, "task_id", columns, dialect, _may_be_replaced(tasks, is_final))


# ---- Rows


class Rows:
    """Turns records into rows and back, and keeps the statements that were made for such rows.

    Args:
        columns: Names of the columns that the database's table really has.
    """

    def __init__(self, payloads: Payloads, columns: frozenset[str]) -> None:
        self._payloads = payloads
        self.columns = columns
        #: Statements for these columns, by whether they are for final states.
        self.puts: dict[bool, Put] = {}
        self.queries: dict[bool, Any] = {}

    def of_record(self, record: ResultRecord) -> dict[str, Any]:
        """Make the row of a record.

        Raises:
            EncodeError: The result cannot be serialized.
        """
        dumps, extra = self._payloads.dumps, record.extra
        rest = {key: value for key, value in extra.items() if key not in _EXTRAS}
        row: dict[str, Any] = {
            "task_id": record.task_id,
            "status": record.status,
            "result": dumps(record.result),
            "date_done": _moment(record),
            "traceback": _text(record.traceback),
            "children": dumps(record.children) if record.children else None,
            "retries": extra.get("retries") if isinstance(extra.get("retries"), int) else None,
            "stamps": self._stamps(record, rest),
        }
        for key in ("name", "worker", "queue"):
            row[key] = _text(extra.get(key), NAME_LENGTH)
        for key in _SERIALIZED_EXTRAS:
            row[key] = dumps(extra[key]) if key in extra else None
        return {key: value for key, value in row.items() if key in self.columns}

    def _stamps(self, record: ResultRecord, rest: dict[str, Any]) -> bytes | None:
        stamps: dict[str, Any] = {}
        names = rest.pop("stamped_headers", None)
        if isinstance(names, (list, tuple)):
            stamps["stamped_headers"] = list(names)
            stamps["stamps"] = {name: rest.pop(name) for name in names if isinstance(name, str) and name in rest}
        if record.group_id:
            stamps["group_id"] = record.group_id
        if record.parent_id:
            stamps["parent_id"] = record.parent_id
        if rest:
            stamps["extra"] = rest
        return self._payloads.dumps(stamps) if stamps else None

    def to_record(self, row: Mapping[str, Any]) -> ResultRecord:
        """Read a row, whoever wrote it.

        Raises:
            DecodeError: It cannot be read.
        """
        loads = self._payloads.loads
        children = row.get("children")
        plain: dict[str, Any] = {key: row[key] for key in _PLAIN_EXTRAS if row.get(key) is not None}
        plain |= {key: loads(row[key]) for key in _SERIALIZED_EXTRAS if row.get(key) is not None}
        plain |= self._unstamp(row.get("stamps"))
        plain |= {
            "task_id": row["task_id"],
            "status": row["status"],
            "result": None if row["result"] is None else loads(row["result"]),
            "traceback": row["traceback"],
            # Nothing is written for no children; a table without the column cannot tell.
            "children": loads(children) if children is not None else [] if "children" in row else None,
            "date_done": None if row["date_done"] is None else row["date_done"].replace(tzinfo=timezone.utc),
        }
        return ResultRecord.from_plain(plain)

    def _unstamp(self, data: bytes | None) -> dict[str, Any]:
        if data is None:
            return {}
        try:
            stamps = self._payloads.loads(data)
        except DecodeError:
            # An ornament: the result itself is worth more.
            return {}
        if not isinstance(stamps, Mapping):
            return {}
        plain: dict[str, Any] = {}
        for part in ("extra", "stamps"):
            if isinstance(stamps.get(part), Mapping):
                plain |= {key: value for key, value in stamps[part].items() if isinstance(key, str)}
        plain |= {key: stamps[key] for key in ("stamped_headers", "group_id", "parent_id") if key in stamps}
        return plain


def _moment(record: ResultRecord) -> datetime | None:
    """Return when a record was finished, in UTC and without a zone, as the column has it."""
    if not record.is_final:
        return None
    try:
        moment = datetime.fromisoformat((record.date_done or "").replace("Z", "+00:00"))
    except ValueError:
        # Without a date it would never expire.
        moment = datetime.now(timezone.utc)
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment


def _text(value: Any, length: int | None = None) -> str | None:
    """Return text as a database takes it: without NULs and halves of characters, and no longer than its column."""
    if not isinstance(value, str):
        return None
    text = value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    return text if length is None else text[:length]
