"""The rows themselves, by Django's models: each thing that is done in them, once and without trying again.

A result must not wait for a transaction of the task that reports it, nor be undone with it, and a transaction that
repeats its reads would never see one come. So within a transaction a connection of our own is used, opened for that;
but not on SQLite, where it would wait for the very transaction. Otherwise it is the thread's own, which is closed again
if it was not open before and is not to be kept (``CONN_MAX_AGE``).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured as DjangoImproperlyConfigured
from django.db import connections, router, transaction
from django.db.models import Q
from django.db.utils import DataError, Error, IntegrityError, InterfaceError, InternalError, OperationalError
from django.utils.timezone import get_default_timezone

from amqptasks.exceptions import DecodeError, ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store
from amqptasks.results.record import ResultRecord
from amqptasks.states import READY_STATES, STARTED, SUCCESS
from amqptasks.wire.serializers import by_name

__all__ = ["Rows", "is_refused", "may_pass"]

#: Labels of the apps that may have the tables, the one to prefer first.
_APPS: Final = ("amqptasks", "django_celery_results")
#: Rows that one statement deletes at most: databases bound the parameters of a statement.
_CHUNK: Final = 500
_BINARY: Final = "binary"
_WORKER_LENGTH: Final = 100

#: Fields of a record that have columns, or are the row's own: in ``meta`` they would hide what the columns say.
_COLUMNS: Final = frozenset(
    ("task_id", "task_name", "task_args", "task_kwargs", "status", "result", "date_done", "traceback", "meta", "worker",
     "args", "kwargs", "name", "periodic_task_name", "children", "extra")
)  # fmt: skip

#: Databases whose connections a child must not take over from its parent.
_aliases: set[str] = set()
#: What a child got from its parent. Held for ever: a finalizer would talk to the parent's server.
_inherited: list[Any] = []


class Rows(Store):
    """Two tables. Safe from any thread.

    Raises:
        ImproperlyConfigured: This is no Django project, it is not set up, or neither app is installed.
    """

    def __init__(self, payloads: Payloads, expires_s: float | None, serializer: str) -> None:
        self._payloads = payloads
        self._expires_s = expires_s
        kind = by_name(serializer)
        self._content = {
            "content_type": kind.content_type,
            "content_encoding": kind.content_encoding if payloads.is_text else _BINARY,
        }
        self._tasks, self._groups = _models()

    def set_up(self) -> None:
        """See whether the tables are there.

        Raises:
            ImproperlyConfigured: They are not.
        """
        with self._at(router.db_for_write(self._tasks)) as alias:
            there = connections[alias].introspection.table_names()
        for model in (self._tasks, self._groups):
            if model._meta.db_table not in there:
                raise ImproperlyConfigured(
                    f"the table {model._meta.db_table} of the result backend django-db is missing: run "
                    f"'manage.py migrate {model._meta.app_label}'"
                )

    # -- results

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless the row that is there says more."""
        undecided = ~Q(status=SUCCESS) if record.is_final else ~Q(status__in=sorted(READY_STATES))
        self._put(self._tasks, {"task_id": record.task_id}, self._of_record(record), undecided)

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks; of those that are not known, none."""
        found: list[Any] = []
        with self._at(router.db_for_read(self._tasks)) as alias:
            for start in range(0, len(ids), _CHUNK):
                rows = self._tasks._base_manager.using(alias).filter(task_id__in=ids[start : start + _CHUNK])
                found += rows.filter(status__in=sorted(READY_STATES)) if only_final else rows
        return [self._to_record(row) for row in found]

    def delete(self, task_id: str) -> None:
        """Delete the row of a task."""
        self._delete(self._tasks, task_id=task_id)

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple, instead of any that was kept before."""
        row = {**self._content, "result": self._dumps(plain), "date_done": _column(_now())}
        self._put(self._groups, {"group_id": group_id}, row, Q())

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        with self._at(router.db_for_read(self._groups)) as alias:
            row = self._groups._base_manager.using(alias).filter(group_id=group_id).first()
        return None if row is None or row.result is None else self._loads(row, row.result)

    def delete_group(self, group_id: str) -> None:
        """Delete the row of a group."""
        self._delete(self._groups, group_id=group_id)

    # -- both

    def delete_expired(self, most: int) -> int:
        """Delete up to so many rows of each table that have expired; return how many of both."""
        if not self._expires_s:
            return 0
        before = _column(_now() - timedelta(seconds=self._expires_s))
        deleted = 0
        for model in (self._tasks, self._groups):
            with self._at(router.db_for_write(model)) as alias:
                rows = model._base_manager.using(alias)
                expired = list(rows.filter(date_done__lt=before).values_list("pk", flat=True)[:most])
                for start in range(0, len(expired), _CHUNK):
                    deleted += rows.filter(pk__in=expired[start : start + _CHUNK]).delete()[0]
        return deleted

    def _put(self, model: Any, key: dict[str, str], row: dict[str, Any], condition: Q) -> None:
        with self._at(router.db_for_write(model)) as alias:
            known = model._base_manager.using(alias).filter(**key)
            # Each statement decides by itself, so no lock is needed between them.
            if known.filter(condition).update(**row) or known.exists():
                return
            try:
                with transaction.atomic(using=alias):
                    model(**key, **row).save(using=alias, force_insert=True)
            except IntegrityError:
                # Another process was quicker.
                known.filter(condition).update(**row)

    def _delete(self, model: Any, **key: str) -> None:
        with self._at(router.db_for_write(model)) as alias:
            model._base_manager.using(alias).filter(**key).delete()

    # -- columns

    def _of_record(self, record: ResultRecord) -> dict[str, Any]:
        extra = record.extra
        row: dict[str, Any] = {
            **self._content,
            "status": record.status,
            "result": self._dumps(record.result),
            "traceback": _text(record.traceback, None),
            "meta": self._dumps(_meta(record)),
            "task_name": _text(extra.get("name")),
            "task_args": self._dumps(extra["args"]) if "args" in extra else None,
            "task_kwargs": self._dumps(extra["kwargs"]) if "kwargs" in extra else None,
            "worker": _text(extra.get("worker"), _WORKER_LENGTH),
            "periodic_task_name": _text(extra.get("periodic_task_name")),
            "date_done": _column(_moment(record)),
        }
        if record.status == STARTED:
            row["date_started"] = _column(_now())
        return row

    def _to_record(self, row: Any) -> ResultRecord:
        meta = None if row.meta is None else self._loads(row, row.meta)
        meta = dict(meta) if isinstance(meta, Mapping) else {}
        more = meta.pop("extra", None)
        plain: dict[str, Any] = {"children": None, **meta, **(more if isinstance(more, Mapping) else {})}
        plain |= {
            "task_id": row.task_id,
            "status": row.status,
            "result": None if row.result is None else self._loads(row, row.result),
            "traceback": row.traceback,
            "date_done": _read(row.date_done) if row.status in READY_STATES else None,
        }
        for key, value in (
            ("name", row.task_name), ("worker", row.worker), ("periodic_task_name", row.periodic_task_name),
            ("args", self._described(row, row.task_args)), ("kwargs", self._described(row, row.task_kwargs)),
        ):  # fmt: skip
            if value is not None:
                plain[key] = value
        return ResultRecord.from_plain(plain)

    def _described(self, row: Any, data: str | None) -> Any:
        try:
            return None if data is None else self._loads(row, data)
        except DecodeError:
            # Versions of django-celery-results have written plain text there.
            return data

    def _dumps(self, value: Any) -> str:
        data = self._payloads.dumps(value)
        return (data if self._payloads.is_text else base64.b64encode(data)).decode("utf-8")

    def _loads(self, row: Any, data: str) -> Any:
        if row.content_encoding != _BINARY:
            return self._payloads.loads(data)
        try:
            return self._payloads.loads(base64.b64decode(data, validate=True))
        except binascii.Error as error:
            raise DecodeError(f"expected a binary result to be written in base64: {error}") from error

    # -- connections

    @contextmanager
    def _at(self, alias: str) -> Iterator[str]:
        """Give the alias of a connection that a transaction of the caller's has no part in, where there can be one."""
        _aliases.add(alias)
        connection = connections[alias]
        in_transaction = connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)
        if in_transaction and connection.vendor != "sqlite":
            with _apart(alias) as name:
                yield name
            return
        was_open = connection.connection is not None
        try:
            yield alias
        except Error:
            if not in_transaction and connection.connection is not None and not connection.is_usable():
                connection.close()
            raise
        finally:
            if not was_open and not in_transaction:
                connection.close_if_unusable_or_obsolete()


