"""Results as files of a directory, one file a result: ``file:///var/lib/shop/results``.

The directory must be one that every worker and every caller sees, such as a network share. Names and contents are
Celery's. A file is written beside its place, synced, and renamed into it, so that nobody ever reads half of one; who
replaces a file holds a lock, so that a success is never overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from amqptasks.exceptions import ContentDisallowed, DecodeError, ImproperlyConfigured
from amqptasks.results.keyvalue import Keys, dump_group, dump_record, load_group, load_record
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store, StoreBackend
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.results.registry import BackendApp
from amqptasks.results.retries import StoreRetries

__all__ = ["FileBackend", "Files", "from_app"]

#: Names that are neither results nor groups begin so: they sort apart, and Celery's clean-up passes over them.
_OURS: Final = ".amqptasks-"
#: Files with the same remainder share a lock.
_LOCKS: Final = 16
#: The longest name that common file systems take, in bytes.
_NAME_BYTES: Final = 255
#: Celery writes into the file itself: what cannot be read may be half of something for so long. Seconds.
_HALF_WRITTEN_S: Final = 5.0
#: What a writer leaves behind that is killed goes after so long, seconds.
_ABANDONED_S: Final = 3600.0
_NEVER: Final = (errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG, errno.EILSEQ)


def from_app(url: str, app: BackendApp) -> FileBackend:
    """Make the backend that the settings ask for."""
    conf = app.conf
    payloads = Payloads.of(conf, app.limits())
    return FileBackend(url, payloads, StoreRetries.of(conf), conf.result_expires, Keys.of(conf))


class FileBackend(StoreBackend):
    """A result store in a directory. Safe from any thread, and in forked children.

    Args:
        url: ``file://`` and the path of the directory, taken as it is.
        expires_s: How long results are kept after they were written; None or 0 for ever.

    Raises:
        ImproperlyConfigured: The URL names no directory.
    """

    def __init__(
        self, url: str, payloads: Payloads | None = None, retries: StoreRetries | None = None,
        expires_s: float | None = 86_400.0, keys: Keys | None = None,
    ) -> None:  # fmt: skip
        self._path = _directory(url)
        self._payloads = payloads or Payloads()
        self._expires_s = expires_s
        self._keys = keys or Keys()
        super().__init__(retries)

    def open(self) -> Files:
        """Make the store."""
        return Files(self._path, self._payloads, self._keys, self._expires_s)

    def as_uri(self) -> str:
        """Return the URL."""
        return f"file://{self._path}"

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether the disk was full, or the network share away."""
        return isinstance(error, OSError) and error.errno not in _NEVER

    def is_refused(self, error: BaseException) -> bool:
        """Whether no file takes such a value."""
        return isinstance(error, OSError) and error.errno in _NEVER


def _directory(url: str) -> str:
    scheme, found, path = url.partition("://")
    path = path.removeprefix("localhost") if path.startswith("localhost/") else path
    if scheme not in ("file", "filesystem") or not found or not path.strip("/"):
        raise ImproperlyConfigured(
            "expected the result backend to name a directory that workers and callers share, as in "
            f"file:///var/lib/shop/results, got: {url!r}"
        )
    return os.path.abspath(path)


