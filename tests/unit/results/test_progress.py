"""The bar: what it shows on a terminal and elsewhere, how often, and what it does to who waits."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest

from amqptasks.exceptions import TimeoutError
from amqptasks.progress import Bar, track
from amqptasks.result import AsyncResult, GroupResult, ResultSet, denied_join_result
from amqptasks.results import bar as bars
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord
from amqptasks.wire.failures import to_plain


class Terminal(io.StringIO):
    """A text file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def backend_with(ended: dict[str, Any]) -> MemoryBackend:
    """A backend in which these tasks are finished."""
    backend = MemoryBackend()
    for task_id, value in ended.items():
        is_error = isinstance(value, BaseException)
        status, plain = ("FAILURE", to_plain(value)) if is_error else ("SUCCESS", value)
        backend.store(ResultRecord.now(task_id, status, plain))
    return backend


def results_of(backend: MemoryBackend, names: Any) -> ResultSet:
    return ResultSet([AsyncResult(name, backend) for name in names])


def test_elsewhere_it_is_a_line_at_each_tenth_of_the_way() -> None:
    file = io.StringIO()
    names = [f"t{number}" for number in range(1000)]
    several = results_of(backend_with(dict.fromkeys(names, 1)), names)
    assert several.progress("files", file=file) == [1] * 1000
    assert file.getvalue().splitlines() == [f"{done}/1000 files" for done in range(100, 1001, 100)]


def test_on_a_terminal_it_is_drawn_over_and_over_but_not_often(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a terminal, and a clock that says that a hundred tasks take a second each ten
    monkeypatch.setenv("COLUMNS", "100")
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    file = Terminal()
    with Bar(100, file=file) as bar:
        for _ in range(100):
            now[0] += 0.01
            bar.advance()
    # Then it was drawn ten times and at the end, each time over the one before, in one line
    drawn = file.getvalue()
    assert drawn.count("\n") == 1 and drawn.endswith("\n")
    assert 10 <= drawn.count("\r") <= 12
    last = drawn.rstrip("\n").split("\r")[-1]
    assert last == f"[{'#' * 40}] 100/100 tasks, 0:01 in all"
    assert any(line.startswith("[" + "#" * 20 + "." * 20 + "] 5") and "left" in line for line in drawn.split("\r"))


def test_a_narrow_terminal_has_no_room_for_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    file = Terminal()
    with Bar(2, file=file) as bar:
        bar.advance(2)
    assert "#" not in file.getvalue() and "2/2 tasks" in file.getvalue()


def test_a_shorter_line_leaves_nothing_of_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "29")
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    file = Terminal()
    bar = Bar(3, file=file)
    for passed_s in (5000.0, 2.0):
        now[0] += passed_s
        bar.advance()
    first, second = file.getvalue().split("\r")[1:]
    assert (first, second) == ("1/3 tasks, 2:46:40 left", "2/3 tasks, 41:41 left  ")


def test_a_terminal_that_can_do_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    with Bar(1, file=file) as bar:
        bar.advance()
    assert file.getvalue() == "1/1 tasks\n"


def test_failures_are_counted_and_the_first_ends_it() -> None:
    # Given three tasks of which one has failed
    backend = backend_with({"a": 1, "b": KeyError("b"), "c": 3})
    file = io.StringIO()
    # When they are waited for / Then the failure is raised, or stands among the values, and is counted
    with pytest.raises(KeyError):
        results_of(backend, "abc").progress(file=file)
    values = results_of(backend, "abc").progress(propagate=False, file=file)
    assert values[0] == 1 and isinstance(values[1], KeyError) and values[2] == 3
    assert file.getvalue().splitlines()[-1] == "3/3 tasks, 1 failed"


def test_it_has_a_timeout_and_ends_its_line() -> None:
    file = Terminal()
    with pytest.raises(TimeoutError):
        results_of(backend_with({"a": 1}), "ab").progress(timeout=0.05, file=file)
    assert file.getvalue().endswith("\n") and "1/2 tasks" in file.getvalue()


def test_tracking_goes_with_a_loop_in_the_order_of_the_ends() -> None:
    # Given a group of three, none finished
    backend, file = backend_with({}), io.StringIO()
    group = GroupResult("g", [AsyncResult("a", backend), GroupResult("h", [AsyncResult(n, backend) for n in "bc"])])
    seen = []
    backend.store(ResultRecord.now("c", "SUCCESS", "C"))
    # When they end one after another / Then the loop has each as it ends
    for result in track(group, "parts", timeout=20, file=file):
        seen.append(result.get(timeout=0))
        following = {"C": "a", "A": "b"}.get(seen[-1])
        if following:
            backend.store(ResultRecord.now(following, "SUCCESS", following.upper()))
    assert seen == ["C", "A", "B"] and file.getvalue().splitlines()[-1] == "3/3 parts"


def test_any_handles_can_be_tracked() -> None:
    backend = backend_with({"a": 1, "b": 2})
    file = io.StringIO()
    found = track((AsyncResult(name, backend) for name in "ab"), file=file)
    assert sorted(result.get(timeout=0) for result in found) == [1, 2]


def test_nothing_to_wait_for_is_no_trouble() -> None:
    for file in (io.StringIO(), Terminal()):
        assert ResultSet([]).progress(file=file) == []


def test_waiting_inside_a_task_is_refused_before_anything_is_shown() -> None:
    file = Terminal()
    several = results_of(backend_with({"a": 1}), "a")
    with denied_join_result():
        for wait in (several.progress, several.as_completed, lambda: track(several, file=file)):
            with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
                wait()
    assert file.getvalue() == ""


def test_a_file_that_cannot_be_written_is_given_up() -> None:
    several = results_of(backend_with({"a": 1}), "a")
    closed, (reader, writer) = io.StringIO(), os.pipe()
    closed.close()
    os.close(reader)
    pipe = open(writer, "w", buffering=1)  # noqa: SIM115 - closing it is an error too
    for file in (closed, pipe):
        assert several.progress(file=file) == [1]
    with pytest.raises(BrokenPipeError):
        pipe.close()


def test_without_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert results_of(backend_with({"a": 1}), "a").progress() == [1]


def test_a_loop_that_is_left_ends_the_line() -> None:
    file = Terminal()
    for _ in track(results_of(backend_with({"a": 1, "b": 2}), "ab"), file=file):
        break
    assert file.getvalue().endswith("\n") and threading.active_count() >= 1
