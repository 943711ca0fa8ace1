"""The collections themselves: each thing that is done in them, once and without trying again, and records as their
documents: field for field what Celery 5.7 writes.

What a record holds and Celery has no field for, or BSON no type, travels in ``extra``. ``expires_at`` is ours too: the
server deletes a document when that moment has come. Errors are pymongo's; `may_pass` judges them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pymongo
import pymongo.errors

from amqptasks.exceptions import DecodeError, ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store
from amqptasks.results.record import ResultRecord
from amqptasks.states import READY_STATES, SUCCESS
from amqptasks.wire.reprs import printable

__all__ = ["Documents", "Place", "is_refused", "may_pass"]

logger = logging.getLogger(__name__)

#: Ids that one query names at most.
IDS_PER_QUERY: Final = 1000
#: Rights that are being changed, a disk that is full, a server that stops: of errors that a server states, these pass.
_MAY_PASS: Final = frozenset((6, 7, 13, 18, 89, 91, 189, 262, 8000, 9001, 10107, 11600, 11602, 13435, 13436, 14031))
_NO_RIGHT: Final = 13
_OTHER_INDEX: Final = (85, 86)
#: The document is larger than the server takes.
_TOO_LARGE: Final = (10334, 17419, 17420)
_INT64: Final = 1 << 63
#: Deeper arguments are serialized: servers take a hundred levels.
_LEVELS: Final = 40

# Fields of ours; all others that a record knows nothing of are stamps, as Celery writes them.
_BOOKKEEPING: Final = frozenset(("_id", "date_done_us", "expires_at", "extra"))
_FIELDS: Final = ("status", "traceback", "children", "group_id", "parent_id")
_RECORD: Final = frozenset((*_FIELDS, "result", "date_done", "task_id"))
#: What ``result_extended`` adds, as values of the document.
_EXTRAS: Final = frozenset(("name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where results are kept.

    Attributes:
        servers: A URL, or names of hosts.
        options: For pymongo's client.
        database: Unless it is empty it wins over the URL's.
    """

    servers: str | list[str]
    options: Mapping[str, Any]
    database: str = ""
    taskmeta_collection: str = "celery_taskmeta"
    groupmeta_collection: str = "celery_groupmeta"


class Documents(Store):
    """Two collections of one database. Safe from any thread, useless after a fork.

    Args:
        name: Names the store in errors.

    Raises:
        ImproperlyConfigured: pymongo refuses the URL or an option.
    """

    def __init__(self, place: Place, payloads: Payloads, expires_s: float | None, name: str) -> None:
        self._payloads = payloads
        self._expires_s = expires_s
        self._lock = threading.Lock()
        self._is_set_up = False
        try:
            self._client: Any = pymongo.MongoClient(place.servers, **place.options)
            database = self._client.get_default_database(place.database or "celery")
            if place.database:
                database = self._client[place.database]
            self._tasks = database[place.taskmeta_collection]
            self._groups = database[place.groupmeta_collection]
        except (pymongo.errors.ConfigurationError, pymongo.errors.InvalidURI, pymongo.errors.InvalidName, TypeError,
                ValueError) as error:  # fmt: skip
            raise ImproperlyConfigured(
                f"pymongo refuses the result backend {name} or its mongodb_backend_settings: {error}"
            ) from error

    def dispose(self) -> None:
        """Close the connections."""
        self._client.close()

    def set_up(self) -> None:
        """Make the indexes, unless they are there."""
        with self._lock:
            if self._is_set_up:
                return
            for collection in (self._tasks, self._groups):
                # Celery's, for its clean-up and ours; and the one by which the server itself deletes.
                self._make_index(collection, "date_done")
                self._make_index(collection, "expires_at", expireAfterSeconds=0)
            self._is_set_up = True

    def _make_index(self, collection: Any, field: str, **options: Any) -> None:
        try:
            collection.create_index(field, **options)
        except pymongo.errors.OperationFailure as error:
            if error.code != _NO_RIGHT and error.code not in _OTHER_INDEX:
                raise
            logger.warning(
                "Cannot make the index %r of the collection %s: %s. Have it made by someone who may; without it, old "
                "results are found slowly, or not deleted at all", field, collection.name, printable(str(error), 300),
            )  # fmt: skip

    # -- results

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless the document that is there says more."""
        self.set_up()
        document = _document(record, self._payloads)
        self._expire(document)
        condition: Any = {"$ne": SUCCESS} if record.is_final else {"$nin": sorted(READY_STATES)}
        for _ in range(2):
            try:
                self._tasks.replace_one({"_id": record.task_id, "status": condition}, document, upsert=True)
            except pymongo.errors.DuplicateKeyError:
                # It says more, or somebody has just put it there: the second time tells.
                continue
            return

    def _expire(self, document: dict[str, Any]) -> None:
        if self._expires_s:
            document["expires_at"] = _now() + timedelta(seconds=self._expires_s)

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks; of those that are not known, none."""
        found: list[ResultRecord] = []
        for start in range(0, len(ids), IDS_PER_QUERY):
            query: dict[str, Any] = {"_id": {"$in": list(ids[start : start + IDS_PER_QUERY])}}
            if only_final:
                query["status"] = {"$in": sorted(READY_STATES)}
            found += [_record(each, self._payloads) for each in self._tasks.find(query)]
        return found

    def delete(self, task_id: str) -> None:
        """Drop the document of a task."""
        self._tasks.delete_one({"_id": task_id})

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group: its ids, which are all that Celery knows of it, and its whole tuple."""
        self.set_up()
        document: dict[str, Any] = {
            "_id": group_id,
            "result": _payload(_ids(plain), self._payloads),
            "date_done": _now(),
            "tuple": _payload(plain, self._payloads),
        }
        self._expire(document)
        self._groups.replace_one({"_id": group_id}, document, upsert=True)

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        found = self._groups.find_one({"_id": group_id})
        if found is None:
            return None
        if found.get("tuple") is not None:
            return self._payloads.loads(found["tuple"])
        ids = self._payloads.loads(found["result"])
        if not isinstance(ids, list):
            raise DecodeError(f"expected a saved group to be a list of ids, got: {type(ids).__name__}")
        return [[group_id, None], [[[each, None], None] for each in ids]]

    def delete_group(self, group_id: str) -> None:
        """Drop the document of a group."""
        self._groups.delete_one({"_id": group_id})

    def delete_expired(self, most: int) -> int:
        """Drop what has expired: of ours the server has dropped most, of Celery's none."""
        if not self._expires_s:
            return 0
        old = {"date_done": {"$lt": _now() - timedelta(seconds=self._expires_s)}}
        return sum(collection.delete_many(old).deleted_count for collection in (self._tasks, self._groups))