class Files(Store):
    """The directory, and each thing that is done in it."""

    def __init__(self, path: str, payloads: Payloads, keys: Keys, expires_s: float | None) -> None:
        self._path = path
        self._payloads = payloads
        self._keys = keys
        self._expires_s = expires_s
        self._is_set_up = False

    def set_up(self) -> None:
        """Make the directory, if that is all that is missing, and see once whether it can be written.

        Raises:
            ImproperlyConfigured: It cannot.
        """
        if self._is_set_up:
            return
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._path)
            os.unlink(self._write_beside(b"test"))
        except (PermissionError, NotADirectoryError, FileNotFoundError, IsADirectoryError) as error:
            raise ImproperlyConfigured(
                f"expected the result backend file://{self._path} to be a directory that can be written, got: {error}"
            ) from error
        # From here on, trouble may pass: a share that is away, say.
        self._is_set_up = True

    # -- results

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless the one that is there says more."""
        self.set_up()
        name = self._name(self._keys.task(record.task_id))
        written = self._write_beside(dump_record(record, self._payloads))
        try:
            with self._locked(name):
                if not supersedes(record, self._known(name, record.task_id)):
                    os.unlink(written)
                    return
                os.rename(written, self._at(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(written)
            raise
        self._sync_directory()

    def _known(self, name: str, task_id: str) -> ResultRecord | None:
        try:
            return self._record(name, task_id)
        except DecodeError:
            # It says nothing to anybody: the new one may have its place.
            return None

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks; of those that are not known, none."""
        records = (self._record(self._name(self._keys.task(task_id)), task_id) for task_id in ids)
        return [record for record in records if record is not None and (record.is_final or not only_final)]

    def _record(self, name: str, task_id: str) -> ResultRecord | None:
        found = self._read(name)
        if found is None:
            return None
        data, age_s = found
        try:
            record = load_record(data, self._payloads)
        except ContentDisallowed:
            raise
        except DecodeError:
            if age_s < _HALF_WRITTEN_S:
                return None
            raise
        return record if record.task_id == task_id else None

    def delete(self, task_id: str) -> None:
        """Delete the file of a task."""
        self._unlink(self._name(self._keys.task(task_id)))

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple, instead of any that was kept before."""
        self.set_up()
        written = self._write_beside(dump_group(plain, self._payloads))
        os.rename(written, self._at(self._name(self._keys.group(group_id))))
        self._sync_directory()

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        found = self._read(self._name(self._keys.group(group_id)))
        return None if found is None else load_group(found[0], self._payloads)

    def delete_group(self, group_id: str) -> None:
        """Delete the file of a group."""
        self._unlink(self._name(self._keys.group(group_id)))

    # -- both

    def delete_expired(self, most: int) -> int:
        """Delete up to so many files that were written too long ago."""
        prefixes = (self._keys.task(""), self._keys.group(""))
        deleted = 0
        for name in self._names():
            if deleted >= most:
                break
            if name.startswith(prefixes):
                deleted += self._delete_older(name, self._expires_s or 0.0)
            elif name.startswith(f"{_OURS}new-"):
                self._delete_older(name, _ABANDONED_S)
        return deleted

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []

    def _delete_older(self, name: str, seconds: float) -> bool:
        if not seconds or not self._is_older(name, seconds):
            return False
        # Again, now that nobody can put a new result there.
        with self._locked(name):
            return self._is_older(name, seconds) and self._unlink(name)

    def _is_older(self, name: str, seconds: float) -> bool:
        try:
            return os.stat(self._at(name)).st_mtime < time.time() - seconds
        except FileNotFoundError:
            return False

    # -- files

    def _name(self, key: str) -> str:
        """Return the name of a key's file: the key, unless that is no name, or would lead out of the directory."""
        data = key.encode("utf-8", "surrogatepass")
        if "/" in key or "\0" in key or len(data) > _NAME_BYTES or not _is_text(key):
            prefix = self._keys.group("") if key.startswith(self._keys.group("")) else self._keys.task("")
            return f"{prefix}={hashlib.sha256(data).hexdigest()}"
        return key

    def _at(self, name: str) -> str:
        return os.path.join(self._path, name)

    def _read(self, name: str) -> tuple[bytes, float] | None:
        """Return what is in a file, and how many seconds ago it was written; None if there is none."""
        try:
            with open(self._at(name), "rb") as file:
                return file.read(), time.time() - os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None

    def _write_beside(self, data: bytes) -> str:
        path = self._at(f"{_OURS}new-{uuid.uuid4().hex}")
        try:
            # With the rights that anybody's files get here: callers may be other users than workers.
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with open(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(number)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return path

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        number = zlib.crc32(os.fsencode(name)) % _LOCKS
        path = self._at(f"{_OURS}lock-{number}")
        # A file of its own for each holder: threads keep each other out as processes do.
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _unlink(self, name: str) -> bool:
        try:
            os.unlink(self._at(name))
        except FileNotFoundError:
            return False
        return True

    def _sync_directory(self) -> None:
        number = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _is_text(key: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in key)
