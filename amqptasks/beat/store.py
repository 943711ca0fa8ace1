"""The file in which beat keeps what it must remember, should the broker lose it: an SQLite database.

The broker's word counts where it is newer, which it nearly always is: the file is written now and then. A file that
cannot be read is moved aside, never deleted; one that cannot be written is said so once, and beat goes on without.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Collection
from typing import Any, Final

from amqptasks.beat.state import State, _added, _whole, read_entry
from amqptasks.exceptions import DecodeError
from amqptasks.wire.reprs import printable

__all__ = ["DEFAULT_FILENAME", "StateFile"]

logger = logging.getLogger("amqptasks.beat")

DEFAULT_FILENAME: Final = "amqptasks-schedule"
#: "amqb": marks the databases that are ours.
APPLICATION_ID: Final = 0x616D7162
FORMAT: Final = 1
#: How long another process may hold the file, seconds.
BUSY_S: Final = 2.0


class StateFile:
    """The file of one schedule. Belongs to one thread. No method raises for what is wrong with the file.

    Args:
        path: Where it is, or is to be.
        title: The name of the schedule: the file may hold several.
    """

    def __init__(self, path: str, title: str) -> None:
        self.path = os.path.abspath(path)
        self._title = title
        self._connection: Any = None
        self._has_failed = False
        #: What was written last, so that only what changed is written.
        self._written: dict[str, str] = {}
        #: Whether all of a state was written, and nothing has gone wrong since.
        self._is_whole = False

    def load(self) -> State | None:
        """Return what the file holds; None if there is nothing, or nothing that can be read."""
        self._is_whole = False
        try:
            connection = self._open()
            if connection is None:
                return None
            return self._read(connection)
        except (self._errors(), DecodeError, ValueError, TypeError, OSError, RecursionError) as error:
            self._failed(error)
            return None

    def save(self, state: State, gone: Collection[str] | None = None) -> bool:
        """Write a state, as one transaction; returns whether that was done.

        Args:
            gone: The state's entries are only those that have changed since the last time, and these are no more. It is
                not done where there is nothing to add to: then all of the state must be written.
        """
        if gone is not None and not self._is_whole:
            return False
        try:
            connection = self._open()
            if connection is None:
                return False
            self._write(connection, state, gone)
        except (self._errors(), OSError) as error:
            self._failed(error)
            return False
        self._has_failed, self._is_whole = False, True
        return True

    def close(self) -> None:
        """Close it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(self._errors()):
                connection.close()

    @staticmethod
    def _errors() -> type[Exception]:
        import sqlite3

        return sqlite3.Error

    def _open(self) -> Any:
        if self._connection is not None:
            return self._connection
        import sqlite3

        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            mark = connection.execute("PRAGMA application_id").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if mark != APPLICATION_ID and (mark or tables):
                raise DecodeError("it is the database of another program")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if mark == APPLICATION_ID and version != FORMAT:
                raise DecodeError(f"it is of format {version}, and this version knows format {FORMAT}")
            if mark != APPLICATION_ID:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("CREATE TABLE IF NOT EXISTS schedule (title TEXT PRIMARY KEY, head TEXT NOT NULL)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS entry (title TEXT, name TEXT, state TEXT NOT NULL, "
                "PRIMARY KEY (title, name)) WITHOUT ROWID"
            )
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _read(self, connection: Any) -> State | None:
        row = connection.execute("SELECT head FROM schedule WHERE title = ?", (self._title,)).fetchone()
        if row is None:
            return None
        head = json.loads(row[0])
        if not isinstance(head, dict) or not isinstance(head.get("lineage"), str):
            raise DecodeError(f"expected a head of the schedule, got: {head!r:.80}")
        state = State(head["lineage"], _whole(head.get("number"), "number"), _whole(head.get("at"), "at"))
        state.added = _added(head.get("added", {}))
        rows = connection.execute("SELECT name, state FROM entry WHERE title = ?", (self._title,))
        for name, text in rows:
            state.entries[name] = read_entry(json.loads(text), name)
            self._written[name] = text
        return state

    def _write(self, connection: Any, state: State, gone: Collection[str] | None) -> None:
        head = json.dumps(
            {"lineage": state.lineage, "number": state.number, "at": state.at, "added": state.added},
        )  # fmt: skip
        wanted = {name: json.dumps(each.to_plain()) for name, each in state.entries.items()}
        changed = [(self._title, name, text) for name, text in wanted.items() if self._written.get(name) != text]
        if gone is None:
            gone = [name for name in self._written if name not in wanted]
        lost = [(self._title, name) for name in gone]
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("INSERT OR REPLACE INTO schedule VALUES (?, ?)", (self._title, head))
            if not self._written:
                connection.execute("DELETE FROM entry WHERE title = ?", (self._title,))
            connection.executemany("DELETE FROM entry WHERE title = ? AND name = ?", lost)
            connection.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", changed)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(self._errors()):
                connection.execute("ROLLBACK")
            raise
        for name in gone:
            self._written.pop(name, None)
        self._written.update(wanted)

    def _failed(self, error: Exception) -> None:
        import sqlite3

        self.close()
        self._written, self._is_whole = {}, False
        shown = printable(str(error), 200)
        is_away = isinstance(error, (sqlite3.OperationalError, OSError)) and "malformed" not in str(error)
        if is_away:
            # It cannot be opened, is locked, or the disk is full: it may be fine, and is left alone.
            if not self._has_failed:
                self._has_failed = True
                logger.warning(
                    "beat: cannot use the file %s: %s. Going on without; the broker keeps the schedule",
                    self.path,
                    shown,
                )
            return
        aside = f"{self.path}.broken-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            os.replace(self.path, aside)
        except OSError as problem:
            logger.warning(
                "beat: cannot read the file %s: %s. Cannot move it aside either: %s", self.path, shown, problem
            )
            return
        for extra in ("-journal", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(self.path + extra, aside + extra)
        logger.warning("beat: cannot read the file %s: %s. Moved it aside to %s", self.path, shown, aside)