# ---- Documents


def _document(record: ResultRecord, payloads: Payloads) -> dict[str, Any]:
    """Make the document of a record.

    Raises:
        EncodeError: The result cannot be serialized.
    """
    done = _moment(record)
    document: dict[str, Any] = {
        "_id": record.task_id,
        "status": record.status,
        "result": _payload(record.result, payloads),
        "traceback": _text(record.traceback),
        "children": record.children,
        "date_done": done,
    }
    if done is not None and done.microsecond % 1000:
        # Its moments are milliseconds.
        document["date_done_us"] = done.microsecond % 1000
    if record.group_id:
        document["group_id"] = record.group_id
    if record.parent_id:
        document["parent_id"] = record.parent_id
    rest: dict[str, Any] = {}
    stamps = record.extra.get("stamped_headers")
    fields = _EXTRAS.union(stamps if _is_bson(stamps) and isinstance(stamps, list) else ())
    for key, value in record.extra.items():
        fits = key in fields and _is_name(key) and key not in _BOOKKEEPING | _RECORD and _is_bson(value)
        (document if fits else rest)[key] = value
    if not _is_bson(document["children"]):
        rest["children"] = document.pop("children")
        document["children"] = None
    if rest:
        document["extra"] = _payload(rest, payloads)
    return document


def _record(document: Mapping[str, Any], payloads: Payloads) -> ResultRecord:
    """Read a document, whoever wrote it.

    Raises:
        DecodeError: It cannot be read.
    """
    plain = {
        key: value
        for key, value in document.items()
        if key not in _BOOKKEEPING and (key not in _EXTRAS or value is not None)
    }
    result, done = document.get("result"), document.get("date_done")
    plain["task_id"] = document["_id"]
    plain["result"] = payloads.loads(result) if isinstance(result, (str, bytes)) else result
    plain["date_done"] = None
    if isinstance(done, datetime):
        fine = document.get("date_done_us")
        done = done if done.tzinfo else done.replace(tzinfo=timezone.utc)
        plain["date_done"] = done + timedelta(microseconds=fine if isinstance(fine, int) else 0)
    rest = document.get("extra")
    if isinstance(rest, (str, bytes)):
        more = payloads.loads(rest)
        if isinstance(more, Mapping):
            plain.update(more)
    return ResultRecord.from_plain(plain)


def _payload(value: Any, payloads: Payloads) -> str | bytes:
    data = payloads.dumps(value)
    return data.decode("utf-8") if payloads.is_text else data


def _ids(plain: Any) -> list[str]:
    members = plain[1] if isinstance(plain, (list, tuple)) and len(plain) > 1 else None
    found = []
    for each in members or ():
        while isinstance(each, (list, tuple)) and each:
            each = each[0]
        found.append(str(each))
    return found


def _moment(record: ResultRecord) -> datetime | None:
    if not record.is_final:
        return None
    try:
        moment = datetime.fromisoformat((record.date_done or "").replace("Z", "+00:00"))
    except ValueError:
        # Without a date it would never expire.
        return _now()
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _text(value: str | None) -> str | None:
    return None if value is None else value.encode("utf-8", "replace").decode("utf-8")


def _is_name(key: Any) -> bool:
    """Whether something can name a field."""
    return isinstance(key, str) and bool(key) and key[0] != "$" and "." not in key and "\0" not in key and _is_bson(key)


def _is_bson(value: Any, levels: int = _LEVELS) -> bool:
    """Whether a value comes back from the server as it is."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if value is None or isinstance(value, (bool, float)):
        return True
    if isinstance(value, int):
        return -_INT64 <= value < _INT64
    if levels and isinstance(value, list):
        return all(_is_bson(each, levels - 1) for each in value)
    if levels and isinstance(value, dict):
        return all(_is_name(key) and _is_bson(each, levels - 1) for key, each in value.items())
    return False


# ---- Errors


def may_pass(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, (pymongo.errors.ConnectionFailure, pymongo.errors.ExecutionTimeout)):
        return True
    return isinstance(error, pymongo.errors.OperationFailure) and error.code in _MAY_PASS


def is_refused(error: BaseException) -> bool:
    """Whether the server takes no such value, now or ever."""
    if isinstance(error, pymongo.errors.OperationFailure):
        return error.code in _TOO_LARGE
    # Of what is encoded: too large, no text, too large a number.
    return isinstance(error, (pymongo.errors.DocumentTooLarge, UnicodeError, OverflowError)) or (
        type(error).__module__.partition(".")[0] == "bson"
    )