@contextmanager
def _apart(alias: str) -> Iterator[str]:
    name = f"amqptasks-results-{alias}"
    own = connections.create_connection(alias)
    connections[name] = own
    try:
        yield name
    finally:
        del connections[name]
        own.close()


def _models() -> tuple[Any, Any]:
    try:
        ready = apps.ready and settings.configured
        label = next((each for each in _APPS if ready and each in apps.app_configs), None)
    except DjangoImproperlyConfigured as error:
        raise ImproperlyConfigured(f"the result backend django-db needs a Django project: {error}") from error
    if not ready:
        raise ImproperlyConfigured(
            "the result backend django-db needs a Django project that is set up: set DJANGO_SETTINGS_MODULE and call "
            "django.setup() before results are read or stored"
        )
    if label is None:
        raise ImproperlyConfigured(
            "the result backend django-db needs its tables: put 'amqptasks.contrib.django' into INSTALLED_APPS and run "
            "'manage.py migrate'"
        )
    return apps.get_model(label, "TaskResult"), apps.get_model(label, "GroupResult")


def _meta(record: ResultRecord) -> dict[str, Any]:
    meta: dict[str, Any] = {"children": record.children}
    if record.group_id:
        meta["group_id"] = record.group_id
    if record.parent_id:
        meta["parent_id"] = record.parent_id
    hidden: dict[str, Any] = {}
    for key, value in record.extra.items():
        if key in ("name", "args", "kwargs", "worker", "periodic_task_name"):
            continue
        (hidden if key in _COLUMNS or key in meta else meta)[key] = value
    if hidden:
        meta["extra"] = hidden
    return meta


