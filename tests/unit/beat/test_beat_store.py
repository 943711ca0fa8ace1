"""The file that remembers: what is written is read again, and whatever is wrong with it stops nobody."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from amqptasks.beat.state import EntryState, State
from amqptasks.beat.store import StateFile

STATE = State("l", 7, 8, {"a": EntryState(1, 2, 3, "mark", True), "ä\n": EntryState(5)}, {"ä\n": {"task": "t"}})


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    # Given a file that was written twice
    path = str(tmp_path / "schedule")
    file = StateFile(path, "shop")
    assert file.load() is None
    file.save(State("l", 1, 1, {"old": EntryState(1), "a": EntryState(1)}))
    file.save(STATE)
    file.close()

    # When it is read / Then the last state is there, and that of another schedule is not
    assert StateFile(path, "shop").load() == STATE
    other = StateFile(path, "other")
    assert other.load() is None
    # And both can use one file
    other.save(State("m", 1, 1))
    assert other.load() == State("m", 1, 1) and StateFile(path, "shop").load() == STATE
    # And who takes over knows what to delete
    StateFile(path, "shop").save(State("n", 1, 1, {"new": EntryState(1)}))
    taken_over = StateFile(path, "shop").load()
    assert taken_over is not None and taken_over.entries.keys() == {"new"}


def test_what_changed_is_added_to_what_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "schedule")
    # Given a file of which nobody has written all yet / Then changes are not taken: they would not be the whole
    StateFile(path, "shop").save(STATE)
    file = StateFile(path, "shop")
    file.load()
    change = State("l", 9, 10, {"a": EntryState(6), "new": EntryState(7)}, {"new": {"task": "n"}})
    assert file.save(change, ["ä\n"]) is False and StateFile(path, "shop").load() == STATE
    # When all was written, and then changes / Then both are there
    assert file.save(STATE) and file.save(change, ["ä\n"])
    assert StateFile(path, "shop").load() == change
    assert file.save(State("l", 11, 12), ["a"])
    assert StateFile(path, "shop").load() == State("l", 11, 12, {"new": EntryState(7)})
    # And what was written stays known: one that comes back is written again
    assert file.save(State("l", 13, 14, {"a": EntryState(6)}), [])
    found = StateFile(path, "shop").load()
    assert found is not None and found.entries == {"new": EntryState(7), "a": EntryState(6)}
    # And all of another state takes the place of it
    assert file.save(STATE) and StateFile(path, "shop").load() == STATE


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000] + b"\xff" * 500)


def empty_rows(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entry SET state = '{'")
    connection.close()


def other_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()


def of_the_future(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    "harm", [tear, empty_rows, other_program, of_the_future, lambda path: path.write_bytes(b"\x00\x06\x15shelve" * 500)]
)
def test_a_file_that_cannot_be_read_is_moved_aside(
    harm: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a file that is torn, or another program's
    path = tmp_path / "schedule"
    file = StateFile(str(path), "shop")
    file.save(STATE)
    file.close()
    harm(path)
    harmed = path.read_bytes()

    # When it is read / Then there is nothing, it stands aside as it was, and that is told
    file = StateFile(str(path), "shop")
    assert file.load() is None
    aside = [each for each in tmp_path.iterdir() if ".broken-" in each.name]
    assert len(aside) == 1 and aside[0].read_bytes() == harmed
    assert "Moved it aside" in caplog.text
    # And a new one takes its place
    file.save(STATE)
    assert StateFile(str(path), "shop").load() == STATE


def test_a_file_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Given a place where there can be no file / When it is used
    caplog.set_level(logging.WARNING)
    file = StateFile(str(tmp_path / "missing" / "schedule"), "shop")
    assert file.load() is None
    file.save(STATE)
    file.save(STATE)

    # Then that is told once
    assert caplog.text.count("Going on without") == 1


def test_a_file_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a file that another process is writing
    monkeypatch.setattr("amqptasks.beat.store.BUSY_S", 0.01)
    path = tmp_path / "schedule"
    StateFile(str(path), "shop").save(STATE)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    # When it is used / Then it stays where it is, and is used again later
    file = StateFile(str(path), "shop")
    assert file.load() is None
    file.save(State("m"))
    other.execute("ROLLBACK")
    other.close()
    assert file.load() == STATE
    assert [each.name for each in tmp_path.iterdir()] == ["schedule"]