# ---- Values


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _moment(record: ResultRecord) -> datetime:
    """Return when a record was finished; now, if it is not, or does not say."""
    try:
        moment = datetime.fromisoformat((record.date_done or "").replace("Z", "+00:00"))
    except ValueError:
        return _now()
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _column(moment: datetime) -> datetime:
    """Return a moment as the project keeps them."""
    return moment if settings.USE_TZ else moment.astimezone(get_default_timezone()).replace(tzinfo=None)


def _read(moment: datetime) -> datetime:
    given = moment if moment.tzinfo else moment.replace(tzinfo=get_default_timezone())
    return given.astimezone(timezone.utc)


def _text(value: Any, length: int | None = 255) -> str | None:
    """Return text as a database takes it: without NULs and halves of characters, and no longer than its column."""
    if not isinstance(value, str):
        return None
    text = value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    return text[:length]


# ---- Errors


def may_pass(error: Exception) -> bool:
    """Whether trying again may help."""
    return isinstance(error, (OperationalError, InterfaceError, InternalError))


def is_refused(error: BaseException) -> bool:
    """Whether the database takes no such value, now or ever."""
    return isinstance(error, (DataError, ValueError, OverflowError))


# ---- Forks


def _forget() -> None:
    for connection in connections.all(initialized_only=True):
        in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
        if connection.alias in _aliases and not in_memory:
            pools = getattr(connection, "_connection_pools", {})
            _inherited.append((connection, pools.pop(connection.alias, None)))
            del connections[connection.alias]


os.register_at_fork(after_in_child=_forget)
